"""Stage 1: pix2pix, a conditional GAN that predicts the target image from the brightfield."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.data import Cells, Minibatch
from skbegan.core.device import Adam, autocast
from skbegan.core.networks import Discriminator, Generator
from skbegan.core.training import frozen, snapshot, untracked


def real_or_fake_loss(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of patch logits against one label for all patches."""
    logits = logits.float() if logits.dtype is torch.bfloat16 else logits
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


class ConditionalGAN:
    """A generator, its discriminator, their optimizers, and the part of a step that both stages share.

    Parameters
    ----------
    generator : Generator
    discriminator : Discriminator
        On the device.
    learning_rate, discriminator_learning_rate : float
    adversarial_weight, image_weight : float
        Weights of the discriminator's verdict and of the mean absolute error in the generator's loss.
    rng : torch.Generator
        Draws the dropout masks; on the device.
    dtype : torch.dtype, default=torch.float32
        Arithmetic of the networks, see :func:`~skbegan.core.device.resolve_precision`.
    """

    name: str
    leak = 0.0  # of the bottleneck's ReLU, in the gradient alone

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        learning_rate: float,
        discriminator_learning_rate: float,
        adversarial_weight: float,
        image_weight: float,
        rng: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.generator: Generator = generator.train()
        self.discriminator: Discriminator = discriminator.train()
        self.learning_rate = learning_rate
        self.adversarial_weight = adversarial_weight
        self.image_weight = image_weight
        self.rng = rng
        self.dtype = dtype
        self.generator_optimizer = Adam(generator.parameters(), learning_rate)
        self.discriminator_optimizer = Adam(discriminator.parameters(), discriminator_learning_rate)
        self.networks: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator}
        self.rngs = {"dropout": rng}
        self.events: list[str] = []

    @property
    def optimizers(self) -> dict[str, Adam]:
        return {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}

    def generate(self, source: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return image and features in full precision; dropout acts when `rng` is given."""
        with autocast(source.device, self.dtype):
            image, features = self.generator(source, rng, self.leak)
        return image.to(source.dtype), features.to(source.dtype)

    def judge(self, source: Tensor, image: Tensor) -> Tensor:
        with autocast(source.device, self.dtype):
            return self.discriminator(source, image)

    def discriminator_step(self, cells: Minibatch, image: Tensor) -> dict[str, Tensor]:
        """Update the discriminator on the real and then on the generated image, each with half the cross-entropy."""
        losses = {}
        for name, target, real in (("real", cells.target, True), ("fake", image.detach(), False)):
            loss = 0.5 * real_or_fake_loss(self.judge(cells.source, target), real)
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.discriminator_optimizer.step()
            losses[f"discriminator_{name}"] = loss
        return losses

    def image_losses(self, cells: Minibatch, image: Tensor) -> dict[str, Tensor]:
        """Return the generator's losses on its image: fooling the discriminator, and mean absolute error."""
        return {
            "adversarial": real_or_fake_loss(self.judge(cells.source, image), True),
            "image": F.l1_loss(image, cells.target),
        }

    def generator_step(self, total: Tensor) -> None:
        self.generator_optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.generator_optimizer.step()

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        """Nothing is due by default."""

    def candidate(self) -> dict[str, Tensor]:
        """Return a copy of the generator's state."""
        return snapshot(self.generator)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides networks, optimizers and random generators."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""

    def soften(self) -> None:
        self.learning_rate /= 2
        self.generator_optimizer = Adam(self.generator.parameters(), self.learning_rate)
        rate = self.discriminator_optimizer.param_groups[0]["lr"] / 2
        self.discriminator_optimizer = Adam(self.discriminator.parameters(), rate)


class Pretraining(ConditionalGAN):
    """Stage 1 as the training loop sees it."""

    name = "pretraining"

    def step(self, cells: Minibatch, progress: float) -> dict[str, Tensor]:
        """One step: generate, update the discriminator twice, update the generator.

        The image is generated once and serves all three updates; the generator does not change in between.
        """
        image, _ = self.generate(cells.source, self.rng)
        losses = self.discriminator_step(cells, image)
        with frozen(self.discriminator):
            losses |= self.image_losses(cells, image)
            losses["total"] = self.total(losses)
            self.generator_step(losses["total"])
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        return self.adversarial_weight * losses["adversarial"] + self.image_weight * losses["image"]

    def validate(self, cells: Minibatch) -> dict[str, Tensor]:
        with torch.no_grad(), untracked(self.generator), frozen(self.discriminator):
            image, _ = self.generate(cells.source, None)
            losses = self.image_losses(cells, image)
            losses["total"] = self.total(losses)
        return losses

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """The best generator of stage 1 has the smallest image error on all validation cells."""
        return losses["image"]

"""Stage 1, pretraining: pix2pix, a conditional GAN that predicts the target image from the brightfield."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.config import Architecture, Config, Pretraining
from skbegan.core.engine import Engine, Event
from skbegan.core.losses import Losses, positive, real_or_fake, weighted_sum
from skbegan.core.networks import (
    CHANNELS_TOGETHER,
    Discriminator,
    Generator,
    Weights,
    from_numpy,
    frozen,
    generator_of,
    new_network,
    scale_last_layer,
    snapshot,
    untracked,
    without_outputs,
)
from skbegan.data.cells import Cells, Minibatch, draw_coins, symmetry
from skbegan.data.source import send
from skbegan.design import Design

WARMUP = 0.05  # of the stage, over which a learning rate that decays rises first


class Start(NamedTuple):
    """Weights that a stage starts from."""

    generator: Weights
    discriminator: Weights


class ConditionalGAN:
    """A generator, its discriminator, and what the steps of all stages that train them share.

    Parameters
    ----------
    generator : Generator
    discriminator : Discriminator
        On the device.
    engine : Engine
        With the streams ``"order"`` and ``"dropout"``.
    learning_rate, discriminator_learning_rate : float
    """

    name: str
    config: Any
    weights: dict[str, float]
    leak = 0.0  # of the bottleneck's ReLU, in the gradient alone

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        engine: Engine,
        *,
        learning_rate: float,
        discriminator_learning_rate: float,
    ) -> None:
        self.generator: Generator = generator.train()
        self.discriminator: Discriminator = discriminator.train()
        self.engine = engine
        self.learning_rate = learning_rate
        self.discriminator_learning_rate = discriminator_learning_rate
        self.networks: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator}
        self.events: list[Event] = []
        self._fixed_weights: Tensor | None = None
        engine.optimize("generator", generator.parameters(), learning_rate)
        engine.optimize("discriminator", discriminator.parameters(), discriminator_learning_rate, updates=2)

    def draws(self, n: int, progress: float) -> dict[str, Tensor]:
        """Draw, on the CPU, what a step at some progress needs for a minibatch of `n` cells of all processes.

        It travels to the device with the cells, and so do numbers that change from step to step, as far as a card needs
        them there. A step whose cells come without draws by itself.
        """
        coins = draw_coins(n, self.engine.rngs["order"])[:, self.own(n)] if self.config.augment else None
        return self.scheduled(progress) | ({} if coins is None else {"coins": coins})

    def scheduled(self, progress: float) -> dict[str, Tensor]:
        """Set the learning rate of the generator; return, on the CPU, the rates that a card needs, see `Engine`."""
        self.engine.optimizers["generator"].learning_rate = self.learning_rate * self.share_at(progress)
        return self.engine.coming()

    def share_at(self, progress: float) -> float:
        """Return the share of the generator's learning rate at a progress of 0 to 1 over the stage: all of it."""
        return 1.0

    def drawn(self, cells: Minibatch, progress: float) -> Mapping[str, Tensor]:
        """Return what was drawn for a step, on the device; the optimizers take up their learning rates."""
        draws = cells.draws
        if draws is None:
            on_host = self.draws(len(cells.whole.batch), progress)
            draws = dict(zip(on_host, send(list(on_host.values()), self.engine.device), strict=True))
        self.engine.schedule(draws)
        return draws

    def own(self, n: int) -> slice:
        """Return which of `n` cells of all processes are those of this one."""
        size = n // self.engine.group.world
        return slice(self.engine.group.rank * size, (self.engine.group.rank + 1) * size)

    def generate(self, source: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return image and features in full precision; dropout acts when `rng` is given."""
        group = self.engine.group
        masks = [] if rng is None else self.generator.draw_masks(group.world * len(source), rng)
        with self.engine.autocast(self.generator):
            image, features = self.generator(source, [group.own_of(mask) for mask in masks], self.leak)
        return image.to(source.dtype), features.to(source.dtype)

    def judge(self, source: Tensor, image: Tensor) -> Tensor:
        """Return the discriminator's patch logits."""
        with self.engine.autocast(self.discriminator):
            logits: Tensor = self.discriminator(source, image)
        return logits

    def update_discriminator(self, cells: Minibatch, image: Tensor) -> Losses:
        """Update the discriminator on the real and then on the generated image, each with half the cross-entropy."""
        losses: Losses = {}
        for name, target, real in (("real", cells.target, True), ("fake", image.detach(), False)):
            loss = real_or_fake(self.judge(cells.source, target), real, 0.5)
            self.engine.descend("discriminator", loss)
            losses[f"discriminator_{name}"] = loss
        return losses

    def image_losses(self, cells: Minibatch, image: Tensor, weights: Mapping[str, float]) -> Losses:
        """Return the generator's losses on its image: fooling the discriminator, and mean absolute error."""
        losses: Losses = {}
        if "adversarial" in weights:
            losses["adversarial"] = real_or_fake(self.judge(cells.source, image), True)
        losses["image"] = F.l1_loss(image, cells.target)
        return losses

    def fixed_weights(self) -> Tensor | None:
        """Return the weights of the losses as a card has them; None on a CPU, where they are numbers."""
        if self._fixed_weights is None and self.engine.device.type == "cuda":
            host = torch.tensor(list(self.weights.values()), dtype=self.engine.wide)
            self._fixed_weights = send([host], self.engine.device)[0]
        return self._fixed_weights

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        """Nothing is due by default."""

    def candidate(self) -> dict[str, Tensor]:
        """Return a copy of the generator's state."""
        return snapshot(self.generator)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides networks, optimizers and random generators."""
        return {"learning_rate": self.learning_rate, "discriminator_learning_rate": self.discriminator_learning_rate}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.learning_rate = state["learning_rate"]
        self.discriminator_learning_rate = state["discriminator_learning_rate"]

    def soften(self) -> None:
        """Forget the optimizers' momenta and halve the learning rates."""
        self.learning_rate /= 2
        self.discriminator_learning_rate /= 2
        self.engine.optimize("generator", self.generator.parameters(), self.learning_rate)
        self.engine.optimize(
            "discriminator", self.discriminator.parameters(), self.discriminator_learning_rate, updates=2
        )


class PretrainingPlan(ConditionalGAN):
    """Stage 1 as the training loop sees it.

    Parameters
    ----------
    config : Pretraining
    generator : Generator
    discriminator : Discriminator
    engine : Engine
    """

    name = "pretraining"

    def __init__(self, config: Pretraining, generator: Generator, discriminator: Discriminator, engine: Engine) -> None:
        super().__init__(
            generator,
            discriminator,
            engine,
            learning_rate=config.learning_rate,
            discriminator_learning_rate=config.discriminator_learning_rate,
        )
        self.config = config
        self.weights = positive({"adversarial": config.adversarial, "image": config.image})

    def step(self, cells: Minibatch, progress: float) -> Losses:
        """One step: generate, update the discriminator twice, update the generator.

        The image is generated once and serves all three updates; the generator does not change in between.
        """
        draws = self.drawn(cells, progress)
        if self.config.augment:
            cells = symmetry(replace(cells, draws=draws), self.engine.rngs["order"])
        image, _ = self.generate(cells.source, self.engine.rngs["dropout"])
        losses: Losses = {}
        if "adversarial" in self.weights:
            losses |= self.update_discriminator(cells, image)
        with frozen(self.discriminator):
            losses |= self.image_losses(cells, image, self.weights)
            losses["total"] = weighted_sum(losses, self.weights, self.fixed_weights())
            self.engine.descend("generator", losses["total"])
        return losses

    def share_at(self, progress: float) -> float:
        """Return the share of the learning rate: with decay it rises at first and falls over the last part."""
        if self.config.decay == 0:
            return 1.0
        rising, falling = (progress + 1e-3) / WARMUP, (1.0 - progress) / self.config.decay + 0.02
        share: float = min(1.0, rising) * min(1.0, falling)
        return share

    def validate(self, cells: Minibatch) -> Losses:
        """Return the generator's losses on held-out cells."""
        with torch.no_grad(), untracked(self.generator), frozen(self.discriminator):
            image, _ = self.generate(cells.source, None)
            losses = self.image_losses(cells, image, self.weights)
            losses["total"] = weighted_sum(losses, self.weights)
        return losses

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """The best generator of stage 1 has the smallest image error on all validation cells."""
        return losses["image"]


def new_discriminator(architecture: Architecture, cells: Cells, rng: torch.Generator) -> Discriminator:
    """Return a new discriminator for the cells, on the CPU."""
    channels = {"in_channels": cells.in_channels, "out_channels": cells.out_channels}
    return new_network(Discriminator, base_width=architecture.base_width, rng=rng, **channels)


def networks_of(
    start: Start, architecture: Architecture, cells: Cells, engine: Engine
) -> tuple[Generator, Discriminator]:
    """Return the networks that a stage starts from, on the device."""
    generator = engine.place(generator_of(without_outputs(start.generator), engine.device, engine.dtype))
    discriminator = engine.place(new_discriminator(architecture, cells, torch.Generator().manual_seed(0)))
    return generator, from_numpy(discriminator, start.discriminator)


def build(
    config: Config, cells: Cells, design: Design | None, engine: Engine, start: Start | None = None
) -> PretrainingPlan:
    """Return stage 1, ready to be run.

    Parameters
    ----------
    config : Config
    cells : Cells
        Training cells.
    design : Design or None
        Not used: stage 1 knows neither batch nor cell type.
    engine : Engine
        With the streams ``"weights"`` (for new networks), ``"order"`` and ``"dropout"``.
    start : Start, optional
        By default new networks.
    """
    architecture = config.architecture
    if start is not None:
        return PretrainingPlan(config.pretraining, *networks_of(start, architecture, cells, engine), engine)
    rng = engine.rngs["weights"]
    generator = engine.place(
        new_network(
            Generator,
            cells.side,
            base_width=architecture.base_width,
            n_features=architecture.n_features,
            in_channels=cells.in_channels,
            out_channels=cells.out_channels,
            head_width=architecture.head_width,
            channels_together=CHANNELS_TOGETHER[architecture.norm],
            rng=rng,
        )
    )
    if architecture.standardize:
        scale_last_layer(generator)
    discriminator = engine.place(new_discriminator(architecture, cells, rng))
    return PretrainingPlan(config.pretraining, generator, discriminator, engine)

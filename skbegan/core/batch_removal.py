"""Stage 2, the default: adversaries trained along read the batch, and the generator learns to leave them nothing.

What differs from the published procedure (:mod:`skbegan.core.published_removal`), and why: the published classifiers
are frozen while the generator trains, so that it moves cells across fixed boundaries and a fresh probe still reads the
batch. Here the adversaries see all features and the cell type, are updated at every step and renewed in turn, and the
fool target is what anyone could say of the batch from the cell type alone. Two losses without an opponent do most of
the work: the batches of a type are pulled together where a linear probe would tell them apart, and a cell is to have
the same profile whatever the batch it looks like (see :mod:`skbegan.core.batch_transfer`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.alignment import Activity, BatchAlignment, disagreement, redundancy, standardised
from skbegan.core.classifiers import fit_classifier
from skbegan.core.data import Cells, Minibatch
from skbegan.core.device import Adam, autocast, new_rng, place
from skbegan.core.networks import CELL_TYPE_HIDDEN, Discriminator, FeatureClassifier, Generator, ImageClassifier, build
from skbegan.core.pretraining import ConditionalGAN
from skbegan.core.training import frozen, untracked

BATCH_TARGETS = ("conditional", "uniform", "reference")
ADVERSARY_HIDDEN = (256, 128)
KNOWN_CELLS = 16384  # at most, whose features a new adversary learns from: memory does not grow with the data
DEAD_SHARE = 0.05  # fewer active features than this share of all is a dead bottleneck


def fool_targets(
    batch: Tensor, cell_type: Tensor, n_batches: int, n_cell_types: int, kind: str, reference: int = 0
) -> Tensor:
    """Return what the generator wants the adversaries to say of the cells of each type: (n_cell_types, n_batches).

    Parameters
    ----------
    batch, cell_type : Tensor of int, shape (n,)
        Codes of the training cells.
    kind : {"conditional", "uniform", "reference"}
        ``"conditional"`` is p(batch given cell type) in the training cells, all that a batch-free profile can tell, and
        so the finite optimum for a design in which types miss from batches. ``"uniform"`` gives each batch the same
        probability. ``"reference"`` is the published target: every cell is to look like `reference`.
    reference : int, default=0
        Code of the reference batch.
    """
    if kind == "uniform":
        return torch.full((n_cell_types, n_batches), 1.0 / n_batches)
    if kind == "reference":
        return F.one_hot(torch.full((n_cell_types,), reference), n_batches).float()
    counts = torch.bincount(cell_type.cpu() * n_batches + batch.cpu(), minlength=n_cell_types * n_batches)
    counts = counts.view(n_cell_types, n_batches).float()
    marginal = counts.sum(0, keepdim=True) / counts.sum()
    totals = counts.sum(1, keepdim=True)
    # A type without a training cell is never drawn; its row only has to be a distribution.
    return torch.where(totals > 0, counts / totals.clamp(min=1), marginal)


def active_share(features: Tensor) -> Tensor:
    """Share of features whose spread over the cells is at least 1 % of the largest one's."""
    spread = features.float().std(0, correction=0)
    return (spread > 0.01 * spread.max()).float().mean()


@dataclass(frozen=True)
class RemovalWeights:
    """Weights of the losses of the generator in stage 2; the names are those of the estimator's parameters."""

    adversarial: float
    image: float
    cell_type: float
    cell_type_image: float
    batch: float
    batch_image: float
    alignment: float = 0.0
    invariance: float = 0.0
    activity: float = 0.0
    decorrelation: float = 0.0


@dataclass(frozen=True)
class Design:
    """Numbers of batches and cell types, and the fool target of each type, (n_cell_types, n_batches)."""

    n_batches: int
    n_cell_types: int
    targets: Tensor


class BatchRemoval(ConditionalGAN):
    """Stage 2 with adversaries trained along, as the training loop sees it.

    Parameters
    ----------
    generator : Generator
    discriminator : Discriminator
        Where stage 1 left them.
    design : Design
    weights : RemovalWeights
        `batch`, `batch_image` and `alignment` are reached after the ramp.
    base_width : int
        Width of the image classifiers.
    learning_rate, discriminator_learning_rate : float
    classifier_learning_rate, adversary_learning_rate : float
        For the classifiers of cell type, and for the adversaries.
    n_adversaries : int
        Feature adversaries, of different age.
    adversary_steps : int
        Updates of the feature adversaries per step of the generator.
    refresh_epochs : int
        Every so many epochs the oldest feature adversary is replaced by a new one.
    warmup_epochs : int
        Epochs of the classifiers alone, before the first step of the generator.
    ramp : float
        Share of the stage over which the weights of the fool losses rise linearly from 0.
    decay : float
        Share of the stage, its last part, over which the generator's learning rate falls linearly to 0.
    averaging : float
        Decay per step of the running average of the generator's weights, which is what is kept; 0 keeps the last.
    prepare : callable
        Augmentation, for the warm-up.
    """

    name = "batch_removal"
    leak = 0.1

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        *,
        design: Design,
        weights: RemovalWeights,
        base_width: int,
        learning_rate: float,
        discriminator_learning_rate: float,
        classifier_learning_rate: float,
        adversary_learning_rate: float,
        n_adversaries: int,
        adversary_steps: int,
        refresh_epochs: int,
        warmup_epochs: int,
        ramp: float,
        decay: float,
        averaging: float,
        minibatch_size: int,
        seed: int,
        rng: torch.Generator,
        dtype: torch.dtype = torch.float32,
        prepare: Callable[[Minibatch], Minibatch] = lambda cells: cells,
    ) -> None:
        super().__init__(
            generator,
            discriminator,
            learning_rate=learning_rate,
            discriminator_learning_rate=discriminator_learning_rate,
            adversarial_weight=weights.adversarial,
            image_weight=weights.image,
            rng=rng,
            dtype=dtype,
        )
        self.weights = weights
        self.design = design
        self.device = rng.device
        self.targets = design.targets.to(self.device)
        # Rows of it are one-hot cell types; torch's one_hot looks at the values first, and so waits for them.
        self.one_hot = torch.eye(design.n_cell_types, device=self.device)
        self.ramp, self.decay, self.averaging = ramp, decay, averaging
        self.average: list[Tensor] = []
        self.n_averaged = 0
        self.adversary_steps, self.refresh_epochs, self.warmup_epochs = adversary_steps, refresh_epochs, warmup_epochs
        self.minibatch_size = minibatch_size
        self.prepare = prepare
        self.classifier_learning_rate = classifier_learning_rate
        self.adversary_learning_rate = adversary_learning_rate
        self.cpu_rng = self.rngs["classifiers"] = new_rng(seed)
        self.n_features = int(generator.bottleneck.out_channels)
        n_types, n_batches = design.n_cell_types, design.n_batches
        image_shape = {"base_width": base_width, "in_channels": generator.to_image.out_channels}
        # Readers of the cell type help the generator; readers of the batch work against it.
        helpers: dict[str, nn.Module] = {}
        adversaries: dict[str, nn.Module] = {}
        if n_types > 1 and weights.cell_type > 0:
            helpers["cell_type"] = build(
                FeatureClassifier, self.n_features, n_types, CELL_TYPE_HIDDEN, rng=self.cpu_rng
            )
        if n_types > 1 and weights.cell_type_image > 0:
            helpers["cell_type_image"] = build(
                ImageClassifier, generator.side, n_types, rng=self.cpu_rng, **image_shape
            )
        if weights.batch > 0:
            for index in range(n_adversaries):
                adversaries[f"batch_adversary_{index + 1}"] = self._new_adversary()
        if weights.batch_image > 0:
            adversaries["batch_adversary_image"] = build(
                ImageClassifier, generator.side, n_batches, n_conditions=n_types, rng=self.cpu_rng, **image_shape
            )
        memory = max(1024, 4 * self.n_features)  # enough cells for a covariance of the features
        self.alignment = BatchAlignment(n_batches, n_types, memory) if weights.alignment > 0 else None
        self.activity: Activity | None = None
        self.helpers = {name: place(network, self.device, dtype) for name, network in helpers.items()}
        self.adversaries = {name: place(network, self.device, dtype) for name, network in adversaries.items()}
        self.networks |= self.helpers | self.adversaries
        self.classifier_optimizers: dict[str, Adam] = {}
        self._reset_classifier_optimizers()

    def _reset_classifier_optimizers(self) -> None:
        for name, network in self.helpers.items():
            self.classifier_optimizers[name] = Adam(network.parameters(), self.classifier_learning_rate)
        for name, network in self.adversaries.items():
            self.classifier_optimizers[name] = Adam(network.parameters(), self.adversary_learning_rate)

    @property
    def optimizers(self) -> dict[str, Adam]:
        return super().optimizers | self.classifier_optimizers

    def _new_adversary(self) -> nn.Module:
        design = self.design
        return build(
            FeatureClassifier,
            self.n_features,
            design.n_batches,
            ADVERSARY_HIDDEN,
            n_conditions=design.n_cell_types,
            rng=self.cpu_rng,
        )

    # What a classifier sees ---------------------------------------------------------------------------------------

    def _read(self, name: str, network: nn.Module, image: Tensor, features: Tensor, cell_type: Tensor) -> Tensor:
        """Return a classifier's logits; adversaries also see the cell type, so that it excuses no batch signal."""
        seen = image if name.endswith("image") else standardised(features)
        with autocast(seen.device, self.dtype):
            if name in self.helpers:
                logits = network(seen)
            else:
                logits = network(seen, self.one_hot[cell_type].to(seen.dtype))
        return logits.to(seen.dtype)

    def classifier_step(self, cells: Minibatch, image: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Update all classifiers once and the feature adversaries `adversary_steps` times; the generator stays."""
        image, features = image.detach(), features.detach()
        losses = {}
        for repeat in range(self.adversary_steps):
            readers = self._feature_adversaries() if repeat else self.helpers | self.adversaries
            for name, network in readers.items():
                truth = cells.cell_type if name in self.helpers else cells.batch
                loss = F.cross_entropy(self._read(name, network, image, features, cells.cell_type), truth)
                optimizer = self.classifier_optimizers[name]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses[name if name in self.adversaries else f"{name}_classifier"] = loss
        return losses

    # One step -----------------------------------------------------------------------------------------------------

    def step(self, cells: Minibatch, progress: float) -> dict[str, Tensor]:
        """One step: generate, update discriminator and classifiers, then the generator with all else frozen."""
        falling = min(1.0, (1.0 - progress) / self.decay) if self.decay else 1.0
        self.generator_optimizer.set_learning_rate(self.learning_rate * falling)
        image, features = self.generate(cells.source, self.rng)
        losses = self.discriminator_step(cells, image)
        losses |= self.classifier_step(cells, image, features)
        if self.alignment is not None:
            self.alignment.remember(cells, features)
        readers = list((self.helpers | self.adversaries).values())
        with frozen(self.discriminator), frozen(*readers, batch_statistics=True):
            losses |= self.generator_losses(cells, image, features)
            losses |= self.profile_losses(cells, features)
            losses["total"] = self.total(losses, min(1.0, progress / self.ramp) if self.ramp else 1.0)
            self.generator_step(losses["total"])
        self._average()
        return losses

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaging == 0:
            return
        weights: list[Tensor] = list(self.generator.parameters())
        if not self.average:
            self.average = [weight.detach().clone() for weight in weights]
        # A short memory at first, so that the average does not drag the start along.
        decay = min(self.averaging, self.n_averaged / (self.n_averaged + 10.0))
        torch._foreach_lerp_(self.average, weights, 1.0 - decay)
        self.n_averaged += 1

    def candidate(self) -> dict[str, Tensor]:
        """Return the generator with averaged weights: the game with the adversaries makes the last ones wander."""
        state = super().candidate()
        for (name, _), average in zip(self.generator.named_parameters(), self.average, strict=False):
            state[name] = average.clone()
        return state

    def generator_losses(self, cells: Minibatch, image: Tensor, features: Tensor) -> dict[str, Tensor]:
        losses = self.image_losses(cells, image)
        for name, network in self.helpers.items():
            losses[name] = F.cross_entropy(self._read(name, network, image, features, cells.cell_type), cells.cell_type)
        target = self.targets[cells.cell_type].to(features.dtype)
        for name, network in self.adversaries.items():
            # The divergence from the target: zero means that the adversary can say no more than the cell type does.
            logits = self._read(name, network, image, features, cells.cell_type)
            loss = F.kl_div(F.log_softmax(logits, 1), target, reduction="batchmean")
            if name.endswith("image"):
                losses["batch_image"] = loss
            else:
                losses["batch"] = losses.get("batch", 0.0) + loss / len(self._feature_adversaries())
        return losses

    def profile_losses(self, cells: Minibatch, features: Tensor) -> dict[str, Tensor]:
        """Return the losses on the features that need no classifier."""
        losses = {}
        if self.alignment is not None:
            losses["batch_separation"] = self.alignment.separation(cells, features)
        if self.weights.invariance > 0 and cells.twin is not None:
            with autocast(cells.twin.device, self.dtype):
                others = self.generator.encode(cells.twin, self.leak)[0].to(features.dtype)
            losses["batch_disagreement"] = disagreement(features, others)
        if self.weights.decorrelation > 0:
            losses["redundancy"] = redundancy(features)
        if self.activity is not None:
            losses["activity"] = self.activity.loss(features)
        return losses

    def total(self, losses: Mapping[str, Tensor], ramp: float) -> Tensor:
        weights = self.weights
        scale = {
            "adversarial": weights.adversarial,
            "image": weights.image,
            "cell_type": weights.cell_type,
            "cell_type_image": weights.cell_type_image,
            "batch": ramp * weights.batch,
            "batch_image": ramp * weights.batch_image,
            "batch_separation": ramp * weights.alignment,
            "batch_disagreement": weights.invariance,
            "activity": weights.activity,
            "redundancy": weights.decorrelation,
        }
        return torch.stack([weight * losses[name] for name, weight in scale.items() if name in losses]).sum()

    def validate(self, cells: Minibatch) -> dict[str, Tensor]:
        readers = list((self.helpers | self.adversaries).values())
        with (
            torch.no_grad(),
            untracked(self.generator),
            frozen(self.discriminator),
            frozen(*readers, batch_statistics=True),
        ):
            image, features = self.generate(cells.source, None)
            losses = self.generator_losses(cells, image, features)
            losses["total"] = self.total(losses, 1.0)
            losses["active_features"] = active_share(features)
        return losses

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """The last generator that is alive is kept.

        No loss of the game can choose better: the adversaries lag behind, and how much a fresh probe reads falls as the
        learning rate does. On simulated cells the epoch of the smallest validation loss left a linear leakage of 0.90,
        the last epoch 0.68.
        """
        if losses["active_features"] < DEAD_SHARE:
            share = losses["active_features"]
            message = (
                f"{self.name}: only {share:.1%} of the features are active in some epochs, which are not kept; "
                "lower batch_weight or raise activity_weight"
            )
            if not any("of the features are active" in event for event in self.events):
                self.events.append(message)
                warnings.warn(message, RuntimeWarning, stacklevel=6)
            return math.inf
        return -progress

    # Fresh adversaries --------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        if epoch == 0:
            self._warm_up(cells)
        elif self.refresh_epochs and epoch % self.refresh_epochs == 0 and self.weights.batch > 0:
            names = list(self._feature_adversaries())
            self._renew(names[(epoch // self.refresh_epochs - 1) % len(names)], cells)

    def _feature_adversaries(self) -> dict[str, nn.Module]:
        return {name: network for name, network in self.adversaries.items() if not name.endswith("image")}

    def _warm_up(self, cells: Cells) -> None:
        if self.weights.activity > 0:
            self.activity = Activity(self._features(cells)[0])
        for _ in range(self.warmup_epochs):
            for minibatch in cells.shuffled(self.minibatch_size, self.cpu_rng):
                minibatch = self.prepare(minibatch)
                with torch.no_grad(), untracked(self.generator):
                    image, features = self.generate(minibatch.source, self.rng)
                self.classifier_step(minibatch, image, features)

    @torch.no_grad()
    def _features(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Return features of cells spread evenly over all, at most `KNOWN_CELLS`, and which cells they are."""
        chosen = torch.linspace(0, len(cells) - 1, min(len(cells), KNOWN_CELLS), dtype=torch.float64).round().long()
        with untracked(self.generator), autocast(self.device, self.dtype):
            parts = chosen.tensor_split(-(-len(chosen) // max(64, self.minibatch_size)))
            features = torch.cat([self.generator.encode(cells.take(part).source)[0] for part in parts])
        dtype = torch.float64 if self.dtype is torch.float64 else torch.float32
        return features.to(dtype), chosen.to(self.device)

    def _renew(self, name: str, cells: Cells) -> None:
        """Replace one feature adversary by a new one, fitted to the features as they are now."""
        features, chosen = self._features(cells)
        features = standardised(features)
        condition = self.one_hot[cells.cell_type[chosen]].to(features.dtype)
        network = self.adversaries[name]
        for attempt in range(3):
            fresh = place(self._new_adversary(), self.device, self.dtype)
            fit = fit_classifier(
                fresh,
                features,
                cells.batch[chosen],
                learning_rate=self.adversary_learning_rate / 2**attempt,
                epochs=max(1, 4 * self.warmup_epochs),
                minibatch_size=64,
                rng=self.cpu_rng,
                condition=condition,
                dtype=self.dtype,
            )
            if math.isfinite(fit.cross_entropy[0]) and not _is_dead(fresh, features, condition):
                break
            self.events.append(f"{self.name}: a new adversary did not learn and was started again")
        network.load_state_dict(fresh.state_dict())
        self.classifier_optimizers[name] = Adam(network.parameters(), self.adversary_learning_rate)

    def state(self) -> dict[str, Any]:
        return {
            "alignment": None if self.alignment is None else self.alignment.state(),
            "activity": None if self.activity is None else self.activity.state(),
            "average": list(self.average),
            "n_averaged": self.n_averaged,
        }

    def restore(self, state: dict[str, Any]) -> None:
        if self.alignment is not None:
            self.alignment.restore(state["alignment"], self.device)
        if state["activity"] is not None:
            self.activity = Activity.restored(state["activity"], self.device)
        self.average = [average.to(self.device) for average in state["average"]]
        self.n_averaged = state["n_averaged"]

    def soften(self) -> None:
        super().soften()
        self.classifier_learning_rate /= 2
        self.adversary_learning_rate /= 2
        self.average, self.n_averaged = [], 0
        self._reset_classifier_optimizers()


@torch.no_grad()
def _is_dead(network: nn.Module, features: Tensor, condition: Tensor) -> bool:
    """Whether a classifier's answer does not depend on the cell at all: its ReLUs have died."""
    features = features[:256]
    logits = network(features, condition[:1].expand(len(features), -1))
    return bool(logits.std(0).max() < 1e-6)

"""Stage 2, the default: adversaries trained along with the generator read the batch, and it learns to prevent that.

What differs from the published procedure (:mod:`skbegan.core.plans.published`), and why: the published classifiers are
frozen while the generator trains, so that it moves cells across fixed boundaries and a fresh probe still reads the
batch. Here the adversaries see all features and the cell type, are updated at every step and renewed in turn, and the
fool target is p(batch given cell type). Two losses without an adversary do most of the work: the alignment of the
batches of a type, in the metric in which a linear probe separates them, and the invariance of a cell's profile to its
batch style (see :mod:`skbegan.data.style`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skbegan.config import Config, OnlineRemoval, Removal
from skbegan.core.averaging import MovingAverage
from skbegan.core.classifiers import fit_classifier, is_dead
from skbegan.core.content import DescriptorLoss
from skbegan.core.content import networks_of as head_of
from skbegan.core.engine import Engine, Event
from skbegan.core.losses import (
    Activity,
    BatchAlignment,
    Losses,
    active_share,
    cross_entropy,
    cross_entropy_together,
    decorrelation,
    divergence,
    divergence_together,
    identity,
    invariance,
    positive,
    standardised,
    standardised_once,
    weighted_sum,
)
from skbegan.core.networks import Discriminator, Generator, frozen, untracked
from skbegan.core.plans.pretraining import ConditionalGAN, Start, networks_of
from skbegan.core.plans.readers import new_adversary, new_readers
from skbegan.core.plans.views import Views
from skbegan.core.side_by_side import SideBySide
from skbegan.data.cells import Cells, Minibatch, Whole
from skbegan.data.sampler import Sampler
from skbegan.data.style import BatchStyles
from skbegan.design import Design

KNOWN_CELLS = 16384  # at most, whose features a new adversary learns from: memory does not grow with the data
DEAD_SHARE = 0.05  # fewer active features than this share of all is a dead bottleneck
WEIGHTS, AVERAGE = "weights", "average"  # of the losses, and the share in the EMA, among the draws of a step
RAMPED = ("batch", "batch_image", "alignment")


class OnlinePlan(ConditionalGAN):
    """Stage 2 with adversaries trained along, as the training loop sees it.

    Parameters
    ----------
    config : Removal
    method : OnlineRemoval
    base_width : int
        Of the image classifiers.
    generator : Generator
    discriminator : Discriminator
        Where stage 1 left them.
    design : Design
        Of the training cells.
    styles : BatchStyles
        Of the training cells; draws from the stream ``"order"``.
    engine : Engine
        With the streams ``"order"``, ``"dropout"`` and ``"classifiers"``.
    """

    name = "batch_removal"
    leak = 0.1

    def __init__(
        self,
        config: Removal,
        method: OnlineRemoval,
        base_width: int,
        generator: Generator,
        discriminator: Discriminator,
        design: Design,
        styles: BatchStyles,
        engine: Engine,
        descriptors: DescriptorLoss | None = None,
    ) -> None:
        super().__init__(
            generator,
            discriminator,
            engine,
            learning_rate=method.learning_rate,
            discriminator_learning_rate=config.discriminator_learning_rate,
        )
        self.config, self.method, self.design, self.styles = config, method, design, styles
        self.targets = torch.from_numpy(design.fool_targets(config.batch_target)).to(engine.device)
        # Rows of it are one-hot cell types; torch's one_hot looks at the values first, and so waits for them.
        self.one_hot = torch.eye(design.n_cell_types, device=engine.device)
        self.n_features = int(generator.bottleneck.out_channels)
        several_types = design.n_cell_types > 1
        self.partial = design.unlabelled is not None  # whether there are cells of unknown type, with the code -1
        self.weights = positive(
            {
                "adversarial": config.adversarial,
                "image": config.image,
                "cell_type": config.cell_type if several_types else 0.0,
                "cell_type_image": config.cell_type_image if several_types else 0.0,
                "batch": config.batch,
                "batch_image": config.batch_image,
                "alignment": config.batch * method.alignment,
                "invariance": method.invariance,
                "activity": method.activity,
                "decorrelation": method.decorrelation,
                "identity": method.identity,
                "descriptors": method.descriptors,
            }
        )
        two = "invariance" in self.weights or "identity" in self.weights
        self.views = Views(method, styles, engine.rngs["order"], augment=config.augment, two=two)
        self.learning_rates = {
            "classifier": config.classifier_learning_rate,
            "adversary": method.adversary_learning_rate,
        }
        # Classifiers of the cell type help the generator; adversaries, which read the batch, work against it.
        self.classifiers, self.adversaries = new_readers(
            list(self.weights), self.method.n_adversaries, base_width, generator, design, engine
        )
        self.descriptors = descriptors
        self.networks |= self.classifiers | self.adversaries | head_of(descriptors)
        self._optimize_classifiers()
        several = engine.device.type == "cuda" and len(self.feature_adversaries()) > 1
        self.together = SideBySide(self.feature_adversaries(), engine.converts_to) if several else None
        memory = max(1024, 4 * self.n_features)  # enough cells for a covariance of the features
        aligned = BatchAlignment(design.n_batches, design.n_cell_types, memory, partial=self.partial)
        self.alignment = aligned if "alignment" in self.weights else None
        self.activity: Activity | None = None
        self.average = MovingAverage(method.averaging, self.generator)

    # One step -----------------------------------------------------------------------------------------------------

    def step(self, cells: Minibatch, progress: float) -> Losses:
        """One step: views, generate, update discriminator and classifiers, then the generator with all else frozen."""
        weights, draws = self.weights_at(progress), self.drawn(cells, progress)
        wanted = None if self.descriptors is None else self.descriptors.wanted(cells)
        cells, second = self.views(cells, draws)
        image, features = self.generate(cells.source, self.engine.rngs["dropout"])
        losses: Losses = {}
        if "adversarial" in weights:
            losses |= self.update_discriminator(cells, image)
        losses |= self.update_classifiers(cells, image, features)
        readers = [*self.classifiers.values(), *self.adversaries.values()]
        with frozen(self.discriminator), frozen(*readers, batch_statistics=True):
            losses |= self.generator_losses(cells, image, scaled := standardised_once(features))
            if self.alignment is not None:
                losses["alignment"] = self.alignment.remembered_loss(cells.whole, features)
            losses |= self.content_losses(features, scaled, second, wanted)
            if "decorrelation" in weights:
                losses["decorrelation"] = decorrelation(scaled())
            if self.activity is not None:
                losses["activity"] = self.activity.loss(features)
            losses["total"] = weighted_sum(losses, weights, draws[WEIGHTS])
            self.engine.descend("generator", losses["total"])
        self.average.update(draws.get(AVERAGE))
        return losses

    def content_losses(
        self, features: Tensor, scaled: Callable[[], Tensor], second: Tensor | None, wanted: Tensor | None
    ) -> Losses:
        """Return the losses that keep the cell in the features, whatever the style and orientation it is seen in."""
        losses: Losses = {}
        if second is not None:
            others = self.encode(second)
            if "invariance" in self.weights:
                losses["invariance"] = invariance(features, others)
            if "identity" in self.weights:
                losses["identity"] = identity(scaled(), standardised(others), self.method.temperature)
        if self.descriptors is not None and wanted is not None:
            self.descriptors.update(features, wanted)
            losses["descriptors"] = self.descriptors.loss(scaled(), wanted)
        return losses

    def draws(self, n: int, progress: float) -> dict[str, Tensor]:
        """Draw styles and orientations; the weights of the losses at this progress come along."""
        weights = torch.tensor(list(self.weights_at(progress).values()), dtype=self.engine.wide)
        found = {**self.views.draw(n, self.own(n)), WEIGHTS: weights, **self.scheduled(progress)}
        if self.engine.device.type == "cuda":
            found[AVERAGE] = torch.tensor(self.average.share(), dtype=self.engine.wide)
        return found

    def weights_at(self, progress: float) -> dict[str, float]:
        """Return the weights of the losses: those that remove the batch rise from 0 over the ramp."""
        ramp = min(1.0, progress / self.method.ramp) if self.method.ramp else 1.0
        return {name: ramp * weight if name in RAMPED else weight for name, weight in self.weights.items()}

    def share_at(self, progress: float) -> float:
        """Return the share of the generator's learning rate: it falls to 0 over the last part of the stage."""
        return min(1.0, (1.0 - progress) / self.method.decay) if self.method.decay else 1.0

    def generate(self, source: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the images of the cells, and the features of those of all processes: the losses compare them."""
        image, features = super().generate(source, rng)
        return image, self.engine.group.gather(features)

    def encode(self, source: Tensor) -> Tensor:
        """Return features in full precision, of the cells of all processes."""
        with self.engine.autocast(self.generator):
            features = self.generator.encode(source, self.leak)[0]
        return self.engine.group.gather(features.to(source.dtype))

    def generator_losses(self, cells: Minibatch, image: Tensor, scaled: Callable[[], Tensor]) -> Losses:
        """Return the losses of the generator that need the discriminator and the classifiers, unweighted."""
        losses = self.image_losses(cells, image, self.weights)
        for name, network in self.classifiers.items():
            known, types = self.known_types(name, cells)
            seen = image if name.endswith("image") else scaled()
            losses[name] = cross_entropy(self.logits(name, network, seen, cells), types, *known)
        for name, network in self.alone(self.adversaries).items():
            # The divergence from the target: at 0 the adversary predicts the batch no better than the cell type does.
            known, types = self.known_types(name, cells)
            target = self.targets[types].to(image.dtype)
            seen = image if name.endswith("image") else scaled()
            loss = divergence(self.logits(name, network, seen, cells), target, *known)
            if name.endswith("image"):
                losses["batch_image"] = loss
            else:
                losses["batch"] = losses.get("batch", 0.0) + loss / len(self.feature_adversaries())
        if self.together is not None:
            known, types = self.known_types("batch", cells)
            logits = self.logits_together(scaled(), cells, learns=False)
            losses["batch"] = divergence_together(logits, self.targets[types].to(image.dtype), *known)
        return losses

    def update_classifiers(self, cells: Minibatch, image: Tensor, features: Tensor) -> Losses:
        """Update all classifiers once and the feature adversaries `adversary_steps` times; the generator stays."""
        image, features = image.detach(), standardised(features.detach())
        losses: Losses = {}
        for repeat in range(self.method.adversary_steps):
            readers = self.feature_adversaries() if repeat else self.classifiers | self.adversaries
            for name, network in self.alone(readers).items():
                known, types = self.known_types(name, cells)
                truth = types if name in self.classifiers else self.read_by(name, cells).batch
                seen = image if name.endswith("image") else features
                loss = cross_entropy(self.logits(name, network, seen, cells), truth, *known)
                self.engine.descend(name, loss)
                losses[name if name in self.adversaries else f"{name}_classifier"] = loss
            if self.together is not None:
                losses |= self.update_together(self.together, cells, features)
        return losses

    def update_together(self, together: SideBySide, cells: Minibatch, features: Tensor) -> Losses:
        """Update all feature adversaries once, each by its own loss."""
        known, _ = self.known_types("batch", cells)
        logits = self.logits_together(features, cells, learns=True)
        found = cross_entropy_together(logits, cells.whole.batch, *known)
        self.engine.descend(together.names, found.sum(), together.hand_out)
        return dict(zip(together.names, found.detach().unbind(), strict=True))

    def alone(self, readers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Return the networks that are not computed together with others."""
        return {n: network for n, network in readers.items() if self.together is None or n not in self.together.names}

    def read_by(self, name: str, cells: Minibatch) -> Minibatch | Whole:
        """Return the codes of the cells that a classifier sees: of images the own ones, of features all there are."""
        return cells if name.endswith("image") else cells.whole

    def known_types(self, name: str, cells: Minibatch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return masks of known types, of cells that a classifier sees and of all (none: all known), and codes."""
        types = self.read_by(name, cells).cell_type
        return ((types >= 0, cells.whole.cell_type >= 0), types.clamp(min=0)) if self.partial else ((), types)

    def logits(self, name: str, network: nn.Module, seen: Tensor, cells: Minibatch) -> Tensor:
        """Return a classifier's logits; adversaries also get the cell type, and so learn what it does not explain."""
        with self.engine.autocast(network):
            if name in self.classifiers:
                logits = network(seen)
            else:
                logits = network(seen, self.one_hot[self.known_types(name, cells)[1]].to(seen.dtype))
        in_full: Tensor = logits.to(seen.dtype)
        return in_full

    def logits_together(self, seen: Tensor, cells: Minibatch, *, learns: bool) -> Tensor:
        """Return the logits of all feature adversaries, (n_adversaries, n, n_batches)."""
        assert self.together is not None
        condition = self.one_hot[self.known_types("batch", cells)[1]].to(seen.dtype)
        with self.engine.autocast():
            logits = self.together.logits(seen, condition, learns=learns)
        return logits.to(seen.dtype)

    def validate(self, cells: Minibatch) -> Losses:
        """Return the generator's losses on held-out cells, and how many features are active."""
        readers = [*self.classifiers.values(), *self.adversaries.values()]
        if self.method.target_style == "canonical":
            cells = replace(cells, target=self.styles.canonical_target(cells))
        with (
            torch.no_grad(),
            untracked(self.generator),
            frozen(self.discriminator),
            frozen(*readers, batch_statistics=True),
        ):
            image, features = self.generate(cells.source, None)
            losses = self.generator_losses(cells, image, standardised_once(features))
            losses["total"] = weighted_sum(losses, self.weights)
            losses["active_features"] = active_share(features)
        return losses

    # What is kept -------------------------------------------------------------------------------------------------

    def candidate(self) -> dict[str, Tensor]:
        """Return the generator with averaged weights: those of single steps oscillate in the adversarial training."""
        state = super().candidate()
        for (name, _), average in zip(self.generator.named_parameters(), self.average.values, strict=False):
            state[name] = average.clone()
        return state

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """The last generator whose features are active is kept.

        No validation loss chooses better: the adversaries lag behind, and how much a fresh probe reads falls with the
        learning rate. On simulated cells the epoch of the smallest validation loss left a linear leakage of 0.90,
        the last epoch 0.68.
        """
        share = losses["active_features"]
        if share >= DEAD_SHARE:
            return -progress
        message = (
            f"only {share:.1%} of the features are active in some epochs, which are not kept; "
            "lower batch_weight or raise the weight of activity"
        )
        if not any("of the features are active" in event.message for event in self.events):
            self.events.append(Event(self.name, message))
        return math.inf

    # Fresh adversaries --------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        """Warm up the classifiers before the first epoch, and renew the oldest adversary every so many."""
        if epoch == 0:
            self.warm_up(cells)
        elif epoch % self.config.refresh_epochs == 0 and "batch" in self.weights:
            names = list(self.feature_adversaries())
            self.renew(names[(epoch // self.config.refresh_epochs - 1) % len(names)], cells)

    def feature_adversaries(self) -> dict[str, nn.Module]:
        """Return the adversaries that read the features."""
        return {name: network for name, network in self.adversaries.items() if not name.endswith("image")}

    def warm_up(self, cells: Cells) -> None:
        """Train the classifiers alone, and note how active the features are."""
        if "activity" in self.weights:
            self.activity = Activity(self._features(cells)[0])
        rng = self.engine.rngs["classifiers"]
        sampler = Sampler(len(cells), self.config.minibatch_size, rng, self.config.steps_per_epoch)
        for _ in range(self.method.warmup_epochs):
            for positions in sampler.epoch():
                group = self.engine.group
                minibatch = cells.take(positions, group.rank, group.world, self.draws(len(positions), 0.0))
                minibatch, _ = self.views(minibatch, self.drawn(minibatch, 0.0))
                with torch.no_grad(), untracked(self.generator):
                    image, features = self.generate(minibatch.source, self.engine.rngs["dropout"])
                self.update_classifiers(minibatch, image, features)

    def renew(self, name: str, cells: Cells) -> None:
        """Replace one feature adversary by a new one, fitted to the features as they are now.

        Of several processes each does all of it.
        """
        features, chosen = self._features(cells)
        features = standardised(features)
        if self.partial:
            known = cells.cell_type[chosen] >= 0
            features, chosen = features[known], chosen[known]
        condition = self.one_hot[cells.cell_type[chosen]].to(features.dtype)
        network, rate = self.adversaries[name], self.learning_rates["adversary"]
        for attempt in range(3):
            fresh = self.engine.place(new_adversary(self.n_features, self.design, self.engine.rngs["classifiers"]))
            fit = fit_classifier(
                fresh,
                features,
                cells.batch[chosen],
                learning_rate=rate / 2**attempt,
                epochs=max(1, 4 * self.method.warmup_epochs),
                minibatch_size=64,
                rng=self.engine.rngs["classifiers"],
                engine=self.engine,
                condition=condition,
            )
            if math.isfinite(fit.cross_entropy[0]) and not is_dead(fresh, features, condition):
                break
            self.events.append(Event(self.name, "a new adversary did not learn and was started again", warns=False))
        self.engine.group.take_over(fresh)  # itself, for those on a card may be views of something else
        network.load_state_dict(fresh.state_dict())
        self._optimize(name)

    @torch.no_grad()
    def _features(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """Return features of cells spread evenly over all, at most `KNOWN_CELLS`, and which cells they are."""
        chosen = torch.linspace(0, len(cells) - 1, min(len(cells), KNOWN_CELLS), dtype=torch.float64).round().long()
        with self.engine.group.alone(), untracked(self.generator), self.engine.autocast(self.generator):
            parts = chosen.tensor_split(-(-len(chosen) // max(64, self.config.minibatch_size)))
            features = torch.cat([self.generator.encode(cells.take(part).source)[0] for part in parts])
        dtype = torch.float64 if self.engine.dtype is torch.float64 else torch.float32
        return features.to(dtype), chosen.to(self.engine.device)

    def _optimize_classifiers(self) -> None:
        for name in self.classifiers | self.adversaries:
            self._optimize(name)

    def _optimize(self, name: str) -> None:
        """Give a classifier or adversary a new optimizer."""
        rate = self.learning_rates["classifier" if name in self.classifiers else "adversary"]
        updates = self.method.adversary_steps if name in self.feature_adversaries() else 1
        self.engine.optimize(name, self.networks[name].parameters(), rate, updates)

    # Going on and going back --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides networks, optimizers and random generators."""
        return {
            **super().state(),
            "learning_rates": self.learning_rates,
            "alignment": None if self.alignment is None else self.alignment.state(),
            "activity": None if self.activity is None else self.activity.state(),
            "average": list(self.average.values),
            "n_averaged": self.average.n_updates,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        super().restore(state)
        device = self.engine.device
        self.learning_rates = dict(state["learning_rates"])
        if self.alignment is not None:
            self.alignment.restore(state["alignment"], device)
        if state["activity"] is not None:
            self.activity = Activity.restored(state["activity"], device)
        self.average.restart(state["average"], state["n_averaged"])

    def soften(self) -> None:
        """Forget momenta, average and the memory of the alignment, and halve the learning rates."""
        super().soften()
        self.learning_rates = {name: rate / 2 for name, rate in self.learning_rates.items()}
        self.average.restart()
        if self.alignment is not None:
            self.alignment.forget()
        if self.descriptors is not None:
            self.descriptors.restart()
        self._optimize_classifiers()


def build(config: Config, cells: Cells, design: Design, engine: Engine, start: Start) -> OnlinePlan:
    """Return stage 2 with online adversaries, ready to be run.

    Parameters
    ----------
    config : Config
        With ``removal.method`` an OnlineRemoval.
    cells : Cells
        Training cells, whose batch styles are measured.
    design : Design
        Of the training cells.
    engine : Engine
        With the streams ``"order"``, ``"dropout"`` and ``"classifiers"``.
    start : Start
        Where stage 1 ended.
    """
    method = config.removal.method
    if not isinstance(method, OnlineRemoval):
        raise TypeError(f"this plan is for OnlineRemoval, got {type(method).__name__}")
    networks = networks_of(start, config.architecture, cells, engine)
    styles = BatchStyles(
        cells,
        cells.design(design),
        engine.rngs["order"],
        unseen_share=method.unseen_style_share,
        unseen_spread=method.unseen_style_spread,
    )
    descriptors = None
    if method.descriptors > 0:
        descriptors = DescriptorLoss(cells, styles, config.architecture.n_features, engine)
    sizes = config.architecture.base_width
    return OnlinePlan(config.removal, method, sizes, *networks, design, styles, engine, descriptors)

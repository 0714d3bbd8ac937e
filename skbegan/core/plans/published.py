"""Stage 2 as published: classifiers fitted between the stages and frozen, those of the batch refitted now and then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.config import Config, PublishedRemoval, Removal
from skbegan.core.classifiers import (
    BATCH_HIDDEN,
    CELL_TYPE_HIDDEN,
    FeatureClassifier,
    FeatureClassifierGroup,
    ImageClassifier,
    fit_classifier,
)
from skbegan.core.engine import Engine, Event
from skbegan.core.losses import Losses, active_share, group_cross_entropy, positive, weighted_sum
from skbegan.core.networks import Discriminator, Generator, frozen, new_network, untracked
from skbegan.core.plans.pretraining import ConditionalGAN, Start, networks_of
from skbegan.core.spilled import SpilledRows
from skbegan.data.cells import Cells, Minibatch, symmetry
from skbegan.data.sampler import in_order
from skbegan.design import Design


class FeatureSubsets(nn.Module):
    """Batch classifiers on disjoint random subsets of the features that together cover all of them.

    Parameters
    ----------
    n_subsets, n_features, n_batches : int
        When the features do not divide evenly, the smaller subsets see one input that is always zero.
    rng : torch.Generator
    """

    rows: Tensor
    kept: Tensor
    classifiers: FeatureClassifierGroup

    def __init__(self, n_subsets: int, n_features: int, n_batches: int, rng: torch.Generator) -> None:
        super().__init__()
        parts = torch.randperm(n_features, generator=rng).tensor_split(n_subsets)
        width = max(map(len, parts))
        rows, kept = torch.zeros(n_subsets, width, dtype=torch.int64), torch.zeros(n_subsets, width)
        for index, part in enumerate(parts):
            rows[index, : len(part)], kept[index, : len(part)] = part, 1.0
        self.register_buffer("rows", rows)
        self.register_buffer("kept", kept)
        self.classifiers = new_network(FeatureClassifierGroup, n_subsets, width, n_batches, BATCH_HIDDEN, rng=rng)

    def select(self, features: Tensor) -> Tensor:
        """Return the subsets of features (n, n_features) as (n, n_subsets, width)."""
        return features[:, self.rows] * self.kept.to(features.dtype)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifiers(self.select(features))
        return logits


class PublishedPlan(ConditionalGAN):
    """Stage 2 as published, as the training loop sees it.

    Parameters
    ----------
    config : Removal
        Its `batch` weighs each of the feature subsets.
    method : PublishedRemoval
    base_width : int
        Of the image classifiers.
    generator : Generator
    discriminator : Discriminator
        Where stage 1 left them.
    design : Design
        Of the training cells.
    engine : Engine
        With the streams ``"order"``, ``"dropout"`` and ``"classifiers"``.
    """

    name = "batch_removal"

    def __init__(
        self,
        config: Removal,
        method: PublishedRemoval,
        base_width: int,
        generator: Generator,
        discriminator: Discriminator,
        design: Design,
        engine: Engine,
    ) -> None:
        super().__init__(
            generator,
            discriminator,
            engine,
            learning_rate=method.learning_rate,
            discriminator_learning_rate=config.discriminator_learning_rate,
        )
        self.config, self.method, self.design = config, method, design
        self.targets = torch.from_numpy(design.fool_targets(config.batch_target)).to(engine.device)
        self.n_features = int(generator.bottleneck.out_channels)
        n_types = design.n_cell_types
        self.weights = positive(
            {
                "adversarial": config.adversarial,
                "image": config.image,
                "cell_type": config.cell_type if n_types > 1 else 0.0,
                "cell_type_image": config.cell_type_image if n_types > 1 else 0.0,
                "batch": config.batch,
                "batch_image": config.batch_image,
            }
        )
        rng = engine.rngs["classifiers"]
        image: dict[str, Any] = {
            "base_width": base_width,
            "in_channels": generator.to_image.out_channels,
            "rng": rng,
        }
        classifiers: dict[str, nn.Module] = {}
        if "cell_type" in self.weights:
            classifiers["cell_type"] = new_network(
                FeatureClassifier, self.n_features, n_types, CELL_TYPE_HIDDEN, rng=rng
            )
        if "cell_type_image" in self.weights:
            classifiers["cell_type_image"] = new_network(ImageClassifier, generator.side, n_types, **image)
        if "batch_image" in self.weights:
            classifiers["batch_image"] = new_network(ImageClassifier, generator.side, design.n_batches, **image)
        if "batch" in self.weights:
            classifiers["batch"] = FeatureSubsets(method.n_subsets, self.n_features, design.n_batches, rng)
        self.classifiers = {name: engine.place(network) for name, network in classifiers.items()}
        self.networks |= self.classifiers

    # One step -----------------------------------------------------------------------------------------------------

    def step(self, cells: Minibatch, progress: float) -> Losses:
        """One step: generate, update the discriminator twice, then the generator with everything else frozen."""
        draws = self.drawn(cells, progress)
        if self.config.augment:
            cells = symmetry(replace(cells, draws=draws), self.engine.rngs["order"])
        image, features = self.generate(cells.source, self.engine.rngs["dropout"])
        losses: Losses = {}
        if "adversarial" in self.weights:
            losses |= self.update_discriminator(cells, image)
        with frozen(self.discriminator, *self.classifiers.values()):
            losses |= self.generator_losses(cells, image, features)
            losses["total"] = weighted_sum(losses, self.weights, self.fixed_weights())
            self.engine.descend("generator", losses["total"])
        return losses

    def generator_losses(self, cells: Minibatch, image: Tensor, features: Tensor) -> Losses:
        """Return what the generator minimises, unweighted."""
        losses = self.image_losses(cells, image, self.weights)
        target = self.targets[cells.cell_type].to(features.dtype)
        for name, network in self.classifiers.items():
            seen = image if name.endswith("image") else features
            with self.engine.autocast(network):
                logits = network(seen)
            logits = logits.to(seen.dtype)
            if name == "batch":
                losses[name] = group_cross_entropy(logits, target).sum()
            else:
                losses[name] = F.cross_entropy(logits, target if name == "batch_image" else cells.cell_type)
        return losses

    def validate(self, cells: Minibatch) -> Losses:
        """Return the generator's losses on held-out cells, and how many features are active."""
        with torch.no_grad(), untracked(self.generator), frozen(self.discriminator, *self.classifiers.values()):
            image, features = self.generate(cells.source, None)
            losses = self.generator_losses(cells, image, features)
            losses["total"] = weighted_sum(losses, self.weights)
            losses["active_features"] = active_share(features)
        return losses

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """The best generator has the smallest total loss on all validation cells."""
        return losses["total"]

    # Between the stages and at each refresh -----------------------------------------------------------------------

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        """Fit the classifiers before the first epoch, and those of the batch anew every so many.

        Of several processes each does all of it.
        """
        with self.engine.group.alone():
            if epoch == 0:
                self.fit_classifiers(cells)
            if epoch % self.config.refresh_epochs == 0:
                self.refresh(cells)
        if epoch % self.config.refresh_epochs == 0:
            for network in self.classifiers.values():
                self.engine.group.take_over(network)

    @torch.no_grad()
    def _generate_all(self, cells: Cells, images: SpilledRows | None = None) -> Tensor:
        """Return features of all cells, and add their images: batch statistics, and dropout on."""
        features = []
        with untracked(self.generator):
            for positions in in_order(len(cells), max(self.config.minibatch_size, 32)):
                part = cells.take(positions)
                if images is not None:
                    image, profile = self.generate(part.source, self.engine.rngs["dropout"])
                    images.add(image)
                else:
                    with self.engine.autocast(self.generator):
                        profile = self.generator.encode(part.source)[0].to(part.source.dtype)
                features.append(profile)
        return torch.cat(features)

    def fit_classifiers(self, cells: Cells) -> None:
        """Fit the classifiers that stay frozen from here on, on what the generator makes of the training cells."""
        with SpilledRows() as images:
            want_images = any(name.endswith("image") for name in self.classifiers)
            features = self._generate_all(cells, images if want_images else None)
            for name, network in self.classifiers.items():
                if name == "batch":
                    continue
                of_image = name.endswith("image")
                fit = fit_classifier(
                    network,
                    images if of_image else features,
                    cells.batch if name.startswith("batch") else cells.cell_type,
                    learning_rate=self.config.classifier_learning_rate,
                    epochs=self.config.classifier_epochs,
                    minibatch_size=self.method.image_minibatch_size if of_image else self.method.feature_minibatch_size,
                    rng=self.engine.rngs["classifiers"],
                    engine=self.engine,
                )
                message = f"classifier {name} fitted, held-out accuracy {fit.accuracy[0]:.3f}"
                self.events.append(Event(self.name, message, warns=False))

    def refresh(self, cells: Cells) -> None:
        """Split the features anew, fit new batch feature classifiers to them, and forget the generator's momenta."""
        if "batch" in self.classifiers:
            features = self._generate_all(cells)
            n_subsets, rng = self.method.n_subsets, self.engine.rngs["classifiers"]
            fresh = self.engine.place(FeatureSubsets(n_subsets, self.n_features, self.design.n_batches, rng))
            fit = fit_classifier(
                fresh.classifiers,
                fresh.select(features),
                cells.batch,
                learning_rate=self.method.adversary_learning_rate,
                epochs=self.config.classifier_epochs,
                minibatch_size=self.method.feature_minibatch_size,
                rng=rng,
                engine=self.engine,
            )
            chance = float(torch.bincount(cells.batch).max()) / len(cells)
            at_chance = sum(accuracy <= chance + 0.02 for accuracy in fit.accuracy)
            if at_chance:
                message = f"{at_chance} of {n_subsets} new batch classifiers stayed at chance"
                self.events.append(Event(self.name, message, warns=False))
            self.classifiers["batch"].load_state_dict(fresh.state_dict())
        self.engine.optimize("generator", self.generator.parameters(), self.learning_rate)


def build(config: Config, cells: Cells, design: Design, engine: Engine, start: Start) -> PublishedPlan:
    """Return stage 2 as published, ready to be run; see :func:`skbegan.core.plans.online.build`."""
    method = config.removal.method
    if not isinstance(method, PublishedRemoval):
        raise TypeError(f"this plan is for PublishedRemoval, got {type(method).__name__}")
    networks = networks_of(start, config.architecture, cells, engine)
    return PublishedPlan(config.removal, method, config.architecture.base_width, *networks, design, engine)

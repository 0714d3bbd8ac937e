"""Stage 2 as published: classifiers fitted between the stages and frozen, those of the batch refitted now and then."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.batch_removal import Design, RemovalWeights, active_share
from skbegan.core.classifiers import fit_classifier, group_cross_entropy
from skbegan.core.data import Cells, Minibatch
from skbegan.core.device import Adam, autocast, new_rng, place
from skbegan.core.networks import (
    BATCH_HIDDEN,
    CELL_TYPE_HIDDEN,
    Discriminator,
    FeatureClassifier,
    FeatureClassifierGroup,
    Generator,
    ImageClassifier,
    build,
)
from skbegan.core.pretraining import ConditionalGAN
from skbegan.core.training import frozen, untracked

FEATURE_MINIBATCH, IMAGE_MINIBATCH = 32, 500  # of the classifier fits, as published


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
        self.classifiers = build(FeatureClassifierGroup, n_subsets, width, n_batches, BATCH_HIDDEN, rng=rng)

    def select(self, features: Tensor) -> Tensor:
        """Return the subsets of features (n, n_features) as (n, n_subsets, width)."""
        return features[:, self.rows] * self.kept.to(features.dtype)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifiers(self.select(features))


class PublishedRemoval(ConditionalGAN):
    """Stage 2 as published, as the training loop sees it.

    Parameters
    ----------
    generator : Generator
    discriminator : Discriminator
        Where stage 1 left them.
    design : Design
    weights : RemovalWeights
        `batch` weighs each of the feature subsets.
    base_width : int
        Width of the image classifiers.
    learning_rate, discriminator_learning_rate : float
    classifier_learning_rate : float
        For the classifiers fitted between the stages.
    adversary_learning_rate : float
        For the batch feature classifiers.
    n_subsets : int
        Batch feature classifiers, each on its own subset of the features.
    refresh_epochs : int
        Every so many epochs there are a new random split, new batch feature classifiers and a new Adam.
    classifier_epochs : int
        Epochs of every classifier fit.
    minibatch_size : int
    seed : int
        Of the classifiers' weights, orders and subsets.
    rng : torch.Generator
        Of the dropout masks.
    dtype : torch.dtype, default=torch.float32
    """

    name = "batch_removal"

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
        n_subsets: int,
        refresh_epochs: int,
        classifier_epochs: int,
        minibatch_size: int,
        seed: int,
        rng: torch.Generator,
        dtype: torch.dtype = torch.float32,
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
        self.classifier_learning_rate = classifier_learning_rate
        self.adversary_learning_rate = adversary_learning_rate
        self.n_subsets = n_subsets
        self.refresh_epochs, self.classifier_epochs = refresh_epochs, classifier_epochs
        self.minibatch_size = minibatch_size
        self.cpu_rng = self.rngs["classifiers"] = new_rng(seed)
        self.n_features = int(generator.bottleneck.out_channels)
        n_types, n_batches = design.n_cell_types, design.n_batches
        image_shape = {"base_width": base_width, "in_channels": generator.to_image.out_channels}
        classifiers: dict[str, nn.Module] = {}
        if n_types > 1 and weights.cell_type > 0:
            classifiers["cell_type"] = build(
                FeatureClassifier, self.n_features, n_types, CELL_TYPE_HIDDEN, rng=self.cpu_rng
            )
        if n_types > 1 and weights.cell_type_image > 0:
            classifiers["cell_type_image"] = build(
                ImageClassifier, generator.side, n_types, rng=self.cpu_rng, **image_shape
            )
        if weights.batch_image > 0:
            classifiers["batch_image"] = build(
                ImageClassifier, generator.side, n_batches, rng=self.cpu_rng, **image_shape
            )
        if weights.batch > 0:
            classifiers["batch"] = FeatureSubsets(n_subsets, self.n_features, n_batches, self.cpu_rng)
        self.classifiers = {name: place(network, self.device, dtype) for name, network in classifiers.items()}
        self.networks |= self.classifiers

    # Between the stages and at each refresh ------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        if epoch == 0:
            self.fit_classifiers(cells)
        if epoch % self.refresh_epochs == 0:
            self.refresh(cells)

    @torch.no_grad()
    def _generate_all(self, cells: Cells, want_images: bool) -> tuple[Tensor, Tensor]:
        """Return images (empty if unwanted) and features of all cells: batch statistics, and dropout on."""
        images, features = [], []
        with untracked(self.generator):
            for part in cells.in_order(max(self.minibatch_size, 32)):
                if want_images:
                    image, profile = self.generate(part.source, self.rng)
                    images.append(image)
                else:
                    with autocast(self.device, self.dtype):
                        profile = self.generator.encode(part.source)[0].to(part.source.dtype)
                features.append(profile)
        return torch.cat(images) if images else torch.empty(0), torch.cat(features)

    def fit_classifiers(self, cells: Cells) -> None:
        """Fit the classifiers that stay frozen from here on, on what the generator makes of the training cells."""
        images, features = self._generate_all(cells, want_images=any(n.endswith("image") for n in self.classifiers))
        for name, network in self.classifiers.items():
            if name == "batch":
                continue
            fit = fit_classifier(
                network,
                images if name.endswith("image") else features,
                cells.batch if name.startswith("batch") else cells.cell_type,
                learning_rate=self.classifier_learning_rate,
                epochs=self.classifier_epochs,
                minibatch_size=IMAGE_MINIBATCH if name.endswith("image") else FEATURE_MINIBATCH,
                rng=self.cpu_rng,
                dtype=self.dtype,
            )
            self.events.append(f"{self.name}: classifier {name} fitted, held-out accuracy {fit.accuracy[0]:.3f}")

    def refresh(self, cells: Cells) -> None:
        """Split the features anew, fit new batch feature classifiers to them, and give the generator a new Adam."""
        if "batch" in self.classifiers:
            _, features = self._generate_all(cells, want_images=False)
            fresh = place(
                FeatureSubsets(self.n_subsets, self.n_features, self.design.n_batches, self.cpu_rng),
                self.device,
                self.dtype,
            )
            fit = fit_classifier(
                fresh.classifiers,
                fresh.select(features),
                cells.batch,
                learning_rate=self.adversary_learning_rate,
                epochs=self.classifier_epochs,
                minibatch_size=FEATURE_MINIBATCH,
                rng=self.cpu_rng,
                dtype=self.dtype,
            )
            chance = float(torch.bincount(cells.batch).max()) / len(cells)
            asleep = sum(accuracy <= chance + 0.02 for accuracy in fit.accuracy)
            if asleep:
                self.events.append(f"{self.name}: {asleep} of {self.n_subsets} new batch classifiers stayed at chance")
            self.classifiers["batch"].load_state_dict(fresh.state_dict())
        self.generator_optimizer = Adam(self.generator.parameters(), self.learning_rate)

    # One step -----------------------------------------------------------------------------------------------------

    def step(self, cells: Minibatch, progress: float) -> dict[str, Tensor]:
        """One step: generate, update the discriminator twice, then the generator with everything else frozen."""
        image, features = self.generate(cells.source, self.rng)
        losses = self.discriminator_step(cells, image)
        with frozen(self.discriminator, *self.classifiers.values()):
            losses |= self.generator_losses(cells, image, features)
            losses["total"] = self.total(losses)
            self.generator_step(losses["total"])
        return losses

    def generator_losses(self, cells: Minibatch, image: Tensor, features: Tensor) -> dict[str, Tensor]:
        losses = self.image_losses(cells, image)
        target = self.targets[cells.cell_type].to(features.dtype)
        for name, network in self.classifiers.items():
            seen = image if name.endswith("image") else features
            with autocast(seen.device, self.dtype):
                logits = network(seen)
            logits = logits.to(seen.dtype)
            if name == "batch":
                losses[name] = group_cross_entropy(logits, target).sum()
            else:
                losses[name] = F.cross_entropy(logits, target if name == "batch_image" else cells.cell_type)
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        names = ("adversarial", "image", "cell_type", "cell_type_image", "batch", "batch_image")
        return torch.stack([getattr(self.weights, name) * losses[name] for name in names if name in losses]).sum()

    def validate(self, cells: Minibatch) -> dict[str, Tensor]:
        with torch.no_grad(), untracked(self.generator), frozen(self.discriminator, *self.classifiers.values()):
            image, features = self.generate(cells.source, None)
            losses = self.generator_losses(cells, image, features)
            losses["total"] = self.total(losses)
            losses["active_features"] = active_share(features)
        return losses

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """The best generator has the smallest total loss on all validation cells."""
        return losses["total"]

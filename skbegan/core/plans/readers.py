"""The networks of stage 2 that read the cell type and the batch from features and images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from skbegan.core.classifiers import CELL_TYPE_HIDDEN, FeatureClassifier, ImageClassifier
from skbegan.core.engine import Engine
from skbegan.core.networks import Generator, new_network
from skbegan.design import Design

ADVERSARY_HIDDEN = (256, 128)


def new_adversary(n_features: int, design: Design, rng: torch.Generator) -> FeatureClassifier:
    """Return a new network that reads the batch from features and the cell type, on the CPU."""
    return new_network(
        FeatureClassifier,
        n_features,
        design.n_batches,
        ADVERSARY_HIDDEN,
        n_conditions=design.n_cell_types,
        rng=rng,
    )


def new_readers(
    losses: Collection[str], n_adversaries: int, base_width: int, generator: Generator, design: Design, engine: Engine
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return classifiers of the cell type, and adversaries, for the losses that have a weight; on the device.

    Parameters
    ----------
    losses : collection of str
        Names of those that have a weight.
    n_adversaries : int
        That read the features.
    base_width : int
        Of networks that read images.
    generator : Generator
        Whose features and images are read.
    design : Design
    engine : Engine
        With the stream ``"classifiers"``.
    """
    n_types, rng, side = design.n_cell_types, engine.rngs["classifiers"], generator.side
    n_features = int(generator.bottleneck.out_channels)
    image: dict[str, Any] = {
        "base_width": base_width,
        "in_channels": generator.to_image.out_channels,
        "rng": rng,
    }
    classifiers: dict[str, nn.Module] = {}
    adversaries: dict[str, nn.Module] = {}
    if "cell_type" in losses:
        classifiers["cell_type"] = new_network(FeatureClassifier, n_features, n_types, CELL_TYPE_HIDDEN, rng=rng)
    if "cell_type_image" in losses:
        classifiers["cell_type_image"] = new_network(ImageClassifier, side, n_types, **image)
    if "batch" in losses:
        for index in range(n_adversaries):
            adversaries[f"batch_adversary_{index + 1}"] = new_adversary(n_features, design, rng)
    if "batch_image" in losses:
        adversaries["batch_adversary_image"] = new_network(
            ImageClassifier, side, design.n_batches, n_conditions=n_types, **image
        )
    placed = ({name: engine.place(n) for name, n in group.items()} for group in (classifiers, adversaries))
    return next(placed), next(placed)

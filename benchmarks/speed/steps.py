"""Training steps of each stage as a fit makes them, on cells of random pixels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from speed.timing import void

from skbegan import PUBLISHED, BeGANTransformer, OnlineRemoval
from skbegan.config import Config
from skbegan.core.classifiers import CELL_TYPE_HIDDEN, FeatureClassifier, fit_classifier
from skbegan.core.engine import Engine, new_rng
from skbegan.core.loop import Plan, compile_networks
from skbegan.core.networks import new_network, to_numpy
from skbegan.core.plans import pretraining
from skbegan.core.plans.published import FeatureSubsets
from skbegan.data.cells import Cells, Split
from skbegan.data.source import Scaling
from skbegan.data.style import MIN_CELLS
from skbegan.design import Design

N_CLASSES = 7


class Steps:
    """Builds the stages with the factories that a fit uses.

    Parameters
    ----------
    sizes : dict of str to int
        ``side``, ``base_width``, ``n_features``, ``minibatch_size``; ``n_cells`` for the classifier fits.
    device : torch.device
    compile : bool, default=False
    n_classes : int, default=N_CLASSES
        Batches, and cell types.
    """

    def __init__(
        self, sizes: dict[str, int], device: torch.device, compile: bool = False, n_classes: int = N_CLASSES
    ) -> None:
        # As many cells of each batch and type as it takes for batch styles.
        n, side = max(MIN_CELLS * n_classes**2, sizes["minibatch_size"]), sizes["side"]
        self.images = np.random.default_rng(0).normal(size=(2, n, side, side)).astype(np.float32)
        self.batch, self.cell_type = np.arange(n) // n_classes % n_classes, np.arange(n) % n_classes
        self.sizes, self.device, self.compile, self.n_classes = sizes, device, compile, n_classes

    def plan(self, stage: str, dtype: torch.dtype) -> tuple[Plan, Cells]:
        """Return a stage, ``"stage 1"``, ``"published stage 2"`` or ``"default stage 2"``, and its cells."""
        sizes = {name: self.sizes[name] for name in ("base_width", "n_features", "minibatch_size")}
        recipe: dict[str, Any] = (
            PUBLISHED if stage != "default stage 2" else {"removal": OnlineRemoval(warmup_epochs=0)}
        )
        config = Config.of(BeGANTransformer(**recipe | sizes).get_params(deep=False))
        streams = ("weights", "order", "dropout", "classifiers")
        engine = Engine(self.device, dtype, dict(zip(streams, range(4), strict=True)))
        rows, identity = np.arange(len(self.batch)), Scaling.identity(1)
        split = Split(rows, rows[:0], identity, identity)
        cells, _ = Cells.of_split(*self.images, self.batch, self.cell_type, split, self.device, dtype)
        plan: Any = pretraining.build(config, cells, None, engine)
        if stage != "stage 1":
            start = pretraining.Start(to_numpy(plan.generator), to_numpy(plan.discriminator))
            design = Design.of(self.batch, self.cell_type, self.n_classes, self.n_classes)
            build = importlib.import_module(config.removal.method.plan).build
            plan = build(config, cells, design, engine, start)
        if stage == "default stage 2":
            plan.begin_epoch(0, cells)  # notes how active the features are, for a loss of the step
        if self.compile:
            compile_networks(plan, cells, config.removal.minibatch_size)
        return plan, cells

    def step(self, stage: str, dtype: torch.dtype) -> Callable[[], None]:
        """Return one step of training as the loop makes it: cells taken and trained on."""
        plan, cells = self.plan(stage, dtype)
        order = torch.arange(self.sizes["minibatch_size"])
        return lambda: void(plan.step(cells.take(order), 0.5))

    def classifier_fits(self) -> Callable[[], None]:
        """Ten epochs of the four batch classifiers of a refresh and of the cell-type classifier."""
        n, n_features, rng = self.sizes["n_cells"], self.sizes["n_features"], new_rng(0)
        engine = Engine(self.device)
        features = torch.randn(n, n_features, generator=rng).to(self.device)
        labels = torch.randint(N_CLASSES, (n,), generator=rng).to(self.device)
        subsets = engine.place(FeatureSubsets(4, n_features, N_CLASSES, rng))
        cell = engine.place(new_network(FeatureClassifier, n_features, N_CLASSES, CELL_TYPE_HIDDEN, rng=rng))
        fits: Any = ((subsets.classifiers, subsets.select(features), 0.05), (cell, features, 1e-3))

        def run() -> None:
            for network, seen, rate in fits:
                how = {"learning_rate": rate, "epochs": 10, "minibatch_size": 32, "rng": rng, "engine": engine}
                fit_classifier(network, seen, labels, **how)

        return run

"""Calibration of a model on the cells of its fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from skbegan.checks import CellDataset
from skbegan.config import Config
from skbegan.core.engine import undisturbed
from skbegan.data.cells import Split
from skbegan.data.splitting import split_validation
from skbegan.design import Design
from skbegan.model import FittedModel
from skbegan.shift.calibration import calibrate
from skbegan.shift.observing import Reader


def with_calibration(
    model: FittedModel, config: Config, dataset: CellDataset, split: Split, design: Design
) -> FittedModel:
    """Return the model with what is to be expected of new batches; without it where cells are few or streamed."""
    if split.stream is not None:
        return replace(model, calibration=None)
    types = dataset.cell_type
    if dataset.cell_types is not None and (types < 0).any():  # what is expected is about types: of known ones alone
        rows = (
            split.train_rows[types[split.train_rows] >= 0],
            split.validation_rows[types[split.validation_rows] >= 0],
        )
        split = split._replace(train_rows=rows[0], validation_rows=rows[1])
        if not len(rows[0]):
            return replace(model, calibration=None)
        train = dataset.batch[rows[0]], types[rows[0]]
        design = Design.of(*train, dataset.n_batches, dataset.n_cell_types, 0)
    with undisturbed():
        found = calibrate(
            Reader(model, config.runtime.device, config.runtime.precision),
            dataset.bf,
            dataset.qpi,
            dataset.batch,
            types,
            split,
            design,
            knows_types=dataset.cell_types is not None,
            seed=int(np.asarray(split.train_rows[:8]).sum()),  # the split is what random_state decided
        )
    return replace(model, calibration=found)


def calibrated(model: FittedModel, config: Config, dataset: CellDataset, seed: int) -> FittedModel:
    """Return a fitted model calibrated on the cells of its fit; `seed` of the split is the first draw of the fit."""
    rows = split_validation(dataset.batch, dataset.cell_type, config.validation_fraction, seed)
    split = Split(*rows, model.bf_scaling, model.target_scaling, config.architecture.standardize == "image")
    train = dataset.batch[rows[0]], dataset.cell_type[rows[0]]
    design = Design.of(*train, dataset.n_batches, dataset.n_cell_types, 0)
    return with_calibration(model, config, dataset, split, design)

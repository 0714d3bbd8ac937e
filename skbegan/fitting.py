"""How a fit runs: seeds, the cache of stage 1, checkpoints, warm start. From checked cells to trained networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from skbegan import validation
from skbegan.core import recipe
from skbegan.core.data import Scaling
from skbegan.core.device import undisturbed
from skbegan.core.training import Callback

SEEDS = ("split", "weights", "order", "dropout", "removal order", "removal dropout", "classifiers")
_NO_HISTORY: dict[str, list[float]] = {"epoch": []}


@dataclass(frozen=True)
class Earlier:
    """The fitted model that a warm start goes on with."""

    weights: recipe.Weights
    discriminator: recipe.Weights | None
    bf_scaling: Scaling
    qpi_scaling: Scaling
    history: Mapping[str, Any]


@dataclass(frozen=True)
class Fit:
    """What the stages leave, and the files that a further fit with the same arguments would resume from."""

    arrays: recipe.Arrays
    cell_types: np.ndarray | None
    outcome: recipe.Outcome
    history: dict[str, Any]
    checkpoints: tuple[Path, ...]
    device: str
    seed: int
    finishes: bool

    def finish(self, weights: recipe.Weights, parameters: Mapping[str, Any]) -> tuple[recipe.Weights, dict[str, Any]]:
        """Fit profile and image erasure on the finished generator; return its weights and the whole history."""
        with undisturbed():
            done = recipe.finish(
                weights, self.arrays, parameters, self.seed, self.device, self.history["batch_removal"]
            )
        events = []
        if done.collapsed:
            events.append(
                "batch_removal: these cell types have collapsed, their cells are named no better than by chance: "
                f"{self._labels(done.collapsed)}; lower batch_weight, raise cell_type_weight or train longer"
            )
        if done.spared:
            events.append(
                f"batch_removal: these cell types would have collapsed in the fit of the profile: "
                f"{self._labels(done.spared)}; "
                + (
                    f"it was fitted with a share of {done.share:g} of matching"
                    if done.share
                    else "so it was left out and the features are given as they are; lower matching or batch_weight"
                )
            )
        for event in events:
            warnings.warn(event, RuntimeWarning, stacklevel=3)  # the caller of fit
        history = {**self.history, **({"profile": done.losses} if done.losses else {})}
        return done.weights, {**history, "events": [*self.history["events"], *events]}

    def _labels(self, codes: list[int]) -> str:
        """Name cell types as the user does, who knows no codes."""
        labels = codes if self.cell_types is None else self.cell_types[codes].tolist()
        return ", ".join(repr(label) for label in labels)

    def remove_checkpoints(self) -> None:
        """Remove the files, unless Ctrl-C ended the fit: then they are there to go on from."""
        if not self.outcome.interrupted:
            for file in self.checkpoints:
                file.unlink(missing_ok=True)


def run(
    parameters: Mapping[str, Any],
    dataset: validation.CellDataset,
    draws: np.ndarray,
    device: str,
    *,
    memory: Any,
    removes: bool,
    reference: int,
    earlier: Earlier | None,
) -> Fit:
    """Run the stages that are due.

    Parameters
    ----------
    parameters : mapping
        The estimator's.
    dataset : CellDataset
    draws : ndarray of int
        As many seeds as :data:`SEEDS` has names.
    device : str
    memory : joblib.Memory
        Caches stage 1, unless it goes on from an earlier fit.
    removes : bool
        Whether stage 2 is due.
    reference : int
        Code of the reference batch.
    earlier : Earlier or None
        Where to go on from: with stage 2 if it is due, else with stage 1.
    """
    with undisturbed():
        return _run(parameters, dataset, draws, device, memory, removes, reference, earlier)


def _run(
    parameters: Mapping[str, Any],
    dataset: validation.CellDataset,
    draws: np.ndarray,
    device: str,
    memory: Any,
    removes: bool,
    reference: int,
    earlier: Earlier | None,
) -> Fit:
    seeds = dict(zip(SEEDS, draws.tolist(), strict=True))
    arrays = _arrays(dataset, parameters, seeds["split"], earlier)
    callback: Callback | None = parameters["callback"]
    history: dict[str, Any] = {}
    events: list[str] = []
    start = None
    if earlier is not None:
        history = {name: part for name, part in earlier.history.items() if name not in ("events", "profile")}
        events = list(earlier.history.get("events", ()))
        # The validation cells are the same again, but order and dropout are not those of the epochs before.
        n_done = sum(len(part["epoch"]) for part in history.values())
        seeds = {name: (seed + n_done) % (2**31 - 1) for name, seed in seeds.items()}
        width = parameters["base_width"]
        start = recipe.starting_from(earlier.weights, earlier.discriminator, arrays, width, seeds["weights"])
    checkpoints = _checkpoint_files(parameters, dataset, seeds, start)

    outcome = start
    if outcome is None or not removes:
        outcome = _pretrain(arrays, parameters, seeds, device, start, memory, checkpoints)
        history["pretraining"] = recipe.joined(history.get("pretraining", _NO_HISTORY), outcome.history)
        events += outcome.events
    if removes and not outcome.interrupted:
        names = {"order": "removal order", "dropout": "removal dropout", "classifiers": "classifiers"}
        outcome = recipe.remove_batch(
            arrays,
            outcome,
            parameters,
            {name: seeds[seed] for name, seed in names.items()},
            device,
            n_batches=dataset.n_batches,
            n_cell_types=dataset.n_cell_types,
            reference=reference,
            verbose=parameters["verbose"],
            checkpoint=checkpoints[1] if checkpoints else None,
            callback=callback,
        )
        history["batch_removal"] = recipe.joined(history.get("batch_removal", _NO_HISTORY), outcome.history)
        events += outcome.events
    finishes = removes and "batch_removal" in history and parameters["adversary"] == "online"
    history["events"] = events
    return Fit(arrays, dataset.cell_types, outcome, history, checkpoints, device, seeds["classifiers"], finishes)


def _pretrain(
    arrays: recipe.Arrays,
    parameters: Mapping[str, Any],
    seeds: Mapping[str, int],
    device: str,
    start: recipe.Outcome | None,
    memory: Any,
    checkpoints: tuple[Path, ...],
) -> recipe.Outcome:
    # Only what stage 1 depends on may be among the arguments that the cache looks at.
    settings = {name: parameters[name] for name in recipe.PRETRAINING_SETTINGS}
    stage_seeds = {name: seeds[name] for name in ("weights", "order", "dropout")}
    cached = start is None and getattr(memory, "location", "somewhere") is not None
    pretrain = recipe.pretrain
    if cached:
        pretrain = memory.cache(pretrain, ignore=["cached", "verbose", "checkpoint", "callback"])
    try:
        return pretrain(
            arrays,
            settings,
            stage_seeds,
            device,
            start,
            cached=cached,
            verbose=parameters["verbose"],
            checkpoint=checkpoints[0] if checkpoints else None,
            callback=parameters["callback"],
        )
    except recipe.Unfinished as unfinished:
        return unfinished.outcome


def _arrays(
    dataset: validation.CellDataset, parameters: Mapping[str, Any], seed: int, earlier: Earlier | None
) -> recipe.Arrays:
    rows = validation.split_validation(dataset.batch, dataset.cell_type, parameters["validation_fraction"], seed)
    if earlier is not None:
        scalings = [earlier.bf_scaling, earlier.qpi_scaling]
    else:
        scalings = [
            Scaling.of(images, rows[0])
            if parameters["standardize"]
            else Scaling.identity(1 if images.ndim == 3 else images.shape[3])
            for images in (dataset.bf, dataset.qpi)
        ]
    return recipe.Arrays(dataset.bf, dataset.qpi, dataset.batch, dataset.cell_type, *rows, *scalings)


def _checkpoint_files(
    parameters: Mapping[str, Any],
    dataset: validation.CellDataset,
    seeds: Mapping[str, int],
    start: recipe.Outcome | None,
) -> tuple[Path, ...]:
    """Return a file per stage whose name tells data, parameters, seeds and start, so that searches share a folder."""
    if parameters["checkpoint_dir"] is None:
        return ()
    irrelevant = ("memory", "checkpoint_dir", "verbose", "device", "inference", "random_state", "callback")
    kept = {name: value for name, value in parameters.items() if name not in irrelevant}
    name = joblib.hash((kept, dataset, seeds, start))
    return tuple(Path(parameters["checkpoint_dir"]) / f"began-{name}-stage{stage}.pt" for stage in (1, 2))

"""What is trained in which order: stage 1, stage 2, population statistics. From arrays to weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from skbegan.core.batch_removal import BatchRemoval, Design, RemovalWeights, fool_targets
from skbegan.core.batch_transfer import BatchTransfer
from skbegan.core.data import Cells, ImageStack, Minibatch, Scaling, augment
from skbegan.core.device import autocast, new_rng, place, resolve_device, resolve_precision
from skbegan.core.inference import estimate_population_statistics
from skbegan.core.networks import Discriminator, Generator, build, scale_last_layer
from skbegan.core.outputs import attach_outputs, fit_erasure, fit_profile, recalls
from skbegan.core.pretraining import Pretraining
from skbegan.core.published_removal import PublishedRemoval
from skbegan.core.training import Callback, Checkpoint, History, train, untracked

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arrays:
    """Cells as arrays: images, codes of batch and cell type, and which rows are trained on and which held out."""

    bf: np.ndarray
    qpi: np.ndarray
    batch: np.ndarray
    cell_type: np.ndarray
    train_rows: np.ndarray
    validation_rows: np.ndarray
    bf_scaling: Scaling
    qpi_scaling: Scaling

    @property
    def side(self) -> int:
        return self.bf.shape[1]

    def channels(self) -> dict[str, int]:
        return {"in_channels": len(self.bf_scaling.mean), "out_channels": len(self.qpi_scaling.mean)}

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Cells, Cells | None]:
        """Return training and validation cells on a device."""
        stacks = (
            ImageStack(self.bf, self.bf_scaling, device, dtype),
            ImageStack(self.qpi, self.qpi_scaling, device, dtype),
        )
        for stack in stacks:
            stack.keep_on_device()
        cells, validation = (
            Cells(*stacks, self.batch, self.cell_type, rows) for rows in (self.train_rows, self.validation_rows)
        )
        return cells, validation if len(validation) else None


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves: weights as numpy arrays, the history of its losses, and what happened on the way."""

    generator: Weights
    discriminator: Weights
    history: History
    events: list[str]
    interrupted: bool


class Prepared(NamedTuple):
    """A stage with all that it needs to run: its cells, their augmentation, and the order they come in."""

    stage: Any
    cells: Cells
    validation: Cells | None
    prepare: Callable[[Minibatch], Minibatch]
    order: torch.Generator

    def compile(self, settings: Mapping[str, Any]) -> None:
        """Compile the networks, if `settings` want it."""
        networks = self.stage.generator, self.stage.discriminator
        _compile(*networks, self.cells, settings["minibatch_size"], settings["compile"])

    def run(
        self,
        settings: Mapping[str, Any],
        epochs: int,
        verbose: int,
        checkpoint: Path | None,
        callback: Callback | None,
    ) -> Outcome:
        """Train and return what comes of it."""
        self.compile(settings)
        history, interrupted = train(
            self.stage,
            self.cells,
            self.validation,
            epochs=epochs,
            minibatch_size=settings["minibatch_size"],
            rng=self.order,
            verbose=verbose,
            checkpoint=Checkpoint(checkpoint),
            prepare=self.prepare,
            callback=callback,
        )
        generator, discriminator = to_numpy(self.stage.generator), to_numpy(self.stage.discriminator)
        return Outcome(generator, discriminator, history, self.stage.events, interrupted)


class Unfinished(Exception):
    """Ends a stage that was stopped early, so that no cache keeps it; `outcome` is what there is."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("stage 1 was stopped early")
        self.outcome = outcome


def to_numpy(network: nn.Module) -> Weights:
    """Return a network's state as numpy arrays, without the counters that nothing reads."""
    return {
        name: value.detach().cpu().numpy().copy()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def from_numpy(network: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Load what :func:`to_numpy` returned."""
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=False)
    return network


def generator_from(weights: Weights, device: torch.device, dtype: torch.dtype) -> Generator:
    """Build the generator that the weights belong to, whatever its sizes, on a device."""
    shapes = {name: value.shape for name, value in weights.items()}
    generator = build(Generator, **Generator.sizes_of(shapes), rng=new_rng(0))
    return from_numpy(place(attach_outputs(generator, shapes), device, dtype), weights)


def without_outputs(weights: Weights) -> Weights:
    """Return the weights of the generator that trains, without what was fitted on its features and images."""
    return {name: value for name, value in weights.items() if not name.startswith(("profile.", "erasure."))}


def _compile(generator: nn.Module, discriminator: nn.Module, cells: Cells, minibatch_size: int, wanted: bool) -> None:
    """Compile both networks in place when `wanted`; where that fails, warn and let them run as they are."""
    if not wanted:
        return
    example = cells.take(torch.arange(min(minibatch_size, len(cells))))
    try:
        generator.compile()
        discriminator.compile()
        with untracked(generator, discriminator):
            image, _ = generator(example.source, new_rng(0, example.source.device))
            discriminator(example.source, image)
    except Exception as error:
        for network in (generator, discriminator):
            network._compiled_call_impl = None
        warnings.warn(
            f"compile=True has no effect here, training goes on without: {error}", RuntimeWarning, stacklevel=2
        )


def prepare_pretraining(
    arrays: Arrays,
    settings: Mapping[str, Any],
    seeds: Mapping[str, int],
    device: str,
    start: Outcome | None = None,
) -> Prepared:
    """Return stage 1 ready to run; the parameters are those of :func:`pretrain`."""
    where = resolve_device(device)
    dtype = resolve_precision(settings["precision"], where, settings["base_width"])
    cells, validation = arrays.on(where, dtype)
    rng = new_rng(seeds["weights"])
    channels = arrays.channels()
    if start is None:
        sizes = {"base_width": settings["base_width"], "n_features": settings["n_features"], **channels}
        generator = place(build(Generator, arrays.side, rng=rng, **sizes), where, dtype)
        if settings["standardize"]:
            scale_last_layer(generator)
    else:
        generator = generator_from(without_outputs(start.generator), where, dtype)
    discriminator = place(build(Discriminator, base_width=settings["base_width"], rng=rng, **channels), where, dtype)
    if start is not None:
        from_numpy(discriminator, start.discriminator)
    stage = Pretraining(
        generator,
        discriminator,
        learning_rate=settings["learning_rate"],
        discriminator_learning_rate=settings["discriminator_learning_rate"],
        adversarial_weight=1.0,
        image_weight=settings["pretrain_image_weight"],
        rng=new_rng(seeds["dropout"], where),
        dtype=dtype,
    )
    order = new_rng(seeds["order"])
    return Prepared(stage, cells, validation, _augmentation(settings["augment"], order), order)


def pretrain(
    arrays: Arrays,
    settings: Mapping[str, Any],
    seeds: Mapping[str, int],
    device: str,
    start: Outcome | None = None,
    *,
    cached: bool = False,
    verbose: int = 0,
    checkpoint: Path | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Run stage 1.

    Parameters
    ----------
    arrays : Arrays
    settings : mapping
        The estimator's parameters that stage 1 depends on, see :data:`PRETRAINING_SETTINGS`.
    seeds : mapping of str to int
        ``weights``, ``order`` and ``dropout``.
    device : str
    start : Outcome, optional
        Where to start from, see :func:`starting_from`; by default from new networks.
    cached : bool, default=False
        Say that a cache keeps what is returned; then half a stage is raised instead, as :class:`Unfinished`.
    verbose : int, default=0
    checkpoint : Path, optional
    callback : callable, optional
    """
    prepared = prepare_pretraining(arrays, settings, seeds, device, start)
    outcome = prepared.run(settings, settings["pretrain_epochs"], verbose, checkpoint, callback)
    if cached and max(outcome.history["epoch"], default=0) < settings["pretrain_epochs"]:
        raise Unfinished(outcome)
    return outcome


def starting_from(
    generator: Weights, discriminator: Weights | None, arrays: Arrays, base_width: int, seed: int
) -> Outcome:
    """Return a trained generator as the outcome of a stage that another can start from.

    Without a `discriminator` it gets a new one of the same width.
    """
    if discriminator is None:
        discriminator = to_numpy(build(Discriminator, base_width=base_width, rng=new_rng(seed), **arrays.channels()))
    return Outcome(generator, discriminator, {"epoch": []}, [], interrupted=False)


def joined(earlier: History, later: History) -> History:
    """Return the history of a stage that went on: epochs are counted on, losses that one part lacks are NaN there."""
    n_done = max(earlier["epoch"], default=0)
    result: History = {"epoch": [*earlier["epoch"], *(n_done + epoch for epoch in later["epoch"])]}
    for name in {**earlier, **later}:
        if name != "epoch":
            parts = (part.get(name, [math.nan] * len(part["epoch"])) for part in (earlier, later))
            result[name] = [value for part in parts for value in part]
    return result


PRETRAINING_SETTINGS = (
    "base_width",
    "n_features",
    "pretrain_epochs",
    "pretrain_image_weight",
    "learning_rate",
    "discriminator_learning_rate",
    "minibatch_size",
    "augment",
    "standardize",
    "precision",
    "compile",
)


def _augmentation(wanted: bool, rng: torch.Generator) -> Any:
    def prepare(cells: Minibatch) -> Minibatch:
        return augment(cells, rng) if wanted else cells

    return prepare


def prepare_removal(
    arrays: Arrays,
    start: Outcome,
    settings: Mapping[str, Any],
    seeds: Mapping[str, int],
    device: str,
    *,
    n_batches: int,
    n_cell_types: int,
    reference: int,
) -> Prepared:
    """Return stage 2 ready to run; the parameters are those of :func:`remove_batch`."""
    where = resolve_device(device)
    dtype = resolve_precision(settings["precision"], where, settings["base_width"])
    cells, validation = arrays.on(where, dtype)
    channels, width = arrays.channels(), settings["base_width"]
    generator = generator_from(without_outputs(start.generator), where, dtype)
    discriminator = place(build(Discriminator, base_width=width, rng=new_rng(0), **channels), where, dtype)
    from_numpy(discriminator, start.discriminator)
    order = new_rng(seeds["order"])
    online = settings["adversary"] == "online"
    if online:
        transfer = BatchTransfer(cells, n_batches, n_cell_types, settings["look_spread"], order)
        turn = _augmentation(settings["augment"], order)

        def prepare(part: Minibatch) -> Minibatch:
            target = transfer.target(part, settings["batch_transfer"])
            source = transfer.source(part, settings["brightfield_transfer"])
            seen = turn(replace(part, source=source, target=target))
            if settings["invariance_weight"] == 0:
                return seen
            other = transfer.source(part, settings["batch_transfer"])
            return replace(seen, twin=turn(replace(part, source=other)).source)

    else:
        prepare = _augmentation(settings["augment"], order)
    targets = fool_targets(cells.batch, cells.cell_type, n_batches, n_cell_types, settings["batch_target"], reference)
    names = ["adversarial", "image", "cell_type", "cell_type_image", "batch", "batch_image"]
    weights = {name: settings[f"{name}_weight"] for name in names}
    if online:
        weights |= {name: settings[f"{name}_weight"] for name in ("invariance", "activity", "decorrelation")}
        weights["alignment"] = settings["alignment"] * settings["batch_weight"]
    common: dict[str, Any] = {
        "design": Design(n_batches, n_cell_types, targets),
        "weights": RemovalWeights(**weights),
        "base_width": width,
        "learning_rate": settings["removal_learning_rate"],
        "discriminator_learning_rate": settings["discriminator_learning_rate"],
        "classifier_learning_rate": settings["classifier_learning_rate"],
        "refresh_epochs": settings["refresh_epochs"],
        "minibatch_size": settings["minibatch_size"],
        "seed": seeds["classifiers"],
        "rng": new_rng(seeds["dropout"], where),
        "dtype": dtype,
    }
    networks = generator, discriminator
    stage: BatchRemoval | PublishedRemoval
    if not online:
        stage = PublishedRemoval(
            *networks,
            adversary_learning_rate=settings["adversary_learning_rate"],
            n_subsets=settings["n_adversaries"],
            classifier_epochs=settings["classifier_epochs"],
            **common,
        )
    else:
        stage = BatchRemoval(
            *networks,
            adversary_learning_rate=settings["adversary_learning_rate"],
            n_adversaries=settings["n_adversaries"],
            adversary_steps=settings["adversary_steps"],
            warmup_epochs=settings["warmup_epochs"],
            ramp=settings["ramp"],
            decay=settings["decay"],
            averaging=settings["averaging"],
            prepare=prepare,
            **common,
        )
    return Prepared(stage, cells, validation, prepare, order)


def remove_batch(
    arrays: Arrays,
    start: Outcome,
    settings: Mapping[str, Any],
    seeds: Mapping[str, int],
    device: str,
    *,
    n_batches: int,
    n_cell_types: int,
    reference: int,
    verbose: int = 0,
    checkpoint: Path | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Run stage 2 from where stage 1 ended.

    Parameters
    ----------
    arrays : Arrays
    start : Outcome
    settings : mapping
        The estimator's parameters.
    seeds : mapping of str to int
        ``order``, ``dropout`` and ``classifiers``.
    device : str
    n_batches, n_cell_types : int
    reference : int
        Code of the reference batch.
    verbose : int, default=0
    checkpoint : Path, optional
    callback : callable, optional
    """
    prepared = prepare_removal(
        arrays,
        start,
        settings,
        seeds,
        device,
        n_batches=n_batches,
        n_cell_types=n_cell_types,
        reference=reference,
    )
    return prepared.run(settings, settings["removal_epochs"], verbose, checkpoint, callback)


def calibrate(
    weights: Weights, stack: ImageStack, rows: np.ndarray, generator: Any, dtype: torch.dtype, minibatch_size: int
) -> Weights:
    """Return the weights with BatchNorm statistics re-estimated on ``stack[rows]``.

    Parameters
    ----------
    weights : dict of str to ndarray
    stack : ImageStack
    rows : ndarray of int
    generator : Generator
        Gets the weights, and the new statistics.
    dtype : torch.dtype
    minibatch_size : int
        That of the training, so that the statistics average over minibatches like those it saw.
    """
    from_numpy(generator, weights)
    parts = np.array_split(rows, max(1, len(rows) // minibatch_size))
    estimate_population_statistics(generator, (stack.take(part) for part in parts), dtype)
    return to_numpy(generator)


# Of the fits on the finished generator: cells at most, values of all images at most, views of a cell, steps at most.
FEATURE_CELLS, IMAGE_CELLS, IMAGE_VALUES = 8192, 4096, 2**25
N_VIEWS, MATCHING_STEPS = 8, 900
MATCHING_SHARES = (1.0, 0.25, 0.05)  # tried in turn until no cell type collapses


@dataclass(frozen=True)
class Finished:
    """What :func:`finish` leaves.

    Attributes
    ----------
    weights : dict of str to ndarray
    losses : dict of str to list of float
        Of the fit of the profile; empty where there was none.
    collapsed : list of int
        Codes of the cell types that are named no better than by chance from the features.
    spared : list of int
        Codes of those that the profile would have made so, for which it was fitted with less matching.
    share : float
        Of `matching` that the profile was fitted with; 0 where it was left out.
    """

    weights: Weights
    losses: dict[str, list[float]]
    collapsed: list[int]
    spared: list[int]
    share: float


def finish(
    weights: Weights,
    arrays: Arrays,
    settings: Mapping[str, Any],
    seed: int,
    device: str,
    history: History,
) -> Finished:
    """Fit what makes profiles of features and erases the batch from images, see :mod:`skbegan.core.outputs`.

    Parameters
    ----------
    weights : dict of str to ndarray
        Of the generator after stage 2, with its population statistics.
    arrays : Arrays
    settings : mapping
        The estimator's parameters.
    seed : int
    device : str
    history : dict of str to list of float
        Of stage 2: the fit of the profile takes no more steps than stage 2 did.

    Returns
    -------
    finished : Finished
    """
    where = resolve_device(device)
    dtype = resolve_precision(settings["precision"], where, settings["base_width"])
    rng = new_rng(seed)
    generator = generator_from(without_outputs(weights), where, dtype).eval()
    cells, validation = arrays.on(where, dtype)
    size = max(64, settings["minibatch_size"])
    order = torch.randperm(len(cells), generator=rng)

    def run(chosen: torch.Tensor, read: Any, turned: bool = False, of: Cells = cells) -> torch.Tensor:
        parts = []
        with torch.no_grad(), autocast(where, dtype):
            for part in chosen.split(size):
                minibatch = of.take(part)
                parts.append(read(augment(minibatch, rng) if turned else minibatch).float())
        return torch.cat(parts)

    def encode(part: Minibatch) -> torch.Tensor:
        return generator.encode(part.source)[0]

    chosen = order[:FEATURE_CELLS]
    on_device = chosen.to(where)
    weight = settings["matching"] * settings["batch_weight"]
    n_views = N_VIEWS if settings["augment"] and weight > 0 else 1
    views = torch.stack([run(chosen, encode, turned=view > 0) for view in range(n_views)])
    batch, cell_type = cells.batch[on_device], cells.cell_type[on_device]
    features, types = views[0], cell_type
    if validation is not None:
        others = torch.arange(len(validation))[:FEATURE_CELLS]
        features, types = run(others, encode, of=validation), validation.cell_type[others.to(where)]
    collapsed = _collapsed(recalls(features, types, views[0], cell_type))
    if validation is not None:  # for what the profile changes the training cells can be asked too, which are more
        features, types = torch.cat([features, views[0]]), torch.cat([types, cell_type])
    recall = recalls(features, types, views[0], cell_type)
    losses: dict[str, list[float]] = {}
    spared: list[int] = []
    share = 0.0
    for part in MATCHING_SHARES if weight > 0 else ():
        fitted = fit_profile(
            views,
            batch,
            cell_type,
            floor=settings["profile_floor"],
            batch_weight=part * weight,
            cell_type_weight=settings["cell_type_weight"],
            steps=min(MATCHING_STEPS, len(history["epoch"]) * cells.n_minibatches(settings["minibatch_size"])),
            rng=rng,
        )
        if fitted is None:
            break
        profile = fitted[0]
        newly = _newly_collapsed(recall, recalls(profile(features), types, profile(views[0]), cell_type))
        if not newly:
            generator.profile, losses = fitted
            share = part
            break
        spared = sorted({*spared, *newly})
    if settings["image_erasure"] and settings["batch_image_weight"] > 0:
        values = arrays.side**2 * len(arrays.qpi_scaling.mean)
        chosen = order[: min(IMAGE_CELLS, max(256, IMAGE_VALUES // values))]
        images = run(chosen, lambda part: generator(part.source)[0])
        on_device = chosen.to(where)
        erasure = fit_erasure(images, cells.batch[on_device], cells.cell_type[on_device])
        if erasure is not None:
            generator.erasure = erasure
    return Finished(to_numpy(generator), losses, collapsed, spared, share)


def _collapsed(recall: torch.Tensor) -> list[int]:
    """Return the codes of the cell types that are named no better than by chance; where there is one type, none."""
    chance = 1.0 / len(recall) if len(recall) > 1 else 0.0
    return [code for code, value in enumerate(recall.tolist()) if value <= chance]


def _newly_collapsed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Return the codes of the cell types that are named no better than by chance and were named twice as well before.

    A type between two others is hard to name in the best of cases, and has not collapsed for that.
    """
    return [code for code in _collapsed(after) if float(after[code]) < 0.5 * float(before[code])]

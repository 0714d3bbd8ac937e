"""How a fit runs: split, seeds, cache of stage 1, checkpoints, warm start, and the three stages in turn.

From checked cells to a :class:`~skbegan.model.FittedModel`. The estimator is changed only when it is complete.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from skbegan._together import agreed_split, check_arguments
from skbegan._turns import turn
from skbegan._version import training_code, versions
from skbegan.checks import CellDataset
from skbegan.config import Architecture, Config, Pretraining
from skbegan.core.checkpoint import Checkpoint
from skbegan.core.engine import Engine, Event, new_rng, resolve_device, resolve_precision, undisturbed
from skbegan.core.loop import Callback, StageResult, compile_networks, joined, run_stage
from skbegan.core.networks import to_numpy
from skbegan.core.parallel import ALONE, Group, own_device
from skbegan.core.plans import pretraining, profile
from skbegan.core.plans.pretraining import Start
from skbegan.data.cells import Cells, Split
from skbegan.data.source import ImageSource, Scaling, value_range
from skbegan.data.splitting import split_validation
from skbegan.data.stream import as_rows, draw_stream, has_to_stream, kept_if_few
from skbegan.design import Design
from skbegan.model import FittedModel
from skbegan.restyling import TargetStyles
from skbegan.stored.adapters import ArrayRows, map_stamp
from skbegan.stored.lazy import LazyRows

SEEDS = ("split", "weights", "order", "dropout", "removal order", "removal dropout", "classifiers")
_NO_HISTORY: dict[str, list[float]] = {"epoch": []}
_NO_STAGES = ("events", "profile_alignment")  # of a history, that a warm start does not go on with


@dataclass(frozen=True)
class Fit:
    """A fitted model, what happened, and the checkpoints that a further fit with the same arguments would resume from.

    Attributes
    ----------
    model : FittedModel
    events : list of Event
        Of this fit.
    checkpoints : tuple of Checkpoint
    interrupted : bool
        Whether Ctrl-C ended a stage.
    """

    model: FittedModel
    events: list[Event]
    checkpoints: tuple[Checkpoint, ...]
    interrupted: bool

    def remove_checkpoints(self) -> None:
        """Remove the files, unless Ctrl-C ended the fit: then they are there to go on from."""
        if not self.interrupted:
            for checkpoint in self.checkpoints:
                checkpoint.remove()


def run(
    config: Config,
    dataset: CellDataset,
    draws: np.ndarray,
    *,
    memory: Any,
    removes: bool,
    reference: int = 0,
    earlier: FittedModel | None = None,
    keep_discriminator: bool = False,
) -> Fit:
    """Run the stages that are due.

    In processes that train together, see :mod:`skbegan.core.parallel`, each gets the same model. The first of them
    calls the callback, shows progress, and reads and writes the cache and checkpoints; only it has events to warn of.

    Parameters
    ----------
    config : Config
    dataset : CellDataset
    draws : ndarray of int
        As many seeds as :data:`SEEDS` has names.
    memory : joblib.Memory
        Caches stage 1, unless it goes on from an earlier fit.
    removes : bool
        Whether stages 2 and 3 are due.
    reference : int, default=0
        Code of the reference batch.
    earlier : FittedModel, optional
        Where to go on from: with stage 2 if it is due, else with stage 1.
    keep_discriminator : bool, default=False
        For a warm start later on.

    Raises
    ------
    ValueError
        When processes that train together cannot: minibatches cannot be shared out, or their cells are not the same.
    KeyboardInterrupt
        When Ctrl-C comes before there is a model that is better than an untrained one, or in the last stage.
    FloatingPointError
        When training diverges whatever the learning rate.
    """
    with undisturbed():
        group = Group.found(resolve_device(config.runtime.device))
        check_arguments(group, config, dataset, removes, earlier)
        draws = group.from_first(lambda: draws)
        found = Stages(config, dataset, draws, memory, reference, earlier, group).run(removes, keep_discriminator)
        # Where processors differ, so may the last digits of what each has computed by itself.
        found = replace(found, model=group.from_first(lambda: found.model))
        if group.is_first:
            return found
        return replace(found, events=[event._replace(warns=False) for event in found.events], checkpoints=())


class Stages:
    """The stages of one fit, with the data, seeds and history that they share."""

    def __init__(
        self,
        config: Config,
        dataset: CellDataset,
        draws: np.ndarray,
        memory: Any,
        reference: int,
        earlier: FittedModel | None,
        group: Group = ALONE,
    ) -> None:
        self.config, self.memory, self.earlier = config, memory, earlier
        self.group = group
        self.device = resolve_device(own_device(config.runtime.device))
        self.dtype = resolve_precision(config.runtime.precision, self.device, config.architecture.base_width)
        self.seeds = dict(zip(SEEDS, draws.tolist(), strict=True))
        self.dataset, split = self._split(dataset)
        self.split = agreed_split(group, split, config.removal.minibatch_size)
        self.design = self._design(reference)
        self.sources: list[ImageSource] = []  # images, which the stages share
        self.history: dict[str, Any] = {}
        self.events: list[Event] = []
        self.results: dict[str, StageResult] = {}  # of this fit
        self.start: Start | None = None
        self.styles: TargetStyles | None = None  # of the batches, where stage 2 has freed the images of them
        if dataset.cell_types is not None and (n := int((dataset.cell_type < 0).sum())):
            message = f"{n} of {len(dataset.cell_type)} cells have no cell type: they train all but what needs one"
            self.events.append(Event("fit", message, warns=False))
        if earlier is not None:
            self._go_on_from(earlier)
        self.checkpoints = group.from_first(self._checkpoints)
        self.verbose = config.runtime.verbose
        self.callback: Callback | None = config.runtime.callback

    def run(self, removes: bool, keep_discriminator: bool) -> Fit:
        """Run the stages that are due and return the model."""
        interrupted = False
        networks = self.start
        if networks is None or not removes:
            result = self._pretrain()
            networks, interrupted = Start(result.generator, result.discriminator), result.interrupted
            if interrupted and not result.history["epoch"]:
                raise KeyboardInterrupt
            self._record("pretraining", result)
        if removes and not interrupted:
            result = self._remove_batch(networks)
            networks, interrupted = Start(result.generator, result.discriminator), result.interrupted
            if result.history["epoch"]:
                self._record("batch_removal", result)
            else:
                self.events += result.events
        model = self._model(networks, keep_discriminator)
        if removes and "batch_removal" in self.history and self.config.removal.method.aligns_profile:
            model = self._align_profile(model)
        if interrupted:
            self.events.append(self._what_ran(removes))
        runtime = self.config.runtime
        model.check_finite(self.dataset.bf, self.split.train_rows, device=str(self.device), precision=runtime.precision)
        if runtime.calibrate:
            from skbegan.shift.of_fit import with_calibration

            model = with_calibration(model, self.config, self.dataset, self.split, self.design)
        events = [*(self.earlier.history.get("events", ()) if self.earlier else ()), *map(str, self.events)]
        model = replace(model, history={**self.history, "events": events})
        return Fit(model, self.events, self.checkpoints, interrupted)

    # Stages -------------------------------------------------------------------------------------------------------

    def _pretrain(self) -> StageResult:
        stage_1: tuple[Any, ...] = (
            self.split,
            self.config.architecture,
            self.config.pretraining,
            (self.config.runtime.precision, self.config.runtime.compile, str(self.device)),
            {name: self.seeds[name] for name in ("weights", "order", "dropout")},
        )
        images, group = (self.dataset.bf, self.dataset.qpi), self.group
        options: dict[str, Any] = {
            "start": self.start,
            "verbose": self.verbose,
            "checkpoint": self.checkpoints[0] if self.checkpoints else None,
            "callback": self.callback,
            "group": group,
            "sources": self.sources,
        }
        if self.start is not None or getattr(self.memory, "location", "somewhere") is None:
            return pretrain(*images, *stage_1, **options)
        # Only what stage 1 depends on may be in the key. Images that are read lazily are known by their content.
        statistics = () if group.synchronised else (f"statistics of {group.world} processes",)
        known_by = (*map(_key, images), *stage_1, versions(), training_code(), *statistics)
        key = joblib.hash(known_by, coerce_mmap=True)
        cached = self.memory.cache(_whole_pretraining, ignore=["images", "stage_1", "options"])

        def result() -> StageResult:
            return cached(key, images, stage_1, options)  # type: ignore[no-any-return]

        joblibs_own = hasattr(cached, "check_call_in_cache")
        if not joblibs_own and group.world > 1:
            raise TypeError("memory must be None, a folder or a joblib.Memory where several processes fit together")

        def known() -> bool:
            return joblibs_own and bool(cached.check_call_in_cache(key, images, stage_1, options))

        with contextlib.ExitStack() as stack:
            if group.is_first and getattr(self.memory, "backend", "") == "local" and not known():
                # Fits that miss together would all train: the others wait for the first, and find what it left.
                place = Path(self.memory.location) / "skbegan-locks" / f"{key}.lock"
                what = "stage 1 of the same data and parameters"
                if alone := stack.enter_context(turn(place, what, verbose=self.verbose)):
                    self.events.append(Event("pretraining", alone))
            if group.from_first(known):
                return group.from_first(result)
            try:  # all processes of a group train, and the first keeps what comes of it
                return result() if group.is_first else pretrain(*images, *stage_1, **options)
            except _Unfinished as half:
                return half.result

    def _remove_batch(self, start: Start) -> StageResult:
        config = self.config
        names = {"order": "removal order", "dropout": "removal dropout", "classifiers": "classifiers"}
        engine = self._engine({name: self.seeds[seed] for name, seed in names.items()})
        cells, validation = self._cells()
        known = cells.known
        plan = importlib.import_module(config.removal.method.plan).build(config, known, self.design, engine, start)
        if config.runtime.compile:
            compile_networks(plan, known, config.removal.minibatch_size)
        try:
            result = run_stage(
                plan,
                cells,
                validation,
                epochs=config.removal.epochs,
                minibatch_size=config.removal.minibatch_size,
                steps_per_epoch=config.removal.steps_per_epoch,
                verbose=self.verbose,
                checkpoint=self.checkpoints[1] if self.checkpoints else None,
                callback=self.callback,
            )
            effects = plan.styles.target_effects() if hasattr(plan, "styles") else None
            self.styles = None if effects is None else TargetStyles(**effects)
            return result
        except FloatingPointError as error:
            if where := self._where_stage_1_is():
                raise FloatingPointError(f"{error}. Stage 1 is kept in {where}") from None
            message = f"{error}. The model is what stage 1 left: the batch is still there"
            events = [*plan.events, Event(plan.name, message.removeprefix(f"{plan.name}: "))]
            return StageResult(start.generator, start.discriminator, _NO_HISTORY, events, finished=False)
        except Exception as error:
            if where := self._where_stage_1_is():
                error.add_note(f"Stage 1 is kept in {where}: the same fit goes on from there.")
            raise

    def _align_profile(self, model: FittedModel) -> FittedModel:
        engine = self._engine({"classifiers": self.seeds["classifiers"]})
        cells, validation = self._cells()
        plan = profile.build(self.config, cells.known, self.design, engine, Start(model.weights, {}))
        labels = (
            range(self.dataset.n_cell_types) if self.dataset.cell_types is None else self.dataset.cell_types.tolist()
        )
        weights, losses = plan.run(
            validation, len(self.history["batch_removal"]["epoch"]), [repr(label) for label in labels], self.verbose
        )
        self.events += plan.events
        if losses:
            self.history["profile_alignment"] = losses
        return replace(model, weights=weights)

    def _model(self, networks: Start, keep_discriminator: bool) -> FittedModel:
        """Return the model after the stages that train the generator, with its population statistics."""
        dataset, runtime = self.dataset, self.config.runtime
        model = FittedModel(
            weights=networks.generator,
            bf_scaling=self.split.bf_scaling,
            target_scaling=self.split.target_scaling,
            bf_range=value_range(dataset.bf, self.split.train_rows),
            image_shape=tuple(dataset.bf.shape[1:]),
            target_shape=tuple(dataset.qpi.shape[1:]),
            batches=dataset.batches,
            cell_types=dataset.cell_types,
            device=str(self.device),
            config=self.config.learned,
            batch_columns=dataset.batch_columns,
            styles=self.styles,
            discriminator=networks.discriminator if keep_discriminator else None,
        )
        return model.recalibrated(
            dataset.bf,
            self.split.train_rows,
            device=str(self.device),
            precision=runtime.precision,
            minibatch_size=self.config.removal.minibatch_size,
        )

    def _what_ran(self, removes: bool) -> Event:
        """Say which stages ran to their end in a fit that Ctrl-C has ended."""
        epochs = {"pretraining": self.config.pretraining.epochs, "batch_removal": self.config.removal.epochs}
        parts = []
        for stage, result in self.results.items():
            name, done = stage.replace("_", " "), len(result.history["epoch"])
            parts.append(
                f"{name} ran to its end" if result.finished else f"{name} ran {done} of {epochs[stage]} epochs"
            )
        if "profile_alignment" in self.history:
            parts.append("profile alignment ran to its end")
        if removes and "batch_removal" not in self.results:
            parts.append("batch removal and profile alignment did not run: the batch is still there")
        return Event("fit", f"interrupted by Ctrl-C; {', '.join(parts)}")

    # What they have in common -------------------------------------------------------------------------------------

    def _engine(self, seeds: Mapping[str, int]) -> Engine:
        return Engine(self.device, self.dtype, seeds, self.group)

    def _cells(self) -> tuple[Cells, Cells | None]:
        data = self.dataset
        where = self.device, self.dtype, self.sources
        return Cells.of_split(data.bf, data.qpi, data.batch, data.cell_type, self.split, *where)

    def _record(self, stage: str, result: StageResult) -> None:
        self.history[stage] = joined(self.history.get(stage, _NO_HISTORY), result.history)
        self.events += result.events
        self.results[stage] = result

    def _split(self, dataset: CellDataset) -> tuple[CellDataset, Split]:
        """Return the cells, those that are kept in memory read, and which are trained on and which held out."""
        fraction, seed, stream = self.config.validation_fraction, self.seeds["split"], None
        images = as_rows(dataset.bf), as_rows(dataset.qpi)
        if has_to_stream(*images):
            stream, kept, train_rows = draw_stream(*images, dataset.batch, dataset.cell_type, fraction, seed)
            dataset, validation_rows = replace(dataset, bf=kept[0], qpi=kept[1]), stream.held_out
        else:
            dataset = replace(dataset, bf=kept_if_few(dataset.bf), qpi=kept_if_few(dataset.qpi))
            train_rows, validation_rows = split_validation(dataset.batch, dataset.cell_type, fraction, seed)
        if self.earlier is not None:
            scalings = [self.earlier.bf_scaling, self.earlier.target_scaling]
        else:
            scalings = [
                Scaling.of(images, train_rows)
                if self.config.architecture.standardize
                else Scaling.identity(1 if images.ndim == 3 else images.shape[3])
                for images in (dataset.bf, dataset.qpi)
            ]
        per_image = self.config.architecture.standardize == "image"
        return dataset, Split(train_rows, validation_rows, scalings[0], scalings[1], per_image, stream)

    def _design(self, reference: int) -> Design:
        """Return the design of the training cells."""
        data, split = self.dataset, self.split
        sizes = data.n_batches, data.n_cell_types, reference
        if split.stream is None:
            return Design.of(data.batch[split.train_rows], data.cell_type[split.train_rows], *sizes)
        held_out = Design.of(data.batch[split.validation_rows], data.cell_type[split.validation_rows], *sizes)
        return replace(held_out, counts=Design.of(data.batch, data.cell_type, *sizes).counts - held_out.counts)

    def _go_on_from(self, earlier: FittedModel) -> None:
        self.history = {name: part for name, part in earlier.history.items() if name not in _NO_STAGES}
        # The validation cells are the same again, but order and dropout are not those of the epochs before.
        n_done = sum(len(part["epoch"]) for part in self.history.values())
        self.seeds = {name: (seed + n_done) % (2**31 - 1) for name, seed in self.seeds.items()}
        discriminator = earlier.discriminator
        if discriminator is None:
            cells, _ = self._cells()
            new = pretraining.new_discriminator(self.config.architecture, cells, new_rng(self.seeds["weights"]))
            discriminator = to_numpy(new)
        self.start = Start(earlier.weights, discriminator)

    def _checkpoints(self) -> tuple[Checkpoint, ...]:
        """Return a file per stage whose name tells all that the stages depend on, so that searches share a folder."""
        runtime = self.config.runtime
        if runtime.checkpoint_dir is None:
            return ()
        config = replace(self.config.learned, runtime=replace(self.config.learned.runtime, compile=runtime.compile))
        dataset = replace(self.dataset, bf=_key(self.dataset.bf), qpi=_key(self.dataset.qpi))
        code: tuple[Any, ...] = (versions(), training_code())
        if not self.group.synchronised:
            code = (*code, f"statistics of {self.group.world} processes")
        name = joblib.hash((config, dataset, self.seeds, self.start, *code))
        folder = Path(runtime.checkpoint_dir)
        checkpoints = tuple(Checkpoint(folder / f"began-{name}-stage{stage}.pt") for stage in (1, 2))
        checkpoints[0].prepare()
        return checkpoints

    def _where_stage_1_is(self) -> str:
        """Say where a further fit finds stage 1, or nothing if it would have to be trained again."""
        if self.start is not None:
            return ""
        if self.checkpoints:
            return f"checkpoint_dir={str(self.config.runtime.checkpoint_dir)!r}"
        location = getattr(self.memory, "location", None)
        return "" if location is None else f"memory={str(location)!r}"


def pretrain(
    bf: np.ndarray,
    target: np.ndarray,
    split: Split,
    architecture: Architecture,
    stage: Pretraining,
    runtime: tuple[str, bool, str],
    seeds: Mapping[str, int],
    *,
    start: Start | None = None,
    verbose: int = 0,
    checkpoint: Checkpoint | None = None,
    callback: Callback | None = None,
    group: Group = ALONE,
    sources: list[ImageSource] | None = None,
) -> StageResult:
    """Run stage 1: a function of its own, since its result is cached.

    Parameters
    ----------
    bf, target : ndarray
    split : Split
    architecture : Architecture
    stage : Pretraining
    runtime : tuple
        Precision, whether to compile, device.
    seeds : mapping of str to int
        ``weights``, ``order`` and ``dropout``.
    start : Start, optional
        By default new networks.
    verbose : int, default=0
    checkpoint : Checkpoint, optional
    callback : callable, optional
    group : Group, optional
    """
    precision, compiled, device = runtime
    there = resolve_device(device)
    engine = Engine(there, resolve_precision(precision, there, architecture.base_width), seeds, group)
    no_labels = np.zeros(len(bf), dtype=np.uint8)
    where = engine.device, engine.dtype, sources
    cells, validation = Cells.of_split(bf, target, no_labels, no_labels, split, *where)
    config = Config(architecture, stage)
    plan = pretraining.build(config, cells.known, None, engine, start)
    if compiled:
        compile_networks(plan, cells.known, stage.minibatch_size)
    return run_stage(
        plan,
        cells,
        validation,
        epochs=stage.epochs,
        minibatch_size=stage.minibatch_size,
        steps_per_epoch=stage.steps_per_epoch,
        verbose=verbose,
        checkpoint=checkpoint,
        callback=callback,
    )


class _Unfinished(Exception):
    """Stage 1 was stopped early: raised where it is cached, since what raises is not kept."""

    def __init__(self, result: StageResult) -> None:
        super().__init__("stage 1 was stopped early")
        self.result = result


def _whole_pretraining(key: str, images: Any, stage_1: Any, options: Mapping[str, Any]) -> StageResult:
    """Run stage 1, cached by a key that stands for all that it depends on."""
    result = pretrain(*images, *stage_1, **options)
    if not result.finished:
        raise _Unfinished(result)
    return result


def _key(images: Any) -> Any:
    """Return what stands for images where a fit is known by what it depends on: arrays themselves, or a fingerprint."""
    if not isinstance(images, LazyRows) and map_stamp(images) is not None:
        images = ArrayRows(images)
    return images.fingerprint() if isinstance(images, LazyRows) else images

"""What a fit will cost: a few real steps of each stage, on cells of the caller, extrapolated to the whole.

Nothing is kept of them. Times of parts that depend on the data or on what was learned are those of the cells at hand
and of networks that have hardly learned.
"""

from __future__ import annotations

import gc
import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from skbegan._progress import duration
from skbegan.checks import CellDataset
from skbegan.config import Config, PublishedRemoval
from skbegan.core.engine import new_rng, undisturbed
from skbegan.core.erasure import fit_erasure
from skbegan.core.loop import Plan
from skbegan.core.losses import group_members
from skbegan.core.networks import snapshot, to_numpy, untracked
from skbegan.core.plans import pretraining, profile
from skbegan.core.plans.pretraining import Start
from skbegan.data.cells import Cells
from skbegan.data.sampler import Sampler, n_minibatches
from skbegan.fit import SEEDS, Stages
from skbegan.model import MAX_CHECKED, FittedModel
from skbegan.presets import PRESETS

LONG = 86400.0  # seconds on a CPU from which on smaller sizes are named
_BLOCK, _LONGEST = 0.4, 2.0  # seconds of measured steps, and of steps before them
_SAMPLE = 1024  # cells whose features are read


@dataclass(frozen=True)
class StageCost:
    """What one part of a fit costs.

    Attributes
    ----------
    name : str
        ``"checks"``, ``"pretraining"``, ``"batch_removal"`` or ``"profile_alignment"``.
    epochs, steps_per_epoch : int
    seconds_once : float
        What is done once: the warm-up of classifiers, in ``"checks"`` also standardisation and statistics.
    seconds_per_epoch : float
        Training, validation, copies of the networks, and the renewal of classifiers spread over the epochs.
    peak_memory : int or None
        Bytes: of the device on CUDA, else of the whole process. None where that cannot be read.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    seconds_once: float
    seconds_per_epoch: float
    peak_memory: int | None

    @property
    def seconds(self) -> float:
        """Of the whole part."""
        return self.seconds_once + self.epochs * self.seconds_per_epoch


@dataclass(frozen=True, repr=False)
class CostEstimate:
    """What a fit is expected to cost; ``print(estimate)`` says it in words.

    Attributes
    ----------
    stages : tuple of StageCost
        In the order in which they run; those that are not due are left out.
    device : str
    precision : str
    n_cells : int
    image_shape : tuple of int
    base_width : int
    """

    stages: tuple[StageCost, ...]
    device: str
    precision: str
    n_cells: int
    image_shape: tuple[int, ...]
    base_width: int

    def __getitem__(self, name: str) -> StageCost:
        return {stage.name: stage for stage in self.stages}[name]

    @property
    def seconds(self) -> float:
        """Of the whole fit."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_memory(self) -> int | None:
        """Largest of the stages, in bytes; None where it cannot be read."""
        return max((stage.peak_memory for stage in self.stages if stage.peak_memory is not None), default=None)

    @property
    def steps(self) -> int:
        """Optimisation steps of stages 1 and 2."""
        return sum(stage.epochs * stage.steps_per_epoch for stage in self.stages)

    def with_epochs(self, **epochs: int) -> Self:
        """Return the estimate for other numbers of epochs, without measuring again.

        Parameters
        ----------
        **epochs : int
            By name of the stage: ``pretraining=50, batch_removal=100``.

        Returns
        -------
        estimate : CostEstimate

        Raises
        ------
        ValueError
            For a stage that is not in this estimate.
        """
        if unknown := set(epochs) - {stage.name for stage in self.stages if stage.steps_per_epoch}:
            raise ValueError(f"no epochs of {', '.join(sorted(unknown))} in this estimate")
        return replace(self, stages=tuple(replace(s, epochs=epochs.get(s.name, s.epochs)) for s in self.stages))

    @property
    def advice(self) -> str:
        """What to do where the fit would take long on a CPU, else nothing."""
        if self.seconds < LONG or self.device != "cpu":
            return ""
        smaller = [f"PRESETS[{name!r}]" for name, p in PRESETS.items() if p["base_width"] < self.base_width]
        less = f"; the smaller sizes {' or '.join(smaller)}" if smaller else "; fewer epochs"
        side = self.image_shape[0]
        halved = f"; images of {side // 2} pixels instead of {side} take about a quarter" if side > 32 else ""
        return (
            f"On this CPU that is {self.seconds / 86400:.1f} days. What takes less: a CUDA card{less}{halved}. "
            "checkpoint_dir lets a fit go on after it was stopped."
        )

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        lines = [f"Estimated on {self.device} in {self.precision}, {self.n_cells:,} cells of {shape} pixels:"]
        for stage in self.stages:
            extent = ""
            if stage.steps_per_epoch:
                extent = f"{_counted(stage.epochs, 'epoch')} of {_counted(stage.steps_per_epoch, 'step')}"
            lines.append(f"  {stage.name.replace('_', ' '):<18} {extent:<28} {duration(stage.seconds):>10}")
        memory = "" if self.peak_memory is None else f", at most {self.peak_memory / 2**30:.1f} GiB of memory"
        where = "" if self.device == "cpu" or not memory else " on the device"
        lines.append(f"  {'in all':<18} {'':<28} {duration(self.seconds):>10}{memory}{where}")
        return "\n".join([*lines, *([self.advice] if self.advice else [])])

    __repr__ = __str__


def estimate(
    config: Config,
    dataset: CellDataset,
    *,
    removes: bool,
    reference: int = 0,
    earlier: FittedModel | None = None,
    checks_took: float = 0.0,
) -> CostEstimate:
    """Measure a few steps of each stage that is due and return what the whole will take.

    Parameters
    ----------
    config : Config
    dataset : CellDataset
    removes : bool
        Whether stages 2 and 3 are due.
    reference : int, default=0
    earlier : FittedModel, optional
        What a warm start goes on from.
    checks_took : float, default=0.0
        Seconds that the checks of the input took.
    """
    # No files and no compilation: what is measured leaves nothing behind.
    runtime = replace(config.runtime, checkpoint_dir=None, compile=False, callback=None, verbose=0)
    with undisturbed():
        return _Measurement(replace(config, runtime=runtime), dataset, reference, earlier).run(removes, checks_took)


class _Measurement:
    """The stages of a fit, begun and not run."""

    def __init__(self, config: Config, dataset: CellDataset, reference: int, earlier: FittedModel | None) -> None:
        began = time.perf_counter()
        self.config, self.dataset = config, dataset
        self.stages = Stages(config, dataset, np.arange(len(SEEDS)), None, reference, earlier)
        cells, self.validation = self.stages._cells()
        self.n_cells, self.cells = len(cells), cells.known  # of streamed cells some are looked at
        self.preparation = time.perf_counter() - began
        self.device = self.stages.device
        self.rng = new_rng(0)

    def run(self, removes: bool, checks_took: float) -> CostEstimate:
        """Return the estimate."""
        parts = []
        start = self.stages.start
        if start is None or not removes:
            stage, start = self._pretraining(start)
            parts.append(stage)
        if removes:
            parts += self._removal(start)
        parts.insert(0, self._once(start, checks_took))
        return CostEstimate(
            tuple(parts),
            str(self.device),
            str(self.stages.dtype).removeprefix("torch."),
            len(self.dataset.bf),
            tuple(self.dataset.bf.shape[1:]),
            self.config.architecture.base_width,
        )

    # Stages -------------------------------------------------------------------------------------------------------

    def _pretraining(self, start: Start | None) -> tuple[StageCost, Start]:
        stage, seeds = self.config.pretraining, self.stages.seeds
        engine = self.stages._engine({name: seeds[name] for name in ("weights", "order", "dropout")})
        with _Memory(self.device) as memory:
            plan = pretraining.build(self.config, self.cells, None, engine, start)
            per_epoch = self._epoch(plan, stage.minibatch_size, stage.steps_per_epoch)
        n_steps = n_minibatches(self.n_cells, stage.minibatch_size, stage.steps_per_epoch)
        cost = StageCost(plan.name, stage.epochs, n_steps, 0.0, per_epoch, memory.peak)
        return cost, Start(to_numpy(plan.generator), to_numpy(plan.discriminator))

    def _removal(self, start: Start) -> list[StageCost]:
        config, removal = self.config, self.config.removal
        with _Memory(self.device) as memory:
            module = importlib.import_module(removal.method.plan)
            once, renewal = self._around_epochs(module, start)
            plan = self._plan(module, start, self._some(4 * removal.minibatch_size), 1)
            plan.begin_epoch(0, self._some(2))
            per_epoch = self._epoch(plan, removal.minibatch_size, removal.steps_per_epoch)
        n_steps = n_minibatches(self.n_cells, removal.minibatch_size, removal.steps_per_epoch)
        per_epoch += renewal / removal.refresh_epochs
        costs = [StageCost(plan.name, removal.epochs, n_steps, once, per_epoch, memory.peak)]
        if config.removal.method.aligns_profile:
            costs.append(self._alignment(Start(to_numpy(plan.generator), {}), removal.epochs * n_steps))
        return costs

    def _around_epochs(self, module: Any, start: Start) -> tuple[float, float]:
        """Return the seconds before the first epoch of stage 2, and those of each renewal of classifiers."""
        removal, n = self.config.removal, len(self.cells)
        size = removal.minibatch_size
        # Batch styles pass over all cells; networks are built whatever the cells.
        few, more = self._some(256), self._some(512)
        building = _line(
            len(few),
            self._timed(lambda: self._plan(module, start, few, 1)),
            len(more),
            self._timed(lambda: self._plan(module, start, more, 1)),
            n,
        )
        published = isinstance(removal.method, PublishedRemoval)
        known = min(n, getattr(module, "KNOWN_CELLS", n))
        warm, read = self._some(size), self._some(min(known, _SAMPLE))
        if published:  # one epoch of each classifier, and three: the epochs of all classifiers are much alike
            passes = n / len(warm)
            times = [self._fitting(module, start, warm, epochs, size) for epochs in (1, 3)]
            slopes = [max(0.0, (three - one) / 2) for one, three in zip(*times, strict=True)]
            once, renewal = (
                passes * (one + slope * (removal.classifier_epochs - 1))
                for one, slope in zip(times[0], slopes, strict=True)
            )
            return building + once, renewal
        seen = n if removal.steps_per_epoch is None else removal.steps_per_epoch * size
        plan = self._plan(module, start, warm, removal.classifier_epochs)
        plan.begin_epoch(0, self._some(2))
        once = self._timed(lambda: plan.begin_epoch(0, warm)) * (seen // size if seen >= size else 1)
        renewal = self._timed(lambda: plan.begin_epoch(removal.refresh_epochs, read)) * known / len(read)
        return building + once, renewal

    def _fitting(self, module: Any, start: Start, cells: Cells, epochs: int, size: int) -> tuple[float, float]:
        plan = self._plan(module, start, cells, epochs)
        first = self._timed(lambda: plan.begin_epoch(0, cells))
        return first, self._timed(lambda: plan.begin_epoch(self.config.removal.refresh_epochs, cells))

    def _plan(self, module: Any, start: Start, cells: Cells, classifier_epochs: int) -> Plan:
        # An epoch of few cells is one pass over them.
        removal = replace(self.config.removal, steps_per_epoch=None, classifier_epochs=classifier_epochs)
        seeds = self.stages.seeds
        names = {"order": "removal order", "dropout": "removal dropout", "classifiers": "classifiers"}
        engine = self.stages._engine({name: seeds[seed] for name, seed in names.items()})
        plan: Plan = module.build(replace(self.config, removal=removal), cells, self.stages.design, engine, start)
        return plan

    def _alignment(self, start: Start, removal_steps: int) -> StageCost:
        config, n = self.config, len(self.cells)
        engine = self.stages._engine({"classifiers": 0})
        with _Memory(self.device) as memory:
            plan = profile.build(config, self.cells, self.stages.design, engine, start)
            read = self._some(min(n, _SAMPLE))
            positions = torch.arange(len(read))
            per_read = self._seconds(lambda: plan._read(positions, plan._encode, of=read)) / len(read)
            n_aligned = min(n, profile.FEATURE_CELLS)
            n_held_out = 0 if self.validation is None else min(len(self.validation), profile.FEATURE_CELLS)
            seconds = per_read * (plan.n_views * n_aligned + n_held_out)
            chosen = torch.randperm(n, generator=self.rng)[:n_aligned]
            batch, cell_type = (codes[chosen.to(self.device)] for codes in (self.cells.batch, self.cells.cell_type))
            if plan.matching > 0 and group_members(batch, cell_type):
                seconds += self._matching(plan, read, batch, cell_type, min(config.profile.steps, removal_steps))
            if plan._erases:
                seconds += self._erasure(plan)
        peak = memory.peak
        if peak is not None:  # features of all orientations, which were read of some cells only
            peak += plan.n_views * n_aligned * config.architecture.n_features * 4
        return StageCost(plan.name, 0, 0, seconds, 0.0, peak)

    def _matching(self, plan: Any, read: Cells, batch: torch.Tensor, cell_type: torch.Tensor, steps: int) -> float:
        known = plan._read(torch.arange(len(read)), plan._encode, of=read)
        features = known[torch.randint(len(known), (len(batch),), generator=self.rng).to(known.device)]
        settings, rng = self.config.profile, self.rng
        began = time.perf_counter()
        principal = profile.principal_map(features, settings.floor, settings.hidden, rng)
        once = time.perf_counter() - began
        if principal is None or steps < 1:
            return once
        weights = {"matching": plan.matching, "correction": settings.correction, "cell_type": settings.cell_type}
        fit = profile.ProfileFit(
            settings, weights, principal, features[None], batch, cell_type, plan.engine.apart(), rng
        )
        return once + steps * self._seconds(lambda: fit.step(0.25))

    def _erasure(self, plan: Any) -> float:
        n = len(self.cells)
        values, shown = self.cells.side**2 * self.cells.out_channels, min(n, plan._n_images)
        some = self._some(min(shown, 256))
        began = time.perf_counter()
        images = plan._read(torch.arange(len(some)), lambda part: plan.generator(part.source)[0], of=some)
        reading = (time.perf_counter() - began) * shown / len(some)
        repeated = images[torch.randint(len(images), (min(shown, 512),), generator=self.rng).to(images.device)]
        noisy = repeated + 1e-3 * torch.randn(repeated.shape, generator=self.rng).to(repeated)
        labels = torch.arange(len(noisy), device=noisy.device)
        taken = self._timed(lambda: fit_erasure(noisy, labels % 2, torch.zeros_like(labels)))
        # Most of it is an eigendecomposition.
        return reading + taken * (min(shown, values) / min(len(noisy), values)) ** 3

    def _once(self, start: Start, checks_took: float) -> StageCost:
        """Checks and standardisation, the population statistics, and the checks of what was learned."""
        engine = self.stages._engine({"dropout": 0, "order": 0})
        generator, _ = pretraining.networks_of(start, self.config.architecture, self.cells, engine)
        cells = self._some(max(64, self.config.removal.minibatch_size))
        source = cells.take(torch.arange(len(cells))).source

        def run(network: Callable[[torch.Tensor], Any]) -> float:
            with torch.no_grad(), engine.autocast(), untracked(generator):
                return self._seconds(lambda: network(source)) / len(source)

        whole, encoder = run(generator), run(generator.encode)
        checked = min(len(self.cells), MAX_CHECKED)
        seconds = checks_took + self.preparation + len(self.cells) * whole + checked * (whole + encoder)
        return StageCost("checks", 0, 0, seconds, 0.0, None)

    # Parts of them ------------------------------------------------------------------------------------------------

    def _epoch(self, plan: Plan, size: int, steps_per_epoch: int | None) -> float:
        """Return the seconds of an epoch: steps, validation, and the copies of the networks."""
        sampler = Sampler(len(self.cells), size, plan.engine.rngs["order"], steps=1)
        known = len(self._some(4 * size))  # the plan was built on these

        def step() -> None:
            for positions in sampler.epoch():
                minibatch = self.cells.take(positions)
                plan.step(replace(minibatch, position=positions.to(minibatch.batch.device) % known), 0.5)

        began = time.perf_counter()
        copies = [{name: snapshot(network) for name, network in plan.networks.items()}, plan.candidate()]
        copying = time.perf_counter() - began
        step()  # the first one allocates
        first = self._timed(step)
        for _ in range(min(16, int(_LONGEST / max(first, 1e-6)))):  # until the alignment's memory of features is full
            step()
        seconds = n_minibatches(self.n_cells, size, steps_per_epoch) * self._seconds(step, first) + copying
        if self.validation is not None:
            held_out = self.validation
            positions = torch.arange(min(len(held_out), max(size, 64)))
            part = self._seconds(lambda: plan.validate(held_out.take(positions)))
            seconds += part * len(held_out) / len(positions)
        del copies
        return seconds

    def _some(self, n: int) -> Cells:
        """Return so many of the training cells, or all there are."""
        whole, data = self.cells, self.dataset
        return Cells(whole.bf, whole.target, data.batch, data.cell_type, whole.rows[: max(2, n)])

    def _timed(self, call: Callable[[], Any]) -> float:
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - began

    def _seconds(self, call: Callable[[], Any], first: float | None = None) -> float:
        """Return the seconds of a call: the median of three blocks of calls, or of one where they are long."""
        if first is None:
            call()
            first = self._timed(call)
        n = max(1, min(20, int(_BLOCK / max(first, 1e-6))))
        blocks = [self._timed(lambda: [call() for _ in range(n)]) / n for _ in range(3 if first < _LONGEST else 1)]
        return float(np.median(blocks))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _line(few: int, first: float, more: int, second: float, n: int) -> float:
    """Return the value at `n` of the line through two measurements, which does not fall."""
    slope = max(0.0, second - first) / (more - few) if more > few else 0.0
    return first + slope * (n - few)


class _Memory:
    """The peak of memory while something runs: that of a CUDA device, or of the process, looked at now and then."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.peak = device, _resident()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.peak is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak or 0, _resident() or 0)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)


def _resident() -> int | None:
    """Return the resident memory of this process in bytes: on Linux, and elsewhere where psutil is installed."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        import resource

        return int(statm.read_text().split()[1]) * resource.getpagesize()
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)

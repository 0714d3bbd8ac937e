"""Fits that one process does alone or several do together: what test_parallel.py compares."""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from skbegan import PUBLISHED, BeGANTransformer, OnlineRemoval
from skbegan.core.networks import generator_of
from skbegan.core.plans.pretraining import PretrainingPlan
from skbegan.data import stream
from skbegan.data.source import ImageSource
from skbegan.datasets import make_cell_images

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "base_width": 4,
    "n_features": 16,
    "pretrain_epochs": 2,
    "removal_epochs": 3,
    "refresh_epochs": 2,
    "classifier_epochs": 2,
    "minibatch_size": 16,
    "device": "cpu",
    "precision": "float64",
    "random_state": 0,
}
# Every loss and every draw that there is, also those that are off by default.
EVERYTHING: dict[str, Any] = TINY | {
    "learning_rate": 2e-4,
    "adversarial_weight": 0.1,
    "batch_image_weight": 1.0,
    "removal": OnlineRemoval(
        learning_rate=2e-4, warmup_epochs=1, target_style="transferred", adversary_steps=2, instrument_share=0.5
    ),
}
AS_PUBLISHED: dict[str, Any] = PUBLISHED | TINY | {"removal": PUBLISHED["removal"], "augment": True}
STAGE_1: dict[str, Any] = TINY | {"removal_epochs": 0, "precision": "float32"}


def cells() -> Any:
    return make_cell_images(90, 3, 3, 16, batches_per_type=2, random_state=0)


def fit(parameters: dict[str, Any], of: Any = None, **changes: Any) -> dict[str, Any]:
    """Fit, and return what is to be compared."""
    data = cells() if of is None else of
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        est = BeGANTransformer(**parameters | changes).fit(data.bf, data.qpi, data.batch, data.cell_type)
    model = est._model
    assert model is not None
    generator = generator_of(model.weights, CPU, torch.float64).eval()
    bf = ImageSource(cells().bf, model.bf_scaling, CPU, torch.float64).take(slice(None))
    with torch.no_grad():
        features = generator.encode(bf)[0].numpy()
    return {
        "history": est.history_,
        "weights": model.weights,
        "features": features,
        "profiles": est.transform(cells().bf),
        "warnings": [str(warning.message) for warning in caught],
    }


class Stopped(Exception):
    pass


class StopsAfter:
    """A callback that ends the fit with an error after an epoch of a stage."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.last = stage, epoch

    def __call__(self, info: Any) -> bool:
        if (info.stage, info.epoch) == self.last:
            raise Stopped
        return False


def begin(folder: Path, stage: str, epoch: int) -> None:
    """Leave the checkpoint of a fit that was stopped after an epoch."""
    try:
        fit(EVERYTHING, checkpoint_dir=folder, callback=StopsAfter(stage, epoch))
    except Stopped:
        return
    raise AssertionError("the fit was not stopped")


def refusal(parameters: dict[str, Any], **changes: Any) -> str:
    try:
        fit(parameters, **changes)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


class AtStep:
    """Within it, something happens at one step of stage 1."""

    def __init__(self, number: int, what: Callable[[Any], Any]) -> None:
        self.left, self.what, self.step = number, what, PretrainingPlan.step

    def __enter__(self) -> None:
        def step(plan: PretrainingPlan, minibatch: Any, progress: float) -> Any:
            self.left -= 1
            return self.step(plan, self.what(minibatch) if self.left == 0 else minibatch, progress)

        PretrainingPlan.step = step  # type: ignore[method-assign]

    def __exit__(self, *_: Any) -> None:
        PretrainingPlan.step = self.step  # type: ignore[method-assign]


def ctrl_c(minibatch: Any) -> Any:
    signal.raise_signal(signal.SIGINT)
    return minibatch


def not_finite(minibatch: Any) -> Any:
    return replace(minibatch, source=minibatch.source * torch.nan)


# Jobs: of the number of the process and a folder ----------------------------------------------------------------------


def everything(rank: int, folder: Path) -> Any:
    return fit(EVERYTHING)


def unknown_types(rank: int, folder: Path) -> Any:
    """The types of some cells are not known, more of them in one half of a minibatch than in the other."""
    some = cells()
    some.cell_type = np.where(np.arange(90) % 4 > 0, some.cell_type.astype(object), None)
    return fit(EVERYTHING, of=some, pretrain_epochs=1, removal_epochs=2)


def published(rank: int, folder: Path) -> Any:
    return fit(AS_PUBLISHED)


def resumed(rank: int, folder: Path) -> Any:
    return fit(EVERYTHING, checkpoint_dir=folder / "begun")


class Stored:
    """Images in blocks of ten, none of which is to be read for a single cell."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.shape, self.dtype = pixels, pixels.shape, pixels.dtype

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]

    def blocks(self) -> np.ndarray:
        return np.append(np.arange(0, len(self.pixels), 10), len(self.pixels))

    def fingerprint(self) -> str:
        return "stored"


def streamed(rank: int, folder: Path) -> Any:
    """Cells that do not fit into memory, as far as the fit is told."""
    data, before = cells(), stream.BUFFER_BYTES
    stream.BUFFER_BYTES = 1
    try:
        data.bf, data.qpi = Stored(data.bf), Stored(data.qpi)
        return fit(EVERYTHING, of=data, steps_per_epoch=3)
    finally:
        stream.BUFFER_BYTES = before


def stopped(rank: int, folder: Path) -> Any:
    """Only the first process has a callback."""
    return fit(STAGE_1, callback=(lambda info: True) if rank == 0 else None, random_state=None)


def failed(rank: int, folder: Path) -> Any:
    try:
        fit(STAGE_1, callback=StopsAfter("pretraining", 1) if rank == 0 else None)
    except Stopped:
        return "stopped"
    return "went on"


def refused(rank: int, folder: Path) -> Any:
    others = cells()
    if rank == 1:
        others.bf = others.bf + (np.arange(len(others.bf)) > 40)[:, None, None]
    relabelled = cells()
    if rank == 1:
        relabelled.batch = relabelled.batch[::-1].copy()
    return [
        refusal(STAGE_1, minibatch_size=15),
        refusal(STAGE_1, minibatch_size=200, validation_fraction=0.1),
        refusal(STAGE_1, n_features=16 + rank),
        refusal(STAGE_1, of=others),
        refusal(STAGE_1, of=relabelled),
    ]


def interrupted(rank: int, folder: Path) -> Any:
    """Ctrl-C reaches one process, in the second epoch."""
    with AtStep(7 if rank == 1 else -1, ctrl_c):
        return fit(STAGE_1, pretrain_epochs=4)


def diverged(rank: int, folder: Path) -> Any:
    """One process meets numbers that are not finite."""
    with AtStep(7 if rank == 1 else -1, not_finite):
        return fit(STAGE_1)


def local(rank: int, folder: Path) -> Any:
    os.environ["SKBEGAN_PARALLEL"] = "local"
    try:
        return fit(STAGE_1)
    finally:
        del os.environ["SKBEGAN_PARALLEL"]


def cached(rank: int, folder: Path) -> Any:
    told: list[Any] = []
    found = [fit(STAGE_1, memory=folder / "cache", callback=lambda info: told.append(info)) for _ in range(2)]
    return {"fits": found, "epochs told": len(told)}


_EQUAL = (everything, unknown_types, published, resumed, streamed)
ALL = (*_EQUAL, stopped, failed, refused, interrupted, diverged, local, cached)


# Starting them --------------------------------------------------------------------------------------------------------


def _work(rank: int, world: int, folder: Path, jobs: tuple[Callable[[int, Path], Any], ...]) -> None:
    torch.set_num_threads(1)
    meeting = (folder / "meeting").as_uri()
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=timeout)
    results = {job.__name__: job(rank, folder) for job in jobs}
    (folder / f"results-{rank}").write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


def together(folder: Path, jobs: tuple[Callable[[int, Path], Any], ...], world: int = 2, limit: float = 300) -> Any:
    """Let several processes do jobs together; return the results of each, by name of the job."""
    context = mp.spawn(_work, (world, folder, jobs), nprocs=world, join=False)
    end = time.monotonic() + limit
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < end, f"not done within {limit} s"
    finally:
        for process in context.processes:
            process.kill()
    return [pickle.loads((folder / f"results-{rank}").read_bytes()) for rank in range(world)]

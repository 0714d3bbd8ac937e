"""Kill fits at random moments and resume them, and let two fits share a folder: nothing may be lost or change a bit.

``python tests/slow/kill_and_resume.py 1000 --pairs 30`` kills a running fit with a checkpoint folder 1,000 times, in
turn of both ways to remove the batch, each time at a moment drawn at random. The same fit is then started again, as a
user would, and killed again, until one gets to its end; its weights, features, images and history are compared bit for
bit with those of a fit that nobody disturbed. A pair is two fits of the same data and parameters that run at the same
time in one folder, and so write and remove the same files. Prints the figures and exits 1 if anything differed.

Only kills of a process that is inside ``fit`` count. Which stage it was in is told by the fit's callback.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # children find goldens.py by it, too

import goldens

METHODS: dict[str, dict[str, Any]] = {"online": goldens.TINY, "published": goldens.TINY_PUBLISHED}
STAGES = ("pretraining", "batch_removal", "profile_alignment")
LATEST = 1.2  # a kill may come as late as this share of the time that a whole fit takes
AIMED = 0.2  # share of the kills that wait for a checkpoint to be written
PATIENCE = 300.0  # seconds: a fit of one second that takes longer hangs
IDLE, RUNNING, DONE = 0, 1, 2


def _context() -> Any:
    # A server that has everything imported makes a child in milliseconds; Windows has none, and starts Python anew.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    plans = [f"skbegan.core.plans.{name}" for name in ("pretraining", "online", "published", "profile")]
    context.set_forkserver_preload(["skbegan.estimator", "skbegan.fit", *plans, "skbegan.datasets", "torch._dynamo"])
    return context


def _child(method: str, folder: str, result: str, state: Any, stage: Any, before: Any) -> None:
    """Fit in `folder` and write the numbers to the file `result`; `state` and `stage` are memory that is shared."""
    import torch
    from tqdm import tqdm

    from skbegan import BeGANTransformer

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # else a process that is killed leaves the system's semaphores behind
    parameters = METHODS[method]
    cells = goldens._cells()

    def note(info: Any) -> None:
        last = info.epoch == info.epochs
        stage.value = STAGES.index(info.stage) + last

    est = BeGANTransformer(**parameters, checkpoint_dir=folder or None, callback=note)
    if before is not None:
        before.wait(PATIENCE)  # both fits of a pair begin together
    state.value = RUNNING
    goldens._fit(est, cells)
    state.value = DONE
    numbers = goldens._numbers(est, cells) | {"events": np.array(est.history_["events"], dtype=np.str_)}
    draft = Path(f"{result}.draft.npz")
    np.savez(draft, **numbers)
    draft.replace(result)


@dataclass
class Fit:
    """A fit in a process of its own."""

    context: Any
    method: str
    folder: str
    result: Path
    barrier: Any = None
    state: Any = field(init=False)
    stage: Any = field(init=False)
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        self.state, self.stage = self.context.RawValue("i", IDLE), self.context.RawValue("i", 0)
        arguments = (self.method, self.folder, str(self.result), self.state, self.stage, self.barrier)
        self.process = self.context.Process(target=_child, args=arguments, daemon=True)
        self.process.start()

    def wait_until_it_runs(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.state.value == IDLE and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)

    def kill_after(self, seconds: float, in_a_write: bool = False) -> bool:
        """Kill it so many seconds from now unless it ends before; return whether it was inside ``fit`` then.

        With `in_a_write` as soon as a checkpoint is being written from then on.
        """
        self.process.join(seconds)
        if in_a_write:
            folder = Path(self.folder)
            known = _drafts(folder)
            while self.process.is_alive() and self.state.value == RUNNING and _drafts(folder) <= known:
                pass
        if not self.process.is_alive():
            return False
        self.process.kill()  # SIGKILL; TerminateProcess on Windows
        self.process.join()
        killed = self.process.exitcode == -signal.SIGKILL if os.name == "posix" else self.process.exitcode != 0
        return bool(killed and self.state.value == RUNNING)

    def numbers(self) -> dict[str, np.ndarray]:
        """Wait for its end and return what it wrote."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"a fit ({self.method}) hangs")
        if self.process.exitcode != 0:
            raise AssertionError(f"a fit ({self.method}) failed with exit code {self.process.exitcode}")
        with np.load(self.result, allow_pickle=False) as file:
            return dict(file)


@dataclass
class Figures:
    """What was done and seen."""

    kills: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)  # method, stage
    fits: int = 0  # that were killed at least once, and got to their end
    drafts: int = 0  # kills that came while a checkpoint was being written
    resumed: int = 0  # starts that found a checkpoint
    pairs: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def n_kills(self) -> int:
        return sum(self.kills.values())

    def __str__(self) -> str:
        by_stage = {stage: sum(n for (_, s), n in self.kills.items() if s == stage) for stage in STAGES}
        by_method = {method: sum(n for (m, _), n in self.kills.items() if m == method) for method in METHODS}
        lines = [
            f"{self.n_kills} kills of a running fit ({_counts(by_method)}; {_counts(by_stage)}), {self.drafts} of them "
            "while a checkpoint was being written",
            f"{self.fits} fits got to their end after kills, {self.resumed} times from a checkpoint",
            f"{self.pairs} pairs of fits shared a folder",
            f"{len(self.wrong)} wrong",
        ]
        return "\n".join([*lines, *self.wrong])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def differing(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[str]:
    """Names of what is not equal to the bit."""
    names = sorted(expected.keys() | found.keys())
    return [
        name
        for name in names
        if name not in expected
        or name not in found
        or expected[name].dtype.kind != found[name].dtype.kind
        or expected[name].shape != found[name].shape
        or expected[name].tobytes() != found[name].tobytes()
    ]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Attack:
    """The fits, and the undisturbed ones that they are compared with."""

    def __init__(self, seed: int = 0) -> None:
        self.context = _context()
        self.rng = np.random.default_rng(seed)
        self.figures = Figures()
        self.scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.expected, self.seconds = {}, {}
        for method in METHODS:
            fit = Fit(self.context, method, "", Path(self.scratch.name) / "expected.npz")
            fit.wait_until_it_runs()
            start = time.monotonic()
            self.expected[method] = fit.numbers()
            self.seconds[method] = time.monotonic() - start

    def kill(self, method: str, at_most: int) -> None:
        """Kill one fit, and those that go on from it, until one gets to its end or `at_most` were killed."""
        figures, n_before = self.figures, self.figures.n_kills
        with tempfile.TemporaryDirectory() as name:
            folder, result = Path(name) / "checkpoints", Path(name) / "result.npz"
            while not result.exists():
                known = folder.is_dir() and any(path.suffix == ".pt" for path in folder.iterdir())
                drafts = _drafts(folder)
                fit = Fit(self.context, method, str(folder), result)
                fit.wait_until_it_runs()
                figures.resumed += known
                spared = figures.n_kills - n_before >= at_most
                seconds = PATIENCE if spared else self.rng.uniform(0, LATEST) * self.seconds[method]
                aimed = not spared and self.rng.random() < AIMED
                if fit.kill_after(seconds / (2 if aimed else 1), aimed):
                    figures.kills[method, STAGES[min(fit.stage.value, 2)]] += 1
                    figures.drafts += _drafts(folder) > drafts
                elif fit.state.value != DONE:
                    figures.wrong.append(f"{method}: a fit failed with exit code {fit.process.exitcode}")
                    return
            with np.load(result, allow_pickle=False) as file:
                self._compare(method, dict(file), f"after {figures.n_kills - n_before} kills")
            figures.fits += figures.n_kills > n_before
            kept = [path for path in left_in(folder) if path.endswith(".pt")]
            if kept:
                figures.wrong.append(f"{method}: left {kept}")

    def pair(self, method: str) -> None:
        """Run two fits at the same time in one folder."""
        self.figures.pairs += 1
        with tempfile.TemporaryDirectory() as name:
            folder, barrier = Path(name) / "checkpoints", self.context.Barrier(2)
            fits = [Fit(self.context, method, str(folder), Path(name) / f"{i}.npz", barrier) for i in range(2)]
            for fit in fits:
                try:
                    self._compare(method, fit.numbers(), "beside another fit")
                except AssertionError as error:
                    self.figures.wrong.append(f"pair: {error}")
            if left := left_in(folder):
                self.figures.wrong.append(f"pair ({method}): left {left}")

    def _compare(self, method: str, numbers: dict[str, np.ndarray], what: str) -> None:
        if names := differing(self.expected[method], numbers):
            self.figures.wrong.append(f"{method} {what}: other {', '.join(names)}")


def _drafts(folder: Path) -> int:
    try:
        return sum(name.endswith(".tmp") for name in os.listdir(folder))  # noqa: PTH208 (in a hurry)
    except FileNotFoundError:
        return 0


def attack(n_kills: int, n_pairs: int, seed: int = 0, seconds: float = float("inf"), verbose: bool = False) -> Figures:
    """Kill so many times, run so many pairs, or stop after so many seconds; return the figures."""
    start = time.monotonic()
    attacked = Attack(seed)
    figures, methods = attacked.figures, list(METHODS)
    while figures.pairs < n_pairs and time.monotonic() - start < seconds:
        attacked.pair(methods[figures.pairs % 2])
    for turn in range(10**9):
        if figures.n_kills >= n_kills or time.monotonic() - start >= seconds or len(figures.wrong) > 20:
            break
        attacked.kill(methods[turn % 2], n_kills - figures.n_kills)
        if verbose and turn % 20 == 0:
            print(f"{time.monotonic() - start:.0f} s: {figures.n_kills} kills, {len(figures.wrong)} wrong", flush=True)
    return figures


def main() -> None:
    """Read the numbers from the command line and attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, metavar="N")
    parser.add_argument("--pairs", type=int, default=0, metavar="M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    arguments = parser.parse_args()
    figures = attack(arguments.kills, arguments.pairs, arguments.seed, arguments.seconds, verbose=True)
    print(figures)
    sys.exit(bool(figures.wrong))


if __name__ == "__main__":
    main()

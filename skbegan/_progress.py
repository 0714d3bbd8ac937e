"""Progress: a bar where somebody watches, a line of the log now and then where the output goes to a file."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

LOGGER = logging.getLogger("skbegan")
N_LINES = 10  # of work that has no epochs


class Progress:
    """Progress of one stage of some work; a context manager.

    In a terminal and in a notebook it is a bar of :mod:`tqdm.auto`, with the time left. Elsewhere it is lines of the
    logger ``"skbegan"``, at level INFO: one per epoch, see :meth:`epoch`, or one per tenth of the work. They go to
    standard error where the program has not set up logging, and where it has, to where that says. Nothing is printed.

    Parameters
    ----------
    name : str
        Of the stage.
    total : int
        Parts of the work.
    unit : str, default="step"
        What a part is called.
    initial : int, default=0
        Parts that were done before.
    verbose : int, default=0
        0 shows nothing.
    has_epochs : bool, default=False
        Whether :meth:`epoch` is called, so that lines are written there and not at each tenth.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        unit: str = "step",
        initial: int = 0,
        verbose: int = 0,
        has_epochs: bool = False,
    ) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, initial
        self._has_epochs = has_epochs
        self._bar: Any = None
        self._logs = verbose > 0 and not is_watched()
        if verbose > 0 and not self._logs:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=initial, desc=name, unit=unit)
        # Since when the pace is measured, and what was done then.
        self._since, self._from, self._n_lines = time.monotonic(), initial, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, n: int = 1) -> None:
        """Say that `n` more parts are done."""
        before, self.done = self.done, self.done + n
        if self._bar is not None:
            self._bar.update(n)
        elif self._logs and not self._has_epochs and self.done * N_LINES // self.total > before * N_LINES // self.total:
            self._line(f"{self.done} of {self.total} {self.unit}s")

    def reach(self, done: int) -> None:
        """Say that so many parts are done, if they are more than was said before."""
        if done > self.done:
            self.update(done - self.done)

    def extend(self, n: int) -> None:
        """Say that there are `n` more parts than was thought."""
        self.total += n
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.refresh()

    def epoch(self, epoch: int, epochs: int, figures: dict[str, float]) -> None:
        """Say that an epoch, counted from 1, is done, and what it gave."""
        shown = {name: f"{value:.3g}" for name, value in figures.items()}
        if self._bar is not None:
            self._bar.set_postfix(shown)
        elif self._logs:
            self._line(", ".join([f"epoch {epoch} of {epochs}", *(f"{name} {value}" for name, value in shown.items())]))

    def _line(self, text: str) -> None:
        now, n_new = time.monotonic(), self.done - self._from
        if n_new > 0 and self.done < self.total:
            text += f", {duration((now - self._since) / n_new * (self.total - self.done))} left"
        if self._n_lines == 0:  # what a stage does before its first epoch says nothing of the others
            self._since, self._from = now, self.done
        self._n_lines += 1
        log(f"{self.name}: {text}")


def log(message: str) -> None:
    """Write an INFO line through the program's logging, or to standard error where it has set up none.

    Somebody has asked for it, by `verbose`: the level of the root logger, WARNING by default, does not hold it back. A
    level of the logger ``"skbegan"`` does.
    """
    if LOGGER.level > logging.INFO or LOGGER.manager.disable >= logging.INFO:
        return
    record = LOGGER.makeRecord(LOGGER.name, logging.INFO, __file__, 0, message, (), None)
    if LOGGER.hasHandlers():
        LOGGER.handle(record)
    elif sys.stderr is not None:
        logging.StreamHandler().handle(record)


def is_watched() -> bool:
    """Whether a bar can be seen: in a notebook, or where standard error is a terminal."""
    from tqdm.auto import tqdm

    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def duration(seconds: float) -> str:
    """Return a time as it is said: ``"40 s"``, ``"12 min"``, ``"3.5 hours"``, ``"9 days"``."""
    for size, unit, below in ((1.0, "s", 90), (60.0, "min", 90), (3600.0, "hours", 36)):
        if seconds < below * size:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds / 86400)} days"


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if 0.05 <= number < 9.95 else f"{number:.0f}"

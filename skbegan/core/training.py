"""The one loop that both stages share.

A stage knows what one step is; the loop knows epochs, validation, snapshots of the best generator, the history of
losses, progress, resuming and what to do when a loss is no longer finite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from skbegan.core.data import Cells, Minibatch
from skbegan.core.device import Adam
from skbegan.core.networks import Generator

History = dict[str, list[float]]
MAX_ROLLBACKS = 3


class EpochInfo(NamedTuple):
    """What a callback is told after an epoch: its number counts from 1, `epochs` are the stage's."""

    stage: str
    epoch: int
    epochs: int
    losses: dict[str, float]


Callback = Callable[[EpochInfo], bool | None]


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    generator: Generator
    networks: dict[str, nn.Module]  # everything that a step may move or that a resumed run needs

    @property
    def optimizers(self) -> dict[str, Adam]:
        """The optimizers that a resumed run needs."""

    rngs: dict[str, torch.Generator]  # its sources of randomness
    events: list[str]  # what happened that a user should know

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        """Do what is due before an epoch, such as refreshing adversaries."""

    def step(self, cells: Minibatch, progress: float) -> dict[str, Tensor]:
        """Train on one minibatch; `progress` runs from 0 to 1 over the stage. Losses stay on the device."""

    def validate(self, cells: Minibatch) -> dict[str, Tensor]:
        """Return named losses of held-out cells, means over the minibatch, leaving every network as it was."""

    def candidate(self) -> dict[str, Tensor]:
        """Return a copy of the state of the generator that is kept if this epoch turns out to be the best."""

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """Return the figure whose smallest value marks the best generator; infinite where none may be chosen."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides networks, optimizers and random generators."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""

    def soften(self) -> None:
        """Forget the optimizers' momenta and halve the learning rates, after a loss was not finite."""


@contextmanager
def frozen(*networks: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Within it the networks' weights get no gradients, while gradients pass through to their inputs.

    BatchNorm is in inference mode, or with `batch_statistics` uses the minibatch's statistics; either way its moving
    statistics stay. Leaves the networks in training mode.
    """
    for network in networks:
        network.train(batch_statistics)
        network.requires_grad_(False)
    try:
        with untracked(*networks):
            yield
    finally:
        for network in networks:
            network.train()
            network.requires_grad_(True)


@contextmanager
def untracked(*networks: nn.Module) -> Iterator[None]:
    """Within it BatchNorm in training mode uses the minibatch's statistics without moving its own."""
    norms = [m for network in networks for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state that later training does not change."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


class _Sums:
    """Sums of named losses that stay on the device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0

    def add(self, losses: Mapping[str, Tensor], weight: int = 1) -> None:
        self._weight += weight
        for name, value in losses.items():
            value = value.detach() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def means(self) -> dict[str, float]:
        if not self._sums:
            return {}
        values = torch.stack([value.to(torch.float64) for value in self._sums.values()]) / self._weight
        return dict(zip(self._sums, values.tolist(), strict=True))


class Checkpoint:
    """A file from which an interrupted stage goes on; None as its path makes every call a no-op."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, state: dict[str, Any]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def read(self, stage: str) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"the checkpoint {self.path} cannot be read ({error}); delete it to train from the start"
            ) from error
        return state if state.get("stage") == stage else None

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def train(
    stage: Stage,
    cells: Cells,
    validation: Cells | None,
    *,
    epochs: int,
    minibatch_size: int,
    rng: torch.Generator,
    verbose: int = 0,
    checkpoint: Checkpoint | None = None,
    prepare: Callable[[Minibatch], Minibatch] = lambda cells: cells,
    callback: Callback | None = None,
) -> tuple[History, bool]:
    """Train a stage and leave the best generator found in it.

    Parameters
    ----------
    stage : Stage
    cells : Cells
        Training cells.
    validation : Cells or None
        Held-out cells that choose the best generator; without them the last one is kept.
    epochs, minibatch_size : int
    rng : torch.Generator
        Draws the order of the cells; a CPU generator.
    verbose : int, default=0
        Positive for a progress bar.
    checkpoint : Checkpoint, optional
        Written after every epoch; a matching one is gone on from.
    prepare : callable, optional
        Applied to every training minibatch, such as augmentation.
    callback : callable, optional
        Called after every epoch with an :class:`EpochInfo`; what it returns, if true, ends the stage.

    Returns
    -------
    history : dict of str to list of float
        One entry per epoch: ``epoch``, each training loss, and each validation loss as ``validation_NAME``.
    interrupted : bool
        Whether Ctrl-C ended the stage early. The generator is the best so far.

    Raises
    ------
    FloatingPointError
        When losses are not finite from the first epoch on, whatever the learning rate.
    """
    checkpoint = checkpoint or Checkpoint(None)
    history: History = {"epoch": []}
    best, best_merit, rollbacks, first_epoch = None, math.inf, 0, 0
    state = checkpoint.read(stage.name)
    if state is not None:
        _restore(stage, state, rng)
        history, best, best_merit = state["history"], state["best"], state["best_merit"]
        rollbacks = state["rollbacks"]
        first_epoch = epochs if state["stopped"] else state["epoch"] + 1
    last_good = {name: snapshot(network) for name, network in stage.networks.items()}
    n_steps = cells.n_minibatches(minibatch_size)
    interrupted = False
    counts = {"total": epochs * n_steps, "initial": first_epoch * n_steps}
    with tqdm(**counts, desc=stage.name, unit="step", disable=verbose <= 0) as bar:
        for epoch in range(first_epoch, epochs):
            try:
                stage.begin_epoch(epoch, cells)
                losses = _Sums()
                for index, minibatch in enumerate(cells.shuffled(minibatch_size, rng)):
                    losses.add(stage.step(prepare(minibatch), (epoch + index / n_steps) / epochs))
                    bar.update()
                held_out = _Sums()
                if validation is not None:
                    for minibatch in validation.in_order(max(minibatch_size, 64)):
                        held_out.add(stage.validate(minibatch), len(minibatch))
            except KeyboardInterrupt:
                interrupted = True
                _warn(stage, f"{stage.name}: interrupted in epoch {epoch + 1} of {epochs}; the best generator is kept")
                break
            means, held_out_means = losses.means(), held_out.means()  # the only wait for the device in an epoch
            if not all(map(math.isfinite, (*means.values(), *held_out_means.values()))):
                rollbacks += 1
                _roll_back(stage, last_good, epoch, rollbacks, [n for n, v in means.items() if not math.isfinite(v)])
                if rollbacks > MAX_ROLLBACKS:
                    if not history["epoch"]:
                        raise FloatingPointError(
                            f"{stage.name}: losses were not finite even after the learning rates were halved "
                            f"{MAX_ROLLBACKS} times; check the scale of the images (standardize=True) and lower "
                            "learning_rate or the loss weights"
                        )
                    break
                continue
            last_good = {name: snapshot(network) for name, network in stage.networks.items()}
            row = {**means, **{f"validation_{name}": value for name, value in held_out_means.items()}}
            _record(history, epoch, row)
            merit = stage.merit(held_out_means, (epoch + 1) / epochs) if held_out_means else math.nan
            if merit < best_merit:
                best, best_merit = stage.candidate(), merit
            bar.set_postfix({k: f"{v:.3g}" for k, v in (held_out_means or means).items() if k in ("image", "total")})
            wants_stop = callback is not None and bool(callback(EpochInfo(stage.name, epoch + 1, epochs, row)))
            stopped = wants_stop and epoch + 1 < epochs
            if stopped:
                stage.events.append(f"{stage.name}: stopped by the callback after epoch {epoch + 1} of {epochs}")
            if checkpoint.path is not None:
                state = _capture(stage, rng, epoch, history, best, best_merit, rollbacks)
                checkpoint.write({**state, "stopped": stopped})
            if stopped:
                break
    if best is None:
        best = last_good["generator"] if interrupted else stage.candidate()
    stage.generator.load_state_dict(best)
    return history, interrupted


def _record(history: History, epoch: int, row: dict[str, float]) -> None:
    for name in row:
        # A loss that first appears in a later epoch is not a number before.
        history.setdefault(name, [math.nan] * len(history["epoch"]))
    history["epoch"].append(epoch + 1)
    for name, values in history.items():
        if name != "epoch":
            values.append(row.get(name, math.nan))


def _warn(stage: Stage, message: str) -> None:
    stage.events.append(message)
    warnings.warn(message, RuntimeWarning, stacklevel=6)  # the caller of fit


def _roll_back(
    stage: Stage, last_good: dict[str, dict[str, Tensor]], epoch: int, rollbacks: int, names: list[str]
) -> None:
    for name, network in stage.networks.items():
        if name in last_good:
            network.load_state_dict(last_good[name])
    stage.soften()
    _warn(
        stage,
        f"{stage.name}: losses {names} were not finite in epoch {epoch + 1}; went back to the last good epoch and "
        f"halved the learning rates (time {rollbacks} of at most {MAX_ROLLBACKS})",
    )


def _capture(
    stage: Stage,
    rng: torch.Generator,
    epoch: int,
    history: History,
    best: dict[str, Tensor] | None,
    best_merit: float,
    rollbacks: int,
) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "epoch": epoch,
        "networks": {name: network.state_dict() for name, network in stage.networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()},
        "rngs": {name: source.get_state() for name, source in {"order": rng, **stage.rngs}.items()},
        "events": list(stage.events),
        "state": stage.state(),
        "history": history,
        "best": best,
        "best_merit": best_merit,
        "rollbacks": rollbacks,
    }


def _restore(stage: Stage, state: dict[str, Any], rng: torch.Generator) -> None:
    for name, network in stage.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, optimizer in stage.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    for name, source in {"order": rng, **stage.rngs}.items():
        source.set_state(state["rngs"][name])
    stage.events[:] = state["events"]
    stage.restore(state["state"])

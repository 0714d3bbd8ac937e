"""The one loop that the stages share.

A plan knows what one step is; the loop knows epochs, validation, snapshots of the best generator, the history of
losses, progress, resuming, interruption, and what to do when a loss or a weight is no longer finite.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from skbegan._progress import Progress
from skbegan.core.checkpoint import Checkpoint, check_optimizer, check_plan_state
from skbegan.core.engine import Engine, Event, new_rng
from skbegan.core.losses import History
from skbegan.core.networks import Discriminator, Generator, Weights, frozen, snapshot, to_numpy
from skbegan.core.parallel import Group, Interrupts
from skbegan.data.cells import Cells, Minibatch
from skbegan.data.sampler import Sampler, in_order
from skbegan.data.stream import StreamSampler

State = dict[str, Tensor]
AnySampler = Sampler | StreamSampler
MAX_ROLLBACKS = 3


class EpochInfo(NamedTuple):
    """What a callback gets after an epoch: its number counts from 1, `epochs` are the stage's."""

    stage: str
    epoch: int
    epochs: int
    losses: dict[str, float]


Callback = Callable[[EpochInfo], bool | None]


class Plan(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    generator: Generator
    discriminator: Discriminator
    networks: dict[str, nn.Module]  # everything that a step may move or that a resumed run needs
    engine: Engine
    events: list[Event]
    leak: float

    def begin_epoch(self, epoch: int, cells: Cells) -> None:
        """Do what is due before an epoch, such as refreshing adversaries."""

    def draws(self, n: int, progress: float) -> dict[str, Tensor]:
        """Draw, on the CPU, what a step needs for `n` cells of all processes; it travels with the cells."""

    def step(self, cells: Minibatch, progress: float) -> dict[str, Tensor]:
        """Train on one minibatch; `progress` runs from 0 to 1 over the stage. Losses stay on the device."""

    def validate(self, cells: Minibatch) -> dict[str, Tensor]:
        """Return named losses of held-out cells, means over the minibatch, leaving every network as it was."""

    def candidate(self) -> State:
        """Return a copy of the state of the generator that is kept if this epoch turns out to be the best."""

    def merit(self, losses: Mapping[str, float], progress: float) -> float:
        """Return the figure whose smallest value marks the best generator; infinite where none may be chosen."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides networks, optimizers and random generators."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned."""

    def soften(self) -> None:
        """Forget the optimizers' momenta and halve the learning rates, after a loss was not finite."""


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves: weights as numpy arrays, the history of its losses, and what happened on the way.

    Attributes
    ----------
    generator, discriminator : dict of str to ndarray
    history : dict of str to list of float
    events : list of Event
    interrupted : bool
        Whether Ctrl-C ended the stage early.
    finished : bool
        Whether all its epochs were run.
    """

    generator: Weights
    discriminator: Weights
    history: History
    events: list[Event]
    interrupted: bool = False
    finished: bool = True


@dataclass(frozen=True)
class _Reached:
    """What there is after an epoch: replaced as a whole, so that an interruption at any moment finds it consistent."""

    history: History
    good: dict[str, State]  # of all networks
    best: State | None
    best_merit: float = math.inf
    rollbacks: int = 0


class _Sums:
    """Sums of named losses that stay on the device until they are asked for; two operations for all of a step."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._weight = 0

    def add(self, losses: Mapping[str, Tensor], weight: int = 1) -> None:
        self._weight += weight
        for dtype in dict.fromkeys(value.dtype for value in losses.values()):
            names = tuple(name for name, value in losses.items() if value.dtype is dtype)
            values = torch.stack([losses[name].detach() for name in names])
            values = values if weight == 1 else values * weight
            self._sums[names] = self._sums[names] + values if names in self._sums else values

    def means(self, group: Group) -> dict[str, float]:
        if group.world == 1 and not self._sums:
            return {}
        values = torch.cat([values.to(torch.float64) for values in self._sums.values()]).tolist() if self._sums else []
        sums: dict[str, float] = {}
        for name, value in zip((name for names in self._sums for name in names), values, strict=True):
            sums[name] = sums.get(name, 0.0) + value
        if group.world == 1:
            return {name: value / self._weight for name, value in sums.items()}
        return group.mean_of(sums, self._weight)


def run_stage(
    plan: Plan,
    cells: Cells,
    validation: Cells | None,
    *,
    epochs: int,
    minibatch_size: int,
    steps_per_epoch: int | None = None,
    verbose: int = 0,
    checkpoint: Checkpoint | None = None,
    callback: Callback | None = None,
) -> StageResult:
    """Train a stage and leave the best generator found in it.

    Parameters
    ----------
    plan : Plan
        Its engine's stream ``"order"`` draws the order of the cells.
    cells : Cells
        Training cells.
    validation : Cells or None
        Held-out cells that choose the best generator; without them the last one is kept.
    epochs, minibatch_size : int
    steps_per_epoch : int, optional
        By default an epoch is one pass over the cells.
    verbose : int, default=0
        Positive for a progress bar.
    checkpoint : Checkpoint, optional
        Written after every epoch; a matching one is gone on from. With several processes by the first of them.
    callback : callable, optional
        Called after every epoch with an :class:`EpochInfo`; what it returns, if true, ends the stage. With several
        processes that of the first is called, there.

    Returns
    -------
    result : StageResult
        Its history has one entry per epoch: ``epoch``, each training loss, and each validation loss as
        ``validation_NAME``. After Ctrl-C it holds the epochs that were completed.

    Raises
    ------
    FloatingPointError
        When no epoch ended with finite losses and weights, whatever the learning rate.
    """
    checkpoint, group = checkpoint or Checkpoint(None), plan.engine.group
    sampler = cells.sampler(minibatch_size, plan.engine.rngs["order"], steps_per_epoch)
    reached, first_epoch = _begun(plan, sampler, checkpoint, epochs)
    interrupted = stopped = False
    name, total, done = plan.name.replace("_", " "), epochs * sampler.n_steps, first_epoch * sampler.n_steps
    watched = verbose if group.is_first else 0
    with (
        Progress(name, total, initial=done, verbose=watched, has_epochs=True) as bar,
        Interrupts(group) as interrupts,
    ):
        epoch = first_epoch
        try:
            for epoch in range(first_epoch, epochs):
                means, held_out = _run_epoch(plan, cells, validation, epoch, epochs, sampler, bar, interrupts)
                row = means | {f"validation_{name}": value for name, value in held_out.items()}
                faults = [name for name, value in row.items() if not math.isfinite(value)]
                if faults:
                    reached = replace(reached, rollbacks=reached.rollbacks + 1)
                    _roll_back(plan, reached, epoch, faults)
                    if reached.rollbacks > MAX_ROLLBACKS:
                        break
                    continue
                del row[_WEIGHTS]
                reached = _advanced(plan, reached, epoch, epochs, row, held_out)
                bar.epoch(epoch + 1, epochs, {k: v for k, v in (held_out or row).items() if k in ("image", "total")})
                info = EpochInfo(plan.name, epoch + 1, epochs, row)
                wants_stop = group.from_first(partial(_asked, callback, info))
                stopped = wants_stop and epoch + 1 < epochs
                if stopped:
                    message = f"stopped by the callback after epoch {epoch + 1} of {epochs}"
                    plan.events.append(Event(plan.name, message, warns=False))
                if checkpoint.path is not None:
                    _note_once(plan, _written(checkpoint, plan, sampler, epoch, reached, stopped))
                if stopped:
                    break
        except KeyboardInterrupt:
            interrupted = True
            message = f"interrupted in epoch {epoch + 1} of {epochs}; the best generator is kept"
            plan.events.append(Event(plan.name, message))
    return _ended(plan, reached, epochs, interrupted, stopped)


def _begun(plan: Plan, sampler: AnySampler, checkpoint: Checkpoint, epochs: int) -> tuple[_Reached, int]:
    """Return what there is before the first epoch that is to be run, and which that is."""
    state = plan.engine.group.from_first(lambda: checkpoint.read(plan.name, epochs))
    if state is None:
        return _Reached({"epoch": []}, _snapshots(plan), None), 0
    return _resumed(plan, sampler, state, checkpoint), epochs if state["stopped"] else state["epoch"] + 1


def _asked(callback: Callback | None, info: EpochInfo) -> bool:
    return callback is not None and bool(callback(info))


def _written(
    checkpoint: Checkpoint, plan: Plan, sampler: AnySampler, epoch: int, reached: _Reached, stopped: bool
) -> str | None:
    """Write a checkpoint in the first process; return what went wrong."""
    return plan.engine.group.from_first(
        lambda: checkpoint.write({**_capture(plan, sampler, epoch, reached), "stopped": stopped})
    )


def _ended(plan: Plan, reached: _Reached, epochs: int, interrupted: bool, stopped: bool) -> StageResult:
    """Give the generator its best weights and return what the stage leaves."""
    if epochs > 0 and not reached.history["epoch"] and not interrupted:
        raise FloatingPointError(
            f"{plan.name}: losses or weights were not finite in any epoch, though the learning rates were halved "
            f"{min(reached.rollbacks, MAX_ROLLBACKS)} times; check the scale of the images (standardize=True) and "
            "lower learning_rate or the loss weights"
        )
    best = reached.best
    if best is None:
        best = reached.good["generator"] if interrupted or reached.rollbacks else plan.candidate()
    plan.generator.load_state_dict(best)
    finished = not interrupted and not stopped and max(reached.history["epoch"], default=0) == epochs
    return StageResult(
        to_numpy(plan.generator), to_numpy(plan.discriminator), reached.history, plan.events, interrupted, finished
    )


_WEIGHTS = "weights"  # the sum of all weights' sizes among the losses of an epoch, to see that they are finite


def _run_epoch(
    plan: Plan,
    cells: Cells,
    validation: Cells | None,
    epoch: int,
    epochs: int,
    sampler: AnySampler,
    bar: Progress,
    interrupts: Interrupts,
) -> tuple[dict[str, float], dict[str, float]]:
    """Train for an epoch and validate; return the means of training and of validation losses."""
    plan.begin_epoch(epoch, cells.known)
    losses, held_out, group = _Sums(), _Sums(), plan.engine.group
    for index, positions in enumerate(sampler.epoch()):
        progress = (epoch + index / sampler.n_steps) / epochs
        minibatch = cells.take(positions, group.rank, group.world, plan.draws(len(positions), progress))
        losses.add(plan.step(minibatch, progress))
        bar.update()
        interrupts.check()
    group.average_statistics(plan.networks.values())
    if validation is not None:
        with group.alone() as (rank, world):  # each process takes whole minibatches: no cell needs another one's
            parts = in_order(len(validation), max(sampler.minibatch_size, 64))
            for positions in itertools.islice(parts, rank, None, world):
                held_out.add(plan.validate(validation.take(positions)), len(positions))
    values = [v for network in plan.networks.values() for v in network.state_dict().values() if v.is_floating_point()]
    size = torch.stack([norm.to(torch.float64) for norm in torch._foreach_norm(values)]).sum()
    losses.add({_WEIGHTS: size}, 0)
    if group.world > 1:
        group.check_together(float(size), plan.engine.rngs.values())
    return losses.means(group), held_out.means(group)  # the only wait for the device in an epoch


def _advanced(
    plan: Plan, reached: _Reached, epoch: int, epochs: int, row: dict[str, float], held_out: dict[str, float]
) -> _Reached:
    """Return what there is after a good epoch."""
    # Without held-out cells the last generator is the best.
    merit = plan.merit(held_out, (epoch + 1) / epochs) if held_out else -float(epoch)
    better = merit < reached.best_merit
    return replace(
        reached,
        history=_recorded(reached.history, epoch, row),
        good=_snapshots(plan),
        best=plan.candidate() if better else reached.best,
        best_merit=merit if better else reached.best_merit,
    )


def _recorded(history: History, epoch: int, row: dict[str, float]) -> History:
    n = len(history["epoch"])
    # A loss that first appears in a later epoch is not a number before.
    names = [name for name in {**history, **row} if name != "epoch"]
    return {
        "epoch": [*history["epoch"], epoch + 1],
        **{name: [*history.get(name, [math.nan] * n), row.get(name, math.nan)] for name in names},
    }


def joined(earlier: History, later: History) -> History:
    """Return the history of a stage that went on: epochs are counted on, losses that one part lacks are NaN there."""
    n_done = max(earlier["epoch"], default=0)
    result: History = {"epoch": [*earlier["epoch"], *(n_done + epoch for epoch in later["epoch"])]}
    for name in {**earlier, **later}:
        if name != "epoch":
            parts = (part.get(name, [math.nan] * len(part["epoch"])) for part in (earlier, later))
            result[name] = [value for part in parts for value in part]
    return result


def compile_networks(plan: Plan, cells: Cells, minibatch_size: int) -> None:
    """Compile generator and discriminator in place; where that fails, an event says so and they run as they are.

    They are tried as a step uses them: forwards and backwards, in training mode and frozen. Their numbers stay.
    """
    if plan.engine.group.world > 1:
        plan.events.append(Event(plan.name, "compile=True has no effect where several processes train together"))
        return
    networks: tuple[nn.Module, ...] = (plan.generator, plan.discriminator)
    example = cells.take(torch.arange(min(minibatch_size, len(cells))))
    before = [snapshot(network) for network in networks]
    try:
        for network in networks:
            network.compile()
        masks = plan.generator.draw_masks(len(example), new_rng(0, example.source.device))
        with plan.engine.autocast():
            image, features = plan.generator(example.source, masks, plan.leak)
            judged = plan.discriminator(example.source, image.detach()).float().mean()
            torch.autograd.grad(judged, list(plan.discriminator.parameters()))
            with frozen(plan.discriminator):
                judged = plan.discriminator(example.source, image)
        torch.autograd.grad(judged.float().mean() + features.float().mean(), list(plan.generator.parameters()))
    except Exception as error:
        for network in networks:
            network._compiled_call_impl = None
        message = f"compile=True has no effect here, training goes on without: {error}"
        plan.events.append(Event(plan.name, message))
    finally:
        for network, state in zip(networks, before, strict=True):
            network.load_state_dict(state)


# Going back and going on ----------------------------------------------------------------------------------------------


def _snapshots(plan: Plan) -> dict[str, State]:
    return {name: snapshot(network) for name, network in plan.networks.items()}


def _note_once(plan: Plan, message: str | None) -> None:
    if message is not None and Event(plan.name, message) not in plan.events:
        plan.events.append(Event(plan.name, message))


def _roll_back(plan: Plan, reached: _Reached, epoch: int, faults: list[str]) -> None:
    for name, network in plan.networks.items():
        network.load_state_dict(reached.good[name])
    plan.soften()
    message = (
        f"losses {faults} were not finite in epoch {epoch + 1}; went back to the last good epoch and halved the "
        f"learning rates (time {reached.rollbacks} of at most {MAX_ROLLBACKS})"
    )
    plan.events.append(Event(plan.name, message))


def _capture(plan: Plan, sampler: AnySampler, epoch: int, reached: _Reached) -> dict[str, Any]:
    return {
        "stage": plan.name,
        "epoch": epoch,
        "device": plan.engine.device.type,
        "networks": {name: network.state_dict() for name, network in plan.networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in plan.engine.optimizers.items()},
        "rngs": {name: source.get_state() for name, source in plan.engine.rngs.items()},
        "events": [tuple(event) for event in plan.events],
        "sampler": sampler.state(),
        "state": plan.state(),
        "history": reached.history,
        "best": reached.best,
        "best_merit": reached.best_merit,
        "rollbacks": reached.rollbacks,
    }


def _resumed(plan: Plan, sampler: AnySampler, state: dict[str, Any], checkpoint: Checkpoint) -> _Reached:
    """Take up a state, or raise ValueError if it is that of other networks."""
    try:
        shapes = {name: value.shape for name, value in plan.generator.state_dict().items()}
        if state["best"] is not None and {name: value.shape for name, value in state["best"].items()} != shapes:
            raise ValueError("its best generator has other weights")
        for name, optimizer in plan.engine.optimizers.items():
            check_optimizer(state["optimizers"][name], optimizer)
        check_plan_state(state["state"], plan.state())
        sampler.restore(state["sampler"])
        _restore(plan, state)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise checkpoint.refusal(f"it is not of this fit: {type(error).__name__}: {reason}") from error
    return _Reached(state["history"], _snapshots(plan), state["best"], state["best_merit"], state["rollbacks"])


def _restore(plan: Plan, state: dict[str, Any]) -> None:
    for name, network in plan.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, optimizer in plan.engine.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    plan.events[:] = [Event(*event) for event in state["events"]]
    same_device = state["device"] == plan.engine.device.type
    for name, source in plan.engine.rngs.items():
        if same_device or name != "dropout":  # the one stream that is drawn on the device
            source.set_state(state["rngs"][name])
        else:  # other kinds of devices have other states: not the numbers again that were drawn from the start on
            source.manual_seed(zlib.crc32(state["rngs"][name].numpy().tobytes()))
    if not same_device:
        message = (
            f"resumed on {plan.engine.device.type} from a checkpoint of {state['device']}: random numbers drawn on the "
            "device are others than in a fit without interruption"
        )
        plan.events.append(Event(plan.name, message))
    plan.restore(state["state"])

"""Several processes that train one model together: what they exchange, and nothing at all where there is one.

Each process holds the same networks, optimizers and random generators, takes its part of every minibatch, and draws
random numbers for the whole of it. Three things travel. Gradients are averaged before each step of an optimizer. The
statistics of BatchNorm are those of the whole minibatch. Features are gathered, so that losses that compare cells see
all of them. The steps are then those of one process with the whole minibatch, up to rounding.

Networks are not wrapped, as in :class:`torch.nn.parallel.DistributedDataParallel`: one step of a stage goes through a
network several times, through parts of it, with and without gradients.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Value = TypeVar("Value")
MODE = "SKBEGAN_PARALLEL"  # environment variable
MODES = ("synchronised", "local", "off")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # environment variables that torchrun sets
TIMEOUT = timedelta(minutes=30)  # of an exchange: others may wait for a callback or a file of the first process
DRIFT = 1e-5  # between the weights of processes, relative: rounding on unlike machines is far below
_AGAIN = 3.0  # seconds after which another Ctrl-C is another wish: torchrun may send one twice


class Group:
    """The processes that train together, as one of them sees them; alone by default, and then all calls are no-ops.

    Parameters
    ----------
    rank, world : int, default=0, 1
        Number of this process, from 0, and how many there are. They are those of PyTorch's default process group.
    synchronised : bool, default=True
        Whether BatchNorm takes its statistics over all processes, or each over its own cells.

    Attributes
    ----------
    sent : Counter
        Bytes that this process gave into exchanges, by kind: ``"gradients"``, ``"statistics"``, ``"features"``.
    """

    def __init__(self, rank: int = 0, world: int = 1, synchronised: bool = True) -> None:
        self.rank, self.world, self.synchronised = rank, world, synchronised
        self.is_first = rank == 0
        self.sent: Counter[str] = Counter()
        self._buckets: dict[tuple[int, torch.dtype], Tensor] = {}

    @classmethod
    def found(cls, device: torch.device) -> Group:
        """Return the group that this process belongs to.

        That of an initialised process group of PyTorch, or else the one that ``torchrun`` has started, which is then
        initialised: gloo for CPUs, NCCL beside it for CUDA.

        Parameters
        ----------
        device : torch.device
            That is computed on.

        Raises
        ------
        ValueError
            When the environment variable `SKBEGAN_PARALLEL` is none of ``synchronised``, ``local``, ``off``.
        """
        mode = os.environ.get(MODE, MODES[0])
        if mode not in MODES:
            raise ValueError(f"the environment variable {MODE} must be one of {', '.join(MODES)}, got {mode!r}")
        if mode == "off" or not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if not _is_launched():
                return cls()
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
            atexit.register(_leave)
        return cls(dist.get_rank(), dist.get_world_size(), mode == "synchronised")

    def join(self, network: nn.Module) -> None:
        """Let the modules of a network that need to know of the other processes know of them."""
        if self.world > 1:
            for module in network.modules():
                if hasattr(module, "group"):
                    module.group = self  # type: ignore[assignment]

    @contextmanager
    def alone(self) -> Iterator[tuple[int, int]]:
        """Within it this process works by itself and exchanges nothing; yields its number and how many there are."""
        rank, world = self.rank, self.world
        self.rank, self.world = 0, 1
        try:
            yield rank, world
        finally:
            self.rank, self.world = rank, world

    # Tensors ------------------------------------------------------------------------------------------------------

    def mean_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients by their means over the processes, in one exchange."""
        if self.world == 1:
            return
        held = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
        owners = list(held)
        key = sum(owner.numel() for owner in owners), owners[0].dtype
        if key not in self._buckets:
            self._buckets[key] = torch.empty(key[0], dtype=key[1], device=owners[0].device)
        bucket, places, start = self._buckets[key], [], 0
        for owner in owners:
            places.append(bucket.as_strided(owner.shape, owner.stride(), start))
            start += owner.numel()
        torch._foreach_copy_(places, list(held.values()))
        self.sum_(bucket, "gradients").div_(self.world)
        for owner, place in zip(owners, places, strict=True):
            owner.grad = place

    def sum_(self, values: Tensor, kind: str = "other") -> Tensor:
        """Replace values by their sums over the processes, and return them."""
        if self.world > 1:
            self.sent[kind] += values.nbytes
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return the values (n, ...) of all processes, in order, (world * n, ...).

        The gradient of a loss of all of them, which every process computes, reaches the own ones. It comes times the
        number of processes, since gradients are averaged afterwards.
        """
        if self.world == 1:
            return values
        gathered: Tensor = _Gather.apply(values, self)
        return gathered

    def own_of(self, values: Tensor) -> Tensor:
        """Return the own part of values (n, ...) of all processes."""
        if self.world == 1:
            return values
        n = len(values) // self.world
        return values[self.rank * n : (self.rank + 1) * n]

    def collect(self, values: Tensor, kind: str) -> list[Tensor]:
        """Return the values of each process, without gradients."""
        values = values.detach().contiguous()
        parts = [torch.empty_like(values) for _ in range(self.world)]
        self.sent[kind] += values.nbytes
        dist.all_gather(parts, values)
        return parts

    # Anything else ------------------------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.world == 1:
            return flag
        # Where there is gloo it needs no wait for the card.
        raised = torch.tensor(float(flag), device="cpu" if "gloo" in dist.get_backend_config() else "cuda")
        dist.all_reduce(raised)
        return bool(raised)

    def exchange(self, value: Value) -> list[Value]:
        """Return the value of each process; it has to be small."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def from_first(self, function: Callable[[], Value]) -> Value:
        """Call a function in the first process and return its result, or raise its error, in all of them."""
        if self.world == 1:
            return function()
        answer: list[Any] = [None]
        error: BaseException | None = None
        if self.is_first:
            try:
                answer = [(function(), None)]
            except BaseException as raised:
                error = raised
                answer = [(None, _travelling(raised))]
        dist.broadcast_object_list(answer, src=0)
        value, told = answer[0]
        if (error := error or told) is not None:
            raise error
        result: Value = value
        return result

    def mean_of(self, sums: Mapping[str, float], weight: float) -> dict[str, float]:
        """Return the means over the cells of all processes, of sums over those of each and how many these were."""
        parts = self.exchange((dict(sums), weight))
        total = sum(weight for _, weight in parts)
        names = dict.fromkeys(name for part, _ in parts for name in part)
        return {name: sum(part.get(name, 0.0) for part, _ in parts) / total for name in names}

    @torch.no_grad()
    def take_over(self, network: nn.Module) -> None:
        """Give a network, which each process has trained by itself, the numbers of the first process."""
        if self.world > 1:
            for values in network.state_dict().values():
                dist.broadcast(values, src=0)

    def check_equal(self, what: str, value: Any) -> None:
        """Check that a value is the same in all processes.

        Raises
        ------
        ValueError
        """
        for rank, found in enumerate(self.exchange(value)):
            if found != value:
                raise ValueError(
                    f"the {self.world} processes that fit together were given different {what}, as processes "
                    f"{self.rank} and {rank} were: each needs the same arguments and the same cells in the same order"
                )

    def check_together(self, weights: float, streams: Iterable[torch.Generator]) -> None:
        """Check that weights and random numbers are still those of the other processes.

        Raises
        ------
        RuntimeError
        """
        if self.world == 1:
            return
        drawn = tuple(zlib.crc32(stream.get_state().numpy().tobytes()) for stream in streams)
        for size, others in self.exchange((weights, drawn)):
            if others != drawn or abs(size - weights) > DRIFT * abs(weights):
                raise RuntimeError(
                    "the processes that fit together have drifted apart: their weights or random numbers are no longer "
                    "the same. Do all of them run the same versions on machines of one kind?"
                )

    def check_divides(self, size: int, n: int) -> None:
        """Check that minibatches of `size` of `n` training cells can be shared out.

        Raises
        ------
        ValueError
        """
        if size % self.world:
            raise ValueError(
                f"minibatch_size={size} cannot be shared by {self.world} processes: it is the cells per step of all of "
                f"them together, and has to be a multiple of {self.world}"
            )
        if n < size and n % self.world:
            raise ValueError(
                f"with minibatch_size={size} all {n} training cells are one step, which {self.world} processes cannot "
                f"share; set minibatch_size to a multiple of {self.world} of at most {n}"
            )

    def average_statistics(self, networks: Iterable[nn.Module]) -> None:
        """Average the moving statistics of BatchNorm, where each process has those of its own cells."""
        if self.world == 1 or self.synchronised:
            return
        with torch.no_grad():
            for network in networks:
                for norm in network.modules():
                    if isinstance(norm, BatchNorm2d):
                        for values in (norm.running_mean, norm.running_var):
                            assert values is not None
                            self.sum_(values, "statistics").div_(self.world)


ALONE = Group()


def own_device(device: str | torch.device) -> str | torch.device:
    """Return the card of this process, where several processes of a machine were started and none was named.

    Parameters
    ----------
    device : str or torch.device
        As the user has it; what stands for no card in particular, or for none, is returned as it is.

    Raises
    ------
    ValueError
        When there are more processes than cards.
    """
    n_cards = torch.cuda.device_count()
    if str(device) not in ("auto", "cuda") or n_cards == 0 or not _is_launched():
        return device
    place = int(os.environ.get("LOCAL_RANK", 0))
    if place >= n_cards:
        raise ValueError(
            f"process {place + 1} of this machine has no card: PyTorch sees {n_cards}; start at most as many processes "
            "per machine as it has cards"
        )
    return f"cuda:{place}"


def _is_launched() -> bool:
    """Whether torchrun has started this process as one of several; not a worker that such a process has started."""
    if not all(name in os.environ for name in LAUNCHED) or multiprocessing.parent_process() is not None:
        return False
    return int(os.environ["WORLD_SIZE"]) > 1


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _travelling(error: BaseException) -> BaseException:
    """Return an error that other processes can be told of."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.place, ctx.world = slice(group.rank * len(values), (group.rank + 1) * len(values)), group.world
        return torch.cat(group.collect(values, "features"))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0][ctx.place] * ctx.world, None


# BatchNorm ------------------------------------------------------------------------------------------------------------


class _Normalise(torch.autograd.Function):
    """BatchNorm with the statistics of the cells of all processes, of which each has the same number."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Ten to twenty times as fast on CPUs as torch.var_mean.
        mean, spread = torch.batch_norm_update_stats(x.to(weight.dtype), None, None, 0.0)
        spreads, means = torch.stack(group.collect(torch.stack([spread, mean]), "statistics")).unbind(1)
        mean = means.mean(0)
        spread = spreads.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(x, weight, mean, (spread + eps).rsqrt())
        ctx.group, ctx.eps = group, eps
        ctx.mark_non_differentiable(mean, spread)
        return F.batch_norm(x, mean, spread, weight, bias, eps=eps), mean, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, rate = ctx.saved_tensors
        sums = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, rate, True, ctx.eps, [False, True, True]
        )
        of_weight, of_bias = sums[1:]
        of_x = None
        if ctx.needs_input_grad[0]:
            n = x.numel() // x.shape[1] * ctx.group.world
            slope, level = (ctx.group.sum_(torch.stack([of_weight, of_bias]), "statistics") / n).unbind(0)
            factor = weight * rate
            # factor * (gradient - level - slope * rate * (x - mean)), with few passes over memory
            found = (x.to(weight.dtype) - mean[:, None, None]).mul_((-factor * slope * rate)[:, None, None])
            found.addcmul_(gradients[0].to(weight.dtype), factor[:, None, None])
            of_x = found.sub_((factor * level)[:, None, None]).to(x.dtype)
        needed = ctx.needs_input_grad
        return of_x, of_weight if needed[1] else None, of_bias if needed[2] else None, None, None


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics are, while training, those of the minibatch of all processes.

    :class:`torch.nn.SyncBatchNorm` does the same, and refuses CPUs.
    """

    group: Group = ALONE

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.group.world == 1 or not self.group.synchronised:
            # As PyTorch's, without its counter of minibatches, which nothing reads: an operation on the device each.
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum or 0.0,
                self.eps,
            )
        out, mean, spread = _Normalise.apply(input, self.weight, self.bias, self.eps, self.group)
        if self.momentum:  # of 0 leaves the moving statistics as they are
            n = input.numel() // input.shape[1] * self.group.world
            assert self.running_mean is not None and self.running_var is not None
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(spread * (n / max(1, n - 1)), self.momentum)
        normalised: Tensor = out
        return normalised


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


class Interrupts:
    """Ctrl-C in several processes: noted where it comes, and raised in all of them after the same step.

    With one process it is left as it is.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._asked: float | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        if self.group.world > 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: Any) -> None:
        now = time.monotonic()
        if self._asked is not None and now > self._asked + _AGAIN:
            raise KeyboardInterrupt
        self._asked = self._asked or now

    def check(self) -> None:
        """Raise KeyboardInterrupt in all processes if there was a Ctrl-C in any."""
        if self.group.world > 1 and self.group.any(self._asked is not None):
            self._asked = None
            raise KeyboardInterrupt

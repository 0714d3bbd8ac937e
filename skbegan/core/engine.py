"""Where and how to compute: device, precision, random streams, optimizers, and the one place that steps them."""

from __future__ import annotations

import contextlib
import functools
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from skbegan.core.adam import Adam as Adam
from skbegan.core.converted import converted
from skbegan.core.parallel import ALONE, Group

Network = TypeVar("Network", bound=nn.Module)
RATES = "rates"  # of the optimizers, among the draws of a step
MIN_BFLOAT16_WIDTH = 32  # of networks that a CPU may run in bfloat16: in narrower ones it does not pay
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that ``"auto"`` stands for here, or `device` itself when this machine has it.

    A CUDA device has an index: ``"cuda"`` is the current one.

    Raises
    ------
    ValueError
        When `device` is unknown to PyTorch, neither a CPU nor a CUDA device, or absent from this machine.
    """
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is no PyTorch device; use 'auto', 'cpu' or 'cuda'") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not supported; use 'auto', 'cpu' or 'cuda'")
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r} was asked for but PyTorch sees no CUDA here; use 'auto' or 'cpu'")
        if (resolved.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={device!r} was asked for but there are {torch.cuda.device_count()} CUDA devices")
        if resolved.index is None:  # once and for all: it would follow the current device, and PyTorch 2.4 wants it
            return torch.device("cuda", torch.cuda.current_device())
    return resolved


def resolve_precision(precision: str, device: torch.device, base_width: int) -> torch.dtype:
    """Return the dtype of the networks' arithmetic.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16", "float64"}
        ``"auto"`` is bfloat16 on CUDA cards that have it, and for wide networks on CPUs with units for it.
    device : torch.device
    base_width : int
        Of the networks.
    """
    if precision == "auto":
        if device.type == "cuda":
            has = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has = base_width >= MIN_BFLOAT16_WIDTH and has_bfloat16_units()
        return torch.bfloat16 if has else torch.float32
    return _DTYPES[precision]


@functools.cache
def has_bfloat16_units() -> bool:
    """Ask the CPU whether it multiplies in bfloat16; others emulate it, which is slower than float32."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return bool(asked is not None and asked())
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


class _ExactFloat32:
    """Within it products of float32 are those of float32, for all threads, until the last of them has left.

    By default cuDNN convolves float32 in TF32, whose significand has 10 bits; a caller may have allowed it, or
    bfloat16, for matrix products too.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._restore = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._set(self._restore)
            self._users += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._restore.close()

    @staticmethod
    def _set(restore: contextlib.ExitStack) -> None:
        cudnn, conv = torch.backends.cudnn, getattr(torch.backends.cudnn, "conv", None)
        # PyTorch from 2.9 on has two ways to set these, and raises where a caller has used both. Without a card they
        # mean nothing, and stay: a callback within a fit sees them.
        try:
            if torch.cuda.is_available() and cudnn.allow_tf32:
                restore.callback(setattr, cudnn, "allow_tf32", True)
                cudnn.allow_tf32 = False
        except RuntimeError:
            if conv is not None and conv.fp32_precision != "ieee":
                restore.callback(setattr, conv, "fp32_precision", conv.fp32_precision)
                conv.fp32_precision = "ieee"
        with contextlib.suppress(RuntimeError):
            if (precision := torch.get_float32_matmul_precision()) != "highest":
                restore.callback(torch.set_float32_matmul_precision, precision)
                torch.set_float32_matmul_precision("highest")


_exact_float32 = _ExactFloat32()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within it PyTorch computes as it does by default, whatever the caller has set for networks of their own.

    Except for TF32, which is off: what is to be faster than float32 is computed in bfloat16.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_exact_float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.autocast("cuda", enabled=False))
        # Only where it is needed: within a device context every operation takes a detour through Python.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) is not torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Context in which the networks compute in bfloat16; nothing for the full precisions."""
    if dtype is torch.bfloat16:
        # Without the cache of converted weights: it is emptied when the outermost context ends, and this one is within
        # that of `undisturbed`, so that a fit would go on with the weights of its first step.
        return torch.autocast(device.type, dtype, cache_enabled=False)
    return contextlib.nullcontext()


def new_rng(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of random numbers of its own, which leaves the global one alone."""
    return torch.Generator(device=device).manual_seed(seed)


def place(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """Move a network to its device, with weights in float32 (or float64) and in channels-last layout."""
    weights = torch.float64 if dtype is torch.float64 else torch.float32
    network.to(device=device, dtype=weights)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Engine:
    """Device, precision, random streams and optimizers of a stage.

    Every loss of the package goes through :meth:`descend`: what several processes have to exchange passes here.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype, default=torch.float32
        Arithmetic of the networks, see :func:`resolve_precision`.
    seeds : mapping of str to int, optional
        Of the random streams: ``"weights"``, ``"order"``, ``"dropout"``, ``"classifiers"``, as the stage needs them.
    group : Group, optional
        Of processes that train together; by default this one is alone.

    Attributes
    ----------
    rngs : dict of str to torch.Generator
        ``"dropout"`` draws on the device, the others on the CPU.
    optimizers : dict of str to Adam
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seeds: Mapping[str, int] | None = None,
        group: Group = ALONE,
    ) -> None:
        self.device, self.dtype, self.group = device, dtype, group
        self.rngs = {
            name: new_rng(seed, device if name == "dropout" else "cpu") for name, seed in (seeds or {}).items()
        }
        self.optimizers: dict[str, Adam] = {}
        # The gradient of a loss itself, which each backward pass would make anew.
        self._one = torch.ones((), dtype=self.wide, device=device) if device.type == "cuda" else None

    @property
    def wide(self) -> torch.dtype:
        """Of the weights of networks, and of all that is not the networks' arithmetic."""
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    def place(self, network: Network) -> Network:
        """Move a network to the device, see :func:`place`, and make it one of those of all processes."""
        self.group.join(network)
        return place(network, self.device, self.dtype)

    @contextlib.contextmanager
    def autocast(self, *networks: nn.Module) -> Iterator[None]:
        """Context in which networks compute in the engine's precision.

        On a card in bfloat16 the weights of `networks` are converted at once, where autocast has two operations for
        each; those that are compiled are left to it.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(autocast(self.device, self.dtype))
            if self.converts_to is not None:
                for network in networks:
                    if network._compiled_call_impl is None:
                        stack.enter_context(converted(network, self.converts_to))
            yield

    @property
    def converts_to(self) -> torch.dtype | None:
        """The precision that weights are converted to all at once; None where they are not."""
        return self.dtype if self.dtype is torch.bfloat16 and self.device.type == "cuda" else None

    def optimize(self, name: str, parameters: Iterable[Tensor], learning_rate: float, updates: int = 1) -> None:
        """Give parameters a new optimizer; one of that name that they have already is emptied, and its memory stays.

        Parameters
        ----------
        name : str
        parameters : iterable of Tensor
        learning_rate : float
        updates : int, default=1
            Of each training step. A card gets their learning rates with the minibatch, see :meth:`coming`; with 0 they
            are numbers of the host.
        """
        own, updates = list(parameters), updates if self.device.type == "cuda" else 0
        known = self.optimizers.get(name)
        if isinstance(known, Adam) and known.updates == updates and known.is_of(own):
            known.restart(learning_rate)
        else:
            self.optimizers[name] = Adam(own, learning_rate, updates)

    def coming(self) -> dict[str, Tensor]:
        """Return, on the CPU, the learning rates that the next training step needs on the device: none on a CPU."""
        if self.device.type != "cuda":
            return {}
        rates = [rate for optimizer in self.optimizers.values() for rate in optimizer.coming()]
        return {RATES: torch.tensor(rates, dtype=torch.float32)}

    def schedule(self, draws: Mapping[str, Tensor]) -> None:
        """Let the optimizers take up the learning rates that came to the device among the draws of a step."""
        if RATES in draws:
            rates = iter(draws[RATES].unbind())
            for optimizer in self.optimizers.values():
                optimizer.schedule([next(rates) for _ in range(optimizer.updates)])

    def descend(self, names: str | Sequence[str], loss: Tensor, hand_out: Callable[[], None] | None = None) -> None:
        """Take one step of one or more optimizers down the gradient of a loss, the mean over the processes.

        `hand_out` gives parameters their gradients where these were collected elsewhere.
        """
        optimizers = [self.optimizers[name] for name in ([names] if isinstance(names, str) else names)]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward(self._one if self._one is not None and loss.dtype is self._one.dtype else None)
        if hand_out is not None:
            hand_out()
        groups = (group for optimizer in optimizers for group in optimizer.param_groups)
        self.group.mean_gradients(parameter for group in groups for parameter in group["params"])
        for optimizer in optimizers:
            optimizer.step()

    def apart(self) -> Engine:
        """Return an engine of the same device and precision for a fit of its own within the stage.

        Where several processes train together each of them does all of it, to the same end.
        """
        return Engine(self.device, self.dtype)


class Event(NamedTuple):
    """Something that happened in a stage and that a user should know; `warns` says whether to warn of it."""

    stage: str
    message: str
    warns: bool = True

    def __str__(self) -> str:
        return f"{self.stage}: {self.message}"

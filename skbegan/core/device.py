"""Where and how to compute: device, precision, local random generators, the optimizer."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
PRECISIONS = ("auto", "float32", "bfloat16", "float64")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device that ``"auto"`` stands for here, or `device` itself when this machine has it.

    Raises
    ------
    ValueError
        When `device` is unknown to PyTorch or absent from this machine.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is no PyTorch device; use 'auto', 'cpu' or 'cuda'") from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r} was asked for but PyTorch sees no CUDA here; use 'auto' or 'cpu'")
        if (resolved.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={device!r} was asked for but there are {torch.cuda.device_count()} CUDA devices")
    return resolved


def resolve_precision(precision: str, device: torch.device, base_width: int) -> torch.dtype:
    """Return the dtype of the networks' arithmetic.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16", "float64"}
        ``"auto"`` is bfloat16 on CUDA cards that have it, and on CPUs where :func:`is_bfloat16_faster` says so.
    device : torch.device
    base_width : int
        Of the networks.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if precision == "auto":
        if device.type == "cuda":
            faster = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            faster = device.type == "cpu" and base_width >= MIN_WIDTH and is_bfloat16_faster()
        return torch.bfloat16 if faster else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[precision]


MIN_WIDTH = 32  # of networks that a CPU may run in bfloat16: in narrower ones conversions eat what products gain
WANTED_GAIN = 1.4  # CPUs with bfloat16 units gain twofold, the others lose, so that noise does not decide


@functools.cache
def is_bfloat16_faster() -> bool:
    """Measure, once per process and in some tens of milliseconds, whether this CPU multiplies faster in bfloat16.

    The best of several short runs, so that other work on the machine does not decide.
    """
    matrix = torch.full((512, 512), 0.01)
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    with torch.inference_mode():
        matrices = {dtype: matrix.to(dtype) for dtype in seconds}
        for _ in range(10):
            for dtype, x in matrices.items():
                start = time.perf_counter()
                torch.mm(x, x)
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] > WANTED_GAIN * seconds[torch.bfloat16]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Context in which the networks compute in bfloat16; nothing for the full precisions."""
    if dtype is torch.bfloat16:
        # Without the cache of converted weights: it is emptied when the outermost context ends, and this one is within
        # that of `undisturbed`, so that a fit would go on with the weights of its first step.
        return torch.autocast(device.type, dtype, cache_enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within it PyTorch computes as it does by default, whatever the caller has set for networks of their own."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def new_rng(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of random numbers of its own, which leaves the global one alone."""
    return torch.Generator(device=device).manual_seed(seed)


def place(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """Move a network to its device, with weights in float32 (or float64) and in channels-last layout."""
    weights = torch.float64 if dtype is torch.float64 else torch.float32
    network.to(device=device, dtype=weights)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Adam(torch.optim.Adam):
    """Adam with beta1 0.5, beta2 0.999 and Keras' place for epsilon, in torch's fused kernel.

    Keras' update is ``lr * sqrt(1 - b2**t) / (1 - b1**t) * m / (sqrt(v) + eps)``. Torch's adds epsilon after the bias
    correction of ``v``; the two agree when torch is given ``eps / sqrt(1 - b2**t)``, so that is what each step gets.

    Parameters
    ----------
    parameters : iterable of Tensor
    learning_rate : float
    """

    BETAS = (0.5, 0.999)
    EPSILON = 1e-7

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        super().__init__(parameters, lr=learning_rate, betas=self.BETAS, eps=self.EPSILON, fused=True)
        for group in self.param_groups:
            group["n_steps"] = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["n_steps"] += 1
            group["eps"] = self.EPSILON / (1.0 - self.BETAS[1] ** group["n_steps"]) ** 0.5
        super().step(closure)

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.param_groups:
            group["lr"] = learning_rate

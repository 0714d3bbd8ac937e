"""Weights in the precision of the arithmetic, converted all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_MULTIPLYING = nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.ParameterList


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    found = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(found, list(tensors))
    return found


class _Convert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # of weights that were not used: zeros would be an operation each
        ctx.dtype = weights[0].dtype
        return tuple(_copies(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(_copies([gradient for gradient in gradients if gradient is not None], ctx.dtype))
        return None, *(None if gradient is None else next(found) for gradient in gradients)


def convert(weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return weights in another precision, one operation for all and one for all their gradients.

    The numbers are those that autocast gives, which converts one by one.
    """
    found: tuple[Tensor, ...] = _Convert.apply(dtype, *weights)
    return found


@contextmanager
def converted(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it what a network multiplies with is in another precision; its parameters get the gradients."""
    places = [
        (module._parameters, name, weight)
        for module in network.modules()
        if isinstance(module, _MULTIPLYING)
        for name, weight in module._parameters.items()
        if weight is not None
    ]
    values = convert([weight for _, _, weight in places], dtype)
    try:
        for (kept, name, _), value in zip(places, values, strict=True):
            kept[name] = value  # type: ignore[assignment]  # for the forward pass, which asks for no more
        yield
    finally:
        for kept, name, weight in places:
            kept[name] = weight

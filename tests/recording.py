"""The operations of a step as a graph of it would hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Recording:
    """What a step does, operation by operation, in `operations`.

    Each has its name, the shapes, types and strides of its tensors, the addresses of those that were there before the
    step, and all numbers: what changes there from step to step would be wrong in a graph that was captured once.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[Any, ...]] = []
        # Within the step; kept, so that no address is used twice. Gradients that others hold too would be copied.
        self._made: dict[int, torch.UntypedStorage] = {}

    def before(self, name: str, arguments: Iterable[Any]) -> None:
        """Take down an operation that is about to be done."""
        self.operations.append((name, *map(self._told, arguments)))

    def after(self, results: Iterable[Any], given: Iterable[Tensor]) -> None:
        """Note which of the results are new: neither views of what was given nor changed in place."""
        known = {tensor.untyped_storage().data_ptr() for tensor in given if tensor.layout is torch.strided}
        for result in results:
            if isinstance(result, Tensor) and result.layout is torch.strided:
                storage = result.untyped_storage()
                if storage.data_ptr() not in known:
                    self._made.setdefault(storage.data_ptr(), storage)

    def _told(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return type(value).__name__ if isinstance(value, torch.Generator) else repr(value)
        within = value.untyped_storage().data_ptr() in self._made
        return tuple(value.shape), value.stride(), value.dtype, None if within else value.data_ptr()

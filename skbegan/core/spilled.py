"""Generated images of all cells, that classifiers are fitted on: in memory that does not grow with the cells."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import IO, Self

import numpy as np
import torch
from torch import Tensor

IN_MEMORY = 2**30  # bytes on the device, at most; what is more goes to a temporary file


class SpilledRows:
    """Rows (n, ...) that are computed part by part and then read in any order, on the device where they came from.

    While they are few they stay there; else all of them go to a temporary file, and rows are read from it.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._bytes = self._n = 0
        self._file: IO[bytes] | None = None
        self._values: Tensor | np.ndarray | None = None
        self._device = torch.device("cpu")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._parts, self._values = [], None
        if self._file is not None:
            self._file.close()

    def add(self, rows: Tensor) -> None:
        """Add rows at the end; none can be added once some were read."""
        self._device = rows.device
        self._n += len(rows)
        self._bytes += rows.numel() * rows.element_size()
        self._parts.append(rows)
        if self._bytes > IN_MEMORY:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="skbegan-")
            for part in self._parts:
                self._file.write(np.ascontiguousarray(part.cpu().numpy()).data)
            self._parts = [rows[:0]]

    def __len__(self) -> int:
        return self._n

    @property
    def device(self) -> torch.device:
        """Where rows are handed out."""
        return self._device

    @property
    def values(self) -> Tensor | np.ndarray:
        """All rows: a tensor on the device, or an array in the file."""
        if self._values is None and self._file is None:
            self._values, self._parts = torch.cat(self._parts), []
        elif self._values is None:
            assert self._file is not None
            self._file.flush()
            like = self._parts[0]
            dtype = like.cpu().numpy().dtype
            self._values = np.memmap(self._file, dtype, "r", shape=(self._n, *like.shape[1:]))
        return self._values

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return rows; a tensor of positions is where they are: on the device, or on the CPU for a file."""
        values = self.values
        if isinstance(values, Tensor):
            return values[rows]
        found = torch.from_numpy(np.array(values[rows if isinstance(rows, slice) else rows.numpy()]))
        if self._device.type == "cuda":
            found = found.pin_memory()
        return found.to(self._device, non_blocking=True)

    @property
    def are_in_memory(self) -> bool:
        """Whether positions of rows have to be on the device, and not on the CPU."""
        return self._file is None

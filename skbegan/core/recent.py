"""The rows that were added last, in memory that stays where it is."""

from __future__ import annotations

import torch
from torch import Tensor


class Recent:
    """The last rows that were added, each with a code, in a ring buffer: new ones overwrite the oldest.

    On a card :meth:`read` returns all rows in each step as they lie, those that were not filled yet with zeros, and the
    place of the next is kept there: shapes and addresses do not change. On a CPU it returns the rows there are, oldest
    first, whose sums are then those of a queue to the last bit.

    Parameters
    ----------
    size : int
        Rows that are kept; a larger addition leaves its last ones.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._rows: Tensor | None = None
        self._on_host = 0  # rows that were added, as far as they are asked for there

    def _make(self, rows: Tensor, codes: Tensor) -> None:
        self._rows = rows.new_zeros(self.size, *rows.shape[1:])
        self._codes = codes.new_zeros(self.size)
        self._added = torch.zeros((), dtype=torch.int64, device=rows.device)
        self._places = torch.arange(self.size, device=rows.device)

    def state(self) -> dict[str, Tensor] | None:
        """Return what a resumed run needs; None if nothing was added."""
        return None if self._rows is None else {"rows": self._rows, "codes": self._codes, "added": self._added}

    def restore(self, state: dict[str, Tensor] | None, device: torch.device) -> None:
        """Take up what :meth:`state` returned.

        Raises
        ------
        ValueError, LookupError, RuntimeError
            If it is of another memory.
        """
        if state is None:
            self.forget()
            return
        rows, codes, added = state["rows"], state["codes"], state["added"]
        if len(rows) != self.size or len(codes) != self.size or added.ndim or int(added) < 0:
            raise ValueError("the memory of earlier features is of another size")
        self._make(rows.to(device), codes.to(device))
        assert self._rows is not None
        self._on_host = int(added)
        for own, value in ((self._rows, rows), (self._codes, codes), (self._added, added)):
            own.copy_(value)

    def forget(self) -> None:
        """Empty the memory, in place."""
        if self._rows is not None:
            torch._foreach_zero_([self._rows, self._codes, self._added])
            self._on_host = 0

    @torch.no_grad()
    def add(self, rows: Tensor, codes: Tensor) -> None:
        """Add rows (n, ...) with their codes (n,)."""
        rows, codes = rows[-self.size :], codes[-self.size :]
        if self._rows is None:
            self._make(rows, codes)
        assert self._rows is not None
        places = (self._places[: len(rows)] + self._added) % self.size
        self._rows.index_copy_(0, places, rows)
        self._codes.index_copy_(0, places, codes)
        self._added.add_(len(rows))
        self._on_host += len(rows)

    def read(self) -> tuple[Tensor, Tensor]:
        """Return rows and codes, see the class."""
        assert self._rows is not None, "add comes first"
        rows, codes = self._rows, self._codes
        if rows.device.type == "cuda":
            return rows, codes
        added = self._on_host
        if added < self.size:
            return rows[:added], codes[:added]
        first = added % self.size
        if first == 0:
            return rows, codes
        return torch.cat([rows[first:], rows[:first]]), torch.cat([codes[first:], codes[:first]])

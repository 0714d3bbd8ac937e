"""What was found in a table of cells and in the files that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skbegan.design import Design, removal_verdict, what_is_weak
from skbegan.labels.arrays import have_labels

__all__ = ["TableReport", "count_cells", "verdict_of"]

_MOST_COLUMNS, _MOST_ROWS, _MOST_NAMES = 8, 20, 5
_MOST_PER_CHUNK = 16  # images
_LABEL = 20  # letters of a label that are shown


@dataclass(frozen=True, repr=False)
class TableReport:
    """What was found in a table of cells and in the files that it names; ``print(report)`` shows it.

    Attributes
    ----------
    n_rows, n_cells : int
        Rows of the table, and those kept.
    counts : DataFrame
        Cells by cell type (rows) and batch (columns).
    design : str
        What the counts mean for the removal of the batch.
    images : dict of str to dict
        For ``"bf"`` and ``"qpi"``: ``columns``; ``sizes``, ``dtypes`` and ``axes``, counted by cells; ``n_channels``;
        and ``range``, the smallest and the largest value of each channel in a sample of cells.
    n_sampled : int
        Cells in that sample.
    missing : list of str
        Files that were not there, whose rows were left out.
    duplicates : list of int
        Positions of rows whose brightfield is that of an earlier row.
    fit : str
    image_size, frame : int or None
        Side of the images, and side of the square, in the pixels of the files, that became it.
    n_padded, n_cut, n_rescaled : int
        Cells with border added, with pixels cut off, and whose pixels have another size now.
    pages_per_chunk : int
        Most images that a file can only give together.
    in_order : bool
        Whether rows are in the order in which files give such images: then each is read once.
    n_alpha : int
        Images whose alpha channel, which must be opaque, is left out.
    """

    n_rows: int
    n_cells: int
    counts: Any
    design: str
    images: dict[str, dict[str, Any]]
    n_sampled: int
    missing: list[str]
    duplicates: list[int]
    fit: str
    image_size: int
    frame: int | None
    n_padded: int
    n_cut: int
    n_rescaled: int
    pages_per_chunk: int = 1
    in_order: bool = False
    n_alpha: int = 0
    root: str = ""

    @property
    def scale(self) -> float | None:
        """New pixels per pixel of the files, one for all cells; None where they were stretched, each by its own."""
        return None if self.frame is None else self.image_size / self.frame

    def __str__(self) -> str:
        lines = [f"{self.n_cells} cells of {self.n_rows} rows" + (f", files under {self.root}" if self.root else "")]
        lines += _table(self.counts)
        lines.append(f"Design: {self.design}")
        for name, found in self.images.items():
            lines.append(f"{name} from {', '.join(found['columns'])}: {_images(found)}")
            spans = [f"{low:.6g} to {high:.6g}" for low, high in found["range"]]
            lines.append(f"  values from {', '.join(spans)} (in {self.n_sampled} of the cells)")
        lines.append(f"fit={self.fit!r}, image_size={self.image_size}: {self._fitted()}")
        if self.pages_per_chunk > _MOST_PER_CHUNK and not self.in_order:
            lines.append(
                f"Slow: files are stored in chunks of {self.pages_per_chunk} images, and a whole chunk is read for "
                "each image, since rows are in another order. Sort the table by file and image, store one image per "
                "chunk, or use lazy=False"
            )
        if self.n_alpha:
            lines.append(f"Alpha channels left out: {self.n_alpha} images")
        if self.missing:
            lines.append(f"Missing: {len(self.missing)} files, their rows left out: {_few(self.missing)}")
        if self.duplicates:
            lines.append(
                f"Duplicates: {len(self.duplicates)} rows have the brightfield of an earlier row, rows "
                f"{_few(self.duplicates)} of those kept (from 0)"
            )
        return "\n".join(lines)

    __repr__ = __str__

    def _fitted(self) -> str:
        done = []
        if self.n_padded:
            done.append(f"{self.n_padded} cells padded with the median of their border")
        if self.n_cut:
            done.append(f"{self.n_cut} cells cut at their centre")
        if self.n_rescaled:
            how = (
                "each by its own factors"
                if self.scale is None
                else f"all by {self.scale:.4g}: frame={self.frame} pixels became {self.image_size}, so that a pixel is "
                f"{1 / self.scale:.4g} times as wide as it was (frame={self.frame} gives other tables this scale)"
            )
            done.append(f"{self.n_rescaled} cells rescaled, {how}")
        elif done:
            done.append("none rescaled")
        return "; ".join(done) or "all cells had this size"


def count_cells(batch: NDArray[Any], cell_type: NDArray[Any] | None) -> Any:
    """Return a table of the numbers of cells by cell type and batch."""
    import pandas as pd

    batches, codes = np.unique(batch, return_inverse=True)
    types, type_codes = _encoded(cell_type, len(batch))
    design = Design.of(codes, type_codes, len(batches), len(types))
    counts = design.counts
    if design.unlabelled is not None:
        counts, types = np.vstack([counts, design.unlabelled]), np.append(types.astype(object), "(unknown)")
    return pd.DataFrame(counts, index=pd.Index(types, name="cell type"), columns=pd.Index(batches, name="batch"))


def verdict_of(batch: NDArray[Any], cell_type: NDArray[Any] | None) -> str:
    """Say whether batch and cell type can be told apart in this design."""
    batches, codes = np.unique(batch, return_inverse=True)
    types, type_codes = _encoded(cell_type, len(batch))
    design = Design.of(codes, type_codes, len(batches), len(types))
    known = None if cell_type is None or not have_labels(cell_type)[0].any() else types
    message = removal_verdict(design, batches, known, "conditional").message
    weak = what_is_weak(design, batches, known)
    if message is not None and message != weak:
        return message
    lacking = int((design.counts == 0).sum())
    return (
        "batches are linked by the cell types that they share, so that batch and cell type can be told apart"
        + (f"; {lacking} of {design.counts.size} combinations have no cell" if lacking else "")
        + (f"; but {weak}" if weak else "")
    )


def _encoded(cell_type: NDArray[Any] | None, n: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
    known = np.zeros(n, bool) if cell_type is None else have_labels(cell_type)[0]
    if cell_type is None or not known.any():
        return np.array(["(not given)"]), np.zeros(n, np.intp)
    codes = np.full(n, -1)
    types, codes[known] = np.unique(cell_type[known].astype(np.str_), return_inverse=True)
    return types, codes


def _images(found: dict[str, Any]) -> str:
    sizes: Counter[tuple[int, int]] = found["sizes"]
    low, high = (tuple(f(edges) for edges in zip(*sizes, strict=True)) for f in (min, max))
    span = f"{low[0]} x {low[1]}" + ("" if len(sizes) == 1 else f" to {high[0]} x {high[1]}")
    n = found["n_channels"]
    parts = [
        _kinds(found["dtypes"]),
        f"{span} pixels (height x width)" + ("" if len(sizes) == 1 else f" in {len(sizes)} sizes"),
        f"{n} channel{'s' if n > 1 else ''}",
        f"axes {_kinds(found['axes'])}",
    ]
    return ", ".join(parts)


def _kinds(counted: Counter[str]) -> str:
    if len(counted) == 1:
        return next(iter(counted))
    return " and ".join(f"{kind} ({number})" for kind, number in counted.most_common(_MOST_NAMES))


def _table(counts: Any) -> list[str]:
    """Return the lines of a small table, with what does not fit counted."""
    batches = [str(name)[:_LABEL] for name in counts.columns[:_MOST_COLUMNS]]
    widths = [max(len(name), 6) for name in batches]
    first = max([len("cell type"), *(len(str(name)[:_LABEL]) for name in counts.index[:_MOST_ROWS])])
    lines = [_row("cell type", batches, first, widths)]
    for name, row in zip(counts.index[:_MOST_ROWS], counts.to_numpy(), strict=False):
        lines.append(_row(str(name)[:_LABEL], row[:_MOST_COLUMNS], first, widths))
    more = [
        f"{len(labels) - shown} more {what}"
        for labels, shown, what in (
            (counts.columns, _MOST_COLUMNS, "batches"),
            (counts.index, _MOST_ROWS, "cell types"),
        )
        if len(labels) > shown
    ]
    return lines + ([f"  ... and {' and '.join(more)}, see counts"] if more else [])


def _row(name: str, values: Iterable[Any], first: int, widths: Sequence[int]) -> str:
    return f"  {name:<{first}}" + "".join(f"  {value!s:>{width}}" for value, width in zip(values, widths, strict=True))


def _few(names: Sequence[Any]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(map(str, names[:_MOST_NAMES])) + (f" and {more} more" if more > 0 else "")

"""The design of an experiment: which cell types were imaged in which batches, what links them, fool targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skbegan.labels.codes import counted


@dataclass(frozen=True, eq=False)
class Design:
    """Counts of cells by cell type and batch.

    Attributes
    ----------
    counts : ndarray of int, shape (n_cell_types, n_batches)
    reference : int
        Code of the reference batch.
    unlabelled : ndarray of int, shape (n_batches,), or None
        Cells of each batch whose type is not known, which `counts` leaves out; None where there are none.
    """

    counts: np.ndarray
    reference: int = 0
    unlabelled: np.ndarray | None = None

    @classmethod
    def of(
        cls, batch: np.ndarray, cell_type: np.ndarray, n_batches: int, n_cell_types: int, reference: int = 0
    ) -> Design:
        """Count cells.

        Parameters
        ----------
        batch, cell_type : ndarray of int, shape (n,)
            Codes from 0; a cell type of -1 is not known.
        n_batches, n_cell_types : int
        reference : int, default=0
        """
        counts, unlabelled = counted(cell_type, n_cell_types, batch, n_batches)
        return cls(counts, reference, unlabelled if unlabelled.any() else None)

    @property
    def n_cell_types(self) -> int:
        return int(self.counts.shape[0])

    @property
    def n_batches(self) -> int:
        return int(self.counts.shape[1])

    @property
    def is_confounded(self) -> bool:
        """Whether every cell type occurs in one batch only."""
        return bool(((self.counts > 0).sum(axis=1) == 1).all())

    def linked_batches(self, min_cells: int = 1) -> list[list[int]]:
        """Return the groups of batches that are linked by cell types with at least `min_cells` cells in each."""
        from scipy.sparse.csgraph import connected_components

        table = (self.counts >= min_cells).astype(int)
        n_groups, group = connected_components(table.T @ table, directed=False)
        return [np.flatnonzero(group == g).tolist() for g in range(n_groups)]

    def comparable(self, min_cells: int) -> np.ndarray:
        """Say which batches the cells of each type can be compared with, over groups of at least `min_cells` cells.

        Batches compare that share a type, or are linked by others that do.

        Returns
        -------
        comparable : ndarray of bool, shape (n_cell_types, n_batches)
        """
        known = (self.counts >= min_cells).astype(np.int64)
        reach = known > 0
        while not np.array_equal(wider := known @ known.T @ reach > 0, reach):
            reach = wider
        return reach

    def fool_targets(self, kind: str) -> np.ndarray:
        """Return what the generator wants the adversaries to say of the cells of each type.

        Parameters
        ----------
        kind : {"conditional", "uniform", "reference"}
            ``"conditional"`` is p(batch given cell type), the best prediction from a profile without batch
            effect, also where types are missing from batches. ``"uniform"`` gives each batch the same probability.
            ``"reference"`` is the published target: every cell is to be taken for one of the reference batch.

        Returns
        -------
        targets : ndarray of float32, shape (n_cell_types, n_batches)
            Rows sum to 1.
        """
        if kind == "uniform":
            return np.full(self.counts.shape, 1.0 / self.n_batches, dtype=np.float32)
        if kind == "reference":
            return np.tile(np.eye(self.n_batches, dtype=np.float32)[self.reference], (self.n_cell_types, 1))
        counts = self.counts.astype(np.float32)
        marginal = counts.sum(axis=0, keepdims=True) / counts.sum()
        totals = counts.sum(axis=1, keepdims=True)
        # A type without a training cell is never drawn; its row only has to be a distribution.
        return np.where(totals > 0, counts / np.maximum(totals, 1), marginal)


@dataclass(frozen=True)
class Verdict:
    """Whether there is a batch effect to remove, and what the user should know of it."""

    removes: bool
    message: str | None = None


def removal_verdict(
    design: Design, batches: Sequence[Any] | np.ndarray | None, cell_types: Any, batch_target: str
) -> Verdict:
    """Say whether stage 2 has anything to do, and where the design makes it impossible or unsafe.

    Parameters
    ----------
    design : Design
        Of all cells.
    batches, cell_types : sequence or None
        Labels; None where none were given.
    batch_target : str
    """
    if design.n_batches < 2:
        what = "no batch was given" if batches is None else f"all cells are of batch {str(batches[0])!r}"
        return Verdict(
            False,
            f"{what}: there is no batch effect to learn, so stage 2 is skipped and the model is only pretrained. "
            "Pass batch (day, plate or site of every cell) with at least two values, or removal_epochs=0 to say that "
            "this is meant.",
        )
    if design.n_cell_types < 2:
        what = "no cell_type was given" if cell_types is None else "all cells are of one cell type"
        return Verdict(
            True,
            f"{what}: nothing tells biology from batch, and differences between the cells of different batches will be "
            "removed whatever they are. Pass cell_type (line, drug, dose, phase) if the cells differ.",
        )
    if design.is_confounded:
        skipped = batch_target == "conditional"
        return Verdict(
            not skipped,
            "batch and cell type are confounded: every cell type occurs in one batch only, so that their effects "
            f"cannot be told apart. {what_would_link(design, batches, cell_types)} "
            + (
                "Stage 2 is skipped. Image at least one cell type (a control) in several batches, or choose "
                "batch_target='uniform' to remove the batch at the price of the cell type."
                if skipped
                else f"batch_target={batch_target!r} will remove the cell type with the batch. Image at least one cell "
                "type (a control) in several batches."
            ),
        )
    groups = design.linked_batches()
    if len(groups) > 1:
        assert batches is not None
        names = " | ".join(_shortened(batches[b] for b in group) for group in groups[:10])
        return Verdict(
            True,
            "batch and cell type are partly confounded: the batches fall into groups that share no cell type "
            f"({names}{' | ...' if len(groups) > 10 else ''}). {what_would_link(design, batches, cell_types)} "
            "Differences between these groups cannot be told from differences between their cell types and may stay. "
            "Image a common cell type (a control) in all batches.",
        )
    return Verdict(True, what_is_weak(design, batches, cell_types))


ENOUGH = 9  # cells of a type in a batch, for its style to be measured: one may be held out of training


def what_would_link(
    design: Design, batches: Sequence[Any] | np.ndarray | None, cell_types: Any, min_cells: int = 1, limit: int = 3
) -> str:
    """Name the comparisons of batches that the design makes impossible, and the cells that would make each possible.

    Each sentence is of two batches in groups that share no cell type, the largest group first, and of the cell type
    whose cells would link them: of those of one group the most frequent one.

    Parameters
    ----------
    design : Design
    batches, cell_types : sequence or None
        Labels.
    min_cells : int, default=1
        Cells of a type that a batch must have for the type to be counted as shared.
    limit : int, default=3
        Comparisons that are named.
    """
    groups = sorted(design.linked_batches(min_cells), key=lambda group: -int(design.counts[:, group].sum()))
    if len(groups) < 2 or batches is None:
        return ""
    counts = design.counts
    first, said = groups[0], []
    for other in groups[1 : limit + 1]:
        here, there = (max(group, key=lambda b: int(counts[:, b].sum())) for group in (first, other))
        code = int(counts[:, here].argmax())
        kind = "this type" if cell_types is None else str(cell_types[code])
        one, two = str(batches[here]), str(batches[there])
        shared = [t for t in range(len(counts)) if counts[t, here] and counts[t, there]]
        if shared:
            code = max(shared, key=lambda t: int(min(counts[t, here], counts[t, there])))
            kind, lacking = str(cell_types[code]), int(counts[code, [here, there]].argmin())
            few, where = counts[code, [here, there]][lacking], (one, two)[lacking]
            said.append(
                f"Batches {one} and {two} share no cell type with {min_cells} cells or more in both ({kind} has {few} "
                f"in {where}): {min_cells - few} more of {kind} in batch {where} would connect them."
            )
            continue
        if counts[:, there].sum() == 0:
            n = 0 if design.unlabelled is None else int(design.unlabelled[there])
            said.append(
                f"Batch {two} has no cell of known type: labels for some of its {n} cells, or some cells of {kind}, "
                f"would connect it with batch {one}."
            )
            continue
        text = f"Batches {one} and {two} share no cell type: some cells of {kind} in batch {two} would connect them"
        if design.unlabelled is not None and design.unlabelled[there]:
            text += f", or labels for the {design.unlabelled[there]} cells of unknown type there"
        said.append(f"{text}.")
    if len(groups) > limit + 1:
        said.append(f"{len(groups) - limit - 1} more groups of batches lack such a link.")
    return " ".join(said)


def what_is_weak(design: Design, batches: Sequence[Any] | np.ndarray | None, cell_types: Any) -> str | None:
    """Say where batches are linked by too few cells only for what they do to images to be compared."""
    if len(design.linked_batches(ENOUGH)) < 2 or batches is None or cell_types is None:
        return None
    return (
        f"some batches are linked by few cells only: with fewer than {ENOUGH} cells of a type in a batch its style "
        f"cannot be measured. {what_would_link(design, batches, cell_types, ENOUGH)}"
    )


def _shortened(labels: Iterable[Any], limit: int = 10) -> str:
    names = [str(label) for label in labels]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

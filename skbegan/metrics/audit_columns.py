"""Which part of the batch leaks, where batches are the rows of a table: day, plate, position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.utils import Bunch

from skbegan.labels.tables import BatchTable
from skbegan.metrics._checks import Array
from skbegan.metrics.leakage import measure_leakage
from skbegan.metrics.probes import Design, NothingToMeasure, Probe


def others_of(table: BatchTable, column: str) -> list[str]:
    """Return the columns that are no parts of a column: those whose labels do not all occur with one of its labels.

    Plates that are numbered through belong to one day each. Cells of one plate are then all of one day, and how well
    the day is read cannot be asked among them.
    """
    own = np.unique(table.columns[column], return_inverse=True)[1]
    found = []
    for name, labels in table.columns.items():
        if name == column:
            continue
        codes = np.unique(labels, return_inverse=True)[1]
        pairs = np.unique(np.stack([codes, own]), axis=1)
        if pairs.shape[1] > codes.max() + 1:
            found.append(name)
    return found


def measure_columns(
    sources: Mapping[str, tuple[Array | None, int | None, int]],
    table: BatchTable,
    design: Design,
    probe: Probe,
    n_splits: int,
    seed: int,
) -> Bunch:
    """Return, by column, what a probe reads of it from each source, within the cell type and within the other columns.

    Parameters
    ----------
    sources : mapping of str to (ndarray of shape (n, d) or None, int or None, int)
        Values, principal components that probes get of them, and repeats.
    table : BatchTable
    design : Design
        Of the whole batches.
    probe : str
    n_splits, seed : int

    Returns
    -------
    columns : Bunch
        Column -> Bunch of ``n_labels``, ``others`` (columns held fixed in the second), and by source ``leakage`` and,
        for the features alone, ``within_others``: Bunches as from :func:`batch_leakage`, or why there is none.
    """
    found = Bunch()
    for name, labels in table.columns.items():
        values, codes = np.unique(labels, return_inverse=True)
        others = others_of(table, name)
        groups = [np.unique(table.columns[other], return_inverse=True)[1] for other in others]
        fixed = np.unique(np.stack([design.cell_type, *groups]), axis=1, return_inverse=True)[1].ravel()
        within_type = design._replace(batches=values, batch=codes)
        within_others = within_type._replace(types=np.arange(fixed.max() + 1), cell_type=fixed)
        column = found[name] = Bunch(n_labels=len(values), others=others, leakage={}, within_others={})
        for source, (X, components, n_repeats) in sources.items():
            if X is None:
                continue
            for key, labelled in (("leakage", within_type), ("within_others", within_others)):
                if key == "within_others" and (source != "features" or not others):
                    continue
                try:
                    rng = np.random.default_rng(seed)
                    column[key][source] = measure_leakage(X, labelled, [probe], n_splits, n_repeats, components, rng)[0]
                except NothingToMeasure as reason:
                    column[key][source] = str(reason)
    return found


def rows_of_columns(found: Mapping[str, Bunch]) -> dict[str, dict[str, float]]:
    """Return the figures of each column for the table of an audit."""
    rows: dict[str, dict[str, float]] = {}
    for name, column in found.items():
        row = rows[name] = {"n_labels": column.n_labels}
        features = column.leakage.get("features")
        if isinstance(features, Bunch):
            row |= {"leakage": features.score, "stderr": features.stderr}
            row |= {"accuracy": features.accuracy, "chance": features.chance}
        for source in ("raw", "image", "image_raw"):
            if isinstance(other := column.leakage.get(source), Bunch):
                row[f"{source}_leakage"] = other.score
        within = column.within_others.get("features")
        if isinstance(within, Bunch):
            row |= {"leakage_within_others": within.score, "within_others_stderr": within.stderr}
            row |= {"within_others_chance": within.chance}
    return rows


def notes_on_columns(found: Mapping[str, Bunch], reader: str) -> tuple[list[str], dict[str, str]]:
    """Return what a reader of the table has to know, and what was not measured and why."""
    notes = [
        f"Each batch column: how well a {reader} reads it within a cell type (leakage: 0 is chance, 1 is fully; "
        "accuracy against chance), and within others: among cells of a type that agree in the other columns."
    ]
    skipped = {}
    for name, column in found.items():
        if parts := [other for other in found if other != name and other not in column.others]:
            notes.append(f"{', '.join(parts)} is a part of {name}, and is not held fixed where {name} is read.")
        for key, place in (("leakage", ""), ("within_others", "_within_others")):
            if isinstance(reason := column[key].get("features"), str):
                skipped[f"leakage{place} of {name}"] = reason
    return notes, skipped

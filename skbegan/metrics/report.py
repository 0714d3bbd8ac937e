"""The table of an audit: as text, HTML, dict or data frame."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from sklearn.utils import Bunch

_DIGITS = {
    "mae": "#.3g",
    "rmse": "#.3g",
    "psnr": ".1f",
    "effective_dimensions": ".1f",
    "effective_rank": ".1f",
    "directions": ".0f",
}  # else three decimals


@dataclass(frozen=True)
class Measure:
    """One row of an audit.

    Attributes
    ----------
    name, section : str
        What is measured, and from what.
    value : float
    spread : float or None
        Standard deviation to expect of the value, were the audit repeated with other cells, folds and probes; None
        where it was not estimated.
    chance : float or None
        What the measure gives when there is nothing to read; None where there is no such level.
    better : {"higher", "lower"} or None
    raw, truth : float or None
        The same measure of the raw images and of the batch-free truth.
    n_cells : int
        Cells that were scored.

    Examples
    --------
    >>> from skbegan.metrics import Measure
    >>> found = Measure("leakage", "features", 0.1, 0.02, 0.0, "lower", 0.9, None, 200)
    >>> found.value < found.raw
    True
    """

    name: str
    section: str
    value: float
    spread: float | None
    chance: float | None
    better: str | None
    raw: float | None
    truth: float | None
    n_cells: int


@dataclass(eq=False)
class Audit:
    """What :func:`audit` found. Prints as a table; a notebook shows it as one.

    ``result["leakage_linear"]`` is a :class:`Measure`, and so on for each key of ``measures``.

    Attributes
    ----------
    title : str
    about : list of str
        How it was measured.
    measures : dict of str to Measure
        The rows, by key.
    per_batch, per_type : dict of label to (dict of str to float)
        Selected figures of each batch and each cell type, under the same keys where they are the same measure.
    skipped : dict of str to str
        Measures that these cells do not allow, and why.
    per_column : dict of str to (dict of str to float)
        Where the batch was a table, for each of its columns: ``n_labels``; ``leakage``, ``stderr``, ``accuracy`` and
        ``chance``, read from the features within cell type; the leakage from raw and predicted images; and
        ``leakage_within_others``, among cells that also agree in the other columns.
    details : Bunch
        ``model``, ``raw``, ``truth``: what the metric functions return with ``return_details``.

    Examples
    --------
    >>> from skbegan.metrics import Audit, Measure
    >>> leakage = Measure("leakage", "features", 0.1, 0.02, 0.0, "lower", 0.9, None, 200)
    >>> found = Audit("an audit", [], {"leakage_linear": leakage}, {}, {}, {"mae": "no target images"})
    >>> found["leakage_linear"].value
    0.1
    >>> found.to_dict()["skipped"]
    {'mae': 'no target images'}
    """

    title: str
    about: list[str]
    measures: dict[str, Measure]
    per_batch: dict[Any, dict[str, float]]
    per_type: dict[Any, dict[str, float]]
    skipped: dict[str, str]
    details: Bunch = field(repr=False, default_factory=Bunch)
    per_column: dict[str, dict[str, float]] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Measure:
        if key not in self.measures:
            why = f" was not measured: {self.skipped[key]}" if key in self.skipped else " is no measure of this audit"
            raise KeyError(f"{key!r}{why}. There are {', '.join(self.measures)}.")
        return self.measures[key]

    def __repr__(self) -> str:
        return f"<{self.title}; print it, or see .measures>"

    # ------------------------------------------------------------------------------------------- to other forms
    def to_dict(self) -> dict[str, Any]:
        """Return plain Python objects, ready for JSON; labels become strings, missing figures None.

        Returns
        -------
        audit : dict
            The attributes by name, but for ``details``.
        """

        def plain(row: dict[str, Any]) -> dict[str, Any]:
            return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}

        return {
            "title": self.title,
            "about": list(self.about),
            "measures": {key: plain(asdict(measure)) for key, measure in self.measures.items()},
            "per_batch": {str(label): plain(row) for label, row in self.per_batch.items()},
            "per_type": {str(label): plain(row) for label, row in self.per_type.items()},
            "per_column": {label: plain(row) for label, row in self.per_column.items()},
            "skipped": dict(self.skipped),
        }

    def to_frame(self, table: str = "measures") -> Any:
        """Return a pandas DataFrame.

        Parameters
        ----------
        table : {"measures", "per_batch", "per_type", "per_column"}, default="measures"

        Returns
        -------
        frame : DataFrame
            A row for each measure, batch, cell type or column of the batch.

        Raises
        ------
        ValueError
            For another table.
        ImportError
            Without pandas, which skbegan does not need otherwise.
        """
        names = {"measures": "measure", "per_batch": "batch", "per_type": "cell type", "per_column": "batch column"}
        if table not in names:
            raise ValueError(f"table must be one of {list(names)}, got {table!r}.")
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas. to_dict does without.") from error
        if table == "measures":
            rows = {key: asdict(measure) for key, measure in self.measures.items()}
        else:
            rows = getattr(self, table)
        frame = pd.DataFrame.from_dict(rows, orient="index")
        return frame.rename_axis(names[table])

    def __str__(self) -> str:
        lines = [self.title, *(f"  {line}" for line in self.about), ""]
        for caption, head, rows in self._tables():
            lines += [*_text_table(caption, head, rows), ""]
        return "\n".join(lines + self._notes()).rstrip()

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{html.escape(self.title)}</b><br>{'<br>'.join(html.escape(a) for a in self.about)}</p>"]
        for caption, head, rows in self._tables():
            cells = "".join(
                f"<th style='text-align:{'left' if k == 0 else 'right'}'>{h}</th>" for k, h in enumerate(head)
            )
            parts.append(f"<table><caption style='text-align:left'>{html.escape(caption)}</caption>")
            parts.append(f"<thead><tr>{cells}</tr></thead><tbody>")
            for row in rows:
                if len(row) == 1:
                    parts.append(f"<tr><th colspan={len(head)} style='text-align:left'>{html.escape(row[0])}</th></tr>")
                else:
                    align = ("left", *["right"] * (len(row) - 1))
                    cells = "".join(
                        f"<td style='text-align:{a}'>{html.escape(c)}</td>" for a, c in zip(align, row, strict=True)
                    )
                    parts.append(f"<tr>{cells}</tr>")
            parts.append("</tbody></table>")
        return "".join([*parts, *(f"<p><small>{html.escape(note)}</small></p>" for note in self._notes())])

    # ------------------------------------------------------------------------------------------------- contents
    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return (caption, column names, rows); a row of one entry is a heading."""
        references = [
            name for name in ("raw", "truth") if any(getattr(m, name) is not None for m in self.measures.values())
        ]
        head = ["", "value", "+/-", "chance", "better", *references, "cells"]
        rows: list[list[str]] = []
        section = None
        for key, m in self.measures.items():
            if m.section != section:
                section = m.section
                rows.append([section])
            shown = [_number(key, v) for v in (m.value, m.spread, m.chance)]
            shown += [m.better or "", *(_number(key, getattr(m, name)) for name in references), str(m.n_cells)]
            rows.append([m.name, *shown])
        tables = [("", head, rows)]
        groups: dict[str, dict[Any, dict[str, float]]] = {"each batch column": {**self.per_column}}
        for caption, each in (groups | {"each batch": self.per_batch, "each cell type": self.per_type}).items():
            keys = list(dict.fromkeys(key for row in each.values() for key in row))
            if keys:
                body = [[str(label), *(_number(key, row.get(key)) for key in keys)] for label, row in each.items()]
                tables.append((caption, ["", *(_SHORT.get(key, key.replace("_", " ")) for key in keys)], body))
        return tables

    def _notes(self) -> list[str]:
        measures = self.measures.values()
        notes = []
        if any(m.spread is not None for m in measures):
            notes.append("+/-: standard deviation to expect with other cells of these batches, other folds and probes.")
        if any("leakage" in key for key in self.measures):
            notes.append("Leakage: how well a fresh probe reads the batch within a cell type; 0 is chance, 1 is fully.")
        if any(key.startswith("retained_") for key in self.measures):
            notes.append(
                "R2: what a fresh kernel probe predicts of the differences between cells of a type; 0: nothing."
            )
        if any(m.raw is not None for m in measures):
            notes.append(
                "raw: the same from the brightfield pixels (for the features) or from the measured target images (for "
                "the images)."
            )
        if any(m.truth is not None for m in measures):
            notes.append("truth: the same from the batch-free images, the most that can be expected.")
        return notes + [f"Not measured: {key}. {why}" for key, why in self.skipped.items()]


_SHORT = {
    "n_cells": "cells",
    "n_batches": "batches",
    "n_types": "types",
    "n_labels": "labels",
    "leakage": "leakage",
    "stderr": "+/-",
    "raw_leakage": "raw",
    "image_leakage": "images",
    "image_raw_leakage": "images raw",
    "leakage_within_others": "within others",
    "within_others_stderr": "+/-",
    "within_others_chance": "chance",
    "cell_type_accuracy": "cell type",
    "within_batch_accuracy": "within batch",
    "cross_batch_accuracy": "cross batch",
    "leakage_linear": "leak lin",
    "leakage_mlp": "leak MLP",
    "leakage_knn": "leak 15-NN",
    "leakage_trees": "leak trees",
    "mae": "MAE",
    "pearson": "Pearson",
    "truth_mae": "MAE truth",
    "truth_pearson": "Pearson truth",
}


def _number(key: str, value: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int):
        return str(value)
    text = format(value, _DIGITS.get(key.removeprefix("truth_"), ".3f")).removesuffix(".")
    return text.removeprefix("-") if float(text) == 0 else text


def _text_table(caption: str, head: list[str], rows: list[list[str]]) -> list[str]:
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[k]) for row in [head, *full]) for k in range(len(head))]
    widths[0] = max([widths[0], len(caption) - 2, *(len(row[0]) - 2 for row in rows)])

    def line(row: list[str]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join(["  " + first, *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]).rstrip()

    top = line(head)
    lines = [caption + top[len(caption) :], "-" * max(len(top), 2)]
    for row in rows:
        lines.append(row[0] if len(row) == 1 else line(row))
    return lines

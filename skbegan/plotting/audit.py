"""An audit as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from skbegan.plotting._common import (
    COLOURS,
    FONT,
    GREY,
    LETTER,
    MARKERS,
    SMALL,
    ink,
    new_figure,
    plain,
    shortened,
    style,
)

_MAX_AUDITS = 10
_LABEL = 30  # letters of a batch or a type beside its row
_PROBES = {"linear": "linear probe", "mlp": "MLP", "knn": "15-NN", "trees": "boosted trees", "cnn": "CNN"}
_LEAST = -0.5  # R2 below are drawn there
_RAW = {"marker": "s", "facecolor": "none", "edgecolor": GREY, "linewidths": 1.3, "s": 58}
_TRUTH = {"marker": "D", "linewidths": 0, "s": 24}
_ROW, _DOT = 0.27, 0.095  # inches: height of a row, distance of the dots of several audits


class _Row(NamedTuple):
    """A line of a panel; one without values is a heading."""

    label: str
    values: list[float | None]
    spreads: list[float | None]
    chance: float | None = None
    raw: float | None = None
    truth: float | None = None


class AuditDisplay:
    """An audit, or several of the same cells, as dots: batch left, cell type kept, image error; above all cells, below
    each cell type and batch. Chance, raw images and batch-free truth are drawn beside them where they are known.

    Parameters
    ----------
    audits : mapping of str to Audit
        Audits by name, at most ten; what :func:`skbegan.metrics.audit` returns. Chance levels and references are those
        of the first audit that has them, so compare audits of the same cells.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : dict of str to matplotlib Axes
        Those of ``"leakage"``, ``"cell_type"``, ``"retained"``, ``"image_error"``, ``"image_likeness"``,
        ``"leakage_per_type"``, ``"cross_batch_per_batch"`` and ``"error_per_batch"`` that there is something to draw
        in.

    Examples
    --------
    >>> from skbegan.metrics import Audit, Measure
    >>> from skbegan.plotting import AuditDisplay
    >>> leakage = Measure("leakage", "features", 0.1, 0.02, 0.0, "lower", 0.9, None, 200)
    >>> found = Audit("an audit", [], {"leakage_linear": leakage}, {}, {}, {})  # what skbegan.metrics.audit returns
    >>> list(AuditDisplay.from_audit(found).axes_)
    ['leakage']
    """

    def __init__(self, audits: Mapping[str, Any]) -> None:
        self.audits = audits

    @classmethod
    def from_audit(cls, audit: Any, *, figure: Any = None, **plot_params: Any) -> AuditDisplay:
        """Draw one audit, or several by name, e.g. ``{"stage 1": before, "default": after}``.

        Parameters
        ----------
        audit : Audit, or mapping of str to Audit
        figure : matplotlib Figure or SubFigure, default=None
        **plot_params
            Passed to :meth:`plot`.

        Returns
        -------
        display : AuditDisplay

        Raises
        ------
        TypeError, ValueError
            If they are no audits, none, or too many to tell apart.
        """
        named = dict(audit) if isinstance(audit, Mapping) else {"model": audit}
        for name, each in named.items():
            if not hasattr(each, "measures"):
                raise TypeError(f"{name!r} must be what skbegan.metrics.audit returns, got {type(each).__name__}.")
        if not 0 < len(named) <= _MAX_AUDITS:
            raise ValueError(f"One to {_MAX_AUDITS} audits can be drawn, got {len(named)}.")
        return cls(named).plot(figure=figure, **plot_params)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_bf: ArrayLike,
        y_qpi: ArrayLike | None,
        batch: ArrayLike,
        cell_type: ArrayLike,
        *,
        figure: Any = None,
        details: bool = True,
        units: str | None = None,
        **audit_params: Any,
    ) -> AuditDisplay:
        """Audit a fitted model and draw the result.

        Parameters
        ----------
        estimator, X_bf, y_qpi, batch, cell_type
            As in :func:`skbegan.metrics.audit`; cells that the model was not fitted on.
        figure, details, units
            As in :meth:`plot`.
        **audit_params
            Further arguments of :func:`skbegan.metrics.audit`.

        Returns
        -------
        display : AuditDisplay
            With the audit in ``audits["model"]``.
        """
        from skbegan.metrics import audit

        found = audit(estimator, X_bf, y_qpi, batch, cell_type, **audit_params)
        return cls.from_audit(found, figure=figure, details=details, units=units)

    def plot(self, *, figure: Any = None, details: bool = True, units: str | None = None) -> AuditDisplay:
        """Draw the panels.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
        details : bool, default=True
            Draw each cell type and each batch too.
        units : str, default=None
            Of the target images, e.g. ``"rad"``.

        Returns
        -------
        self : AuditDisplay

        Raises
        ------
        ValueError
            If there is nothing to draw.
        """
        unit = f" ({units})" if units else ""
        above = {
            "leakage": ("Batch left", "leakage (0: chance, 1: fully read)", self._leakage()),
            "cell_type": ("Cell type kept", f"accuracy, {self._first()}", self._cell_type()),
            "retained": (
                "Cell kept, within its type",
                f"R2, kernel probe (below {_LEAST:g} drawn there)",
                self._retained(),
            ),
            "image_error": ("Image error", f"MAE{unit}", self._errors("mae", "MAE")),
            "image_likeness": ("Image likeness", "SSIM, Pearson correlation", self._likeness()),
        }
        below = {
            "leakage_per_type": (
                "Batch left, by cell type",
                f"leakage, {self._first()}",
                self._per_type(),
            ),
            "cross_batch_per_batch": (
                "Cell type, by unseen batch",
                "cross-batch accuracy",
                self._per_batch("cross_batch_accuracy", "chance"),
            ),
            "error_per_batch": ("Image error, by batch", *self._batch_error(unit)),
        }
        above = {name: panel for name, panel in above.items() if panel[2]}
        below = {name: panel for name, panel in below.items() if panel[2] and details}
        if not above:
            raise ValueError("The audit holds no measure that can be drawn.")
        axes = self._lay_out(figure, above, below)
        for name, (title, xlabel, rows) in {**above, **below}.items():
            _draw(axes[name], rows, xlabel, bounded="error" not in name, leakage="leakage" in name)
            lower = "error" in name or "leakage" in name
            axes[name].set_title(title, fontsize=FONT, loc="left")
            axes[name].set_title("← better" if lower else "better →", fontsize=SMALL, loc="right", color=GREY)
        self._legend([*above.values(), *below.values()])
        self.axes_ = axes
        return self

    # ---------------------------------------------------------------------------------------------------- layout
    def _lay_out(self, figure: Any, above: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
        """Return the axes: columns for batch, cell type and images, the two image panels one over the other."""
        images = [name for name in above if name.startswith("image_")]
        columns = [[name] for name in above if name not in images] + ([images] if images else [])

        def height(panel: tuple[str, str, list[_Row]]) -> float:
            return len(panel[2]) * _row_height(len(self.audits)) + 0.85

        heights = [max(sum(height(above[name]) for name in column) for column in columns)]
        if below:
            heights.append(max(height(panel) for panel in below.values()))
        n = max(len(columns), len(below))
        longest = max(len(row.label) for panel in (*above.values(), *below.values()) for row in panel[2])
        width = 3.8 + max(min(longest, _LABEL) - 15, 0) * SMALL * LETTER
        self.figure_ = new_figure(figure, (width * n, sum(heights) + 0.45))
        engine = getattr(self.figure_, "get_layout_engine", lambda: None)()
        if figure is None and engine is not None:
            engine.set(w_pad=0.06, h_pad=0.06)
        grid = self.figure_.add_gridspec(len(heights), n, height_ratios=heights)
        axes = {}
        for k, column in enumerate(columns):
            if len(column) == 1:  # straight into the grid, which aligns it with the panel below
                axes[column[0]] = self.figure_.add_subplot(grid[0, k])
                continue
            parts = grid[0, k].subgridspec(len(column), 1, height_ratios=[len(above[name][2]) for name in column])
            for part, name in enumerate(column):
                axes[name] = self.figure_.add_subplot(parts[part])
        for k, name in enumerate(below):
            axes[name] = self.figure_.add_subplot(grid[1, k])
        return axes

    def _legend(self, panels: list[tuple[str, str, list[_Row]]]) -> None:
        from matplotlib.lines import Line2D

        rows = [row for _, _, rows in panels for row in rows]
        dots: dict[str, Any] = {"linestyle": "", "markersize": 6.5}
        handles = [Line2D([], [], label=plain(name), **dots, **style(k)) for k, name in enumerate(self.audits)]
        if any(row.raw is not None for row in rows):
            handles.append(
                Line2D([], [], linestyle="", marker="s", markersize=7, mfc="none", mec=GREY, label="raw images")
            )
        if any(row.truth is not None for row in rows):
            handles.append(
                Line2D([], [], linestyle="", marker="D", markersize=5, color=ink(), label="batch-free truth")
            )
        if any(row.chance is not None for row in rows):
            handles.append(Line2D([], [], linestyle=(0, (2, 1.5)), color=GREY, label="chance"))
        self.legend_ = self.figure_.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=FONT - 1
        )

    # ------------------------------------------------------------------------------------------------------ rows
    def _row(self, key: str, label: str) -> list[_Row]:
        """Return the row of a measure, none if no audit has it."""
        found = [audit.measures.get(key) for audit in self.audits.values()]
        known = [measure for measure in found if measure is not None]
        if not known:
            return []
        return [
            _Row(
                label,
                [None if m is None else m.value for m in found],
                [None if m is None else m.spread for m in found],
                *(
                    next((v for m in known if (v := getattr(m, name)) is not None), None)
                    for name in ("chance", "raw", "truth")
                ),
            )
        ]

    def _group(self, heading: str, rows: list[_Row]) -> list[_Row]:
        return [_Row(heading, [], []), *rows] if rows else []

    def _two_sources(self, rows_of: Callable[[str], list[_Row]]) -> list[_Row]:
        return [*self._group("features", rows_of("")), *self._group("predicted images", rows_of("image_"))]

    def _leakage(self) -> list[_Row]:
        return self._two_sources(
            lambda prefix: [row for p, name in _PROBES.items() for row in self._row(f"{prefix}leakage_{p}", name)]
        )

    def _cell_type(self) -> list[_Row]:
        return self._two_sources(
            lambda prefix: (
                self._row(f"{prefix}cell_type_accuracy", "known batches")
                + self._row(f"{prefix}cross_batch_accuracy", "batch never seen")
                + self._row(f"{prefix}cross_batch_precision", "mAP across batches")
            )
        )

    def _retained(self) -> list[_Row]:
        keys = dict.fromkeys(key for audit in self.audits.values() for key in audit.measures if "retained_" in key)
        ends = {"batches seen": "", "batch left out": "_left_out"}
        rows = []
        for heading, end in ends.items():
            names = [key for key in keys if key.endswith("_left_out") == bool(end)]
            found = [row for key in names for row in self._row(key, _plain(key.removesuffix(end)))]
            rows += self._group(heading, [_clipped(row) for row in found])
        return rows

    def _errors(self, key: str, name: str) -> list[_Row]:
        return self._row(key, "to measured") + self._row(f"truth_{key}", "to truth")

    def _likeness(self) -> list[_Row]:
        return self._group("SSIM", self._errors("ssim", "SSIM")) + self._group(
            "Pearson", self._errors("pearson", "Pearson")
        )

    def _first(self) -> str:
        key = next((p for p in _PROBES if any(f"leakage_{p}" in audit.measures for audit in self.audits.values())), "")
        return _PROBES.get(key, "")

    def _each(self, tables: list[Mapping[Any, Mapping[str, float]]], key: str, chance: Any) -> list[_Row]:
        labels = list(dict.fromkeys(label for table in tables for label in table))
        rows = []
        for label in labels:
            values = [table.get(label, {}).get(key) for table in tables]
            if any(value is not None for value in values):
                level = chance
                if isinstance(chance, str):
                    level = next((v for table in tables if (v := table.get(label, {}).get(chance)) is not None), None)
                rows.append(_Row(str(label), values, [None] * len(values), level))
        return rows

    def _per_type(self) -> list[_Row]:
        tables = [audit.per_type for audit in self.audits.values()]
        key = next((f"leakage_{p}" for p in _PROBES if self._each(tables, f"leakage_{p}", 0.0)), "")
        return self._each(tables, key, 0.0)

    def _per_batch(self, key: str, chance: str | None) -> list[_Row]:
        return self._each([audit.per_batch for audit in self.audits.values()], key, chance)

    def _batch_error(self, unit: str) -> tuple[str, list[_Row]]:
        rows = self._per_batch("truth_mae", None)
        to = "truth" if rows else "measured"
        return f"MAE to {to}{unit}", rows or self._per_batch("mae", None)


def _plain(key: str) -> str:
    return key.removeprefix("retained_").replace("_", " ")


def _clipped(row: _Row) -> _Row:
    """Return the row with nothing below `_LEAST`: a probe that is misled can be off without limit."""
    values = [None if value is None else max(value, _LEAST) for value in row.values]
    spreads = [None if v is None or v < _LEAST else s for v, s in zip(row.values, row.spreads, strict=True)]
    raw, truth = (None if value is None else max(value, _LEAST) for value in (row.raw, row.truth))
    return row._replace(values=values, spreads=spreads, raw=raw, truth=truth)


def _row_height(n_audits: int) -> float:
    return max(_ROW, (n_audits + 1) * _DOT)


def _draw(axis: Any, rows: list[_Row], xlabel: str, *, bounded: bool, leakage: bool) -> None:
    """Draw a panel of rows, first row on top."""
    from matplotlib.ticker import MaxNLocator

    n = max(len(row.values) for row in rows)
    step = _DOT / _row_height(n)
    drawn = [0.0]
    for y, row in enumerate(rows):
        if not row.values:
            continue
        axis.axhline(y, color=GREY, alpha=0.2, linewidth=0.8, zorder=0)
        if row.chance is not None:
            axis.plot(
                [row.chance] * 2, [y - 0.5, y + 0.5], linestyle=(0, (2, 1.5)), color=GREY, linewidth=1.3, zorder=1
            )
        for value, marker in ((row.raw, _RAW), (row.truth, {**_TRUTH, "color": ink()})):
            if value is not None and np.isfinite(value):
                axis.scatter(value, y, zorder=4, clip_on=False, **marker)
                drawn.append(value)
        for k, (value, spread) in enumerate(zip(row.values, row.spreads, strict=True)):
            if value is not None and np.isfinite(value):
                at = y + (k - (n - 1) / 2) * step
                error = spread if spread is not None and np.isfinite(spread) else None
                axis.errorbar(
                    value,
                    at,
                    xerr=error,
                    fmt=MARKERS[k // len(COLOURS)],
                    color=COLOURS[k % len(COLOURS)],
                    markersize=6.5,
                    elinewidth=1.6,
                    zorder=3,
                    clip_on=False,
                )
                drawn += [value - (error or 0), value + (error or 0)]
    low = min(0.0, *drawn)
    if bounded:
        axis.set_xlim(min(low - 0.02, -0.04 if leakage else 0.0), 1.04)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    else:
        axis.set_xlim(0, 1.08 * max(drawn) if max(drawn) > 0 else 1)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_ylim(len(rows) - 0.45, -0.55)
    axis.set_yticks(range(len(rows)), [shortened(row.label, _LABEL) for row in rows], fontsize=SMALL)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        if not row.values:
            label.set_fontweight("bold")
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=SMALL)
    axis.set_xlabel(xlabel, fontsize=SMALL)
    axis.spines[["top", "right", "left"]].set_visible(False)

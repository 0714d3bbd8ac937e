"""Losses over the epochs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skbegan.plotting._common import COLOURS, FONT, GREY, SMALL, new_figure, plain, style

# Every loss of `history_`, by its exact name; a number at the end of a name, as in batch_adversary_2, does not count.
# What is not listed is drawn as "other". Losses of one panel are of one kind, so that they share an axis.
_PANEL_OF = {
    "image": "image",
    "adversarial": "adversarial",
    "discriminator_real": "adversarial",
    "discriminator_fake": "adversarial",
    "batch": "batch",
    "batch_image": "batch",
    "batch_adversary": "batch adversaries",
    "batch_adversary_image": "batch adversaries",
    "cell_type": "cell type",
    "cell_type_image": "cell type",
    "cell_type_classifier": "cell type",
    "cell_type_image_classifier": "cell type",
    "alignment": "alignment",
    "matching": "matching",
    "invariance": "invariance",
    "identity": "identity",
    "descriptors": "descriptors",
    "activity": "features",
    "decorrelation": "features",
    "correction": "correction",
    "active_features": "active features",
    "total": "total",
}
# What the losses of a panel are, and in which unit. Images and features are standardised in training.
_QUANTITY = {
    "image": "mean absolute error\n(scale of training)",
    "adversarial": "binary\ncross-entropy (nats)",
    "batch": "cross-entropy to the\nfool target (nats)",
    "batch adversaries": "cross-entropy (nats)",
    "cell type": "cross-entropy (nats)",
    "alignment": "log(1 + distance\N{SUPERSCRIPT TWO})",
    "matching": "squared MMD,\nrelative to the kernel",
    "invariance": "relative squared\ndifference of views",
    "identity": "cross-entropy (nats)",
    "descriptors": "smooth L1 error\n(scale of training)",
    "features": "penalty (no unit)",
    "correction": "mean squared correction",
    "active features": "share of the features",
    "total": "weighted sum",
}
_PANELS = (*dict.fromkeys(_PANEL_OF.values()), "other")
_DETAILS = ("total",)
_STAGES = {
    "pretraining": "stage 1: pretraining",
    "batch_removal": "stage 2: batch removal",
    "profile_alignment": "stage 3: profile alignment",
}
_VALIDATION = "validation_"
_COLUMNS = 4  # at most, else the text becomes small on a page


def _panel(loss: str) -> str:
    """Return the panel of a loss, with or without its mark of validation."""
    return _PANEL_OF.get(re.sub(r"_\d+$", "", loss.removeprefix(_VALIDATION)), "other")


def _line(k: int) -> dict[str, Any]:
    """Colour of the k-th line of a panel, with a marker beyond the palette."""
    return {"color": COLOURS[k]} if k < len(COLOURS) else {**style(k), "markersize": 4}


def _named(loss: str) -> str:
    return plain(loss.replace("_", " "))


def _rows(found: dict[str, Any], columns: int) -> list[list[tuple[str, Any]]]:
    """Return the panels in rows of equal length, as far as they go."""
    panels = list(found.items())
    return [panels[k : k + columns] for k in range(0, len(panels), columns)]


class HistoryDisplay:
    """Losses of a fit: a block for each stage, a panel for each kind of loss; training solid, validation dashed.

    Stages 1 and 2 are drawn over their epochs; stage 3 has none, and is drawn over the parts that it is recorded in.

    Parameters
    ----------
    history : mapping of str to (mapping of str to sequence of float)
        Stage -> loss name -> values; key ``"epoch"`` holds the epochs, if there are any. What ``history_`` is.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : dict of (stage, panel) to matplotlib Axes

    Examples
    --------
    >>> from skbegan.plotting import HistoryDisplay
    >>> losses = {"epoch": [1, 2, 3], "image": [0.5, 0.3, 0.2], "validation_image": [0.6, 0.4, 0.3]}
    >>> display = HistoryDisplay({"pretraining": losses}).plot()  # of a fit: HistoryDisplay.from_estimator(began)
    >>> list(display.axes_)
    [('pretraining', 'image')]
    """

    def __init__(self, history: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        self.history = history

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, stages: Sequence[str] | None = None, figure: Any = None, **plot_params: Any
    ) -> HistoryDisplay:
        """Draw ``estimator.history_``.

        Parameters
        ----------
        estimator : fitted BeGANTransformer
        stages : sequence of str, default=None
            Some of ``"pretraining"``, ``"batch_removal"`` and ``"profile_alignment"``; None draws all there are.
        figure : matplotlib Figure or SubFigure, default=None
        **plot_params
            Passed to :meth:`plot`.

        Returns
        -------
        display : HistoryDisplay

        Raises
        ------
        ValueError
            If the estimator is not fitted or has no such stage.
        """
        history = getattr(estimator, "history_", None)
        if history is None:
            raise ValueError(f"{type(estimator).__name__} has no history_: fit it first.")
        if stages is not None:
            unknown = [stage for stage in stages if stage not in history]
            if unknown:
                raise ValueError(f"history_ has no stage {unknown}; it has {sorted(history)}.")
            history = {stage: history[stage] for stage in stages}
        return cls(history).plot(figure=figure, **plot_params)

    def plot(self, *, figure: Any = None, details: bool = False) -> HistoryDisplay:
        """Draw the panels.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
        details : bool, default=False
            Draw the weighted total too.

        Returns
        -------
        self : HistoryDisplay

        Raises
        ------
        ValueError
            If the history holds no losses.
        """
        stages = {stage: losses for stage, losses in self.history.items() if isinstance(losses, Mapping)}  # no events
        panels = {stage: self._panels(losses, details) for stage, losses in stages.items()}
        panels = {stage: found for stage, found in panels.items() if found}
        if not panels:
            raise ValueError("The history holds no losses.")
        columns = min(_COLUMNS, max(len(found) for found in panels.values()))
        blocks = {stage: _rows(found, columns) for stage, found in panels.items()}
        heights = {
            stage: [2.6 + 0.17 * max(len(lines) for _, lines in row) for row in rows] for stage, rows in blocks.items()
        }
        totals = [sum(each) + 0.3 for each in heights.values()]
        figure = new_figure(figure, (max(3.0 * columns, 4.5), sum(totals)))
        drawn: dict[tuple[str, str], Any] = {}
        parts = np.atleast_1d(figure.subfigures(len(panels), 1, hspace=0.04, height_ratios=totals))
        for part, (stage, rows) in zip(parts, blocks.items(), strict=True):
            part.suptitle(_STAGES.get(stage, plain(stage)), fontsize=FONT + 1, x=0.01, ha="left")
            axes = part.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights[stage]})
            for row, on_row in zip(rows, axes, strict=True):
                for axis in on_row[len(row) :]:
                    axis.set_axis_off()
                for axis, (panel, lines) in zip(on_row, row, strict=False):
                    self._draw(axis, panel, lines, "epoch" if "epoch" in stages[stage] else "part of the stage")
                    drawn[stage, panel] = axis
        self.figure_, self.axes_ = figure, drawn
        return self

    @staticmethod
    def _panels(losses: Mapping[str, Sequence[float]], details: bool) -> dict[str, dict[str, Any]]:
        """Return panel -> loss name -> (epochs, values), in the order of ``_PANELS``."""
        found: dict[str, dict[str, Any]] = {panel: {} for panel in _PANELS}
        epochs = losses.get("epoch")
        for name, values in losses.items():
            if name == "epoch":
                continue
            y = np.asarray([np.nan if v is None else v for v in values], dtype=float)
            x = np.arange(1, len(y) + 1) if epochs is None or len(epochs) != len(y) else np.asarray(epochs)
            if np.isfinite(y).any():
                found[_panel(name)][name] = (x, y)
        main = {panel: lines for panel, lines in found.items() if lines and panel not in _DETAILS}
        return main if main and not details else {panel: lines for panel, lines in found.items() if lines}

    @staticmethod
    def _draw(axis: Any, panel: str, lines: dict[str, Any], xlabel: str) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
        from matplotlib.transforms import ScaledTranslation

        bases = list(dict.fromkeys(name.removeprefix(_VALIDATION) for name in lines))
        for name, (x, y) in lines.items():
            base, validation = name.removeprefix(_VALIDATION), name.startswith(_VALIDATION)
            known = np.isfinite(y)
            axis.plot(
                x[known],  # a value that is not measured at every epoch still gives a line
                y[known],
                linestyle="--" if validation else "-",
                linewidth=1.6,
                **_line(bases.index(base)) | ({"marker": "o"} if int(known.sum()) == 1 else {}),
            )
        every = np.concatenate([y[np.isfinite(y)] for _, y in lines.values()])
        if every.min() > 0 and every.max() > 20 * every.min():
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            axis.ticklabel_format(axis="y", useOffset=False)
        axis.set_title(_named(bases[0]) if len(bases) == 1 else panel, fontsize=FONT)
        axis.set_ylabel(_QUANTITY.get(panel, "value"), fontsize=SMALL)
        axis.set_xlabel(xlabel, fontsize=SMALL)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.tick_params(labelsize=SMALL)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        trained = [base in lines for base in bases]
        handles = [
            Line2D([], [], **_line(k), linewidth=1.6, linestyle="-" if solid else "--", label=_named(base))
            for k, (base, solid) in enumerate(zip(bases, trained, strict=True))
        ]
        if any(name.startswith(_VALIDATION) for name in lines):
            both: dict[str, Any] = {"training": "-", "validation": "--"} if any(trained) else {"validation": "--"}
            handles += [Line2D([], [], color=GREY, linewidth=1.6, linestyle=s, label=name) for name, s in both.items()]
        below = axis.transAxes + ScaledTranslation(0, -32 / 72, axis.get_figure(root=True).dpi_scale_trans)
        axis.legend(
            handles=handles,
            fontsize=SMALL,
            loc="upper left",
            bbox_to_anchor=(-0.02, 0.0),
            bbox_transform=below,  # in points, to clear the axis label whatever the panel's height
            borderaxespad=0,
            frameon=False,
            handlelength=1.6,
            labelspacing=0.3,
        )

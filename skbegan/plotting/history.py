"""Losses over the epochs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skbegan.plotting._common import COLOURS, FONT, SMALL, new_figure

# Every loss of `history_`, by its exact name; a number at the end of a name, as in batch_adversary_2, does not count.
# What is not listed is drawn as "other".
_PANEL_OF = {
    "image": "image",
    "adversarial": "adversarial",
    "discriminator_real": "adversarial",
    "discriminator_fake": "adversarial",
    "batch": "batch",
    "batch_image": "batch",
    "alignment": "batch",
    "invariance": "batch",
    "matching": "batch",
    "batch_adversary": "batch adversaries",
    "batch_adversary_image": "batch adversaries",
    "cell_type": "cell type",
    "cell_type_image": "cell type",
    "cell_type_classifier": "cell type",
    "cell_type_image_classifier": "cell type",
    "activity": "features",
    "decorrelation": "features",
    "correction": "features",
    "active_features": "features",
    "total": "total",
}
_PANELS = (*dict.fromkeys(_PANEL_OF.values()), "other")
_DETAILS = ("total",)
_STAGES = {
    "pretraining": "stage 1: pretraining",
    "batch_removal": "stage 2: batch removal",
    "profile_alignment": "stage 3: profile alignment",
}
_VALIDATION = "validation_"


def _panel(loss: str) -> str:
    """Return the panel of a loss, with or without its mark of validation."""
    return _PANEL_OF.get(re.sub(r"_\d+$", "", loss.removeprefix(_VALIDATION)), "other")


class HistoryDisplay:
    """Losses of a fit: a row for each stage, a panel for each kind of loss; validation dashed.

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
        """
        stages = {stage: losses for stage, losses in self.history.items() if isinstance(losses, Mapping)}  # no events
        panels = {stage: self._panels(losses, details) for stage, losses in stages.items()}
        panels = {stage: found for stage, found in panels.items() if found}
        if not panels:
            raise ValueError("The history holds no losses.")
        columns = max(len(found) for found in panels.values())
        entries = [max(len(lines) for lines in found.values()) for found in panels.values()]
        heights = [2.9 + 0.17 * n for n in entries]
        figure = new_figure(figure, (max(2.6 * columns, 4.5), sum(heights)))
        drawn: dict[tuple[str, str], Any] = {}
        rows = np.atleast_1d(figure.subfigures(len(panels), 1, hspace=0.04, height_ratios=heights))
        for row, (stage, found) in zip(rows, panels.items(), strict=True):
            row.suptitle(_STAGES.get(stage, stage), fontsize=FONT + 1, x=0.01, ha="left")
            axes = row.subplots(1, columns, squeeze=False)[0]
            for axis in axes[len(found) :]:
                axis.set_axis_off()
            for axis, (panel, lines) in zip(axes, found.items(), strict=False):
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
            few = int(known.sum()) == 1
            axis.plot(
                x[known],  # a value that is not measured at every epoch still gives a line
                y[known],
                color=COLOURS[bases.index(base) % len(COLOURS)],
                linestyle="--" if validation else "-",
                linewidth=1.6,
                marker="o" if few else None,
            )
        every = np.concatenate([y[np.isfinite(y)] for _, y in lines.values()])
        if every.min() > 0 and every.max() > 20 * every.min():
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        else:
            axis.ticklabel_format(axis="y", useOffset=False)
        axis.set_title(panel, fontsize=FONT)
        axis.set_xlabel(xlabel, fontsize=SMALL)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.tick_params(labelsize=SMALL)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        colours = [COLOURS[k % len(COLOURS)] for k in range(len(bases))]
        handles = [
            Line2D([], [], color=c, linewidth=1.6, label=b.replace("_", " "))
            for c, b in zip(colours, bases, strict=True)
        ]
        if any(name.startswith(_VALIDATION) for name in lines):
            handles.append(Line2D([], [], color="0.4", linewidth=1.6, linestyle="--", label="validation"))
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

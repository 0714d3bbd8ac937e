"""Losses over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skbegan.plotting._common import COLOURS, FONT, SMALL, new_figure

# A loss goes to the first group one of whose words is part of its name; what fits none is drawn as "other".
_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("total", ("total",)),
    ("audit", ("leak", "accuracy", "acc", "score")),
    ("batch", ("batch", "fool")),
    ("cell type", ("cell", "type")),
    ("adversarial", ("adv", "gan", "disc", "real", "fake")),
    ("image", ("image", "mae", "l1", "mse", "recon", "pixel", "ssim")),
)
_PANELS = ("image", "adversarial", "batch", "cell type", "total", "audit", "other", "schedule")
_DETAILS = ("total", "other", "schedule")
_STAGES = {"pretraining": "stage 1: pretraining", "batch_removal": "stage 2: batch removal"}


def _group(name: str) -> str:
    low = name.lower()
    if low in ("lr", "learning_rate") or any(w in low for w in ("learning_rate", "seconds", "weight", "ramp")):
        return "schedule"
    return next((group for group, words in _GROUPS if any(word in low for word in words)), "other")


def _split_validation(name: str) -> tuple[str, bool]:
    """Return the name without its mark of validation, and whether it had one."""
    for mark in ("val_", "validation_", "valid_"):
        if name.startswith(mark):
            return name[len(mark) :], True
    for mark in ("_val", "_validation"):
        if name.endswith(mark):
            return name[: -len(mark)], True
    return name, False


class HistoryDisplay:
    """Losses over the epochs: a row for each stage, a panel for each kind of loss; validation dashed.

    Parameters
    ----------
    history : mapping of str to (mapping of str to sequence of float)
        Stage -> loss name -> one value per epoch; key ``"epoch"`` holds the epochs. What ``history_`` is.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : dict of (stage, panel) to matplotlib Axes
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
            Some of ``"pretraining"`` and ``"batch_removal"``; None draws all there are.
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
            Draw the weighted total, learning rates, times and whatever else was recorded too.

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
                self._draw(axis, panel, lines)
                drawn[stage, panel] = axis
        self.figure_, self.axes_ = figure, drawn
        return self

    @staticmethod
    def _panels(losses: Mapping[str, Sequence[float]], details: bool) -> dict[str, dict[str, Any]]:
        """Return panel -> loss name -> (epochs, values), in the order of ``_PANELS``."""
        found: dict[str, dict[str, Any]] = {panel: {} for panel in _PANELS}
        epochs = losses.get("epoch")
        for name, values in losses.items():
            panel = _group(_split_validation(name)[0])
            if name == "epoch":
                continue
            y = np.asarray([np.nan if v is None else v for v in values], dtype=float)
            x = np.arange(1, len(y) + 1) if epochs is None or len(epochs) != len(y) else np.asarray(epochs)
            if np.isfinite(y).any():
                found[panel][name] = (x, y)
        main = {panel: lines for panel, lines in found.items() if lines and panel not in _DETAILS}
        return main if main and not details else {panel: lines for panel, lines in found.items() if lines}

    @staticmethod
    def _draw(axis: Any, panel: str, lines: dict[str, Any]) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
        from matplotlib.transforms import ScaledTranslation

        bases = list(dict.fromkeys(_split_validation(name)[0] for name in lines))
        for name, (x, y) in lines.items():
            base, validation = _split_validation(name)
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
        if every.min() > 0 and every.max() > 20 * every.min() and panel != "audit":
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(panel, fontsize=FONT)
        axis.set_xlabel("epoch", fontsize=SMALL)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.tick_params(labelsize=SMALL)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        colours = [COLOURS[k % len(COLOURS)] for k in range(len(bases))]
        handles = [
            Line2D([], [], color=c, linewidth=1.6, label=b.replace("_", " "))
            for c, b in zip(colours, bases, strict=True)
        ]
        if any(_split_validation(name)[1] for name in lines):
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

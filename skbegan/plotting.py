"""Figures in scikit-learn's ``Display`` style. Matplotlib is imported when something is drawn, never before.

Every display has a ``from_*`` constructor that draws at once, keeps the data it drew as attributes and can draw again
with ``plot``; ``figure_`` and ``axes_`` hold what was drawn. Nothing here changes matplotlib's settings or backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import svds

__all__ = ["CellImagesDisplay", "FeatureMapDisplay", "HistoryDisplay", "compare_features"]

# Okabe & Ito (2008), told apart with any common colour vision; black last, and two of Paul Tol's muted colours.
_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#882255",
    "#999933",
    "#000000",
)
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "*")
_FONT, _SMALL = 11, 9


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('Plotting needs matplotlib, which is not installed: pip install "skbegan[plots]"') from error
    return plt


def _new_figure(figure: Any, figsize: tuple[float, float]) -> Any:
    """Return an empty figure in constrained layout: a new one, or the given figure or subfigure."""
    plt = _pyplot()
    return plt.figure(figsize=figsize, layout="constrained") if figure is None else figure


def _labels(values: ArrayLike | None, n: int, name: str) -> NDArray[Any] | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (n,):
        raise ValueError(f"{name} must be 1-D with one label per cell: expected shape ({n},), got {array.shape}.")
    return array


def _images(values: ArrayLike | None, name: str, n: int | None = None) -> NDArray[Any] | None:
    """Return (n, H, W): the first channel of images that have several."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"{name} must be images of shape (n, H, W) or (n, H, W, C), got {array.shape}.")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} must hold as many images as X_bf: expected {n}, got {len(array)}.")
    return array[..., 0] if array.ndim == 4 else array


def _style(k: int) -> dict[str, Any]:
    """Colour of the k-th label; from the eleventh on the colours come again with another marker."""
    return {"color": _COLOURS[k % len(_COLOURS)], "marker": _MARKERS[(k // len(_COLOURS)) % len(_MARKERS)]}


class CellImagesDisplay:
    """Rows of cells: brightfield, predicted, measured and, where it is known, batch-free target contrast.

    Parameters
    ----------
    brightfield, predicted : array-like of shape (n_cells, H, W) or (n_cells, H, W, C)
        Images of the cells to draw, one column each; of several channels, the first is drawn.
    measured, clean : array-like of the same shape, default=None
        Measured images, and the batch-free truth of simulated cells.
    labels : array-like of shape (n_cells,), default=None
        Column titles.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of shape (n_rows, n_cells) of matplotlib Axes
    """

    def __init__(
        self,
        brightfield: ArrayLike,
        predicted: ArrayLike,
        measured: ArrayLike | None = None,
        clean: ArrayLike | None = None,
        *,
        labels: ArrayLike | None = None,
    ) -> None:
        self.brightfield = brightfield
        self.predicted = predicted
        self.measured = measured
        self.clean = clean
        self.labels = labels

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_bf: ArrayLike,
        y_qpi: ArrayLike | None = None,
        clean: ArrayLike | None = None,
        *,
        n_cells: int = 8,
        labels: ArrayLike | None = None,
        cells: ArrayLike | None = None,
        figure: Any = None,
        **plot_params: Any,
    ) -> CellImagesDisplay:
        """Predict the chosen cells and draw them.

        Parameters
        ----------
        estimator : fitted BeGANTransformer
        X_bf : array-like of shape (n, H, W) or (n, H, W, C)
        y_qpi, clean : array-like of the same length, default=None
            Measured images; the batch-free truth.
        n_cells : int, default=8
            How many cells to draw, spread evenly over ``X_bf``.
        labels : array-like of shape (n,), default=None
            A label for each cell of ``X_bf`` for the column titles, e.g. ``[f"{t}, {b}" for t, b in zip(...)]``.
        cells : array-like of int, default=None
            The cells to draw, instead of ``n_cells``.
        figure : matplotlib Figure or SubFigure, default=None
            Where to draw; None makes a new figure.
        **plot_params
            Passed to :meth:`plot`.

        Returns
        -------
        display : CellImagesDisplay
        """
        chosen = cls._choose(X_bf, n_cells, cells)
        brightfield = np.asarray(X_bf)[chosen]
        return cls._select(
            brightfield, estimator.predict_image(brightfield), y_qpi, clean, labels, chosen, len(np.asarray(X_bf))
        ).plot(figure=figure, **plot_params)

    @classmethod
    def from_predictions(
        cls,
        X_bf: ArrayLike,
        predicted: ArrayLike,
        y_qpi: ArrayLike | None = None,
        clean: ArrayLike | None = None,
        *,
        n_cells: int = 8,
        labels: ArrayLike | None = None,
        cells: ArrayLike | None = None,
        figure: Any = None,
        **plot_params: Any,
    ) -> CellImagesDisplay:
        """Draw images that are already predicted; parameters as in :meth:`from_estimator`."""
        chosen = cls._choose(X_bf, n_cells, cells)
        n = len(np.asarray(X_bf))
        images: Any = _images(predicted, "predicted", n)
        return cls._select(np.asarray(X_bf)[chosen], images[chosen], y_qpi, clean, labels, chosen, n).plot(
            figure=figure, **plot_params
        )

    @staticmethod
    def _choose(X_bf: ArrayLike, n_cells: int, cells: ArrayLike | None) -> NDArray[np.intp]:
        n = len(np.asarray(X_bf))
        if cells is not None:
            chosen = np.atleast_1d(np.asarray(cells))
            if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or len(chosen) == 0:
                raise ValueError("cells must be a list of cell numbers.")
            if chosen.min() < -n or chosen.max() >= n:
                raise ValueError(f"cells must lie between 0 and {n - 1}, got {chosen.tolist()}.")
            return chosen.astype(np.intp)
        if n_cells < 1:
            raise ValueError(f"n_cells must be at least 1, got {n_cells}.")
        return np.unique(np.linspace(0, n - 1, min(n_cells, n)).round().astype(np.intp))

    @classmethod
    def _select(
        cls,
        brightfield: NDArray[Any],
        predicted: NDArray[Any],
        y_qpi: ArrayLike | None,
        clean: ArrayLike | None,
        labels: ArrayLike | None,
        chosen: NDArray[np.intp],
        n: int,
    ) -> CellImagesDisplay:
        measured, truth, names = _images(y_qpi, "y_qpi", n), _images(clean, "clean", n), _labels(labels, n, "labels")
        return cls(
            brightfield,
            predicted,
            None if measured is None else measured[chosen],
            None if truth is None else truth[chosen],
            labels=None if names is None else names[chosen],
        )

    def plot(
        self, *, figure: Any = None, cmap: str = "viridis", units: str | None = None, size: float = 1.25
    ) -> CellImagesDisplay:
        """Draw the rows.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
        cmap : str, default="viridis"
            Of the target-contrast rows; they share one scale (0.5 to 99.5 % of the measured, else all their pixels).
        units : str, default=None
            Label of the colour bar, e.g. ``"phase (rad)"``.
        size : float, default=1.25
            Of one image, in inches.

        Returns
        -------
        self : CellImagesDisplay
        """
        brightfield = _images(self.brightfield, "brightfield")
        assert brightfield is not None
        n = len(brightfield)
        rows = [("predicted", self.predicted), ("measured", self.measured), ("batch-free", self.clean)]
        contrast = [(title, a) for title, images in rows if (a := _images(images, title, n)) is not None]
        names = _labels(self.labels, n, "labels")
        reference = [a for title, a in contrast if title != "predicted"] or [a for _, a in contrast]
        low, high = np.nanpercentile(np.concatenate([a.reshape(-1) for a in reference]), (0.5, 99.5))
        if high <= low:
            high = low + 1

        n_rows = 1 + len(contrast)
        own = figure is None
        figure = _new_figure(
            figure, (n * size * 1.04 + (1.0 if units else 0.75), n_rows * size + (0.45 if names is not None else 0.1))
        )
        if own:
            figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        grid = figure.add_gridspec(n_rows, n + 1, width_ratios=[1.0] * n + [0.12])  # the last column is the colour bar
        axes = np.array([[figure.add_subplot(grid[row, k]) for k in range(n)] for row in range(n_rows)])
        for column in range(n):
            image = brightfield[column]
            axes[0, column].imshow(image, cmap="gray", vmin=image.min(), vmax=max(image.max(), image.min() + 1e-12))
            for row, (_, images) in enumerate(contrast, start=1):
                drawn = axes[row, column].imshow(images[column], cmap=cmap, vmin=low, vmax=high)
            if names is not None:
                axes[0, column].set_title(str(names[column]), fontsize=_SMALL if n > 4 else _FONT)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for row, title in enumerate(["brightfield", *(title for title, _ in contrast)]):
            axes[row, 0].set_ylabel(title, fontsize=_FONT)
        bar = figure.colorbar(drawn, cax=figure.add_subplot(grid[1:, n]), extend="both")
        bar.ax.tick_params(labelsize=_SMALL)
        if units:
            bar.set_label(units, fontsize=_FONT)
        self.figure_, self.axes_, self.colorbar_ = figure, axes, bar
        return self


class FeatureMapDisplay:
    """A 2-D map (PCA) of the features, coloured by batch and by cell type: mixed on the left, apart on the right.

    Parameters
    ----------
    maps : mapping of str to ndarray of shape (n_cells, 2)
        One or more maps of the same cells by title, each a column of two panels.
    batch, cell_type : array-like of shape (n_cells,)
    explained : mapping of str to (float, float), default=None
        Share of the variance along each axis of each map.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes
        Of shape (2,) for one map: by batch, by cell type; of shape (2, n_maps) for several.
    """

    def __init__(
        self,
        maps: Mapping[str, NDArray[Any]],
        batch: ArrayLike,
        cell_type: ArrayLike,
        *,
        explained: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.maps = maps
        self.batch = batch
        self.cell_type = cell_type
        self.explained = explained

    @classmethod
    def from_features(
        cls,
        features: ArrayLike | Mapping[str, ArrayLike],
        batch: ArrayLike,
        cell_type: ArrayLike,
        *,
        title: str = "",
        standardize: bool = False,
        figure: Any = None,
        **plot_params: Any,
    ) -> FeatureMapDisplay:
        """Map the features to two principal components and draw them.

        Parameters
        ----------
        features : array-like of shape (n_cells, n_features), or mapping of title to such arrays
            Several sets of features of the same cells make a grid, a column for each set.
        batch, cell_type : array-like of shape (n_cells,)
        title : str, default=""
        standardize : bool, default=False
            Scale every feature to unit variance before.
        figure : matplotlib Figure or SubFigure, default=None
        **plot_params
            Passed to :meth:`plot`.

        Returns
        -------
        display : FeatureMapDisplay
        """
        named = dict(features) if isinstance(features, Mapping) else {title: features}
        if not named:
            raise ValueError("There are no features to draw.")
        maps, explained = {}, {}
        for name, values in named.items():
            maps[str(name)], explained[str(name)] = _pca(values, name, standardize)
        return cls(maps, batch, cell_type, explained=explained).plot(figure=figure, **plot_params)

    @classmethod
    def from_estimator(
        cls, estimator: Any, X_bf: ArrayLike, batch: ArrayLike, cell_type: ArrayLike, **params: Any
    ) -> FeatureMapDisplay:
        """Draw the features that ``estimator.transform(X_bf)`` gives; parameters as in :meth:`from_features`."""
        return cls.from_features(np.asarray(estimator.transform(X_bf)), batch, cell_type, **params)

    def plot(self, *, figure: Any = None, point_size: float | None = None, max_legend: int = 24) -> FeatureMapDisplay:
        """Draw the panels.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
        point_size : float, default=None
            Area of a point in points squared; None chooses by the number of cells.
        max_legend : int, default=24
            Labels named in a legend; what is left out is counted in its last line.

        Returns
        -------
        self : FeatureMapDisplay
        """
        n = len(next(iter(self.maps.values())))
        rows = [("batch", _labels(self.batch, n, "batch")), ("cell type", _labels(self.cell_type, n, "cell_type"))]
        for name, points in self.maps.items():
            if np.shape(points) != (n, 2):
                raise ValueError(f"Map {name!r} must have shape ({n}, 2), got {np.shape(points)}.")
        area = float(np.clip(9000 / n, 4, 36)) if point_size is None else point_size
        single = len(self.maps) == 1
        shape = (1, 2) if single else (2, len(self.maps))
        figure = _new_figure(figure, (10.0, 4.0) if single else (3.4 * shape[1] + 1.8, 6.6))
        axes = figure.subplots(*shape, squeeze=False)
        for row, (what, labels) in enumerate(rows):
            if labels is None:
                raise ValueError(f"The {what} of each cell is needed to colour the map.")
            try:
                distinct, codes = np.unique(labels, return_inverse=True)
            except TypeError:  # labels of different kinds
                distinct, codes = np.unique(labels.astype(str), return_inverse=True)
            order = np.random.default_rng(0).permutation(n)  # no label lies on top of the others
            for column, (name, points) in enumerate(self.maps.items()):
                axis = axes[0, row] if single else axes[row, column]
                self._scatter(axis, points[order], codes[order], area)
                self._decorate(axis, name)
                if single:
                    axis.set_title(f"{name}, by {what}" if name else f"by {what}", fontsize=_FONT)
                elif row == 0:
                    axis.set_title(name, fontsize=_FONT)
            last = axes[0, row] if single else axes[row, -1]
            self._legend(last, what, [str(v) for v in distinct], max_legend)
        self.figure_, self.axes_ = figure, axes[0] if single else axes
        return self

    @staticmethod
    def _scatter(axis: Any, points: NDArray[Any], codes: NDArray[np.intp], area: float) -> None:
        colours = np.array(_COLOURS)[codes % len(_COLOURS)]
        for turn in range(int(codes.max()) // len(_COLOURS) + 1):
            these = codes // len(_COLOURS) == turn
            marker = _style(turn * len(_COLOURS))["marker"]
            axis.scatter(
                *points[these].T, s=area, c=colours[these], marker=marker, alpha=0.75, linewidths=0, rasterized=True
            )

    def _decorate(self, axis: Any, name: str) -> None:
        shares = (self.explained or {}).get(name)
        for k, set_label in enumerate((axis.set_xlabel, axis.set_ylabel)):
            set_label(f"PC {k + 1}" + (f" ({shares[k]:.0%})" if shares else ""), fontsize=_SMALL)
        axis.set(xticks=[], yticks=[])
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(0.04)

    @staticmethod
    def _legend(axis: Any, what: str, names: list[str], max_legend: int) -> None:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], linestyle="", markersize=6, label=v, **_style(k)) for k, v in enumerate(names)]
        if len(names) > max_legend:
            handles = handles[: max_legend - 1]
            handles.append(Line2D([], [], linestyle="", label=f"and {len(names) - max_legend + 1} more"))
        axis.legend(
            handles=handles,
            title=what,
            fontsize=_SMALL,
            title_fontsize=_SMALL,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.02),
            frameon=False,
            ncols=1 + (len(handles) - 1) // 12,
            handletextpad=0.1,
            columnspacing=0.8,
            alignment="left",
        )


def compare_features(
    features: Mapping[str, ArrayLike], batch: ArrayLike, cell_type: ArrayLike, **params: Any
) -> FeatureMapDisplay:
    """Draw several sets of features of the same cells side by side, e.g. before and after batch removal.

    Parameters
    ----------
    features : mapping of str to array-like of shape (n_cells, n_features)
        Column titles and features, e.g. ``{"stage 1": before, "after": after}``.
    batch, cell_type : array-like of shape (n_cells,)
    **params
        As in :meth:`FeatureMapDisplay.from_features`.

    Returns
    -------
    display : FeatureMapDisplay
        A grid of two rows, by batch and by cell type.
    """
    if not isinstance(features, Mapping):
        raise TypeError('features must be a mapping of titles to arrays, e.g. {"stage 1": before, "after": after}.')
    return FeatureMapDisplay.from_features(features, batch, cell_type, **params)


def _pca(features: ArrayLike, name: str, standardize: bool) -> tuple[NDArray[Any], tuple[float, float]]:
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"features {name!r} must be 2-D (n_cells, n_features), got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"features {name!r} holds NaN or infinity.")
    array = array - array.mean(axis=0)
    if standardize:
        std = array.std(axis=0)
        array = array / np.where(std > 1e-5 * std.max(initial=0), std, np.inf)
    if min(array.shape) > 2 and array.any():
        start = np.random.default_rng(0).normal(size=min(array.shape))
        left, values, _ = svds(array, k=2, v0=start)  # Lanczos: quick for wide features too
        left, values = np.nan_to_num(left[:, ::-1]), values[::-1]
    else:
        left, values, _ = np.linalg.svd(array, full_matrices=False)
    left = left * np.where(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])] < 0, -1, 1)  # fix the free sign
    points, share = np.zeros((len(array), 2)), np.zeros(2)
    k = min(2, len(values))
    points[:, :k] = left[:, :k] * values[:k]
    share[:k] = values[:k] ** 2 / max((array**2).sum(), np.finfo(float).tiny)
    return points, (float(share[0]), float(share[1]))


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
        figure = _new_figure(figure, (max(2.6 * columns, 4.5), sum(heights)))
        drawn: dict[tuple[str, str], Any] = {}
        rows = np.atleast_1d(figure.subfigures(len(panels), 1, hspace=0.04, height_ratios=heights))
        for row, (stage, found) in zip(rows, panels.items(), strict=True):
            row.suptitle(_STAGES.get(stage, stage), fontsize=_FONT + 1, x=0.01, ha="left")
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
                color=_COLOURS[bases.index(base) % len(_COLOURS)],
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
        axis.set_title(panel, fontsize=_FONT)
        axis.set_xlabel("epoch", fontsize=_SMALL)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.tick_params(labelsize=_SMALL)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        colours = [_COLOURS[k % len(_COLOURS)] for k in range(len(bases))]
        handles = [
            Line2D([], [], color=c, linewidth=1.6, label=b.replace("_", " "))
            for c, b in zip(colours, bases, strict=True)
        ]
        if any(_split_validation(name)[1] for name in lines):
            handles.append(Line2D([], [], color="0.4", linewidth=1.6, linestyle="--", label="validation"))
        below = axis.transAxes + ScaledTranslation(0, -32 / 72, axis.get_figure(root=True).dpi_scale_trans)
        axis.legend(
            handles=handles,
            fontsize=_SMALL,
            loc="upper left",
            bbox_to_anchor=(-0.02, 0.0),
            bbox_transform=below,  # in points, to clear the axis label whatever the panel's height
            borderaxespad=0,
            frameon=False,
            handlelength=1.6,
            labelspacing=0.3,
        )

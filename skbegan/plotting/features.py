"""Maps of features, coloured by batch and by cell type."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import svds

from skbegan.plotting._common import (
    BATCH_COLOURS,
    FONT,
    LETTER,
    SMALL,
    TYPE_COLOURS,
    check_labels,
    new_figure,
    plain,
    shortened,
    style,
)

_MIN_UMAP = 50  # cells; fewer have no neighbourhoods to keep
_UMAP_COMPONENTS = 50
_LABEL = 30  # letters of a label in a legend


class FeatureMapDisplay:
    """A 2-D map of the features, coloured by batch and by cell type: mixed on the left, apart on the right.

    The map is UMAP [1]_ where the package umap-learn is installed (the extra ``umap``), else the first two principal
    components; the axes say which. UMAP keeps neighbours together: distances between groups and the sizes of groups
    mean little in it, and it shows groups more apart than they are. What a picture seems to say is measured by
    :func:`skbegan.metrics.batch_leakage`.

    Parameters
    ----------
    maps : mapping of str to ndarray of shape (n_cells, 2)
        One or more maps of the same cells by title, each a column of two panels.
    batch, cell_type : array-like of shape (n_cells,)
    explained : mapping of str to (float, float), default=None
        Share of the variance along each axis of each map; of principal components only.
    kind : str, default="PC"
        What the axes are called: ``"PC"`` or ``"UMAP"``.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes
        Of shape (2,) for one map: by batch, by cell type; of shape (2, n_maps) for several.

    References
    ----------
    .. [1] McInnes, Healy, Saul and Grossberger, "UMAP: uniform manifold approximation and projection", Journal of Open
       Source Software 3, 861, 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.plotting import FeatureMapDisplay
    >>> features = np.random.default_rng(0).normal(size=(40, 5))
    >>> display = FeatureMapDisplay.from_features(features, np.repeat(["mon", "tue"], 20), np.tile(["a", "b"], 20))
    >>> [axis.get_title() for axis in display.axes_]
    ['by batch', 'by cell type']
    """

    def __init__(
        self,
        maps: Mapping[str, NDArray[Any]],
        batch: ArrayLike,
        cell_type: ArrayLike,
        *,
        explained: Mapping[str, tuple[float, float]] | None = None,
        kind: str = "PC",
    ) -> None:
        self.maps = maps
        self.batch = batch
        self.cell_type = cell_type
        self.explained = explained
        self.kind = kind

    @classmethod
    def from_features(
        cls,
        features: ArrayLike | Mapping[str, ArrayLike],
        batch: ArrayLike,
        cell_type: ArrayLike,
        *,
        title: str = "",
        standardize: bool = False,
        method: Literal["auto", "pca", "umap"] = "auto",
        random_state: int = 0,
        figure: Any = None,
        **plot_params: Any,
    ) -> FeatureMapDisplay:
        """Map the features to two dimensions and draw them.

        Parameters
        ----------
        features : array-like of shape (n_cells, n_features), or mapping of title to such arrays
            Several sets of features of the same cells make a grid, a column for each set.
        batch, cell_type : array-like of shape (n_cells,)
        title : str, default=""
        standardize : bool, default=False
            Scale every feature to unit variance before.
        method : {"auto", "pca", "umap"}, default="auto"
            ``"auto"``: UMAP (15 neighbours, minimal distance 0.1, of at most 50 principal components) where umap-learn
            is installed and there are at least 50 cells, else principal components.
        random_state : int, default=0
            Of UMAP.
        figure : matplotlib Figure or SubFigure, default=None
        **plot_params
            Passed to :meth:`plot`.

        Returns
        -------
        display : FeatureMapDisplay

        Raises
        ------
        ImportError
            For ``method="umap"`` without umap-learn.
        ValueError
            For features or labels that cannot be drawn.
        """
        if method not in ("auto", "pca", "umap"):
            raise ValueError(f"method must be 'auto', 'pca' or 'umap', got {method!r}.")
        named = dict(features) if isinstance(features, Mapping) else {title: features}
        if not named:
            raise ValueError("There are no features to draw.")
        arrays = {str(name): _checked(values, name, standardize) for name, values in named.items()}
        n = len(next(iter(arrays.values())))
        for name, labels in (("batch", batch), ("cell_type", cell_type)):
            check_labels(labels, n, name)
        if method == "umap" or (method == "auto" and n >= _MIN_UMAP and importlib.util.find_spec("umap") is not None):
            maps = {name: _umap(array, random_state) for name, array in arrays.items()}
            return cls(maps, batch, cell_type, kind="UMAP").plot(figure=figure, **plot_params)
        found = {name: _pca(array, 2) for name, array in arrays.items()}
        explained = {name: (share[0], share[1]) for name, (_, share) in found.items()}
        maps = {name: points for name, (points, _) in found.items()}
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

        Raises
        ------
        ValueError
            If labels are missing or do not fit the maps.
        """
        n = len(next(iter(self.maps.values())))
        rows = [
            ("batch", check_labels(self.batch, n, "batch"), BATCH_COLOURS),
            ("cell type", check_labels(self.cell_type, n, "cell_type"), TYPE_COLOURS),
        ]
        for name, points in self.maps.items():
            if np.shape(points) != (n, 2):
                raise ValueError(f"Map {name!r} must have shape ({n}, 2), got {np.shape(points)}.")
        area = float(np.clip(9000 / n, 4, 36)) if point_size is None else point_size
        single = len(self.maps) == 1
        shape = (1, 2) if single else (2, len(self.maps))
        beside = max(_legend_width(labels, max_legend) for _, labels, _ in rows)
        width = 7.6 + 2 * max(beside, 1.2) if single else 3.4 * shape[1] + max(beside, 1.4) + 0.4
        figure = new_figure(figure, (width, 4.0) if single else (width, 6.6))
        axes = figure.subplots(*shape, squeeze=False)
        for row, (what, labels, colours) in enumerate(rows):
            if labels is None:
                raise ValueError(f"The {what} of each cell is needed to colour the map.")
            try:
                distinct, codes = np.unique(labels, return_inverse=True)
            except TypeError:  # labels of different kinds
                distinct, codes = np.unique(labels.astype(str), return_inverse=True)
            order = np.random.default_rng(0).permutation(n)  # no label lies on top of the others
            for column, (name, points) in enumerate(self.maps.items()):
                axis = axes[0, row] if single else axes[row, column]
                self._scatter(axis, points[order], codes[order], area, colours)
                self._decorate(axis, name)
                if single:
                    axis.set_title(f"{plain(name)}, by {what}" if name else f"by {what}", fontsize=FONT)
                elif row == 0:
                    axis.set_title(plain(name), fontsize=FONT)
            last = axes[0, row] if single else axes[row, -1]
            self._legend(last, what, [shortened(v, _LABEL) for v in distinct], max_legend, colours)
        self.figure_, self.axes_ = figure, axes[0] if single else axes
        return self

    @staticmethod
    def _scatter(
        axis: Any, points: NDArray[Any], codes: NDArray[np.intp], area: float, colours: tuple[str, ...]
    ) -> None:
        each = np.array(colours)[codes % len(colours)]
        for turn in range(int(codes.max()) // len(colours) + 1):
            these = codes // len(colours) == turn
            marker = style(turn * len(colours), colours)["marker"]
            # Opaque: a colour that shines through has less contrast, and is another one.
            axis.scatter(*points[these].T, s=area, c=each[these], marker=marker, linewidths=0, rasterized=True)

    def _decorate(self, axis: Any, name: str) -> None:
        shares = (self.explained or {}).get(name)
        for k, set_label in enumerate((axis.set_xlabel, axis.set_ylabel)):
            set_label(f"{self.kind} {k + 1}" + (f" ({shares[k]:.0%})" if shares else ""), fontsize=SMALL)
        axis.set(xticks=[], yticks=[])
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(0.04)

    @staticmethod
    def _legend(axis: Any, what: str, names: list[str], max_legend: int, colours: tuple[str, ...]) -> None:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], linestyle="", markersize=6, label=v, **style(k, colours)) for k, v in enumerate(names)
        ]
        if len(names) > max_legend:
            handles = handles[: max_legend - 1]
            handles.append(Line2D([], [], linestyle="", label=f"and {len(names) - max_legend + 1} more"))
        axis.legend(
            handles=handles,
            title=what,
            fontsize=SMALL,
            title_fontsize=SMALL,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.02),
            frameon=False,
            ncols=_columns(len(handles)),
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

    Raises
    ------
    TypeError
        If `features` is no mapping.
    ValueError
        If features or labels cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.plotting import compare_features
    >>> features = np.random.default_rng(0).normal(size=(40, 5))
    >>> both = {"stage 1": features, "after": features / 2}
    >>> compare_features(both, np.repeat(["mon", "tue"], 20), np.tile(["a", "b"], 20)).axes_.shape
    (2, 2)
    """
    if not isinstance(features, Mapping):
        raise TypeError('features must be a mapping of titles to arrays, e.g. {"stage 1": before, "after": after}.')
    return FeatureMapDisplay.from_features(features, batch, cell_type, **params)


def _columns(n_labels: int) -> int:
    """Return the columns of a legend."""
    return 1 + (n_labels - 1) // 12


def _legend_width(labels: NDArray[Any] | None, max_legend: int) -> float:
    """Return about how wide a legend is, in inches."""
    names = {str(label) for label in (() if labels is None else labels.tolist())}
    longest = min(max(map(len, names), default=1), _LABEL)
    return _columns(min(len(names), max_legend) or 1) * (0.3 + longest * SMALL * LETTER)


def _checked(features: ArrayLike, name: Any, standardize: bool) -> NDArray[Any]:
    """Return centred features."""
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"features {name!r} must be 2-D (n_cells, n_features), got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"features {name!r} holds NaN or infinity.")
    array = array - array.mean(axis=0)
    if standardize:
        std = array.std(axis=0)
        array = array / np.where(std > 1e-5 * std.max(initial=0), std, np.inf)
    return array


def _pca(array: NDArray[Any], n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the first `n` principal components of centred features, and their shares of the variance."""
    if min(array.shape) > n and array.any():
        start = np.random.default_rng(0).normal(size=min(array.shape))
        left, values, _ = svds(array, k=n, v0=start)  # Lanczos: quick for wide features too
        left, values = np.nan_to_num(left[:, ::-1]), values[::-1]
    else:
        left, values, _ = np.linalg.svd(array, full_matrices=False)
    left = left * np.where(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])] < 0, -1, 1)  # fix the free sign
    points, share = np.zeros((len(array), n)), np.zeros(n)
    k = min(n, len(values))
    points[:, :k] = left[:, :k] * values[:k]
    share[:k] = values[:k] ** 2 / max((array**2).sum(), np.finfo(float).tiny)
    return points, share


def _umap(array: NDArray[Any], random_state: int) -> NDArray[Any]:
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError(
            'method="umap" needs umap-learn, which is not installed: pip install "skbegan[umap]"'
        ) from error
    if len(array) < 4:
        raise ValueError(f"UMAP needs at least 4 cells, got {len(array)}; use method='pca'.")
    if array.shape[1] > _UMAP_COMPONENTS:
        array = _pca(array, min(_UMAP_COMPONENTS, *array.shape))[0]
    # A seed means one thread in umap-learn, which warns of it unless it is said.
    reducer = UMAP(n_neighbors=min(15, len(array) - 1), min_dist=0.1, random_state=random_state, n_jobs=1)
    return np.asarray(reducer.fit_transform(array), dtype=np.float64)

"""Images of cells, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan.plotting._common import (
    FONT,
    LETTER,
    SMALL,
    check_images,
    check_labels,
    check_pixel_size,
    clipped,
    contrast,
    ink,
    new_figure,
    round_length,
    shortened,
)

_TARGET_ROWS = ("predicted", "measured", "batch-free")
_SCALES = ("brightfield", "target", "difference")
_BAR = 0.5  # of the image's width, the longest scale bar


class CellImagesDisplay:
    """Rows of cells: brightfield, predicted, measured and, where it is known, batch-free target contrast.

    All cells share one scale for their brightfields and one for the target contrast, each with a colour bar; the line
    below the images says which share of the pixels lies beyond it.

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
    colorbar_ : matplotlib Colorbar
        Of the target contrast.
    colorbars_ : dict of str to matplotlib Colorbar
        ``"brightfield"``, ``"target"`` and, where it is drawn, ``"difference"``.
    limits_ : dict of str to (float, float)
        The ends of those scales, which another display can be given.

    Examples
    --------
    >>> from skbegan.datasets import make_cell_images
    >>> from skbegan.plotting import CellImagesDisplay
    >>> cells = make_cell_images(20, 2, 2, 16, random_state=0)
    >>> display = CellImagesDisplay.from_predictions(cells.bf, cells.qpi, n_cells=4, labels=cells.cell_type)
    >>> display.axes_.shape
    (2, 4)
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
        images: Any = check_images(predicted, "predicted", n)
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
        measured, truth, names = (
            check_images(y_qpi, "y_qpi", n),
            check_images(clean, "clean", n),
            check_labels(labels, n, "labels"),
        )
        return cls(
            brightfield,
            predicted,
            None if measured is None else measured[chosen],
            None if truth is None else truth[chosen],
            labels=None if names is None else names[chosen],
        )

    def plot(
        self,
        *,
        figure: Any = None,
        cmap: str = "viridis",
        units: str | None = None,
        bf_units: str | None = None,
        size: float = 1.25,
        pixel_size: float | None = None,
        difference: bool = False,
        limits: Mapping[str, tuple[float, float]] | None = None,
    ) -> CellImagesDisplay:
        """Draw the rows.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, default=None
        cmap : str, default="viridis"
            Of the target-contrast rows; they share one scale (0.5 to 99.5 % of the measured, else all their pixels).
        units, bf_units : str, default=None
            Of the target and of the brightfield, for the colour bars, e.g. ``"phase (rad)"``. None: the bar says that
            the units are those of the images.
        size : float, default=1.25
            Of one image, in inches.
        pixel_size : float, default=None
            Side of a pixel in micrometres, in the object; draws a scale bar.
        difference : bool, default=False
            Draw a row with the predicted minus the measured images (minus the batch-free ones where none are measured).
        limits : mapping of str to (float, float), default=None
            Ends of the scales ``"brightfield"``, ``"target"`` and ``"difference"``, e.g. ``limits_`` of another
            display; what is not named is found from the images.

        Returns
        -------
        self : CellImagesDisplay

        Raises
        ------
        TypeError, ValueError
            For images, labels, limits or a pixel size that cannot be drawn.
        """
        pixel_size = check_pixel_size(pixel_size)
        rows = self._rows(difference)
        shown = self._limits(rows, limits)
        n, n_rows = len(rows[0][2]), len(rows)
        names = check_labels(self.labels, n, "labels")
        bars = {
            "brightfield": ("gray", bf_units or "brightfield, as given"),
            "target": (cmap, units or "in units of the target"),
            "difference": ("RdBu_r", f"difference, {units or 'in units of the target'}"),
        }
        width = n * size * 1.04 + 1.15
        caption = self._caption(rows, shown, int(width * 15))
        own = figure is None
        points = SMALL if n > 4 else FONT
        titles = [] if names is None else [shortened(name, max(int(size / (points * LETTER)), 4), 2) for name in names]
        height = (
            n_rows * size
            + (0.1 + 0.2 * any(titles) + 0.15 * max((title.count("\n") + 1 for title in titles), default=0))
            + 0.16 * (caption.count("\n") + 1)
        )
        figure = new_figure(figure, (width, height + (0.25 if pixel_size else 0.0)))
        if own:
            figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        grid = figure.add_gridspec(n_rows, n + 1, width_ratios=[1.0] * n + [0.12])  # the last column is the colour bar
        axes = np.array([[figure.add_subplot(grid[row, k]) for k in range(n)] for row in range(n_rows)])
        self.colorbars_ = {}
        for scale, (colours, label) in bars.items():
            own_rows = [k for k, row in enumerate(rows) if row[1] == scale]
            if not own_rows:
                continue
            low, high = shown[scale]
            for row in own_rows:
                for column in range(n):
                    drawn = axes[row, column].imshow(rows[row][2][column], cmap=colours, vmin=low, vmax=high)
            below, above = clipped(np.stack([rows[k][2] for k in own_rows]), low, high)
            extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
                (below > 0, above > 0), "both"
            )
            cell = grid[own_rows[0] : own_rows[-1] + 1, n]
            bar = figure.colorbar(drawn, cax=figure.add_subplot(cell), extend=extend)
            bar.ax.tick_params(labelsize=SMALL)
            bar.set_label("\n".join(textwrap.wrap(label, 18 * len(own_rows))), fontsize=SMALL)
            self.colorbars_[scale] = bar
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for row, (title, _, _) in enumerate(rows):
            axes[row, 0].set_ylabel(title, fontsize=FONT if size >= 1.2 else SMALL)
        for column in range(len(titles)):
            axes[0, column].set_title(titles[column], fontsize=points)
        if pixel_size is not None:
            _scale_bar(axes[-1, 0], rows[-1][2].shape[2], pixel_size)
        figure.supxlabel(caption, fontsize=SMALL, x=0.01, ha="left")
        self.figure_, self.axes_, self.colorbar_, self.limits_ = figure, axes, self.colorbars_["target"], shown
        return self

    def _rows(self, difference: bool) -> list[tuple[str, str, NDArray[Any]]]:
        """Return (title, scale, images) of each row."""
        brightfield = check_images(self.brightfield, "brightfield")
        assert brightfield is not None
        rows = [("brightfield", "brightfield", brightfield)]
        for title, images in zip(_TARGET_ROWS, (self.predicted, self.measured, self.clean), strict=True):
            array = check_images(images, title, len(brightfield))
            if array is not None:
                rows.append((title, "target", array))
        if difference:
            if len(rows) < 3:
                raise ValueError("difference=True needs measured or batch-free images to compare the predicted with.")
            predicted, reference = rows[1][2], rows[2][2]
            if predicted.shape != reference.shape:
                raise ValueError(
                    f"predicted images of shape {predicted.shape} cannot be compared with {rows[2][0]} ones of shape "
                    f"{reference.shape}."
                )
            rows.append(
                (
                    f"predicted -\n{rows[2][0]}",
                    "difference",
                    predicted.astype(np.float64) - reference.astype(np.float64),
                )
            )
        return rows

    @staticmethod
    def _limits(
        rows: list[tuple[str, str, NDArray[Any]]], limits: Mapping[str, tuple[float, float]] | None
    ) -> dict[str, tuple[float, float]]:
        """Return the ends of each scale."""
        given = dict(limits or {})
        if unknown := set(given) - set(_SCALES):
            raise ValueError(f"limits may name {', '.join(_SCALES)}, got {sorted(map(str, unknown))}.")
        found: dict[str, tuple[float, float]] = {}
        for scale in dict.fromkeys(row[1] for row in rows):
            images = [row for row in rows if row[1] == scale]
            # The prediction is judged by the scale of what was measured.
            reference = [row[2] for row in images if row[0] != "predicted"] or [row[2] for row in images]
            low, high = given[scale] if scale in given else contrast(np.concatenate([a.ravel() for a in reference]))
            if not (np.isfinite([low, high]).all() and low < high):
                raise ValueError(f"limits[{scale!r}] must be two finite numbers, the smaller first, got {(low, high)}.")
            if scale == "difference" and scale not in given:  # 0 in the middle, which is white
                high = max(abs(low), abs(high))
                low = -high
            found[scale] = float(low), float(high)
        return found

    @staticmethod
    def _caption(rows: list[tuple[str, str, NDArray[Any]]], limits: dict[str, tuple[float, float]], width: int) -> str:
        """Say that there is one scale, and how many pixels lie beyond it."""
        parts = []
        for scale, (low, high) in limits.items():
            pixels = np.concatenate([images.ravel() for _, of, images in rows if of == scale])
            shares = clipped(pixels, low, high)
            said = [f"{share:.2%} {side}" for share, side in zip(shares, ("below", "above"), strict=True) if share > 0]
            parts.append(f"{scale} {low:.3g} to {high:.3g}, {' and '.join(said) + ' it' if said else 'none beyond it'}")
        text = f"One scale for all cells (pixels beyond it are drawn as its ends): {'; '.join(parts)}."
        return "\n".join(textwrap.wrap(text, max(width, 30)))


def _scale_bar(axis: Any, width: int, pixel_size: float) -> None:
    """Draw a bar of a round length under an image."""
    from matplotlib.transforms import blended_transform_factory

    length = round_length(_BAR * width * pixel_size)
    place = blended_transform_factory(axis.transData, axis.transAxes)
    axis.plot(
        [-0.5, -0.5 + length / pixel_size], [-0.07] * 2, color=ink(), linewidth=2.5, solid_capstyle="butt",
        transform=place, clip_on=False, scalex=False, scaley=False, gid="scale bar",
    )  # fmt: skip
    axis.text(-0.5, -0.12, f"{length:g} \N{MICRO SIGN}m", transform=place, fontsize=SMALL, va="top", ha="left")

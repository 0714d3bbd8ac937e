"""Images of cells, side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan.plotting._common import FONT, SMALL, check_images, check_labels, new_figure


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
        brightfield = check_images(self.brightfield, "brightfield")
        assert brightfield is not None
        n = len(brightfield)
        rows = [("predicted", self.predicted), ("measured", self.measured), ("batch-free", self.clean)]
        contrast = [(title, a) for title, images in rows if (a := check_images(images, title, n)) is not None]
        names = check_labels(self.labels, n, "labels")
        reference = [a for title, a in contrast if title != "predicted"] or [a for _, a in contrast]
        low, high = np.nanpercentile(np.concatenate([a.reshape(-1) for a in reference]), (0.5, 99.5))
        if high <= low:
            high = low + 1

        n_rows = 1 + len(contrast)
        own = figure is None
        figure = new_figure(
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
                axes[0, column].set_title(str(names[column]), fontsize=SMALL if n > 4 else FONT)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for row, title in enumerate(["brightfield", *(title for title, _ in contrast)]):
            axes[row, 0].set_ylabel(title, fontsize=FONT)
        bar = figure.colorbar(drawn, cax=figure.add_subplot(grid[1:, n]), extend="both")
        bar.ax.tick_params(labelsize=SMALL)
        if units:
            bar.set_label(units, fontsize=FONT)
        self.figure_, self.axes_, self.colorbar_ = figure, axes, bar
        return self

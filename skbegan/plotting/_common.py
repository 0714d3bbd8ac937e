"""What the displays share: colours, sizes, figures and checks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan._labels import as_labels

# Okabe & Ito (2008), told apart with any common colour vision; black last, and two of Paul Tol's muted colours.
COLOURS = (
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
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "*")
FONT, SMALL = 11, 9


def pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('Plotting needs matplotlib, which is not installed: pip install "skbegan[plots]"') from error
    return plt


def new_figure(figure: Any, figsize: tuple[float, float]) -> Any:
    """Return an empty figure in constrained layout: a new one, or the given figure or subfigure."""
    plt = pyplot()
    return plt.figure(figsize=figsize, layout="constrained") if figure is None else figure


def check_labels(values: ArrayLike | None, n: int, name: str) -> NDArray[Any] | None:
    if values is None:
        return None
    array = as_labels(values, name)
    if array.shape != (n,):
        raise ValueError(f"{name} must be 1-D with one label per cell: expected shape ({n},), got {array.shape}.")
    return array


def check_images(values: ArrayLike | None, name: str, n: int | None = None) -> NDArray[Any] | None:
    """Return (n, H, W): the first channel of images that have several."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"{name} must be images of shape (n, H, W) or (n, H, W, C), got {array.shape}.")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} must hold as many images as X_bf: expected {n}, got {len(array)}.")
    return array[..., 0] if array.ndim == 4 else array


def style(k: int) -> dict[str, Any]:
    """Colour of the k-th label; from the eleventh on the colours come again with another marker."""
    return {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[(k // len(COLOURS)) % len(MARKERS)]}

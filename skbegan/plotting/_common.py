"""What the displays share: colours, sizes, figures and checks."""

from __future__ import annotations

import textwrap
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan.labels.arrays import as_labels

# Two palettes, so that nobody takes a batch for a cell type. Any two colours of one are at least 16 apart (CIEDE2000),
# to normal vision and to each kind of dichromacy (Machado et al., IEEE Trans. Vis. Comput. Graph. 15, 1291, 2009); a
# batch and a type at least 12, to normal vision. Each has a contrast of 3:1 (WCAG 2.2, 1.4.11) against white and
# against `DARK`, which leaves a narrow range of lightness, and so six colours; then the marker changes.
# tests/test_palettes.py computes all of that.
BATCH_COLOURS = ("#889966", "#6655bb", "#bb7799", "#776600", "#7788ff", "#007766")
TYPE_COLOURS = ("#8811ff", "#dd7711", "#885577", "#339977", "#9988bb", "#bb3333")
COLOURS = TYPE_COLOURS  # of lines and audits
GREY = "#7a7a7a"  # chance levels and references; readable on both backgrounds as well
LIGHT, DARK = "#ffffff", "#14171c"  # backgrounds that the colours are checked against
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "*")
FONT, SMALL = 11, 9
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
LETTER = 0.6 / 72  # inches: width of a letter of 1 point, about


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


def style(k: int, colours: tuple[str, ...] = COLOURS) -> dict[str, Any]:
    """Colour of the k-th label; beyond the palette the colours come again with another marker."""
    return {"color": colours[k % len(colours)], "marker": MARKERS[(k // len(colours)) % len(MARKERS)]}


def ink() -> str:
    """Return the colour of text, which is light where the user's style is dark."""
    from matplotlib import rcParams
    from matplotlib.colors import to_hex

    return str(to_hex(rcParams["text.color"]))


def plain(label: Any) -> str:
    """Return a label as text that matplotlib draws as it is: a dollar sign starts no formula, a line is a line."""
    return " ".join(str(label).split()).replace("$", r"\$")


def shortened(label: Any, width: int, lines: int = 1) -> str:
    """Return a label as plain text of at most so many lines; dots in the middle stand for what does not fit."""
    text = " ".join(str(label).split())
    rows = textwrap.wrap(text, width)
    if len(rows) > lines:  # labels often differ at their ends
        half = (lines * width - 1) // 2
        text = text[:half] + ELLIPSIS + text[-half:]
        rows = [text[k : k + width].strip() for k in range(0, len(text), width)]
    return "\n".join(plain(row) for row in rows)


def contrast(images: NDArray[Any]) -> tuple[float, float]:
    """Return the range of the pixels without 0.5 % at either end, never empty."""
    low, high = np.nanpercentile(images, (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def clipped(images: NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Return the shares of the pixels below and above a range."""
    known = np.isfinite(images)
    n = max(int(known.sum()), 1)
    return float((images[known] < low).sum() / n), float((images[known] > high).sum() / n)


def check_pixel_size(pixel_size: Any) -> float | None:
    """Return the side of a pixel in micrometres, or None."""
    if pixel_size is None:
        return None
    if isinstance(pixel_size, bool) or not isinstance(pixel_size, Real):
        raise TypeError(f"pixel_size must be a number of micrometres, got {pixel_size!r}.")
    if not 0 < float(pixel_size) < np.inf:
        raise ValueError(f"pixel_size must be a positive number of micrometres, got {pixel_size!r}.")
    return float(pixel_size)


def round_length(limit: float) -> float:
    """Return the largest of 1, 2, 5, 10, ... (times any power of ten) up to `limit`."""
    power = 10.0 ** np.floor(np.log10(limit))
    return float(max(step * power for step in (1.0, 2.0, 5.0) if step * power <= limit * (1 + 1e-9)))

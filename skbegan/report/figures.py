"""Figures as SVG inside the page: text and axes take the page's colour, so that one figure does for light and dark."""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skbegan.plotting import AuditDisplay, CellImagesDisplay, FeatureMapDisplay, HistoryDisplay, compare_features
from skbegan.plotting._common import contrast, pyplot

MAX_BATCHES, CELLS_PER_BATCH = 6, 4
MAX_POINTS = 4000
_INK = "#0b0c0d"  # no other colour of a figure; becomes that of the page's text
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in any script
    "svg.image_inline": True,
    **dict.fromkeys(
        (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
            "xtick.labelcolor",
            "ytick.labelcolor",
            "legend.labelcolor",
        ),
        _INK,
    ),
}


@contextlib.contextmanager
def style(salt: str) -> Iterator[None]:
    """Draw as the page needs it, whatever the user's style; that is restored afterwards."""
    plt = pyplot()
    with plt.style.context("default"), plt.rc_context({**_STYLE, "svg.hashsalt": salt}), plt.ioff():
        yield


def svg(name: str, alt: str, draw: Callable[[], Any]) -> str:
    """Return what a display draws as an SVG element.

    Parameters
    ----------
    name : str
        Of the figure in the page; starts its ids.
    alt : str
        What a screen reader says.
    draw : callable
        Returns a display.
    """
    plt = pyplot()
    with style(name):
        figure = draw().figure_
        try:
            buffer = io.StringIO()
            none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(buffer, format="svg", transparent=True, dpi=144, metadata=none)
            width = figure.get_figwidth() * 96
        finally:
            plt.close(figure)
    return _inline(buffer.getvalue(), name, alt, width)


def _inline(text: str, name: str, alt: str, width: float) -> str:
    text = text[text.index("<svg") :]
    for part in ("metadata", "style"):  # a style would hold for the whole page
        text = re.sub(rf"<{part}\b.*?</{part}>", "", text, flags=re.DOTALL)
    # In tags only: what stands between them is labels.
    text = re.sub(r"<[^>]+>", lambda tag: _own(tag[0], name), text)
    start, _, rest = text.partition(">")
    box = re.search(r'viewBox="[^"]+"', start)
    assert box is not None
    title = html.escape(alt)
    return (
        f'<svg {box[0]} role="img" aria-label="{title}" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'style="width:{width:.0f}px; --natural:{width:.0f}px">{rest}'
    )


def _own(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", tag)
    return tag.replace(_INK, "currentColor")


# -------------------------------------------------------------------------------------------------------- what is drawn
def history(est: Any) -> list[str]:
    """Return a figure for each stage that has losses."""
    found: list[str] = []
    for stage, losses in est.history_.items():
        if not isinstance(losses, dict) or not any(len(v) for key, v in losses.items() if key != "epoch"):
            continue
        one = {stage: losses}
        with contextlib.suppress(ValueError):  # no finite loss
            found.append(svg(f"history-{len(found)}", f"Losses of {stage}", HistoryDisplay(one).plot))
    return found


def choose_cells(batch: np.ndarray, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Return cells to draw by code of the batch: of the largest batches, drawn at random."""
    codes, counts = np.unique(batch, return_counts=True)
    largest = np.sort(codes[np.argsort(-counts, kind="stable")[:MAX_BATCHES]])
    return {
        int(code): np.sort(
            rng.choice(np.flatnonzero(batch == code), min(CELLS_PER_BATCH, int((batch == code).sum())), replace=False)
        )
        for code in largest
    }


def cells(
    est: Any,
    bf: np.ndarray,
    qpi: np.ndarray | None,
    types: np.ndarray,
    chosen: dict[int, np.ndarray],
    batches: np.ndarray,
    pixel_size: float | None,
    units: str | None,
    bf_units: str | None,
) -> list[tuple[str, str]]:
    """Return the label of each chosen batch and its figure; all figures share their scales."""
    rows = np.concatenate(list(chosen.values()))
    images = bf[rows]
    predicted = est.predict_image(images)
    measured = None if qpi is None else qpi[rows]

    def first(array: np.ndarray) -> np.ndarray:
        return (array[..., 0] if array.ndim == 4 else array).astype(np.float64)

    limits = {
        "brightfield": contrast(first(images)),
        "target": contrast(first(predicted if measured is None else measured)),
    }
    if measured is not None:
        low, high = contrast(first(predicted) - first(measured))
        limits["difference"] = (-max(abs(low), abs(high)), max(abs(low), abs(high)))
    found: list[tuple[str, str]] = []
    at = 0
    for code, of_batch in chosen.items():
        part = slice(at, at + len(of_batch))
        at += len(of_batch)

        def draw(part: slice = part, of_batch: np.ndarray = of_batch) -> Any:
            display = CellImagesDisplay(
                images[part], predicted[part], None if measured is None else measured[part], labels=types[of_batch]
            )
            return display.plot(
                pixel_size=pixel_size,
                units=units,
                bf_units=bf_units,
                difference=measured is not None,
                limits=limits,
            )

        label = str(batches[code])
        found.append((label, svg(f"cells-{code}", f"Cells of batch {label}", draw)))
    return found


def features(
    raw: np.ndarray, profiles: np.ndarray, batch: np.ndarray, cell_type: np.ndarray, random_state: int
) -> tuple[str, str]:
    """Return the figure of the features before and after, and what its axes are."""
    kinds = []

    def draw() -> FeatureMapDisplay:
        both = {"raw brightfield pixels": raw, "profiles": profiles}
        display = compare_features(both, batch, cell_type, standardize=True, random_state=random_state)
        kinds.append(display.kind)
        return display

    figure = svg("features", "Maps of raw pixels and of profiles, coloured by batch and by cell type", draw)
    return figure, kinds[0]


def audit(found: Any, units: str | None) -> str | None:
    """Return the audit as dots, or None where there is nothing that can be drawn."""
    try:
        return svg("audit", "The audit as dots", lambda: AuditDisplay.from_audit(found, units=units))
    except ValueError:
        return None

"""What is said of a new batch before its cells are used: is it known, what differs, what is to be expected."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from skbegan.shift.calibration import Calibration
    from skbegan.shift.observing import Observed

Array = np.ndarray

#: Traits that a regression tells from the statistics of a batch, in the order of `Style.traits`.
TRAITS = ("gain", "offset", "illumination_x", "illumination_y", "illumination_bow", "sharpness", "noise", "zoom")
#: Kinds of broken batches that a calibration knows, and what is said of them.
FAULTS = {
    "focus": "far out of focus",
    "saturation": "saturated",
    "inverted": "contrast inverted",
    "enlarged": "another magnification, cells too large",
    "shrunk": "another magnification, cells too small",
    "channel": "another channel",
}
Z90 = 1.645
MOVED = 2.5  # standard deviations of known batches and of the estimate, beyond which a trait has moved
LEAST = {"gain": 0.1, "offset": 0.15, "illumination": 0.15, "sharpness": 0.1, "noise": 0.05, "zoom": 0.05}


class UnusableBatchWarning(UserWarning):
    """A new batch is unlike any that the model can be expected to cope with.

    :meth:`~skbegan.BeGANTransformer.check_batch` warns of it.

    Examples
    --------
    Where such a batch should stop the work:

    >>> import warnings
    >>> from skbegan import UnusableBatchWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", UnusableBatchWarning)
    """


@dataclass(frozen=True)
class BatchCheck:
    """What :meth:`~skbegan.BeGANTransformer.check_batch` found.

    Attributes
    ----------
    n_cells : int
        That it is based on.
    distance : float
        Of the image statistics from those of plausible batches; about 1 is usual.
    p_value : float
        Share of plausible batches, known ones and styles about them, at least as far.
    moved : tuple of str
        What differs from the known batches, in words; empty where nothing stands out.
    expected_accuracy : float or None
        Expected share of right cell types, of a linear classifier on the profile; None where the fit knew no types.
    expected_accuracy_interval : tuple of float or None
        Of 90 %.
    expected_image_error : float
        Expected mean absolute error of predicted images in units of the target, against its canonical style.
    expected_image_error_interval : tuple of float
        Of 90 %.
    seen_accuracy, seen_image_error : float or None
        The same of held-out cells of the known batches.
    refused : bool
        Whether the batch should not be used with this model.
    reasons : tuple of str
        Why.
    """

    n_cells: int
    distance: float
    p_value: float
    moved: tuple[str, ...]
    expected_accuracy: float | None
    expected_accuracy_interval: tuple[float, float] | None
    expected_image_error: float
    expected_image_error_interval: tuple[float, float]
    seen_accuracy: float | None
    seen_image_error: float
    refused: bool
    reasons: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether the batch is like the known ones: not refused, and no farther than 95 % of plausible batches."""
        return not self.refused and self.p_value >= 0.05

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain data."""
        return asdict(self)

    def _rows(self) -> list[tuple[str, str]]:
        verdict = "refused: " + "; ".join(self.reasons) if self.refused else "can be used"
        rows = [
            ("verdict", verdict),
            ("distance", f"{self.distance:.2f}, p = {self.p_value:.2g} among plausible batches"),
            ("differs in", "; ".join(self.moved) or "nothing that stands out"),
        ]
        if self.expected_accuracy is not None and self.expected_accuracy_interval is not None:
            doubt = "; not to be trusted, as the batch is refused" if self.refused else ""
            text = _with_interval(self.expected_accuracy, self.expected_accuracy_interval, self.seen_accuracy, ".2f")
            rows.append(("right cell types, expected", text + doubt))
        text = _with_interval(
            self.expected_image_error, self.expected_image_error_interval, self.seen_image_error, ".3g"
        )
        rows.append(("image error, expected", text))
        return rows

    def __repr__(self) -> str:
        rows = [("new batch", f"{self.n_cells} cells"), *self._rows()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in [("new batch", f"{self.n_cells} cells"), *self._rows()]
        )
        return f"<table class='skbegan-batch-check'>{cells}</table>"


def _with_interval(value: float, interval: tuple[float, float], seen: float | None, form: str) -> str:
    low, high = interval
    return f"{value:{form}} (90 %: {low:{form}} to {high:{form}}); known batches {seen:{form}}"


def check(calibration: Calibration, found: Observed) -> BatchCheck:
    """Return what is said of observed cells."""
    look, n = found.statistics.mean(0), len(found.statistics)
    distance = calibration.distance(look)
    beyond = len(calibration.distances) - np.searchsorted(calibration.distances, distance)
    p_value = float((1 + beyond) / (1 + len(calibration.distances)))
    reasons = []
    if distance > calibration.limits[0]:
        reasons.append(f"its images are farther from the known ones than {(1 - p_value) * 100:.0f} % of plausible ones")
    if fault := _fault(calibration, look):
        reasons.append(f"its images look broken ({fault})")
    accuracy = interval = seen = None
    if calibration.classifier is not None:
        middle = calibration.expected("accuracy", found)
        seen = float(calibration.seen[0])
        spread = _spread(calibration.accuracy_residuals, seen, float(calibration.n_held_out[0]))
        spread = math.hypot(spread, _sampling(_expit(middle), n))
        accuracy = _expit(middle)
        interval = _expit(middle - Z90 * spread), _expit(middle + Z90 * spread)
    error = calibration.expected("error", found)
    width = Z90 * float(np.sqrt(np.mean(calibration.error_residuals**2)))
    return BatchCheck(
        n_cells=n,
        distance=distance,
        p_value=p_value,
        moved=tuple(moved(calibration, look)),
        expected_accuracy=accuracy,
        expected_accuracy_interval=interval,
        expected_image_error=math.exp(error),
        expected_image_error_interval=(math.exp(error - width), math.exp(error + width)),
        seen_accuracy=seen,
        seen_image_error=float(calibration.seen[1]),
        refused=bool(reasons),
        reasons=tuple(reasons),
    )


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _sampling(share: float, n: float) -> float:
    """Return the standard error, on the scale of logits, of a share of n cells."""
    share = min(max(share, 0.02), 0.98)
    return 1 / math.sqrt(n * share * (1 - share))


def _spread(residuals: Array, seen: float, n_held_out: float) -> float:
    return math.hypot(float(np.sqrt(np.mean(residuals**2))), _sampling(seen, n_held_out))


def moved(calibration: Calibration, look: Array) -> list[str]:
    """Say in words which traits differ from the known batches, the most striking first."""
    faults = [_fault(calibration, look)]
    found = calibration.traits_of(look)
    middle = calibration.traits_of(calibration.known.mean(0))
    said = []
    for name, value, around, error, known in zip(
        TRAITS, found, middle, calibration.trait_error, calibration.trait_known, strict=True
    ):
        change, kind = float(value - around), name.partition("_")[0]
        striking = abs(change) / math.hypot(error, known)
        if striking > MOVED and abs(change) > LEAST[kind]:
            said.append((striking, _in_words(kind, change)))
    words = [text for _, text in sorted(said, reverse=True)]
    return list(dict.fromkeys([fault for fault in faults if fault] + words))


def _in_words(kind: str, change: float) -> str:
    match kind:
        case "gain":
            return f"gain: contrast about {math.exp(change):.2g} times that of the known batches"
        case "offset":
            return f"offset: {'brighter' if change > 0 else 'darker'} by about {abs(change):.1f} standard deviations"
        case "illumination":
            return "uneven illumination of another kind"
        case "sharpness":
            return "defocus-like: fine structure is fainter" if change < 0 else "sharper: fine structure is stronger"
        case "noise":
            return "more noise" if change > 0 else "less noise"
    return f"magnification: about {math.exp(change):.2g} times that of the known batches"


def _fault(calibration: Calibration, look: Array) -> str:
    """Name the gross fault that is suspected most, or return an empty string."""
    beyond = calibration.suspicions(look)
    return list(FAULTS.values())[int(beyond.argmax())] if beyond.max() > 0 else ""

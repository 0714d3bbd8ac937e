"""What the figures of an audit say, in words; nothing here is measured anew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from skbegan.design import Design

SPREADS = 2.0  # how far from chance, or from the raw images, a figure has to be for words to say so
LEAKAGE_LIMIT = 0.2  # leakage beyond it is listed as a limitation; a convention of the report
FEW_CELLS = 30  # cells of a type in a batch; with fewer a probe has little to learn from
_MAX_NAMES = 8
_CLOSER = {"mae": "smaller", "rmse": "smaller", "psnr": "greater", "ssim": "greater", "pearson": "greater"}


def verdict(key: str, measure: Any) -> str:
    """Return what a row of an audit says: against chance, and against the raw images.

    Parameters
    ----------
    key : str
        Of the row in ``audit.measures``.
    measure : Measure

    Returns
    -------
    str
        Empty where there is neither a chance level nor a reference.
    """
    if not math.isfinite(measure.value):
        return "no finite figure"
    margin = SPREADS * (measure.spread if measure.spread is not None and math.isfinite(measure.spread) else 0.0)
    said = [_against_chance(key, measure, margin), _against_raw(key, measure, margin)]
    return "; ".join(part for part in said if part)


def _against_chance(key: str, m: Any, margin: float) -> str:
    if m.chance is None or not math.isfinite(m.chance) or m.better is None or key.endswith("_gap"):
        return ""
    level = floor(key, m)
    if m.value - margin <= level:
        return "not told from chance" if m.value + margin >= m.chance else "below chance"
    if "leakage" in key:
        return "the batch can be read"
    return "above chance"


def floor(key: str, m: Any) -> float:
    """Return what a figure has to be beyond; an R2 that is no more than 0 predicts nothing, whatever chance gives."""
    level = 0.0 if m.chance is None else float(m.chance)
    return max(level, 0.0) if key.startswith("retained_") else level


def _against_raw(key: str, m: Any, margin: float) -> str:
    if m.raw is None or not math.isfinite(m.raw) or m.better is None:
        return ""
    raw = "the measured images" if m.section != "features" and not m.section.startswith("features") else "raw pixels"
    if abs(m.value - m.raw) <= margin:
        return f"like {raw}"
    better = (m.value > m.raw) == (m.better == "higher")
    if "leakage" in key:
        return f"less than from {raw}" if better else f"more than from {raw}"
    if key.startswith("truth_"):
        return f"closer to the truth than {raw}" if better else f"farther from the truth than {raw}"
    return f"better than {raw}" if better else f"worse than {raw}"


def number(value: float | None, digits: int = 2) -> str:
    """Return a figure for a sentence."""
    if value is None or not math.isfinite(value):
        return "unknown"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def listed(labels: Iterable[Any]) -> str:
    """Return the first labels, and how many more there are."""
    names = [str(label) for label in labels]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


# -------------------------------------------------------------------------------------------------------- the verdict
def verdict_in_words(audit: Any, events: list[str], n_limits: int, history: Mapping[str, Any]) -> list[str]:
    """Return the sentences at the top of the report, each from a row of the audit."""
    said = []
    if "batch_removal" not in history:
        said.append("No batch was removed: the model's history has no stage 2.")
    said += [_leakage(audit, "", "the profiles", "raw pixels"), _across_batches(audit)]
    if any(key.startswith("image_") for key in audit.measures):
        said.append(_leakage(audit, "image_", "the predicted images", "the measured images"))
    said.append(_images(audit))
    said.append(
        f"{n_limits} limitation{'s' * (n_limits != 1)} are listed below; read them before the model is used."
        if n_limits != 1
        else "One limitation is listed below; read it before the model is used."
    )
    if events:
        said.append(f"The training left {len(events)} note{'s' * (len(events) != 1)}, listed there too.")
    return said


def _leakage(audit: Any, prefix: str, of: str, raw_name: str) -> str:
    found = {
        key: m for key, m in audit.measures.items() if key.startswith(f"{prefix}leakage_") and math.isfinite(m.value)
    }
    if not found:
        why = next((why for key, why in audit.skipped.items() if key.startswith(f"{prefix}leakage_")), "")
        return f"How well the batch can be read from {of} was not measured. {why}".strip()
    key, worst = max(found.items(), key=lambda item: item[1].value)
    says = "" if worst.spread is None else f" with a spread of {number(worst.spread)}"
    raw = "" if worst.raw is None else f"; the same probe reads {number(worst.raw)} from {raw_name}"
    start = {
        "not told from chance": f"No probe reads the batch from {of} beyond chance",
        "below chance": f"No probe reads the batch from {of} beyond chance",
    }.get(_against_chance(key, worst, SPREADS * (worst.spread or 0.0)), f"The batch can still be read from {of}")
    probe = worst.name.rpartition(", ")[2]
    figure = f"{number(worst.value)}{says} ({probe}; 0 is chance, 1 is fully readable)"
    return f"{start}: the greatest leakage is {figure}{raw}."


def _across_batches(audit: Any) -> str:
    m = audit.measures.get("cross_batch_accuracy")
    if m is None:
        why = audit.skipped.get("cross_batch_accuracy", "")
        return f"How well cell types are found in a batch that the probe never saw was not measured. {why}".strip()
    raw = "" if m.raw is None else f"; from raw pixels {number(m.raw)}"
    word = "" if m.value - SPREADS * (m.spread or 0.0) > (m.chance or 0.0) else ", which is not told from chance"
    return (
        f"On a batch that the probe never saw, {number(m.value)} of the cells get their cell type from the profiles "
        f"(chance {number(m.chance)}{raw}){word}."
    )


def _images(audit: Any) -> str:
    m = audit.measures.get("pearson")
    if m is None:
        return "The predicted images were not compared with measured ones."
    error = audit.measures.get("mae")
    by = "" if error is None else f", mean absolute error {error.value:.3g} in units of the target"
    return f"Predicted and measured images correlate with {number(m.value)}{by}."


# ------------------------------------------------------------------------------------------------ what it is not for
def limitations(
    est: Any, design: Design, batches: np.ndarray, types: np.ndarray, audit: Any, pixel_size: float | None
) -> list[str]:
    """Return what the model is not good for, or not known to be good for, each from something that was computed.

    Parameters
    ----------
    est : fitted BeGANTransformer
    design : Design
        Of the cells of the report.
    batches, types : ndarray
        Their labels, by code.
    audit : Audit
    pixel_size : float or None
    """
    history = est.history_
    found = [f"Note of the training: {event}" for event in history.get("events", ())]
    if "batch_removal" not in history:
        found.append("Stage 2 did not run, so nothing was done against the batch effect.")
    found += _of_labels(est, batches, types)
    found += _of_design(design, batches, types)
    found += _of_audit(audit)
    if est.get_params(deep=False).get("random_state") is None:
        found.append("The model has no seed (random_state=None): its training cannot be repeated.")
    found.append("One model was audited. How much another seed would change the figures was not measured.")
    found.append(
        "A fitted model does not know its training cells: the figures hold only if the cells of this report are not "
        "among them."
    )
    if pixel_size is None:
        found.append("The pixel size was not given: there is no scale bar, and lengths are in pixels.")
    return found


def _of_labels(est: Any, batches: np.ndarray, types: np.ndarray) -> list[str]:
    found = []
    for labels, known, one, several in (
        (batches, est.batches_, "batch", "batches"),
        (types, est.cell_types_, "cell type", "cell types"),
    ):
        if known is None:
            found.append(f"The model was fitted without any {one} label.")
            continue
        here, there = {str(label) for label in labels}, {str(label) for label in known}
        if absent := sorted(there - here):
            found.append(f"Not tested here on these {several} of the training: {listed(absent)}.")
        new = sorted(here - there)
        if one == "batch" and not new:
            found.append(
                "Not tested on a batch that the model was not fitted on: all batches of these cells are known to it. "
                "The rows on left-out batches hide a batch from the probe, not from the model."
            )
        elif new:
            found.append(
                f"The model was not fitted on these {several}: {listed(new)}. The audit takes them with the rest."
            )
    return found


def _of_design(design: Design, batches: np.ndarray, types: np.ndarray) -> list[str]:
    found = []
    counts = design.counts
    if design.n_batches < 2:
        found.append("All cells of this report are of one batch: nothing can be said of batch effects.")
    elif design.n_cell_types > 1 and design.is_confounded:
        found.append(
            "Batch and cell type are confounded in these cells: every type is in one batch only, and their effects "
            "cannot be told apart."
        )
    else:
        groups = design.linked_batches()
        if len(groups) > 1:
            names = " | ".join(listed(batches[code] for code in group) for group in groups[:_MAX_NAMES])
            found.append(
                f"The batches fall into {len(groups)} groups that share no cell type ({names}): differences between "
                "the groups cannot be told from differences between their types."
            )
        single = types[(counts > 0).sum(axis=1) == 1]
        if len(single):
            found.append(
                f"In one batch only, so that its share of a difference is unknown: cell type{'s' * (len(single) != 1)} "
                f"{listed(single)}."
            )
    few = [(t, b) for t, b in np.argwhere((counts > 0) & (counts < FEW_CELLS))]
    if few:
        names = listed(f"{types[t]} in {batches[b]} ({counts[t, b]})" for t, b in few)
        found.append(f"Fewer than {FEW_CELLS} cells: {names}. Probes have little to learn from; leakage is underrated.")
    return found


def _of_audit(audit: Any) -> list[str]:
    found = []
    for prefix, of in (("", "profiles"), ("image_", "predicted images")):
        worst = [
            (m.value, m.name.rpartition(", ")[2])
            for key, m in audit.measures.items()
            if key.startswith(f"{prefix}leakage_") and m.value > LEAKAGE_LIMIT
        ]
        if worst:
            names = ", ".join(f"{number(value)} ({name})" for value, name in worst)
            found.append(
                f"The batch can be read from the {of}: leakage {names}, above {LEAKAGE_LIMIT:g}. Do not compare cells "
                "of different batches without a control."
            )
    types = {
        label: max(values)
        for label, row in audit.per_type.items()
        if (values := [v for key, v in row.items() if key.startswith("leakage_") and v > LEAKAGE_LIMIT])
    }
    if types and len(types) < len(audit.per_type):
        found.append(
            "Leakage from the profiles is above that within these cell types: "
            + listed(f"{label} ({number(value)})" for label, value in types.items())
            + "."
        )
    for key, what in (
        ("cell_type_accuracy", "Cell types cannot be told from the profiles"),
        ("cross_batch_accuracy", "Cell types cannot be told in a batch that the probe never saw"),
    ):
        m = audit.measures.get(key)
        if m is not None and m.value - SPREADS * (m.spread or 0.0) <= (m.chance or 0.0):
            found.append(f"{what}: accuracy {number(m.value)}, chance {number(m.chance)}.")
    lost = [
        m.name
        for key, m in audit.measures.items()
        if key.startswith("retained_") and m.value - SPREADS * (m.spread or 0.0) <= floor(key, m)
    ]
    if lost:
        found.append(f"Within a cell type the profiles do not tell: {'; '.join(lost)} (not told from chance).")
    reasons: dict[str, list[str]] = {}
    for key, why in audit.skipped.items():
        reasons.setdefault(why, []).append(key)
    found += [f"Not measured: {', '.join(keys)}. {why}" for why, keys in reasons.items()]
    return found

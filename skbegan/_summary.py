"""What a notebook shows of a fitted model, below scikit-learn's diagram: design, stages, audit, documentation."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

STAGES = {
    "pretraining": "stage 1, pretraining",
    "batch_removal": "stage 2, batch removal",
    "profile_alignment": "stage 3, profile alignment",
}
_AUDIT_ROWS = ("leakage_linear", "leakage_mlp", "leakage_knn", "cell_type_accuracy", "cross_batch_accuracy", "mae")
_MAX_NAMES = 8


def summary_html(estimator: Any) -> str:
    """Return a short table of a fitted estimator as HTML, labels escaped.

    Parameters
    ----------
    estimator : fitted BeGANTransformer
        With an Audit as its attribute ``audit_``, that is summed up too.

    Returns
    -------
    str
    """
    rows = [
        ("Design", "; ".join(_design(estimator))),
        ("Stages", "; ".join(stages_in_words(estimator.history_)) or "none recorded"),
    ]
    if events := estimator.history_.get("events"):
        more = f" (and {len(events) - 1} more in history_['events'])" if len(events) > 1 else ""
        rows.append(("To know", f"{events[0]}{more}"))
    audit = getattr(estimator, "audit_", None)
    if hasattr(audit, "measures"):
        rows.append(("Audit", _audit(audit)))
    cells = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{name}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    link = (
        f"<a href='{html.escape(url)}' rel='noreferrer' target='_blank'>documentation</a>"
        if (url := docs_url())
        else f"<code>help(skbegan.{html.escape(type(estimator).__name__)})</code>"
    )
    cells += f"<tr><th style='text-align:left'>Docs</th><td style='text-align:left'>{link}</td></tr>"
    return f"<table class='skbegan-summary' style='max-width:50em;margin-top:0.5em'>{cells}</table>"


def docs_url() -> str | None:
    """Return the address of the documentation that the installed package names, if it names one."""
    try:
        named = metadata.metadata("skbegan").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return None
    urls = {name.strip().lower(): url.strip() for name, _, url in (entry.partition(",") for entry in named)}
    return next((urls[name] for name in ("documentation", "homepage", "repository") if name in urls), None)


def stages_in_words(history: Mapping[str, Any]) -> list[str]:
    """Return what ran and the last image losses of each stage."""
    found = []
    for stage, name in STAGES.items():
        losses = history.get(stage)
        if not losses:
            continue
        epochs = losses.get("epoch")
        said = [name if epochs is None else f"{name}: {len(epochs)} epoch{'s' * (len(epochs) != 1)}"]
        said += [
            f"{label} {losses[key][-1]:.3g}"
            for key, label in (("image", "image loss"), ("validation_image", "on validation cells"))
            if losses.get(key) and losses[key][-1] is not None
        ]
        found.append(", ".join(said))
    return found


def named(labels: Iterable[Any] | None, one: str, several: str) -> str:
    """Return how many labels there are and the first of them."""
    names = [] if labels is None else [str(label) for label in labels]
    if not names:
        return f"no {several}"
    shown = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return f"{len(names)} {one if len(names) == 1 else several} ({shown})"


def sides(shape: tuple[int, ...]) -> str:
    """Return the shape of an image in words."""
    channels = f", {shape[2]} channels" if len(shape) > 2 else ""
    return f"{shape[0]} x {shape[1]} pixels{channels}"


def _design(estimator: Any) -> list[str]:
    return [
        named(estimator.batches_, "batch", "batches"),
        named(estimator.cell_types_, "cell type", "cell types"),
        f"brightfield of {sides(estimator.image_shape_)}",
        f"profile of {estimator.n_features_out_} numbers",
    ]


def _audit(audit: Any) -> str:
    found = [(audit.measures[key], key) for key in _AUDIT_ROWS if key in audit.measures]
    said = [
        f"{m.name.strip()} {m.value:.2f}" + ("" if m.chance is None else f" (chance {m.chance:.2f})") for m, _ in found
    ]
    cells = f", {found[0][0].n_cells} cells" if found else ""
    return "; ".join(said) + cells

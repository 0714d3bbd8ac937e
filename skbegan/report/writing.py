"""Writing the report: checks first, then what is measured, then the page, which is written in one step."""

from __future__ import annotations

import datetime
import hashlib
import inspect
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skbegan import checks
from skbegan._summary import docs_url, named, sides, stages_in_words
from skbegan._version import versions
from skbegan.design import Design
from skbegan.labels.tables import as_batch_table, rows_of
from skbegan.plotting._common import check_pixel_size, pyplot
from skbegan.report import figures, page, words
from skbegan.stored.atomic import write_whole

_CARD = {
    "intended_use": "Intended use",
    "training_data": "Training data: source, instrument, consent",
    "contact": "Contact",
    "licence": "Licence of the model and of its data",
    "citation": "Citation",
}
_OPEN = "To be filled in by the owner of the model: write_report(..., card={{{key!r}: ...}})."
_DIGITS = {"psnr": ".1f", "effective_dimensions": ".1f", "effective_rank": ".1f", "directions": ".0f"}
_PLACES = ("memory", "checkpoint_dir", "callback", "verbose")  # where and how it ran; may hold names of folders


def write_report(
    path: str | Path,
    est: Any,
    X_bf: ArrayLike,
    y_qpi: ArrayLike | None,
    batch: ArrayLike,
    cell_type: ArrayLike,
    *,
    pixel_size: float | None = None,
    overwrite: bool = False,
    random_state: int = 0,
    title: str | None = None,
    units: str | None = None,
    bf_units: str | None = None,
    audit: Any = None,
    audit_params: Mapping[str, Any] | None = None,
    card: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML page about a fitted model: what it is, what was measured, what it is not good for.

    The page holds its own style and figures, fetches nothing, runs no script, and follows the reader's light or dark
    mode. What it says in words comes from the figures in it.

    Parameters
    ----------
    path : str or Path
        Of the page, as a rule with the suffix ``.html``; its folder has to exist.
    est : fitted BeGANTransformer
        Of a Pipeline, its step.
    X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
        Brightfield images **of cells that the model was not fitted on**, which it cannot know; the page says so.
    y_qpi : array-like of the same length, or None
        Measured target images.
    batch : array-like of shape (n_cells,), or table
        Of a table of several columns each distinct row is a batch, and each column is audited.
    cell_type : array-like of shape (n_cells,)
        Cells without one (None, NaN) are left out.
    pixel_size : float, default=None
        Side of a pixel in micrometres, in the object; for scale bars.
    overwrite : bool, default=False
        Whether an earlier file may be replaced.
    random_state : int, default=0
        Of the audit, of the cells that are drawn and of the maps.
    title : str, default=None
    units, bf_units : str, default=None
        Of target and brightfield, e.g. ``"rad"``.
    audit : Audit, default=None
        What :func:`skbegan.metrics.audit` found on these cells; None measures it now, which takes most of the time.
    audit_params : mapping of str to object, default=None
        Passed to :func:`skbegan.metrics.audit` where it is measured now, e.g. ``{"n_repeats": 1}``.
    card : mapping of str to str, default=None
        Fields of the model card that only its owner knows: ``"intended_use"``, ``"training_data"``, ``"contact"``,
        ``"licence"``, ``"citation"``. What is not given stays open on the page.

    Returns
    -------
    path : Path

    Raises
    ------
    FileExistsError
        If there is a file and ``overwrite`` is False; before anything is computed.
    FileNotFoundError
        If there is no such folder.
    ImportError
        Without matplotlib.
    TypeError, ValueError
        For a model that is not fitted, or input that cannot be used; before anything is measured.

    Notes
    -----
    Words follow two conventions: a figure differs from chance, or from the raw images, where it is more than twice its
    spread away; a leakage above 0.2 is listed as a limitation. Both are said on the page.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skbegan import BeGANTransformer
    >>> from skbegan.datasets import make_cell_images
    >>> from skbegan.report import write_report
    >>> train, new = (make_cell_images(90, 2, 2, 16, random_state=0, cells_random_state=s) for s in (0, 1))
    >>> began = BeGANTransformer(base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, random_state=0)
    >>> began.fit(train.bf, train.qpi, train.batch, train.cell_type)
    BeGANTransformer(...)
    >>> quick = {"probes": ["linear"], "n_splits": 2, "n_repeats": 1, "measurements": False}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_report(
    ...         Path(folder) / "report.html", began, new.bf, new.qpi, new.batch, new.cell_type, audit_params=quick
    ...     )
    ...     "What it is not good for" in path.read_text(encoding="utf-8")
    True
    """
    path = _check_path(Path(path), overwrite)
    pyplot()
    pixel_size = check_pixel_size(pixel_size)
    owned = _check_card(card)
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
        raise TypeError(f"random_state must be an integer, so that the report can be repeated, got {random_state!r}.")
    _check_model(est)
    bf = checks.check_images(X_bf, "X_bf", est.image_shape_)
    qpi = None if y_qpi is None else checks.check_images(y_qpi, "y_qpi", est.target_shape_)
    if qpi is not None and len(qpi) != len(bf):
        raise ValueError(f"X_bf has {len(bf)} cells but y_qpi has {len(qpi)}; they must be pairs of the same cells.")
    types, known = checks.check_known_types(cell_type, len(bf))
    if not known.any():
        raise ValueError("cell_type is missing for all cells: a report needs it; give one label for all if need be.")
    batches = checks.check_batch_labels(batch, len(bf))
    if not known.all():  # nothing can be said of the others within a type
        bf, qpi, batch = bf[known], None if qpi is None else qpi[known], rows_of(batch, known)
    labels = batches[known], types
    if audit is None:
        from skbegan.metrics import audit as measure

        options = {"random_state": random_state, **(audit_params or {})}
        audit = measure(est, bf, qpi, labels[0] if as_batch_table(batch) is None else batch, types, **options)
    elif not hasattr(audit, "measures"):
        raise TypeError(f"audit must be what skbegan.metrics.audit returns, got {type(audit).__name__}.")

    writer = _Writer(est, bf, qpi, labels[0], labels[1], audit, pixel_size, int(random_state), units, bf_units, owned)
    text = writer.page(title or f"Report on a {type(est).__name__}")
    _check_path(path, overwrite)  # it may have come in the meantime
    write_whole(path, text.encode("utf-8", errors="replace"))
    return path


def _check_path(path: Path, overwrite: bool) -> Path:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file, e.g. {path / 'report.html'}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}: make it first.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or replace it with overwrite=True.")
    return path


def _check_card(card: Mapping[str, str] | None) -> dict[str, str]:
    if unknown := set(card or {}) - set(_CARD):
        raise ValueError(f"card may hold {', '.join(_CARD)}, got {sorted(map(str, unknown))}.")
    return dict(card or {})


def _check_model(est: Any) -> None:
    if not hasattr(est, "transform") or not hasattr(est, "predict_image"):
        raise TypeError(
            f"est must be a BeGANTransformer, got {type(est).__name__}; of a Pipeline give its step, as pipe['began']."
        )
    if getattr(est, "history_", None) is None:
        raise ValueError(f"This {type(est).__name__} is not fitted: fit it first.")


class _Writer:
    """The sections of a report."""

    def __init__(
        self,
        est: Any,
        bf: np.ndarray,
        qpi: np.ndarray | None,
        batch: np.ndarray,
        cell_type: np.ndarray,
        audit: Any,
        pixel_size: float | None,
        random_state: int,
        units: str | None,
        bf_units: str | None,
        card: dict[str, str],
    ) -> None:
        self.est, self.bf, self.qpi, self.audit, self.card = est, bf, qpi, audit, card
        self.batch, self.cell_type = batch, cell_type
        self.pixel_size, self.random_state, self.units, self.bf_units = pixel_size, random_state, units, bf_units
        self.batches, self.batch_codes = np.unique(batch, return_inverse=True)
        self.types, self.type_codes = np.unique(cell_type, return_inverse=True)
        self.design = Design.of(self.batch_codes, self.type_codes, len(self.batches), len(self.types))
        self.limits = words.limitations(est, self.design, self.batches, self.types, audit, pixel_size)

    def page(self, title: str) -> str:
        """Return the page."""
        when = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
        return page.page(
            title,
            f"Written on {when} by skbegan {versions()['skbegan']} from {len(self.bf)} cells.",
            [
                ("verdict", "What it is, and the verdict", self._verdict()),
                ("data", "Data and design", self._data()),
                ("limits", "What it is not good for", self._limits()),
                ("images", "Images and their errors", self._images()),
                ("features", "Features before and after", self._features()),
                ("audit", "Audit", self._audit()),
                ("morphology", "Morphology", self._morphology()),
                ("training", "Training", self._training()),
                ("versions", "Versions, parameters and seeds", self._versions()),
                ("card", "Model card", self._card()),
            ],
        )

    # ------------------------------------------------------------------------------------------------- sections
    def _verdict(self) -> str:
        est = self.est
        said = words.verdict_in_words(self.audit, list(est.history_.get("events", ())), len(self.limits), est.history_)
        what = (
            f"A beGAN (batch-effect elimination GAN) that makes from a brightfield image of one cell, "
            f"{sides(est.image_shape_)}, a profile of {est.n_features_out_} numbers and a predicted target image of "
            f"{sides(est.target_shape_)}. It was fitted on {named(est.batches_, 'batch', 'batches')} and "
            f"{named(est.cell_types_, 'cell type', 'cell types')}."
        )
        return page.paragraph(what) + page.bullets(said, "verdict") + self._docs()

    def _docs(self) -> str:
        url = docs_url()
        return f'<p><a href="{page.esc(url)}" rel="noreferrer">Documentation of skbegan</a></p>' if url else ""

    def _data(self) -> str:
        counts = self.design.counts
        rows = [
            [str(label), *(str(n) if n else "-" for n in row), str(row.sum())]
            for label, row in zip(self.types, counts, strict=True)
        ]
        rows.append(["all", *map(str, counts.sum(axis=0)), str(counts.sum())])
        return (
            page.paragraph(
                f"{len(self.bf)} cells of {named(self.batches, 'batch', 'batches')} and "
                f"{named(self.types, 'cell type', 'cell types')} were given to this report. They should be cells that "
                "the model was not fitted on; the model cannot tell. How many cells it was fitted on is not kept in it."
            )
            + page.table(
                ["cell type", *map(str, self.batches), "all"],
                rows,
                f"Cells of each type in each batch. A dash: none. Italic: fewer than {words.FEW_CELLS}.",
                css=lambda text: "none" if text == "-" else "few" if int(text) < words.FEW_CELLS else "",
            )
            + page.paragraph(self._confounding())
        )

    def _confounding(self) -> str:
        design = self.design
        several = int(((design.counts > 0).sum(axis=1) > 1).sum())
        what = f"{several} of {design.n_cell_types} cell types are in more than one batch"
        if design.n_batches < 2:
            return "All cells are of one batch: nothing can be said of batch effects."
        groups = design.linked_batches()
        if several == 0:
            return f"{what}: batch and cell type are confounded, and their effects cannot be told apart."
        if len(groups) > 1:
            return f"{what}, and the batches fall into {len(groups)} groups that share no cell type."
        return f"{what}, and shared types link all batches, so that batch and type can be told apart."

    def _limits(self) -> str:
        return page.bullets(self.limits)

    def _images(self) -> str:
        chosen = figures.choose_cells(self.batch_codes, np.random.default_rng(self.random_state))
        drawn = figures.cells(
            self.est,
            self.bf,
            self.qpi,
            self.cell_type,
            chosen,
            self.batches,
            self.pixel_size,
            self.units,
            self.bf_units,
        )
        left_out = len(self.batches) - len(chosen)
        said = (
            f"Up to {figures.CELLS_PER_BATCH} cells of each batch, drawn at random (seed {self.random_state}) and not "
            "by their looks. All batches share one scale for each kind of image. "
            + (f"{left_out} smaller batches are not drawn. " if left_out else "")
            + ("" if self.qpi is not None else "No target images were given, so that there are no errors. ")
            + ("" if self.pixel_size else "The pixel size was not given, so that there is no scale bar. ")
        )
        if self.bf.ndim == 4 or len(self.est.target_shape_) == 3:
            said += "Of images with several channels the first is drawn."
        shown = "".join(page.figure(svg, f"Batch {label}", wide=False) for label, svg in drawn)
        return page.paragraph(said.strip()) + f'<div class="cells">{shown}</div>' + self._errors()

    def _errors(self) -> str:
        rows = [
            [m.name, _value(key, m.value), _value(key, m.spread)]
            for key, m in self.audit.measures.items()
            if m.section == "image error to the measured images"
        ]
        per_batch = [
            [str(label), _value("mae", row.get("mae")), _value("pearson", row.get("pearson"))]
            for label, row in self.audit.per_batch.items()
            if "mae" in row
        ]
        if not rows:
            return ""
        units = f" in {self.units}" if self.units else " in units of the target"
        return page.table(["error", "value", "\N{PLUS-MINUS SIGN}"], rows, f"To the measured images,{units}.") + (
            page.table(["batch", "mean absolute error", "Pearson correlation"], per_batch, "By batch.")
            if per_batch
            else ""
        )

    def _features(self) -> str:
        n = len(self.bf)
        rng = np.random.default_rng(self.random_state)
        rows = np.arange(n) if n <= figures.MAX_POINTS else np.sort(rng.choice(n, figures.MAX_POINTS, replace=False))
        images = self.bf[rows]
        drawn, kind = figures.features(
            images.reshape(len(rows), -1), self.est.transform(images), self.batch[rows], self.cell_type[rows],
            self.random_state,
        )  # fmt: skip
        how = (
            "UMAP, which shows groups more apart than they are; distances between groups mean little"
            if kind == "UMAP"
            else "the first two principal components, with their share of the variance"
        )
        some = "" if len(rows) == n else f", {len(rows)} of the cells, drawn at random"
        return page.paragraph(
            "Before: the pixels of the brightfield images as they are, since a model does not keep its features from "
            f"before batch removal. After: its profiles. Pixels and profiles are scaled to unit variance. The map is "
            f"{how}{some}. "
            "Whether batches can still be told apart is not seen here but measured in the audit."
        ) + page.figure(drawn, "Above coloured by batch, below by cell type.")

    def _audit(self) -> str:
        measures = {k: m for k, m in self.audit.measures.items() if not k.startswith("retained_")}
        drawn = figures.audit(self.audit, self.units)
        said = " ".join(self.audit.about)
        return (
            page.paragraph(f"{self.audit.title}. {said}")
            + (page.figure(drawn, "Dots: the model, with their spread. Squares: raw images.") if drawn else "")
            + self._rows(measures, "The audit.")
            + page.paragraph(
                "\N{PLUS-MINUS SIGN}: standard deviation to expect with other cells of these batches, other folds and "
                "probes. Raw: the same from the brightfield pixels (for the features) or from the measured images. In "
                f"words: beyond {words.SPREADS:g} spreads from chance or from raw; only the model's spread is known. A "
                f"leakage above {words.LEAKAGE_LIMIT:g} is listed as a limitation, by the convention of this report.",
                "faint",
            )
            + self._per_group()
        )

    def _rows(self, measures: Mapping[str, Any], caption: str) -> str:
        with_truth = any(m.truth is not None for m in measures.values())
        rows: list[list[str]] = []
        section = None
        for key, m in measures.items():
            if m.section != section:
                section = m.section
                rows.append([section])
            numbers = [m.value, m.spread, m.chance, m.raw, *([m.truth] if with_truth else [])]
            rows.append([m.name, *(_value(key, v) for v in numbers), str(m.n_cells), words.verdict(key, m)])
        references = ["raw", *(["truth"] if with_truth else [])]
        head = ["", "value", "\N{PLUS-MINUS SIGN}", "chance", *references, "cells", "in words"]
        return page.table(head, rows, caption, words=[len(head) - 1])

    def _per_group(self) -> str:
        parts = []
        found = {"batch column": getattr(self.audit, "per_column", {}), "batch": self.audit.per_batch}
        for what, groups in (found | {"cell type": self.audit.per_type}).items():
            keys = list(dict.fromkeys(key for row in groups.values() for key in row))
            if keys:
                rows = [[str(label), *(_value(key, row.get(key)) for key in keys)] for label, row in groups.items()]
                parts.append(page.table([what, *(key.replace("_", " ") for key in keys)], rows))
        return page.folded("Each batch and each cell type", "".join(parts)) if parts else ""

    def _morphology(self) -> str:
        measures = {k: m for k, m in self.audit.measures.items() if k.startswith("retained_")}
        if not measures:
            why = self.audit.skipped.get("retained_variation", "The audit was made without measurements of the cells.")
            return page.paragraph(f"What the profiles keep of the cells within a type was not measured. {why}")
        return page.paragraph(
            "What a fresh probe predicts from the profiles of the differences between cells of one type: R2, "
            "0 for nothing and 1 for all. A batch left out: the probe never saw the batch that it is scored on."
        ) + self._rows(measures, "Measurements of the cells.")

    def _training(self) -> str:
        said = stages_in_words(self.est.history_)
        if not said:
            return page.paragraph("The model holds no losses: it was imported, or its history was removed.")
        events = [str(event) for event in self.est.history_.get("events", ())]
        return (
            page.bullets([f"{text}." for text in said])
            + "".join(page.figure(drawn) for drawn in figures.history(self.est))
            + page.paragraph(
                "Losses of a GAN and of adversaries need not fall, since each side answers the other. How good the "
                "model is, the audit says.",
                "faint",
            )
            + (page.paragraph("Notes of the training:") + page.bullets(events) if events else "")
        )

    def _versions(self) -> str:
        parameters = self.est.get_params(deep=False)
        defaults = {name: p.default for name, p in inspect.signature(type(self.est).__init__).parameters.items()}
        shown = {name: value for name, value in parameters.items() if name not in _PLACES}
        rows = [
            [name, repr(value), "" if repr(value) == repr(defaults.get(name)) else "changed"]
            for name, value in sorted(shown.items(), key=lambda item: repr(item[1]) == repr(defaults.get(item[0])))
        ]
        found = {**versions(), "Python": platform.python_version(), "system": platform.system()}
        seeds = (
            f"Seed of the training: random_state={parameters.get('random_state')!r}. "
            f"Seed of this report: {self.random_state}."
        )
        return (
            page.paragraph(seeds)
            + page.paragraph(f"Device of the training: {self.est.device_}. Weights: SHA-256 {self._digest()}.")
            + page.table(["package", "version"], [[k, v] for k, v in found.items()], "Of the machine that wrote this.")
            + page.folded(
                f"Parameters ({sum(bool(row[2]) for row in rows)} of {len(rows)} changed from their defaults)",
                page.table(["parameter", "value", ""], rows, "As the estimator holds them now.", words=[1, 2])
                + page.paragraph(f"Left out, as they say where it ran: {', '.join(_PLACES)}.", "faint"),
            )
        )

    def _digest(self) -> str:
        """Return a digest of the weights, which ties the report to one model."""
        model = getattr(self.est, "_model", None)
        if model is None:
            return "unknown"
        digest = hashlib.sha256()
        for name, values in sorted(model.weights.items()):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def _card(self) -> str:
        known = [
            ("Model", f"{type(self.est).__name__} of skbegan; weights {self._digest()}", True),
            (
                "Fitted on",
                f"{named(self.est.batches_, 'batch', 'batches')}; "
                f"{named(self.est.cell_types_, 'cell type', 'cell types')}; {sides(self.est.image_shape_)}",
                True,
            ),
            ("Metrics", self._metrics(), True),
            ("Limitations", f"{len(self.limits)}, listed under: What it is not good for.", True),
        ]
        asked = [
            (name, self.card.get(key, _OPEN.format(key=key)), bool(self.card.get(key))) for key, name in _CARD.items()
        ]
        return page.definitions([*known, *asked])

    def _metrics(self) -> str:
        keys = ("leakage_linear", "leakage_mlp", "leakage_knn", "cross_batch_accuracy", "pearson")
        found = [(key, self.audit.measures[key]) for key in keys if key in self.audit.measures]
        said = [f"{m.name.strip()} {_value(key, m.value)}" for key, m in found]
        return "; ".join(said) + f" ({len(self.bf)} cells)" if said else "none was measured"


def _value(key: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    if isinstance(value, int | np.integer):
        return str(value)
    if key.removeprefix("truth_") in ("mae", "rmse"):
        return f"{value:.3g}"
    text = f"{value:{_DIGITS.get(key, '.3f')}}"
    return text.removeprefix("-") if float(text) == 0 else text

"""The methods that are compared, and one job of the comparison: fit the models, run the rivals, measure.

Probes learn from the training cells and are scored on the audit cells, which nobody trained on; the same cells serve
all methods. README.md says what the figures mean.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from quality import rivals
from quality.data_sets import Array, Cells, DataSet
from quality.figures import Audit
from quality.rivals import RIVALS, Pair, principal_components
from threadpoolctl import threadpool_limits

from skbegan import PUBLISHED, BeGANTransformer

# Every row of the tables: key, label. Those that are rivals come with their libraries from rivals.py.
METHODS = {
    "pixels": "brightfield pixels, PCA",
    "background": "the same, background removed",
    "contrast": "the same, background and contrast",
    "stage1": "stage 1",
    "stage1-longer": "stage 1, as long as the default",
    **{key: rival.label for key, rival in RIVALS.items()},
    "published": "published stage 2",
    "default": "default",
    "measured": "measured target, PCA",  # in place of the ceiling, where there is no truth
    "ceiling": "batch-free truth, PCA (ceiling)",
}
IMAGE_METHODS = {
    "input": "the input itself",
    "measured": "measured, with its batch effect",
    "stage1": "stage 1",
    "stage1-longer": "stage 1, as long as the default",
    "background": "stage 1, background removed",
    "contrast": "stage 1, background and contrast",
    "published": "published stage 2",
    "default": "default",
    "ceiling": "batch-free truth (ceiling)",
}
MODELS = ("stage1", "stage1-longer", "published", "default")
GOAL_METHODS = ("stage1", "default", "measured", "ceiling")  # with all that the table of goals needs
TRUTH_COMPONENTS = 30
USES_STAGE_1 = {"stage1", "background", "contrast", *RIVALS}


@dataclass(frozen=True)
class Job:
    """One seed of one data set.

    `turn` leaves a batch out of the training, by number, and audits its cells alone. `part` of the epochs: a point of
    the curve.
    """

    data: DataSet
    seed: int
    turn: int | None = None
    part: float | None = None

    def __str__(self) -> str:
        turn, part = "" if self.turn is None else f"-unseen{self.turn}", "" if self.part is None else f"-x{self.part:g}"
        return f"{self.data.name}-seed{self.seed}{turn}{part}"


# Models ---------------------------------------------------------------------------------------------------------------


def build(name: str, seed: int, settings: Mapping[str, Any], part: float | None = None) -> BeGANTransformer:
    """Return a model, unfitted: all have the same sizes, and see as many images unless their label says otherwise."""
    parameters = dict(settings["sizes"])
    if part is not None:
        parameters |= {name: max(1, round(part * parameters[name])) for name in ("pretrain_epochs", "removal_epochs")}
    if name == "published":
        parameters = {**PUBLISHED, **parameters}
    if name == "stage1-longer":
        parameters["pretrain_epochs"] += parameters["removal_epochs"]
    if name.startswith("stage1"):
        parameters["removal_epochs"] = 0
    model = BeGANTransformer(**parameters, memory=settings["memory"], device=settings["device"], random_state=seed)
    return model.set_params(**settings["published" if name == "published" else "model"])


def fit(name: str, train: Cells, job: Job, settings: Mapping[str, Any]) -> tuple[BeGANTransformer, dict[str, Any]]:
    """Fit a model and return it with what is to be known of the training."""
    start = time.perf_counter()
    model = build(name, job.seed, settings, job.part)
    model.fit(train.bf, train.qpi, batch=train.batch, cell_type=train.cell_type)
    seconds = time.perf_counter() - start
    epochs = {stage: len(model.history_.get(stage, {}).get("epoch", [])) for stage in ("pretraining", "batch_removal")}
    seen = round(len(train) * (1 - model.validation_fraction)) * sum(epochs.values())
    print(f"{job}: {name} trained in {seconds:.0f} s", flush=True)
    found = {"seconds": seconds, "epochs": epochs, "images_seen": seen, "per_cell": seen / len(train)}
    return model, found | {"events": model.history_["events"]}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as every job does however many run side by side, and go back to what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


# A job ----------------------------------------------------------------------------------------------------------------


def pixel_methods(wanted: list[str], train: Cells, audit: Cells, seed: int) -> dict[str, Pair]:
    """Return the features of the methods that need no model."""
    found = {}
    if "pixels" in wanted:
        found["pixels"] = principal_components(train.bf, audit.bf, seed)
    for name in ("background", "contrast"):
        if name in wanted:
            images = rivals.normalise_brightfield(train.bf, audit.bf, contrast=name == "contrast")
            found[name] = principal_components(*images, seed)
    if "ceiling" in wanted:
        found["measured" if train.truth is None else "ceiling"] = principal_components(
            train.reference, audit.reference, seed, TRUTH_COMPONENTS
        )
    return found


def rival_methods(wanted: list[str], features: Pair, train: Cells, audit: Cells, seed: int) -> dict[str, Pair]:
    """Return the features of stage 1 as the rivals correct them; none is given the types of the audit cells."""
    given = (features[0], train.batch, train.cell_type, features[1], audit.batch, seed)
    return {name: RIVALS[name].function(*given) for name in wanted if name in RIVALS}


def run(job: Job, methods: list[str], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Do one job.

    Parameters
    ----------
    job : Job
    methods : list of str
        Keys of `METHODS`.
    settings : mapping
        What `batch_removal.py` makes of its options.

    Returns
    -------
    result : dict
        ``features`` and ``images`` (method -> figures) and ``training`` (model -> what is to be known of it); for a
        batch that was left out of training ``unseen`` (method -> figures) and ``left_out``; for a point of the curve
        ``curve`` (method -> figures) and ``part``.
    panel : dict of str to ndarray
        Some images, for the picture.
    """
    with one_thread():
        train, audit = job.data.cells(job.seed)
        if job.turn is not None:
            return _run_unseen(job, train, audit, settings), {}
        if job.part is not None:
            return _run_curve(job, train, audit, settings), {}
        return _run_all(job, methods, train, audit, settings)


def _run_all(
    job: Job, methods: list[str], train: Cells, audit: Cells, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Array]]:
    features = pixel_methods(methods, train, audit, job.seed)
    images: dict[str, Pair] = {"measured": (train.qpi, audit.qpi)}
    if train.truth is None or audit.truth is None:  # then input and target are of one kind
        images["input"] = (train.bf, audit.bf)
    elif "ceiling" in methods:
        images["ceiling"] = (train.truth, audit.truth)
    training = {}
    for name in MODELS:
        if name in methods or (name == "stage1" and USES_STAGE_1 & set(methods)):
            model, training[name] = fit(name, train, job, settings)
            features[name] = model.transform(train.bf), model.transform(audit.bf)
            images[name] = model.predict_image(train.bf), model.predict_image(audit.bf)
    if "stage1" in features:
        features |= rival_methods(methods, features["stage1"], train, audit, job.seed)
        for name in {"background", "contrast"} & set(methods):
            images[name] = rivals.normalise_prediction(*images["stage1"], contrast=name == "contrast")

    judge, start = judge_of(job, train, audit, settings), time.perf_counter()
    figures = {name: judge.features(features[name]) for name in METHODS if name in features}
    judged = {name: judge.images(images[name]) for name in IMAGE_METHODS if name in images}
    for name in set(GOAL_METHODS) & set(features):
        figures[name] |= judge.goals(features[name])
        if name in training:
            figures[name]["per_cell"] = training[name]["per_cell"]
            judged[name]["excess_cnn"], judged[name]["bound_cnn"] = judge.by_network(images[name])
    print(f"{job}: measured in {time.perf_counter() - start:.0f} s", flush=True)
    rows = shown_cells(audit)
    panel = {**{name: pair[1][rows] for name, pair in images.items()}, "brightfield": audit.bf[rows]}
    panel |= {"batch": audit.batch[rows].astype(str)}
    result = {"features": figures, "images": judged, "training": training, "n_train": len(train)}
    return result | {"n_audit": len(audit), "cell_type_shown": str(audit.cell_type[rows[0]])}, panel


def _run_unseen(job: Job, train: Cells, audit: Cells, settings: Mapping[str, Any]) -> dict[str, Any]:
    assert job.turn is not None
    batches = np.unique(train.batch)
    left_out = batches[job.turn % len(batches)]
    kept = train.take(np.flatnonzero(train.batch != left_out))
    new = audit.take(np.flatnonzero((audit.batch == left_out) & np.isin(audit.cell_type, kept.cell_type)))
    if not len(new):
        raise ValueError(f"no cell type of batch {left_out} is in another batch, so leaving it out says nothing")
    judge, found, training = judge_of(job, kept, new, settings), {}, {}
    for name in ("stage1", "default"):
        model, training[name] = fit(name, kept, job, settings)
        accuracy = judge.new_batch((model.transform(kept.bf), model.transform(new.bf)))
        found[name] = {"cell_type": accuracy, **judge.fidelity(model.predict_image(new.bf))}
    return {"unseen": found, "left_out": str(left_out), "training": training, "n_audit": len(new)}


def _run_curve(job: Job, train: Cells, audit: Cells, settings: Mapping[str, Any]) -> dict[str, Any]:
    judge, found, training = judge_of(job, train, audit, settings), {}, {}
    for name in ("stage1", "default"):
        model, training[name] = fit(name, train, job, settings)
        types = judge.types((model.transform(train.bf), model.transform(audit.bf)))
        found[name] = {"per_cell": training[name]["per_cell"], **judge.fidelity(model.predict_image(audit.bf)), **types}
    return {"curve": found, "part": job.part, "training": training}


def judge_of(job: Job, train: Cells, audit: Cells, settings: Mapping[str, Any]) -> Audit:
    return Audit(train, audit, job.seed, job.data.balanced, job.data.foreground, settings["n_permutations"])


def shown_cells(cells: Cells, per_batch: int = 2) -> Array:
    """Choose some cells of one type in three batches, the type that is in most batches."""
    types = np.unique(cells.cell_type)
    shown = max(types, key=lambda name: len(np.unique(cells.batch[cells.cell_type == name])))
    rows = np.flatnonzero(cells.cell_type == shown)
    batches = np.unique(cells.batch[rows])[:3]
    return np.concatenate([rows[cells.batch[rows] == batch][:per_batch] for batch in batches])


def described(job: Job) -> dict[str, Any]:
    """Return all that a job's result depends on besides settings, methods and code."""
    return {"data": job.data.name, **dataclasses.asdict(job.data), "seed": job.seed, "turn": job.turn, "part": job.part}

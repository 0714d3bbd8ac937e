"""One job of `batch_removal.py`: make or read the cells, fit the models, run the rivals, measure. In any process.

Probes learn from the training cells and are scored on the audit cells, which nobody trained on; the same cells serve
all methods. See `README.md` for what the figures mean.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rivals
import torch
from numpy.typing import NDArray
from rivals import RIVALS, principal_components
from threadpoolctl import threadpool_limits

import skbegan
from skbegan import PUBLISHED, BeGANTransformer
from skbegan.datasets import load_cell_images, make_cell_images, resize_images
from skbegan.metrics import (
    active_features,
    batch_leakage,
    cell_type_accuracy,
    cross_batch_accuracy,
    cross_batch_gap,
    image_error,
    image_leakage,
)

Array = NDArray[Any]
Pair = tuple[Array, Array]

PROBES = {"linear": "linear", "mlp": "mlp", "15nn": "knn"}

# Every row of the table: key, label. Those that are rivals come with their libraries from rivals.py.
METHODS = {
    "pixels": "brightfield pixels, PCA",
    "background": "the same, background removed",
    "contrast": "the same, background and contrast",
    "stage1": "stage 1",
    "stage1-longer": "stage 1, as long as the default",
    **{key: rival.label for key, rival in RIVALS.items()},
    "published": "published stage 2",
    "default": "default",
    "default-fifth": "default, in a fifth of the images",
    "ceiling": "batch-free truth, PCA (ceiling)",
}
IMAGE_METHODS = {
    "measured": "measured, with its batch effect",
    "stage1": "stage 1",
    "stage1-longer": "stage 1, as long as the default",
    "background": "stage 1, background removed",
    "contrast": "stage 1, background and contrast",
    "published": "published stage 2",
    "default": "default",
    "default-fifth": "default, in a fifth of the images",
    "ceiling": "batch-free truth (ceiling)",
}
MODELS = ("stage1", "stage1-longer", "published", "default", "default-fifth")
USES_STAGE_1 = {"stage1", "background", "contrast", *RIVALS}


@dataclass(frozen=True)
class Cells:
    """Cells of a data set.

    Attributes
    ----------
    bf, qpi, truth : ndarray of shape (n_cells, side, side)
        Brightfield, measured target, and the target without batch effect.
    batch, cell_type : ndarray of shape (n_cells,)
    """

    bf: Array
    qpi: Array
    truth: Array
    batch: Array
    cell_type: Array

    def __len__(self) -> int:
        return len(self.bf)

    def take(self, rows: Array) -> Cells:
        return Cells(self.bf[rows], self.qpi[rows], self.truth[rows], self.batch[rows], self.cell_type[rows])


@dataclass(frozen=True)
class Job:
    """One seed of one data set; `unseen` leaves a batch out of the training and audits its cells alone."""

    data: str
    seed: int
    unseen: bool = False

    def __str__(self) -> str:
        return f"{self.data}-seed{self.seed}" + ("-unseen" if self.unseen else "")


# Cells ------------------------------------------------------------------------------------------------------------


def simulate(seed: int, design: Mapping[str, int]) -> tuple[Cells, Cells]:
    """Simulate training and audit cells: the seed gives types and instruments, the audit cells are other cells."""

    def cells(n_cells: int, cells_seed: int) -> Cells:
        found = make_cell_images(
            n_cells,
            design["n_cell_types"],
            design["n_batches"],
            design["image_size"],
            batches_per_type=design["batches_per_type"],
            random_state=seed,
            cells_random_state=cells_seed,
        )
        return Cells(found.bf, found.qpi, found.clean_qpi, found.batch, found.cell_type)

    return cells(design["n_train"], 1000 + seed), cells(design["n_audit"], 2000 + seed)


def read_tree(root: Path, image_size: int) -> tuple[Cells, Cells]:
    """Read the states Train and Valid to learn from and Test for the audit, with ROOT/batch_free_target.npz as truth.

    Raises
    ------
    ValueError
        If the truth does not fit the cells.
    """
    cells = load_cell_images(root, ["Train", "Valid", "Test"], image_size=image_size)
    truth = np.empty(cells.qpi.shape, dtype=np.float32)
    groups = np.array(
        ["/".join(parts) for parts in zip(cells.batch, cells.cell_type, cells.split, strict=True)], dtype=object
    )
    path = Path(root) / "batch_free_target.npz"
    with np.load(path) as file:
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            if group not in file or len(file[group]) != len(rows):
                raise ValueError(f"{path} must hold the {len(rows)} batch-free images of {group} under that key")
            truth[rows] = resize_images(np.asarray(file[group], dtype=np.float32), image_size)
    every = Cells(cells.bf, cells.qpi, truth, cells.batch, cells.cell_type)
    test = np.char.lower(cells.split.astype(str)) == "test"
    return every.take(np.flatnonzero(~test)), every.take(np.flatnonzero(test))


def load(job: Job, settings: Mapping[str, Any]) -> tuple[Cells, Cells]:
    if job.data == "simulated":
        return simulate(job.seed, settings["design"])
    return read_tree(Path(settings["jurkat"]), settings["design"]["image_size"])


# Models -----------------------------------------------------------------------------------------------------------


def core_digest(*folders: str) -> str:
    """Name the code that a result was made with, so that results of different code are never mixed."""
    root = Path(skbegan.__file__).parent
    files = sorted(file for folder in folders for file in (root / folder).rglob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


def build(name: str, seed: int, settings: Mapping[str, Any]) -> BeGANTransformer:
    """Return a model, unfitted: all have the same sizes, and see as many images unless their label says otherwise."""
    parameters = dict(settings["sizes"])
    if name == "published":
        parameters = {**PUBLISHED, **parameters, **settings["published"]}
    else:
        parameters |= settings["model"]
    if name == "stage1-longer":
        parameters["pretrain_epochs"] += parameters["removal_epochs"]
    if name.startswith("stage1"):
        parameters["removal_epochs"] = 0
    if name == "default-fifth":
        for stage in ("pretrain_epochs", "removal_epochs"):
            parameters[stage] = max(1, parameters[stage] // 5)
    # Stage 1 that other code has trained is not used again.
    memory = Path(settings["memory"]) / core_digest("core")
    return BeGANTransformer(**parameters, memory=str(memory), device=settings["device"], random_state=seed)


def fit(name: str, train: Cells, job: Job, settings: Mapping[str, Any]) -> tuple[BeGANTransformer, dict[str, Any]]:
    """Fit a model and return it with what is to be known of the training."""
    start = time.perf_counter()
    model = build(name, job.seed, settings)
    model.fit(train.bf, train.qpi, batch=train.batch, cell_type=train.cell_type)
    seconds = time.perf_counter() - start
    stages = ("pretraining", "batch_removal")
    epochs = {stage: len(next(iter(model.history_.get(stage, {}).values()), [])) for stage in stages}
    seen = round(len(train) * (1 - model.validation_fraction)) * sum(epochs.values())
    print(f"{job}: {name} trained in {seconds:.0f} s", flush=True)
    events = [str(event) for event in model.history_.get("events", [])]
    return model, {"seconds": seconds, "epochs": epochs, "images_seen": seen, "events": events}


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


# Figures ----------------------------------------------------------------------------------------------------------


def probe(features: Pair, train: Cells, audit: Cells, seed: int) -> dict[str, float]:
    """Return what fresh probes, trained on the training cells, read from the features of the audit cells."""
    joined, batch, cell_type, options = _for_probes(features, train, audit, seed)
    found: dict[str, Any] = {"cell_type": cell_type_accuracy(joined, cell_type, **options)}
    for name, kind in PROBES.items():
        found[f"leakage_{name}"] = batch_leakage(joined, batch, cell_type, probe=kind, **options)
    found["cross_batch"] = cross_batch_accuracy(joined, batch, cell_type, **options)
    found["gap"] = cross_batch_gap(joined, batch, cell_type, **options)
    return {name: float(value) for name, value in found.items()}


def judge_images(images: Pair, train: Cells, audit: Cells, seed: int) -> dict[str, float]:
    """Return how true images are to the batch-free ones, and what probes read from their principal components."""
    error = image_error(images[1], audit.truth)
    joined, batch, cell_type, options = _for_probes(images, train, audit, seed)
    found: dict[str, Any] = {"mae": error.mae, "pearson": error.pearson}
    for name, kind in PROBES.items():
        found[f"leakage_{name}"] = image_leakage(joined, batch, cell_type, probe=kind, **options)
    features = np.concatenate(principal_components(*images, seed))
    found["cell_type"] = cell_type_accuracy(features, cell_type, **options)
    found["cross_batch"] = cross_batch_accuracy(features, batch, cell_type, **options)
    return {name: float(value) for name, value in found.items()}


def _for_probes(values: Pair, train: Cells, audit: Cells, seed: int) -> tuple[Array, Array, Array, dict[str, Any]]:
    """Return values, batches and types of all cells, and the options with which probes learn from the first."""
    joined = np.concatenate(values)
    batch = np.concatenate([train.batch, audit.batch])
    cell_type = np.concatenate([train.cell_type, audit.cell_type])
    return joined, batch, cell_type, {"probe_train": np.arange(len(joined)) < len(train), "random_state": seed}


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
        found["ceiling"] = principal_components(train.truth, audit.truth, seed)
    return found


def rival_methods(wanted: list[str], features: Pair, train: Cells, audit: Cells, seed: int) -> dict[str, Pair]:
    """Return the features of stage 1 as the rivals correct them; none is told the types of the audit cells."""
    told = (features[0], train.batch, train.cell_type, features[1], audit.batch, seed)
    return {name: RIVALS[name].function(*told) for name in wanted if name in RIVALS}


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
        batch that was left out of training: ``unseen`` (method -> figures) and ``left_out``.
    panel : dict of str to ndarray
        Some images, for the picture.
    """
    with one_thread():
        train, audit = load(job, settings)
        if job.unseen:
            return _run_unseen(job, train, audit, settings), {}
        return _run_all(job, methods, train, audit, settings)


def _run_all(
    job: Job, methods: list[str], train: Cells, audit: Cells, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Array]]:
    seed = job.seed
    features = pixel_methods(methods, train, audit, seed)
    images: dict[str, Pair] = {"measured": (train.qpi, audit.qpi)}
    if "ceiling" in methods:
        images["ceiling"] = (train.truth, audit.truth)
    training, active = {}, {}
    for name in MODELS:
        if name in methods or (name == "stage1" and USES_STAGE_1 & set(methods)):
            model, training[name] = fit(name, train, job, settings)
            features[name] = model.transform(train.bf), model.transform(audit.bf)
            images[name] = model.predict_image(train.bf), model.predict_image(audit.bf)
            active[name] = active_features(features[name][1])
    if "stage1" in features:
        features |= rival_methods(methods, features["stage1"], train, audit, seed)
        for name in {"background", "contrast"} & set(methods):
            images[name] = rivals.normalise_prediction(*images["stage1"], contrast=name == "contrast")

    figures = {name: probe(features[name], train, audit, seed) for name in METHODS if name in features}
    for name, share in active.items():
        figures[name]["active"] = share
    judged = {name: judge_images(images[name], train, audit, seed) for name in IMAGE_METHODS if name in images}
    rows = shown_cells(audit)
    panel = {"brightfield": audit.bf[rows], **{name: pair[1][rows] for name, pair in images.items()}}
    panel |= {"truth": audit.truth[rows], "batch": audit.batch[rows].astype(str)}
    result = {"features": figures, "images": judged, "training": training, "n_train": len(train)}
    return result | {"n_audit": len(audit), "cell_type_shown": str(audit.cell_type[rows[0]])}, panel


def _run_unseen(job: Job, train: Cells, audit: Cells, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave a batch out of the training, another one for each seed, and audit its cells."""
    batches = np.unique(train.batch)
    left_out = batches[job.seed % len(batches)]
    kept = train.take(np.flatnonzero(train.batch != left_out))
    new = audit.take(np.flatnonzero((audit.batch == left_out) & np.isin(audit.cell_type, kept.cell_type)))
    if not len(new):
        raise ValueError(f"no cell type of batch {left_out} is in another batch, so leaving it out tells nothing")
    batch = np.concatenate([kept.batch, new.batch])
    cell_type = np.concatenate([kept.cell_type, new.cell_type])
    learns = np.arange(len(batch)) < len(kept)
    found, training = {}, {}
    for name in ("stage1", "default"):
        model, training[name] = fit(name, kept, job, settings)
        features = np.concatenate([model.transform(kept.bf), model.transform(new.bf)])
        error = image_error(model.predict_image(new.bf), new.truth)
        accuracy = cross_batch_accuracy(features, batch, cell_type, probe_train=learns, random_state=job.seed)
        found[name] = {"cell_type": float(accuracy), "mae": error.mae, "pearson": error.pearson}
    return {"unseen": found, "left_out": str(left_out), "training": training, "n_audit": len(new)}


def shown_cells(cells: Cells, per_batch: int = 2) -> Array:
    """Choose some cells of one type in three batches, the type that is in most batches."""
    types = np.unique(cells.cell_type)
    shown = max(types, key=lambda name: len(np.unique(cells.batch[cells.cell_type == name])))
    rows = np.flatnonzero(cells.cell_type == shown)
    batches = np.unique(cells.batch[rows])[:3]
    return np.concatenate([rows[cells.batch[rows] == batch][:per_batch] for batch in batches])

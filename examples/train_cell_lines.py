"""Train beGAN on a folder tree of cell images, audit it on cells that nobody trained on, and write everything down.
=================================================================================================================

ROOT is a tree of MATLAB files, of cell lines or of drugs::

    ROOT/Batch1/H69/Train/H69_BF.mat + H69_QPI.mat                  (batch / cell line / state)
    ROOT/Docetaxel/B1/D3/Train/D3_BF.mat + D3_QPI.mat               (drug / batch / dose / state)

The model learns from the states Train and Valid (it holds out a tenth of these cells to choose its best epoch). The
state Test is touched by the audit only. Usage::

    python examples/train_cell_lines.py ROOT                        # full size: wants a GPU
    python examples/train_cell_lines.py ROOT --out outputs/plates --image-size 128 --minibatch-size 10 --published
    python examples/train_cell_lines.py ROOT --image-size 32 --base-width 16 --n-features 128 \
        --pretrain-epochs 40 --removal-epochs 80                    # a first try, on a laptop

A run that broke off goes on from its last epoch when the same command is given again. Ctrl-C in stage 2 ends the
training early and audits the best model so far. All options: --help.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA

import skbegan
from skbegan.datasets import load_cell_images, resize_images, save_predictions
from skbegan.metrics import batch_leakage, cell_type_accuracy, cross_batch_accuracy, image_error

PIXELS, STAGE_1, STAGE_2 = "brightfield pixels, PCA", "stage 1 (pretraining)", "after batch removal"

# Parameters of the model that are options here too; what is not given is the package's default, or the published value.
MODEL_OPTIONS = ("base_width", "n_features", "pretrain_epochs", "removal_epochs", "minibatch_size")

# The columns of the table: key in table.csv, heading on the screen.
COLUMNS = {
    "cell_type_accuracy": "cell type",
    "leakage_linear": "batch, lin.",
    "leakage_mlp": "batch, MLP",
    "leakage_15nn": "batch, 15-NN",
    "cross_batch_accuracy": "new batch",
    "mae_measured": "MAE",
    "pearson_measured": "Pearson",
    "mae_truth": "MAE (truth)",
    "pearson_truth": "Pearson (truth)",
}
EXPLANATION = """\
All figures are of test cells. Probes are classifiers trained afresh on the features of the training cells.
cell type      Share of cells whose type a linear probe names. Higher is better; it should not fall in batch removal.
batch, ...     How well a linear probe, a small network and 15 nearest neighbours read the batch within one cell type:
               0 is chance, 1 is every time. Lower is better; a few hundredths around 0 are noise.
new batch      Share of cells whose type a linear probe names when it has never seen a cell of their batch. Higher is
               better: this is what carries over to the next experiment. Below chance, the batch outweighs the type."""
EXPLAIN_MEASURED = """\
MAE, Pearson   Distance of predicted from measured images (in the target's units) and their correlation. Measured images
               carry the batch effect themselves, so removing it may cost a little here."""
EXPLAIN_TRUTH = """\
... (truth)    The same against the batch-free images that were given. Here batch removal should win (stage 2 also
               is longer training, which helps by itself)."""

Cells = Any  # what load_cell_images returns: .bf, .qpi, .batch, .cell_type, .split, for drugs .drug and .dose
Rows = dict[str, dict[str, float]]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the batches (cell lines) or of the drugs")

    data = parser.add_argument_group("the cells")
    data.add_argument(
        "--train-split",
        nargs="+",
        metavar="STATE",
        help="states to learn from (default: Train, and Valid if there is any)",
    )
    data.add_argument("--test-split", default="Test", metavar="STATE", help="state for the audit (default: Test)")
    data.add_argument(
        "--image-size", type=int, default=64, choices=(16, 32, 64, 128, 256, 512), help="side in pixels (default: 64)"
    )
    data.add_argument("--max-cells-per-group", type=int, metavar="N", help="read only the first N cells of each file")
    data.add_argument("--layout", default="auto", choices=("auto", "cell_lines", "drugs"), help="kind of tree")
    data.add_argument(
        "--cell-type-from",
        default="drug",
        choices=("drug", "dose"),
        help="cell type in a tree of drugs (default: drug)",
    )
    data.add_argument("--bf-variable", default="BF", metavar="NAME", help="variable with the brightfield (default: BF)")
    data.add_argument("--qpi-variable", default="QPI", metavar="NAME", help="variable with the target (default: QPI)")
    data.add_argument(
        "--truth", type=Path, metavar="FILE.npz", help="batch-free target of the test cells, key BATCH/LINE/STATE each"
    )

    model = parser.add_argument_group(
        "the model", "What is not given is the package's default, or the published value."
    )
    model.add_argument("--published", action="store_true", help="the published procedure instead of the package's own")
    model.add_argument("--base-width", type=int, metavar="N", help="channels of the first level; cost grows with N^2")
    model.add_argument("--n-features", type=int, metavar="N", help="length of the profile")
    model.add_argument("--pretrain-epochs", type=int, metavar="N", help="epochs of stage 1")
    model.add_argument("--removal-epochs", type=int, metavar="N", help="epochs of stage 2")
    model.add_argument("--minibatch-size", type=int, metavar="N", help="cells per step")
    model.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    model.add_argument("--seed", type=int, default=0, help="the same seed gives the same model (default: 0)")

    output = parser.add_argument_group("what is written")
    output.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/cell_lines"),
        metavar="DIR",
        help="folder for the results (default: outputs/cell_lines)",
    )
    output.add_argument("--memory", type=Path, metavar="DIR", help="where stage 1 is kept (default: cache in --out)")
    output.add_argument(
        "--checkpoint-dir",
        type=Path,
        metavar="DIR",
        help="where a run that was stopped is kept (default: checkpoints in --out)",
    )
    output.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    output.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:  # what can be checked is checked before hours of training
        check_output(args)
        training, test = read_cells(args)
        truth = None if args.truth is None else read_truth(args.truth, test, args.image_size)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    print_cells("Training cells", training)
    print_cells("Test cells", test)

    stage_1, began = train(args, training)
    save_model(args.out, began)  # first of all: whatever happens from here on, the training is not lost

    print("\nAuditing ...", flush=True)
    features = {name: model.transform(test.bf) for name, model in ((STAGE_1, stage_1), (STAGE_2, began))}
    images = {name: model.predict_image(test.bf) for name, model in ((STAGE_1, stage_1), (STAGE_2, began))}
    rows, chance = audit(stage_1, began, training, test, features, images, truth)
    print_table(rows, chance, truth is not None)

    write_table(args.out / "table.csv", rows, chance)
    draw(args, began, test, images[STAGE_2], features, truth)
    write_predictions(args.out / "predictions", test, images[STAGE_2], features[STAGE_2])
    print_files(args.out)


# Before training --------------------------------------------------------------------------------------------------


def check_output(args: argparse.Namespace) -> None:
    """Refuse what would go wrong at the end, or would harm files that are there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('the figures need matplotlib, which is not installed: pip install "skbegan[plots]"')
    out, root = args.out.resolve(), args.root.resolve()
    if out.is_relative_to(root) or root.is_relative_to(out):
        raise ValueError(f"results and data must be apart: choose an --out that neither is in {root} nor holds it")
    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f"{args.out} is a file; --out must be a folder")
    args.memory = args.memory or args.out / "cache"
    args.checkpoint_dir = args.checkpoint_dir or args.out / "checkpoints"
    # Cache and checkpoints of a run that was stopped are there to be used.
    kept = {path.resolve() for path in (args.memory, args.checkpoint_dir)}
    there = sorted(path.name for path in args.out.glob("*") if path.resolve() not in kept)
    if there and not args.overwrite:
        listed = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
        raise FileExistsError(f"{args.out} has files already ({listed}): choose another --out, or add --overwrite")
    if args.truth is not None and not args.truth.is_file():
        raise FileNotFoundError(f"there is no file {args.truth} (--truth)")


def read_cells(args: argparse.Namespace) -> tuple[Cells, Cells]:
    """Read the training and the test cells, resized to one side."""
    train_split = args.train_split
    if train_split is None:
        folders = [path for pattern in ("*/*/*", "*/*/*/*") for path in args.root.glob(pattern) if path.is_dir()]
        train_split = ["Train", "Valid"] if any(path.name.casefold() == "valid" for path in folders) else ["Train"]
    if args.test_split.casefold() in {state.casefold() for state in train_split}:
        raise ValueError(f"{args.test_split} cannot be both trained on and the test: see --train-split, --test-split")
    how = {
        "image_size": args.image_size,
        "layout": args.layout,
        "cell_type_from": args.cell_type_from,
        "bf_variable": args.bf_variable,
        "qpi_variable": args.qpi_variable,
        "max_cells_per_group": args.max_cells_per_group,
        "verbose": 0 if args.quiet else 1,
    }
    test = load_cell_images(args.root, args.test_split, **how)
    training = load_cell_images(args.root, train_split, **how)
    return training, test


def group_names(cells: Cells) -> np.ndarray:
    """Return the folder of each cell in the tree, as in Batch1/H69/Test or Docetaxel/B1/D3/Test."""
    parts = [cells[name] for name in (("drug", "batch", "dose") if "drug" in cells else ("batch", "cell_type"))]
    return np.array(["/".join(names) for names in zip(*parts, cells.split, strict=True)])


def read_truth(path: Path, cells: Cells, image_size: int) -> np.ndarray:
    """Read the batch-free target of the cells, which the file holds by folder and in the order of the cells."""
    groups = group_names(cells)
    truth = np.empty(cells.qpi.shape, dtype=np.float32)
    with np.load(path) as file:
        for group in np.unique(groups).tolist():
            if group not in file:
                raise ValueError(f"{path} lacks the key {group!r}; it has {', '.join(file.files[:3])}, ...")
            rows = np.flatnonzero(groups == group)
            if len(file[group]) < len(rows):
                raise ValueError(f"{path} has {len(file[group])} images of {group}, but there are {len(rows)} cells")
            truth[rows] = resize_images(file[group][: len(rows)], image_size)
    return truth


def natural(names: np.ndarray) -> list[str]:
    """Sort names as people do: Batch2 before Batch10."""
    return sorted(
        set(names.tolist()), key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
    )


def print_cells(title: str, cells: Cells) -> None:
    """Print how many cells there are of each type in each batch."""
    batches, types = natural(cells.batch), natural(cells.cell_type)
    counts = [[int(np.sum((cells.cell_type == t) & (cells.batch == b))) for b in batches] for t in types]
    first = max(9, *map(len, types))
    widths = [max(len(batch), 6) for batch in batches]
    print(f"\n{title} ({', '.join(dict.fromkeys(cells.split.tolist()))}): {len(cells.bf)}")
    print("  " + "cell type".ljust(first), *(b.rjust(w) for b, w in zip(batches, widths, strict=True)), "   all")
    for name, row in zip(types, counts, strict=True):
        numbers = ((str(n) if n else "-").rjust(w) for n, w in zip(row, widths, strict=True))
        print("  " + name.ljust(first), *numbers, f"{sum(row):6d}")


# Training ---------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, cells: Cells) -> tuple[Any, Any]:
    """Train stage 1 alone, as the baseline, and both stages. The cache has stage 1 computed once only."""
    parameters = dict(skbegan.PUBLISHED) if args.published else {}
    parameters |= {name: getattr(args, name) for name in MODEL_OPTIONS if getattr(args, name) is not None}
    began = skbegan.BeGANTransformer(
        **parameters,
        device=args.device,
        memory=str(args.memory),
        checkpoint_dir=str(args.checkpoint_dir),
        random_state=args.seed,
        verbose=0 if args.quiet else 1,
    )
    procedure = "The published procedure" if args.published else "The package's own procedure"
    print(f"\n{procedure}: images of {args.image_size} pixels", end="")
    print("".join(f", {name.replace('_', ' ')} {getattr(began, name)}" for name in MODEL_OPTIONS) + "\n", flush=True)
    models = []
    for name, model in ((STAGE_1, clone(began).set_params(removal_epochs=0)), (STAGE_2, began)):
        start = time.perf_counter()
        model.fit(cells.bf, cells.qpi, batch=cells.batch, cell_type=cells.cell_type)
        print(f"{name.capitalize()}: trained in {time.perf_counter() - start:.0f} s on {model.device_}.", flush=True)
        models.append(model)
    for event in began.history_["events"]:
        print(f"Note: {event}")
    return models[0], models[1]


# The audit --------------------------------------------------------------------------------------------------------


def audit(
    stage_1: Any,
    began: Any,
    training: Cells,
    test: Cells,
    features: dict[str, np.ndarray],
    images: dict[str, np.ndarray],
    truth: np.ndarray | None,
) -> tuple[Rows, dict[str, float]]:
    """Return the rows of the table and the chance levels: probes learn from training cells, test cells are scored."""
    learned = {STAGE_1: stage_1.transform(training.bf), STAGE_2: began.transform(training.bf)}
    pixels = pixel_features(training.bf, test.bf)
    rows: Rows = {PIXELS: probe(*pixels, training, test)[0]}
    chance: dict[str, float] = {}
    for name in (STAGE_1, STAGE_2):
        rows[name], chance = probe(learned[name], features[name], training, test)
        for against, target in (("measured", test.qpi), ("truth", truth)):
            if target is not None:
                error = image_error(images[name], target)
                rows[name] |= {f"mae_{against}": error.mae, f"pearson_{against}": error.pearson}
    return rows, chance


def pixel_features(training_bf: np.ndarray, test_bf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what there is without any network: 50 principal components of the brightfield pixels."""
    train_pixels, test_pixels = (bf.reshape(len(bf), -1) for bf in (training_bf, test_bf))
    some = np.random.default_rng(0).permutation(len(train_pixels))[:5000]  # enough to find 50 directions
    pca = PCA(min(50, len(some), train_pixels.shape[1]), svd_solver="randomized", random_state=0)
    pca.fit(train_pixels[some])
    return pca.transform(train_pixels), pca.transform(test_pixels)


def probe(
    training_features: np.ndarray, test_features: np.ndarray, training: Cells, test: Cells
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what fresh probes read from the features, and what guessing would give."""
    features = np.concatenate([training_features, test_features])
    batch = np.concatenate([training.batch, test.batch])
    cell_type = np.concatenate([training.cell_type, test.cell_type])
    options: dict[str, Any] = {"probe_train": np.arange(len(features)) < len(training_features), "return_details": True}
    measures: dict[str, Callable[[], Any]] = {
        "cell_type_accuracy": lambda: cell_type_accuracy(features, cell_type, **options),
        "leakage_linear": lambda: batch_leakage(features, batch, cell_type, probe="linear", **options),
        "leakage_mlp": lambda: batch_leakage(features, batch, cell_type, probe="mlp", **options),
        "leakage_15nn": lambda: batch_leakage(features, batch, cell_type, probe="knn", **options),
        "cross_batch_accuracy": lambda: cross_batch_accuracy(features, batch, cell_type, **options),
    }
    scores, chance = {}, {}
    for name, measure in measures.items():
        try:
            found = measure()
        except ValueError as error:  # this design of batches and types has no answer, e.g. with one cell type
            print(f"Note: {COLUMNS[name]} is not measured: {error}")
            continue
        scores[name] = found.score
        chance[name] = 0.0 if name.startswith("leakage") else found.chance
    return scores, chance


def print_table(rows: Rows, chance: dict[str, float], with_truth: bool) -> None:
    columns = {key: heading for key, heading in COLUMNS.items() if with_truth or not key.endswith("_truth")}
    first = max(map(len, rows))

    def line(name: str, cells: list[str]) -> str:
        widths = [max(len(heading), 7) for heading in columns.values()]
        return "  ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])

    def number(key: str, value: float) -> str:
        return f"{value:.3g}" if key.startswith("mae") else f"{value:.2f}"

    def numbers(row: dict[str, float]) -> list[str]:
        return [number(key, row[key]) if key in row else "-" for key in columns]

    print("\n" + line("", list(columns.values())))
    for name, row in rows.items():
        print(line(name, numbers(row)))
    print(line("chance", numbers(chance)) + "\n")
    print(EXPLANATION, EXPLAIN_MEASURED, *([EXPLAIN_TRUTH] if with_truth else []), sep="\n")


# Writing ----------------------------------------------------------------------------------------------------------


def save_model(out: Path, began: Any) -> None:
    """Write the model in both forms, and its history."""
    skbegan.save(began, out / "model.safetensors")
    joblib.dump(began, out / "model.joblib")

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON knows no NaN

    (out / "history.json").write_text(json.dumps(plain(began.history_), allow_nan=False), encoding="utf-8")


def write_table(path: Path, rows: Rows, chance: dict[str, float]) -> None:
    """Write the table as text that any spreadsheet opens; what was not measured is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["features", *COLUMNS])
        for name, row in {**rows, "chance": chance}.items():
            writer.writerow([name, *(f"{row[key]:.6g}" if key in row else "" for key in COLUMNS)])


def write_predictions(folder: Path, test: Cells, images: np.ndarray, features: np.ndarray) -> None:
    """Write a tree like ROOT with the predicted images and features of the test cells, beside what was measured."""
    if folder.exists():  # of an earlier run, with --overwrite: its cells are not to be mixed with these
        shutil.rmtree(folder)
    split = str(test.split[0])
    drugs = np.unique(test.drug) if "drug" in test else [None]
    for drug in drugs:
        rows = np.arange(len(images)) if drug is None else np.flatnonzero(test.drug == drug)
        save_predictions(
            folder if drug is None else folder / drug,
            images=images[rows],
            features=features[rows],
            batch=test.batch[rows],
            cell_type=(test.cell_type if drug is None else test.dose)[rows],
            bf=test.bf[rows],
            qpi=test.qpi[rows],
            split=split,
        )


def draw(
    args: argparse.Namespace,
    began: Any,
    test: Cells,
    images: np.ndarray,
    features: dict[str, np.ndarray],
    truth: np.ndarray | None,
) -> None:
    """Draw the three figures."""
    import matplotlib

    matplotlib.use("Agg")  # into files, on machines without a screen too
    from skbegan.plotting import CellImagesDisplay, HistoryDisplay, compare_features

    groups = group_names(test)
    first_of_group = np.sort(np.unique(groups, return_index=True)[1])  # in the order of the tree: type by type
    shown = first_of_group[np.unique(np.linspace(0, len(first_of_group) - 1, 10).round().astype(int))]
    labels = np.array([f"{kind}\n{batch}" for kind, batch in zip(test.cell_type, test.batch, strict=True)])
    displays: dict[str, Any] = {
        "history": HistoryDisplay.from_estimator(began),
        "cells": CellImagesDisplay.from_predictions(
            test.bf, images, test.qpi, truth, cells=shown, labels=labels, units=args.qpi_variable
        ),
        "features": compare_features(features, test.batch, test.cell_type),
    }
    for name, display in displays.items():
        display.figure_.savefig(args.out / f"{name}.png", dpi=150)


def print_files(out: Path) -> None:
    written = {
        "table.csv": "the table above",
        "model.safetensors": "the model: skbegan.load(path).transform(brightfield)",
        "model.joblib": "the same for joblib.load, among people who trust each other",
        "history.json": "every loss in every epoch",
        "history.png": "the same, drawn",
        "cells.png": "brightfield, predicted and measured images of some test cells",
        "features.png": "features of the test cells before and after batch removal, by batch and cell type",
        "predictions": "images and features of the test cells, a tree like ROOT",
        "cache": "stage 1, for further runs; may be deleted",
    }
    print(f"\nWritten to {out.resolve()}:")
    for name, what in written.items():
        if (out / name).exists():
            print(f"  {name.ljust(18)} {what}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on from the last epoch.")

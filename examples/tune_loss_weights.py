"""Choose the weight of batch removal with GridSearchCV, by leaving one batch out, and see what it trades.
=======================================================================================================

::

    python examples/tune_loss_weights.py [OUTPUT_FOLDER]

`batch_weight` multiplies all losses that remove the batch from the features. Too little leaves the batch in, too much
takes the biology with it. Two searches over the same weights tell where it stands:

1. **Leave one batch out** (`LeaveOneGroupOut` over the batches). Model and classifier are fitted on all batches but one
   and name the cell types of the one they never saw: what a user wants in the end, so this chooses the weight. What it
   cannot measure is batch leakage, for the scored cells are of one batch.
2. **Mixed folds**, each with all batches and all types, add the leakage: how well fresh probes read the batch from the
   features of cells that the model did not learn from.

The weights are spread over decades, for most of the batch goes at small ones; the default is 1. Mind the spreads: on
so few cells, and with two batches to learn from, neighbouring weights cannot be told apart.

`memory` keeps stage 1, which does not depend on the weight: it is trained once per fold, not once per fit. Takes some
minutes on two cores, and prints a table and draws the trade-off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib

matplotlib.use("Agg")  # into a file, on machines without a screen too
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images
from skbegan.metrics import FeatureScorer

N_TYPES, N_BATCHES = 3, 3

Table = dict[str, np.ndarray]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("outputs/tune_loss_weights"), help="output folder")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.003, 0.03, 0.3, 3.0], metavar="W")
    parser.add_argument("--n-cells", type=int, default=800, metavar="N")
    parser.add_argument("--image-size", type=int, default=32, metavar="N", help="side in pixels")
    parser.add_argument("--base-width", type=int, default=4, metavar="N")
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 18], metavar="N", help="of the two stages")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="fits side by side")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, search, print, draw."""
    args = parse_arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    cells = make_cell_images(args.n_cells, N_TYPES, N_BATCHES, args.image_size, batch_strength=0.5, random_state=3)
    with TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        pipe = Pipeline(
            [
                ("began", began(args, cache)),
                ("scale", StandardScaler()),
                ("clf", LogisticRegression(max_iter=1000)),
            ]
        )
        table, best = search(pipe, cells, args.weights, args.jobs)
    print_table(table, best)
    draw(table, best, args.out / "trade_off.png")
    print(f"\nWrote {args.out / 'trade_off.png'}; {time.perf_counter() - start:.0f} s in all")


def began(args: argparse.Namespace, cache: str) -> BeGANTransformer:
    """Return the model, small and trained briefly; all that is not given here is the default."""
    return BeGANTransformer(
        base_width=args.base_width,
        n_features=8 * args.base_width,
        pretrain_epochs=args.epochs[0],
        removal_epochs=args.epochs[1],
        learning_rate=1e-3,  # these rates and the warm-up are for few cells and few epochs
        removal=OnlineRemoval(learning_rate=1e-3, warmup_epochs=1),
        device="cpu",
        memory=cache,
        random_state=0,
    )


def search(pipe: Pipeline, cells: Any, weights: Sequence[float], jobs: int) -> tuple[Table, float]:
    """Run both searches over the weights; return all scores, mean and spread over folds, and the best weight."""
    grid = {"began__batch_weight": list(weights)}
    images = {"began__y_qpi": cells.qpi, "began__batch": cells.batch}

    # y is the cell type: Pipeline and search hand it to the transformer, the classifier and the scorer alike.
    unseen = GridSearchCV(pipe, grid, cv=LeaveOneGroupOut(), refit=False, n_jobs=jobs, error_score="raise")
    unseen.fit(cells.bf, cells.cell_type, groups=cells.batch, **images)

    # Scorers need the batch of the scored cells. With sklearn.set_config(enable_metadata_routing=True) it arrives by
    # itself; without, a scorer is given the labels of all images beforehand.
    measures = {
        "leakage_linear": FeatureScorer("leakage"),
        "leakage_mlp": FeatureScorer("leakage", probe="mlp"),
        "leakage_15nn": FeatureScorer("leakage", probe="knn"),
        "kept": FeatureScorer("cross_batch"),
    }
    labelled = {name: scorer.with_labels(cells.bf, cells.batch, cells.cell_type) for name, scorer in measures.items()}
    groups = np.char.add(cells.batch, cells.cell_type)
    folds = list(StratifiedShuffleSplit(3, test_size=1 / 3, random_state=0).split(cells.bf, groups))
    mixed = GridSearchCV(pipe, grid, cv=folds, scoring=labelled, refit=False, n_jobs=jobs, error_score="raise")
    mixed.fit(cells.bf, cells.cell_type, **images)

    table: Table = {"batch_weight": np.array(weights, dtype=float)}
    for name, found, score, sign in (
        ("unseen", unseen, "score", 1),
        ("leakage_linear", mixed, "leakage_linear", -1),  # scorers give leakage negated: larger is better
        ("leakage_mlp", mixed, "leakage_mlp", -1),
        ("leakage_15nn", mixed, "leakage_15nn", -1),
        ("kept", mixed, "kept", 1),
    ):
        table[name] = sign * found.cv_results_[f"mean_test_{score}"]
        table[f"{name}_std"] = found.cv_results_[f"std_test_{score}"]
    return table, float(table["batch_weight"][np.argmax(table["unseen"])])


def print_table(table: Table, best: float) -> None:
    columns = {
        "unseen": "type, new batch",
        "kept": "type, new probe",
        "leakage_linear": "leakage, linear",
        "leakage_mlp": "leakage, MLP",
        "leakage_15nn": "leakage, 15-NN",
    }
    print(f"\n{'batch_weight':>12}" + "".join(f"{heading:>18}" for heading in columns.values()))
    for row, weight in enumerate(table["batch_weight"]):
        scores = [f"{table[name][row]:.2f} ± {table[name + '_std'][row]:.2f}" for name in columns]
        chosen = "   <- chosen" if weight == best else ""
        print(f"{weight:>12g}" + "".join(f"{score:>18}" for score in scores) + chosen)
    print(
        f"\ntype, new batch: share of the cells of a batch left out of all training whose type is named (chance"
        f"\n{1 / N_TYPES:.2f}), mean and spread over the {N_BATCHES} batches. The other columns are of mixed folds."
        "\ntype, new probe: the model knows the batch, the probe does not. leakage: how well a fresh probe reads the"
        "\nbatch within a cell type, 0 is chance and 1 is every time."
    )


def draw(table: Table, best: float, path: Path) -> None:
    """Draw the scores over the weight, and batch removed against biology kept."""
    weight = table["batch_weight"]
    places = np.arange(len(weight))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for name, label, colour, style in (
        ("unseen", "cell type, batch left out of all training", "#d62728", "o-"),
        ("kept", "cell type, batch new to the probe", "#ff9896", "o-"),
        ("leakage_linear", "batch leakage, linear probe", "#1f77b4", "s--"),
        ("leakage_mlp", "batch leakage, MLP", "#7b6bb5", "D--"),
        ("leakage_15nn", "batch leakage, 15 nearest neighbours", "#17a2b8", "^--"),
    ):
        left.errorbar(places, table[name], table[f"{name}_std"], fmt=style, color=colour, capsize=2, label=label)
    left.axvline(int(np.argmax(weight == best)), color="0.85", lw=10, zorder=0)
    left.set_xticks(places, [f"{value:g}" for value in weight])
    left.set(xlabel="batch_weight", ylabel="score", ylim=(-0.05, 1.05), title="What batch_weight does")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)

    x, y = table["leakage_linear"], table["unseen"]
    right.errorbar(x, y, table["unseen_std"], table["leakage_linear_std"], fmt="none", ecolor="0.8", capsize=2)
    right.plot(x, y, "-", color="0.6", zorder=3)
    colours = ["#d62728" if value == best else "#444444" for value in weight]
    right.scatter(x, y, c=colours, s=45, zorder=4)
    for *place, value in zip(x, y, weight, strict=True):
        right.annotate(f"{value:g}", place, xytext=(6, 5), textcoords="offset points", fontsize=9, zorder=5)
    right.set(
        xlabel="batch leakage, linear probe (0 chance, 1 fully readable)",
        ylabel="cell type on a batch left out of training",
        title="Batch removed against biology kept",
        xlim=(-0.05, 1.05),
        ylim=(1 / N_TYPES - 0.05, 1.05),
    )
    right.invert_xaxis()  # better is up and to the right
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.93")
        axis.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()

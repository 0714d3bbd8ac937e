"""Time a grid search over stage-2 parameters with and without a cache of stage 1.

    python benchmarks/grid_search_memory.py [--cells 600 --side 32 --base-width 8 --folds 3 --jobs 1 --threads 1]

Six settings of two loss weights are searched by cross-validation. Without `memory` each of the 6 * folds fits
pretrains; with it, each fold pretrains once. Both searches find the same scores, which is checked. Besides wall time
the processor time of this process is printed, which other work on the machine disturbs less (with ``--jobs 1``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from skbegan import BeGANTransformer
from skbegan.datasets import make_cell_images

GRID = {"batch_weight": [0.3, 1.0, 3.0], "cell_type_weight": [1.0, 3.0]}


def search(args: argparse.Namespace, cells: Any, memory: str | None) -> tuple[np.ndarray, float, float]:
    """Run the search; return its scores, the wall time and this process's processor time in seconds."""
    estimator = BeGANTransformer(
        base_width=args.base_width,
        n_features=args.n_features,
        pretrain_epochs=args.pretrain_epochs,
        removal_epochs=args.removal_epochs,
        device=args.device,
        memory=memory,
        random_state=0,
    )
    labels = pd.DataFrame({"batch": cells.batch, "cell_type": cells.cell_type})
    groups = np.char.add(cells.batch, cells.cell_type)
    folds = list(StratifiedKFold(args.folds, shuffle=True, random_state=0).split(cells.bf, groups))
    grid = GridSearchCV(estimator, GRID, cv=folds, refit=False, n_jobs=args.jobs, error_score="raise")
    wall, cpu = time.perf_counter(), time.process_time()
    grid.fit(cells.bf, labels, y_qpi=cells.qpi)
    return grid.cv_results_["mean_test_score"], time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Search twice and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "cells": 600,
        "side": 32,
        "base-width": 8,
        "n-features": 64,
        "pretrain-epochs": 10,
        "removal-epochs": 10,
        "folds": 3,
        "jobs": 1,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cells = make_cell_images(args.cells, 3, 3, args.side, random_state=0)
    warnings.simplefilter("ignore", UserWarning)  # joblib's, on the time that writing the cache takes
    print(", ".join(f"{name} {value}" for name, value in vars(args).items()))
    print(f"{'6 settings, ' + str(args.folds) + ' folds':<24}{'wall s':>10}{'processor s':>14}")
    scores = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        for name, memory in {"without memory": None, "with memory": cache}.items():
            scores[name], wall, cpu = search(args, cells, memory)
            print(f"{name:<24}{wall:>10.1f}{cpu:>14.1f}", flush=True)
    if args.jobs == 1:
        np.testing.assert_array_equal(*scores.values())
    print("same scores:", ", ".join(f"{score:.3f}" for score in scores["with memory"]))


if __name__ == "__main__":
    main()

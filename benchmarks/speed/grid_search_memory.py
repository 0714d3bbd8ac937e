"""Time a grid search over stage-2 parameters with and without a cache of stage 1.

    python benchmarks/speed/grid_search_memory.py [--cells 600 --side 32 --folds 3 --jobs 1 --threads 1]
    python benchmarks/speed/grid_search_memory.py --quick

Six settings of two loss weights are searched by cross-validation. Without `memory` each of the 6 * folds fits
pretrains; with it, each fold pretrains once. Both searches find the same scores, which is checked. Besides wall time
the processor time of this process is printed, which other work on the machine disturbs less (with ``--jobs 1``).
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GridSearchCV, StratifiedKFold

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

from skbegan import BeGANTransformer
from skbegan.datasets import make_cell_images

GRID = {"batch_weight": [0.3, 1.0, 3.0], "cell_type_weight": [1.0, 3.0]}
MODEL = {"base_width": 8, "n_features": 64, "pretrain_epochs": 10, "removal_epochs": 10}
SIZES = {"cells": 600, "side": 32, **MODEL, "folds": 3, "jobs": 1, "threads": 1}
QUICK = {"cells": 90, "side": 16, "base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1}
QUICK |= {"folds": 2}


def search(sizes: dict[str, int], device: str, cells: Any, memory: str | None) -> tuple[np.ndarray, float, float]:
    """Run the search; return its scores, the wall time and this process's processor time in seconds."""
    model = {name: sizes[name] for name in MODEL}
    estimator = BeGANTransformer(**model, device=device, memory=memory, random_state=0)
    labels = pd.DataFrame({"batch": cells.batch, "cell_type": cells.cell_type})
    groups = np.char.add(cells.batch, cells.cell_type)
    folds = list(StratifiedKFold(sizes["folds"], shuffle=True, random_state=0).split(cells.bf, groups))
    grid = GridSearchCV(estimator, GRID, cv=folds, refit=False, n_jobs=sizes["jobs"], error_score="raise")
    wall, cpu = time.perf_counter(), time.process_time()
    grid.fit(cells.bf, labels, y_qpi=cells.qpi)
    return grid.cv_results_["mean_test_score"], time.perf_counter() - wall, time.process_time() - cpu


def main(arguments: Sequence[str] | None = None) -> None:
    """Search twice and print a table."""
    parser = common.parser(__doc__, "grid_search_memory")
    common.add_sizes(parser, SIZES)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    sizes, about = common.sizes(args, SIZES, QUICK), common.machine()
    before = torch.get_num_threads()
    torch.set_num_threads(sizes["threads"])
    cells = make_cell_images(sizes["cells"], 3, 3, sizes["side"], random_state=0)
    rows = [[f"6 settings, {sizes['folds']} folds", "wall s", "processor s", "scores"]]
    results: dict[str, Any] = {"machine": about, "sizes": sizes}
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache, warnings.catch_warnings():
            for kind in (UserWarning, RuntimeWarning) if args.quick else (UserWarning,):
                warnings.simplefilter("ignore", kind)  # joblib's, on the time that writing takes; of tiny models
            for name, memory in {"without memory": None, "with memory": cache}.items():
                scores, wall, cpu = search(sizes, args.device, cells, memory)
                results[name] = {"scores": scores.tolist(), "wall": wall, "cpu": cpu}
                rows.append([name, f"{wall:.1f}", f"{cpu:.1f}", ", ".join(f"{score:.3f}" for score in scores)])
    finally:
        torch.set_num_threads(before)
    if sizes["jobs"] == 1:
        np.testing.assert_array_equal(*(results[name]["scores"] for name in ("without memory", "with memory")))
    common.write(args.out, f"{sizes}\n\n{common.table(rows)}", results)


if __name__ == "__main__":
    main()

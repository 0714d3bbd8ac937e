"""A transformer like any other: Pipeline with an SVC, GridSearchCV over loss weights, joblib.
===========================================================================================

::

    python examples/pipeline_and_grid_search.py [OUTPUT_FOLDER]

Three cell types are imaged on three days. The question of the search is the one that matters in practice: which loss
weights let a classifier name the cells of a day that neither it nor the network has seen? `LeaveOneGroupOut` asks it,
and `memory` sees to it that stage 1, which does not depend on these weights, is trained once per fold and not once per
fold and setting. Takes less than 2 minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images
from skbegan.metrics import batch_leakage

# Stage 2 off, and with two weights of batch removal.
GRID = [
    {"began__removal_epochs": [0]},
    {"began__batch_weight": [0.2, 1.0]},
]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("outputs/pipeline_and_grid_search"))
    parser.add_argument("--cells", type=int, default=360, help="to train on (default: %(default)s)")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels (default: %(default)s)")
    parser.add_argument("--pretrain-epochs", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--removal-epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="fits at a time (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Fit a pipeline, search, save and load."""
    args = parse_arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    # The same three types on the same three instruments, which differ less than those of examples/quickstart.py.
    same = {"n_cell_types": 3, "n_batches": 3, "image_size": args.side, "batch_strength": 0.5, "random_state": 1}
    train = make_cell_images(args.cells, **same, cells_random_state=10)
    new = make_cell_images(args.cells, **same, cells_random_state=11)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        began = BeGANTransformer(
            base_width=4,
            n_features=16,
            pretrain_epochs=args.pretrain_epochs,
            removal_epochs=args.removal_epochs,
            learning_rate=1e-3,  # these rates and the minibatch are for few cells and few epochs
            minibatch_size=32,
            removal=OnlineRemoval(learning_rate=1e-3, warmup_epochs=2),
            memory=cache,
            random_state=0,
        )
        pipe = Pipeline([("began", began), ("clf", SVC())])

        # y is the cell type, as the SVC needs it. What else the transformer learns from goes by the name of its step.
        # With sklearn.set_config(enable_metadata_routing=True) it is simply y_qpi=train.qpi, batch=train.batch.
        pipe.fit(train.bf, train.cell_type, began__y_qpi=train.qpi, began__batch=train.batch)
        print(f"Pipeline: accuracy {pipe.score(new.bf, new.cell_type):.3f} on new cells of the same days")

        search = GridSearchCV(pipe, GRID, cv=LeaveOneGroupOut(), n_jobs=args.jobs, error_score="raise")
        search.fit(
            train.bf,
            train.cell_type,
            groups=train.batch,  # a fold leaves out a day
            began__y_qpi=train.qpi,
            began__batch=train.batch,
        )

    print("\nGridSearchCV: accuracy on the day left out")
    results = search.cv_results_
    for params, mean, std in zip(results["params"], results["mean_test_score"], results["std_test_score"], strict=True):
        setting = ", ".join(f"{name.removeprefix('began__')}={value}" for name, value in params.items())
        print(f"  {setting:<20} {mean:.3f} (standard deviation {std:.3f} over {search.n_splits_} days)")
    best = search.best_estimator_
    leakage = batch_leakage(best["began"].transform(new.bf), new.batch, new.cell_type)
    print(f"Best: {search.best_params_}; batch leakage of its features on new cells {leakage:.2f} (1: fully readable)")

    joblib.dump(best, args.out / "pipeline.joblib")
    loaded = joblib.load(args.out / "pipeline.joblib")
    assert np.array_equal(loaded.predict(new.bf), best.predict(new.bf))
    size = (args.out / "pipeline.joblib").stat().st_size
    print(f"\nWrote {args.out / 'pipeline.joblib'}: {size / 1e6:.1f} MB, network and SVC; loaded, it predicts the same")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()

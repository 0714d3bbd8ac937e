"""A search on several processes or machines: GridSearchCV on joblib's Dask backend.
====================================================================================

::

    pip install "skbegan[distributed]"
    python examples/search_on_dask.py [OUTPUT_FOLDER]
    python examples/search_on_dask.py [OUTPUT_FOLDER] --scheduler tcp://HOST:8786

Without `--scheduler` the workers are processes of this machine. With it they are those of a Dask cluster that is there
already, on other machines too. They need the same version of skbegan, and have to see the output folder under the same
path.

Each fit of the search is a task, and each worker runs one at a time. Stage 1 does not depend on the weights that are
searched. `memory` keeps it in a folder that all workers share: the first fit of a fold trains it, those that need the
same at the same time wait for that one, and the others read it. The example counts how often it was trained.
Takes about 2 minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

try:
    from dask.distributed import Client, LocalCluster
except ImportError as error:
    raise SystemExit('this example needs Dask: pip install "skbegan[distributed]"') from error
from joblib import parallel_config
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("outputs/search_on_dask"), help="output folder")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a cluster that is there; else one is started here")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of the cluster started here")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.03, 0.3, 3.0], metavar="W")
    parser.add_argument("--cells", type=int, default=360, metavar="N")
    parser.add_argument("--batches", type=int, default=3, metavar="N", help="days, each left out by a fold")
    parser.add_argument("--side", type=int, default=32, metavar="N", help="of the images, in pixels")
    parser.add_argument("--epochs", type=int, nargs=2, default=[15, 15], metavar="N", help="of the two stages")
    return parser.parse_args(arguments)


class CountStage1:
    """A callback that leaves a file when stage 1 has ended its first epoch, wherever it is trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, info: Any) -> None:
        """Called after each epoch; not for a stage 1 that is read from `memory`."""
        if info.stage == "pretraining" and info.epoch == 1:
            (self.folder / uuid.uuid4().hex).touch()


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, search on the cluster, print."""
    args = parse_arguments(arguments)
    counted = args.out.resolve() / f"trained-{uuid.uuid4().hex[:8]}"
    counted.mkdir(parents=True)
    cells = make_cell_images(args.cells, 3, args.batches, args.side, batch_strength=0.5, random_state=3)
    pipe = Pipeline(
        [
            ("began", began(args, CountStage1(counted))),
            ("scale", StandardScaler()),
            ("clf", LogisticRegression(max_iter=1000)),
        ]
    )
    search = GridSearchCV(
        pipe, {"began__batch_weight": args.weights}, cv=LeaveOneGroupOut(), refit=False, n_jobs=-1, error_score="raise"
    )
    with cluster(args) as client:
        client.wait_for_workers(1 if args.scheduler else args.workers, timeout=60)
        print(f"{len(client.nthreads())} workers at {client.scheduler.address}")
        start = time.perf_counter()
        # Every task gets the images, so they are sent to the workers once and before.
        with parallel_config(backend="dask", scatter=[cells.bf, cells.qpi]):
            search.fit(
                cells.bf,
                cells.cell_type,
                groups=cells.batch,  # a fold leaves out a day
                began__y_qpi=cells.qpi,
                began__batch=cells.batch,
            )
        seconds = time.perf_counter() - start

    found = search.cv_results_
    print("\nAccuracy of the cell type on the day left out")
    for weight, mean, std in zip(args.weights, found["mean_test_score"], found["std_test_score"], strict=True):
        print(f"  batch_weight={weight:<6g} {mean:.3f} (standard deviation {std:.3f} over {search.n_splits_} days)")
    n_fits = search.n_splits_ * len(args.weights)
    print(f"\n{n_fits} fits in {seconds:.0f} s; stage 1 was trained {len(list(counted.iterdir()))} times")


@contextmanager
def cluster(args: argparse.Namespace) -> Iterator[Client]:
    """Give a client of the cluster; what was started here ends with the block."""
    with ExitStack() as stack:
        address = args.scheduler
        if not address:
            # One task at a time; it computes with as many threads as OMP_NUM_THREADS says, with one if it is not set.
            address = stack.enter_context(
                LocalCluster(n_workers=args.workers, threads_per_worker=1, processes=True, dashboard_address=None)
            )
        yield stack.enter_context(Client(address, timeout=60))


def began(args: argparse.Namespace, callback: CountStage1) -> BeGANTransformer:
    """Return the model, small and trained briefly; all that is not given here is the default."""
    return BeGANTransformer(
        base_width=4,
        n_features=32,
        pretrain_epochs=args.epochs[0],
        removal_epochs=args.epochs[1],
        learning_rate=1e-3,  # these rates and the warm-up are for few cells and few epochs
        removal=OnlineRemoval(learning_rate=1e-3, warmup_epochs=1),
        device="cpu",
        memory=args.out.resolve() / "cache",
        callback=callback,
        random_state=0,
    )


if __name__ == "__main__":
    main()

"""Tune with Optuna: trials that learn badly are pruned through the callback of a fit.
=====================================================================================

::

    pip install "skbegan[search]"
    python examples/tune_with_optuna.py [OUTPUT_FOLDER]

A trial fits a model with other values of `learning_rate` and `batch_weight` and is judged by `batch_removal_score` on
cells that the model did not learn from: 1 where no probe reads the batch and all cell types are read, 0 where either
fails. The estimator calls `callback` after each epoch. There the trial reports to Optuna and ends where it is worse
than the median of the trials before.

- **Stage 1 is pruned by its image error on held-out cells.** That is what stage 1 learns, so it compares trials.
- **Stage 2 is pruned only where features die.** None of its losses tells how much of the batch a fresh probe will
  read: the adversaries of the training lag behind.

The best of many trials is lucky on the cells that chose it. So the chosen setting and an untuned one are fitted anew
with three seeds and compared on cells that nobody has tuned on. Takes several minutes on two cores.

The study is kept in a file. The same command run again adds trials to it, and several processes, also on several
machines that share the folder, work on it together: give each its own `--seed`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
except ImportError as error:
    raise SystemExit('this example needs Optuna: pip install "skbegan[search]"') from error

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images
from skbegan.metrics import batch_removal_score

DEAD = 0.1  # share of the features that have to be active
UNTUNED = {"learning_rate": 1e-3, "batch_weight": 1.0}  # the rate of the other examples, the default weight


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("outputs/tune_with_optuna"), help="output folder")
    parser.add_argument("--trials", type=int, default=12, metavar="N", help="that this process adds to the study")
    parser.add_argument("--startup", type=int, default=3, metavar="N", help="whole trials before any is pruned")
    parser.add_argument("--seed", type=int, default=0, help="of the values that this process tries")
    parser.add_argument("--cells", type=int, default=360, metavar="N", help="in each of three sets")
    parser.add_argument("--side", type=int, default=32, metavar="N", help="of the images, in pixels")
    parser.add_argument("--epochs", type=int, nargs=2, default=[10, 15], metavar="N", help="of the two stages")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="fits of either setting at the end, 2 at least"
    )
    return parser.parse_args(arguments)


class Pruner:
    """A callback that reports a trial to Optuna and ends it where that is hopeless.

    What a callback raises ends the fit, and comes out of `fit` as it is.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def __call__(self, info: Any) -> None:
        """Report the epoch; raise `optuna.TrialPruned` to end the trial."""
        if info.stage == "pretraining":
            self.trial.report(-info.losses["validation_image"], info.epoch)  # the study maximises
            if self.trial.should_prune():
                raise optuna.TrialPruned(f"image error in epoch {info.epoch} of stage 1")
        elif info.losses["validation_active_features"] < DEAD:
            raise optuna.TrialPruned(f"dead features in epoch {info.epoch} of stage 2")


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, tune, compare on cells that were not tuned on."""
    args = parse_arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    same: dict[str, Any] = {"n_cell_types": 3, "n_batches": 3, "image_size": args.side, "batch_strength": 0.5}
    train, tuning, test = (
        make_cell_images(args.cells, **same, random_state=1, cells_random_state=seed) for seed in (10, 11, 12)
    )

    def objective(trial: optuna.Trial) -> float:
        setting = {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            "batch_weight": trial.suggest_float("batch_weight", 0.03, 3.0, log=True),
        }
        return measures(began(args, setting, seed=0, callback=Pruner(trial)), train, tuning)["score"]

    journal = str(args.out / "study.journal")
    study = optuna.create_study(
        study_name="skbegan",
        direction="maximize",
        # A file that several processes may write to; this kind of lock works on Windows too.
        storage=JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal))),
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=args.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=args.startup, n_warmup_steps=2),
    )
    study.optimize(objective, n_trials=args.trials, catch=(FloatingPointError,))  # a rate too high is no error of ours
    print_trials(study)
    compare(args, {"untuned": UNTUNED, "tuned": study.best_params}, train, test)


def began(args: argparse.Namespace, setting: dict[str, float], seed: int, callback: Any = None) -> BeGANTransformer:
    """Return the model, small and trained briefly; all that is not given here is the default."""
    return BeGANTransformer(
        base_width=4,
        n_features=32,
        pretrain_epochs=args.epochs[0],
        removal_epochs=args.epochs[1],
        minibatch_size=32,
        removal=OnlineRemoval(learning_rate=1e-3, warmup_epochs=1),  # for few cells and few epochs
        device="cpu",
        callback=callback,
        random_state=seed,
        **setting,
    )


def measures(model: BeGANTransformer, train: Any, other: Any) -> dict[str, float]:
    """Fit on some cells; return score, batch removed and cell type kept on others."""
    model.fit(train.bf, train.qpi, train.batch, train.cell_type)
    found = batch_removal_score(model.transform(other.bf), other.batch, other.cell_type, return_details=True)
    return {name: float(found[name]) for name in ("score", "removed", "kept")}


def print_trials(study: optuna.Study) -> None:
    """Print what became of each trial."""
    print("\ntrial  learning_rate  batch_weight  score on the tuning cells")
    for trial in study.trials:
        setting = "  ".join(f"{trial.params.get(name, float('nan')):>{len(name)}.2g}" for name in UNTUNED)
        done = trial.state is optuna.trial.TrialState.COMPLETE
        epochs = max(trial.intermediate_values, default=0)
        result = f"{trial.value:.3f}" if done else f"{trial.state.name.lower()} after {epochs} epochs of stage 1"
        print(f"{trial.number:>5}  {setting}  {result}{'   <- best' * (trial.number == study.best_trial.number)}")


def compare(args: argparse.Namespace, settings: dict[str, dict[str, float]], train: Any, test: Any) -> None:
    """Print how settings do with several seeds on cells that were not tuned on."""
    print(f"\nOn cells that were not tuned on, mean and standard deviation of {args.seeds} fits (score: chance is 0)")
    for name, setting in settings.items():
        found = [measures(began(args, setting, seed), train, test) for seed in range(1, args.seeds + 1)]
        spread = {column: [row[column] for row in found] for column in found[0]}
        columns = (f"{column} {np.mean(each):.3f} ± {np.std(each, ddof=1):.3f}" for column, each in spread.items())
        print(f"  {name:<8}" + "   ".join(columns))


if __name__ == "__main__":
    main()

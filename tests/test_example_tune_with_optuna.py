"""examples/tune_with_optuna.py, run in this process with the smallest settings."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import TINY
from scripts import EXAMPLES, load_example, needs

from skbegan import BeGANTransformer
from skbegan.core.loop import EpochInfo

optuna = pytest.importorskip("optuna")
pytestmark = needs(EXAMPLES / "tune_with_optuna.py")


@pytest.fixture(scope="module")
def example() -> Any:
    return load_example("tune_with_optuna")


class Always(optuna.pruners.BasePruner):
    def prune(self, study: Any, trial: Any) -> bool:
        return True


def test_a_pruned_trial_ends_the_fit_in_stage_1(example, cells):
    trial = optuna.create_study(direction="maximize", pruner=Always()).ask()
    model = BeGANTransformer(**{**TINY, "callback": example.Pruner(trial)})
    with pytest.raises(optuna.TrialPruned, match="image error in epoch 1 of stage 1"):
        model.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    assert not hasattr(model, "history_")
    assert list(trial.storage.get_trial(trial._trial_id).intermediate_values) == [1]


def test_stage_2_is_pruned_where_features_die_and_only_there(example):
    prune = example.Pruner(optuna.create_study(direction="maximize", pruner=Always()).ask())
    prune(EpochInfo("batch_removal", 1, 5, {"validation_active_features": 0.5, "validation_image": 9.0}))
    with pytest.raises(optuna.TrialPruned, match="dead features in epoch 2 of stage 2"):
        prune(EpochInfo("batch_removal", 2, 5, {"validation_active_features": 0.01, "validation_image": 0.1}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tunes_goes_on_and_compares(example, tmp_path, capsys):
    tiny = "--cells 48 --side 16 --epochs 3 1 --startup 1 --seeds 2 --trials".split()
    example.main([str(tmp_path), *tiny, "3"])
    first = capsys.readouterr().out
    example.main([str(tmp_path), *tiny, "1", "--seed", "1"])
    second = capsys.readouterr().out
    rows = [[line for line in text.splitlines() if line[:5].strip().isdigit()] for text in (first, second)]
    assert [len(trials) for trials in rows] == [3, 4]  # the study goes on from its file
    for text in (first, second):
        assert text.count("<- best") == 1
        assert "untuned" in text and "tuned " in text and text.count("removed ") == 2

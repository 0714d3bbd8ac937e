"""examples/tune_loss_weights.py, run in this process with the smallest settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import EXAMPLES, load_example, needs

import skbegan
from skbegan.config import Config

pytestmark = needs(EXAMPLES / "tune_loss_weights.py")


@pytest.fixture(scope="module")
def example() -> Any:
    return load_example("tune_loss_weights")


@pytest.mark.slow
def test_searches_prints_and_draws(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits: list[float] = []
    fit = skbegan.BeGANTransformer.fit

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        fits.append(self.batch_weight)
        return fit(self, *args, **kwargs)

    found: dict[str, Any] = {}
    search = example.search

    def kept(*args: Any) -> Any:
        table, best = search(*args)
        found.update(table)
        return table, best

    monkeypatch.setattr(skbegan.BeGANTransformer, "fit", counted)
    monkeypatch.setattr(example, "search", kept)
    tiny = "--n-cells 144 --image-size 16 --base-width 4 --epochs 1 1 --weights 0 1 --jobs 1".split()
    example.main([str(tmp_path), *tiny])
    # Each weight on each of three batches left out and on three mixed folds.
    assert sorted(fits) == [0.0] * 6 + [1.0] * 6
    assert set(found) >= {"unseen", "kept", "leakage_linear", "leakage_mlp", "leakage_15nn"}
    for name, values in found.items():
        assert values.shape == (2,) and np.isfinite(values).all(), name
    assert (0 <= found["unseen"]).all() and (found["leakage_linear"] <= 1).all()
    assert (found["leakage_linear"] > 0.5).all()  # hardly trained: the sign is right, and the batch is there
    printed = capsys.readouterr().out
    assert "<- chosen" in printed and "batch_weight" in printed
    assert (tmp_path / "trade_off.png").stat().st_size > 10_000


def test_stage_1_does_not_depend_on_the_weight() -> None:
    # Why the search pays for stage 1 once per fold only: all that stage 1 depends on is the same.
    one, other = (Config.of(skbegan.BeGANTransformer(batch_weight=weight).get_params(deep=False)) for weight in (0, 3))
    assert one.removal != other.removal
    assert (one.architecture, one.pretraining) == (other.architecture, other.pretraining)

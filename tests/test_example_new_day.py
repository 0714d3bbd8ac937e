"""examples/new_day.py, run in this process with the smallest settings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "new_day.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the examples are in the repository, not in the package")


@pytest.mark.slow
def test_each_day_is_left_out_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("new_day", SCRIPT)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    sizes = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1}
    for name, value in {"N_CELLS": 240, "N_DAYS": 3, "SIDE": 16, "PARAMETERS": sizes}.items():
        monkeypatch.setattr(example, name, value)
    rows = example.main(tmp_path)
    assert [row["day"] for row in rows] == ["batch0", "batch1", "batch2"]
    for row in rows:
        low, high = row["report"].expected_accuracy_interval
        assert 0 <= low <= row["report"].expected_accuracy <= high <= 1 and 0 <= row["found"] <= 1
        if row["method"] == "none":  # nothing was changed, so that nothing else can be found
            assert row["adapted"] == row["found"]
    assert (tmp_path / "new_day.png").stat().st_size > 10_000
    assert all(row["day"] in capsys.readouterr().out for row in rows[:1])

"""examples/new_day.py, run in this process with the smallest settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scripts import EXAMPLES, load_example, needs

pytestmark = needs(EXAMPLES / "new_day.py")


@pytest.mark.slow
def test_each_day_is_left_out_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load_example("new_day")
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


def test_real_sites_are_read_from_their_training_part(tmp_path: Path) -> None:
    images = np.arange(3 * 64 * 64 * 3, dtype=np.uint32).reshape(3, 64, 64, 3).astype(np.uint8)
    labels = {"site": np.array(["a", "b", "b"]), "cell_type": np.array(["x", "x", "y"])}
    np.savez(tmp_path / "sites.npz", images=images, split=np.array(["train", "test", "train"]), **labels)
    cells = load_example("new_day").read_sites(tmp_path / "sites.npz")
    assert cells.batch.tolist() == ["a", "b"] and cells.cell_type.tolist() == ["x", "y"]
    assert cells.bf.shape == cells.qpi.shape == (2, 32, 32) and cells.bf.dtype == np.float32
    np.testing.assert_allclose(cells.qpi[0, 0, 0], images[0, :2, :2, 1].mean() / 255, rtol=1e-6)

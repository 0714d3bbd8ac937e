"""The example runs, on a few cells."""

from __future__ import annotations

import pytest
from scripts import EXAMPLES, load_example, needs


@pytest.mark.slow
@needs(EXAMPLES / "pipeline_and_grid_search.py")
def test_pipeline_and_grid_search(tmp_path, capsys):
    example = load_example("pipeline_and_grid_search")
    quick = ["--cells", "54", "--side", "16", "--pretrain-epochs", "1", "--removal-epochs", "1", "--jobs", "1"]
    example.main([str(tmp_path), *quick])
    printed = capsys.readouterr().out
    assert printed.count("over 3 days") == 3
    assert "loaded, it predicts the same" in printed
    assert (tmp_path / "pipeline.joblib").stat().st_size < 1_000_000

"""The example runs, on a few cells."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "pipeline_and_grid_search.py"


@pytest.mark.slow
@pytest.mark.skipif(not EXAMPLE.exists(), reason="tests run without the repository")
def test_pipeline_and_grid_search(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("pipeline_and_grid_search", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    quick = ["--cells", "54", "--side", "16", "--pretrain-epochs", "1", "--removal-epochs", "1", "--jobs", "1"]
    example.main([str(tmp_path), *quick])
    printed = capsys.readouterr().out
    assert printed.count("over 3 days") == 3
    assert "loaded, it predicts the same" in printed
    assert (tmp_path / "pipeline.joblib").stat().st_size < 1_000_000

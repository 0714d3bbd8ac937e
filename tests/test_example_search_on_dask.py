"""examples/search_on_dask.py: a search on a cluster of two processes, with the smallest settings."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from scripts import EXAMPLES, needs

EXAMPLE = EXAMPLES / "search_on_dask.py"


@pytest.mark.slow
@needs(EXAMPLE)
def test_grid_search_on_a_cluster_of_processes(tmp_path):
    """Four fits on two workers: each of two folds trains stage 1 once, whichever worker needs it."""
    pytest.importorskip("distributed")
    tiny = "--cells 48 --batches 2 --side 16 --epochs 1 1 --weights 0.3 3 --workers 2".split()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLE), str(tmp_path), *tiny],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"2 workers at tcp://", done.stdout)
    scores = [float(score) for score in re.findall(r"batch_weight=\S+ +([\d.]+) \(", done.stdout)]
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)
    assert "4 fits in " in done.stdout and "stage 1 was trained 2 times" in done.stdout
    assert len(list((tmp_path / "cache" / "skbegan-locks").glob("*.lock"))) == 2

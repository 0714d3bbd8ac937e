"""Damaged .mat and Keras files: refused with one message, or read right. Many more: tests/slow/fuzz_readers.py."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing import mutate, outcome, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TARGETS = targets()
SLOW = Path(__file__).parent / "slow" / "fuzz_readers.py"


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_read_right(name, tmp_path):
    for content in TARGETS[name].files:
        assert outcome(TARGETS[name], content, tmp_path / "sound") == "right"


@pytest.mark.parametrize("name", ["MATLAB v5", "MATLAB v5, packed"])  # HDF5 itself may crash: in a process of its own
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_files_are_refused_or_read_right(name, seed):
    target, rng = TARGETS[name], np.random.default_rng(seed)
    content = mutate(target.files[int(rng.integers(len(target.files)))], rng)
    with tempfile.TemporaryDirectory() as folder:
        assert outcome(target, content, Path(folder) / "damaged") in ("refused", "right")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400))
def test_any_bytes_after_a_header_are_refused_or_read_right(content):
    head = TARGETS["MATLAB v5"].files[0][:128]
    with tempfile.TemporaryDirectory() as folder:
        assert outcome(TARGETS["MATLAB v5"], head + content, Path(folder) / "damaged") in ("refused", "right")


@pytest.mark.parametrize("name", ["MATLAB v7.3", "Keras"])
def test_damaged_hdf5_files(name):
    run(name, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_files(name):
    run(name, 500)


def run(name: str, n: int) -> None:
    done = subprocess.run([sys.executable, str(SLOW), str(n), name], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {name} | {n} |" in done.stdout

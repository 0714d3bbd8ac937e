"""Fits that are killed, and fits that share a folder; thousands of kills: tests/slow/kill_and_resume.py."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from sklearn.base import clone
from test_stages import make_cells, make_stage, run

from skbegan import BeGANTransformer
from skbegan.core.checkpoint import Checkpoint
from skbegan.stored import atomic

SLOW = Path(__file__).parent / "slow" / "kill_and_resume.py"


def attacked(*arguments: str) -> str:
    """Run the script in a process of its own and return its figures."""
    command = [sys.executable, str(SLOW), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 wrong" in done.stdout
    return done.stdout


@pytest.mark.slow
def test_killed_fits_resume_to_the_bit():
    figures = attacked("20")
    assert re.search(r"^20 kills of a running fit \(online [1-9]\d*, published [1-9]", figures, re.MULTILINE), figures


@pytest.mark.slow
def test_pairs_of_fits_share_a_folder():
    assert "\n3 pairs of fits shared a folder" in attacked("0", "--pairs", "3")


def test_a_checkpoint_that_another_fit_removes_is_no_error(tmp_path, monkeypatch):
    """The other one was done first: this one begins at the start, to the same end."""
    expected = run(make_stage("pretraining"), epochs=3)
    checkpoint = Checkpoint(tmp_path / "stage.pt")
    run(make_stage("pretraining"), epochs=2, checkpoint=checkpoint)
    read = Path.read_bytes

    def removed_in_between(path: Path) -> bytes:
        path.unlink()
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", removed_in_between)
        assert checkpoint.read("pretraining", 3) is None
    result = run(make_stage("pretraining"), epochs=3, checkpoint=checkpoint)
    assert all(np.array_equal(result.generator[name], value) for name, value in expected.generator.items())


def held(times: int):
    """Return what stands for a file operation that Windows refuses so many times, since another process reads."""
    left = [times]

    def wrap(good):
        def operation(*args, **kwargs):
            left[0] -= 1
            if left[0] >= 0:
                raise PermissionError(13, "used by another process")
            return good(*args, **kwargs)

        return operation

    return wrap


@pytest.mark.parametrize("operation", ["replace", "read_bytes", "unlink"])
def test_a_file_that_another_process_has_open_is_waited_for(tmp_path, monkeypatch, operation):
    checkpoint, stage = Checkpoint(tmp_path / "stage.pt"), make_stage("pretraining")
    run(stage, epochs=2, checkpoint=checkpoint)
    monkeypatch.setattr(atomic, "_PAUSE", 0.0)
    monkeypatch.setattr(Path, operation, held(2)(getattr(Path, operation)))
    if operation == "unlink":
        checkpoint.remove()
        assert not list(tmp_path.iterdir())
    else:
        state = checkpoint.read("pretraining", 4)
        assert state is not None and checkpoint.write(state) is None
        assert [path.name for path in tmp_path.iterdir()] == ["stage.pt"]


def test_a_checkpoint_that_cannot_be_removed_does_not_lose_the_fit(cells, tmp_path, monkeypatch):
    good = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".pt":
            raise PermissionError(13, "used by another process")
        good(path, missing_ok=missing_ok)

    monkeypatch.setattr(atomic, "_PAUSE", 0.0)
    monkeypatch.setattr(Path, "unlink", refused)
    est = BeGANTransformer(**TINY | {"removal_epochs": 0}, checkpoint_dir=tmp_path)
    est.fit(cells.bf, cells.qpi)
    assert est.transform(cells.bf[:2]).shape == (2, 16)


def test_drafts_of_killed_fits_are_cleared_away_and_those_at_work_are_not(tmp_path):
    old, young = (tmp_path / f".began-{name}-stage1.pt.0.tmp" for name in ("old", "young"))
    foreign = tmp_path / ".other.tmp"
    for path in (old, young, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        os.utime(path, (0, 0))
    Checkpoint(tmp_path / "began-x-stage1.pt").prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, foreign.name]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["networks"].pop("discriminator"),
        lambda state: state["networks"]["generator"].update({"to_image.bias": torch.zeros(5)}),
        lambda state: state["best"].pop("to_image.bias"),
        lambda state: state["best"]["to_image.bias"].fill_(torch.inf),
        lambda state: state["optimizers"].clear(),
        lambda state: state["rngs"].update(order=torch.zeros(3, dtype=torch.uint8)),
        lambda state: state.pop("rollbacks"),
        lambda state: state.update(history={"epoch": [1, 2, 3, 4]}),
        lambda state: state.update(events=[1]),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused_by_name(tmp_path, change):
    checkpoint = Checkpoint(tmp_path / "stage.pt")
    run(make_stage("pretraining"), epochs=2, validation=make_cells(12, seed=1), checkpoint=checkpoint)
    state = checkpoint.read("pretraining", 4)
    change(state)
    checkpoint.write(state)
    with pytest.raises(ValueError, match=r"stage\.pt cannot be read .*delete it to train from the start"):
        run(make_stage("pretraining"), epochs=4, validation=make_cells(12, seed=1), checkpoint=checkpoint)


@pytest.mark.parametrize("use", ["transform", "predict_image"])
def test_outputs_that_are_not_finite_are_an_error(fitted, cells, use):
    """As of a model file that somebody made: fit leaves no such model."""
    weights = {name: value.copy() for name, value in fitted._model.weights.items()}
    weights["bottleneck.weight"][:] = 3e38
    est = clone(fitted)._adopt(dataclasses.replace(fitted._model, weights=weights))
    with pytest.raises(FloatingPointError, match="not finite: their pixels, or the model's weights"):
        getattr(est, use)(cells.bf[:3])
    assert np.isfinite(getattr(fitted, use)(cells.bf[:3])).all()

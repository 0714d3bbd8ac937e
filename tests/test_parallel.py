"""Several processes that train together: the same as one process with the whole minibatch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from torch import nn

import skbegan
from skbegan._demo import write_demo_cells
from skbegan.cli import main
from skbegan.core import parallel
from skbegan.core.engine import Engine
from skbegan.core.parallel import Group

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
no_torchrun = pytest.mark.skipif(sys.platform == "win32", reason="torchrun needs libuv, which is not built for Windows")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of all jobs, of each of two processes; one of them goes on where a single process was stopped."""
    folder = tmp_path_factory.mktemp("two")
    processes.begin(folder / "begun", "batch_removal", 2)
    assert len(list((folder / "begun").iterdir())) == 2
    return processes.together(folder, processes.ALL)


@pytest.fixture(scope="module")
def one() -> Any:
    """The fits of one process."""
    jobs = (processes.everything, processes.unknown_types, processes.published, processes.streamed)
    return {job.__name__: job(0, Path()) for job in jobs}


def apart(one: dict[str, Any], other: dict[str, Any], stage: str) -> dict[str, float]:
    """Largest relative difference of each loss in any epoch."""
    a, b = one["history"][stage], other["history"][stage]
    assert a.keys() == b.keys()
    return {name: float(np.max(np.abs(np.array(a[name]) - b[name]) / np.maximum(np.abs(a[name]), 1e-12))) for name in a}


def same_model(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["history"] == b["history"] and all(np.array_equal(a["weights"][k], v) for k, v in b["weights"].items())


# Two processes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["everything", "unknown_types", "published", "resumed", "streamed"])
def test_two_processes_equal_one(one, two, kind):
    """In float64, so that nothing but a different order of sums is between them.

    Differences grow from step to step: at most 1e-13 of a loss in the last epoch. Weights before a BatchNorm are no
    measure: their biases have no effect, and move as rounding has it.
    """
    expected = one["everything" if kind == "resumed" else kind]
    for found in (results[kind] for results in two):
        assert max(apart(expected, found, "pretraining").values()) < 1e-12
        assert max(apart(expected, found, "batch_removal").values()) < 1e-12
        size = np.abs(expected["features"]).max()
        np.testing.assert_allclose(found["features"], expected["features"], rtol=0, atol=1e-10 * size)
        # Profile alignment reads features in float32.
        size = np.abs(expected["profiles"]).max()
        np.testing.assert_allclose(found["profiles"], expected["profiles"], rtol=0, atol=1e-4 * size)
    if kind != "published":
        assert max(apart(expected, two[0][kind], "profile_alignment").values()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("job", [job.__name__ for job in processes.ALL if job.__name__ not in ("refused", "cached")])
def test_both_processes_get_the_same_model(two, job):
    a, b = (results[job] for results in two)
    assert a == b if isinstance(a, str) else same_model(a, b)


@pytest.mark.slow
def test_the_first_process_speaks_for_all(two):
    stopped = two[1]["stopped"]
    assert len(stopped["history"]["pretraining"]["epoch"]) == 1
    assert any("stopped by the callback" in event for event in stopped["history"]["events"])
    assert [results["failed"] for results in two] == ["stopped", "stopped"]


@pytest.mark.slow
def test_ctrl_c_and_losses_that_are_not_finite_are_agreed_on(two):
    for results in two:
        history = results["interrupted"]["history"]
        assert history["pretraining"]["epoch"] == [1]
        assert "pretraining: interrupted in epoch 2 of 4; the best generator is kept" in history["events"]
        history = results["diverged"]["history"]
        assert history["pretraining"]["epoch"] == [1]
        assert any("were not finite in epoch 2" in event for event in history["events"])
    assert [bool(results["diverged"]["warnings"]) for results in two] == [True, False]


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused_by_all(two):
    words = ("multiple of 2", "all 81 training cells", "different parameters", "different images", "batches or cell")
    for results in two:
        for word, message in zip(words, results["refused"], strict=True):
            assert word in message


@pytest.mark.slow
def test_statistics_may_stay_with_each_process(two):
    local, synchronised = two[0]["local"], two[0]["diverged"]
    a, b = (result["history"]["pretraining"]["image"][0] for result in (local, synchronised))
    assert np.isfinite(a) and abs(a - b) > 1e-6


@pytest.mark.slow
def test_stage_1_is_taken_from_the_cache_by_all(two):
    for results in two:
        first, second = results["cached"]["fits"]
        assert same_model(first, second)
    assert [results["cached"]["epochs told"] for results in two] == [2, 0]
    assert same_model(two[0]["cached"]["fits"][0], two[1]["cached"]["fits"][1])


# torchrun -------------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, pickle, signal, sys
import processes, torch
torch.set_num_threads(1)
folder, dies = sys.argv[1], sys.argv[2] == "dies" and os.environ["RANK"] == "1"
kill = lambda minibatch: os.kill(os.getpid(), signal.SIGKILL)
with processes.AtStep(12 if dies else -1, kill):
    found = processes.fit(processes.STAGE_1, precision="float64", pretrain_epochs=4, checkpoint_dir=folder)
if os.environ["RANK"] == "0":
    with open(os.path.join(folder, "found"), "wb") as file:
        pickle.dump(found, file)
"""


def torchrun(*arguments: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
    """Start two processes."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(skbegan.__file__).parents[1])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)


@no_torchrun
@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_the_next_goes_on(tmp_path):
    import pickle

    script, folder = tmp_path / "script.py", tmp_path / "checkpoints"
    script.write_text(SCRIPT, encoding="utf-8")
    began = time.monotonic()
    assert torchrun(str(script), str(folder), "dies").returncode != 0
    assert time.monotonic() - began < 100
    assert [path.name[-9:] for path in folder.iterdir()] == ["stage1.pt"]  # two epochs, see AtStep
    done = torchrun(str(script), str(folder), "lives")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["found"]
    found = pickle.loads((folder / "found").read_bytes())
    expected = processes.fit(processes.STAGE_1, precision="float64", pretrain_epochs=4)
    assert max(apart(expected, found, "pretraining").values()) < 1e-12


@no_torchrun
@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    pytest.importorskip("tifffile")
    write_demo_cells(tmp_path, 60, 16, 0)
    command = ["fit", str(tmp_path / "cells.csv"), "--bf", "brightfield", "--target", "phase", "--batch", "day"]
    command += ["--cell-type", "line", "--image-size", "16", "--seed", "0", "--no-estimate", "--set=minibatch_size=16"]
    sizes = ("base_width=4", "n_features=16", "pretrain_epochs=1", "removal_epochs=1", "precision=float64")
    command += [f"--set={name}" for name in sizes]
    done = torchrun("-m", "skbegan", *command, "-o", str(tmp_path / "two.safetensors"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    assert main([*command, "--quiet", "-o", str(tmp_path / "one.safetensors")]) == 0
    images = processes.cells().bf
    one, two = (skbegan.load(tmp_path / f"{name}.safetensors").transform(images) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-3 * np.abs(one).max())
    assert "precision" not in done.stderr


# One process ----------------------------------------------------------------------------------------------------------


def test_one_process_exchanges_nothing():
    group = Group()
    values = torch.ones(3, 2, requires_grad=True)
    assert group.gather(values) is values and group.sum_(values) is values and group.exchange(4) == [4]
    assert group.own_of(values) is values and group.from_first(lambda: 5) == 5 and group.any(True)
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = gradient = torch.ones(3)
    group.mean_gradients([parameter])
    assert parameter.grad is gradient and not group.sent
    network = nn.Sequential(parallel.BatchNorm2d(2))
    assert Engine(torch.device("cpu")).place(network)[0].group is parallel.ALONE


def test_a_process_knows_whether_it_was_launched(monkeypatch):
    cpu = torch.device("cpu")
    for name in parallel.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert Group.found(cpu).world == 1
    for name, value in zip(parallel.LAUNCHED, ("1", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SKBEGAN_PARALLEL", "off")
    assert Group.found(cpu).world == 1
    monkeypatch.setenv("SKBEGAN_PARALLEL", "yes")
    with pytest.raises(ValueError, match="SKBEGAN_PARALLEL must be one of synchronised, local, off, got 'yes'"):
        Group.found(cpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parallel.own_device("auto") == "cuda:1" and parallel.own_device("cpu") == "cpu"
    assert parallel.own_device("cuda:0") == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 3 of this machine has no card: PyTorch sees 2"):
        parallel.own_device("cuda")


def test_the_command_line_leaves_all_but_fits_to_the_first_process(monkeypatch, tmp_path):
    for name, value in zip(parallel.LAUNCHED, ("1", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert main(["demo", str(tmp_path / "demo")]) == 0
    assert not (tmp_path / "demo").exists()

"""examples/slurm_fit.sh: what it would start on a cluster, with SLURM's own commands replaced by ones that tell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import EXAMPLES, needs

from skbegan import cli

SCRIPT = EXAMPLES / "slurm_fit.sh"
BASH = None if sys.platform == "win32" else shutil.which("bash")
pytestmark = [
    needs(SCRIPT),
    pytest.mark.skipif(BASH is None, reason="there is no bash"),
]
# SLURM's own: srun notes its words and ends as it is told, or waits; scontrol names the nodes or notes a request.
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$TOLD/started"
if [ "$ENDS" = later ]; then touch "$TOLD/runs"; until [ -e "$TOLD/asked" ]; do sleep 0.05; done; ENDS=143; fi
exit "$ENDS"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" > "$TOLD/asked"; fi
"""


def begin(folder: Path, ends: str) -> subprocess.Popen[str]:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    slurm = {"JOB_ID": "123456", "JOB_NODELIST": "node[7-8]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "4"}
    told = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "TOLD": str(folder), "ENDS": ends}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}, **told}
    assert BASH is not None
    command = [BASH, str(SCRIPT), "cells.csv", str(folder / "run 1")]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_bash_can_read_it():
    assert BASH is not None
    done = subprocess.run([BASH, "-n", str(SCRIPT)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [0, 3])
def test_it_starts_processes_that_fit_together(tmp_path, code):
    run = pytest.importorskip("torch.distributed.run")
    script = begin(tmp_path, str(code))
    _, errors = script.communicate(timeout=30)
    assert script.returncode == code and not errors
    assert (tmp_path / "run 1").is_dir() and not (tmp_path / "asked").exists()
    words = (tmp_path / "started").read_text(encoding="utf-8").splitlines()
    begins = words.index("torchrun") + 1
    started = run.parse_args(words[begins:])
    assert (started.nnodes, started.nproc_per_node, started.rdzv_backend) == ("2", "4", "c10d")
    assert started.rdzv_endpoint == "node7:23456" and started.rdzv_id == "123456"
    assert started.module and started.training_script == "skbegan"
    fit = cli.build_parser().parse_args(started.training_script_args)
    assert fit.table == Path("cells.csv") and fit.seed is not None  # without a seed nothing is gone on with
    assert fit.checkpoint_dir == str(tmp_path / "run 1" / "checkpoints")
    assert dict(fit.set)["minibatch_size"] % (2 * 4) == 0


def test_the_job_goes_back_into_the_queue_when_its_time_is_up(tmp_path):
    script = begin(tmp_path, "later")
    try:
        latest = time.monotonic() + 30
        while not (tmp_path / "runs").exists() and time.monotonic() < latest:
            time.sleep(0.05)
        script.send_signal(signal.SIGUSR1)
        assert script.wait(timeout=30) > 0
    finally:
        script.kill()
        script.communicate()
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "requeue 123456\n"

"""Processes that share a folder take turns, and none waits for one that is gone."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY
from filelock import FileLock, Timeout

from skbegan import BeGANTransformer, _turns
from skbegan._turns import turn

WAIT = 120  # seconds until a test gives up on another process


def until(condition) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def test_one_at_a_time_and_who_waits_can_be_told(tmp_path, monkeypatch):
    path, order, told, inside = tmp_path / "new" / "a.lock", [], [], threading.Event()
    monkeypatch.setattr(_turns, "log", told.append)

    def second() -> None:
        inside.wait(WAIT)
        with turn(path, "the work", verbose=1, beat=0.1) as reason:
            order.append(("second", reason))

    other = threading.Thread(target=second)
    other.start()
    with turn(path, "the work", beat=0.1) as reason:
        inside.set()
        until(lambda: told)
        order.append(("first", reason))
    other.join(WAIT)
    assert order == [("first", ""), ("second", "")]
    assert len(told) == 1 and told[0].startswith("the work is being done by process ")
    assert not path.with_suffix(".alive").exists()


def test_who_shows_no_life_is_not_waited_for(tmp_path):
    path = tmp_path / "a.lock"
    with FileLock(str(path)), turn(path, "the work", patience=0.2) as reason:
        assert reason.startswith("another process holds ") and "no sign of life for 0.2 s" in reason
        assert "delete the file if that process is gone" in reason


def test_who_shows_life_is_waited_for(monkeypatch):
    """By a clock of the test: a look takes a second, the patience is 3, and the sign changes seven times."""
    looks: list[float] = []

    def never(timeout: float, poll_interval: float) -> None:
        looks.append(timeout)
        raise Timeout("a.lock")

    signs = (("process 7 on here", min(look, 7)) for look in itertools.count())
    monkeypatch.setattr(_turns, "time", SimpleNamespace(monotonic=lambda: sum(looks)))
    monkeypatch.setattr(_turns, "_sign", lambda path: next(signs))
    lock = SimpleNamespace(acquire=never, lock_file="a.lock")
    reason = _turns._acquired(lock, Path("a.alive"), "the work", 0, 3.0, 1.0)
    assert reason.startswith("process 7 on here holds a.lock")
    assert len(looks) == 7 + 3


def test_where_nothing_can_be_locked_the_work_is_done(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with turn(tmp_path / "file" / "a.lock", "the work") as reason:
        assert "cannot be locked" in reason


def test_the_sign_of_life_changes_until_the_turn_is_over(tmp_path):
    path = tmp_path / "a.lock"
    with turn(path, "the work", beat=0.01):
        who, before = _turns._sign(path.with_suffix(".alive"))
        until(lambda: _turns._sign(path.with_suffix(".alive"))[1] not in (0, before))
        assert who.startswith(f"process {os.getpid()} on ")
    assert _turns._sign(path.with_suffix(".alive")) == ("", 0)


def test_an_error_frees_the_lock(tmp_path):
    path = tmp_path / "a.lock"
    with pytest.raises(ZeroDivisionError), turn(path, "the work"):
        raise ZeroDivisionError
    with FileLock(str(path), timeout=0):
        pass


def test_a_killed_process_frees_the_lock(tmp_path):
    path = tmp_path / "a.lock"
    code = "import sys, time, pathlib\nfrom skbegan._turns import turn\n"
    code += f"with turn(pathlib.Path(sys.argv[1]), 'work'):\n    print('in', flush=True)\n    time.sleep({WAIT})\n"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(Timeout):
            FileLock(str(path)).acquire(timeout=0)
    finally:
        holder.kill()
        holder.communicate(timeout=WAIT)
    with turn(path, "the work") as reason:
        assert reason == ""


def test_stage_1_is_trained_under_its_lock(tmp_path, monkeypatch, cells):
    """Another process that misses the same entry of the cache finds it taken; one that hits does not look,
    and one that waits in vain trains itself and warns."""
    free: list[bool] = []

    def look(info) -> bool:
        try:
            (path,) = (tmp_path / "skbegan-locks").glob("*.lock")
            FileLock(str(path)).acquire(timeout=0)
        except Timeout:
            free.append(False)
        else:
            free.append(True)
        return False

    tiny = {**TINY, "pretrain_epochs": 1, "removal_epochs": 0, "memory": tmp_path, "callback": look}
    first = BeGANTransformer(**tiny).fit(cells.bf, cells.qpi)
    assert free == [False]
    (path,) = (tmp_path / "skbegan-locks").glob("*.lock")
    with FileLock(str(path)):
        again = BeGANTransformer(**tiny).fit(cells.bf, cells.qpi)
    assert free == [False]
    assert (first.transform(cells.bf) == again.transform(cells.bf)).all()

    shutil.rmtree(tmp_path / "joblib")
    monkeypatch.setattr("skbegan.fit.turn", functools.partial(turn, patience=0.2))
    with (
        FileLock(str(path)),
        pytest.warns(RuntimeWarning, match=r"pretraining: another process holds .*no sign of life"),
    ):
        alone = BeGANTransformer(**tiny).fit(cells.bf, cells.qpi)
    assert free == [False, False]
    assert (first.transform(cells.bf) == alone.transform(cells.bf)).all()


PROGRAM = """
import sys, time, uuid
from pathlib import Path
from skbegan import BeGANTransformer
from skbegan.datasets import make_cell_images

folder, me, other = Path(sys.argv[1]), *sys.argv[2:4]

def count(info):
    if info.stage == "pretraining":
        (folder / f"{me}-epoch-{info.epoch}").touch()
        time.sleep(1)

if __name__ == "__main__":
    cells = make_cell_images(32, 2, 2, 16, random_state=0)
    model = BeGANTransformer(
        base_width=4, n_features=16, pretrain_epochs=2, removal_epochs=0, minibatch_size=16, device="cpu",
        random_state=0, memory=folder / "memory", callback=count,
    )
    (folder / f"{me}-ready").touch()
    end = time.monotonic() + 100
    while not (folder / f"{other}-ready").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    model.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    print(model.transform(cells.bf).tobytes().hex())
"""


@pytest.mark.slow
def test_two_processes_that_miss_together_train_stage_1_once(tmp_path):
    """Both are ready before either begins, and stage 1 takes two seconds at least."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), me, other],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me, other in ("ab", "ba")
    ]
    try:
        outputs = [process.communicate(timeout=WAIT) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    trained = sorted(path.name for path in tmp_path.glob("*-epoch-*"))
    assert len({profiles for profiles, _ in outputs}) == 1
    assert trained in (["a-epoch-1", "a-epoch-2"], ["b-epoch-1", "b-epoch-2"])

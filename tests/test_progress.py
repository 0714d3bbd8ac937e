"""Progress: a bar where somebody watches, lines of the log elsewhere, nothing unless asked for."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys

import pytest
from conftest import TINY

from skbegan import BeGANTransformer, _progress
from skbegan._progress import Progress, duration
from skbegan.metrics import audit


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Return what makes standard error a terminal; called in the test, since pytest replaces it before that."""

    def become() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return become


def fit(cells, **parameters):
    est = BeGANTransformer(**TINY | parameters)
    return est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


def test_nothing_is_shown_unless_asked_for(fitted, cells, capfd, caplog):
    fit(cells)
    audit(fitted, cells.bf, cells.qpi, cells.batch, cells.cell_type, probes=("linear",), n_repeats=1)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_where_nobody_watches_a_fit_writes_a_line_per_epoch_and_not_per_step(cells, caplog, capfd):
    fit(cells, verbose=1)
    stages = [message.split(":")[0] for message in caplog.messages]
    assert stages[:4] == ["pretraining"] * 2 + ["batch removal"] * 2
    assert 1 <= stages.count("profile alignment") <= _progress.N_LINES and len(stages) < 4 + 1 + _progress.N_LINES
    assert re.fullmatch(r"pretraining: epoch 1 of 2, image [\d.]+, total [\d.]+, [\d.]+ s left", caplog.messages[0])
    assert re.fullmatch(r"pretraining: epoch 2 of 2, image [\d.]+, total [\d.]+", caplog.messages[1])
    assert {(record.name, record.levelno) for record in caplog.records} == {("skbegan", logging.INFO)}
    assert capfd.readouterr() == ("", "")


def test_in_a_terminal_there_is_one_bar_per_stage_and_no_line(cells, terminal, caplog):
    screen = terminal()
    fit(cells, verbose=1)
    lines = re.split(r"[\r\n]+", screen.getvalue())
    for stage in ("pretraining", "batch removal", "profile alignment"):
        bars = [line for line in lines if line.startswith(f"{stage}: ")]
        assert "100%" in bars[-1] and sum("  0%" in bar for bar in bars) == 1, stage
    assert not caplog.records


def test_the_audit_has_a_bar_that_ends_at_its_end(fitted, cells, terminal):
    screen = terminal()
    audit(fitted, cells.bf, cells.qpi, cells.batch, cells.cell_type, probes=("linear", "knn"), n_repeats=1, verbose=1)
    bars = [line for line in re.split(r"[\r\n]+", screen.getvalue()) if line.startswith("audit: ")]
    done, total = re.search(r"(\d+)/(\d+)", bars[-1]).groups()
    assert done == total


@pytest.mark.parametrize("predicts", [True, False])
@pytest.mark.parametrize("references", [True, False])
def test_the_parts_of_an_audit_add_up(fitted, cells, monkeypatch, predicts, references):
    totals = []
    monkeypatch.setattr(Progress, "__exit__", lambda self, *error: totals.append((self.done, self.total)))

    class Features:
        def transform(self, X):
            return fitted.transform(X)

    model = fitted if predicts else Features()
    options = {"truth": cells.clean_qpi, "probes": ("linear",), "n_repeats": 1, "references": references}
    audit(model, cells.bf, cells.qpi, cells.batch, cells.cell_type, **options)
    assert len(totals) == 1 and totals[0][0] == totals[0][1] > 0


def test_a_program_that_has_set_up_logging_gets_the_lines_where_it_wants_them(caplog):
    with Progress("reading", 2, verbose=1) as bar:
        bar.update()
    with caplog.at_level(logging.WARNING, logger="skbegan"), Progress("silenced", 1, verbose=1) as bar:
        bar.update()
    logging.disable(logging.INFO)
    try:
        with Progress("silenced too", 1, verbose=1) as bar:
            bar.update()
    finally:
        logging.disable(logging.NOTSET)
    assert [message.split(",")[0] for message in caplog.messages] == ["reading: 1 of 2 steps"]


def test_without_any_logging_lines_go_to_standard_error():
    code = "from skbegan._progress import Progress\nwith Progress('x', 30, verbose=1) as bar:\n  "
    code += "[bar.update() for _ in range(30)]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 10 and done.stderr.splitlines()[-1] == "x: 30 of 30 steps"


def test_progress_without_a_standard_error(monkeypatch, caplog):
    """As under pythonw."""
    monkeypatch.setattr(sys, "stderr", None)
    with Progress("x", 1, verbose=1) as bar:
        bar.update()
    assert caplog.messages == ["x: 1 of 1 steps"]


def test_more_work_than_was_thought_is_added(terminal):
    screen = terminal()
    with Progress("x", 2, verbose=1) as bar:
        bar.update(2)
        bar.extend(3)
        bar.update(3)
        bar.reach(4)
    assert "5/5" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 s"), (0.34, "0.3 s"), (40.2, "40 s"), (125.0, "2.1 min"), (7200.0, "2 hours"), (800_000.0, "9.3 days")],
)
def test_durations_are_said_in_the_unit_that_fits(seconds, said):
    assert duration(seconds) == said

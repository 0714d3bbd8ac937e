"""The benchmarks of speed run and keep what they print; no time is looked at."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["training_speed", "inference_speed"])
def test_it_runs_and_keeps_its_figures(name, tmp_path, capsys):
    load(name).main(["--quick", "--no-keras", "--device", "cpu", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "results.json").read_text())
    table = (tmp_path / "table.md").read_text()
    assert "skbegan float32" in table and "eager" in table
    assert table.splitlines()[0] in printed
    seconds = kept["seconds"] if name == "inference_speed" else kept["results"]["stage 1"]["seconds"]
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


def test_ablations_run_and_each_leaves_out_what_it_says(tmp_path, capsys):
    ablations = load("ablations")
    ablations.main(["--quick", "--device", "cpu", "--precisions", "float32", "--out", str(tmp_path)])
    table = (tmp_path / "table.md").read_text()
    assert all(name in table for name in ablations.ABLATIONS) and table in capsys.readouterr().out + "\n"


def test_turns_alternate_and_ratios_are_turn_by_turn():
    timing = load("timing")
    order = []
    runs = {name: lambda name=name: order.append(name) or float(len(name)) for name in ("a", "bb", "ccc")}
    seconds = timing.alternate(runs, 3, torch.device("cpu"), warm_up=1)
    assert "".join(order) == "abbccc" + "bbccca" + "cccabb" + "abbccc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "bb": 3, "ccc": 3}
    assert timing.ratio(seconds, "ccc", "a") == [3.0, 3.0, 3.0]  # a run that timed itself is believed
    assert timing.ratio({"slow": np.array([2.0, 6.0, 8.0]), "fast": np.ones(3)}, "slow", "fast") == [4.0, 6.0, 7.0]


def test_arithmetic_is_counted_as_direct_sums_and_as_done():
    timing = load("timing")
    from skbegan.core.networks import SameConv2d

    layer, image = SameConv2d(128, 128), torch.zeros(4, 128, 16, 16)
    with torch.no_grad():
        direct, done = timing.gflop(lambda: layer(image)), timing.gflop(lambda: layer(image), direct=False)
    assert direct == pytest.approx(2e-9 * 4 * 17 * 17 * 128 * 128 * 16)
    assert done < 0.5 * direct


def test_goals_say_how_far_they_were_missed():
    timing = load("timing")
    assert str(timing.Goal("x", 2.0, 2.5)).endswith("met")
    assert str(timing.Goal("x", 2.0, 1.5)).endswith("MISSED by 25%")


def test_without_tensorflow_it_says_so_and_goes_on(capsys, tmp_path):
    timing = load("timing")
    assert timing.start_keras(str(tmp_path / "no-such-python"), True) is None
    assert "--keras-python" in capsys.readouterr().err
    if importlib.util.find_spec("tensorflow") is None:
        assert timing.start_keras(sys.executable, True, side=16) is None
        assert "No module named 'tensorflow'" in capsys.readouterr().err
    assert timing.start_keras(None, wanted=False) is None


def test_the_eager_port_is_the_published_generator_and_discriminator():
    port = load("eager_port").EagerPort(128, 64, 512, 7, torch.device("cpu"))
    counts = [
        sum(p.numel() for p in network.parameters())
        for network in (port.generator, port.discriminator, port.cell_image, port.cell, port.batch[0])
    ]
    assert counts[0] == 41_902_069 and counts[3:] == [159_857, 14_932]
    # Without moving statistics, which Keras counts too.
    assert counts[1] == 6_964_161 - 2 * (128 + 256 + 512 + 512)
    assert counts[2] == 7_021_511 - 2 * (128 + 256 + 512 + 512)

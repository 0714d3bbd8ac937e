"""benchmarks/speed: they run and keep what they print; no time is judged."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from scripts import BENCHMARKS, benchmark_modules, needs

pytestmark = needs(BENCHMARKS)


@pytest.fixture(autouse=True)
def benchmarks_on_the_path():
    with benchmark_modules():
        yield


def load(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["training_speed", "inference_speed"])
def test_it_runs_and_keeps_its_figures(name, tmp_path, capsys):
    load(f"speed.{name}").main(["--quick", "--no-keras", "--device", "cpu", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "results.json").read_text())
    table = (tmp_path / "table.md").read_text()
    assert "skbegan float32" in table and "eager" in table
    assert table.rstrip() in printed
    seconds = kept["seconds"] if name == "inference_speed" else kept["results"]["stage 1"]["seconds"]
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


@pytest.mark.slow
def test_the_grid_search_finds_the_same_with_and_without_memory(tmp_path):
    pytest.importorskip("pandas")
    load("speed.grid_search_memory").main(["--quick", "--out", str(tmp_path)])
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["with memory"]["scores"] == kept["without memory"]["scores"] and len(kept["with memory"]["scores"]) == 6


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("stage 1", {"adversarial", "image"}),
        ("published stage 2", {"cell_type", "cell_type_image", "batch", "batch_image"}),
        ("default stage 2", {"cell_type", "batch", "alignment", "invariance", "activity", "decorrelation"}),
    ],
)
def test_the_steps_that_are_timed_are_those_of_a_fit(stage, expected):
    sizes = {"side": 16, "base_width": 4, "n_features": 16, "minibatch_size": 10}
    plan, cells = load("speed.steps").Steps(sizes, torch.device("cpu")).plan(stage, torch.float32)
    losses = plan.step(cells.take(torch.arange(10)), 0.5)
    assert expected | {"total"} <= set(losses)
    if stage == "default stage 2":  # with as many cells as it takes for batch styles
        minibatch = cells.take(torch.arange(10))
        assert not torch.equal(plan.styles.target(minibatch, 1.0), minibatch.target)


def test_turns_alternate_and_ratios_are_turn_by_turn():
    timing = load("speed.timing")
    order = []
    runs = {name: lambda name=name: order.append(name) or float(len(name)) for name in ("a", "bb", "ccc")}
    seconds = timing.alternate(runs, 3, torch.device("cpu"), warm_up=1)
    assert "".join(order) == "abbccc" + "bbccca" + "cccabb" + "abbccc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "bb": 3, "ccc": 3}
    assert timing.ratio(seconds, "ccc", "a").tolist() == [3.0, 3.0, 3.0]  # a run that timed itself is believed
    assert timing.ratio({"slow": np.array([2.0, 6.0, 8.0]), "fast": np.ones(3)}, "slow", "fast").tolist() == [
        4.0,
        6.0,
        7.0,
    ]


def test_arithmetic_counts_as_direct_sums_in_bfloat16_and_as_done_in_float32():
    timing = load("speed.timing")
    from skbegan.core.networks import SameConv2d

    layer, image = SameConv2d(128, 128), torch.zeros(4, 128, 16, 16)
    with torch.no_grad():
        done = timing.gflop(lambda: layer(image))
        with torch.autocast("cpu", torch.bfloat16):
            direct = timing.gflop(lambda: layer(image))
    assert direct == pytest.approx(2e-9 * 4 * 17 * 17 * 128 * 128 * 16)
    assert done < 0.5 * direct


def test_goals_say_how_far_they_were_missed():
    goal = load("common").Goal
    assert str(goal("x", 2.5, ">=", 2.0)).startswith("met ")
    assert goal("x", 2.0, ">=", 2.0).met and not goal("x", 2.0, ">", 2.0).met
    assert str(goal("x", 1.5, ">=", 2.0)) == "MISSED  x: 1.5, wanted >= 2, missed by 0.5"
    assert str(goal("x", 3.0, "<", 3.0)).endswith("missed by 0")
    unknown = goal("x", None, "<=", 1.0)
    assert not unknown.met and "not measured" in str(unknown)
    text = load("common").goals_text([goal("kept", 1.0, "<=", 2.0), goal("lost", 3.0, "<=", 2.0)])
    assert text.index("lost") < text.index("kept") and text.startswith("Goals met: 1 of 2")


def test_rows_of_a_table_are_filled_up_and_aligned():
    lines = load("common").table([["a", "b"], ["long", "1"], ["note"]]).splitlines()
    assert lines == ["| a    | b |", "| ---- | - |", "| long | 1 |", "| note |   |"]


def test_without_tensorflow_it_says_so_and_goes_on(capsys, tmp_path):
    start_keras = load("peers.keras_process").start_keras
    assert start_keras(str(tmp_path / "no-such-python"), True) is None
    assert "--keras-python" in capsys.readouterr().err
    if importlib.util.find_spec("tensorflow") is None:
        assert start_keras(sys.executable, True, side=16) is None
        assert "No module named 'tensorflow'" in capsys.readouterr().err
    assert start_keras(None, wanted=False) is None


def test_the_eager_port_is_the_published_generator_and_discriminator():
    port = load("peers.eager_port").EagerPort(128, 64, 512, 7, torch.device("cpu"))
    counts = [
        sum(p.numel() for p in network.parameters())
        for network in (port.generator, port.discriminator, port.cell_image, port.cell, port.batch[0])
    ]
    assert counts[0] == 41_902_069 and counts[3:] == [159_857, 14_932]
    # Without moving statistics, which Keras counts too.
    assert counts[1] == 6_964_161 - 2 * (128 + 256 + 512 + 512)
    assert counts[2] == 7_021_511 - 2 * (128 + 256 + 512 + 512)

"""benchmarks/speed/scaling.py: its figures mean what they say, and the command runs to its end."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import BENCHMARKS, benchmark_modules, needs

pytestmark = needs(BENCHMARKS)


@pytest.fixture(scope="module")
def scaling() -> Any:
    with benchmark_modules("speed.scaling") as (module,):
        yield module


def metric_points(power: float) -> list[dict[str, Any]]:
    sizes = (1000, 2000, 4000)
    return [{"kind": "metric", "metric": "knn", "cells": n, "cpu": (n / 1e4) ** power, "own": 1.0} for n in sizes]


def test_exponent_is_the_power_of_the_growth(scaling: Any) -> None:
    points = [{"cells": n, "cpu": 3.0 * n**2, "parts": {"checks": 5.0 * n}} for n in (10, 100, 1000)]
    assert scaling.exponent(points) == pytest.approx(2.0)
    assert scaling.exponent(points, "checks") == pytest.approx(1.0)
    assert np.isnan(scaling.exponent(points[:1]))


@pytest.mark.parametrize(("power", "met"), [(1.0, True), (2.0, False)])
def test_a_quadratic_metric_misses_its_goal(scaling: Any, power: float, met: bool) -> None:
    results = {"settings": {"side": 16, "base_width": 4}, "points": metric_points(power)}
    (goal,) = scaling.goals(results)
    assert goal.met is met and goal.value == pytest.approx(power)
    assert ("MISSED" in scaling.tables(results)) is not met


def test_a_figure_that_was_not_measured_meets_no_goal(scaling: Any) -> None:
    point = {"kind": "inference", "method": "transform", "cells": 100, "side": 16, "base_width": 4, "cpu": 1.0}
    point |= {"own": None, "resident": None, "output": 1.0, "input": 1.0}
    results = {"settings": {"side": 16, "base_width": 4}, "points": [point, point | {"cells": 200, "cpu": 2.0}]}
    found = scaling.goals(results)
    assert [goal.met for goal in found if "besides" in goal.what] == [False, False]
    assert "not measured" in scaling.tables(results)


@pytest.mark.parametrize(("copies", "growth"), [(0, 1.0), (1, 2.0)])
def test_a_copy_of_all_data_shows_whatever_is_fixed(scaling: Any, copies: int, growth: float) -> None:
    fits = [{"data": data, "networks": {"generator": 10.0}, "own": 300.0 + copies * data} for data in (50.0, 150.0)]
    assert scaling.fit_growth(*fits) == pytest.approx(growth)
    held = fits[1]["data"] + scaling.added(fits[1])
    assert held / scaling.counted(fits[1]) == pytest.approx((450.0 + copies * 150) / 160)


def test_memory_counts_what_is_held_at_the_peak(scaling: Any) -> None:
    pytest.importorskip("psutil")
    points = importlib.import_module("speed.points")
    found: dict[str, Any] = {}
    with points.measured(found):
        block = np.ones(64 * 2**20 // 8)  # 64 MiB, which no earlier test has left behind
        block += 1.0
        time.sleep(0.05)  # memory is sampled
        del block
    assert found["resident"] > 55


def test_refuses_sizes_without_meaning(scaling: Any) -> None:
    for arguments in (["--cells", "10"], ["--threads", "0"]):
        with pytest.raises(SystemExit, match="at least"):
            scaling.main(arguments)


@pytest.mark.slow
def test_runs_to_its_end(scaling: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psutil")
    scaling.main(["--quick", "--metrics", "linear", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "met  " in printed or "MISSED" in printed
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [point["kind"] for point in results["points"]] == ["fit"] * 2 + ["inference"] * 4 + ["metric"] * 2
    fit = results["points"][0]
    assert set(scaling.FIT_PARTS) == set(fit["parts"])
    assert sum(fit["parts"].values()) < fit["cpu"] * 1.5
    assert {"generator", "discriminator", "cell_type", "batch_adversary_1"} <= set(fit["networks"])
    assert all(point["cpu"] > 0 for point in results["points"])
    assert (tmp_path / "scaling.png").stat().st_size > 20_000
    assert not (tmp_path / "scratch").exists()  # no gigabytes are left behind
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    kept = scaling.kept_points(*scaling.arguments(["--quick", "--parts", "metrics", "--out", str(tmp_path)]))
    assert [point["kind"] for point in kept] == ["fit"] * 2 + ["inference"] * 4
    assert not scaling.kept_points(*scaling.arguments(["--parts", "metrics", "--out", str(tmp_path)]))  # other networks
    scaling.main(["--redraw", "--out", str(tmp_path)])
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table

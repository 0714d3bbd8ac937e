"""A new day: is it like the known ones, how many cell types will be right, and does adapting help?
================================================================================================

::

    python examples/new_day.py [OUTPUT_FOLDER]

Four cell types are imaged on five simulated days. Each day in turn is left out: a small model is fitted on the others
with ``calibrate=True``, and from unlabelled cells of the day left out :meth:`~skbegan.BeGANTransformer.check_batch`
says what share of cell types to expect. The same is then counted, without adapting and after
:meth:`~skbegan.BeGANTransformer.adapt` with ``apply=True``. The picture, ``new_day.png``, shows expected against found.

Adapting is off by default, since it has not been measured that it is never worse: compare the two figures of a day.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbegan import BeGANTransformer
from skbegan.datasets import make_cell_images

N_CELLS, N_DAYS, SIDE = 600, 5, 16
PARAMETERS: dict[str, Any] = {"base_width": 8, "n_features": 32, "pretrain_epochs": 5, "removal_epochs": 10}


def leave_out(cells: Any, day: str) -> dict[str, Any]:
    """Fit without one day, and return what was expected of it and what was found."""
    known = cells.batch != day
    model = BeGANTransformer(**PARAMETERS, calibrate=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so small a model is told that it learns little
        model.fit(*(values[known] for values in (cells.bf, cells.qpi, cells.batch, cells.cell_type)))
        report = model.check_batch(cells.bf[~known])
        adapted = model.adapt(cells.bf[~known], apply=True)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    classifier.fit(model.transform(cells.bf[known]), cells.cell_type[known])
    found = [float(classifier.score(m.transform(cells.bf[~known]), cells.cell_type[~known])) for m in (model, adapted)]
    return {"day": day, "report": report, "found": found[0], "adapted": found[1], "method": adapted.adaptation_.method}


def draw(rows: list[dict[str, Any]], chance: float, path: Path) -> None:
    """Draw expected against found, with the intervals of what is expected."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", zorder=0, label="found as expected")
    axes.axhline(chance, color="0.7", linestyle=":", zorder=0, label="chance")
    expected = np.array([row["report"].accuracy for row in rows])
    ends = np.array([row["report"].accuracy_interval for row in rows]).T
    found = np.array([row["found"] for row in rows])
    axes.errorbar(expected, found, xerr=np.abs(ends - expected), fmt="o", capsize=3, label="as it is, 90 % interval")
    for row, x, y in zip(rows, expected, found, strict=True):
        axes.annotate(row["day"], (x, y), xytext=(0, 5), textcoords="offset points", ha="center")
    if adapted := [row for row in rows if row["method"] != "none"]:
        places = [row["report"].accuracy for row in adapted], [row["adapted"] for row in adapted]
        axes.plot(*places, "x", color="C1", markersize=9, zorder=3, label="adapted, where a gain was promised")
    axes.set(xlabel="right cell types, expected", ylabel="right cell types, found", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(folder: Path) -> list[dict[str, Any]]:
    """Leave out each day, print and draw."""
    cells = make_cell_images(N_CELLS, 4, N_DAYS, SIDE, random_state=0)
    rows = [leave_out(cells, day) for day in np.unique(cells.batch)]
    print("day      expected  found  adapted  by")
    for row in rows:
        report = row["report"]
        what = "  REFUSED" if report.refused else ""
        print(
            f"{row['day']}  {report.accuracy:8.2f}  {row['found']:5.2f}  {row['adapted']:7.2f}  {row['method']}{what}"
        )
    chance = 1 / len(np.unique(cells.cell_type))
    print(f"chance is {chance:.2f}")
    folder.mkdir(parents=True, exist_ok=True)
    draw(rows, chance, folder / "new_day.png")
    print(f"drawn in {folder / 'new_day.png'}")
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))

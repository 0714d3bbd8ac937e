"""A new day: is it like the known ones, how many cell types will be right, and does adapting help?
================================================================================================

::

    python examples/new_day.py [OUTPUT_FOLDER]              # a minute or two
    python examples/new_day.py OUTPUT_FOLDER --wbc FILE     # real sites: images, site, cell_type, split in an .npz

Four cell types are imaged on five simulated days. Each day in turn is left out: a small model is fitted on the others
with ``calibrate=True``, and from unlabelled cells of the day left out :meth:`~skbegan.BeGANTransformer.check_batch`
says what share of cell types to expect. The same is then counted, without adapting and after
:meth:`~skbegan.BeGANTransformer.adapt`, which is told in which proportions the types were imaged that day. The picture,
``new_day.png``, shows expected against found.

With ``--wbc`` the days are laboratories that imaged white blood cells, and the models are larger and see the cells
through drawn instruments.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images

N_CELLS, N_DAYS, SIDE = 600, 5, 16
PARAMETERS: dict[str, Any] = {"base_width": 8, "n_features": 32, "pretrain_epochs": 5, "removal_epochs": 10}


REAL: dict[str, Any] = {"base_width": 8, "n_features": 64, "pretrain_epochs": 20, "removal_epochs": 40}
REAL |= {"removal": OnlineRemoval(instrument_share=0.5)}


def read_sites(path: Path) -> Any:
    """Read white blood cells of several sites: from the blue channel, 32 pixels, predict the green one."""
    with np.load(path) as file:
        rows = file["split"] == "train"
        images, site, cell_type = (file[name][rows] for name in ("images", "site", "cell_type"))
    step = images.shape[1] // 32
    small = images.reshape(len(images), 32, step, 32, step, 3).mean((2, 4)).astype(np.float32) / 255
    return Bunch(bf=small[..., 2], qpi=small[..., 1], batch=site, cell_type=cell_type)


def leave_out(cells: Any, day: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Fit without one day, and return what was expected of it and what was found."""
    known = cells.batch != day
    model = BeGANTransformer(**parameters, calibrate=True, random_state=0)
    types = dict(zip(*np.unique(cells.cell_type[~known], return_counts=True), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so small a model is told that it learns little
        model.fit(*(values[known] for values in (cells.bf, cells.qpi, cells.batch, cells.cell_type)))
        report = model.check_batch(cells.bf[~known])
        adapted = model.adapt(cells.bf[~known], proportions=types)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    classifier.fit(model.transform(cells.bf[known]), cells.cell_type[known])
    found = [float(classifier.score(m.transform(cells.bf[~known]), cells.cell_type[~known])) for m in (model, adapted)]
    return {"day": day, "report": report, "found": found[0], "adapted": found[1], "method": adapted.adaptation_.method}


def draw(rows: list[dict[str, Any]], chance: float, path: Path) -> None:
    """Draw expected against found, with the intervals of what is expected."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", zorder=0, label="found as expected")
    axes.axhline(chance, color="0.7", linestyle=":", zorder=0, label="chance")
    for number, row in enumerate(rows):
        report, colour = row["report"], f"C{number}"
        x, ends = report.expected_accuracy, report.expected_accuracy_interval
        spread = [[x - ends[0]], [ends[1] - x]]
        axes.errorbar(x, row["found"], xerr=spread, fmt="o", capsize=3, color=colour, label=row["day"])
        if row["method"] != "none":
            axes.plot(x, row["adapted"], "x", markersize=9, color=colour, zorder=3)
    axes.plot([], [], "x", color="0.3", markersize=9, label="adapted")
    axes.set(xlabel="right cell types, expected", ylabel="right cell types, found", xlim=(0, 1), ylim=(0, 1))
    axes.legend(title="bars: 90 % intervals")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(folder: Path, sites: Path | None = None) -> list[dict[str, Any]]:
    """Leave out each day, print and draw."""
    cells = read_sites(sites) if sites else make_cell_images(N_CELLS, 4, N_DAYS, SIDE, random_state=0)
    rows = [leave_out(cells, str(day), REAL if sites else PARAMETERS) for day in np.unique(cells.batch)]
    print(f"{'day':12}  expected  found  adapted")
    for row in rows:
        figures = f"{row['report'].expected_accuracy:8.2f}  {row['found']:5.2f}  {row['adapted']:7.2f}"
        print(f"{row['day']:12}  {figures}{'  REFUSED' if row['report'].refused else ''}")
    chance = 1 / len(np.unique(cells.cell_type))
    print(f"chance is {chance:.2f}")
    folder.mkdir(parents=True, exist_ok=True)
    draw(rows, chance, folder / "new_day.png")
    print(f"drawn in {folder / 'new_day.png'}")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Leave out each day in turn: what is expected, and what is found.")
    parser.add_argument("folder", nargs="?", type=Path, help="where the picture goes; by default a temporary folder")
    parser.add_argument("--wbc", type=Path, metavar="FILE", help="white blood cells of real sites")
    args = parser.parse_args()
    main(args.folder or Path(tempfile.mkdtemp()), args.wbc)

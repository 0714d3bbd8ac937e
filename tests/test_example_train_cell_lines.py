"""examples/train_cell_lines.py, run in this process on tiny trees of cell lines and of drugs."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from scripts import EXAMPLES, load_example, needs

import skbegan
from skbegan.datasets import load_cell_images, make_cell_images, save_predictions

TINY = (
    "--image-size 16 --base-width 4 --n-features 8 --pretrain-epochs 1 --removal-epochs 1 --quiet --device cpu".split()
)
FILES = (
    "cells.png",
    "features.png",
    "history.json",
    "history.png",
    "model.joblib",
    "model.safetensors",
    "predictions",
    "table.csv",
)

pytestmark = needs(EXAMPLES / "train_cell_lines.py")


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], None]:
    return load_example("train_cell_lines").main


def write_split(root: Path, split: str, n_cells: int, seed: int) -> Any:
    """Write one state of a tree of two cell types in three batches, and return the truth of its cells by folder."""
    cells = make_cell_images(n_cells, 2, 3, 16, random_state=0, cells_random_state=seed)
    batch, cell_type = cells.batch, cells.cell_type
    save_predictions(
        root,
        images=cells.qpi,
        features=np.zeros((n_cells, 1)),
        batch=batch,
        cell_type=cell_type,
        bf=cells.bf,
        qpi=cells.qpi,
        split=split,
    )
    keys = np.char.add(np.char.add(np.char.add(batch, "/"), cell_type), f"/{split}")
    return {key: cells.clean_qpi[keys == key] for key in np.unique(keys)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of cell lines in data/, and the truth of its test cells beside it."""
    folder = tmp_path_factory.mktemp("cell_lines")
    write_split(folder / "data", "Train", 60, seed=1)
    write_split(folder / "data", "Valid", 18, seed=2)
    np.savez(folder / "truth.npz", **write_split(folder / "data", "Test", 30, seed=3))
    return folder


def read_table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "table.csv").open(newline="", encoding="utf-8") as file:
        return {row["features"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_writes_everything(
    main: Callable[[list[str]], None], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    main([str(tree / "data"), "--out", str(out), "--truth", str(tree / "truth.npz"), *TINY])
    printed = capsys.readouterr().out
    assert "Training cells (Train, Valid): 78" in printed and "Test cells (Test): 30" in printed
    for name in FILES:
        assert (out / name).exists(), name
        assert name in printed

    table = read_table(out)
    assert list(table) == ["brightfield pixels, PCA", "stage 1 (pretraining)", "after batch removal", "chance"]
    for name, row in table.items():
        measured = {key for key, value in row.items() if value and key != "features"}
        assert all(np.isfinite(float(row[key])) for key in measured)
        assert len(measured) == (9 if name in ("stage 1 (pretraining)", "after batch removal") else 5)

    history = json.loads((out / "history.json").read_text(encoding="utf-8"))
    assert {"pretraining", "batch_removal", "events"} <= set(history)
    # Stage 1 is computed once for the baseline and the model.
    assert len(list((out / "cache").rglob("output.pkl"))) == 1

    test = load_cell_images(tree / "data", "Test", image_size=16)
    predicted = load_cell_images(out / "predictions", "Test", image_size=None, qpi_variable="CytoMAD_image")
    np.testing.assert_array_equal(predicted.bf, test.bf)
    for model in (skbegan.load(out / "model.safetensors"), joblib.load(out / "model.joblib")):
        np.testing.assert_allclose(model.predict_image(test.bf), predicted.qpi, atol=1e-5)


@pytest.mark.slow
def test_published_procedure_on_drugs(main: Callable[[list[str]], None], tree: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "results"
    for split, n_cells in (("Train", 48), ("Test", 24)):
        cells = make_cell_images(n_cells, 3, 2, 16, random_state=0, cells_random_state=n_cells)
        for drug, name in (("Docetaxel", "type1"), ("Afatinib", "type2")):
            rows = np.isin(cells.cell_type, ["type0", name])
            save_predictions(
                data / drug,
                images=cells.qpi[rows],
                features=np.zeros((rows.sum(), 1)),
                batch=cells.batch[rows],
                cell_type=np.where(cells.cell_type[rows] == "type0", "DMSO", "D3"),
                bf=cells.bf[rows],
                qpi=cells.qpi[rows],
                split=split,
            )
    main([str(data), "--out", str(out), *TINY, "--published", "--max-cells-per-group", "6"])
    assert skbegan.load(out / "model.safetensors").removal == skbegan.PublishedRemoval()
    predicted = load_cell_images(out / "predictions", "Test", image_size=None, qpi_variable="CytoMAD_image")
    assert sorted(set(predicted.cell_type)) == ["Afatinib", "DMSO", "Docetaxel"]
    assert read_table(out)["after batch removal"]["mae_truth"] == ""


def test_refuses_before_training(
    main: Callable[[list[str]], None], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skbegan.BeGANTransformer, "fit", lambda *_, **__: pytest.fail("training began"))
    data, out = str(tree / "data"), tmp_path / "results"

    def refusal(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *TINY])
        return str(stopped.value)

    assert "does not exist" in refusal(str(tmp_path / "nowhere"), "--out", str(out))
    assert "must be apart" in refusal(data, "--out", str(tree / "data" / "results"))
    assert "must be apart" in refusal(data, "--out", str(tree))
    assert "both trained on and the test" in refusal(data, "--out", str(out), "--train-split", "Train", "test")
    assert "there is no file" in refusal(data, "--out", str(out), "--truth", str(tmp_path / "truth.npz"))
    np.savez(tmp_path / "truth.npz", other=np.zeros((30, 16, 16)))
    assert "lacks the key 'batch0/type0/Test'" in refusal(
        data, "--out", str(out), "--truth", str(tmp_path / "truth.npz")
    )
    assert not out.exists()

    (out / "cache").mkdir(parents=True)  # of a run that was stopped: no reason to refuse
    (out / "notes.txt").touch()
    assert "has files already (notes.txt)" in refusal(data, "--out", str(out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert "skbegan[plots]" in refusal(data, "--out", str(out), "--overwrite")
    assert [path.name for path in out.iterdir()] and (out / "notes.txt").exists()

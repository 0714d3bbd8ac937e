"""Every Python block of the README and of the pages in docs/ runs, and every command in them is one that parses.

The blocks of a page share a namespace, from top to bottom. What the reader is to bring stands ready: images and labels
under the names of the pages, tables of image files, a tree of MATLAB files, a file of the original's. Cells are few and
simulated, and images have 16 pixels whatever size a block asks for (128 where the original's generator reads them).
Fits run with the parameters that the block sets, but for those in `TINY`, which are put in place where the parameters
are checked.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

import skbegan
from skbegan import cli, datasets
from skbegan.config import Config
from skbegan.datasets import make_cell_images

ROOT = Path(__file__).parents[1]
KERAS = Path(__file__).parent / "data" / "keras" / "generator.h5"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="docs/ is in the repository, not in the package")

SIDE = 16
TINY = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1, "classifier_epochs": 1}
# Columns of the tables, under all names that pages use.
COLUMNS = {
    "bf": ("brightfield", "bf", "bf_path"),
    "qpi": ("phase", "qpi", "target", "phase_path"),
    "batch": ("plate", "batch", "day"),
    "cell_type": ("line", "cell_type", "drug"),
}


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return [code for code in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def commands(page: Path) -> list[list[str]]:
    """Return the commands of the console blocks as words; a backslash at the end of a line continues it."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line and not line.startswith("#")]


def cells_of(seed: int) -> Any:
    return make_cell_images(80, 2, 2, SIDE, random_state=0, cells_random_state=seed)


def write_tables(folder: Path) -> None:
    """Write cells.csv and new_cells.csv, with ragged crops of 16 bits."""
    (folder / "images").mkdir()
    for seed, table in enumerate(("cells", "new_cells")):
        cells = cells_of(seed)
        rows = [",".join(name for names in COLUMNS.values() for name in names)]
        for i in range(len(cells.bf)):
            values = {"batch": cells.batch[i], "cell_type": cells.cell_type[i]}
            for kind in ("bf", "qpi"):
                values[kind] = f"images/{table}_{i}_{kind}.npy"
                image = cells[kind][i, : SIDE - i % 3, : SIDE - i % 2]
                np.save(folder / values[kind], (1000 * np.clip(image, 0, 60)).astype(np.uint16))
            rows.append(",".join(str(values[kind]) for kind, names in COLUMNS.items() for _ in names))
        (folder / f"{table}.csv").write_text("\n".join(rows), encoding="utf-8")


def write_tree(folder: Path) -> None:
    """Write a tree of cell lines as the original reads it."""
    cells = cells_of(0)
    for b, day in enumerate(("Batch1", "Batch2")):
        for t, line in enumerate(("H69", "H358")):
            rows = (cells.batch == f"batch{b}") & (cells.cell_type == f"type{t}")
            for split in ("Train", "Test"):
                place = folder / "ROOT" / day / line / split
                place.mkdir(parents=True)
                for suffix, images in (("BF", cells.bf), ("QPI", cells.qpi)):
                    savemat(place / f"{line}_{suffix}.mat", {suffix: np.moveaxis(images[rows], 0, -1)})


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The reader's desk: files in the current folder, small fits, and names that stand for the reader's data."""
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path)
    write_tree(tmp_path)
    shutil.copy(KERAS, tmp_path / "CytoMADmodel_000300.h5")

    checked = Config.of.__func__
    monkeypatch.setattr(Config, "of", classmethod(lambda cls, parameters: checked(cls, {**parameters, **TINY})))
    monkeypatch.setattr(datasets, "load_cell_table", _at_side(SIDE, datasets.load_cell_table))
    train, new = cells_of(0), cells_of(1)
    began = skbegan.BeGANTransformer(random_state=0).fit(train.bf, train.qpi, train.batch, train.cell_type)
    return {
        "began": began,
        "X_bf": train.bf,
        "y_qpi": train.qpi,
        "batch": train.batch,
        "day": train.batch,
        "cell_type": train.cell_type,
        "X_bf_new": new.bf,
        "qpi_new": new.qpi,
        "y_qpi_new": new.qpi,
        "batch_new": new.batch,
        "cell_type_new": new.cell_type,
    }


def _at_side(side: int, load: Any) -> Any:
    @functools.wraps(load)
    def resized(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "image_size": side})

    return resized


def test_pages_are_found():
    assert {"README.md", "tutorial.md", "faq.md", "coming_from_the_original.md"} <= {page.name for page in PAGES}
    assert sum(len(blocks(page, "python")) for page in PAGES) > 20
    assert sum(words[0] == "skbegan" for page in PAGES for words in commands(page)) >= 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # so few cells and epochs are warned about
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, desk: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    side = 128 if any("load_keras_generator(" in code for code in blocks(page, "python")) else SIDE
    monkeypatch.setattr(datasets, "load_cell_images", _at_side(side, datasets.load_cell_images))
    names = {"__name__": "__main__", **desk}
    for number, code in enumerate(blocks(page, "python"), 1):
        try:
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
        except Exception as error:
            pytest.fail(f"{page.name}, block {number}: {type(error).__name__}: {error}\n\n{code}")
    pyplot.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_name_what_there_is(page: Path, capsys: pytest.CaptureFixture[str]):
    for words in commands(page):
        if words[0] == "skbegan" or (words[0] in ("python", "torchrun") and "skbegan" in words):  # after -m
            arguments = words[words.index("skbegan") + 1 :]
            try:
                cli.build_parser().parse_args(arguments)
            except SystemExit as stopped:  # also after --help, with code 0
                assert not stopped.code, f"{' '.join(words)}: {capsys.readouterr().err}"
        elif words[1:2] == ["tasks.py"]:
            sys.path.insert(0, str(ROOT))
            try:
                import tasks
            finally:
                sys.path.remove(str(ROOT))
            assert words[2] in tasks.TASKS, words
        elif words[0].startswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words


def test_a_wrong_option_would_be_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text("```console\nskbegan fit cells.csv --no-such-option\n```\n", encoding="utf-8")
    with pytest.raises((AssertionError, pytest.fail.Exception), match="skbegan fit"):
        test_commands_parse_and_name_what_there_is(page, capsys)

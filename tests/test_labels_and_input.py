"""What the table of a laboratory holds: labels of every kind, tables, names of cells, things that are no arrays."""

from __future__ import annotations

import datetime
import re
import warnings
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import TINY

from skbegan import BeGANTransformer, datasets, load, save
from skbegan._foreign import listed, what_reads_it
from skbegan.checks import check_fit_input, check_images, check_labels, split_y
from skbegan.labels.arrays import as_labels

QUICK = {**TINY, "pretrain_epochs": 1, "removal_epochs": 1}
DAYS = ["2024-01-31", "2024-02-01", "2024-02-02"]
Day = Enum("Day", "MON TUE WED")


def of_kind(kind: str, codes: np.ndarray) -> Any:
    """Labels of three days in the shape in which some library hands them over."""
    days = np.array(DAYS)[codes]
    stamps = pd.to_datetime(days)
    return {
        "bytes": lambda: days.astype("S"),
        "bytes in a list": lambda: [day.encode() for day in days],
        "bytes and text": lambda: np.array([d.encode() if i % 2 else d for i, d in enumerate(days)], dtype=object),
        "date": lambda: [stamp.date() for stamp in stamps],
        "datetime": lambda: [stamp.to_pydatetime() for stamp in stamps],
        "datetime64": lambda: days.astype("datetime64[D]"),
        "Timestamp with a zone": lambda: pd.Series(stamps.tz_localize("Asia/Hong_Kong")),
        "Timestamp": lambda: list(stamps),
        "Period": lambda: pd.Series(stamps.to_period("D")),
        "categorical": lambda: pd.Categorical(days),
        "polars dates": lambda: pl.Series(days).str.to_date(),
        "nullable integers": lambda: pd.Series(codes, dtype="Int64"),
        "arrow-like text": lambda: pd.Series(days, dtype="string"),
        "booleans": lambda: codes > 0,
        "floats": lambda: codes / 2,
        "fixed width": lambda: days,
    }[kind]()


DATES = ["date", "datetime", "datetime64", "Timestamp with a zone", "Timestamp", "Period", "polars dates"]
KINDS = [
    *DATES,
    *("bytes", "bytes in a list", "bytes and text", "categorical", "nullable integers", "arrow-like text"),
    *("booleans", "floats", "fixed width"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind_have_one_form(kind):
    codes = np.arange(9) % 3
    labels = of_kind(kind, codes)
    array = as_labels(labels, "batch")
    assert array.dtype.kind in "biufUM" and array.shape == (9,)
    assert (np.unique(array, return_inverse=True)[1] == (codes > 0 if kind == "booleans" else codes)).all()
    if kind in DATES:
        assert array.dtype.kind == "M" and (array == np.array(DAYS, "datetime64[D]")[codes]).all()
    elif "bytes" in kind:
        assert array.tolist() == np.array(DAYS)[codes].tolist()
    assert check_labels(labels, "batch", 9).tolist() == array.tolist()


@pytest.mark.parametrize("kind", ["bytes", "date", "Timestamp with a zone", "Period", "nullable integers"])
def test_labels_that_fit_accepts_are_saved_loaded_and_written(cells, tmp_path, kind):
    batch = of_kind(kind, np.unique(cells.batch, return_inverse=True)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        model = BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, batch, cells.cell_type)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.batches_.dtype == model.batches_.dtype
    np.testing.assert_array_equal(again.batches_, model.batches_)
    paths = datasets.save_predictions(
        tmp_path / "out", images=cells.qpi, features=np.ones((90, 2)), batch=batch, cell_type=cells.cell_type
    )
    folders = {path.relative_to(tmp_path / "out").parts[0] for path in paths}
    assert folders == ({"0", "1", "2"} if kind == "nullable integers" else set(DAYS))


def test_times_keep_their_clock_in_one_zone_and_become_utc_in_several():
    hong_kong, utc = (pd.Timestamp("2024-01-31 23:30", tz=zone) for zone in ("Asia/Hong_Kong", "UTC"))
    assert as_labels([hong_kong], "batch") == np.array(["2024-01-31T23:30"], "M8[m]")
    assert (as_labels([hong_kong, utc], "batch") == np.array(["2024-01-31T15:30", "2024-01-31T23:30"], "M8[m]")).all()


def test_dates_and_times_mix_but_nothing_else_does():
    mixed = [datetime.date(2024, 1, 31), datetime.datetime(2024, 2, 1, 12)]
    assert (as_labels(mixed, "batch") == np.array(["2024-01-31", "2024-02-01T12"], "M8[h]")).all()
    for labels in (["a", 1], ["a", mixed[0]], [pd.Period("2024-01", "M"), mixed[0]], [1, mixed[0]]):
        with pytest.raises(ValueError, match="batch mixes labels of types"):
            as_labels(labels, "batch")
    with pytest.raises(ValueError, match="batch mixes periods"):
        as_labels([pd.Period("2024-01", "M"), pd.Period("2024-01-01", "D")], "batch")


MISSING = [
    ["a", "b", None],
    ["a", "b", float("nan")],
    [b"a", b"b", None],
    pd.Series(["a", "b", pd.NA], dtype="string"),
    pd.Series(pd.to_datetime(["2024", "2025", None])),
    pd.Series(pd.to_datetime(["2024", "2025", None], utc=True)),
    [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), None],
    [pd.Period("2024", "Y"), pd.Period("2025", "Y"), pd.NaT],
    np.array(["2024", "2025", "NaT"], "M8[D]"),
    np.array([1.0, 2.0, np.nan]),
    pd.Categorical(["a", "b", None]),
    pl.Series(["a", "b", None]),
    np.ma.masked_array([1, 2, 3], [False, False, True]),
]


@pytest.mark.parametrize("labels", MISSING, ids=[str(number) for number in range(len(MISSING))])
def test_missing_labels_are_named_with_the_first_cell(labels, tmp_path):
    with pytest.raises(ValueError, match="batch has a missing label, first at cell 2"):
        check_labels(labels, "batch", 3)
    with pytest.raises(ValueError, match="batch has a missing label, first at cell 2"):
        datasets.save_predictions(
            tmp_path / "out", images=np.zeros((3, 8, 8)), features=np.ones((3, 2)), batch=labels, cell_type=["a"] * 3
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([Day.MON, Day.TUE], "Day"),
        ([IntEnum("Count", "ONE TWO").ONE] * 2, "Count"),
        (np.array([datetime.timedelta(1)] * 2), "timedelta"),
        (np.array([1, 2], "m8[D]"), r"timedelta64\[D\]"),
        ([datetime.time(1), datetime.time(2)], "time"),
        ([Path("a"), Path("b")], "PosixPath|WindowsPath"),
        ([2**70, 2**71], "int"),
        (np.array([1j, 2j]), "complex128"),
    ],
)
def test_other_objects_are_refused_by_type_and_the_advice_works(labels, kind):
    with pytest.raises(ValueError, match=f"batch must hold strings, numbers or dates, got .*({kind})") as caught:
        check_labels(labels, "batch", 2)
    advice = str(caught.value).rsplit("convert them: ", 1)[1]
    assert advice.endswith(".astype(str)")
    check_labels(eval(advice, {"np": np, "batch": labels}), "batch", 2)


def test_advice_for_bytes_that_are_no_text_and_mixed_labels_works():
    for labels in (["Zellen".encode("utf-16"), b"\xff"], [1, "a"]):
        with pytest.raises(ValueError) as caught:
            check_labels(labels, "batch", 2)
        advice = str(caught.value).rsplit(": ", 1)[1]
        check_labels(eval(advice, {"np": np, "batch": labels}), "batch", 2)


@pytest.mark.parametrize("labels", [pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), np.zeros((2, 2)), [[1, 2], [3, 4]]])
def test_two_labels_per_cell_are_refused_by_shape(labels):
    with pytest.raises(ValueError, match=r"batch must be one label per cell, shape \(2,\), got shape \(2, 2\)"):
        check_labels(labels, "batch", 2)


# --- tables and names of cells ---------------------------------------------------------------------------------------


def table(frame: Any, cells: Any) -> Any:
    columns = {"well": np.arange(90), "batch": cells.batch, "score": np.ones(90), "cell_type": cells.cell_type}
    if frame == "records":
        return np.rec.fromarrays(list(columns.values()), names=list(columns))
    return columns if frame is dict else frame(columns)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, dict, "records"])
def test_a_whole_table_as_y_gives_its_two_columns(cells, frame):
    y_qpi, batch, cell_type = split_y(table(frame, cells), None, None, cells.qpi, 90)
    assert y_qpi is cells.qpi
    assert np.asarray(batch).tolist() == cells.batch.tolist()
    assert np.asarray(cell_type).tolist() == cells.cell_type.tolist()
    dataset = check_fit_input(cells.bf, table(frame, cells), None, None, cells.qpi)
    assert dataset.n_batches == dataset.n_cell_types == 3


def test_a_table_without_one_of_the_columns_is_refused_with_those_it_has(cells):
    frame = table(pd.DataFrame, cells).rename(columns={"batch": "day"})
    with pytest.raises(ValueError, match=r"and the columns \['well', 'day', 'score', 'cell_type'\]"):
        split_y(frame, None, None, cells.qpi, 90)
    assert split_y(frame, cells.batch, None, cells.qpi, 90)[1] is cells.batch  # given beside the table
    with pytest.raises(ValueError, match="given twice, as a column of y and as batch"):
        split_y(table(pd.DataFrame, cells), cells.batch, None, cells.qpi, 90)
    wide = pd.DataFrame({f"column{number}": np.ones(90) for number in range(500)})
    with pytest.raises(ValueError, match="and 490 more") as caught:
        split_y(wide, None, None, cells.qpi, 90)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("label", ["cell{:05}", "a name of a cell that is as long as a path can be/" * 5 + "{}"])
def test_names_of_cells_as_batch_give_one_short_message(cells, label):
    batch = [label.format(number) for number in range(90)]
    batch[1] = batch[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"89 different labels for 90 cells, and 88 of them .*\?") as caught:
            BeGANTransformer(**QUICK).fit(cells.bf, cells.qpi, batch, cells.cell_type)
    assert len(str(caught.value)) <= 500


def test_a_few_batches_of_one_cell_are_no_names_of_cells(cells):
    batch = np.array([f"day{number % 20}" for number in range(90)], dtype=object)
    batch[:5] = [f"lost{number}" for number in range(5)]
    assert check_fit_input(cells.bf, None, batch, cells.cell_type, cells.qpi).n_batches == 25


def test_lists_in_messages_end_after_ten_names():
    assert listed(range(3)) == "[0, 1, 2]"
    assert listed(range(1000)) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] and 990 more"


# --- things that are no arrays ---------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((16, 16), index, np.float32), index


def archive(tmp_path: Path) -> Any:
    np.savez(tmp_path / "a.npz", bf=np.ones((20, 16, 16)), qpi=np.ones((20, 16, 16)))
    return np.load(tmp_path / "a.npz")


def saved(tmp_path: Path) -> list[str]:
    for number in range(20):
        np.save(tmp_path / f"{number}.npy", np.full((16, 16), number))
    return [str(tmp_path / f"{number}.npy") for number in range(20)]


THINGS = {
    "torch Dataset": (lambda _: Pairs(), "a torch Dataset"),
    "DataLoader": (lambda _: torch.utils.data.DataLoader(Pairs(), batch_size=4), "a torch DataLoader"),
    "NpzFile": (archive, r"an archive of arrays \(NpzFile\) with \['bf', 'qpi'\]"),
    "paths": (saved, "a list of file names, first .*0.npy"),
    "Paths": (lambda folder: [Path(path) for path in saved(folder)], "a list of file names"),
    "column of paths": (lambda folder: pd.Series(saved(folder)), "a list of file names"),
    "generator": (lambda _: (np.ones((16, 16)) for _ in range(20)), "a generator, which can be read once"),
}


@pytest.mark.parametrize("name", THINGS)
def test_things_that_are_no_arrays_are_called_by_name_and_the_advice_reads_them(tmp_path, name):
    make, match = THINGS[name]
    X_bf = make(tmp_path)
    for check in (
        lambda: BeGANTransformer(**QUICK).fit(X_bf, np.ones((20, 16, 16))),
        lambda: datasets.resize_images(X_bf, 16),
    ):
        with pytest.raises(TypeError, match=f"must be an array.*{match}") as caught:
            check()
    advice = re.search(r"(np\.\w+\(.*\)|images\[.*\])\.?$", str(caught.value)).group(1)
    images = eval(advice, {"np": np, "images": X_bf})
    assert check_images(images, "X_bf").shape == (20, 16, 16)


def test_as_y_they_are_refused_too(cells):
    for y in (Pairs(), (image for image in cells.qpi), "labels.csv"):
        with pytest.raises(TypeError, match="y must be an array of images, labels or a table of labels, got"):
            BeGANTransformer(**QUICK).fit(cells.bf, y)


def test_names_of_files_are_told_by_their_ending_what_reads_them():
    assert "load_cell_images(root)" in what_reads_it(["a.mat"], "X")
    assert "tifffile.imread(path) for path in X" in what_reads_it(["a.tif"], "X")
    assert "read it: np.load(X)" in what_reads_it(Path("a.npy"), "X")
    for array in (np.ones(3), [np.ones(3)], [[1]], [], None, {"a": 1}, pd.Series([np.ones(2)])):
        assert what_reads_it(array, "X") is None


def test_hdf5_files_are_called_so(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.ones((20, 16, 16))
        with pytest.raises(TypeError, match=r"an HDF5 file with \['images'\]; pass one of its data sets") as caught:
            check_images(file, "X_bf")
        advice = str(caught.value).rsplit(": ", 1)[1]
        assert check_images(eval(advice, {"X_bf": file}), "X_bf").shape == (20, 16, 16)


# --- the advice of messages about images -----------------------------------------------------------------------------


def follow(message: str, **given: Any) -> Any:
    """Run the expression that a message advises."""
    found = re.search(r"(skbegan\.datasets\.resize_images\(.*?\)|np\.moveaxis\(.*?\)|\w+\[None\])", message)
    assert found is not None, message
    return eval(found.group(1).replace("skbegan.datasets.", ""), {"np": np, **vars(datasets), **given})


RNG = np.random.default_rng(0)
REFUSED = {
    "rectangles": RNG.random((20, 60, 72)),
    "not a power of two": RNG.random((20, 24, 24)),
    "small": RNG.random((20, 9, 9)),
    "large": RNG.random((4, 600, 700), np.float32),
    "of many sizes": [RNG.random((s, s + 1)) for s in RNG.integers(20, 40, 20)],
    "channels first": RNG.random((20, 3, 32, 32)),
    "one channel first": RNG.random((20, 1, 32, 32)),
    "channels first, rectangles": RNG.random((20, 2, 60, 72)),
    "single": RNG.random((32, 32)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_advice_about_images_leads_to_images_that_are_taken(name):
    X_bf = REFUSED[name]
    for _ in range(2):  # channels first, then the size
        try:
            assert check_images(X_bf, "X_bf").shape[1] >= 16
            break
        except ValueError as error:
            assert len(str(error)) < 400
            X_bf = follow(str(error), X_bf=X_bf)
    check_images(X_bf, "X_bf")


def test_advice_about_the_side_of_the_target():
    bf, qpi = np.ones((8, 32, 32)), np.ones((8, 64, 64))
    with pytest.raises(ValueError, match="resize one of them") as caught:
        check_fit_input(bf, None, None, None, qpi)
    check_fit_input(bf, None, None, None, follow(str(caught.value), y_qpi=qpi))


@pytest.mark.parametrize(
    ("shape", "model", "says"),
    [
        ((5, 1, 16, 16), (16, 16), "channels come last"),
        ((5, 3, 16, 16), (16, 16, 3), "channels come last"),
        ((5, 3, 64, 64), (16, 16, 3), "channels come last"),
        ((5, 3, 16, 16), (16, 16), "channels come last"),
        ((5, 16, 16, 3), (16, 16), r"pass the same 1 channel, not 3$"),
        ((5, 16, 16), (16, 16, 2), r"pass the same 2 channels, not 1$"),
        ((5, 64, 64), (16, 16, 2), "pass the same 2 channels, not 1, and resize them"),
        ((5, 64, 64), (16, 16), r"resize them: skbegan\.datasets\.resize_images\(X_bf, 16\)"),
        ((5, 16, 20), (16, 16), r"resize them"),
    ],
)
def test_images_for_another_model(shape, model, says):
    X_bf = np.ones(shape)
    with pytest.raises(ValueError, match=says) as caught:
        check_images(X_bf, "X_bf", model)
    if shape[1:3] == model[:2] or "last" in says:
        assert "resize" not in str(caught.value)
    if says.startswith("resize") or (shape[1] == (1 if len(model) == 2 else model[2]) and shape[2] == 16):
        check_images(follow(str(caught.value), X_bf=X_bf), "X_bf", model)

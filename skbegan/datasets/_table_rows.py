"""The rows of a table of cells: files of tables and data frames, names of columns, labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skbegan._foreign import listed
from skbegan.datasets._image_files import needs
from skbegan.labels.arrays import as_labels, have_labels

__all__ = [
    "check_columns",
    "column_and_channel",
    "joined_labels",
    "label_columns",
    "names_of",
    "page_numbers",
    "read_table",
]

_READERS = {
    ".csv": "read_csv",
    ".tsv": "read_csv",
    ".txt": "read_csv",
    ".parquet": "read_parquet",
    ".pq": "read_parquet",
    ".xlsx": "read_excel",
    ".xlsm": "read_excel",
}
_ENGINES = {"read_parquet": "pyarrow", "read_excel": "openpyxl"}


def names_of(argument: str, value: Any) -> list[str]:
    """Return the columns that an argument names."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{argument} must be the name of a column, or a list of names, got {value!r:.80}."
            + (" A channel is written after its column: 'image:0'." if argument in ("bf", "target") else "")
        )
    return names


def read_table(pd: Any, table: Any, labels: Sequence[str]) -> tuple[Any, Path, str]:
    """Return the rows as a new frame, the folder that names of files start from, and what to call the table."""
    if isinstance(table, str | PathLike):
        return _read_file(pd, Path(table), labels)
    kind = type(table)
    if isinstance(table, pd.DataFrame):
        return table.reset_index(drop=True), Path(), "the data frame"
    if kind.__module__.split(".")[0] == "polars":
        if kind.__name__ != "DataFrame":
            raise TypeError(f"table is a {kind.__name__} of polars; make it a data frame first: table.collect().")
        return pd.DataFrame({name: table[name].to_list() for name in table.columns}), Path(), "the data frame"
    raise TypeError(f"table must be the path of a table or a data frame, got {kind.__name__}.")


def _read_file(pd: Any, path: Path, labels: Sequence[str]) -> tuple[Any, Path, str]:
    if not path.is_file():
        raise FileNotFoundError(f"The table {path} does not exist.")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise ValueError(f"{path}: tables that are read end in {', '.join(_READERS)}.")
    reader = _READERS[suffix]
    options: dict[str, Any] = {}
    if reader in _ENGINES:
        needs(_ENGINES[reader], f"Reading {path.name}")
        options["engine"] = _ENGINES[reader]
    try:
        if reader == "read_csv":
            options |= {"sep": _separator(path), "encoding": "utf-8-sig", "skipinitialspace": True}
        read = getattr(pd, reader)
        rows = read(path, **options)
        if reader != "read_parquet" and (known := [name for name in labels if name in rows.columns]):
            # Letter by letter: 01 is another plate than 1, and NA may be a treatment.
            as_text = read(path, usecols=list(dict.fromkeys(known)), dtype=str, keep_default_na=False, **options)
            for name in as_text.columns:
                rows[name] = as_text[name].where(as_text[name] != "", None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save the table as UTF-8.") from error
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    except Exception as error:  # each engine has errors of its own for damaged files
        raise ValueError(f"{path} cannot be read as a table: {type(error).__name__}: {error}") from error
    rows.columns = [str(name) for name in rows.columns]
    return rows, path.parent, str(path)


def _separator(path: Path) -> str:
    """Return what stands between the columns: a tab, or in CSV a comma, or a semicolon as some languages have it."""
    with path.open(encoding="utf-8-sig") as file:
        head = file.readline()
    if path.suffix.lower() == ".csv":
        return ";" if head.count(";") > head.count(",") else ","
    return "\t"


def check_columns(rows: Any, names: Iterable[str], what: str) -> None:
    if unknown := [name for name in names if name not in rows.columns]:
        raise ValueError(f"{what} has no column {unknown[0]!r}; it has {listed(map(str, rows.columns), 20)}.")


def column_and_channel(rows: Any, name: str, what: str) -> tuple[str, int | None]:
    if name in rows.columns:
        return name, None
    column, _, channel = name.rpartition(":")
    if column in rows.columns:
        if not (channel.isascii() and channel.isdigit()):
            raise ValueError(f"{name!r}: a channel is a number from 0 after the column, as in '{column}:0'.")
        return column, int(channel)
    check_columns(rows, [name], what)
    raise AssertionError(name)


def joined_labels(rows: Any, names: Sequence[str], argument: str) -> NDArray[Any]:
    """Return the labels in one or several columns as text; None for a cell type with a part missing."""
    parts = [_texts(rows[name], f"{argument} (column {name!r})", argument == "cell_type") for name in names]
    joined = [None if None in labels else "/".join(map(str, labels)) for labels in zip(*parts, strict=True)]
    return np.array(joined, dtype=object if None in joined else np.str_)


def label_columns(rows: Any, names: Sequence[str], argument: str) -> NDArray[Any]:
    """Return the labels in several columns as text, in an array with a field for each."""
    columns = {name: np.array(_texts(rows[name], f"{argument} (column {name!r})")) for name in names}
    found = np.empty(len(rows), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        found[name] = column
    return found


def _texts(column: Any, name: str, may_lack: bool = False) -> list[str | None]:
    given = list(column)
    known = have_labels(given)[0] if may_lack else np.ones(len(given), bool)
    labels = as_labels([label for label, has in zip(given, known, strict=True) if has], name)
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "M":
        days = labels.astype("datetime64[D]")
        labels = np.datetime_as_string(days if (days == labels).all() else labels)
    texts = iter(labels.tolist())
    return [str(next(texts)) if has else None for has in known]


def page_numbers(column: Any, name: str) -> NDArray[np.intp]:
    numbers = needs("pandas", "Reading a table of cells").to_numeric(column, errors="coerce").to_numpy(dtype=float)
    wrong = ~(numbers >= 0) | (numbers != np.floor(numbers))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"index={name!r} must hold the number of each cell's image in its file, from 0; row {row} (from 0) has "
            f"{column.tolist()[row]!r}."
        )
    return numbers.astype(np.intp)

"""Any image files and a table that says which cell is in which: CSV, TSV, Parquet, Excel or a data frame."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from skbegan._progress import Progress
from skbegan.datasets._image_files import Header, Layout, layout_of, needs, open_images
from skbegan.datasets._table_images import Column, TableImages, blocks_of
from skbegan.datasets._table_report import TableReport, count_cells, verdict_of
from skbegan.datasets._table_rows import (
    check_columns,
    column_and_channel,
    joined_labels,
    label_columns,
    names_of,
    page_numbers,
    read_table,
)
from skbegan.datasets.resizing import FITS, Fit, check_choice, check_count
from skbegan.labels.tables import as_batch_table
from skbegan.stored.lazy import ROWS_AT_ONCE

if TYPE_CHECKING:
    from sklearn.utils import Bunch

__all__ = ["load_cell_table"]

_NAMED = 5  # missing files that a message names
_SAMPLE = 64  # cells whose values the report gives the range of


def load_cell_table(
    table: Any,
    *,
    bf: str | Sequence[str],
    target: str | Sequence[str] | None = None,
    batch: str | Sequence[str],
    cell_type: str | Sequence[str] | None = None,
    root: str | PathLike[str] | None = None,
    image_size: int,
    fit: Fit = "pad",
    lazy: bool = True,
    axes: str | Mapping[str, str] | None = None,
    index: str | None = None,
    frame: int | None = None,
    antialias: bool = False,
    missing: Literal["raise", "drop"] = "raise",
    verbose: int = 0,
) -> Bunch:
    """Load the cells of a table whose columns say in which file the images of each cell are.

    One row is one cell. All headers are read first, so that everything wrong with the files is said before pixels are
    read. Needs the extra ``io``: ``pip install 'skbegan[io]'``.

    What a column of images holds:

    - names of files: TIFF and OME-TIFF (``.tif``, ``.tiff``), ``.png``, ``.jpg``, ``.bmp``, ``.npy``;
    - names of arrays in files: ``cells.h5::group/images`` (HDF5), ``cells.zarr::images`` (zarr);
    - either of them with many cells in one file: `index` names the column with the number of each cell's image.

    A single channel of images with several is written ``"column:channel"``, channels from 0: ``bf="image:0",
    target="image:3"``. (A column whose own name is that comes first.) Several columns or channels, ``bf=["BF:0",
    "BF:1"]``, become the channels of one image.

    Parameters
    ----------
    table : path-like or DataFrame
        CSV (``.csv``, ``.tsv``, ``.txt`` with tabs), Parquet, Excel (first sheet), or a data frame of pandas or
        polars.
    bf, target : str or sequence of str
        Columns of the brightfield and of the target images. Without a target, `qpi` is None.
    batch, cell_type : str or sequence of str
        Columns of labels. Several columns of the batch, such as day, plate and position, stay apart in `data.batch`,
        and each combination is a batch; several of the cell type are joined by "/". Labels become text: 1 and 1.0
        become "1". In CSV, TSV and Excel they are taken letter by letter ("01" stays "01", and "NA" and "-1" are
        labels); only an empty field is a missing one. A cell type may be missing, a batch may not.
    root : path-like or None, default=None
        Folder that names of files start from; None is the folder of the table, or for a data frame the current one.
    image_size : int
        Side of the images in pixels. The estimator takes powers of two from 16 to 512.
    fit : {"pad", "crop", "stretch"}, default="pad"
        How images of other sizes become squares.

        - "pad" cuts nothing off. Images are put in the middle of a square of background, the median of their border
          pixels (of each channel). If the longest edge of any image is longer than `image_size`, all cells are shrunk
          by the same factor, so that they keep one scale.
        - "crop" rescales nothing. What is longer than `image_size` is cut at the centre, what is shorter is padded.
        - "stretch" scales height and width of each image to `image_size`; cells change their shape and scale.
    lazy : bool, default=True
        True: `bf` and `qpi` read rows from the files when they are indexed, each time anew. Fitting, transforming and
        predicting read minibatches. Where all images fit into memory, False is faster: each file is read once.
    axes : str, mapping of str to str or None, default=None
        Order of the axes in the files, a letter each as tifffile names them: Y, X, C or S (channels); any other letter,
        such as N, I, Z or T, counts images. One for all columns or by column. None: what the file says (TIFF, OME-TIFF,
        PNG, JPEG, named dimensions of zarr), or what the shape leaves no doubt about.
    index : str or None, default=None
        Column with the number, from 0, of the cell's image in files that hold several. Files that hold a single image
        need none.
    frame : int or None, default=None
        With "pad" and "crop": side in pixels, in the files, of the square that becomes `image_size`. Images that are
        larger are cut, smaller ones padded, and all are scaled by ``image_size / frame``. Give it to load further
        tables at the scale of the first, ``report.frame``. None is what `fit` says.
    antialias : bool, default=False
        Smooth before shrinking, see `resize_images`.
    missing : {"raise", "drop"}, default="raise"
        What to do about rows whose files are not there or not named: an error, or leave them out and name the files in
        the report.
    verbose : int, default=0
        Above 0, show progress.

    Returns
    -------
    data : sklearn.utils.Bunch
        bf, qpi : lazy array or ndarray of shape (n_cells, side, side) or (n_cells, side, side, n_channels), float32
            Images in the units of the files, channels last. Lazy ones have shape, dtype and length; ``bf[3]``,
            ``bf[10:20]`` and ``bf[rows]`` are arrays, ``bf.select(rows)`` is lazy, ``numpy.asarray(bf)`` reads all.
            `qpi` is None without a target. float32 holds integers up to 2**24 exactly.
        batch : ndarray of shape (n_cells,), str
            Labels; with several columns a structured array, ``batch["day"]``.
        cell_type : ndarray of shape (n_cells,), str, or None
            None if it was not asked for; of dtype object, with None for the cells that have none, where some have none.
        table : DataFrame
            The rows of the cells with all their columns, numbered from 0.
        report : TableReport
            What was found: ``print(data.report)``.
        DESCR : str
            A short description.

    Raises
    ------
    FileNotFoundError
        If the table or files that it names are missing; the first ones are named.
    ValueError
        If columns are missing or labels of the batch empty; a file is of an unknown kind, damaged, or holds palettes or
        transparent pixels; the order of axes is doubtful; channels, or the two images of a cell, do not match.
    TypeError
        If an argument is of the wrong kind.
    ImportError
        If a library that reads one of the files is missing.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from skbegan.datasets import load_cell_table, make_cell_images
    >>> cells = make_cell_images(12, 2, 2, 16, random_state=0)
    >>> with TemporaryDirectory() as folder:
    ...     lines = ["bf,phase,plate,line"]
    ...     for i in range(12):
    ...         np.save(Path(folder, f"{i}_bf.npy"), cells.bf[i, :14, :12])  # crops of other sizes
    ...         np.save(Path(folder, f"{i}_phase.npy"), cells.qpi[i, :14, :12])
    ...         lines.append(f"{i}_bf.npy,{i}_phase.npy,{cells.batch[i]},{cells.cell_type[i]}")
    ...     _ = Path(folder, "cells.csv").write_text("\\n".join(lines))
    ...     columns = {"bf": "bf", "target": "phase", "batch": "plate", "cell_type": "line"}
    ...     data = load_cell_table(Path(folder, "cells.csv"), image_size=16, **columns)
    ...     read = data.bf[2:5]
    >>> data.bf.shape, read.shape, read.dtype
    ((12, 16, 16), (3, 16, 16), dtype('float32'))
    >>> data.report.n_padded, data.report.n_rescaled
    (12, 0)
    """
    pd = needs("pandas", "Reading a table of cells")
    side = check_count("image_size", image_size)
    check_choice("fit", fit, FITS)
    check_choice("missing", missing, ("raise", "drop"))
    if frame is not None:
        check_count("frame", frame)
        if fit == "stretch":
            raise ValueError("frame is for fit='pad' and fit='crop'; fit='stretch' fills the side.")
    sides = {"bf": names_of("bf", bf)} | ({} if target is None else {"qpi": names_of("target", target)})
    labels = {"batch": names_of("batch", batch)}
    if cell_type is not None:
        labels["cell_type"] = names_of("cell_type", cell_type)
    if index is not None and not isinstance(index, str):
        raise TypeError(f"index must be the name of a column, got {index!r:.80}.")
    rows, folder, what = read_table(pd, table, [name for names in labels.values() for name in names])
    base = folder if root is None else Path(root)
    if root is not None and not base.is_dir():
        raise FileNotFoundError(f"root={str(base)!r} is no folder.")
    specs = {kind: [column_and_channel(rows, name, what) for name in names] for kind, names in sides.items()}
    check_columns(rows, [*(n for names in labels.values() for n in names), *([index] if index else [])], what)
    if isinstance(axes, Mapping):
        check_columns(rows, axes, what)
    n_rows = len(rows)
    if n_rows == 0:
        raise ValueError(f"{what} has no rows; one row is one cell.")

    # What is missing is said before any image is read.
    columns = list(dict.fromkeys(name for pairs in specs.values() for name, _ in pairs))
    places, absent, bad = _locate(rows, columns, base)
    if absent and missing == "raise":
        raise FileNotFoundError(_absent(absent, int(bad.sum()), base))
    rows = rows.loc[~bad].reset_index(drop=True)
    kept = np.flatnonzero(~bad).tolist()
    places = {name: [found[row] for row in kept] for name, found in places.items()}
    if len(rows) == 0:
        raise FileNotFoundError(_absent(absent, n_rows, base))
    texts = {name: joined_labels(rows, names, name) for name, names in labels.items()}
    batches: Any = texts["batch"]
    if (several := labels["batch"])[1:]:
        batches = label_columns(rows, several, "batch")
        if (table_of_batches := as_batch_table(batches)) is not None:
            texts["batch"] = table_of_batches.labels
    pages = None if index is None else page_numbers(rows[index], index)

    headers = _headers([place for found in places.values() for place in found], verbose)
    read = {
        kind: [_column(name, channel, places[name], headers, axes, pages) for name, channel in pairs]
        for kind, pairs in specs.items()
    }
    if pages is not None and all(column.page is None for found in read.values() for column in found):
        raise ValueError(f"index={index!r} was given, but every file holds a single image; leave it out.")
    _check_different(read)
    edges = {kind: _edges(found, fit) for kind, found in read.items()}
    square = _square(edges, side, fit, frame)
    images = {kind: TableImages(found, side, square, antialias) for kind, found in read.items()}
    report = _report(images, read, edges, texts, n_rows, absent, fit, side, square, base)
    arrays: dict[str, Any] = {"qpi": None, **images}
    if not lazy:
        arrays |= {kind: _all(found, kind, verbose) for kind, found in images.items()}
    description = (
        f"{len(rows)} cells from {what}: {', '.join(sides['bf'])} images"
        + (f" with {', '.join(sides['qpi'])} as target" if "qpi" in sides else "")
        + f", {side} x {side} pixels."
    )
    from sklearn.utils import Bunch

    return Bunch(
        bf=arrays["bf"],
        qpi=arrays["qpi"],
        batch=batches,
        cell_type=texts.get("cell_type"),
        table=rows,
        report=report,
        DESCR=description,
    )


# --- files ---------------------------------------------------------------------------------------------------------

_Place = tuple[str, str | None]


def _locate(
    rows: Any, columns: Sequence[str], base: Path
) -> tuple[dict[str, list[_Place]], list[str], NDArray[np.bool_]]:
    """Return the file of each cell by column, the files that are not there, and the rows that lack one."""
    known: dict[str, tuple[_Place, bool]] = {}
    places: dict[str, list[_Place]] = {}
    absent: dict[str, None] = {}
    bad = np.zeros(len(rows), bool)
    for name in columns:
        found = places[name] = []
        for row, value in enumerate(rows[name].tolist()):
            if not isinstance(value, str | PathLike):
                if value is None or value != value or type(value).__name__ == "NAType":
                    value = ""
                else:
                    raise ValueError(
                        f"the column {name!r} must hold names of files, but row {row} (from 0) has {value!r:.80}."
                    )
            text = os.fspath(value).strip()
            if text not in known:
                known[text] = _place(text, base)
            place, exists = known[text]
            found.append(place)
            if not exists:
                bad[row] = True
                absent[text or f"(no name in column {name!r}, row {row})"] = None
    return places, list(absent), bad


def _place(text: str, base: Path) -> tuple[_Place, bool]:
    name, separator, inner = text.partition("::")
    path = base / name
    exists = bool(name) and path.exists()
    if not exists and "\\" in name and os.sep == "/":  # a table that was made on Windows
        path = base / PureWindowsPath(name).as_posix()
        exists = path.exists()
    return (str(path), inner if separator else None), exists


def _absent(absent: Sequence[str], n_rows: int, base: Path) -> str:
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    files = "1 file" if len(absent) == 1 else f"{len(absent)} files"
    return (
        f"{files} that the table names cannot be found (rows: {n_rows}): {', '.join(absent[:_NAMED])}{more}. "
        f"Looked for under {base.resolve()}; root names another folder, missing='drop' leaves these rows out."
    )


def _headers(places: Sequence[_Place], verbose: int) -> dict[_Place, Header]:
    """Read the header of each file once."""
    different = dict.fromkeys(places)
    headers: dict[_Place, Header] = {}
    same: dict[Header, Header] = {}
    with Progress("reading headers", len(different), unit="file", verbose=verbose) as bar:
        for place in different:
            with open_images(Path(place[0]), place[1]) as images:
                headers[place] = same.setdefault(images.header, images.header)  # most are alike
            bar.update()
    return headers


def _column(
    name: str,
    channel: int | None,
    places: Sequence[_Place],
    headers: Mapping[_Place, Header],
    axes: str | Mapping[str, str] | None,
    pages: NDArray[np.intp] | None,
) -> Column:
    """Find where the image of each cell is in the files of a column."""
    order = axes.get(name) if isinstance(axes, Mapping) else axes
    if order is not None and not isinstance(order, str):
        raise TypeError(f"axes must be letters such as 'YXC', or a mapping of columns to them, got {axes!r:.80}.")
    number: dict[_Place, int] = {}
    file = np.array([number.setdefault(place, len(number)) for place in places], dtype=np.intp)
    known: dict[Header, Layout] = {}
    layouts = []
    for place in number:
        header = headers[place]
        if header not in known:
            try:
                known[header] = layout_of(header, order and order.upper(), pages is not None, channel)
            except ValueError as error:
                raise ValueError(f"{_shown(place)}: {error}.") from error
        layouts.append(known[header])
    first = layouts[0].n_channels
    for place, layout in zip(number, layouts, strict=True):
        if layout.n_channels != first:
            raise ValueError(
                f"the images of column {name!r} differ in channels: {_shown(next(iter(number)))} has {first}, "
                f"{_shown(place)} has {layout.n_channels}; choose one, as in '{name}:0', or convert the files."
            )
    text = name if channel is None else f"{name}:{channel}"
    counts = np.array([np.inf if layout.n_pages is None else layout.n_pages for layout in layouts])
    if np.isinf(counts).all():
        return Column(text, tuple(number), layouts, file, None)
    assert pages is not None
    if (beyond := pages >= counts[file]).any():
        row = int(np.flatnonzero(beyond)[0])
        raise ValueError(
            f"{_shown(places[row])} holds {int(counts[file[row]])} images, and row {row} (from 0) asks for number "
            f"{pages[row]}; numbers count from 0."
        )
    return Column(text, tuple(number), layouts, file, pages)


def _shown(place: _Place) -> str:
    return place[0] if place[1] is None else f"{place[0]}::{place[1]}"


def _check_different(read: Mapping[str, Sequence[Column]]) -> None:
    """Refuse targets that are the brightfields."""
    if "qpi" in read and [_identity(column) for column in read["bf"]] == [_identity(column) for column in read["qpi"]]:
        raise ValueError("bf and target name the same images; name the column or the channel of each.")


def _identity(column: Column) -> Any:
    channels = tuple(layout.channels for layout in column.layouts)
    return column.files, channels, column.file.tobytes(), None if column.page is None else column.page.tobytes()


# --- sizes ---------------------------------------------------------------------------------------------------------


def _edges(columns: Sequence[Column], fit: str) -> NDArray[np.intp]:
    """Return height and width of the image of each cell, (n_cells, 2)."""
    found = [
        np.array([(layout.height, layout.width) for layout in column.layouts], dtype=np.intp)[column.file]
        for column in columns
    ]
    for column, other in zip(columns[1:], found[1:], strict=True):
        _check_same(found[0], other, columns[0], column, fit)
    return found[0]


def _check_same(one: NDArray[np.intp], other: NDArray[np.intp], first: Column, second: Column, fit: str) -> None:
    differ = (one != other).any(axis=1)
    if fit != "stretch" and differ.any():
        row = int(np.flatnonzero(differ)[0])
        sizes = [f"{height} x {width}" for height, width in (one[row], other[row])]
        raise ValueError(
            f"the images of a cell differ in size: row {row} (from 0) has {sizes[0]} pixels in {first.name!r} and "
            f"{sizes[1]} in {second.name!r}. They must show the same field; fit='stretch' scales each to image_size."
        )


def _square(edges: Mapping[str, NDArray[np.intp]], side: int, fit: str, frame: int | None) -> int | None:
    if fit == "stretch":
        return None
    if frame is not None:
        return frame
    return max(side, *(int(found.max()) for found in edges.values())) if fit == "pad" else side


def _report(
    images: Mapping[str, TableImages],
    read: Mapping[str, Sequence[Column]],
    edges: Mapping[str, NDArray[np.intp]],
    texts: Mapping[str, NDArray[np.str_]],
    n_rows: int,
    absent: Sequence[str],
    fit: str,
    side: int,
    square: int | None,
    base: Path,
) -> TableReport:
    if "qpi" in edges:
        _check_same(edges["bf"], edges["qpi"], read["bf"][0], read["qpi"][0], fit)
    n_cells = len(images["bf"])
    sample = np.unique(np.linspace(0, n_cells - 1, min(n_cells, _SAMPLE)).round().astype(int))
    found: dict[str, dict[str, Any]] = {}
    for kind, columns in read.items():
        dtypes: Counter[str] = Counter()
        axes: Counter[str] = Counter()
        for column in columns:
            cells = np.bincount(column.file, minlength=len(column.files)).tolist()
            for layout, number in zip(column.layouts, cells, strict=True):
                dtype = np.dtype(layout.dtype)
                order = " (big-endian)" if dtype.str[0] == ">" else ""
                dtypes[f"{dtype.name}{order}"] += number
                axes[layout.axes] += number
        values = images[kind][sample].reshape(-1, sum(column.n_channels for column in columns))
        span = list(zip(values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True))
        names = [column.name for column in columns]
        found[kind] = {
            "columns": names,
            "sizes": Counter(map(tuple, edges[kind].tolist())),
            "dtypes": dtypes,
            "axes": axes,
            "n_channels": values.shape[1],
            "range": span,
        }
    every = [column for columns in read.values() for column in columns]
    all_edges = np.stack(list(edges.values()))
    if square is None:
        n_padded, n_cut, n_rescaled = 0, 0, int((all_edges != side).any(axis=(0, 2)).sum())
    else:
        n_padded, n_cut = (int(odd.any(axis=(0, 2)).sum()) for odd in (all_edges < square, all_edges > square))
        n_rescaled = 0 if square == side else n_cells
    return TableReport(
        n_rows=n_rows,
        n_cells=n_cells,
        counts=count_cells(texts["batch"], texts.get("cell_type")),
        design=verdict_of(texts["batch"], texts.get("cell_type")),
        images=found,
        n_sampled=len(sample),
        missing=list(absent),
        duplicates=_duplicates(read["bf"]),
        fit=fit,
        image_size=side,
        frame=square,
        n_padded=n_padded,
        n_cut=n_cut,
        n_rescaled=n_rescaled,
        pages_per_chunk=max(layout.pages_per_chunk for column in every for layout in column.layouts),
        in_order=all(blocks_of([c]) is not None for c in every if max(x.pages_per_chunk for x in c.layouts) > 1),
        n_alpha=sum(layout.alpha is not None for column in every for layout in column.layouts),
        root=str(base.resolve()),
    )


def _duplicates(columns: Sequence[Column]) -> list[int]:
    parts = [part for column in columns for part in (column.file, column.page) if part is not None]
    first = np.unique(np.stack(parts, axis=1), axis=0, return_index=True)[1]
    return np.setdiff1d(np.arange(len(parts[0])), first).tolist()


def _all(images: TableImages, name: str, verbose: int) -> NDArray[np.float32]:
    """Read all images, a part at a time."""
    out = np.empty(images.shape, images.dtype)
    with Progress(f"reading {name}", len(images), unit="cell", verbose=verbose) as bar:
        for start in range(0, len(images), ROWS_AT_ONCE):
            part = images[start : start + ROWS_AT_ONCE]
            out[start : start + len(part)] = part
            bar.update(len(part))
    images.close()
    return out

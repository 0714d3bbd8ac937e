"""Profiles as a table in a file: Parquet, CSV or h5ad."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skbegan.io._predicting import as_table, checked, ending_of, needed, predictions
from skbegan.stored.atomic import check_new, in_one_step

if TYPE_CHECKING:
    import pandas as pd

    from skbegan.estimator import BeGANTransformer

__all__ = ["write_profiles"]

METADATA = "Metadata_"
FEATURES = "Cells_"
_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".h5ad")


def write_profiles(
    path: str | os.PathLike[str], est: BeGANTransformer, X_bf: Any, metadata: Any = None, *, overwrite: bool = False
) -> Path:
    """Write the profile of each cell, with what is known of the cell, to a table.

    Columns are named as CellProfiler names them, so that pycytominer tells labels from features without being told:
    ``Metadata_batch``, ``Cells_begantransformer0``.

    Parameters
    ----------
    path : path-like
        The file, in a folder that exists. Its suffix says what is written: ``.parquet``, ``.csv``, ``.csv.gz``, or
        ``.h5ad``, which holds what :func:`skbegan.to_anndata` returns, under its names.
    est : BeGANTransformer
        A fitted transformer.
    X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
        Brightfield images like those of fit; may be a memory map. Profiles are made and written in parts, except for
        ``.h5ad``.
    metadata : DataFrame or mapping, default=None
        What is known of each cell. Names of columns get the prefix ``Metadata_`` unless they have it. An index with a
        name becomes a column; one without is left out. Of a mapping, as
        :func:`skbegan.datasets.make_cell_images` returns, the one-dimensional arrays with an entry for each cell are
        taken, such as ``batch`` and ``cell_type``.
    overwrite : bool, default=False
        Whether an existing file is replaced. It is replaced at the very end: whenever something fails it is still what
        it was.

    Returns
    -------
    path : Path

    Raises
    ------
    ImportError
        Without pandas and, for Parquet, pyarrow, or for h5ad, anndata: the extra ``io``.
    FileExistsError
        If the file exists and `overwrite` is False.
    FileNotFoundError
        If the folder does not exist.
    NotFittedError
        If `est` is not fitted.
    TypeError, ValueError
        For input that cannot be used; before anything is computed.

    Notes
    -----
    Profiles are float32. CSV has as many digits as it takes to read them back without loss.

    References
    ----------
    Serrano, E., et al. Reproducible image-based profiling with Pycytominer. Nature Methods 22, 677 (2025).

    Examples
    --------
    >>> import tempfile, pandas, skbegan
    >>> cells = skbegan.datasets.make_cell_images(60, 2, 2, 16, random_state=0)
    >>> began = skbegan.BeGANTransformer(
    ...     base_width=4, n_features=8, pretrain_epochs=1, removal_epochs=0, random_state=0
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = skbegan.write_profiles(f"{folder}/p.csv", began.fit(cells.bf, cells.qpi), cells.bf, cells)
    ...     list(pandas.read_csv(path))[:3]
    ['Metadata_batch', 'Metadata_cell_type', 'Cells_begantransformer0']
    """
    path = Path(path)
    suffix = ending_of(path, _SUFFIXES)
    for package in {".parquet": ["pandas", "pyarrow"], ".h5ad": ["anndata"]}.get(suffix, ["pandas"]):
        needed(package, f"writing {suffix}")
    check_new(path, overwrite)
    bf = checked(est, X_bf, "write_profiles")
    if suffix == ".h5ad":
        from skbegan.io.anndata import to_anndata

        adata = to_anndata(est, bf, metadata)
        with in_one_step(path) as draft:
            adata.write_h5ad(draft)
        return path
    labels = _labels(metadata, len(bf))
    names = [f"{FEATURES}{name}" for name in est.get_feature_names_out()]
    chunks = predictions(est, bf, "features")
    if suffix == ".parquet":
        whole = _arrow(labels)
        with in_one_step(path) as draft:
            _write_parquet(draft, whole, names, chunks)
    else:
        with in_one_step(path) as draft:
            _write_csv(draft, labels, names, chunks, compressed=suffix == ".csv.gz")
    return path


def _labels(metadata: Any, n_cells: int) -> pd.DataFrame:
    table = as_table(metadata, n_cells, "metadata")
    kept = [name for name in table.index.names if name is not None]
    if clash := sorted({str(name) for name in kept} & set(table.columns)):
        raise ValueError(f"metadata has an index and a column of the name {clash[0]!r}; rename one")
    dropped = [level for level, name in enumerate(table.index.names) if name is None]
    if not kept:
        table = table.reset_index(drop=True)
    else:
        table = (table.reset_index(level=dropped, drop=True) if dropped else table).reset_index()
    names = [str(name) if str(name).startswith(METADATA) else f"{METADATA}{name}" for name in table.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"metadata has several columns that would be called {twice[0]!r}; rename them")
    table.columns = names
    return table


def _arrow(labels: pd.DataFrame) -> Any:
    arrow = needed("pyarrow", "writing .parquet")
    try:
        return arrow.Table.from_pandas(labels, preserve_index=False)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError) as error:
        raise ValueError(
            f"metadata cannot be written as Parquet: {error}; give each column one type, with "
            "metadata[column].astype(str) if need be"
        ) from error


def _write_parquet(path: Path, labels: Any, names: list[str], chunks: Iterator[np.ndarray]) -> None:
    arrow, parquet = needed("pyarrow", "writing .parquet"), needed("pyarrow.parquet", "writing .parquet")
    schema = labels.schema.remove_metadata()
    for name in names:
        schema = schema.append(arrow.field(name, arrow.float32()))
    start = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            part = labels.slice(start, len(chunk))
            columns = [column.combine_chunks() for column in part.columns]
            columns += [arrow.array(np.ascontiguousarray(column)) for column in chunk.T]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            start += len(chunk)


def _write_csv(
    path: Path, labels: pd.DataFrame, names: list[str], chunks: Iterator[np.ndarray], *, compressed: bool
) -> None:
    pd = needed("pandas", "writing .csv")
    start = 0
    text: dict[str, Any] = {"mode": "wt", "encoding": "utf-8", "newline": ""}
    with gzip.open(path, **text) if compressed else path.open(**text) as file:
        for chunk in chunks:
            part = labels.iloc[start : start + len(chunk)].reset_index(drop=True)
            pd.concat([part, pd.DataFrame(chunk, columns=names)], axis=1).to_csv(file, index=False, header=not start)
            start += len(chunk)

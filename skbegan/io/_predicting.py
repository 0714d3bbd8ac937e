"""What all that writes predictions shares: the estimator and its input, checked, and predictions in chunks."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skbegan._model_estimator import ModelEstimator
from skbegan.labels.tables import as_batch_table

if TYPE_CHECKING:
    import pandas as pd

PIXELS = 1 << 18  # of the least part that is predicted or written at once: 1 MB in float32
PARTS = 64  # of them at a time


def needed(name: str, what: str, extra: str = "io") -> Any:
    """Import a package that only some functions need, or say what installs it.

    Raises
    ------
    ImportError
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{what} needs {name.split(".")[0]}, which is not installed: pip install "skbegan[{extra}]"'
        ) from error


def ending_of(path: Path, known: Iterable[str]) -> str:
    """Return which of the known endings a file name has.

    Raises
    ------
    ValueError
        If it has none of them.
    """
    known = list(known)
    for ending in known:
        if path.name.lower().endswith(ending):
            return ending
    raise ValueError(f"path must end in {', '.join(known[:-1])} or {known[-1]}, got {path.name!r}")


def checked(est: Any, X_bf: Any, what: str) -> np.ndarray:
    """Return brightfields that a fitted transformer can be given, in the caller's array where possible.

    Raises
    ------
    TypeError
        If `est` is no transformer of this package.
    NotFittedError, ValueError
    """
    if not isinstance(est, ModelEstimator):
        raise TypeError(
            f"{what} takes a fitted BeGANTransformer, got {type(est).__name__}; of a Pipeline or a search it is the "
            "step or best_estimator_"
        )
    check_is_fitted(est)
    return est._checked(X_bf)


def check_pixel_size(pixel_size: Any) -> None:
    """Raise ValueError for anything but a positive number."""
    number = isinstance(pixel_size, int | float | np.number) and not isinstance(pixel_size, bool)
    if not number or not 0 < pixel_size < math.inf:
        raise ValueError(f"pixel_size must be a positive number of micrometres, got {pixel_size!r}")


def part_of(est: ModelEstimator) -> int:
    """Cells of the least part that is predicted at once, so that parts give the same bits as all cells at once do."""
    if est.get_params(deep=False)["inference"] == "minibatch":
        return int(est.get_params(deep=False)["minibatch_size"])
    from skbegan.core.inference import chunk_size

    return chunk_size(est.image_shape_[0])


def predictions(
    est: ModelEstimator, bf: np.ndarray, want: Literal["features", "images"], as_batch: Any = None
) -> Iterator[np.ndarray]:
    """Yield what ``transform`` or ``predict_image`` returns for consecutive cells of what :func:`checked` returned."""
    rows = PARTS * part_of(est)
    for start in range(0, len(bf), rows):
        values = est._infer(bf[start : start + rows], want)
        if as_batch is not None and est._model is not None:
            values = est._model.restyled(values, as_batch)
        if want == "images":
            values = np.moveaxis(values, 1, -1)
            values = values[..., 0] if len(est.target_shape_) == 2 else values
        yield values


def as_table(given: Any, n_cells: int, name: str) -> pd.DataFrame:
    """Return a copy of a table that describes cells, as a pandas DataFrame.

    Parameters
    ----------
    given : DataFrame of pandas or polars, mapping, or None
        Of a mapping, as :mod:`skbegan.datasets` returns, the columns are its one-dimensional arrays with an entry for
        each cell. Of a batch that is a table these are its columns and the label of each row.
    n_cells : int
    name : str
        What messages call it.

    Raises
    ------
    TypeError, ValueError
    """
    pd = needed("pandas", name)
    if given is None:
        return pd.DataFrame(index=pd.RangeIndex(n_cells))
    if isinstance(given, Mapping):
        if (batches := as_batch_table(given.get("batch"))) is not None:
            given = {**given, "batch": batches.labels, **batches.columns}
        columns = {key: values for key, values in given.items() if _is_column(values, n_cells)}
        for key in ("batch", "cell_type"):
            if given.get(key) is not None and key not in columns:
                raise ValueError(f"{name}[{key!r}] must have one entry for each of the {n_cells} cells of X_bf")
        table = pd.DataFrame({str(key): np.asarray(values) for key, values in columns.items()})
        return table if len(columns) else pd.DataFrame(index=pd.RangeIndex(n_cells))
    if hasattr(given, "to_pandas"):
        given = given.to_pandas()
    if not isinstance(given, pd.DataFrame):
        raise TypeError(
            f"{name} must be a DataFrame, or a mapping with arrays such as 'batch' and 'cell_type', one entry for each "
            f"cell; got {type(given).__name__}"
        )
    if len(given) != n_cells:
        raise ValueError(f"{name} has {len(given)} rows but X_bf has {n_cells} cells")
    table = given.copy()
    table.columns = [str(column) for column in table.columns]
    if not table.columns.is_unique:
        twice = sorted(set(table.columns[table.columns.duplicated()]))
        raise ValueError(f"{name} has several columns of the name {', '.join(map(repr, twice))}; rename them")
    return table


def _is_column(values: Any, n_cells: int) -> bool:
    return not isinstance(values, str | bytes | Mapping) and np.ndim(values) == 1 and len(values) == n_cells

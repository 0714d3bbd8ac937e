"""Profiles as an AnnData object, the table of single-cell software."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from skbegan._version import versions
from skbegan.config import Parameters
from skbegan.io._predicting import as_table, checked, needed, predictions
from skbegan.io.model_file import NOT_SAVED

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from skbegan.estimator import BeGANTransformer
    from skbegan.metrics import Audit

__all__ = ["to_anndata"]


def to_anndata(
    est: BeGANTransformer,
    X_bf: Any,
    obs: Any = None,
    images: bool | Mapping[str, Any] = False,
    *,
    audit: Audit | None = None,
) -> AnnData:
    """Return the profiles of cells with their labels, and with how they were made, as an AnnData object.

    Parameters
    ----------
    est : BeGANTransformer
        A fitted transformer.
    X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
        Brightfield images like those of fit.
    obs : DataFrame or mapping, default=None
        What is known of each cell. Of a mapping, as :func:`skbegan.datasets.make_cell_images` returns, the
        one-dimensional arrays with an entry for each cell are taken, such as ``batch`` and ``cell_type``.
    images : bool or dict, default=False
        Whether to predict the images too and to measure them, see :func:`skbegan.metrics.cell_measurements`. A dict
        holds arguments of that function: ``{"pixel_size": 0.5}``.
    audit : Audit, default=None
        What :func:`skbegan.metrics.audit` found of this model, to be kept with its profiles.

    Returns
    -------
    adata : AnnData of shape (n_cells, n_features)
        ``X``
            Profiles, float32, as ``est.transform`` gives them. ``var_names`` are those of
            ``est.get_feature_names_out()``.
        ``obs``
            The table given. Text, dates and whatever else is no number become categories of text, so that h5ad files
            can hold them; its index becomes text.
        ``uns["skbegan"]``
            ``"versions"`` of the packages; ``"parameters"`` of the estimator as numbers, truth values and text (None
            is ``"None"``); ``"audit"``, if given: the title, and tables of the measures, batches and types; for
            images ``"image_measurements"`` and ``"image_units"``, the names and units of the columns of the next.
        ``obsm["X_image"]``
            Measurements of the predicted images, with `images`. NaN where no cell was found.

    Raises
    ------
    ImportError
        Without anndata, the extra ``io``; for `images` without scikit-image, the extra ``measurements``.
    NotFittedError
        If `est` is not fitted.
    TypeError, ValueError
        For input that cannot be used.

    Notes
    -----
    Releases of anndata before 0.13 cannot write the text type of pandas 3. What is returned here holds text as objects,
    and ``write_h5ad`` works. Columns of text that you add yourself need ``.astype(object).astype("category")`` there,
    and what is read back from a file cannot be written again without the same.

    Examples
    --------
    >>> import skbegan
    >>> cells = skbegan.datasets.make_cell_images(60, 2, 2, 16, random_state=0)
    >>> began = skbegan.BeGANTransformer(
    ...     base_width=4, n_features=8, pretrain_epochs=1, removal_epochs=0, random_state=0
    ... )
    >>> adata = skbegan.to_anndata(began.fit(cells.bf, cells.qpi), cells.bf, obs=cells)
    >>> adata.shape, list(adata.obs)
    ((60, 8), ['batch', 'cell_type'])
    """
    anndata = needed("anndata", "to_anndata")
    pd = needed("pandas", "to_anndata")
    bf = checked(est, X_bf, "to_anndata")
    table = _plain(as_table(obs, len(bf), "obs"))
    about: dict[str, Any] = {"versions": dict(versions()), "parameters": _parameters(est)}
    if audit is not None:
        about["audit"] = _audit(audit)
    if images is not False:
        measured = _measurements(est, bf, {} if images is True else dict(images))
        about["image_measurements"] = np.array(measured.columns, dtype=object)
        about["image_units"] = np.array([measured.attrs["units"][name] for name in measured.columns], dtype=object)
    names = [str(name) for name in est.get_feature_names_out()]
    adata = anndata.AnnData(
        np.concatenate(list(predictions(est, bf, "features"))), obs=table, var=pd.DataFrame(index=_text(names))
    )
    adata.obs.index, adata.var.index = table.index, _text(names)  # AnnData makes them pandas' own text
    adata.uns["skbegan"] = about
    if images is not False:
        adata.obsm["X_image"] = measured.to_numpy(dtype=np.float64)
    return adata


def _measurements(est: Any, bf: np.ndarray, options: dict[str, Any]) -> pd.DataFrame:
    pd = needed("pandas", "to_anndata")
    from skbegan.metrics import cell_measurements

    parts = predictions(est, bf, "images")
    if options.keys() & {"masks", "foreground"}:  # which refer to all images
        parts = iter([np.concatenate(list(parts))])
    tables = [cell_measurements(part, **options) for part in parts]
    found = pd.concat(tables, ignore_index=True)
    found.attrs = tables[0].attrs
    return found


def _parameters(est: Any) -> dict[str, bool | int | float | str]:
    """Return the parameters in types that every reader of h5ad knows."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in est.get_params().items():
        if name in NOT_SAVED:
            continue
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, Parameters):
            value = type(value).__name__
        small = not isinstance(value, int) or abs(value) < 2**63
        found[name] = value if isinstance(value, bool | int | float | str) and small else str(value)
    return found


def _audit(audit: Audit) -> dict[str, Any]:
    found: dict[str, Any] = {"title": audit.title, "about": np.array(audit.about, dtype=object)}
    for name in ("measures", "per_batch", "per_type"):
        table = audit.to_frame(name)
        for column in table.columns.difference(["name", "section", "better"]):
            table[column] = table[column].astype(float)  # None is NaN
        found[name] = _plain(table)
    # A table too: the names of measures are keys of ours, but a table is read the same way everywhere.
    pd = needed("pandas", "to_anndata")
    found["skipped"] = _plain(pd.DataFrame({"why": list(audit.skipped.values())}, index=_text(audit.skipped)))
    return found


def _text(values: Any) -> pd.Index:
    """Return an index of Python strings: pandas 3 makes a type of its own of them, which older anndata cannot write."""
    pd = needed("pandas", "to_anndata")
    return pd.Index(np.array([str(value) for value in values], dtype=object), dtype=object)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in types that an h5ad file holds: numbers, truth values and categories of text."""
    pd = needed("pandas", "to_anndata")
    columns = {}
    for name, column in table.items():
        if isinstance(column.dtype, pd.ArrowDtype):
            column = column.convert_dtypes(dtype_backend="numpy_nullable")
        if column.dtype == object:
            column = column.infer_objects()
        if isinstance(column.dtype, pd.Float32Dtype | pd.Float64Dtype):
            column = column.astype(np.float64)
        if not pd.api.types.is_numeric_dtype(column.dtype):  # truth values are numbers too
            column = pd.Series(_categories(column), index=column.index)
        columns[name] = column.array
    plain = pd.DataFrame(columns, index=_text(table.index))
    plain.columns = _text(table.columns)
    return plain


def _categories(column: pd.Series) -> pd.Categorical:
    pd = needed("pandas", "to_anndata")
    found = column.array if isinstance(column.dtype, pd.CategoricalDtype) else None
    if found is None:
        codes, levels = pd.factorize(column.astype(object).map(str, na_action="ignore"), sort=True)
        return pd.Categorical.from_codes(codes, categories=_text(levels))
    if pd.api.types.is_numeric_dtype(found.categories.dtype):
        return found
    return pd.Categorical.from_codes(found.codes, categories=_text(found.categories), ordered=found.ordered)

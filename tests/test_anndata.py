"""Profiles as AnnData: what it holds, what h5ad files hold, and that scanpy works with it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import skbegan
from skbegan import BeGANTransformer
from skbegan.io import _predicting
from skbegan.metrics import Audit, Measure

anndata = pytest.importorskip("anndata")


def test_anndata_holds_profiles_labels_and_how_they_were_made(fitted, cells):
    adata = skbegan.to_anndata(fitted, cells.bf, obs=cells)
    assert adata.X.dtype == np.float32
    assert np.array_equal(adata.X, fitted.transform(cells.bf))
    assert list(adata.var_names) == list(fitted.get_feature_names_out())
    assert list(adata.obs) == ["batch", "cell_type"]
    assert list(adata.obs["batch"]) == list(cells.batch)
    about = adata.uns["skbegan"]
    assert about["versions"]["skbegan"] == skbegan.__version__
    assert about["parameters"]["n_features"] == 16
    assert about["parameters"]["removal"] == "OnlineRemoval"
    assert about["parameters"]["removal__warmup_epochs"] == 1
    assert about["parameters"]["reference_batch"] == "None"
    assert "memory" not in about["parameters"]


def test_h5ad_is_written_and_read_back_whatever_the_columns_are(fitted, cells, cell_table, tmp_path):
    before = cell_table.copy()
    cell_table.index = [f"cell {i}" for i in range(90)]
    adata = skbegan.to_anndata(fitted, cells.bf, obs=cell_table)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert np.array_equal(back.X, fitted.transform(cells.bf))
    assert list(back.obs) == list(cell_table)
    assert list(back.obs_names) == list(cell_table.index)
    for name in ("batch", "cell_type", "well", "control", "levels"):
        assert list(back.obs[name]) == list(cell_table[name]), name
    assert back.obs["count"].isna().sum() == 1 and back.obs["count"].iloc[4] == 4
    assert back.obs["day"].iloc[0].startswith("2024-01-31") and back.obs["date"].iloc[1] == "2024-01-02"
    assert list(back.obs["note"].isna()) == [i % 2 == 1 for i in range(90)]
    assert back.obs["levels"].cat.ordered
    assert back.obs["dose"].dtype == np.float32
    assert back.uns["skbegan"]["parameters"]["n_features"] == 16
    assert back.uns["skbegan"]["versions"]["torch"]
    pd.testing.assert_frame_equal(cell_table.reset_index(drop=True), before)


def test_a_table_without_names_for_its_rows_and_none_at_all(fitted, cells, tmp_path):
    for obs in (None, pd.DataFrame({"batch": cells.batch}), {"batch": list(cells.batch), "title": "x"}):
        adata = skbegan.to_anndata(fitted, cells.bf, obs=obs)
        adata.write_h5ad(tmp_path / "a.h5ad")
        assert list(anndata.read_h5ad(tmp_path / "a.h5ad").obs_names[:2]) == ["0", "1"]
        assert list(adata.obs) == ([] if obs is None else ["batch"])


def test_a_polars_table(fitted, cells):
    polars = pytest.importorskip("polars")
    adata = skbegan.to_anndata(fitted, cells.bf, obs=polars.DataFrame({"batch": list(cells.batch)}))
    assert list(adata.obs["batch"]) == list(cells.batch)


def test_the_audit_travels_with_the_profiles(fitted, cells, tmp_path):
    leakage = Measure("leakage", "features", 0.1, 0.02, 0.0, "lower", 0.9, None, 90)
    mae = Measure("mean absolute error", "images", float("nan"), None, None, None, None, None, 90)
    rows = {"leakage_linear": leakage, "mae": mae}
    per_batch = {label: {"n_cells": 30, "mae": 0.1} for label in ("day 1/2", "day 2/2", 3)}
    audit = Audit("an audit", ["90 cells", "5 folds"], rows, per_batch, {}, {"truth_mae": "no batch-free images"})
    adata = skbegan.to_anndata(fitted, cells.bf, obs=cells, audit=audit)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad").uns["skbegan"]["audit"]
    assert back["title"] == audit.title and list(back["about"]) == audit.about
    assert list(back["measures"].index) == list(audit.measures)
    for key, measure in audit.measures.items():
        assert back["measures"].loc[key, "value"] == pytest.approx(measure.value, nan_ok=True)
        assert pd.isna(back["measures"].loc[key, "chance"]) == (measure.chance is None)
    assert list(back["per_batch"].index) == [str(label) for label in audit.per_batch]
    assert dict(back["skipped"]["why"]) == audit.skipped


def test_measurements_of_the_predicted_images(fitted, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(_predicting, "PARTS", 1)  # several parts
    monkeypatch.setattr(_predicting, "part_of", lambda est: 32)
    adata = skbegan.to_anndata(fitted, cells.bf, images={"pixel_size": 0.5})
    expected = skbegan.metrics.cell_measurements(fitted.predict_image(cells.bf), pixel_size=0.5)
    about = adata.uns["skbegan"]
    assert list(about["image_measurements"]) == list(expected) and "dry_mass" in expected
    assert list(about["image_units"]) == list(expected.attrs["units"].values())
    np.testing.assert_allclose(adata.obsm["X_image"], expected.to_numpy(), rtol=1e-3)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").obsm["X_image"].shape == expected.shape
    assert "X_image" not in skbegan.to_anndata(fitted, cells.bf).obsm


@pytest.mark.slow
def test_a_real_audit_too(fitted, cells, tmp_path):
    audit = skbegan.metrics.audit(fitted, cells.bf, cells.qpi, cells.batch, cells.cell_type, random_state=0)
    skbegan.to_anndata(fitted, cells.bf, audit=audit).write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad").uns["skbegan"]["audit"]
    assert list(back["measures"].index) == list(audit.measures)
    assert list(back["per_type"].index) == [str(label) for label in audit.per_type]


@pytest.mark.slow
def test_scanpy_works_with_it(fitted, cells, tmp_path):
    scanpy = pytest.importorskip("scanpy")
    adata = skbegan.to_anndata(fitted, cells.bf, obs=cells)
    scanpy.pp.pca(adata, n_comps=5)
    scanpy.pp.neighbors(adata, n_neighbors=5)
    assert adata.obsm["X_pca"].shape == (90, 5)
    assert adata.obsp["connectivities"].shape == (90, 90)
    chosen = adata[adata.obs["batch"] == cells.batch[0]].copy()
    chosen.write_h5ad(tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").n_obs == np.sum(cells.batch == cells.batch[0])


def test_profiles_as_h5ad(fitted, cells, tmp_path):
    path = skbegan.write_profiles(tmp_path / "p.h5ad", fitted, cells.bf, cells)
    back = anndata.read_h5ad(path)
    assert np.array_equal(back.X, fitted.transform(cells.bf)) and list(back.obs) == ["batch", "cell_type"]


def test_what_cannot_be_taken_is_refused_before_anything_is_computed(fitted, cells, monkeypatch):
    monkeypatch.setattr(BeGANTransformer, "_infer", None)
    with pytest.raises(ValueError, match="obs has 89 rows but X_bf has 90 cells"):
        skbegan.to_anndata(fitted, cells.bf, pd.DataFrame({"batch": cells.batch[:-1]}))
    with pytest.raises(ValueError, match=r"obs\['batch'\] must have one entry for each of the 90 cells"):
        skbegan.to_anndata(fitted, cells.bf, {"batch": cells.batch[:-1]})
    with pytest.raises(TypeError, match="obs must be a DataFrame"):
        skbegan.to_anndata(fitted, cells.bf, list(cells.batch))
    with pytest.raises(TypeError, match="to_anndata takes a fitted BeGANTransformer, got dict"):
        skbegan.to_anndata({}, cells.bf)

"""Every kind of label that fit accepts can be saved, loaded, audited and plotted."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from matplotlib import pyplot as plt

from skbegan import BeGANTransformer, load, save
from skbegan.metrics import batch_leakage
from skbegan.plotting import CellImagesDisplay, FeatureMapDisplay

DAYS = [datetime.date(2024, 3, day) for day in (1, 2, 5)]
KINDS: dict[str, list[Any]] = {
    "str": ["a", "b", "c"],
    "numpy str": list(np.array(["a", "b", "c"])),
    "bytes": [b"a", b"b", b"c"],
    "int": [3, 7, 11],
    "numpy int": list(np.array([3, 7, 11], np.uint16)),
    "float": [0.5, 1.0, 2.5],
    "date": DAYS,
    "datetime": [datetime.datetime(d.year, d.month, d.day, 9, 30) for d in DAYS],
    "datetime64": list(np.array(DAYS, "datetime64[D]")),
    "timestamp with zone": [pd.Timestamp(d, tz="Europe/Vienna") for d in DAYS],
    "period": [pd.Period(d, "D") for d in DAYS],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("container", [list, lambda values: pd.Series(values, index=np.arange(len(values))[::-1])])
def test_labels_are_saved_loaded_audited_and_plotted(cells: Any, tmp_path: Path, kind: str, container: Any) -> None:
    codes = [np.unique(labels, return_inverse=True)[1] for labels in (cells.batch, cells.cell_type)]
    batch, cell_type = (container([KINDS[kind][code] for code in row]) for row in codes)
    est = BeGANTransformer(**(TINY | {"pretrain_epochs": 1, "removal_epochs": 0}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est.fit(cells.bf, cells.qpi, batch, cell_type)
        save(est, tmp_path / "m")
        back = load(tmp_path / "m")
    assert len(back.batches_) == 3 and back.batches_.dtype == est.batches_.dtype
    np.testing.assert_array_equal(back.batches_, est.batches_)
    features = back.transform(cells.bf)
    plain = batch_leakage(features, cells.batch, cells.cell_type, probe="knn", random_state=0)
    assert batch_leakage(features, batch, cell_type, probe="knn", random_state=0) == pytest.approx(plain)
    shown = FeatureMapDisplay.from_features(features, batch=batch, cell_type=cell_type, method="pca")
    assert shown.figure_ is not None
    images = CellImagesDisplay.from_estimator(back, cells.bf, cells.qpi, labels=batch)
    assert images.figure_ is not None
    plt.close("all")

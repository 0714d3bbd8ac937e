"""Tiny cells and models that many tests share."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from typing import Any

# Before torch is imported, and for the processes that tests start: test processes share the cores, and OpenMP's threads
# of several processes spin while they wait for each other (a suite of 17 minutes took over 90). Numba, which UMAP and
# scanpy use, sets the number of threads of the same OpenMP library.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images

matplotlib.use("Agg")

TINY: dict[str, Any] = {
    "base_width": 4,
    "n_features": 16,
    "pretrain_epochs": 2,
    "removal_epochs": 2,
    "refresh_epochs": 1,
    "removal": OnlineRemoval(warmup_epochs=1),
    "classifier_epochs": 2,
    "minibatch_size": 16,
    "device": "cpu",
    "random_state": 0,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks are fastest on one thread, and test processes that share two cores do not slow each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cells() -> Any:
    """90 simulated cells of side 16: 3 types x 3 batches, each type in 2 batches."""
    return make_cell_images(90, 3, 3, 16, batches_per_type=2, random_state=0)


@pytest.fixture(scope="session")
def fitted(cells: Any) -> BeGANTransformer:
    """A tiny fitted model; do not change it."""
    return BeGANTransformer(**TINY).fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def cell_table() -> pd.DataFrame:
    """Columns of all kinds that a laboratory's table has, of 90 cells."""
    n = 90
    return pd.DataFrame(
        {
            "batch": [f"day {i % 3}" for i in range(n)],
            "cell_type": pd.Categorical([("A549", "H69", "H358")[i % 3] for i in range(n)]),
            "well": np.array([f"B{i % 9:02}" for i in range(n)], dtype=object),
            "dose": np.linspace(0, 1, n, dtype=np.float32),
            "count": pd.array([None if i == 3 else i for i in range(n)], dtype="Int64"),
            "control": [i % 2 == 0 for i in range(n)],
            "day": pd.date_range("2024-01-31", periods=n),
            "date": [datetime.date(2024, 1, 1 + i % 28) for i in range(n)],
            "note": [None if i % 2 else "µ" for i in range(n)],
            "lasted": pd.to_timedelta(range(n), unit="min"),
            "levels": pd.Categorical(np.arange(n) % 4, ordered=True),
        }
    )

"""Same seed, same features; and nothing global is read or changed on the way."""

from __future__ import annotations

import inspect
import os
import random
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from test_estimator_warm_start import began, fit

import skbegan
from skbegan import OnlineRemoval, PublishedRemoval
from skbegan.datasets import make_cell_images


def global_state() -> dict[str, Any]:
    """All that a library could change behind its user's back."""
    legacy = np.random.get_state()  # noqa: NPY002
    return {
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": (legacy[0], legacy[1].tolist(), *legacy[2:]),
        "python seed": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        ),
        "mkldnn": torch.backends.mkldnn.enabled,
        "autocast": torch.is_autocast_enabled("cpu"),
        "sklearn": sklearn.get_config(),
        "numpy errors": np.geterr(),
        "numpy print": np.get_printoptions(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
    }


def assert_unchanged(before: dict[str, Any], what: str) -> None:
    for name, value in global_state().items():
        assert value == before[name], f"{what} changed {name}"


@pytest.mark.parametrize("removal", [OnlineRemoval(warmup_epochs=0), PublishedRemoval()], ids=["online", "published"])
def test_global_state_is_left_alone(cells, tmp_path, removal):
    fit(began(removal=removal), cells)  # torch imports more when it is first used
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = global_state()
        during = []
        params = {"removal": removal, "memory": str(tmp_path / "cache"), "checkpoint_dir": tmp_path, "verbose": 0}
        est = began(**params, callback=lambda info: during.append(assert_unchanged(before, info.stage)))
        fit(est, cells)
        assert len(during) == 4
        assert_unchanged(before, "fit")
        fit(began(**params, random_state=None), cells)
        assert_unchanged(before, "fit without a seed")
        for method in ("transform", "predict_image", "recalibrate"):
            getattr(est, method)(cells.bf)
            assert_unchanged(before, method)
        est.score(cells.bf, cells.qpi, cells.batch, cells.cell_type)
        assert_unchanged(before, "score")
        skbegan.save(est.set_params(callback=None, memory=None), tmp_path / "m")
        skbegan.load(tmp_path / "m")
        assert_unchanged(before, "save and load")
        with pytest.raises(ValueError, match="pixels"):
            est.fit(np.zeros((9, 5, 5)), np.zeros((9, 5, 5)))
        assert_unchanged(before, "a refused fit")
        make_cell_images(10, 2, 2, 16, random_state=0)
        assert_unchanged(before, "make_cell_images")


@pytest.mark.slow
def test_fit_within_a_callers_own_settings(cells):
    """Whatever the caller has set, fit trains as ever and leaves it."""
    expected = fit(began(), cells).transform(cells.bf)
    torch.manual_seed(7)
    random.seed(7)
    for setting in (
        sklearn.config_context(enable_metadata_routing=True),
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        np.errstate(all="raise"),
    ):
        with setting:
            before = global_state()
            est = fit(began(), cells)
            np.testing.assert_array_equal(est.transform(cells.bf), expected)
            assert_unchanged(before, "fit")
        np.testing.assert_array_equal(est.transform(cells.bf), expected)
        est.recalibrate(cells.bf)  # possible, whatever was set when the generator was built


@pytest.mark.slow
def test_random_state_is_an_integer_an_instance_or_none(cells):
    expected = fit(began(random_state=3), cells).transform(cells.bf)
    for same in (np.int64(3), np.random.RandomState(3)):
        np.testing.assert_array_equal(fit(began(random_state=same), cells).transform(cells.bf), expected)
    stream = np.random.RandomState(3)
    first, second = (fit(began(random_state=stream), cells).transform(cells.bf) for _ in range(2))
    np.testing.assert_array_equal(first, expected)
    assert not np.array_equal(second, expected)  # an instance goes on, as everywhere in scikit-learn
    unseeded = [fit(began(random_state=None), cells).transform(cells.bf) for _ in range(2)]
    assert not np.array_equal(*unseeded)
    for wrong in (np.random.default_rng(0), "seed", 1.5):
        with pytest.raises(ValueError, match="cannot be used to seed"):
            fit(began(random_state=wrong), cells)


def with_random_state() -> list[Any]:
    """Every public function that takes a random_state."""
    modules = (skbegan.datasets, skbegan.metrics, skbegan.plotting, skbegan)
    found = [getattr(module, name) for module in modules for name in module.__all__]
    found = [item for item in found if inspect.isfunction(item)]
    return [item for item in found if "random_state" in inspect.signature(item).parameters]


@pytest.mark.slow
@pytest.mark.parametrize("function", with_random_state(), ids=lambda function: function.__name__)
def test_no_function_takes_none_for_the_global_random_state(cells, function):
    """As scikit-learn's check_random_state does. Whoever draws from the global state changes it."""
    features = cells.bf.reshape(len(cells.bf), -1)[:, ::16]
    arguments = {"features": features, "images": cells.bf, "batch": cells.batch, "cell_type": cells.cell_type}
    arguments |= {"X_bf": cells.bf, "y_qpi": cells.qpi, "probes": ["linear"], "n_repeats": 1, "image_size": 16}
    arguments |= {"measurements": {"area": features[:, 0], "mass": features[:, 1]}}
    names = inspect.signature(function).parameters
    given: dict[str, Any] = {name: value for name, value in arguments.items() if name in names}
    if "estimator" in names:
        given["estimator"] = fit(began(), cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = global_state()
        function(**given, random_state=None)
        assert_unchanged(before, function.__name__)

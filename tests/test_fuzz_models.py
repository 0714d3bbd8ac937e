"""Damaged and forged model files and checkpoints, and the round trip of any model. Many more: slow/fuzz_models.py."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_fuzzing import IMAGES, outcome, read, targets
from sklearn.base import clone
from test_model_file import assert_same

import skbegan
from skbegan import OnlineRemoval, ProfileAlignment, PublishedRemoval, _rules, config

SLOW = Path(__file__).parent / "slow" / "fuzz_models.py"
NAMES = ["model file", "model file, forged", "checkpoint"]
QUICK = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@functools.cache
def files() -> dict[str, Any]:
    return targets()


@pytest.mark.parametrize("name", [*NAMES, "checkpoint, forged"])
def test_sound_files_are_right(name, tmp_path):
    for content in files()[name].files:
        (tmp_path / "sound").write_bytes(content)
        assert read(files()[name], content, tmp_path / "sound") == "right"


@pytest.mark.parametrize("name", NAMES)
@settings(QUICK, max_examples=200)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_and_forged_files_are_refused_or_right(name, seed):
    with tempfile.TemporaryDirectory() as folder:
        result, _ = outcome(files()[name], seed, Path(folder) / "damaged")
        assert result in ("refused", "refused in use", "right")


@settings(QUICK, max_examples=100)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused(content, headed):
    sound = files()["model file"].files[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(sound[:8] + content if headed else content)
        with pytest.raises(ValueError, match=r"model is not a model that this skbegan|Git LFS"):
            skbegan.load(path)


def run(name: str, n: int) -> None:
    done = subprocess.run([sys.executable, str(SLOW), str(n), name], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {name} | {n} |" in done.stdout


@pytest.mark.slow
def test_forged_checkpoints():
    """In a process of its own: moments of other shapes once crashed the optimizer."""
    run("checkpoint, forged", 25)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n"), [*((name, 300) for name in NAMES), ("checkpoint, forged", 60)])
def test_many_damaged_and_forged_files(name, n):
    run(name, n)


# Round trip -----------------------------------------------------------------------------------------------------------


def allowed(rule: _rules.Rule) -> st.SearchStrategy[Any]:
    """What a parameter with this rule may be."""
    match rule:
        case _rules.Count(low=low):
            return st.integers(low, 2**40)
        case _rules.Number(high=high, positive=positive):
            return st.floats(0, min(high, 1e300), exclude_min=positive)
        case _rules.Numbers():
            return st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=4).map(tuple)
        case _rules.Verbosity():
            return st.integers(0, 3)
        case _rules.Flag():
            return st.booleans()
        case _rules.FlagOr(option=option):
            return st.sampled_from((True, False, option))
        case _rules.Choice(options=options):
            return st.sampled_from(options)
        case config.Instance(kind="removal"):
            return st.one_of(holders(OnlineRemoval), holders(PublishedRemoval))
        case config.Instance(kind="profile"):
            return holders(ProfileAlignment)
    raise AssertionError(f"no values for {rule}")


def holders(kind: type) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{field.name: allowed(field.metadata["rule"]) for field in dataclasses.fields(kind)})


OF_THE_MACHINE = {"memory": None, "checkpoint_dir": None, "callback": None}
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5))
HISTORIES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SCALARS, inner, max_size=3))
)


def configurations() -> st.SearchStrategy[dict[str, Any]]:
    """Values for every parameter of the estimator, drawn from its own rule."""
    by_hand = {
        "random_state": st.one_of(st.none(), st.integers(0, 2**32 - 1)),
        "reference_batch": SCALARS.filter(lambda value: value == value),  # NaN is equal to nothing
        "device": st.sampled_from(["auto", "cpu"]),
        "profile": holders(ProfileAlignment),
        "validation_fraction": st.floats(0, 0.9),
        **{name: st.just(value) for name, value in OF_THE_MACHINE.items()},
    }
    ruled = {}
    for stage in (config.Architecture, config.Pretraining, config.Removal, config.Runtime):
        for field in dataclasses.fields(stage):
            name = field.metadata["name"] or field.name
            if name in skbegan.BeGANTransformer().get_params(deep=False) and name not in by_hand:
                ruled[name] = allowed(field.metadata["rule"])
    drawn = {**ruled, **by_hand}
    assert drawn.keys() == skbegan.BeGANTransformer().get_params(deep=False).keys()
    return st.fixed_dictionaries(drawn)


@pytest.mark.slow
@settings(QUICK, max_examples=60)
@given(
    parameters=configurations(),
    history=st.dictionaries(st.text(max_size=5), HISTORIES, max_size=3),
    labels=st.one_of(
        st.lists(st.text("abcü \u4e2d", min_size=1, max_size=4), min_size=1, max_size=5, unique=True).map(np.array),
        st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=5, unique=True).map(np.array),
        st.lists(st.floats(allow_nan=False), min_size=1, max_size=5, unique=True).map(np.array),
    ),
)
def test_any_model_comes_back_as_it_was_saved(parameters, history, labels):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model"
        path.write_bytes(files()["model file"].files[0])
        fitted = skbegan.load(path)
        est = clone(fitted).set_params(**parameters)
        learned = config.Config.of(est.get_params(deep=False)).learned
        est._adopt(dataclasses.replace(fitted._model, history=history, batches=labels, config=learned))
        skbegan.save(est, path)
        again = skbegan.load(path)
        assert_same(again.get_params(deep=False), est.get_params(deep=False))
        assert_same(again.history_, history)
        assert_same(again.batches_, labels)
        assert again._model.config == learned
        for use in ("transform", "predict_image"):
            np.testing.assert_array_equal(getattr(again, use)(IMAGES[..., 0]), getattr(est, use)(IMAGES[..., 0]))

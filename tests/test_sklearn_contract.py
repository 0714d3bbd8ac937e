"""The contract of a scikit-learn estimator, as checks of our own.

scikit-learn's ``check_estimator`` stops at estimators of images, so what it would check, and what Pipelines and
searches rely on, is written here as named checks in its spirit. Each runs over several configurations of the estimator,
on cells of the kind that the configuration is for.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_classifier, is_clusterer, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted

from skbegan import BeGANTransformer, OnlineRemoval, PublishedRemoval
from skbegan.datasets import make_cell_images
from skbegan.labels.arrays import have_labels

TINY: dict[str, Any] = {
    "base_width": 2,
    "n_features": 8,
    "pretrain_epochs": 1,
    "removal_epochs": 1,
    "removal": OnlineRemoval(warmup_epochs=0),
    "classifier_epochs": 1,
    "minibatch_size": 16,
    "device": "cpu",
    "random_state": 0,
}
N_CELLS = 48


class Configuration:
    """An unfitted estimator, the cells it is for, and one fitted model, which checks must not change."""

    def __init__(self, params: dict[str, Any], side: int = 16, channels: tuple[int, int] | None = None) -> None:
        self.params = {**TINY, **params}
        cells = make_cell_images(N_CELLS, 2, 2, side, random_state=0)
        self.bf, self.qpi, self.batch, self.cell_type = cells.bf, cells.qpi, cells.batch, cells.cell_type
        if channels is not None:
            self.bf = np.stack([self.bf**p for p in range(1, channels[0] + 1)], axis=-1)
            self.qpi = np.stack([self.qpi**p for p in range(1, channels[1] + 1)], axis=-1)
        self._fitted: BeGANTransformer | None = None

    def new(self, **params: Any) -> BeGANTransformer:
        return BeGANTransformer(**{**self.params, **params})

    @property
    def data(self) -> dict[str, Any]:
        return {"X_bf": self.bf, "y": self.qpi, "batch": self.batch, "cell_type": self.cell_type}

    def fit(self, **params: Any) -> BeGANTransformer:
        return self.new(**params).fit(**self.data)

    @property
    def fitted(self) -> BeGANTransformer:
        if self._fitted is None:
            self._fitted = self.fit()
        return self._fitted


CONFIGURATIONS = {
    "default": Configuration({}),
    "published": Configuration({"removal": PublishedRemoval(), "batch_target": "reference"}),
    "pretrained": Configuration({"removal_epochs": 0, "warm_start": True}),
    "minibatch": Configuration({"inference": "minibatch", "standardize": False, "augment": False}),
    "float64": Configuration({"precision": "float64", "validation_fraction": 0.0}),
    "channels": Configuration({"batch_target": "uniform"}, channels=(2, 3)),
}
# Costly, for single checks.
LARGER = {"larger": Configuration({"batch_target": "uniform"}, side=32, channels=(2, 3))}


@pytest.fixture(params=CONFIGURATIONS)
def config(request: Any) -> Configuration:
    return (CONFIGURATIONS | LARGER)[request.param]


# scikit-learn's own checks --------------------------------------------------------------------------------------------


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scikit-learn says that the checks of estimators of tables are left out

    @parametrize_with_checks([c.new() for c in CONFIGURATIONS.values()])
    def test_what_scikit_learn_checks_itself(estimator, check):
        check(estimator)


# Parameters -----------------------------------------------------------------------------------------------------------


def test_check_init_only_stores(config):
    parameters = inspect.signature(BeGANTransformer.__init__).parameters
    markers = {name: object() for name in parameters if name != "self"}
    est = BeGANTransformer(**markers)
    assert vars(est) == markers  # nothing more, nothing less, nothing changed
    assert all(vars(est)[name] is marker for name, marker in markers.items())


def test_check_get_and_set_params(config):
    est = config.new()
    params = est.get_params()
    assert est.set_params(**params) is est
    assert est.get_params() == params
    assert est.set_params(batch_weight=7.5).batch_weight == 7.5
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        est.set_params(colour=1)


def test_check_clone_takes_parameters_and_nothing_else(config):
    fitted = config.fitted
    for copied in (clone(fitted), clone(config.new())):
        assert copied is not fitted
        assert copied.get_params() == fitted.get_params()
        assert set(vars(copied)) == set(fitted.get_params(deep=False))
        with pytest.raises(NotFittedError):
            check_is_fitted(copied)


def test_check_fit_changes_no_parameter(config):
    before = config.new().get_params()
    assert config.fitted.get_params() == before
    mutable = config.new(random_state=np.random.RandomState(0))
    assert mutable.fit(**config.data).random_state is mutable.get_params()["random_state"]


def test_check_bad_parameters_are_refused_by_fit_and_not_before(config):
    est = config.new().set_params(removal_epochs=-1)
    assert est.get_params()["removal_epochs"] == -1
    with pytest.raises(ValueError, match="removal_epochs must be at least 0, got -1"):
        est.fit(**config.data)
    assert not [name for name in vars(est) if name not in est.get_params()]


# Fit ------------------------------------------------------------------------------------------------------------------


def test_check_fit_returns_self_and_learns_attributes_with_underscore(config):
    est = config.new()
    assert est.fit(**config.data) is est
    learned = [name for name in vars(est) if name not in est.get_params()]
    assert {"batches_", "cell_types_", "image_shape_", "target_shape_", "history_", "device_"} <= set(learned)
    assert all(name.endswith("_") or name.startswith("_") for name in learned)
    for name in learned:  # every public one is documented
        assert name.startswith("_") or re.search(rf"^    .*\b{name}\b.* : ", BeGANTransformer.__doc__, re.MULTILINE), (
            name
        )
    check_is_fitted(est)


def test_check_fit_is_idempotent_with_a_seed(config):
    first = config.fitted.transform(config.bf)
    est = pickle.loads(pickle.dumps(config.fitted)).set_params(warm_start=False)
    np.testing.assert_array_equal(est.fit(**config.data).transform(config.bf), first)
    np.testing.assert_array_equal(clone(est).fit_transform(**config.data), first)


def test_check_a_new_fit_leaves_nothing_of_the_old_one(config):
    est = config.new(warm_start=False, removal_epochs=1)
    other = make_cell_images(40, 3, 3, 16, batches_per_type=2, random_state=5)
    est.fit(other.bf, other.qpi, other.batch, other.cell_type)
    est.set_params(**{**config.params, "warm_start": False}).fit(**config.data)
    fresh = config.fitted
    assert set(vars(est)) == set(vars(fresh))
    np.testing.assert_array_equal(est.transform(config.bf), fresh.transform(config.bf))
    np.testing.assert_array_equal(est.batches_, fresh.batches_)
    assert est.image_shape_ == fresh.image_shape_ and est.history_.keys() == fresh.history_.keys()


def test_check_data_are_not_changed(config):
    before = copy.deepcopy(config.data)
    est = config.fit()
    est.transform(config.bf)
    est.predict_image(config.bf)
    est.score(**config.data)
    for name, array in config.data.items():
        np.testing.assert_array_equal(array, before[name])
        assert array.dtype == before[name].dtype


def test_check_frozen_and_strided_arrays(config):
    frozen = copy.deepcopy(config.data)
    for array in frozen.values():
        array.flags.writeable = False
    expected = config.fitted.transform(config.bf)
    np.testing.assert_array_equal(config.new().fit(**frozen).transform(frozen["X_bf"]), expected)
    strided = {name: np.repeat(array, 2, axis=0)[::2] for name, array in config.data.items()}
    strided["X_bf"], strided["y"] = np.asfortranarray(strided["X_bf"]), strided["y"][::-1][::-1]
    assert not strided["X_bf"].flags.c_contiguous and not strided["batch"].flags.c_contiguous
    np.testing.assert_array_equal(config.new().fit(**strided).transform(strided["X_bf"]), expected)


def test_check_a_failed_fit_leaves_the_estimator_as_it_was(config):
    for est in (config.new(warm_start=False), pickle.loads(pickle.dumps(config.fitted)).set_params(warm_start=False)):
        before = set(vars(est))
        with pytest.raises(ValueError, match="no target images"):
            est.fit(config.bf, None, config.batch, config.cell_type)
        assert set(vars(est)) == before


# Refusals -------------------------------------------------------------------------------------------------------------


def test_check_sample_counts(config):
    data = config.data
    for name, message in {
        "y": rf"X_bf has {N_CELLS} cells but y_qpi has {N_CELLS - 1}",
        "batch": rf"batch has {N_CELLS - 1} labels for {N_CELLS} cells",
        "cell_type": rf"cell_type has {N_CELLS - 1} labels for {N_CELLS} cells",
    }.items():
        short = {**data, name: data[name][:-1]}
        with pytest.raises(ValueError, match=message):
            config.new().fit(**short)
    for name in ("batch", "cell_type"):
        with pytest.raises(ValueError, match=f"{name} has {N_CELLS - 1} labels for {N_CELLS} cells"):
            config.fitted.score(**{**data, name: data[name][:-1]})
    with pytest.raises(ValueError, match=f"X_bf has {N_CELLS} cells but y_qpi has {N_CELLS - 1}"), _no_warnings():
        pretend = pickle.loads(pickle.dumps(config.fitted))
        pretend.batches_ = None
        pretend.score(config.bf, config.qpi[:-1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_numbers_that_are_not_finite(config, bad):
    bf, qpi = config.bf.astype(np.float64), config.qpi.astype(np.float64)
    bf[5].flat[3] = bad
    qpi[7].flat[2] = bad
    with pytest.raises(ValueError, match="X_bf contains NaN or infinity, first in cell 5"):
        config.new().fit(**{**config.data, "X_bf": bf})
    with pytest.raises(ValueError, match="y_qpi contains NaN or infinity, first in cell 7"):
        config.new().fit(**{**config.data, "y": qpi})
    for method in ("transform", "predict_image", "recalibrate", "score"):
        with pytest.raises(ValueError, match="NaN or infinity, first in cell 5"):
            getattr(config.fitted, method)(bf)


def test_check_empty_input_and_wrong_shapes(config):
    for method in ("fit", "transform", "predict_image", "recalibrate", "score"):
        est = config.new() if method == "fit" else config.fitted
        with pytest.raises(ValueError, match="X_bf holds no cells"):
            getattr(est, method)(config.bf[:0])
        with pytest.raises(ValueError, match=r"must have shape \(n_cells, side, side\)"):
            getattr(est, method)(np.zeros((5, 7)))
    larger = np.zeros((3, 64, 64))
    for method in ("transform", "predict_image", "recalibrate", "score"):
        with pytest.raises(ValueError, match=r"\(64, 64\), but the model was fitted on .* resize them"):
            getattr(config.fitted, method)(larger)


@pytest.mark.parametrize("bad", ["images", None, {"a": 1}, [["a", "b"]], np.zeros((4, 16, 16), complex)])
def test_check_what_is_no_image(config, bad):
    for method in ("fit", "transform", "predict_image", "score"):
        est = config.new() if method == "fit" else config.fitted
        with pytest.raises(TypeError, match="X_bf must"):
            getattr(est, method)(bad)


def test_check_few_cells(config):
    with pytest.raises(ValueError, match="1 cells are too few to train on; at least 4 are needed"):
        config.new().fit(**{name: array[:1] for name, array in config.data.items()})
    with pytest.warns(UserWarning) if config.params["removal_epochs"] else _no_warnings():
        config.new().fit(config.bf[:4], config.qpi[:4])  # no labels at all


def test_check_methods_before_fit(config):
    for method in ("transform", "predict_image", "recalibrate", "score"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(config.new(), method)(config.bf)
    for name in ("get_feature_names_out",):
        with pytest.raises(NotFittedError):
            getattr(config.new(), name)()
    assert not hasattr(config.new(), "n_features_out_")


# Labels ---------------------------------------------------------------------------------------------------------------


LABELS = {
    "int": lambda codes: codes,
    "negative int8": lambda codes: -codes.astype(np.int8),
    "float": lambda codes: codes + 0.5,
    "bool": lambda codes: codes == 1,
    "str": lambda codes: np.array(["H69", "A549"])[codes],
    "object": lambda codes: np.array(["H69", "A549"], object)[codes],
    "bytes": lambda codes: np.array([b"x", b"y"])[codes],
    "date": lambda codes: np.array(["2021-03-04", "2021-03-05"], "datetime64[D]")[codes],
    "list of int": lambda codes: codes.tolist(),
    "list of str": lambda codes: ["ab"[code] for code in codes],
    "tuple": lambda codes: tuple("ab"[code] for code in codes),
    "column": lambda codes: codes[:, None],
    "Series": lambda codes: pd.Series(codes, index=np.arange(len(codes))[::-1] + 100),
    "Series of strings": lambda codes: pd.Series(np.array(["a", "b"])[codes], dtype="string"),
    "Series of Int64": lambda codes: pd.Series(codes, dtype="Int64"),
    "Categorical": lambda codes: pd.Categorical.from_codes(codes, ["z", "a"]),
    "Series of Categorical": lambda codes: pd.Series(pd.Categorical.from_codes(codes, ["z", "a"])),
}


@pytest.mark.parametrize("kind", LABELS)
def test_check_labels_of_any_kind_give_the_same_model(kind):
    config = CONFIGURATIONS["default"]
    codes = {name: np.unique(config.data[name], return_inverse=True)[1] for name in ("batch", "cell_type")}
    labels = {name: LABELS[kind](code) for name, code in codes.items()}
    est = config.new(removal_epochs=0).fit(config.bf, config.qpi, **labels)
    assert len(est.batches_) == len(est.cell_types_) == 2
    given = set(np.ravel(labels["batch"]).tolist())
    given = {label.decode() if isinstance(label, bytes) else label for label in given}  # bytes become strings
    assert list(est.batches_) == sorted(est.batches_.tolist()) == sorted(given)
    assert 0 <= est.score(config.bf, None, **labels) <= 1
    as_y = config.new(removal_epochs=0).fit(config.bf, labels["cell_type"], labels["batch"], y_qpi=config.qpi)
    np.testing.assert_array_equal(as_y.cell_types_, est.cell_types_)
    np.testing.assert_array_equal(as_y.transform(config.bf), est.transform(config.bf))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 47 + [None], "missing label, first at cell 47"),
        (["a"] * 47 + [np.nan], "missing label, first at cell 47"),
        (np.r_[np.arange(47.0), np.inf], "missing label, first at cell 47"),
        (pd.Series(["a"] * 47 + [None], dtype="string"), "missing label, first at cell 47"),
        (pd.Series(pd.Categorical(["a"] * 47 + [None])), "missing label, first at cell 47"),
        (pd.Series([1] * 47 + [None], dtype="Int64"), "missing label, first at cell 47"),
        (np.array(["2020-01-01"] * 47 + ["NaT"], "datetime64[D]"), "missing label, first at cell 47"),
        (np.ma.array(["a"] * 48, mask=[False] * 47 + [True]), "missing label, first at cell 47"),
        ([1] * 47 + ["a"], r"mixes labels of types \['int', 'str'\]"),
        (np.zeros((48, 2)), r"one label per cell, shape \(48,\), got shape \(48, 2\)"),
        (np.zeros(48, complex), "strings, numbers or dates, got dtype complex128"),
        ("day 1", r"one label per cell, shape \(48,\), got shape \(\)"),
    ],
)
def test_check_labels_that_are_refused(labels, message):
    config = CONFIGURATIONS["default"]
    # Cell types may be missing, see test_design_of_batches.py.
    for name in ("batch", "cell_type") if have_labels(labels)[0].all() else ("batch",):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            config.new().fit(**{**config.data, name: labels})


def test_check_labels_unseen_in_fit_are_scored(config):
    renamed = {name: np.char.add("new ", config.data[name].astype(str)) for name in ("batch", "cell_type")}
    known = config.fitted.score(**config.data)
    assert config.fitted.score(config.bf, config.qpi, **renamed) == pytest.approx(known)


def test_check_one_batch_and_one_cell_type():
    config = CONFIGURATIONS["default"]
    same = ["a"] * N_CELLS
    with pytest.warns(UserWarning, match="all cells are of batch 'a'"):
        est = config.new().fit(config.bf, config.qpi, same, config.cell_type)
    assert "batch_removal" not in est.history_ and est.batches_.tolist() == ["a"]
    with _no_warnings():  # it knows one batch: nothing is lacking
        assert 0 <= est.score(config.bf, config.qpi, same, config.cell_type) <= 1
    with pytest.warns(UserWarning, match="all cells are of one cell type"):
        est = config.new().fit(config.bf, config.qpi, config.batch, same)
    with pytest.raises(ValueError, match="cell type"):
        est.score(config.bf, config.qpi, config.batch, same)


# Images ---------------------------------------------------------------------------------------------------------------

DTYPES = ["bool", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64", "longdouble", ">f4", ">i2"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_check_images_of_any_real_dtype(dtype):
    config = CONFIGURATIONS["default"]
    wide = np.dtype(dtype).kind in "iu"
    bf, qpi = (np.clip(images * (50 if wide else 1), 0, 200).astype(dtype) for images in (config.bf, config.qpi))
    est = config.new(removal_epochs=0).fit(bf, qpi, config.batch, config.cell_type)
    for images in (est.transform(bf), est.predict_image(bf)):
        assert images.dtype == np.float32
        assert np.isfinite(images).all()
    alike = config.new(removal_epochs=0).fit(bf.astype(float), qpi.astype(float), config.batch, config.cell_type)
    np.testing.assert_allclose(est.transform(bf), alike.transform(bf.astype(float)), rtol=1e-2, atol=5e-4)


@pytest.mark.parametrize("config", ["default", "float64", "channels"], indirect=True)
def test_check_images_in_any_container(config, tmp_path):
    import torch

    quick = {"removal_epochs": 0, "warm_start": False}
    expected = config.fit(**quick).transform(config.bf)
    for name in ("bf", "qpi"):
        np.save(tmp_path / f"{name}.npy", getattr(config, name))
    containers = {
        "list of arrays": list,
        "tuple of arrays": tuple,
        "list of tensors": lambda images: [torch.tensor(image) for image in images],
        "tensor": lambda images: torch.tensor(images).requires_grad_(),
        "Series": lambda images: pd.Series(list(images), index=np.arange(N_CELLS) + 7),
        "masked array without a mask": np.ma.array,
        "memory map": lambda images: np.load(
            tmp_path / ("bf.npy" if images is config.bf else "qpi.npy"), mmap_mode="r"
        ),
    }
    for name, container in containers.items():
        bf, qpi = container(config.bf), container(config.qpi)
        est = config.new(**quick).fit(bf, qpi, config.batch, config.cell_type)
        np.testing.assert_array_equal(est.transform(bf), expected, err_msg=name)
    with pytest.raises(ValueError, match="masked pixels; fill them"):
        config.fitted.transform(np.ma.masked_greater(config.bf, np.median(config.bf)))


# Transform ------------------------------------------------------------------------------------------------------------


# Not with channels of side 16, where rounding is at 1e-5.
@pytest.mark.parametrize("config", [*list(CONFIGURATIONS)[:-1], *LARGER], indirect=True)
def test_check_transform_is_the_same_in_any_order_and_subset(config):
    features, images = config.fitted.transform(config.bf), config.fitted.predict_image(config.bf)
    assert features.shape == (N_CELLS, 8) and features.dtype == np.float32
    assert images.shape == config.qpi.shape and images.dtype == np.float32
    np.testing.assert_array_equal(config.fitted.transform(config.bf), features)
    if config.params.get("inference") == "minibatch":
        return  # the original's way: a prediction depends on its neighbours, as documented
    order = np.random.default_rng(0).permutation(N_CELLS)
    np.testing.assert_allclose(config.fitted.transform(config.bf[order]), features[order], rtol=1e-5, atol=1e-6)
    for part in (slice(3, 4), slice(5, 12), [40, 2]):
        np.testing.assert_allclose(config.fitted.transform(config.bf[part]), features[part], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(config.fitted.predict_image(config.bf[part]), images[part], rtol=1e-4, atol=1e-5)


def test_check_transform_does_not_depend_on_minibatch_size(config):
    if config.params.get("inference") == "minibatch":
        pytest.skip("the original's way: a prediction depends on its neighbours")
    other = pickle.loads(pickle.dumps(config.fitted)).set_params(minibatch_size=5)
    np.testing.assert_array_equal(other.transform(config.bf), config.fitted.transform(config.bf))


def test_check_transform_leaves_the_estimator_alone(config):
    est = pickle.loads(pickle.dumps(config.fitted))
    before = pickle.dumps(est)
    est.transform(config.bf)
    est.predict_image(config.bf)
    est.score(**config.data)
    assert pickle.dumps(est) == before


def test_check_names_and_number_of_features(config):
    names = config.fitted.get_feature_names_out()
    assert names.tolist() == [f"begantransformer{i}" for i in range(8)]
    assert names.dtype == object
    assert config.fitted.n_features_out_ == 8


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_check_set_output(config, name):
    module = pytest.importorskip(name)
    est = pickle.loads(pickle.dumps(config.fitted)).set_output(transform=name)
    frame = est.transform(config.bf)
    assert isinstance(frame, module.DataFrame)
    assert list(frame.columns) == est.get_feature_names_out().tolist()
    np.testing.assert_array_equal(frame.to_numpy(), config.fitted.transform(config.bf))
    again = clone(est).set_params(removal_epochs=0)
    assert isinstance(again.fit_transform(**config.data), module.DataFrame)
    with config_context(transform_output=name):
        assert isinstance(config.fitted.transform(config.bf), module.DataFrame)
    assert isinstance(config.fitted.transform(config.bf), np.ndarray)


# What scikit-learn asks -----------------------------------------------------------------------------------------------


def test_check_tags(config):
    tags = get_tags(config.new())
    assert tags.input_tags.three_d_array and not tags.input_tags.two_d_array and not tags.input_tags.allow_nan
    assert tags.target_tags.required and tags.requires_fit and not tags.no_validation
    assert tags.transformer_tags.preserves_dtype == []
    est = config.new()
    assert isinstance(est, BaseEstimator) and isinstance(est, TransformerMixin)
    assert not is_classifier(est) and not is_regressor(est) and not is_clusterer(est)


def test_check_repr_and_html(config):
    text = repr(config.new())
    assert text.startswith("BeGANTransformer(") and "base_width=2" in text
    assert "learning_rate" not in text  # a default
    for est in (config.new(), config.fitted):
        assert repr(est) == text
        html = est._repr_html_()
        assert "BeGANTransformer" in html and "base_width" in html
    assert "Not fitted" in config.new()._repr_html_() and "Not fitted" not in config.fitted._repr_html_()


def test_check_pickling_at_every_state(config):
    unfitted = pickle.loads(pickle.dumps(config.new()))
    assert unfitted.get_params() == config.new().get_params() and not hasattr(unfitted, "history_")
    for copied in (pickle.loads(pickle.dumps(config.fitted)), copy.deepcopy(config.fitted), copy.copy(config.fitted)):
        np.testing.assert_array_equal(copied.transform(config.bf), config.fitted.transform(config.bf))
        again = pickle.loads(pickle.dumps(copied))  # after use
        np.testing.assert_array_equal(again.predict_image(config.bf), config.fitted.predict_image(config.bf))
    np.testing.assert_array_equal(unfitted.fit(**config.data).transform(config.bf), config.fitted.transform(config.bf))


def test_check_metadata_is_requested_and_can_be_renamed():
    with config_context(enable_metadata_routing=True):
        routing = BeGANTransformer().get_metadata_routing()
        for method in ("fit", "score"):
            assert getattr(routing, method).requests == {"batch": True, "cell_type": True, "y_qpi": True}
        assert routing.transform.requests == {}  # X_bf is data, not metadata
        renamed = BeGANTransformer().set_fit_request(batch="day", cell_type=False)
        assert renamed.get_metadata_routing().fit.requests == {"batch": "day", "cell_type": False, "y_qpi": True}
        assert clone(renamed).get_metadata_routing().fit.requests["batch"] == "day"


def _no_warnings() -> Any:
    context = warnings.catch_warnings()

    class Strict:
        def __enter__(self) -> None:
            context.__enter__()
            warnings.simplefilter("error")

        def __exit__(self, *args: Any) -> None:
            context.__exit__(*args)

    return Strict()

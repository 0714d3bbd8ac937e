"""Saving and loading fitted models.

The files in tests/data are never made again, since they show that old files load. That of the newest format was made by
this, in the folder tests; make another for a new format::

    import test_model_file as t
    t.make_file()
"""

import copy
import dataclasses
import io
import json
import pickle
import tracemalloc
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

import skbegan
from skbegan import OnlineRemoval, ProfileAlignment
from skbegan._version import versions
from skbegan.estimator import BeGANTransformer
from skbegan.io import model_file
from skbegan.io.model_file import load, save
from skbegan.stored import atomic

DATA = Path(__file__).parent / "data"
FORMATS = {int(path.stem.split("-")[-1]): path for path in sorted(DATA.glob("model-format-*.safetensors"))}


def small_cells(shape=(16, 16), target_shape=(16, 16)):
    rng = np.random.RandomState(0)
    return {
        "X_bf": rng.normal(0.6, 0.1, (24, *shape)).astype(np.float32),
        "y": rng.normal(0.2, 0.3, (24, *target_shape)).astype(np.float32),
        "batch": np.repeat(["day 1", "day 2"], 12),
        "cell_type": np.tile([3, 7, 9], 8),
    }


def small_model(cells=None, **params):
    small = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1, "classifier_epochs": 1}
    est = BeGANTransformer(**{**small, "minibatch_size": 8, "device": "cpu", "random_state": 0, **params})
    return est.fit(**(cells or small_cells()))


def make_file():
    est = small_model(base_width=2, profile=ProfileAlignment(hidden=16))  # 128 hidden units would fill 70 kB
    path = DATA / f"model-format-{model_file.FORMAT}.safetensors"
    save(est, path)
    X_bf = small_cells()["X_bf"][:4]
    np.savez_compressed(
        path.with_suffix(".npz"), X_bf=X_bf, features=est.transform(X_bf), images=est.predict_image(X_bf)
    )


@pytest.fixture(scope="module")
def est():
    return small_model()


@pytest.fixture
def saved(est, tmp_path):
    save(est, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def edit(path, change):
    """Rewrite a saved file after `change(document, tensors)`."""
    with safetensors.safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["skbegan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    document = change(document, tensors) or document
    text = document if isinstance(document, str) else json.dumps(document)
    entries = {"skbegan": text, "digest": model_file._digest(text, tensors)}
    path.write_bytes(safetensors.numpy.save(tensors, metadata=entries))


def assert_same(a, b):
    """Equal in value and type, through all levels."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert_same(list(a), list(b))
        assert_same(list(a.values()), list(b.values()))  # not by key: one that is NaN is found under no other NaN
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for item, other in zip(a, b, strict=True):
            assert_same(item, other)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b or (a != a and b != b)


FITTED = [
    *("bf_mean_", "bf_scale_", "qpi_mean_", "qpi_scale_", "image_shape_", "target_shape_", "batches_", "cell_types_"),
    *("history_", "n_features_out_", "base_width_", "device_"),
]


# --------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("inference", ["population", "minibatch"])
@pytest.mark.parametrize("kind", [str, Path])
def test_round_trip_is_identical(tmp_path, kind, inference):
    cells = small_cells()
    est = small_model(inference=inference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(est, kind(tmp_path / "m.safetensors"))
        other = load(kind(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(other.transform(cells["X_bf"]), est.transform(cells["X_bf"]))
    np.testing.assert_array_equal(other.predict_image(cells["X_bf"]), est.predict_image(cells["X_bf"]))
    assert_same(other.get_params(), est.get_params())
    for name in FITTED:
        assert_same(getattr(other, name), getattr(est, name))
    assert clone(other).get_params() == est.get_params()
    other.fit(**cells)  # as good as any other estimator


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_round_trip_of_channels_and_precision(tmp_path, precision):
    cells = small_cells((16, 16, 2), (16, 16, 3))
    est = small_model({"X_bf": cells["X_bf"], "y": cells["y"]}, removal_epochs=0, precision=precision)
    save(est, tmp_path / "m")
    other = load(tmp_path / "m")
    assert_same({name: weights_of(est)[name] for name in weights_of(other)}, weights_of(other))
    assert len(weights_of(other)) == len(weights_of(est))
    again = pickle.loads(pickle.dumps(est))
    for copied in (other, again):
        np.testing.assert_array_equal(copied.predict_image(cells["X_bf"]), est.predict_image(cells["X_bf"]))
    assert other.batches_ is None and other.cell_types_ is None


LABELS = {
    "int64": np.array([-3, 0, 2**40]),
    "uint8": np.array([0, 255], np.uint8),
    "str": np.array(["H69", "H358 ü"]),
    "bool": np.array([False, True]),
    "float64": np.array([0.1, 1 / 3, np.inf]),
    "float32": np.array([0.1, 1 / 3], np.float32),
    "object": np.array(["a", "bc", 3, None, 2.5], object),
    "date": np.array(["2021-03-04", "2021-03-05"], "datetime64[D]"),
}


@pytest.mark.parametrize("name", LABELS)
def test_round_trip_of_labels(est, tmp_path, name):
    labelled = load_copy(est, batches=LABELS[name], cell_types=LABELS[name])
    save(labelled, tmp_path / "m")
    assert_same(load(tmp_path / "m").batches_, LABELS[name])
    assert_same(load(tmp_path / "m").cell_types_, LABELS[name])


def load_copy(est, **changes):
    """A fitted copy, with changes of what was fitted."""
    return clone(est)._adopt(dataclasses.replace(est._model, **changes))


def weights_of(est):
    return est._model.weights


def test_round_trip_of_parameters_and_history(est, tmp_path):
    odd = {"nested": (1, [2.5, (None, True)], {"tuple": [1]}), 3: float("nan"), "worst": [float("inf"), -0.0, 1e-320]}
    history = {"pretraining": {"loss": [np.float64(0.1), float("nan")]}, "events": ["one, ü"], "odd": odd}
    other = load_copy(est, history=history)
    other.set_params(reference_batch=np.str_("day 2"), batch_weight=np.float32(0.1), n_features=np.int64(16))
    other.set_params(removal__decay=0.25, profile=ProfileAlignment(kernel_widths=(0.5, 2.0)))
    save(other, tmp_path / "m")
    back = load(tmp_path / "m")
    params = back.get_params()
    assert back.removal == OnlineRemoval(decay=0.25) and params["profile__kernel_widths"] == (0.5, 2.0)
    assert_same(params["reference_batch"], "day 2")
    assert_same(params["n_features"], 16)
    assert_same(params["batch_weight"], float(np.float32(0.1)))
    assert_same(back.history_, history | {"pretraining": {"loss": [0.1, float("nan")]}})
    assert back._model.config == est._model.config  # parameters of the fit, whatever was set since


def test_what_is_no_plain_data_is_left_out_with_a_warning(est, tmp_path):
    other = load_copy(est).set_params(random_state=np.random.RandomState(3))
    with pytest.warns(UserWarning, match=r"saved as None.*random_state=RandomState") as caught:
        save(other, tmp_path / "m")
    assert caught[0].filename == __file__
    back = load(tmp_path / "m")
    assert back.random_state is None and back.base_width == 4


def test_what_is_of_the_machine_is_not_taken_along(est, tmp_path):
    """A cache from elsewhere could run code, and a callback is code."""
    other = load_copy(est).set_params(memory=str(tmp_path / "cache"), checkpoint_dir=tmp_path, callback=print)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(other, tmp_path / "m")
    back = load(tmp_path / "m")
    assert back.memory is None and back.checkpoint_dir is None and back.callback is None
    edit(tmp_path / "m", set_in("parameters", "memory", str(tmp_path / "poisoned")))
    assert load(tmp_path / "m").memory is None


def test_loaded_keras_generator_can_be_saved(tmp_path):
    est = skbegan.load_keras_generator(DATA / "keras" / "generator.h5", device="cpu")
    x = np.random.RandomState(0).normal(size=(3, 128, 128))
    save(est, tmp_path / "m")
    np.testing.assert_array_equal(load(tmp_path / "m").transform(x), est.transform(x))


def test_there_is_a_file_of_every_format():
    assert list(FORMATS) == list(range(1, model_file.FORMAT + 1))


@pytest.mark.parametrize("number", FORMATS)
def test_every_format_keeps_loading(number):
    path = FORMATS[number]
    expected = np.load(path.with_suffix(".npz"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # versions that have moved on since
        est = load(path)
    assert_as_expected(est.set_params(device="cpu", precision="float32"), expected)
    assert est.device_ == "cpu" and "profile_alignment" in est.history_


def test_profile_and_image_erasure_come_from_the_file(tmp_path):
    """Without either, the outputs that the file is compared with are others."""
    path = FORMATS[model_file.FORMAT]
    expected = np.load(path.with_suffix(".npz"))
    for part, want, use in (("profile", "features", "transform"), ("erasure", "images", "predict_image")):
        (tmp_path / "m").write_bytes(path.read_bytes())
        edit(tmp_path / "m", drop_tensors(part))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            est = load(tmp_path / "m").set_params(device="cpu", precision="float32")
        assert np.abs(getattr(est, use)(expected["X_bf"]) - expected[want]).max() > 1e-3  # 100 times the tolerance


def drop_tensors(part):
    def change(document, tensors):
        names = [name for name in tensors if name.startswith(f"{part}.")]
        assert names
        for name in names:
            del tensors[name]

    return change


def assert_as_expected(est, expected):
    np.testing.assert_allclose(est.transform(expected["X_bf"]), expected["features"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(est.predict_image(expected["X_bf"]), expected["images"], rtol=1e-5, atol=1e-5)
    assert est.batches_.tolist() == ["day 1", "day 2"] and est.cell_types_.tolist() == [3, 7, 9]
    assert {"pretraining", "batch_removal", "events"} <= est.history_.keys()
    assert est.random_state == 0 and est.n_features_out_ == len(est.get_feature_names_out())


# ------------------------------------------------------------------------------------------------------------- pickles


def test_a_pickle_holds_weights_once_and_nothing_of_torch(est, tmp_path):
    """So it can claim no device, whichever it was fitted on, and holds no optimizer and no cells."""
    est = pickle.loads(pickle.dumps(est))
    est.transform(small_cells()["X_bf"])  # the generator is built, and kept for the next call
    joblib.dump(est, tmp_path / "m.joblib")
    weights = sum(array.nbytes for array in weights_of(est).values())
    assert weights < (tmp_path / "m.joblib").stat().st_size < weights + 40_000
    modules = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            modules.add(module.split(".")[0])
            return super().find_class(module, name)

    Reader(io.BytesIO(pickle.dumps(est))).load()
    assert "skbegan" in modules and "torch" not in modules
    as_warm = small_model(warm_start=True)
    extra = sum(array.nbytes for array in as_warm._model.discriminator.values())
    assert len(pickle.dumps(as_warm)) < weights + extra + 40_000


def test_device_auto_is_decided_where_the_model_is_used(est, monkeypatch):
    from skbegan.core import engine

    est = pickle.loads(pickle.dumps(est)).set_params(device="auto")
    asked = []

    def resolve(name):
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr(engine, "resolve_device", resolve)
    for use in (est.transform, est.predict_image, est.recalibrate):
        use(small_cells()["X_bf"])
    assert asked == ["auto"] * 3


def test_a_file_for_an_absent_device_loads_and_can_be_moved(est, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    other = load_copy(est, device="cuda:0").set_params(device="cuda")
    save(other, tmp_path / "m")
    for back in (load(tmp_path / "m"), pickle.loads(pickle.dumps(other))):
        assert back.device_ == "cuda:0"
        with pytest.raises(ValueError, match="sees no CUDA here; use 'auto' or 'cpu'"):
            back.transform(small_cells()["X_bf"])
        back.set_params(device="auto")
        np.testing.assert_array_equal(back.transform(small_cells()["X_bf"]), est.transform(small_cells()["X_bf"]))


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize(("package", "version"), [("scikit-learn", "1.2.3"), ("skbegan", "0.0.9")])
def test_unpickling_warns_of_other_versions(est, monkeypatch, package, version, fitted):
    old = {**versions(), package: version}
    with monkeypatch.context() as patch:
        patch.setattr("skbegan._model_estimator.versions", lambda: old)
        content = pickle.dumps(make_pipeline(est if fitted else BeGANTransformer()))
    with pytest.warns(UserWarning, match=rf"written with {package} {version[:3]}.* and is read with") as caught:
        pickle.loads(content)
    assert len([w for w in caught if "was written with" in str(w.message)]) == 1


def test_unpickling_and_copying_do_not_warn_of_what_makes_no_difference(est, monkeypatch):
    old = {**versions(), "numpy": "1.26.0", "torch": "2.4.0"}
    with monkeypatch.context() as patch:
        patch.setattr("skbegan._model_estimator.versions", lambda: old)
        content = pickle.dumps(est)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not hasattr(pickle.loads(content), "_versions")
        assert not hasattr(copy.deepcopy(est), "_versions")
        clone(est)


def test_saving_what_cannot_be_saved(est, tmp_path):
    with pytest.raises(NotFittedError):
        save(BeGANTransformer(), tmp_path / "m")
    with pytest.raises(TypeError, match="got Pipeline; joblib"):
        save(make_pipeline(est), tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(est, tmp_path / "nowhere" / "m")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        save(est, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("failing", ["write", "move"])
def test_an_existing_file_survives_a_failure(est, saved, monkeypatch, failing):
    before = saved.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(*((atomic.os, "fsync") if failing == "write" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        save(load_copy(est).set_params(verbose=1), saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    save(load_copy(est).set_params(verbose=1), saved)
    assert load(saved).verbose == 1


def test_saving_follows_a_link(est, saved):
    link = saved.with_name("link")
    try:
        link.symlink_to(saved)
    except OSError:
        pytest.skip("no symbolic links here")
    save(load_copy(est).set_params(verbose=5), link)
    assert link.is_symlink() and load(saved).verbose == 5


def test_file_is_small_and_readable_by_others(est, saved):
    assert saved.stat().st_size < 1.2 * sum(array.nbytes for array in weights_of(est).values()) + 20_000
    assert safetensors.numpy.load_file(saved).keys() == weights_of(est).keys()
    with safetensors.safe_open(saved, framework="numpy") as file:
        document = json.loads(file.metadata()["skbegan"])
    assert document["format"] == model_file.FORMAT
    assert document["versions"].keys() == {"skbegan", "scikit-learn", "torch", "numpy"}


# -------------------------------------------------------------------------------------------------------------- loading


def set_in(part, name, value):
    def change(document, tensors):
        document[part][name] = value

    return change


def set_format(number):
    return lambda document, tensors: document.update(format=number)


def set_tensor(name, value):
    return lambda document, tensors: tensors.update({name: value})


REFUSED = {
    "later format": (set_format(2), "format 2, and only formats up to 1 are known here: update skbegan"),
    "odd format": (set_format("1"), "format should be a number"),
    "no JSON": (lambda document, tensors: "{", "no JSON document of ours"),
    "other JSON": (lambda document, tensors: "[1]", "no JSON document of ours"),
    "deep JSON": (lambda document, tensors: "[" * 100_000, "no JSON document of ours"),
    "part missing": (lambda document, tensors: document.pop("fitted") and None, "should hold 'fitted', found NoneType"),
    "attribute missing": (lambda document, tensors: document["fitted"].pop("history") and None, "unexpected.*history"),
    "unknown attribute": (set_in("fitted", "colour", 3), "unexpected among its fitted attributes: colour"),
    "unknown parameter": (set_in("parameters", "colour", 3), "parameters that are not known here: colour"),
    "unknown notation": (set_in("parameters", "verbose", {"call": "os.system"}), "'verbose' of its parameters"),
    "code as dtype": (set_in("fitted", "batches", {"array": [1], "dtype": "O"}), "'batches' of its fitted"),
    "odd labels": (set_in("fitted", "batches", {"array": ["a"], "dtype": "<i8"}), "'batches' of its fitted"),
    "odd shape": (set_in("fitted", "image_shape", {"tuple": [16, 8]}), "'image_shape' of its fitted.*tuple.*16, 8"),
    "odd side": (
        lambda document, tensors: document["fitted"].update(image_shape={"tuple": [18, 18]}),
        "no generator of its widths .*power of two",
    ),
    "odd width": (set_in("fitted", "base_width", -4), "'base_width' of its fitted attributes should be a positive"),
    "huge width": (set_in("fitted", "base_width", 10**30), "'base_width'"),
    "other width": (set_in("fitted", "base_width", 8), r"tensor encoder.0.conv.weight should be .*\[8, 1, 4, 4\]"),
    "odd scaling": (set_in("fitted", "bf_mean", {"array": [{"float": "nan"}], "dtype": "<f8"}), "'bf_mean'"),
    "two scalings": (set_in("fitted", "bf_mean", {"array": [1.0, 2.0], "dtype": "<f8"}), "'bf_mean' has 2 entries"),
    "tensor missing": (
        lambda document, tensors: tensors.pop("to_image.bias") is None,
        r"tensors are missing: to_image\.bias",
    ),
    "tensor too many": (set_tensor("more", np.ones(3)), "unexpected tensors: more"),
    "half a profile": (
        lambda document, tensors: tensors.pop("profile.centre") is None,
        r"tensors are missing: profile\.centre",
    ),
    "half an erasure": (
        lambda document, tensors: tensors.pop("erasure.write") is None,
        r"no generator of its widths .*erasure\.write",
    ),
    "labels of two dimensions": (
        set_in("fitted", "batches", {"array": [{"array": ["a"], "dtype": "<U1"}], "dtype": "object"}),
        "'batches' of its fitted attributes",
    ),
    "labels twice": (set_in("fitted", "batches", {"array": ["a", "a"], "dtype": "<U1"}), "'batches' repeats a label"),
    "no labels": (set_in("fitted", "batches", {"array": [], "dtype": "<U1"}), "'batches' of its fitted attributes"),
    "scale of zero": (set_in("fitted", "bf_scale", {"array": [0.0], "dtype": "<f8"}), "'bf_scale'.* positive"),
    "parameter out of range": (set_in("parameters", "batch_weight", -1.0), "none that fit would take .batch_weight"),
    "other object": (
        set_in("parameters", "removal", {"object": "os.system", "fields": [["command", "true"]]}),
        "'removal' of its parameters cannot be read",
    ),
    "other field": (
        set_in("parameters", "removal", {"object": "OnlineRemoval", "fields": [["colour", 1]]}),
        "'removal' of its parameters cannot be read",
    ),
    "weights not finite": (set_tensor("to_image.bias", np.full(1, np.nan, np.float32)), "to_image.bias.* not finite"),
    "variance below zero": (
        lambda document, tensors: tensors["encoder.1.norm.running_var"].fill(-1.0),
        "encoder.1.norm.running_var holds variances below 0",
    ),
    "tensor of integers": (set_tensor("to_image.bias", np.ones(1, int)), r"to_image\.bias should be F32.*I64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_loading_refuses(saved, name):
    change, message = REFUSED[name]
    edit(saved, change)
    with pytest.raises(
        ValueError, match=rf"model\.safetensors is not a model that this skbegan .* can load: .*{message}"
    ):
        load(saved)


def test_a_flipped_bit_is_refused(saved):
    whole = saved.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole) // 3, len(whole), 20):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="can load"):
            load(saved)


def test_wide_strings_take_no_more_memory_than_they_hold(saved):
    edit(saved, set_in("fitted", "batches", {"array": [str(n) for n in range(2000)], "dtype": "<U999999"}))
    tracemalloc.start()
    try:
        assert len(load(saved).batches_) == 2000
        assert tracemalloc.get_traced_memory()[1] < 10 * saved.stat().st_size + 10_000_000
    finally:
        tracemalloc.stop()


def test_a_git_lfs_pointer_is_called_one(saved):
    saved.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(ValueError, match=r"Git LFS pointer.*git lfs pull"):
        load(saved)


def test_loading_refuses_other_files(est, saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        load(tmp_path / "none")
    whole = saved.read_bytes()
    joblib.dump(est, tmp_path / "pickle")
    contents = [b"", b"{}", whole[: len(whole) // 2], whole + b"0", (tmp_path / "pickle").read_bytes()]
    for content in contents:
        saved.write_bytes(content)
        with pytest.raises(ValueError, match="it is no safetensors file, or a damaged one"):
            load(saved)
    safetensors.numpy.save_file(weights_of(est), saved)
    with pytest.raises(ValueError, match=r"without the entry that skbegan\.save writes"):
        load(saved)


@pytest.mark.parametrize(("package", "version"), [("scikit-learn", "1.2.3"), ("skbegan", "0.0.9")])
def test_loading_warns_of_other_versions(saved, package, version):
    edit(saved, set_in("versions", package, version))
    with pytest.warns(UserWarning, match=rf"written with {package} {version[:3]}.* and is read with"):
        load(saved)


def test_loading_does_not_warn_of_what_makes_no_difference(saved):
    edit(saved, set_in("versions", "numpy", "1.26.0"))
    edit(saved, lambda document, tensors: document["parameters"].pop("verbose") and None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(saved).verbose == 0  # a parameter that came later has its default


def test_face_of_the_package(est, tmp_path):
    skbegan.save(est, tmp_path / "m")
    assert isinstance(skbegan.load(tmp_path / "m"), skbegan.BeGANTransformer)

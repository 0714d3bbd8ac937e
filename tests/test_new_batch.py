"""check_batch, adapt and calibrate_batches: what they say, what they leave alone, and that it is kept in files."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

import skbegan
from skbegan import BeGANTransformer
from skbegan.datasets import make_cell_images
from skbegan.shift import adaptation
from skbegan.shift.checking import UnusableBatchWarning

PARAMETERS = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def cells() -> Any:
    return make_cell_images(240, 2, 4, 16, random_state=0)


@pytest.fixture(scope="module")
def data(cells: Any) -> tuple[np.ndarray, ...]:
    known = cells.batch != "batch3"
    return cells.bf[known], cells.qpi[known], cells.batch[known], cells.cell_type[known]


@pytest.fixture(scope="module")
def est(data: tuple[np.ndarray, ...]) -> BeGANTransformer:
    return BeGANTransformer(**PARAMETERS, calibrate=True, device="cpu").fit(*data)


@pytest.fixture(scope="module")
def new(cells: Any) -> np.ndarray:
    return np.asarray(cells.bf[cells.batch == "batch3"])


def test_a_report_is_made_of_a_new_batch(est, new):
    before = new.copy()
    report = est.check_batch(new)
    assert np.array_equal(new, before)
    assert report.n_cells == len(new)
    assert 0 < report.p_value <= 1
    low, high = report.expected_accuracy_interval
    assert 0 <= low <= report.expected_accuracy <= high <= 1
    low, high = report.expected_image_error_interval
    assert 0 < low <= report.expected_image_error <= high
    assert report.to_dict()["expected_accuracy"] == report.expected_accuracy
    assert "right cell types" in repr(report)
    assert "right cell types" in report._repr_html_()


def test_inverted_contrast_is_farther_and_refused(est, data):
    known = data[0][data[2] == "batch0"]
    middle = known.mean()
    with pytest.warns(UnusableBatchWarning, match="should not be used"):
        report = est.check_batch(2 * middle - known)
    assert report.refused and report.reasons and not report.known
    assert report.distance > est.check_batch(known).distance


@pytest.mark.slow
def test_calibrating_afterwards_gives_what_fit_gave(est, data, new):
    later = BeGANTransformer(**PARAMETERS, device="cpu").fit(*data)
    assert np.array_equal(later.transform(new), est.transform(new))  # calibration changes no model
    with pytest.raises(ValueError, match="call calibrate_batches"):
        later.check_batch(new)
    assert later.calibrate_batches(*data).check_batch(new).to_dict() == est.check_batch(new).to_dict()


def test_without_a_word_on_the_types_the_model_is_left_as_it_is(est, new):
    adapted = est.adapt(new)
    assert not adapted.adaptation_.adapted
    assert "proportions" in adapted.adaptation_.reason
    assert np.array_equal(adapted.transform(new), est.transform(new))


@pytest.mark.parametrize("proportions", ["training", "estimated", {"type0": 3, "type1": 1}])
def test_an_adapted_model_is_another_and_is_kept_in_files(est, new, tmp_path, proportions):
    before = est.transform(new)
    adapted = est.adapt(new, proportions=proportions)
    done = adapted.adaptation_
    assert done.adapted and done.n_cells == len(new)
    assert sum(done.proportions.values()) == pytest.approx(1)
    assert np.array_equal(est.transform(new), before)
    found = adapted.transform(new)
    assert not np.allclose(found, before)
    # Chunks of another size may be summed in another order.
    np.testing.assert_allclose(adapted.transform(new[:1]), found[:1], rtol=1e-3, atol=1e-3)
    skbegan.save(adapted, tmp_path / "model.safetensors")
    loaded = skbegan.load(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.transform(new), found)
    assert loaded.check_batch(new).to_dict() == adapted.check_batch(new).to_dict()
    with pytest.raises(ValueError, match="adapted to a batch already"):
        loaded.adapt(new)


def test_controls_go_by_their_types(est, cells, new):
    types = cells.cell_type[cells.batch == "batch3"]
    controls = new[types == "type0"]
    one = est.adapt(new, controls, "type0").adaptation_
    assert (one.method, one.n_cells) == ("controls", len(controls))
    assert one.proportions == {"type0": 1, "type1": 0}
    each = est.adapt(new, new[:20], types[:20]).adaptation_
    assert each.proportions["type0"] == np.mean(types[:20] == "type0")
    with pytest.raises(ValueError, match="controls go with their cell_type"):
        est.adapt(new, controls)
    with pytest.raises(ValueError, match="controls go with their cell_type"):
        est.adapt(new, controls, "type0", proportions="training")
    with pytest.raises(ValueError, match="none of the types"):
        est.adapt(new, controls, "type9")
    with pytest.raises(ValueError, match="2 labels for"):
        est.adapt(new, controls, ["type0", "type1"])


@pytest.mark.parametrize(
    ("proportions", "message"),
    [("half", "'training', 'estimated' or a dict"), ({"type9": 1}, "none of the types"), ({"type0": -1}, "0 or more")],
)
def test_proportions_are_checked(est, new, proportions, message):
    with pytest.raises(ValueError, match=message):
        est.adapt(new, proportions=proportions)


def test_cells_like_those_of_training_change_little_whatever_their_types(est, data):
    """What the mix of types explains is not taken for the instrument: a single type is the hardest case."""
    reader, calibration = est._reader(), est._model.calibration
    images = reader.source(data[0][data[3] == "type0"])
    moved = {}
    for name, shares in (("its own", [1.0, 0.0]), ("training's", calibration.type_shares)):
        model = adaptation.adapted(reader, calibration, images, np.array(shares), 1.0)
        names = [key for key in model.weights if key.endswith("running_mean")]
        apart = [(model.weights[key] - est._model.weights[key]) ** 2 for key in names]
        moved[name] = sum(values.sum() for values in apart)
    assert moved["its own"] < 0.3 * moved["training's"]


def test_cells_of_training_as_they_are_leave_the_statistics(est, data):
    reader, calibration = est._reader(), est._model.calibration
    mean, square = adaptation.norm_inputs(reader, reader.source(data[0]))
    shares = np.array([np.mean(data[3] == name) for name in est.cell_types_])
    same = dataclasses.replace(
        calibration,
        norm_mean=np.stack([mean[data[3] == name].mean(0) for name in est.cell_types_]),
        norm_square=np.stack([square[data[3] == name].mean(0) for name in est.cell_types_]),
    )
    model = adaptation.adapted(reader, same, reader.source(data[0]), shares, 1.0)
    for name, values in model.weights.items():
        np.testing.assert_allclose(values, est._model.weights[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_broken_batch_is_not_adapted_to(est, data):
    known = data[0][data[2] == "batch0"]
    adapted = est.adapt(2 * known.mean() - known, proportions="training")
    assert not adapted.adaptation_.adapted
    assert "refused" in adapted.adaptation_.reason


@pytest.mark.slow
def test_a_model_without_batchnorm_has_nothing_to_move(data, new):
    est = BeGANTransformer(**{**PARAMETERS, "removal_epochs": 0}, norm="group", calibrate=True).fit(*data)
    assert est.check_batch(new).n_cells == len(new)
    with pytest.raises(ValueError, match="norm='group'"):
        est.adapt(new, proportions="training")


@pytest.mark.parametrize("method", ["check_batch", "adapt"])
def test_bad_input_gets_one_clear_message(est, new, method):
    with pytest.raises(NotFittedError):
        getattr(BeGANTransformer(), method)(new)
    with pytest.raises(ValueError, match="at least 20 cells of the new batch, got 5"):
        getattr(est, method)(new[:5])
    with pytest.raises(ValueError, match="X_bf_new"):
        getattr(est, method)(new[:, :8])


@pytest.mark.slow
def test_cells_of_unknown_type_are_left_out(data, new):
    types = data[3].astype(object)
    types[::5] = None
    est = BeGANTransformer(**PARAMETERS, calibrate=True, device="cpu").fit(*data[:3], types)
    assert 0 <= est.check_batch(new).expected_accuracy <= 1

"""check_batch, adapt and calibrate_batches: what they say, what they leave alone, and that it is kept in files."""

from __future__ import annotations

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
    low, high = report.accuracy_interval
    assert 0 <= low <= report.accuracy <= high <= 1
    low, high = report.image_error_interval
    assert 0 < low <= report.image_error <= high
    assert report.to_dict()["accuracy"] == report.accuracy
    assert "right cell types" in repr(report)
    assert "right cell types" in report._repr_html_()


def test_inverted_contrast_is_farther_and_refused(est, data):
    known = data[0][data[2] == "batch0"]
    middle = known.mean()
    with pytest.warns(UnusableBatchWarning, match="should not be used"):
        report = est.check_batch(2 * middle - known)
    assert report.refused and report.reasons
    assert report.distance > est.check_batch(known).distance


@pytest.mark.slow
def test_calibrating_afterwards_gives_what_fit_gave(est, data, new):
    later = BeGANTransformer(**PARAMETERS, device="cpu").fit(*data)
    assert np.array_equal(later.transform(new), est.transform(new))  # calibration changes no model
    with pytest.raises(ValueError, match="call calibrate_batches"):
        later.check_batch(new)
    assert later.calibrate_batches(*data).check_batch(new).to_dict() == est.check_batch(new).to_dict()


def test_by_default_the_model_is_left_as_it_is(est, new):
    adapted = est.adapt(new)
    assert not adapted.adaptation_.adapted
    assert adapted.adaptation_.expected
    assert np.array_equal(adapted.transform(new), est.transform(new))


@pytest.mark.parametrize("method", ["style", "all statistics"])
def test_an_adapted_model_is_another_and_is_kept_in_files(est, new, tmp_path, monkeypatch, method):
    monkeypatch.setattr(adaptation, "MARGIN", -100.0)
    monkeypatch.setattr(adaptation, "candidates", lambda *_: [method])
    before = est.transform(new)
    adapted = est.adapt(new, apply=True)
    assert adapted.adaptation_.method == method
    assert np.array_equal(est.transform(new), before)
    found = adapted.transform(new)
    assert not np.allclose(found, before)
    # Chunks of another size may be summed in another order.
    np.testing.assert_allclose(adapted.transform(new[:1]), found[:1], rtol=1e-3, atol=1e-3)
    skbegan.save(adapted, tmp_path / "model.safetensors")
    loaded = skbegan.load(tmp_path / "model.safetensors")
    assert np.array_equal(loaded.transform(new), found)
    assert loaded.check_batch(new).to_dict() == adapted.check_batch(new).to_dict()
    if method == "style":
        with pytest.raises(ValueError, match="adapted to a batch already"):
            loaded.adapt(new)


def test_controls_go_by_their_type(est, cells, new):
    controls = new[cells.cell_type[cells.batch == "batch3"] == "type0"]
    adapted = est.adapt(new, controls=controls, cell_type="type0")
    assert not adapted.adaptation_.adapted
    assert adapted.adaptation_.n_cells == len(new)
    with pytest.raises(ValueError, match="go together"):
        est.adapt(new, controls=controls)
    with pytest.raises(ValueError, match="none of the types"):
        est.adapt(new, controls=controls, cell_type="type9")


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
    assert 0 <= est.check_batch(new).accuracy <= 1

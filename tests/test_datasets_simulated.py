"""Simulated cells: what comes back, the seeds, the design, and the physics against known answers."""

import doctest
import inspect

import numpy as np
import pytest

from skbegan.datasets import _simulated_cells as cells_of
from skbegan.datasets import _simulated_optics as optics_of
from skbegan.datasets import simulated
from skbegan.datasets.simulated import make_cell_images

IMAGES = ("bf", "qpi", "clean_bf", "clean_qpi")


def small(n_cells=48, n_cell_types=3, n_batches=4, image_size=16, **kwargs):
    return make_cell_images(n_cells, n_cell_types, n_batches, image_size, **{"random_state": 0, **kwargs})


def test_returns_images_labels_and_truth():
    data = small(image_size=32)
    for name in IMAGES:
        assert data[name].shape == (48, 32, 32)
        assert data[name].dtype == np.float32
        assert np.isfinite(data[name]).all()
    assert sorted(set(data.batch)) == ["batch0", "batch1", "batch2", "batch3"]
    assert sorted(set(data.cell_type)) == ["type0", "type1", "type2"]
    assert data.batch.dtype.kind == data.cell_type.dtype.kind == "U"
    assert data.design.shape == (3, 4) and data.design.dtype == bool and data.design.all()
    assert all(values.shape == (4,) for values in data.batch_optics.values())
    assert all(values.shape == (3,) for values in data.type_morphology.values())
    assert data.pixel_size == 45 / 32
    assert isinstance(data.DESCR, str)


def test_labels_are_padded_so_that_they_sort():
    data = small(n_cells=24, n_batches=12, n_cell_types=2)
    assert sorted(set(data.batch)) == [f"batch{i:02d}" for i in range(12)]


def test_background_and_phase_are_those_of_a_cell():
    data = small(n_cells=60, image_size=64)
    np.testing.assert_allclose(data.clean_bf[:, :4], 1.0, atol=0.06)
    np.testing.assert_allclose(data.clean_qpi[:, :4], 0.0, atol=1e-3)
    centre = data.clean_qpi[:, 31:33, 31:33].mean(axis=(1, 2))
    assert 1.0 < centre.min() and centre.max() < 5.0
    assert data.clean_bf.std(axis=(1, 2)).min() > 0.02  # the reference is defocused: cells are visible


@pytest.mark.parametrize("seed", [3, np.random.RandomState(3)], ids=["int", "RandomState"])
def test_same_seed_same_cells(seed):
    first = small(random_state=3)
    second = small(random_state=seed)
    for name in (*IMAGES, "batch", "cell_type"):
        np.testing.assert_array_equal(first[name], second[name])


def test_seeds_matter():
    first, second = small(random_state=0), small(random_state=1)
    assert not np.array_equal(first.clean_qpi, second.clean_qpi)
    assert not np.array_equal(first.batch_optics["defocus"], second.batch_optics["defocus"])


@pytest.mark.parametrize("seed", [None, 0, np.random.RandomState(0)], ids=["None", "int", "RandomState"])
def test_global_random_state_is_neither_read_nor_changed(seed):
    before = np.random.get_state()  # noqa: NPY002
    first = small(random_state=seed, cells_random_state=1)
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    if seed is None:  # the same global state, and yet other images
        assert not np.array_equal(first.bf, small(random_state=None, cells_random_state=1).bf)


def assert_same_instruments_and_types(first, second):
    for group in ("batch_optics", "type_morphology"):
        for name, values in first[group].items():
            np.testing.assert_array_equal(values, second[group][name], err_msg=name)


def test_second_seed_gives_new_cells_on_the_same_instruments():
    first, second = small(), small(cells_random_state=5)
    assert_same_instruments_and_types(first, second)
    assert not np.array_equal(first.clean_qpi, second.clean_qpi)
    again = small(cells_random_state=5)
    np.testing.assert_array_equal(second.bf, again.bf)


def test_instruments_do_not_depend_on_cells_pixels_or_design():
    assert_same_instruments_and_types(small(), small(n_cells=30, image_size=32, batches_per_type=2))


def test_other_sizes_show_the_same_cells():
    coarse, fine = small(image_size=32), small(image_size=64)
    np.testing.assert_array_equal(coarse.batch, fine.batch)
    for name in ("clean_bf", "clean_qpi"):
        binned = fine[name].reshape(48, 32, 2, 32, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(coarse[name], binned, atol=1e-4)
    finer = small(image_size=128).clean_qpi.reshape(48, 64, 2, 64, 2).mean(axis=(2, 4))
    assert np.abs(finer - fine.clean_qpi).max() < 0.15


def test_chunks_do_not_show(monkeypatch):
    whole = small(batch_strength=0.5)
    monkeypatch.setattr(optics_of, "CHUNK_PIXELS", 1)
    single = small(batch_strength=0.5)
    for name in ("clean_bf", "clean_qpi"):
        np.testing.assert_allclose(whole[name], single[name], atol=1e-5)


def test_no_strength_no_batch_effect():
    data = small(batch_strength=0, image_size=32)
    np.testing.assert_array_equal(data.bf, data.clean_bf)
    np.testing.assert_array_equal(data.qpi, data.clean_qpi)


def test_batches_grow_apart_with_strength():
    def apart(strength, name):
        data = small(n_cells=120, n_cell_types=1, batch_strength=strength)
        means = [data[name][data.batch == batch].mean(axis=0) for batch in np.unique(data.batch)]
        return np.std(means, axis=0).mean()

    for name in ("bf", "qpi"):
        values = [apart(strength, name) for strength in (0.0, 0.5, 1.0, 2.0)]
        assert values == sorted(values) and values[-1] > 3 * values[0]


def test_batch_changes_no_cell():
    """The truth of a cell is the same on any instrument: strength changes only what the batches show."""
    weak, strong = small(batch_strength=0.0), small(batch_strength=2.0)
    np.testing.assert_array_equal(weak.clean_qpi, strong.clean_qpi)
    np.testing.assert_array_equal(weak.clean_bf, strong.clean_bf)


def test_magnification_enlarges_the_cell():
    data = small(n_cells=40, n_cell_types=1, n_batches=2, image_size=64)
    for code, magnification in enumerate(data.batch_optics["magnification"]):
        # Integrated phase scales with the area; blur keeps it, gain and background are undone.
        member = data.batch == f"batch{code}"
        corrected = data.qpi[member].mean(axis=0) - data.qpi[member][:, :, [0, -1]].mean()
        corrected /= data.batch_optics["qpi_gain"][code]
        ratio = corrected.sum() / data.clean_qpi[member].mean(axis=0).sum()
        assert ratio == pytest.approx(magnification**2, rel=0.01)


def groups(data, n_cell_types, n_batches):
    table = np.zeros((n_cell_types, n_batches), dtype=int)
    np.add.at(table, ([int(t[4:]) for t in data.cell_type], [int(b[5:]) for b in data.batch]), 1)
    return table


@pytest.mark.parametrize(
    ("types", "batches", "per_type"), [(7, 7, 3), (4, 7, 3), (7, 3, 2), (2, 8, 5), (5, 6, 2), (3, 1, 1)]
)
def test_incomplete_design_is_balanced_and_connected(types, batches, per_type):
    data = small(n_cells=101, n_cell_types=types, n_batches=batches, batches_per_type=per_type)
    assert (data.design.sum(axis=1) == per_type).all()
    in_batch = data.design.sum(axis=0)
    assert in_batch.min() >= 1 and np.ptp(in_batch) <= 1
    table = groups(data, types, batches)
    np.testing.assert_array_equal(table > 0, data.design)
    assert np.ptp(table[data.design]) <= 1
    reached = data.design[0]
    for _ in range(types):
        reached = data.design[(data.design & reached).any(axis=1)].any(axis=0)
    assert reached.all()


def test_circulant_design():
    design = small(n_cells=100, n_cell_types=7, n_batches=7, batches_per_type=3).design
    for cell_type in range(7):
        assert set(np.flatnonzero(design[cell_type])) == {(cell_type + step) % 7 for step in range(3)}


def test_explicit_design():
    design = [[1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 0]]
    data = small(design=design)
    np.testing.assert_array_equal(groups(data, 3, 4) > 0, np.array(design, dtype=bool))


def test_one_cell_per_group_is_enough():
    assert len(small(n_cells=12).bf) == 12


def sphere(radius, index, n_granules=0, granule_radius=0.0):
    body = np.array([[0.0, 0.0, radius, radius, 0.3, radius]])
    granules = np.zeros((1, max(n_granules, 1)))
    return cells_of.Cells(
        body,
        0.5 * body,
        np.array([index]),
        np.zeros(1),
        granules,
        granules,
        granules + granule_radius * (n_granules > 0),
    )


def test_phase_at_the_centre_of_a_sphere():
    phase = cells_of.phase_of(sphere(7.0, 1.355), np.zeros(1), np.zeros(1), 0.647, 1.335)
    assert phase.item() == pytest.approx(2 * np.pi / 0.647 * 0.02 * 14.0, rel=1e-5)


# The soft edge adds a little volume outside the ellipsoid: 2 % for a radius of 7 um, nothing as it narrows.
@pytest.mark.parametrize(("edge", "tolerance"), [(0.4, 0.025), (0.02, 0.001)])
def test_phase_holds_the_volume_of_a_sphere(monkeypatch, edge, tolerance):
    monkeypatch.setattr(cells_of, "EDGE_WIDTH", edge)
    x = np.arange(-10, 10, 0.1)
    phase = cells_of.phase_of(sphere(7.0, 1.355), x, x, 0.647, 1.335)
    volume = 4 / 3 * np.pi * 7.0**3
    assert phase.sum() * 0.01 == pytest.approx(2 * np.pi / 0.647 * 0.02 * volume, rel=tolerance)
    assert phase[0, 0, 0] == 0.0


def test_granules_hold_the_volume_of_their_spheres():
    x = np.arange(-10, 10, 0.1)
    path = cells_of.granule_thickness(sphere(7.0, 1.355, 3, 0.7), x, x)
    assert path.sum() * 0.01 == pytest.approx(3 * 4 / 3 * np.pi * 0.7**3, rel=1e-3)


def test_elongated_cell_lies_along_its_angle(monkeypatch):
    monkeypatch.setattr(cells_of, "EDGE_WIDTH", 0.02)
    cells = sphere(6.0, 1.36)
    cells.body[0] = [0.0, 0.0, 8.0, 4.0, np.pi / 4, 5.0]
    x = np.linspace(-10, 10, 101)
    phase = cells_of.phase_of(cells, x, x, 0.5, 1.335)[0]
    xy = (phase * x[:, None] * x).sum() / phase.sum()
    assert xy == pytest.approx((8.0**2 - 4.0**2) / 2 / 5, rel=0.005)  # second moments of a projected ellipsoid


def random_phase(size=64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, size, size)).astype(np.float32)


def test_pure_phase_object_in_focus_is_invisible():
    field = optics_of.exit_field(random_phase(), 0.0)
    transfer = optics_of.transfer_function(64, 0.7, 0.0, 0.532, 1.335, None)
    np.testing.assert_allclose(np.abs(optics_of.propagate(field, transfer)) ** 2, 1.0, atol=1e-5)


def test_propagation_keeps_the_energy_and_can_be_undone():
    field = optics_of.exit_field(random_phase(), 0.1)
    there = optics_of.transfer_function(64, 0.7, 8.0, 0.532, 1.335, None)
    back = optics_of.transfer_function(64, 0.7, -8.0, 0.532, 1.335, None)
    moved = optics_of.propagate(field.copy(), there)
    assert np.sum(np.abs(moved) ** 2) == pytest.approx(np.sum(np.abs(field) ** 2), rel=1e-5)
    assert np.abs(moved - field).max() > 0.1
    np.testing.assert_allclose(optics_of.propagate(moved, back), field, atol=1e-4)


def test_propagation_of_a_gaussian_beam():
    waist, distance, pixel, size = 3.0, 60.0, 0.5, 256
    x = (np.arange(size) - size / 2) * pixel
    beam = np.exp(-(x[:, None] ** 2 + x**2) / waist**2).astype(np.complex64)
    moved = optics_of.propagate(beam, optics_of.transfer_function(size, pixel, distance, 0.532, 1.335, None))
    rayleigh = np.pi * waist**2 * 1.335 / 0.532
    intensity = np.abs(moved) ** 2
    radius = 2 * np.sqrt((intensity * x**2).sum() / intensity.sum())
    assert radius == pytest.approx(waist * np.hypot(1, distance / rayleigh), rel=0.01)


def test_aperture_limits_the_band():
    transfer = optics_of.transfer_function(64, 0.2, 3.0, 0.532, 1.335, 0.4)
    frequency = np.fft.fftfreq(64, 0.2)
    beyond = frequency[:, None] ** 2 + frequency**2 > (0.4 / 0.532) ** 2
    assert (transfer[beyond] == 0).all()
    np.testing.assert_allclose(np.abs(transfer[~beyond]), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_cells": 3}, ValueError, "n_cells=3 is too few"),
        ({"n_cells": 0}, ValueError, "n_cells must be"),
        ({"n_cells": 10.5}, TypeError, "n_cells must be an integer"),
        ({"n_cells": True}, TypeError, "n_cells must be an integer"),
        ({"n_cell_types": 0}, ValueError, "n_cell_types"),
        ({"n_batches": "4"}, TypeError, "n_batches"),
        ({"image_size": 15}, ValueError, "image_size must be finite and at least 16; got 15"),
        ({"batches_per_type": 5}, ValueError, "more than n_batches=4"),
        ({"batches_per_type": 1}, ValueError, "at least 2"),
        ({"batches_per_type": 0}, ValueError, "batches_per_type"),
        ({"batches_per_type": 2, "design": np.ones((3, 4), bool)}, ValueError, "one of them"),
        ({"design": np.ones((4, 3), bool)}, ValueError, r"\(3, 4\).*\(4, 3\)"),
        ({"design": np.full((3, 4), 0.5)}, ValueError, "boolean"),
        ({"design": np.eye(3, 4, dtype=bool)}, ValueError, r"batch \[3\] empty"),
        ({"design": np.arange(3)[:, None] * np.ones((1, 4), int) > 0}, ValueError, r"cell type \[0\] empty"),
        ({"batch_strength": -1}, ValueError, "batch_strength"),
        ({"batch_strength": np.nan}, ValueError, "batch_strength"),
        ({"batch_kinds": "sites"}, ValueError, "'instrument', 'site' or a list of some of magnification.*'sites'"),
        ({"batch_kinds": ["crop", "colour"]}, ValueError, "batch_kinds must be"),
        ({"batch_kinds": 3}, ValueError, "batch_kinds must be"),
        ({"batch_strength": "strong"}, TypeError, "batch_strength must be a real number"),
        ({"field_of_view": 10}, ValueError, "from 24 to 500"),
        ({"wavelength": 532}, ValueError, "wavelength"),
        ({"medium_index": 0.5}, ValueError, "medium_index"),
        ({"numerical_aperture": 1.4}, ValueError, "numerical_aperture"),
        ({"random_state": "seed"}, ValueError, "seed"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        small(**arguments)


def test_every_parameter_is_documented_with_its_default():
    text = inspect.getdoc(make_cell_images)
    for name, parameter in inspect.signature(make_cell_images).parameters.items():
        assert f"\n{name} : " in text
        default = parameter.default
        default = f'"{default}"' if isinstance(default, str) else default
        assert f"default={default}" in text[text.index(f"\n{name} : ") :].split("\n")[1]


def test_docstring_example_runs(monkeypatch):
    monkeypatch.setattr("skbegan.datasets.make_cell_images", make_cell_images, raising=False)
    assert doctest.testmod(simulated).failed == 0


@pytest.mark.slow
def test_difficulty():
    """The batch is read perfectly and the cell type, on an unseen batch, hardly: what the method is for."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = make_cell_images(2100, 7, 7, 32, batches_per_type=3, random_state=2)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    scores = {}
    for name in ("bf", "clean_qpi"):
        profile = PCA(40, random_state=0).fit_transform(data[name].reshape(2100, -1))
        one = data.cell_type == "type0"
        scores[name] = (
            cross_val_score(probe, profile[one], data.batch[one], cv=3).mean(),
            cross_val_score(probe, profile, data.cell_type, groups=data.batch, cv=LeaveOneGroupOut()).mean(),
        )
    assert scores["bf"][0] > 0.97 and scores["bf"][1] < 0.45
    assert scores["clean_qpi"][0] < 0.45 and 0.6 < scores["clean_qpi"][1] < 0.85

"""Kinds of batches of simulated cells: those of instruments are as they were, those of sites do what they say."""

import numpy as np
import pytest

from skbegan.datasets import _simulated_optics as optics_of
from skbegan.datasets import make_cell_images, simulated


def small(n_cells=48, n_cell_types=3, n_batches=4, image_size=16, **kwargs):
    return make_cell_images(n_cells, n_cell_types, n_batches, image_size, **{"random_state": 0, **kwargs})


# Means, standard deviations and two pixels of the images as they were before there were kinds. Other libraries of
# Fourier transforms and matrix products round in another way.
@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        (
            {"n_cells": 24},
            {
                "bf": (0.96534699, 0.13181036, 1.0249034, 1.1436734),
                "qpi": (0.11465279, 0.44924029, 0.6171841, 2.0748932),
                "clean_bf": (0.993451, 0.021879027, 0.92069244, 0.96279299),
                "clean_qpi": (0.11497951, 0.42260954, 0.66016376, 2.1983299),
            },
        ),
        (
            {
                "n_cells": 30,
                "n_batches": 3,
                "image_size": 32,
                "batches_per_type": 2,
                "random_state": 5,
                "cells_random_state": 7,
                "batch_strength": 1.7,
            },
            {
                "bf": (0.94916736, 0.22771998, 1.1919478, 1.1959566),
                "qpi": (0.097442709, 0.51474149, -0.099752247, -0.079661638),
                "clean_bf": (0.99307599, 0.033819414, 1.0000516, 1.0000252),
                "clean_qpi": (0.12204863, 0.46477602, 0, 0),
            },
        ),
    ],
)
def test_instruments_are_those_of_before(arguments, images):
    data = small(**arguments)
    for name, values in images.items():
        image = data[name]
        found = image.mean(dtype=float), image.std(dtype=float), *image[3, 5:7, 7]
        np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert (data.batch_optics["gamma"] == 1).all() and (data.batch_optics["coma_x"] == 0).all()


def only(kind, **kwargs):
    """Batches without anything but a kind, and without noise: clean images and images of two batches."""
    kept = set(optics_of.SITE_KINDS[kind])

    def drawn(*arguments):
        found = draw(*arguments)
        return {name: values if name in kept else 0 * values + nominal[name] for name, values in found.items()}

    nominal, draw = optics_of.reference_optics(), optics_of.draw_optics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "draw_optics", drawn)
        return small(**{"n_cells": 40, "n_batches": 2, "image_size": 32, "batch_kinds": [kind], **kwargs})


def width(images):
    """Square root of the mean area at half the height."""
    return np.sqrt((images > 0.5 * images.max(axis=(1, 2), keepdims=True)).sum(axis=(1, 2)).mean())


def test_sites_magnify_more():
    data = only("magnification", image_size=64)
    factor = data.batch_optics["magnification"]
    assert np.ptp(np.log(factor)) > 0.15 > 3 * np.ptp(np.log(small(n_batches=2).batch_optics["magnification"])) / 2
    for code in range(2):
        member = data.batch == f"batch{code}"
        assert width(data.qpi[member]) / width(data.clean_qpi[member]) == pytest.approx(factor[code], rel=0.03)


def centres(images):
    axis = np.arange(images.shape[1]) - (images.shape[1] - 1) / 2
    mass = images.sum(axis=(1, 2))
    return np.stack([(images.sum(axis=1) * axis).sum(axis=1), (images.sum(axis=2) * axis).sum(axis=1)]) / mass


def test_sites_cut_their_crops_elsewhere():
    data = only("crop", n_cells=80)
    moved = (centres(data.qpi) - centres(data.clean_qpi)) * data.pixel_size
    for code in range(2):
        of_batch = moved[:, data.batch == f"batch{code}"]
        shift, scatter = (
            [data.batch_optics[f"shift_{axis}"][code] for axis in "xy"],
            data.batch_optics["centring"][code],
        )
        np.testing.assert_allclose(of_batch.mean(axis=1), shift, atol=4 * scatter / np.sqrt(40) + 0.01)
        np.testing.assert_allclose(of_batch.std(axis=1), scatter, rtol=0.4)
    bf_moved = centres(np.abs(data.bf - 1)) - centres(np.abs(data.clean_bf - 1))  # both images are cut alike
    assert np.corrcoef(bf_moved.ravel(), moved.ravel())[0, 1] > 0.8


def test_contrast_curves_keep_the_order_of_intensities():
    data = only("contrast", n_cell_types=1)
    for measured, clean in ((data.bf, data.clean_bf), (data.qpi, data.clean_qpi)):
        for code in range(2):
            member = data.batch == f"batch{code}"
            x, y = clean[member].ravel(), measured[member].ravel()
            order = np.argsort(x)
            assert (np.diff(y[order]) >= -1e-5).all()
            assert np.abs(x - y).max() > 0.01
            assert 1 - np.corrcoef(x, y)[0, 1] > 1e-5  # no gain and offset could do it


def test_curve():
    image = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], dtype=np.float32)
    np.testing.assert_array_equal(optics_of.curve(image, 1.0, 0.0, 1.0, 1.0), image)
    np.testing.assert_allclose(optics_of.curve(image, 2.0, 0.0, 2.0, 0.0), [-0.5, 0, 0.125, 0.5, 2], rtol=1e-6)
    flat = optics_of.curve(image, 1.0, 1e-3, 1.0, 1.0)
    np.testing.assert_allclose(flat, image, atol=1e-4)
    bent = optics_of.curve(image, 1.0, 1.0, 1.0, 1.0)
    assert bent[3] == 1.0 and bent[4] < 2.0 and bent[0] > -1.0 and (np.diff(bent) > 0).all()


def response(**waves):
    """Intensity of a small round absorber in the middle, 5 um out of focus, with these aberrations."""
    size, pixel, band = 64, 0.5, 0.4 / 0.532
    x = (np.arange(size) - size / 2) * pixel
    field = (1 - 0.5 * np.exp(-(x[:, None] ** 2 + x**2) / 2)).astype(np.complex64)[None]
    values = dict.fromkeys(optics_of.SITE_KINDS["aberrations"], 0.0) | waves
    transfer = optics_of.transfer_function(size, pixel, 5.0, 0.532, 1.335, 0.4)
    transfer *= optics_of.aberration(size, pixel, band, values)
    return np.abs(optics_of.propagate(field, transfer)[0])[1:, 1:] ** 2


def symmetry(image):
    """Largest change of the image by a quarter turn, a mirror, and half a turn."""
    return [np.abs(image - other).max() for other in (np.rot90(image), image[::-1], image[::-1, ::-1])]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("spherical", (False, False, False)),
        ("astigmatism_0", (True, False, False)),
        ("astigmatism_45", (False, True, False)),  # out of focus: a quarter turn is a mirror at the diagonal
        ("coma_x", (True, False, True)),
        ("coma_y", (True, True, True)),
    ],
)
def test_aberrations_break_their_symmetry(name, broken):
    plain, bent = response(), response(**{name: 0.1})
    assert np.abs(plain - bent).max() > 0.01
    assert max(symmetry(plain)) < 1e-4
    if name == "astigmatism_45":
        assert np.abs(bent - np.rot90(bent)).max() > 0.01  # and is broken too
        assert np.abs(bent - bent.T).max() < 1e-4
        broken = (True, True, False)
    assert tuple(change > 0.005 for change in symmetry(bent)) == broken


def test_polynomials_of_the_pupil_are_orthonormal():
    size, band = 400, 1.0
    names = list(optics_of.SITE_KINDS["aberrations"])
    inside = np.add.outer(np.fft.fftfreq(size, 0.5) ** 2, np.fft.fftfreq(size, 0.5) ** 2) < 1

    def polynomial(name):
        few = dict.fromkeys(names, 0.0) | {name: 0.01}
        return np.angle(optics_of.aberration(size, 0.5, band, few))[inside] / (2 * np.pi * 0.01)

    found = np.array([polynomial(name) for name in names])
    np.testing.assert_allclose(found @ found.T / inside.sum(), np.eye(len(names)), atol=0.03)


def test_aberrations_are_of_brightfield():
    data = only("aberrations")
    np.testing.assert_array_equal(data.qpi, data.clean_qpi)
    assert np.abs(data.bf - data.clean_bf).max() > 0.05


def test_neighbours_stand_beside_the_cell():
    data = only("neighbours", n_cells=200, field_of_view=60.0)
    more = data.qpi - data.clean_qpi
    with_one = more.max(axis=(1, 2)) > 0.3
    for code, share in enumerate(data.batch_optics["neighbours"]):
        assert with_one[data.batch == f"batch{code}"].mean() == pytest.approx(share, abs=0.17)
    assert more.min() > -1e-5
    assert np.abs(more[~with_one]).max() < 0.3
    both = np.minimum(more, data.clean_qpi)[with_one].max(axis=(1, 2))
    assert np.median(both) < 0.3  # they hardly overlap, by blur alone
    np.testing.assert_array_equal(small(batch_kinds="site").batch_optics["neighbours"], 0.0)


def test_kinds_change_neither_cells_nor_other_traits():
    data, site = small(), small(batch_kinds="site")
    for name in ("clean_bf", "clean_qpi", "batch", "cell_type"):
        np.testing.assert_array_equal(data[name], site[name])
    of_site = {name for kind in optics_of.SITE_KINDS.values() for name in kind}
    gamma = small(batch_kinds=["contrast"]).batch_optics
    for name, values in data.batch_optics.items():
        assert np.array_equal(values, site.batch_optics[name]) == (name not in of_site or name == "neighbours"), name
        if name in optics_of.SITE_KINDS["contrast"]:
            np.testing.assert_array_equal(gamma[name], site.batch_optics[name])
        else:
            np.testing.assert_array_equal(gamma[name], values)
    every = small(batch_kinds=["crop", "aberrations", "contrast", "magnification", "crop"])
    np.testing.assert_array_equal(every.bf, site.bf)
    assert "aberrations" in site.DESCR and "differ in" not in data.DESCR


@pytest.mark.parametrize("kinds", ["site", list(optics_of.SITE_KINDS)])
def test_no_strength_no_site_effect(kinds):
    data = small(batch_strength=0, image_size=32, batch_kinds=kinds)
    np.testing.assert_array_equal(data.bf, data.clean_bf)
    np.testing.assert_array_equal(data.qpi, data.clean_qpi)


def test_strong_sites_stay_finite():
    data = small(batch_strength=10, batch_kinds=list(optics_of.SITE_KINDS))
    assert np.isfinite(data.bf).all() and np.isfinite(data.qpi).all()

"""Cell measurements on images whose answer is known."""

import sys

import numpy as np
import pandas as pd
import pytest

from skbegan.datasets import make_cell_images
from skbegan.metrics import cell_measurements

COLUMNS = ["total_phase", "area", "elongation", "solidity", "texture", "radial_moment_1", "radial_moment_2"]


def ellipse(a, b, *, side=64, centre=(0.0, 0.0), angle=0.0, dome=False, height=1.0):
    """An ellipse with semi-axes a and b in pixels: flat, or a dome as the phase of an ellipsoid is."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    y, x = y - centre[0], x - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    inside = 1 - (along / a) ** 2 - (across / b) ** 2
    return height * (np.sqrt(np.maximum(inside, 0)) if dome else (inside > 0).astype(float))


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2])
@pytest.mark.parametrize(("a", "b"), [(20, 20), (24, 16), (24, 10)])
@pytest.mark.parametrize("dome", [False, True])
def test_ellipses(a, b, angle, dome):
    image = ellipse(a, b, angle=angle, dome=dome, height=2.0, centre=(2.0, -3.0))
    found = cell_measurements([image]).loc[0]
    assert found.area == pytest.approx(np.pi * a * b, rel=0.05)
    assert found.elongation == pytest.approx(a / b, rel=0.04)
    assert found.solidity > 0.96
    assert found.total_phase == pytest.approx(image.sum(), rel=0.03)
    if a == b:
        assert found.radial_moment_1 == pytest.approx(3 * np.pi / 16 if dome else 2 / 3, rel=0.03)
        assert found.radial_moment_2 == pytest.approx(0.4 if dome else 0.5, rel=0.04)


def test_dry_mass_and_units():
    """A sphere of radius 5 um and index difference 0.02: its path integral is 4/3 pi r^3 dn."""
    pixel, radius, contrast, wavelength, increment = 0.25, 5.0, 0.02, 0.66, 0.18
    path = ellipse(radius / pixel, radius / pixel, dome=True, height=2 * radius * contrast)
    mass = 4 / 3 * np.pi * radius**3 * contrast / increment
    phase = 2 * np.pi / wavelength * path
    common = {"refraction_increment": increment, "wavelength": wavelength}
    found = cell_measurements([phase], pixel, **common)
    assert found.dry_mass[0] == pytest.approx(mass, rel=0.02)
    assert found.area[0] == pytest.approx(np.pi * radius**2, rel=0.05)
    assert list(found) == [COLUMNS[0], "dry_mass", *COLUMNS[1:]]
    assert found.attrs["units"]["dry_mass"] == "pg" and found.attrs["units"]["area"] == "um^2"
    as_path = cell_measurements([path], pixel, unit="um", **common)
    assert as_path.dry_mass[0] == pytest.approx(found.dry_mass[0])
    assert as_path.attrs["units"]["total_phase"] == "um^3"
    halved = cell_measurements([phase], pixel, refraction_increment=2 * increment, wavelength=wavelength)
    assert halved.dry_mass[0] == pytest.approx(found.dry_mass[0] / 2)
    assert list(cell_measurements([phase])) == list(cell_measurements([phase], pixel, unit=None)) == COLUMNS
    assert cell_measurements([phase]).attrs["units"]["area"] == "px"
    assert cell_measurements([phase]).area[0] * pixel**2 == pytest.approx(found.area[0])


def test_mass_of_simulated_cells():
    """Over all pixels of images without any background, the integral needs no outline."""
    data = make_cell_images(40, 3, 3, 32, random_state=0)
    found = cell_measurements(data.clean_qpi, data.pixel_size)
    whole = data.clean_qpi.sum(axis=(1, 2)) * data.pixel_size**2
    assert found.notna().all(axis=None)
    np.testing.assert_allclose(found.total_phase, whole, rtol=0.06)
    with_instrument = cell_measurements(data.qpi, data.pixel_size)
    assert found.total_phase.corr(with_instrument.total_phase) > 0.9
    assert found.area.corr(with_instrument.area) > 0.85


def test_gain_offset_and_tilt_change_no_shape():
    image = ellipse(18, 11, angle=0.3, dome=True) + 0.01 * np.random.default_rng(0).normal(size=(64, 64))
    tilt = np.linspace(-0.3, 0.3, 64)
    plain, scaled, tilted = cell_measurements([image, 3 * image + 7, image + tilt]).to_numpy()
    assert scaled[0] == pytest.approx(3 * plain[0], rel=1e-6)
    np.testing.assert_allclose(scaled[1:], plain[1:], rtol=1e-6)
    np.testing.assert_allclose(tilted[:4], plain[:4], rtol=0.03)
    untilted = cell_measurements([image + tilt], background="median").to_numpy()[0]
    assert abs(untilted[3] - plain[3]) + abs(untilted[4] / plain[4] - 1) > abs(tilted[4] / plain[4] - 1)


def test_dark_cells_and_channels():
    image = ellipse(18, 11)
    bright = cell_measurements([image])
    pd.testing.assert_frame_equal(cell_measurements([5 - image], foreground="dark"), bright)
    pd.testing.assert_frame_equal(cell_measurements([5 - image] * 2, foreground="auto")[:1], bright)
    pd.testing.assert_frame_equal(cell_measurements([image], foreground="auto"), bright)
    two = np.stack([np.zeros_like(image), image], axis=-1)[None]
    pd.testing.assert_frame_equal(cell_measurements(two, channel=1), bright)
    assert cell_measurements(two).isna().all(axis=None)


def test_texture_and_solidity_tell_what_they_should():
    rng = np.random.default_rng(0)
    smooth = ellipse(20, 20, dome=True)
    grains = smooth + 0.1 * rng.normal(size=smooth.shape) * (smooth > 0)
    more = smooth + 0.2 * rng.normal(size=smooth.shape) * (smooth > 0)
    bite = ellipse(20, 20) * (ellipse(12, 12, centre=(0, 16)) == 0)
    found = cell_measurements([smooth, grains, more, bite])
    assert found.texture[0] < 0.5 * found.texture[1]
    assert found.texture[2] == pytest.approx(2 * found.texture[1], rel=0.15)
    assert found.solidity[3] < 0.93 < 0.97 < found.solidity[0]
    assert found.radial_moment_2[0] < 0.45


def test_the_cell_in_the_middle_is_measured_and_not_its_neighbour():
    cell = ellipse(14, 9, dome=True)
    beside = ellipse(15, 15, centre=(24, 24), dome=True)
    touching = ellipse(8, 8, centre=(0, 22.5), dome=True)
    alone, with_one, with_touching = cell_measurements([cell, cell + beside, np.maximum(cell, touching)]).to_numpy()
    np.testing.assert_allclose(with_one[1:3], alone[1:3], rtol=0.06)
    np.testing.assert_allclose(with_touching[1:3], alone[1:3], rtol=0.12)


@pytest.mark.parametrize("side", [16, 32])
def test_images_without_a_cell_give_nan_and_no_warning(side, recwarn):
    rng = np.random.default_rng(0)
    images = np.concatenate(
        [
            np.zeros((1, side, side)),
            np.full((1, side, side), 0.1),
            1e8 + np.zeros((1, side, side)),
            0.3 + 1e-12 * rng.normal(size=(2, side, side)),
            rng.normal(size=(30, side, side)),
        ]
    )
    found = cell_measurements(images, 0.5)
    assert found.shape == (35, 8)
    assert found.isna().all(axis=1).mean() > 0.95
    assert found[:5].isna().all(axis=None)
    odd = np.zeros((6, side, side))
    odd[0, 3, 4] = 1  # one bright pixel
    odd[1, :, 3:6] = 1  # a bar through the image
    odd[2, :5, :5] = 1  # in the corner
    odd[3] = np.arange(side)  # a ramp
    odd[4, 2:-2, 2:-2] = 1  # hardly any background
    odd[5, ::2] = 1
    assert cell_measurements(odd).shape == (6, 7)
    assert not list(recwarn)


def test_an_outline_that_closes_around_the_whole_image_is_no_cell(recwarn):
    frame = np.ones((16, 16))
    frame[3:-3, 3:-3] = 0.0
    assert cell_measurements([frame]).isna().all(axis=None)
    assert not recwarn.list


def test_own_masks():
    image = ellipse(20, 10)
    mask = ellipse(12, 6) > 0
    found = cell_measurements([image], masks=[mask]).loc[0]
    assert found.area == mask.sum() == pytest.approx(found.total_phase)
    assert found.elongation == pytest.approx(2, rel=0.05)
    empty = np.stack([np.zeros_like(mask), np.ones_like(mask)])
    assert cell_measurements([image, image], masks=empty).isna().all(axis=None)


def test_order_dtype_and_caller_s_array(recwarn):
    rng = np.random.default_rng(1)
    images = np.stack([ellipse(rng.uniform(8, 14), rng.uniform(5, 8), side=32, dome=True) for _ in range(6)])
    images.setflags(write=False)
    found = cell_measurements(images)
    order = rng.permutation(6)
    np.testing.assert_array_equal(cell_measurements(images[order]), found.to_numpy()[order])
    quantised = cell_measurements((1000 * images).astype(np.uint16))
    np.testing.assert_allclose(quantised.area, found.area, rtol=0.03)
    assert not list(recwarn)


def test_bad_input():
    image = ellipse(10, 6, side=32)
    for arguments, message in (
        ({"images": image}, "must be of shape"),
        ({"images": [image + np.inf]}, "NaN or infinity"),
        ({"images": [[["a"]]]}, "real numbers"),
        ({"pixel_size": 0}, "pixel_size must be a positive number"),
        ({"pixel_size": "1"}, "pixel_size must be a positive number"),
        ({"refraction_increment": -1.0}, "refraction_increment"),
        ({"wavelength": np.nan}, "wavelength"),
        ({"texture_scale": 0.0}, "texture_scale"),
        ({"unit": "nm"}, "unit must be one of"),
        ({"foreground": "grey"}, "foreground must be one of"),
        ({"background": None}, "background must be one of"),
        ({"masks": [image]}, "masks must be bool"),
        ({"masks": [image[:5] > 0]}, "masks must be bool"),
        ({"images": np.zeros((1, 8, 8, 2)), "channel": 2}, "channel must be from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            cell_measurements(**{"images": [image], **arguments})


@pytest.mark.parametrize("missing", ["skimage.measure", "pandas"])
def test_without_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "skbegan\[measurements\]"'):
        cell_measurements([ellipse(10, 6)])

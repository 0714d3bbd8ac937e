"""Images of any size and shape become squares: against OpenCV, Pillow and known answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skbegan.datasets import resize_images
from skbegan.datasets.resizing import resize_into

cv2 = pytest.importorskip("cv2")
edges = st.integers(1, 70)
SETTINGS = settings(max_examples=60, deadline=None)


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- properties ------------------------------------------------------------------------------------------------------


@SETTINGS
@given(edges, edges, edges, st.sampled_from([1, 2, 3]), st.integers(0, 2**32 - 1))
def test_stretching_is_that_of_opencv(height, width, side, n_channels, seed):
    images = random_images(2, height, width, n_channels, seed=seed)
    resized = resize_images(images, side, fit="stretch")
    for image, ours in zip(images, resized, strict=True):
        theirs = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, n_channels)
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@SETTINGS
@given(edges, edges, st.integers(0, 2**32 - 1))
def test_smoothing_before_shrinking_is_that_of_pillow(height, side, seed):
    width = height + 3
    if side >= height:
        side = max(1, height // 2)
    image = random_images(height, width, seed=seed)
    theirs = np.asarray(Image.fromarray(image, mode="F").resize((side, side), Image.Resampling.BICUBIC))
    ours = resize_images(image[None], side, fit="stretch", antialias=True)[0]
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@SETTINGS
@given(edges, edges, st.integers(1, 64), st.sampled_from(["pad", "crop", "stretch"]), st.booleans(), st.integers(0, 9))
def test_what_holds_for_all_ways(height, width, side, fit, antialias, seed):
    images = random_images(3, height, width, seed=seed)
    before = images.copy()
    resized = resize_images(images, side, fit=fit, antialias=antialias)
    assert resized.shape == (3, side, side) and resized.dtype == np.float32 and np.isfinite(resized).all()
    np.testing.assert_array_equal(images, before)
    assert not np.shares_memory(resized, images)
    # each image for itself; of one scale and offset; mirrored with its input
    np.testing.assert_allclose(resize_images(images[1:2], side, fit, antialias=antialias)[0], resized[1], atol=1e-5)
    scaled = resize_images(3 * images - 7, side, fit, antialias=antialias)
    np.testing.assert_allclose(scaled, 3 * resized - 7, atol=1e-3)
    if (height - width) % 2 == 0 or fit == "stretch":  # else the middle lies between two pixels
        turned = resize_images(images[:, ::-1, ::-1], side, fit, antialias=antialias)
        np.testing.assert_allclose(turned[:, ::-1, ::-1], resized, atol=1e-4)
    flat = resize_images(np.full((1, height, width), 5.0), side, fit, antialias=antialias)
    np.testing.assert_allclose(flat, 5.0, atol=1e-5)


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_pad_puts_the_image_in_the_middle_of_its_background():
    image = np.zeros((1, 10, 20), dtype=np.uint8)
    image[:, 2:8, 5:15] = 200
    image[:, 0, :3] = 90  # a few border pixels are not the background
    padded = resize_images(image, 20)
    np.testing.assert_array_equal(padded[0, 5:15], image[0])
    assert (padded[0, :5] == 0).all() and (padded[0, 15:] == 0).all()
    coloured = np.stack([image, image + 50], axis=-1)
    assert (resize_images(coloured, 20)[0, :5] == [0, 50]).all()


def test_crop_cuts_the_middle_and_stretch_keeps_all():
    image = random_images(1, 10, 20)
    np.testing.assert_array_equal(resize_images(image, 10, fit="crop"), image[:, :, 5:15])
    stretched = resize_images(image, 10, fit="stretch")
    assert stretched.shape == (1, 10, 10) and not np.allclose(stretched, image[:, :, 5:15], atol=0.1)


def test_square_images_are_as_before_whatever_the_fit():
    images = random_images(3, 24, 24)
    by_pad = resize_images(images, 16)
    for fit in ("crop", "stretch"):
        np.testing.assert_array_equal(resize_images(images, 16, fit), by_pad)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("kind", [list, tuple, "objects", "column"])
def test_crops_of_many_sizes(fit, kind):
    rng = np.random.default_rng(0)
    crops = [rng.random((*rng.integers(20, 40, 2),), np.float32) for _ in range(12)]
    given_as = crops
    if kind in (list, tuple):
        given_as = kind(crops)
    else:
        given_as = np.empty(12, dtype=object)
        given_as[:] = crops
        given_as = pd.Series(given_as) if kind == "column" else given_as
    resized = resize_images(given_as, 32, fit)
    assert resized.shape == (12, 32, 32)
    if fit == "stretch":
        for crop, ours in zip(crops, resized, strict=True):
            np.testing.assert_allclose(ours, cv2.resize(crop, (32, 32), interpolation=cv2.INTER_CUBIC), atol=2e-5)


def test_crops_of_one_call_keep_one_scale():
    """A cell that is twice as large stays twice as large."""
    small, large = np.zeros((20, 20)), np.zeros((40, 30))
    small[8:12, 8:12] = large[16:24, 11:19] = 1
    resized = resize_images([small, large], 40)
    assert resized[0].sum() == small.sum() and resized[1].sum() == large.sum()
    one, other = resize_images([small], 40, frame=40), resize_images([large], 40, frame=40)
    np.testing.assert_array_equal(np.concatenate([one, other]), resized)
    cut = resize_images([small, large], 20, frame=20, fit="crop")
    np.testing.assert_array_equal(cut[0], small)
    np.testing.assert_array_equal(cut[1], large[10:30, 5:25])


def test_lists_with_channels_and_several_dtypes():
    crops = [np.ones((20, 24, 2), np.uint8), np.full((24, 20, 2), 2.5), np.ones((20, 24, 2), np.uint8)]
    resized = resize_images(crops, 16)
    assert resized.shape == (3, 16, 16, 2)
    np.testing.assert_allclose(resized, np.array([1, 2.5, 1])[:, None, None, None] * np.ones((3, 16, 16, 2)), atol=1e-5)


def test_smoothing_is_a_choice_and_only_for_shrinking():
    noise = random_images(4, 64, 64)
    assert resize_images(noise, 16, antialias=True).std() < 0.5 * resize_images(noise, 16).std()
    np.testing.assert_array_equal(resize_images(noise, 128, antialias=True), resize_images(noise, 128))


def test_narrow_images_are_not_taken_for_channels_first():
    for shape in ((2, 1, 2, 2), (2, 5, 3, 3)):
        assert resize_images(np.ones(shape), 8).shape == (2, 8, 8, shape[3])


def test_nested_lists_are_images_too():
    assert resize_images([[[1, 2], [3, 4]]], 4).shape == (1, 4, 4)


def test_parts_do_not_change_the_result(monkeypatch):
    from skbegan.datasets import resizing

    images = random_images(7, 30, 20)
    whole = resize_images(images, 16)
    monkeypatch.setattr(resizing, "CHUNK_BYTES", 1)
    np.testing.assert_array_equal(resize_images(images, 16), whole)
    out = np.empty((7, 16, 16), np.float32)
    resize_into(images, out, 30)
    np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize(
    ("images", "options", "error", "match"),
    [
        ([np.zeros((8, 8)), np.zeros(8)], {}, ValueError, r"at position 1 has the shape \(8,\)"),
        ([np.zeros((8, 8)), np.zeros((8, 8, 2))], {}, ValueError, r"the same channels .* position 1 \(8, 8, 2\)"),
        ([np.zeros((8, 8)), np.zeros((8, 8), complex)], {}, ValueError, "position 1 .* dtype complex128"),
        ([], {}, ValueError, r"got \(0,\)"),
        (np.zeros((2, 8, 9)), {"fit": "squeeze"}, ValueError, r"fit must be one of \['pad', 'crop', 'stretch'\]"),
        (np.zeros((2, 8, 9)), {"fit": None}, ValueError, "fit must be one of"),
        (np.zeros((2, 8, 9)), {"frame": 0}, ValueError, "frame must be at least 1"),
        (np.zeros((2, 8, 9)), {"frame": 8.0}, TypeError, "frame must be an integer"),
        (np.zeros((2, 8, 9)), {"frame": 8, "fit": "stretch"}, ValueError, "frame is for fit='pad' and fit='crop'"),
        (["a.png", "b.png"], {}, TypeError, r"a list of file names, first 'a.png'; read them first: np.stack"),
    ],
)
def test_what_is_refused(images, options, error, match):
    with pytest.raises(error, match=match):
        resize_images(images, 16, **options)


def test_advice_for_single_images_and_channels_first():
    for images in (np.ones((16, 20)), np.ones((4, 3, 16, 16))):
        with pytest.raises(ValueError) as caught:
            resize_images(images, 16)
        advice = str(caught.value).rstrip(".").rsplit(": ", 1)[-1].rsplit("is ", 1)[-1]
        assert resize_images(eval(advice, {"images": images, "np": np}), 16).shape[1:3] == (16, 16)

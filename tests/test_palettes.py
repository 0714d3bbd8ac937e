"""Palettes: told apart with any common colour vision, readable on white and on dark, batches unlike cell types."""

from itertools import combinations, product

import numpy as np
import pytest

from skbegan.plotting._common import BATCH_COLOURS, COLOURS, DARK, GREY, LIGHT, TYPE_COLOURS

# Severity 1.0 of Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", IEEE Trans. Vis. Comput. Graph. 15, 1291, 2009; for linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    """Return the linear RGB of a hexadecimal colour."""
    values = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def seen(colour, vision):
    """Return the CIELAB colour as it is seen."""
    color = pytest.importorskip("skimage.color")
    rgb = np.clip(np.asarray(VISIONS[vision]) @ linear(colour), 0, 1)
    encoded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return color.rgb2lab(encoded)


def distance(one, other, vision):
    color = pytest.importorskip("skimage.color")
    return float(color.deltaE_ciede2000(seen(one, vision), seen(other, vision)))


def contrast(one, other):
    """Return the contrast ratio of WCAG 2."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def test_the_measures_themselves():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    # Red and green of like lightness: far apart, but not to those who lack the cones.
    assert distance("#bb3333", "#667700", "normal") > 40
    assert distance("#bb3333", "#667700", "deuteranopia") < 15


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("palette", [BATCH_COLOURS, TYPE_COLOURS, COLOURS], ids=["batch", "type", "lines"])
def test_colours_of_a_palette_are_told_apart(palette, vision):
    assert len(set(palette)) >= 6
    assert min(distance(a, b, vision) for a, b in combinations(palette, 2)) >= 16


def test_no_batch_looks_like_a_cell_type():
    assert min(distance(a, b, "normal") for a, b in product(BATCH_COLOURS, TYPE_COLOURS)) >= 12


@pytest.mark.parametrize("background", [LIGHT, DARK, "#000000"])
def test_markers_and_lines_have_contrast(background):
    for colour in {*BATCH_COLOURS, *TYPE_COLOURS, *COLOURS, GREY}:
        assert contrast(colour, background) >= 3, colour

"""The cells of the simulation: traits of types, geometry of each cell, and its phase. Lengths in micrometres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

Array = NDArray[Any]

# Traits that make a cell type: (lowest, highest) mean of a type, scatter of single cells as a fraction of that range,
# and bounds no cell leaves. The scatter sets how much types overlap. A measured HL60 cell in suspension (radius 7 um,
# 2.7 rad at 0.647 um) has a mean index of 1.355; nuclei of such cells are no denser than the cytoplasm (Schuermann et
# al., J. Biophotonics 2016), so the nuclear contrast straddles zero.
TRAITS = {
    "radius": (5.6, 7.8, 0.13, (4.5, 9.0)),  # um, geometric mean of the in-plane semi-axes
    "cell_index": (1.348, 1.356, 0.13, (1.345, 1.362)),
    "nucleus_fraction": (0.45, 0.72, 0.155, (0.30, 0.80)),  # nuclear over cell radius
    "nucleus_contrast": (-0.005, 0.004, 0.155, (-0.008, 0.008)),  # index of the nucleus minus that of the cytoplasm
    "n_granules": (2.0, 20.0, 0.12, (0.0, 28.0)),
    "granule_radius": (0.40, 0.75, 0.12, (0.30, 0.95)),  # um
    "elongation": (1.04, 1.35, 0.155, (1.0, 1.6)),  # long over short in-plane axis
}
_GRANULE_CONTRAST = 0.03  # index of granules (lipid, lysosomes) minus that of the cytoplasm
_GRANULE_RESOLUTION = 0.3  # um, standard deviation; keeps granules wide enough for the finest grid needed
EDGE_WIDTH = 0.4  # um, over which the cell boundary fades; adds 2 % to the volume of a cell, nothing to its centre


def spread(count: int, n_draws: int, rng: np.random.Generator) -> Array:
    """`count` well separated points in [-1, 1] for each of `n_draws` quantities, in independent random order.

    A Latin hypercube: independent draws would often put two batches at nearly the same place.
    """
    levels = rng.permuted(np.tile(np.arange(count), (n_draws, 1)), axis=1)
    return 2.0 * (levels + 0.5 + rng.uniform(-0.3, 0.3, levels.shape)) / count - 1.0


def draw_types(n_cell_types: int, rng: np.random.Generator) -> dict[str, Array]:
    # The best separated of some draws, by the first four traits (those that a linear look at the phase can tell apart):
    # a single draw may put two types side by side.
    draws = [spread(n_cell_types, len(TRAITS), rng) for _ in range(30)]
    best = max(draws, key=lambda draw: pdist(draw[:4].T).min(initial=np.inf))
    return {
        name: low + (high - low) * (0.5 + 0.5 * place)
        for (name, (low, high, _, _)), place in zip(TRAITS.items(), best, strict=True)
    }


class Cells(NamedTuple):
    """Geometry in um and radians, one row per cell. The ellipsoids' columns: x, y, long, short, angle, axial."""

    body: Array
    nucleus: Array
    body_index: Array
    nucleus_contrast: Array
    granule_x: Array  # (n_cells, most granules)
    granule_y: Array
    granule_radius: Array  # 0 where a cell has fewer granules than the most


def draw_cells(morphology: Mapping[str, Array], types: Array, rng: np.random.Generator) -> Cells:
    n = len(types)
    trait = {
        name: np.clip(morphology[name][types] + scatter * (high - low) * rng.standard_normal(n), *bounds)
        for name, (low, high, scatter, bounds) in TRAITS.items()
    }
    stretch = np.sqrt(trait["elongation"])
    x, y = np.clip(rng.normal(0.0, 0.8, (2, n)), -2.0, 2.0)
    axial = trait["radius"] * np.clip(rng.normal(0.9, 0.04, n), 0.75, 1.0)
    angle = rng.uniform(0.0, np.pi, n)
    body = np.stack([x, y, trait["radius"] * stretch, trait["radius"] / stretch, angle, axial], axis=1)
    nucleus = _draw_nuclei(body, trait["nucleus_fraction"], rng)
    granules = _draw_granules(body, trait["n_granules"], trait["granule_radius"], rng)
    return Cells(body, nucleus, trait["cell_index"], trait["nucleus_contrast"], *granules)


def _draw_nuclei(body: Array, fraction: Array, rng: np.random.Generator) -> Array:
    x, y, long, short, angle, axial = body.T
    away = 0.8 * (1.0 - fraction) * short * np.sqrt(rng.uniform(0.0, 1.0, len(body)))  # stays inside the cell
    direction = rng.uniform(0.0, 2.0 * np.pi, len(body))
    stretch = np.sqrt(rng.uniform(1.0, 1.2, len(body)))
    radius = fraction * np.sqrt(long * short)
    turned = angle + rng.normal(0.0, 0.3, len(body))  # nuclei follow the cell, loosely
    place = x + away * np.cos(direction), y + away * np.sin(direction)
    return np.stack([*place, radius * stretch, radius / stretch, turned, fraction * axial], axis=1)


def _draw_granules(body: Array, count: Array, size: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Centres uniform in the volume of the cell, projected; sizes scatter within a cell."""
    most = int(TRAITS["n_granules"][3][1])
    points = rng.standard_normal((3, len(count), most))
    points *= 0.9 * np.cbrt(rng.uniform(0.0, 1.0, points.shape[1:])) / np.linalg.norm(points, axis=0)
    x, y, long, short, angle, _ = body.T[..., None]
    along, across, cos, sin = points[0] * long, points[1] * short, np.cos(angle), np.sin(angle)
    radius = size[:, None] * np.exp(rng.normal(0.0, 0.2, (len(count), most)))
    radius[np.arange(most) >= np.round(count)[:, None]] = 0.0
    return x + along * cos - across * sin, y + along * sin + across * cos, radius


def thickness(ellipsoids: Array, x: Array, y: Array) -> Array:
    """Path length (um) through each ellipsoid over the grid: 2 * axial * sqrt(1 - rho**2) with a soft edge."""
    x0, y0, long, short, angle, axial = ellipsoids.T[..., None]
    cos, sin, dx, dy = np.cos(angle), np.sin(angle), x - x0, y - y0
    xx, yy = (cos / long) ** 2 + (sin / short) ** 2, (sin / long) ** 2 + (cos / short) ** 2
    xy = 2.0 * (long**-2.0 - short**-2.0) * sin * cos
    # inside = 1 - rho**2, from products of the coordinates: three passes over the images instead of seven.
    inside = f32(xy * dy)[:, :, None] * f32(-dx)[:, None, :]
    inside += f32(1.0 - yy * dy**2)[:, :, None]
    inside -= f32(xx * dx**2)[:, None, :]
    # A parabola replaces max(inside, 0) near the edge, where the root has an infinite slope that no grid can hold. The
    # centre keeps the textbook phase. Near the edge, inside = 2 * distance / radius.
    edge = f32(2.0 * EDGE_WIDTH / short)[:, :, None]
    soft = np.clip(inside + edge, 0.0, 2.0 * edge)
    soft *= soft * (0.25 / edge)
    inside -= edge
    soft += np.maximum(inside, 0.0, out=inside)
    np.sqrt(soft, out=soft)
    soft *= f32(2.0 * axial)[:, :, None]
    return soft


def granule_thickness(cells: Cells, x: Array, y: Array) -> Array:
    """Sum of the granules' path lengths (um): Gaussians with the peak and the volume of the sphere they stand for."""
    variance = cells.granule_radius**2 / 3.0
    seen = variance + _GRANULE_RESOLUTION**2  # blurred by the resolution; the volume stays
    peak = 2.0 * cells.granule_radius * variance / seen
    rate = (-0.5 / seen)[:, :, None]
    column = np.exp(f32(rate * (y - cells.granule_y[:, :, None]) ** 2)) * f32(peak)[:, :, None]
    row = np.exp(f32(rate * (x - cells.granule_x[:, :, None]) ** 2))
    return np.matmul(column.transpose(0, 2, 1), row)  # Gaussians are separable: one small product per cell


def phase_of(cells: Cells, x: Array, y: Array, wavelength: float, medium_index: float) -> Array:
    """Phase (radians) of each cell on the grid of the coordinates `x` and `y` (um)."""
    phase = thickness(cells.body, x, y) * f32(cells.body_index - medium_index)[:, None, None]
    phase += thickness(cells.nucleus, x, y) * f32(cells.nucleus_contrast)[:, None, None]
    phase += granule_thickness(cells, x, y) * np.float32(_GRANULE_CONTRAST)
    phase *= np.float32(2.0 * np.pi / wavelength)
    return phase


def moved(cells: Cells, x: Array, y: Array) -> Cells:
    """The same cells elsewhere in the field; by 0, equal to the bit."""
    by = np.zeros_like(cells.body)
    by[:, 0], by[:, 1] = x, y
    granules = {"granule_x": cells.granule_x + x[:, None], "granule_y": cells.granule_y + y[:, None]}
    return cells._replace(body=cells.body + by, nucleus=cells.nucleus + by, **granules)


def f32(values: Any) -> Array:
    return np.asarray(values, dtype=np.float32)

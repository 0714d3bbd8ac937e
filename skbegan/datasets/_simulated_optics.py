"""The instruments of the simulation: what differs between batches, and how images are taken."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import scipy.fft

from skbegan.datasets._simulated_cells import Array, Cells, f32, moved, phase_of, spread

# Instruments: reference value, spread over the batches at batch_strength 1, and how the spread acts. "shift" moves both
# ways, "ratio" multiplies or divides (never reaches zero), "loss" only makes things worse.
OPTICS = {
    "defocus": (5.0, 3.5, "shift"),  # um; never in focus at batch_strength 1, where phase objects are invisible
    "blur": (0.4, 0.8, "loss"),  # um, standard deviation; partial coherence, camera, motion
    "gain": (1.0, 0.2, "ratio"),
    "offset": (0.0, 0.06, "shift"),
    "gradient_x": (0.0, 0.12, "shift"),  # log intensity from the centre to the edge of the field
    "gradient_y": (0.0, 0.12, "shift"),
    "vignetting": (0.0, 0.12, "loss"),  # log intensity lost at the middle of an edge of the field
    "shot_noise": (0.0, 0.03, "loss"),  # standard deviation at intensity 1, grows with the root of the intensity
    "read_noise": (0.0, 0.02, "loss"),
    "magnification": (1.0, 0.03, "ratio"),
    "qpi_gain": (1.0, 0.12, "ratio"),
    "qpi_offset": (0.0, 0.20, "shift"),  # rad
    "qpi_tilt_x": (0.0, 0.20, "shift"),  # rad from the centre to the edge of the field
    "qpi_tilt_y": (0.0, 0.20, "shift"),
    "qpi_blur": (0.4, 0.8, "loss"),  # um, standard deviation
    "qpi_noise": (0.0, 0.04, "loss"),  # rad
}

# What sites differ in beside, by kind. Each kind can be had alone. Aberrations are Zernike coefficients of the pupil of
# the brightfield objective, in wavelengths RMS.
SITE_KINDS = {
    "magnification": {"magnification": (1.0, 0.2, "ratio")},  # in place of the 3 % of one objective
    "crop": {
        "shift_x": (0.0, 2.0, "shift"),  # um; where a site's crops have the cell
        "shift_y": (0.0, 2.0, "shift"),
        "centring": (0.0, 1.0, "loss"),  # um, standard deviation of single cells about that
    },
    "contrast": {
        "gamma": (1.0, 0.35, "ratio"),  # of the recorded brightfield
        "compression": (0.0, 1.5, "loss"),  # slope of a sigmoid about intensity 1
        "qpi_gamma": (1.0, 0.15, "ratio"),
        "qpi_compression": (0.0, 0.25, "loss"),  # 1 / rad; of a sigmoid about 0
    },
    "aberrations": {
        "astigmatism_0": (0.0, 0.12, "shift"),
        "astigmatism_45": (0.0, 0.12, "shift"),
        "coma_x": (0.0, 0.08, "shift"),
        "coma_y": (0.0, 0.08, "shift"),
        "spherical": (0.0, 0.12, "shift"),
    },
    "neighbours": {"neighbours": (0.0, 0.6, "loss")},  # share of the images that show a second cell
}
OF_SITE = ("magnification", "crop", "contrast", "aberrations")  # a neighbour is no trait of the cell, so not of these
_ABSORPTION = 0.03  # nepers of amplitude lost per radian of phase: cells are almost transparent
_QPI_PIVOT = 2.0  # rad, which a gamma of the phase leaves as it is: the middle of a cell
_MOST_OFF = 3.0  # standard deviations of `centring`
_GAP = 3.0  # um, at most, between a cell and its neighbour

_FINEST_NEEDED = 0.75  # um; coarser images are computed on a grid at least this fine and binned, as a camera does
CHUNK_PIXELS = 2**18  # pixels in flight: about 1 MiB per array, which stays in the processor's cache
_SMALLEST_FIELD = 24.0  # um; the largest cell, elongated and off-centre, still fits


def draw_optics(n_batches: int, strength: float, kinds: Collection[str], rng: np.random.Generator) -> dict[str, Array]:
    """Values of each instrument; those of kinds that are not asked for are the reference's.

    All are drawn, whatever the kinds, so a kind changes no other.
    """
    places = dict(zip(OPTICS, spread(n_batches, len(OPTICS), rng), strict=True))
    more = [name for traits in SITE_KINDS.values() for name in traits if name not in OPTICS]
    places |= dict(zip(more, spread(n_batches, len(more), rng), strict=True))
    drawn = OPTICS | {name: trait for kind in kinds for name, trait in SITE_KINDS[kind].items()}
    optics = {}
    for name, value in reference_optics().items():
        if name not in drawn:
            optics[name] = np.full(n_batches, value)
            continue
        reference, width, how = drawn[name]
        change = strength * width * (0.5 + 0.5 * places[name] if how == "loss" else places[name])
        optics[name] = reference * np.exp(change) if how == "ratio" else reference + change
    return optics


def reference_optics() -> dict[str, float]:
    every = OPTICS | {name: trait for traits in SITE_KINDS.values() for name, trait in traits.items()}
    return {name: reference for name, (reference, _, _) in every.items()}


class Bench(NamedTuple):
    image_size: int
    field_of_view: float
    wavelength: float
    medium_index: float
    numerical_aperture: float

    @property
    def fine_size(self) -> int:
        return self.image_size * math.ceil(self.field_of_view / self.image_size / _FINEST_NEEDED)


def exit_field(phase: Array, absorption: float) -> Array:
    """exp(i * phase - absorption * |phase|), complex64: also where the medium is the denser one, light is only lost."""
    amplitude = np.exp(np.float32(-absorption) * np.abs(phase))
    field = np.empty(phase.shape, dtype=np.complex64)
    np.multiply(amplitude, np.cos(phase), out=field.real)
    np.multiply(amplitude, np.sin(phase), out=field.imag)
    return field


def transfer_function(
    size: int, pixel: float, defocus: float, wavelength: float, medium_index: float, numerical_aperture: float | None
) -> Array:
    """Angular-spectrum transfer function over `defocus` um; waves beyond the aperture, or evanescent ones, are lost."""
    frequency = scipy.fft.fftfreq(size, pixel)
    squared = frequency[:, None] ** 2 + frequency**2
    along = (medium_index / wavelength) ** 2 - squared
    passes = squared <= ((medium_index if numerical_aperture is None else numerical_aperture) / wavelength) ** 2
    delay = np.sqrt(np.maximum(along, 0.0)) - medium_index / wavelength  # relative to a wave straight ahead
    return np.where(passes, np.exp(2j * np.pi * defocus * delay), 0.0).astype(np.complex64)


def aberration(size: int, pixel: float, band: float, optics: Mapping[str, float]) -> Array:
    """Factor of the transfer function for the Zernike polynomials (Noll's, of RMS 1) of a pupil up to `band` (1/um)."""
    x = scipy.fft.fftfreq(size, pixel) / band
    y = x[:, None]
    squared = np.minimum(x**2 + y**2, 1.0)  # nothing passes beyond
    waves = math.sqrt(6.0) * (optics["astigmatism_0"] * (x**2 - y**2) + optics["astigmatism_45"] * 2.0 * x * y)
    waves = waves + math.sqrt(8.0) * (3.0 * squared - 2.0) * (optics["coma_x"] * x + optics["coma_y"] * y)
    waves += math.sqrt(5.0) * (6.0 * squared**2 - 6.0 * squared + 1.0) * optics["spherical"]
    return np.asarray(np.exp(2j * np.pi * waves).astype(np.complex64))


def curve(image: Array, gamma: float, compression: float, pivot: float, white: float) -> Array:
    """Contrast curve: `pivot` stays under gamma; the sigmoid has slope 1 at `white` and flattens on both sides."""
    if gamma != 1.0:
        image = np.sign(image) * np.float32(pivot) * (np.abs(image) / np.float32(pivot)) ** np.float32(gamma)
    if compression != 0.0:
        image = np.tanh((image - np.float32(white)) * np.float32(compression)) / np.float32(compression)
        image += np.float32(white)
    return image


def propagate(field: Array, transfer: Array) -> Array:
    """The field (overwritten) after the transfer function."""
    return scipy.fft.ifft2(scipy.fft.fft2(field, overwrite_x=True) * transfer, overwrite_x=True)


def _camera(bench: Bench, pixel: float, blur: float) -> Array:
    """(image_size, fine_size) matrix that blurs and bins one axis; rows sum to 1, so a flat image stays flat."""
    place = np.arange(bench.fine_size) * pixel
    kernel = np.exp(-0.5 * ((place[:, None] - place) / blur) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return f32(kernel.reshape(bench.image_size, -1, bench.fine_size).mean(axis=1))


class Instrument:
    """One set of optics, with everything that is the same for all of its cells worked out."""

    def __init__(self, bench: Bench, optics: Mapping[str, float]) -> None:
        size, aperture, self.bench = bench.fine_size, bench.numerical_aperture, bench
        pixel = bench.field_of_view / size / optics["magnification"]  # of the fine grid, in the plane of the cell
        self.place = (np.arange(size) - (size - 1) / 2.0) * pixel
        self.transfer = transfer_function(
            size, pixel, optics["defocus"], bench.wavelength, bench.medium_index, aperture
        )
        if any(optics[name] for name in SITE_KINDS["aberrations"]):
            self.transfer *= aberration(size, pixel, aperture / bench.wavelength, optics)
        self.camera = _camera(bench, pixel, optics["blur"])
        self.qpi_camera = _camera(bench, pixel, optics["qpi_blur"])
        x = np.linspace(-1.0, 1.0, 2 * bench.image_size + 1)[1::2]  # pixel centres, from edge to edge of the field
        y = x[:, None]
        slope = optics["gradient_x"] * x + optics["gradient_y"] * y - optics["vignetting"] * (x**2 + y**2)
        self.light = f32(optics["gain"] * np.exp(slope))
        self.curve = optics["gamma"], optics["compression"], 1.0, 1.0
        self.qpi_curve = optics["qpi_gamma"], optics["qpi_compression"], _QPI_PIVOT, 0.0
        self.offset, self.qpi_gain = optics["offset"], optics["qpi_gain"]
        self.qpi_background = f32(optics["qpi_offset"] + optics["qpi_tilt_x"] * x + optics["qpi_tilt_y"] * y)

    def expose(self, cells: Cells, beside: tuple[Array, Cells] | None = None) -> tuple[Array, Array]:
        """Noise-free brightfield and phase images; `beside`: which cells have a neighbour, and these neighbours."""
        phase = self._phase(cells)
        if beside is not None:
            phase[beside[0]] += self._phase(beside[1])
        field = propagate(exit_field(phase, _ABSORPTION), self.transfer)
        intensity = field.real**2
        intensity += field.imag**2
        bf = self.camera @ (intensity @ self.camera.T)
        bf *= self.light
        bf = curve(bf, *self.curve)
        bf += self.offset
        qpi = self.qpi_camera @ (phase @ self.qpi_camera.T)
        qpi = curve(qpi, *self.qpi_curve)
        qpi *= self.qpi_gain
        qpi += self.qpi_background
        return bf, qpi

    def _phase(self, cells: Cells) -> Array:
        return phase_of(cells, self.place, self.place, self.bench.wavelength, self.bench.medium_index)


class Framing(NamedTuple):
    """What chance does to the crop of each cell; an instrument says how much of it shows. One value per cell."""

    x: Array  # standard normal
    y: Array
    lot: Array  # in [0, 1): the cell has a neighbour if it is below the share
    who: Array  # in [0, 1), among the cells of the batch
    direction: Array  # radians
    gap: Array  # um


def draw_framing(n: int, rng: np.random.Generator) -> Framing:
    x, y = np.clip(rng.standard_normal((2, n)), -_MOST_OFF, _MOST_OFF)
    lot, who, direction, gap = rng.uniform(0.0, 1.0, (4, n))
    return Framing(x, y, lot, who, 2.0 * np.pi * direction, _GAP * gap)


def _framed(
    cells: Cells, members: Array, place: slice, own: Mapping[str, float], framing: Framing
) -> tuple[Cells, tuple[Array, Cells] | None]:
    """Some cells of a batch (a slice of its members) where its crops have them, and their neighbours."""
    rows = members[place]
    of_cell = Framing(*(values[rows] for values in framing))
    x, y = own["shift_x"] + own["centring"] * of_cell.x, own["shift_y"] + own["centring"] * of_cell.y
    some = Cells(*(values[rows] for values in cells))
    has = np.flatnonzero(of_cell.lot < own["neighbours"])
    if not has.size:
        return moved(some, x, y), None
    number = np.arange(len(members))[place][has]
    other = members[(number + 1 + (of_cell.who[has] * (len(members) - 1)).astype(int)) % len(members)]
    neighbours = Cells(*(values[other] for values in cells))
    away = some.body[has, 2] + neighbours.body[:, 2] + of_cell.gap[has]  # beyond both long semi-axes: they never touch
    to_x = x[has] + some.body[has, 0] - neighbours.body[:, 0] + away * np.cos(of_cell.direction[has])
    to_y = y[has] + some.body[has, 1] - neighbours.body[:, 1] + away * np.sin(of_cell.direction[has])
    return moved(some, x, y), (has, moved(neighbours, to_x, to_y))


def photograph(
    cells: Cells,
    batches: Array,
    optics: Mapping[str, Array],
    bench: Bench,
    framing: Framing,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """All images, batch by batch and chunk by chunk: one batch shares its matrices, one chunk bounds the memory."""
    shape = (len(batches), bench.image_size, bench.image_size)
    images = {name: np.empty(shape, dtype=np.float32) for name in ("bf", "qpi", "clean_qpi", "clean_bf")}
    reference = Instrument(bench, reference_optics())
    step = max(1, CHUNK_PIXELS // bench.fine_size**2)
    for code in range(len(optics["defocus"])):
        own = {name: float(values[code]) for name, values in optics.items()}
        instrument = Instrument(bench, own)
        members = np.flatnonzero(batches == code)
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            some = Cells(*(values[rows] for values in cells))
            images["clean_bf"][rows], images["clean_qpi"][rows] = reference.expose(some)
            bf, qpi = instrument.expose(*_framed(cells, members, slice(start, start + step), own, framing))
            noise = rng.standard_normal((2, *bf.shape), dtype=np.float32)
            noise[0] *= np.sqrt(own["read_noise"] ** 2 + own["shot_noise"] ** 2 * np.maximum(bf, 0.0))
            noise[1] *= own["qpi_noise"]
            images["bf"][rows] = np.add(bf, noise[0], out=bf)
            images["qpi"][rows] = np.add(qpi, noise[1], out=qpi)
    return images

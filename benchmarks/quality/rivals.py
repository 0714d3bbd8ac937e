"""What a laboratory would use instead: rivals, on features and on images.

A feature rival is a function of the training cells (features, batch, cell type) and of the new cells (features and
batch). No rival is ever given the types of the new cells: ComBat with the cell type as covariate of the cells that are
scored "reads" the type with 0.99 accuracy, because it got it. What a rival needs of the new cells is in `RIVALS`, and
in the table. The libraries are the extra ``benchmarks``; they are imported where they are used.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from skbegan.metrics import batch_removal_score

Array = NDArray[Any]
Pair = tuple[Array, Array]

N_COMPONENTS = 50  # of every PCA in the benchmark


@dataclass(frozen=True)
class Rival:
    """A method that turns features into corrected features.

    Attributes
    ----------
    label : str
        Its row in the table.
    function : callable
        ``(train, train_batch, train_type, new, new_batch, seed) -> (train, new)``, features corrected.
    given : str
        What it is given of the new cells besides their features.
    package : str or None
        The library that it needs, by import name.
    """

    label: str
    function: Callable[[Array, Array, Array, Array, Array, int], Pair]
    given: str
    package: str | None = None


def is_installed(package: str | None) -> bool:
    """Tell whether a library is there, without importing it."""
    return package is None or importlib.util.find_spec(package) is not None


def load_library(package: str) -> Any:
    """Import a rival's library quietly.

    Raises
    ------
    ImportError
        That names the extra, if it is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries' own imports, nothing that a reader could act on
            module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{package} is needed for this method and cannot be imported ({error}): pip install "skbegan[benchmarks]"'
        ) from error
    logging.getLogger(package).setLevel(logging.WARNING)  # harmonypy reports every iteration to the console
    return module


# Features -------------------------------------------------------------------------------------------------------------


def standardise(train: Array, new: Array) -> Pair:
    """Bring features to mean 0 and standard deviation 1 of the training cells, without those that never vary."""
    train, new = train.astype(np.float64), new.astype(np.float64)
    mean, std = train.mean(axis=0), train.std(axis=0)
    alive = std > 1e-5 * std.max()
    return (train[:, alive] - mean[alive]) / std[alive], (new[:, alive] - mean[alive]) / std[alive]


def one_hot(labels: Array) -> Array:
    return (labels[:, None] == np.unique(labels)).astype(np.float64)


def combat(train: Array, train_batch: Array, train_type: Array, new: Array, new_batch: Array, seed: int) -> Pair:
    """ComBat (Johnson et al., Biostatistics 8, 118 (2007)): location and scale of each batch, empirical Bayes.

    Fitted on the training cells and applied to the new ones by their batch. It knows no cell types, and so takes
    differences in the mix of types for batch effects.
    """
    combatlearn, pandas = load_library("combatlearn"), load_library("pandas")
    train, new = standardise(train, new)
    cells = pandas.DataFrame(np.concatenate([train, new]))  # its index gives a cell's batch
    model = combatlearn.ComBat(batch=pandas.Series(np.concatenate([train_batch, new_batch])))
    corrected = model.fit(cells.iloc[: len(train)]).transform(cells).to_numpy()
    return corrected[: len(train)], corrected[len(train) :]


def combat_types(train: Array, train_batch: Array, train_type: Array, new: Array, new_batch: Array, seed: int) -> Pair:
    """ComBat that knows the types of the training cells; only the location, which does not need those of new cells."""
    combatlearn = load_library("combatlearn")
    train, new = standardise(train, new)
    model = combatlearn.ComBat(batch=train_batch, discrete_covariates=train_type, method="fortin", mean_only=True)
    corrected = model.fit(train).transform(train).to_numpy()
    shift = {batch: (corrected - train)[train_batch == batch].mean(axis=0) for batch in np.unique(train_batch)}
    return corrected, new + np.stack([shift[batch] for batch in new_batch])


def harmony(train: Array, train_batch: Array, train_type: Array, new: Array, new_batch: Array, seed: int) -> Pair:
    """Harmony (Korsunsky et al., Nat. Methods 16, 1289 (2019)): soft clusters, in each of which batches are mixed.

    On principal components, as its authors use it, and on all cells at once, for it has no transform for new cells.
    """
    harmonypy, pandas = load_library("harmonypy"), load_library("pandas")
    cells = np.concatenate(standardise(train, new))
    components = PCA(min(N_COMPONENTS, *cells.shape), random_state=seed).fit_transform(cells)
    batches = pandas.DataFrame({"batch": np.concatenate([train_batch, new_batch])})
    options = {"verbose": False, "random_state": seed, "ncores": 1}
    known = inspect.signature(harmonypy.run_harmony).parameters
    options = {name: value for name, value in options.items() if name in known}

    def corrected(theta: float, sigma: float) -> Pair:
        found = harmonypy.run_harmony(components, batches, "batch", theta=theta, sigma=sigma, **options)
        features = np.asarray(found.Z_corr, dtype=np.float64)
        if len(features) != len(cells):  # versions differ in which axis is the cells
            features = features.T
        return features[: len(train)], features[len(train) :]

    tried = [corrected(theta, sigma) for theta in (2.0, 8.0) for sigma in (0.1, 0.3)]
    return _best(tried, train_batch, train_type, seed)


def _best(tried: list[Pair], train_batch: Array, train_type: Array, seed: int) -> Pair:
    """Return the correction with the best score, batch removed and type kept, among the training cells."""
    scores = [batch_removal_score(pair[0], train_batch, train_type, random_state=seed) for pair in tried]
    return tried[int(np.argmax(scores))]


def sphering(train: Array, train_batch: Array, train_type: Array, new: Array, new_batch: Array, seed: int) -> Pair:
    """Sphering, the "typical variation normalisation" of Ando et al., bioRxiv 161422 (2017).

    Directions in which training cells vary around the mean of their type are shrunk to unit variance.
    """
    train, new = standardise(train, new)
    types = one_hot(train_type)
    residual = train - types @ (types.T @ train / types.sum(axis=0)[:, None])
    variance, axes = np.linalg.eigh(residual.T @ residual / len(residual))
    variance = variance.clip(min=0)
    tried = []
    for regularisation in (1e-3, 1e-2, 1e-1, 1.0):
        matrix = (axes / np.sqrt(variance + regularisation * variance.mean())) @ axes.T
        tried.append((train @ matrix, new @ matrix))
    return _best(tried, train_batch, train_type, seed)


def leace(train: Array, train_batch: Array, train_type: Array, new: Array, new_batch: Array, seed: int) -> Pair:
    """LEACE (Belrose et al., NeurIPS 2023): the least change after which no linear probe reads the batch."""
    return _erase(train, one_hot(train_batch), new)


def leace_types(train: Array, train_batch: Array, train_type: Array, new: Array, new_batch: Array, seed: int) -> Pair:
    """LEACE of the batch less what the type says of it, one column for each batch of each type."""
    types, batches = one_hot(train_type), one_hot(train_batch)
    share = types.T @ batches / types.sum(axis=0)[:, None]  # p(batch given type)
    concept = [types[:, [k]] * (batches - share[k]) for k in range(types.shape[1])]
    return _erase(train, np.concatenate(concept, axis=1), new)


def _erase(train: Array, concept: Array, new: Array) -> Pair:
    erasure, torch = load_library("concept_erasure"), load_library("torch")
    train, new = standardise(train, new)
    varies = concept.std(axis=0) > 0
    eraser = erasure.LeaceEraser.fit(torch.from_numpy(train), torch.from_numpy(concept[:, varies]))
    return eraser(torch.from_numpy(train)).numpy(), eraser(torch.from_numpy(new)).numpy()


RIVALS = {
    "combat": Rival("stage 1 + ComBat", combat, "batch", "combatlearn"),
    "combat-types": Rival("stage 1 + ComBat, types in training", combat_types, "batch", "combatlearn"),
    "harmony": Rival("stage 1 + Harmony", harmony, "batch, all cells at once", "harmonypy"),
    "sphering": Rival("stage 1 + sphering", sphering, "nothing"),
    "leace": Rival("stage 1 + LEACE", leace, "nothing", "concept_erasure"),
    "leace-types": Rival("stage 1 + LEACE within type", leace_types, "nothing", "concept_erasure"),
}


# Images ---------------------------------------------------------------------------------------------------------------


def principal_components(train: Array, new: Array, seed: int = 0, n: int = N_COMPONENTS) -> Pair:
    """Turn images into their first principal components, found on the training cells."""
    flat, flat_new = (images.reshape(len(images), -1).astype(np.float64) for images in (train, new))
    pca = PCA(min(n, *flat.shape), svd_solver="randomized", random_state=seed).fit(flat)
    return pca.transform(flat), pca.transform(flat_new)


def background(images: Array, order: int) -> Array:
    """Fit a polynomial to the background of each image: from its rim on, then to all pixels that agree.

    Least squares with Tukey's biweights, so that the cell has no say.

    Parameters
    ----------
    images : ndarray of shape (n_cells, side, side)
    order : int
        Total degree: 1 is a plane, 2 has vignetting too.

    Returns
    -------
    background : ndarray of shape (n_cells, side, side)
    """
    n, height, width = images.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([(x**i * y**j).ravel() for i in range(order + 1) for j in range(order + 1 - i)], axis=1)
    rim = (np.maximum(abs(x), abs(y)) > 0.75).ravel()
    pixels = images.reshape(n, -1).astype(np.float64)
    weights = np.broadcast_to(rim.astype(np.float64), pixels.shape)
    for _ in range(8):
        normal = np.einsum("np,pi,pj->nij", weights, terms, terms, optimize=True)
        right = (weights * pixels) @ terms
        ridge = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(terms.shape[1])
        fitted = np.linalg.solve(normal + ridge, right[..., None])[..., 0] @ terms.T
        residual = pixels - fitted
        scale = 1.4826 * np.median(abs(residual[:, rim]), axis=1, keepdims=True)
        relative = residual / np.maximum(4.685 * scale, 1e-6 * (abs(pixels).max() or 1.0))
        weights = np.square(1 - np.square(relative.clip(-1, 1))) + 1e-6
    return fitted.reshape(images.shape)


def _contrast(images: Array) -> Array:
    """Return the range of each image, without the outermost 2 % of the pixels on either side."""
    low, high = np.percentile(images, [2, 98], axis=(1, 2), keepdims=True)
    return np.maximum(high - low, 1e-12)


def normalise_brightfield(train: Array, new: Array, *, contrast: bool) -> Pair:
    """Take each brightfield's own background away and, with `contrast`, bring all images to one contrast.

    Light that falls on the cells multiplies: images are divided by it. Where brightfields are not intensities but have
    been centred before, so that their background is about 0 or negative, it is subtracted.
    """
    light = [background(images, order=2) for images in (train, new)]
    if min(light[0].min(), light[1].min()) > 0.25 * np.median(light[0]):
        pair = [images / under - 1 for images, under in zip((train, new), light, strict=True)]
    else:
        pair = [images - under for images, under in zip((train, new), light, strict=True)]
    if contrast:
        pair = [images / _contrast(images) for images in pair]
    return pair[0], pair[1]


def normalise_prediction(train: Array, new: Array, *, contrast: bool) -> Pair:
    """Take a plane off each predicted image and, with `contrast`, bring all to the training cells' median contrast."""
    train, new = train - background(train, order=1), new - background(new, order=1)
    if contrast:
        usual = np.median(_contrast(train))
        train, new = train * (usual / _contrast(train)), new * (usual / _contrast(new))
    return train, new

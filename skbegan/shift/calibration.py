"""What a fitted model knows of batches: how known ones look, and how right it is in styles beyond them.

Held-out cells are shown to the model in many styles: mixtures of the differences between the known batches, drawn wider
than these, with other gain, offset, illumination, focus, noise and magnification on top. Their cell types are known, so
that a regression can learn how the share of right types falls with the offset of the mean profile (a distance of
features, after Deng and Zheng, CVPR 2021) and how the error of the predicted images rises with the difference of those
from two views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from skbegan.data.cells import Cells, Split
from skbegan.data.style import BatchStyles
from skbegan.shift.adaptation import norm_inputs
from skbegan.shift.checking import FAULTS, TRAITS
from skbegan.shift.observing import Observed, Reader, TypeClassifier, observe, statistics
from skbegan.shift.statistics import NAMES
from skbegan.shift.styles import Style, draw_broken, draw_plausible

if TYPE_CHECKING:
    from skbegan.design import Design

Array = np.ndarray

N_STYLES = 40  # in which held-out cells are read by the model
N_CELLS = 96  # of them, at most, in each style
N_LOOKS = 300  # plausible styles of which the image statistics alone are taken
N_BROKEN = 80  # broken batches of each kind
N_TRAINING = 2048  # training cells for the classifier and for what is typical, at most
FEW = 20  # cells: of fewer nothing is said
SEVERITY = 2.0  # of plausible styles at most; 1 is as far as instruments usually differ
RIDGE = 1.0
AS_THEY_ARE = 4  # of the styles, the first: held-out cells without any change
LOOK_SEVERITY = 1.5  # of those of which statistics are taken
ALARMS = 0.01  # share of plausible styles that the distance may refuse, and all tests for a kind of fault together


@dataclass(frozen=True, eq=False)
class Calibration:
    """What is kept of it: arrays alone, so that a model file can hold it.

    Attributes
    ----------
    typical : ndarray of shape (C, side, side)
        Mean standardised brightfield of training cells.
    type_shares : ndarray of shape (n_types,)
        Of the training cells.
    type_profiles : ndarray of shape (n_types, d)
        Mean scaled profile of each cell type; without columns where no types are known.
    norm_mean, norm_square : ndarray of shape (n_types, n_channels)
        Mean and mean square of what each BatchNorm of the generator gets of cells of each type; without columns in a
        model that was adapted.
    known : ndarray of shape (n_batches, n_statistics)
        Mean image statistics of each known batch.
    looks : ndarray of shape (n_looks, n_statistics)
        Those of plausible styles, which tell what is far.
    centre, whitening : ndarray of shape (n_statistics,), (n_statistics, n_statistics)
        ``(s - centre) @ whitening`` has unit variance over plausible styles.
    distances : ndarray of shape (n_looks,)
        Of plausible styles, sorted, each measured without itself.
    suspicion : ndarray of shape (n_faults, 1 + 2 * n_statistics)
        Intercepts and coefficients of logistic regressions of each kind of broken batch against plausible styles.
    limits : ndarray of shape (1 + n_faults,)
        Distance, and logits of the suspicions, beyond which a batch is refused.
    traits, trait_error, trait_known : ndarray of shape (n_statistics + 1, n_traits), (n_traits,), (n_traits,)
        Regression of the traits of a style on the statistics, its error, and the spread of known batches.
    accuracy, error : ndarray of shape (4,)
        Regressions of the logit of the accuracy on the offset of the profile, and of the logarithm of the image error
        on the difference of the images, through what was found of cells as they are: that value, slope, centre, scale.
        Empty where no types are known.
    accuracy_residuals, error_residuals : ndarray
        Of styles that a regression was not fitted on, sorted.
    seen : ndarray of shape (2,)
        Accuracy and image error of held-out cells as they are; the error in units of the target.
    n_held_out : ndarray of shape (1,)
    class_centre, class_scale, class_coef, class_intercept : ndarray
        Of the :class:`TypeClassifier`; without rows where no types are known.
    """

    typical: Array
    type_shares: Array
    type_profiles: Array
    norm_mean: Array
    norm_square: Array
    known: Array
    looks: Array
    centre: Array
    whitening: Array
    distances: Array
    suspicion: Array
    limits: Array
    traits: Array
    trait_error: Array
    trait_known: Array
    accuracy: Array
    accuracy_residuals: Array
    error: Array
    error_residuals: Array
    seen: Array
    n_held_out: Array
    class_centre: Array
    class_scale: Array
    class_coef: Array
    class_intercept: Array

    @property
    def classifier(self) -> TypeClassifier | None:
        if not len(self.class_coef):
            return None
        return TypeClassifier(self.class_centre, self.class_scale, self.class_coef, self.class_intercept)

    @classmethod
    def of_arrays(
        cls,
        arrays: Mapping[str, Array],
        image: tuple[int, int, int],
        n_features: int,
        n_types: int | None,
        n_norms: int,
    ) -> Calibration:
        """Return what :meth:`as_arrays` gave of a model with such images, profiles, types and channels of BatchNorm.

        Raises
        ------
        ValueError
            For other names, or shapes that contradict one another.
        """
        names = [field.name for field in fields(cls)]
        if odd := sorted(set(names) ^ set(arrays)):
            raise ValueError(f"missing or unexpected: {', '.join(odd)}")
        s, t = len(NAMES) * image[0], len(TRAITS)
        rows = {name: len(np.atleast_1d(arrays[name])) for name in names}
        known = rows["class_coef"]
        if known and known != n_types:
            raise ValueError(f"it knows {known} cell types, the model {n_types}")
        d = n_features if known else 0
        channels = n_norms if arrays["norm_mean"].size else 0
        shapes: dict[str, tuple[int, ...]] = {
            "typical": image, "type_shares": (n_types or 1,), "type_profiles": (n_types or 1, d),
            "norm_mean": (n_types or 1, channels), "norm_square": (n_types or 1, channels), "known": (rows["known"], s),
            "looks": (rows["looks"], s), "centre": (s,), "whitening": (s, s), "distances": (rows["distances"],),
            "suspicion": (len(FAULTS), 1 + 2 * s), "limits": (1 + len(FAULTS),),
            "traits": (s + 1, t), "trait_error": (t,), "trait_known": (t,),
            "accuracy": (4 if known else 0,), "error": (4,),
            "accuracy_residuals": (rows["accuracy_residuals"],), "error_residuals": (rows["error_residuals"],),
            "seen": (2,), "n_held_out": (1,), "class_centre": (d,), "class_scale": (d,), "class_coef": (known, d),
            "class_intercept": (known,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"{name} should have the shape {shape}, found {arrays[name].shape}")
        return cls(**{name: np.asarray(arrays[name], dtype=_dtype_of(name)) for name in names})

    def as_arrays(self) -> dict[str, Array]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def observe(self, reader: Reader, images: torch.Tensor) -> Observed:
        """Observe cells, given as standardised images (n, C, side, side)."""
        return observe(reader, images, self.typical, self.classifier)

    def offset(self, found: Observed) -> float:
        """Return how far the mean profile of cells is from that of training cells of the same types, as classified.

        Root mean square over the features, in standard deviations of the training cells.
        """
        classifier = self.classifier
        if classifier is None:
            return 0.0
        shares = classifier.probabilities(found.profiles).mean(0)
        apart = classifier.scaled(found.profiles).mean(0) - shares @ self.type_profiles
        return float(np.sqrt(np.mean(apart**2)))

    def distance(self, look: Array) -> float:
        """Return how far mean statistics (n_statistics,) lie from plausible ones, 1 being usual."""
        return float(np.sqrt(np.mean(((look - self.centre) @ self.whitening) ** 2)))

    def suspicions(self, look: Array) -> Array:
        """Return how far, in logits, each suspicion of a fault is beyond its limit: positive where it is refused."""
        found: Array = self.suspicion[:, 1:] @ _expanded((look - self.centre) / self._scale) + self.suspicion[:, 0]
        return found - self.limits[1:]

    @property
    def _scale(self) -> Array:
        return self.looks.std(0) + 1e-6

    def traits_of(self, look: Array) -> Array:
        """Return the traits of a style, relative to the mean of training, that mean statistics speak of."""
        found: Array = np.append((look - self.centre) / self._scale, 1.0) @ self.traits
        return found

    def signal(self, which: str, found: Observed) -> float:
        """Return what the expected accuracy, or the expected image error, is read from."""
        return self.offset(found) if which == "accuracy" else float(found.differ.mean())

    def expected(self, which: str, found: Observed) -> float:
        """Return the expected logit of the accuracy, or logarithm of the image error, of cells."""
        return float(_predict(getattr(self, which), np.asarray(self.signal(which, found))))


def _dtype_of(name: str) -> type:
    return np.float32 if name == "typical" else np.float64


def calibrate(
    reader: Reader,
    bf: Array,
    target: Array,
    batch: Array,
    cell_type: Array,
    split: Split,
    design: Design,
    *,
    knows_types: bool,
    seed: int,
) -> Calibration | None:
    """Calibrate a fitted model on its training cells and those held out, or return None where they are too few.

    Parameters
    ----------
    reader : Reader
    bf, target : ndarray of shape (n, ...)
    batch, cell_type : ndarray of int, shape (n,)
        Codes.
    split : Split
        Held-out cells are what the regressions are made with. Where they are fewer than `FEW` training cells are taken,
        and what is expected is then too good.
    design : Design
        Of the training cells.
    knows_types : bool
    seed : int
    """
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    held_out = split.validation_rows if len(split.validation_rows) >= FEW else split.train_rows
    if len(held_out) < FEW:
        return None
    _, source, dtype = reader.model._ready(bf, reader.device, reader.precision, folded=True)
    shared = (bf, target, batch, cell_type, split._replace(per_image=False), source.device, dtype)
    cells, _ = Cells.of_split(*shared)
    styles = BatchStyles(cells, design, noise)
    test = Cells(cells.bf, cells.target, batch, cell_type, held_out)

    rows = np.sort(rng.permutation(len(split.train_rows))[:N_TRAINING])
    sample = cells.take(torch.from_numpy(rows))
    typical = sample.source.mean(0).cpu().numpy()
    looks_of_training = statistics(sample.source, typical)
    codes, types = batch[split.train_rows[rows]], cell_type[split.train_rows[rows]]
    classifier, scaled = None, np.zeros((len(types), 0))
    if knows_types and len(np.unique(types)) > 1:
        profiles = reader.read(sample.source)[0]
        classifier = TypeClassifier.fit(profiles, types, design.n_cell_types)
        scaled = classifier.scaled(profiles)

    every = Cells(cells.bf, cells.target, batch, cell_type, np.concatenate([split.train_rows, split.validation_rows]))
    looks = _Looks(every, styles, typical, rng, noise)
    plausible, theta = looks.plausible()
    known = np.stack([looks_of_training[codes == code].mean(0) for code in np.unique(codes)])
    broken = looks.broken()
    found: dict[str, Any] = {"typical": typical, "known": known, "looks": plausible}
    found |= _of_types(scaled, norm_inputs(reader, sample.source), types, design.n_cell_types)
    found |= _distances(plausible, known, broken)
    found |= _traits(plausible, theta, known, found["centre"])
    empty = np.zeros(0)
    blank = {name: empty for name in ("accuracy", "accuracy_residuals", "error", "error_residuals")}
    of_classes = {"centre": empty, "scale": empty, "coef": np.zeros((0, 0)), "intercept": empty}
    if classifier is not None:
        of_classes = {name: getattr(classifier, name) for name in of_classes}
    found |= {f"class_{name}": values for name, values in of_classes.items()}
    found["n_held_out"] = np.array([float(len(held_out))])
    made = Calibration(**blank, **found, seen=np.zeros(2))
    return replace(made, **_regressions(made, reader, test, styles, rng, noise))


def _of_types(profiles: Array, norms: tuple[Array, Array], types: Array, n_types: int) -> dict[str, Array]:
    """Return shares of the types, and means by type; of types without a cell those of all."""
    member = (types[:, None] == np.arange(n_types)).astype(np.float64)
    shares = member.mean(0)
    member[:, shares == 0] = 1.0
    member /= member.sum(0)
    return {
        "type_shares": shares,
        "type_profiles": member.T @ profiles,
        "norm_mean": member.T @ norms[0],
        "norm_square": member.T @ norms[1],
    }


class _Looks:
    """Image statistics of training and held-out cells in drawn styles."""

    def __init__(
        self, cells: Cells, styles: BatchStyles, typical: Array, rng: np.random.Generator, noise: torch.Generator
    ) -> None:
        self.all, self.styles, self.typical, self.rng, self.noise = cells, styles, typical, rng, noise
        self.n_cells = min(len(cells), 48)  # of a style: sampling noise is part of what is plausible

    def plausible(self) -> tuple[Array, Array]:
        """Return statistics and traits of plausible styles."""
        found = []
        for _ in range(N_LOOKS):
            style = draw_plausible(self.noise, LOOK_SEVERITY * self.rng.random())
            found.append((self._look(style, 1.5 * self.rng.random()), style.traits()))
        looks, traits = zip(*found, strict=True)
        return np.stack(looks), np.stack(traits)

    def broken(self) -> list[Array]:
        """Return statistics of broken batches of each kind; none of those that cannot be made from these cells."""
        found = []
        for fault in FAULTS:
            looks = []
            for index in range(N_BROKEN):
                style = draw_broken(self.rng, self.noise, fault)
                if fault != "channel":
                    looks.append(self._look(style, 1.0))
                    continue
                cells = self.all.take(torch.from_numpy(self.rng.integers(len(self.all), size=self.n_cells)))
                if cells.target.shape[1] == cells.source.shape[1]:
                    images = style(cells.target * (-1 if index % 2 else 1), self.noise)
                    looks.append(statistics(images, self.typical).mean(0))
            found.append(np.stack(looks) if looks else np.zeros((0, len(NAMES) * len(self.typical))))
        return found

    def _look(self, style: Style, spread: float) -> Array:
        weights = mixed(self.rng, self.all.cell_type.cpu().numpy())
        as_imaged = self.rng.random() < 0.5  # one known batch in its own style, as what is changed further
        if as_imaged:
            batch = self.all.batch.cpu().numpy()
            weights = weights * (batch == self.rng.choice(np.unique(batch)))
        chosen = torch.from_numpy(self.rng.choice(len(self.all), self.n_cells, p=weights / weights.sum()))
        cells = self.all.take(chosen)
        images = cells.source if as_imaged else self.styles.in_unseen_style(cells, spread)
        return statistics(style(images, self.noise), self.typical).mean(0)


def mixed(rng: np.random.Generator, cell_type: Array) -> Array:
    """Return weights of cells that give their types a random mix, from even to one type in most of the cells."""
    codes, inverse, counts = np.unique(cell_type, return_inverse=True, return_counts=True)
    shares = rng.dirichlet(np.full(len(codes), rng.choice([1.0, 4.0, 20.0])))
    return (shares / counts)[inverse]


def _expanded(scaled: Array) -> Array:
    clipped = scaled.clip(-8, 8)
    return np.concatenate([clipped, np.abs(clipped)], axis=-1)


def _distances(plausible: Array, known: Array, broken: list[Array]) -> dict[str, Array]:
    from sklearn.covariance import LedoitWolf
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    both = np.concatenate([plausible, known])
    centre, scale = plausible.mean(0), plausible.std(0) + 1e-6

    def whitening_of(looks: Array) -> Array:
        values, axes = np.linalg.eigh(LedoitWolf().fit((looks - centre) / scale).covariance_)
        return (axes / np.sqrt(values.clip(min=1e-6))) / scale[:, None]

    distances, fold = np.empty(len(both)), np.arange(len(both)) % 5
    for part in range(5):
        whitening = whitening_of(both[fold != part])
        distances[fold == part] = np.sqrt(np.mean(((both[fold == part] - centre) @ whitening) ** 2, axis=1))
    suspicion, limits = np.zeros((len(FAULTS), 1 + 2 * plausible.shape[1])), np.full(1 + len(FAULTS), np.inf)
    suspicion[:, 0] = -1.0
    for index, looks in enumerate(broken):
        if not len(looks):
            limits[1 + index] = 0.0
            continue
        features = _expanded(np.concatenate([(part - centre) / scale for part in (plausible, looks)]))
        labels = np.repeat([0, 1], [len(plausible), len(looks)])
        model = LogisticRegression(C=0.1, max_iter=1000).fit(features, labels)
        held_out = cross_val_predict(model, features, labels, cv=5, method="decision_function")
        suspicion[index] = np.append(model.intercept_, model.coef_[0])
        limits[1 + index] = np.quantile(held_out[labels == 0], 1 - ALARMS / len(FAULTS))
    limits[0] = np.quantile(distances, 1 - ALARMS)
    return {
        "centre": centre,
        "whitening": whitening_of(both),
        "distances": np.sort(distances),
        "suspicion": suspicion,
        "limits": limits,
    }


def _traits(plausible: Array, theta: Array, known: Array, centre: Array) -> dict[str, Array]:
    scaled = np.c_[(plausible - centre) / (plausible.std(0) + 1e-6), np.ones(len(plausible))]
    penalty = np.diag([*[2.0] * (scaled.shape[1] - 1), 1e-6])
    coef = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ theta)
    of_known = np.c_[(known - centre) / (plausible.std(0) + 1e-6), np.ones(len(known))] @ coef
    error = (theta - scaled @ coef).std(0) * math.sqrt(len(theta) / max(1, len(theta) - scaled.shape[1]))
    return {"traits": coef, "trait_error": error, "trait_known": of_known.std(0)}


def _regressions(
    made: Calibration,
    reader: Reader,
    test: Cells,
    styles: BatchStyles,
    rng: np.random.Generator,
    noise: torch.Generator,
) -> dict[str, Array]:
    """Show held-out cells in styles of rising severity, and return the regressions and what was seen without any."""
    found: dict[str, list[float]] = {"accuracy": [], "error": []}
    right, wrong = [], []
    scale = reader.model.target_scaling.scale.astype(np.float64)
    for index in range(N_STYLES):
        cells = test.take(torch.from_numpy(np.sort(rng.permutation(len(test))[:N_CELLS])))
        severity = SEVERITY * max(0, index - AS_THEY_ARE + 1) / (N_STYLES - AS_THEY_ARE)
        images = cells.source
        if severity:
            images = styles.in_unseen_style(cells, severity * rng.random())
            images = draw_plausible(noise, severity)(images, noise)
        observed = made.observe(reader, images)
        for which, inputs in found.items():
            inputs.append(made.signal(which, observed))
        right.append((observed.predicted_type == cells.cell_type.cpu().numpy()).mean())
        truth = styles.canonical_target(cells).cpu().numpy()
        wrong.append((np.abs(observed.images - truth) * scale[:, None, None]).mean())
    result: dict[str, Array] = {"seen": np.array([np.mean(right[:AS_THEY_ARE]), np.mean(wrong[:AS_THEY_ARE])])}
    wanted = {"error": np.log(np.array(wrong) + 1e-9)}
    if made.classifier is None:
        result["seen"][0] = np.nan
    else:
        shares = np.array(right).clip(0.02, 0.98)
        wanted["accuracy"] = np.log(shares / (1 - shares))
    for which, values in wanted.items():
        sign = -1.0 if which == "accuracy" else 1.0
        result[which], result[f"{which}_residuals"] = _regress(np.array(found[which]), values, sign)
    return result


def _regress(signal: Array, wanted: Array, sign: float) -> tuple[Array, Array]:
    """Return a ridge regression through the mean of the first styles, and residuals of styles left out, sorted.

    Its slope has the sign given, or is 0.
    """
    residuals, fold = np.empty(len(wanted)), np.arange(len(wanted)) % 5
    kept = np.arange(len(wanted)) < AS_THEY_ARE
    for part in range(5):
        out = (fold == part) & ~kept
        residuals[out] = wanted[out] - _predict(_ridge(signal[~out], wanted[~out], sign), signal[out])
    return _ridge(signal, wanted, sign), np.sort(residuals[~kept])


def _ridge(signal: Array, wanted: Array, sign: float) -> Array:
    start, level = signal[:AS_THEY_ARE].mean(), wanted[:AS_THEY_ARE].mean()
    x, y = signal[AS_THEY_ARE:] - start, wanted[AS_THEY_ARE:] - level
    scale = np.sqrt((x**2).mean())
    if not scale > 1e-9:
        return np.array([level, 0.0, start, 1.0])
    slope = x @ y / scale / (x @ x / scale**2 + RIDGE)
    return np.array([level, slope if sign * slope > 0 else 0.0, start, scale])


def _predict(regression: Array, signal: Array) -> Array:
    level, slope, start, scale = regression
    found: Array = ((signal - start) / scale).clip(-4, 4) * slope + level
    return found

"""What is measured of features and images: fresh probes learn from the training cells and are scored on the audit's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from quality.data_sets import Array, Cells
from quality.rivals import Pair

from skbegan.metrics import (
    batch_leakage,
    cell_measurements,
    cell_type_accuracy,
    cross_batch_accuracy,
    cross_batch_gap,
    cross_batch_precision,
    effective_rank,
    image_error,
    image_leakage,
    leakage_calibration,
    retained_variation,
)

PROBES = {"linear": "linear", "mlp": "mlp", "15nn": "knn", "trees": "trees"}
SHOWN_PROBES = ("linear", "mlp", "15nn")  # of all methods; the rest is for the table of goals
MEASUREMENTS = ("total_phase", "area", "texture", "elongation")


@dataclass(frozen=True)
class Audit:
    """The cells, and how they are measured.

    Attributes
    ----------
    train, audit : Cells
        Probes learn from the first and are scored on the second.
    seed : int
    balanced : bool
        Weigh types alike.
    foreground : {"bright", "dark"}
        See `skbegan.metrics.cell_measurements`.
    n_permutations : int
        Of the batch within type, for the leakage that there is without any batch.
    """

    train: Cells
    audit: Cells
    seed: int
    balanced: bool = False
    foreground: Literal["bright", "dark"] = "bright"
    n_permutations: int = 50

    def features(self, features: Pair) -> dict[str, float]:
        """Return what probes read from features."""
        joined, batch, cell_type, options = self._for_probes(features)
        found = self.types(features)
        for name in SHOWN_PROBES:
            found[f"leakage_{name}"] = float(batch_leakage(joined, batch, cell_type, probe=PROBES[name], **options))
        return found

    def types(self, features: Pair) -> dict[str, float]:
        joined, batch, cell_type, options = self._for_probes(features)
        within = cell_type_accuracy(joined, cell_type, return_details=True, **options)
        across = cross_batch_accuracy(joined, batch, cell_type, return_details=True, **options)
        return {"cell_type": self._share(within), "cross_batch": self._share(across)}

    def goals(self, features: Pair) -> dict[str, float]:
        """Return what the table of goals needs of features besides."""
        joined, batch, cell_type, options = self._for_probes(features)
        by_mlp = cell_type_accuracy(joined, cell_type, probe="mlp", return_details=True, **options)
        rank = effective_rank(features[1], return_details=True)
        found = {"cell_type_mlp": self._share(by_mlp), "rank": rank.score, "directions": rank.n_directions}
        found["gap"] = cross_batch_gap(joined, batch, cell_type, **options)
        seed = {"random_state": self.seed}
        found["precision"] = cross_batch_precision(
            features[1], self.audit.batch, self.audit.cell_type, n_permutations=0, **seed
        )
        for name, (excess, bound) in zip(PROBES, self._excess(features, list(PROBES.values())), strict=True):
            found[f"excess_{name}"], found[f"bound_{name}"] = excess, bound
        return {name: float(value) for name, value in (found | self._retained(features)).items()}

    def images(self, images: Pair) -> dict[str, float]:
        """Return how true images are, and what probes read from their principal components."""
        found = self.fidelity(images[1])
        joined, batch, cell_type, options = self._for_probes(images)
        for name in SHOWN_PROBES:
            found[f"leakage_{name}"] = float(image_leakage(joined, batch, cell_type, probe=PROBES[name], **options))
        return found

    def by_network(self, images: Pair) -> tuple[float, float]:
        """Return the leakage that a convolutional network reads from images, beyond chance, and its 95 % bound."""
        return self._excess(images, ["cnn"])[0]

    def new_batch(self, features: Pair) -> float:
        """Return the accuracy of the cell type for audit cells of a batch that probes have not seen."""
        joined, batch, cell_type, options = self._for_probes(features)
        return self._share(cross_batch_accuracy(joined, batch, cell_type, return_details=True, **options))

    def fidelity(self, images: Array) -> dict[str, float]:
        """Return how true images of the audit cells are: error, correlation of pixels and of texture within groups."""
        reference, known = self.audit.reference, self.measured_audit
        texture = (known if images is reference else self._measured(images))["texture"].to_numpy()
        return {
            "mae": float(image_error(images, reference).mae),
            "within": within_groups(images, reference, self.groups),
            "texture": within_groups(texture, known["texture"].to_numpy(), self.groups),
        }

    @property
    def groups(self) -> Array:
        """Within what images are compared: the type; the type in a batch, where the reference has a batch effect."""
        cells = self.audit
        parts = [cells.cell_type] if cells.truth is not None else [cells.cell_type, cells.batch]
        return np.unique(np.stack(parts).astype(str), axis=1, return_inverse=True)[1].ravel()

    @cached_property
    def measured_audit(self) -> Any:
        return self._measured(self.audit.reference)

    @cached_property
    def measured_train(self) -> Any:
        return self._measured(self.train.reference)

    def _measured(self, images: Array) -> Any:
        return cell_measurements(images, unit=None, foreground=self.foreground)

    def _retained(self, features: Pair) -> dict[str, float]:
        """Return R2 of the reference's measurements within type, by a kernel probe, on batches it saw and on others."""
        joined, batch, cell_type, options = self._for_probes(features)
        tables = [self.measured_train, self.measured_audit]
        values = {name: np.concatenate([table[name] for table in tables]) for name in MEASUREMENTS}
        center: Any = "batch" if self.audit.truth is None else "cell_type"
        try:
            kept = retained_variation(joined, values, batch, cell_type, center=center, n_permutations=0, **options)
        except ValueError:  # too few cells, as with --quick
            return {f"{mode}_{name}": math.nan for mode in ("seen", "left_out") for name in MEASUREMENTS}
        found = kept.measurements
        return {
            f"{mode}_{name}": found[name].kernel[mode].score if name in found else math.nan
            for mode in ("seen", "left_out")
            for name in MEASUREMENTS
        }

    def _excess(self, values: Pair, probes: Sequence[Any]) -> list[tuple[float, float]]:
        joined, batch, cell_type, options = self._for_probes(values)
        options |= {"probes": probes, "n_permutations": self.n_permutations, "strengths": ()}
        found = leakage_calibration(joined, batch, cell_type, **options).values()
        return [(float(each.excess), float(each.excess_upper)) for each in found]

    def _share(self, found: Any) -> float:
        return float(found.balanced if self.balanced else found.score)

    def _for_probes(self, values: Pair) -> tuple[Array, Array, Array, dict[str, Any]]:
        batch = np.concatenate([self.train.batch, self.audit.batch])
        cell_type = np.concatenate([self.train.cell_type, self.audit.cell_type])
        options = {"probe_train": np.arange(len(batch)) < len(self.train), "random_state": self.seed}
        return np.concatenate(values), batch, cell_type, options


def within_groups(values: Array, reference: Array, groups: Array) -> float:
    """Return the correlation of values, pixels or others, within groups: of what differs from the group's mean.

    An image that is the same for all cells of a group has 0, however well it resembles them. A value that is missing
    counts as the group's mean; where the reference is missing the cell does not count.
    """
    flat = np.stack([a.reshape(len(a), -1) for a in (values, reference)]).astype(np.float64)
    known = ~np.isnan(flat[1]).any(axis=1)
    flat, groups = flat[:, known], groups[known]
    for group in np.unique(groups):
        rows = groups == group
        lost = np.isnan(flat[:, rows])
        counted = np.maximum((~lost).sum(axis=1, keepdims=True), 1)
        mean = np.where(lost, 0.0, flat[:, rows]).sum(axis=1, keepdims=True) / counted
        flat[:, rows] = np.where(lost, 0.0, flat[:, rows] - mean)
    norms = np.linalg.norm(flat.reshape(2, -1), axis=1)
    return float((flat[0] * flat[1]).sum() / max(norms.prod(), 1e-300))

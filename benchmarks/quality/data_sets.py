"""The cells that methods are compared on. A further data set is a further class here, in `DATA_SETS`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from skbegan.datasets import load_cell_images, make_cell_images, resize_images

Array = NDArray[Any]


@dataclass(frozen=True)
class Cells:
    """Cells of a data set.

    Attributes
    ----------
    bf, qpi : ndarray of shape (n_cells, side, side)
        Brightfield and measured target.
    truth : ndarray of shape (n_cells, side, side) or None
        The target without batch effect, where it is known.
    batch, cell_type : ndarray of shape (n_cells,)
    """

    bf: Array
    qpi: Array
    truth: Array | None
    batch: Array
    cell_type: Array

    def __len__(self) -> int:
        return len(self.bf)

    @property
    def reference(self) -> Array:
        """What predicted images are held against."""
        return self.qpi if self.truth is None else self.truth

    def take(self, rows: Array) -> Cells:
        truth = None if self.truth is None else self.truth[rows]
        return Cells(self.bf[rows], self.qpi[rows], truth, self.batch[rows], self.cell_type[rows])


@dataclass(frozen=True)
class DataSet:
    """Base of data sets: cells to train on, and cells for the audit, which nobody trains on.

    Attributes
    ----------
    image_size : int
    path : str
        Where real cells are; empty for simulated ones.
    per_group : int or None
        Cells of each batch and type at most.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str] = ""  # of the option that gives the path
    has_truth: ClassVar[bool] = True
    #: Whether types are weighed alike, however many cells they have: for data sets in which one type outnumbers others.
    balanced: ClassVar[bool] = False
    #: How cells stand out from the background of the target, for their measurement.
    foreground: ClassVar[Literal["bright", "dark"]] = "bright"

    image_size: int
    path: str = ""
    per_group: int | None = None

    def check(self) -> None:
        """Raise OSError for files that are missing."""

    def turns(self, seed: int) -> Iterable[int]:
        """Return which batches, by their number among the sorted ones, are left out in turn with a seed."""
        return [seed]

    def cells(self, seed: int) -> tuple[Cells, Cells]:
        """Return the cells to train on and those of the audit."""
        raise NotImplementedError

    def _limited(self, cells: Cells, split: Array) -> Array:
        """Return the rows of the first cells of each batch, type and part."""
        groups = np.char.add(np.char.add(cells.batch.astype(str), cells.cell_type.astype(str)), split.astype(str))
        rows = [np.flatnonzero(groups == group)[: self.per_group] for group in np.unique(groups)]
        return np.sort(np.concatenate(rows))


@dataclass(frozen=True)
class Simulated(DataSet):
    """Simulated cells: the seed draws types and instruments, and other cells for training and audit."""

    name = "simulated"
    title = "Simulated cells"

    n_train: int = 1680
    n_audit: int = 1260
    n_cell_types: int = 7
    n_batches: int = 7
    batches_per_type: int = 3
    batch_kinds: str = "site"

    def cells(self, seed: int) -> tuple[Cells, Cells]:
        return self._cells(self.n_train, seed, 1000 + seed), self._cells(self.n_audit, seed, 2000 + seed)

    def _cells(self, n_cells: int, seed: int, cells_seed: int) -> Cells:
        found = make_cell_images(
            n_cells,
            self.n_cell_types,
            self.n_batches,
            self.image_size,
            batches_per_type=self.batches_per_type,
            batch_kinds=self.batch_kinds,
            random_state=seed,
            cells_random_state=cells_seed,
        )
        return Cells(found.bf, found.qpi, found.clean_qpi, found.batch, found.cell_type)


@dataclass(frozen=True)
class Jurkat(DataSet):
    """A tree of real cells with simulated batches: Train and Valid to learn from, Test for the audit."""

    name = "jurkat"
    title = "Real cells (Jurkat), simulated batches"
    help = "tree of real cells with PATH/batch_free_target.npz"

    @property
    def truth_file(self) -> Path:
        return Path(self.path) / "batch_free_target.npz"

    def check(self) -> None:
        if not self.truth_file.is_file():
            raise FileNotFoundError(f"there is no {self.truth_file} (--{self.name})")

    def cells(self, seed: int) -> tuple[Cells, Cells]:
        found = load_cell_images(self.path, ["Train", "Valid", "Test"], image_size=self.image_size)
        truth = np.empty(found.qpi.shape, dtype=np.float32)
        parts = zip(found.batch, found.cell_type, found.split, strict=True)
        groups = np.array(["/".join(part) for part in parts], dtype=object)
        with np.load(self.truth_file) as file:
            for group in np.unique(groups):
                rows = np.flatnonzero(groups == group)
                if group not in file or len(file[group]) != len(rows):
                    raise ValueError(
                        f"{self.truth_file} must hold the {len(rows)} batch-free images of {group} under that key"
                    )
                truth[rows] = resize_images(np.asarray(file[group], dtype=np.float32), self.image_size)
        every = Cells(found.bf, found.qpi, truth, found.batch, found.cell_type)
        rows = self._limited(every, found.split)
        test = np.char.lower(found.split.astype(str)) == "test"
        return every.take(rows[~test[rows]]), every.take(rows[test[rows]])


@dataclass(frozen=True)
class WhiteBloodCells(DataSet):
    """White blood cells from several laboratories: the blue channel in, the green one out; the batch is the site.

    Only cells of the file's part "train" are used: settings were tried on its "test" once. A seed splits them 2 : 1
    within each site and type, into cells to train on and cells of the audit.
    """

    name = "wbc"
    title = "White blood cells, real sites, RGB channels"
    help = "file of white blood cells: images (n, side, side, 3), site, cell_type, split; 'test' cells are not used"
    has_truth = False
    balanced = True
    foreground = "dark"

    def check(self) -> None:
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"there is no {self.path} (--{self.name})")
        side = self._read()["images"].shape[1]
        if side % self.image_size:
            raise ValueError(f"--image-size must divide the side of the images of --{self.name}, {side}")

    def turns(self, seed: int) -> Iterable[int]:
        """Leave out every site."""
        return range(len(np.unique(self._read()["site"])))

    def cells(self, seed: int) -> tuple[Cells, Cells]:
        found = self._read()
        images, step = found["images"], found["images"].shape[1] // self.image_size
        small = images.reshape(len(images), self.image_size, step, self.image_size, step, 3).mean((2, 4)) / 255
        blue, green = (np.ascontiguousarray(small[..., channel], dtype=np.float32) for channel in (2, 1))
        every = Cells(blue, green, None, found["site"], found["cell_type"])
        rng, audit = np.random.default_rng(seed), np.zeros(len(every), dtype=bool)
        known = found["split"] == "train"
        for site, kind in np.unique(np.stack([every.batch, every.cell_type])[:, known], axis=1).T:
            group = rng.permutation(np.flatnonzero(known & (every.batch == site) & (every.cell_type == kind)))
            audit[group[: len(group) // 3]] = True
        rows = self._limited(every, np.where(audit, "audit", found["split"]))
        return every.take(rows[known[rows] & ~audit[rows]]), every.take(rows[audit[rows]])

    def _read(self) -> dict[str, Array]:
        with np.load(self.path) as file:
            return {name: file[name] for name in ("images", "site", "cell_type", "split")}


DATA_SETS: dict[str, type[DataSet]] = {cls.name: cls for cls in (Simulated, Jurkat, WhiteBloodCells)}

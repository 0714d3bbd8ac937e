"""Every way in: images, labels, parameters and the batch design, checked before any long work starts.

Arrays are passed on as they came (memory maps stay memory maps); what is refused is refused with one message that says
what was wrong, what was found and what to do.
"""

from __future__ import annotations

import numbers
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from sklearn.utils import check_random_state

from skbegan._foreign import listed, what_reads_it
from skbegan._labels import as_labels

SIDES = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class CellDataset:
    """What :meth:`fit` learns from, checked.

    Attributes
    ----------
    bf, qpi : ndarray of shape (n, S, S) or (n, S, S, C)
        Brightfield and target as given.
    batch, cell_type : ndarray of int, shape (n,)
        Codes into `batches` and `cell_types`; zeros where no labels were given.
    batches, cell_types : ndarray or None
        Sorted labels, or None where none were given.
    """

    bf: np.ndarray
    qpi: np.ndarray
    batch: np.ndarray
    cell_type: np.ndarray
    batches: np.ndarray | None
    cell_types: np.ndarray | None

    @property
    def n_batches(self) -> int:
        return 1 if self.batches is None else len(self.batches)

    @property
    def n_cell_types(self) -> int:
        return 1 if self.cell_types is None else len(self.cell_types)


# Images ---------------------------------------------------------------------------------------------------------------


def as_array(images: Any, name: str) -> np.ndarray:
    """Return `images` as a real array, without copying where possible.

    Arrays, memory maps and tensors come, and single images in lists, in object arrays and in columns of a table.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.dtype is torch.bfloat16 else images).numpy()
    if (what := what_reads_it(images, name)) is not None:
        raise TypeError(f"{name} must be an array of images, got {what}")
    if isinstance(images, np.ma.MaskedArray) and np.ma.is_masked(images):
        raise ValueError(f"{name} is a masked array with masked pixels; fill them: {name}.filled(value)")
    if _is_column(images):
        images = list(images)
    if isinstance(images, list | tuple):
        shapes = {np.shape(image) for image in images}
        if len(shapes) > 1:
            some = sorted(shapes, key=str)[:3]
            edges = [edge for shape in shapes for edge in shape[:2]]
            raise ValueError(
                f"{name} is a list of images of different shapes, such as {some}; "
                + ("resize them: " + _resizer(name, edges) if edges else "each must be an array of pixels")
            )
        images = [as_array(image, name) for image in images]
    try:
        array = np.asarray(images)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of images, got {type(images).__name__}") from error
    if array.dtype.kind == "O" and array.ndim == 0:
        raise TypeError(f"{name} must be an array of images, got {type(images).__name__}")
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}"
            + ("; pass its amplitude or phase" if array.dtype.kind == "c" else "")
        )
    return array


def _resizer(name: str, edges: Iterable[int], side: int | None = None) -> str:
    """Return what makes images of edges like these fit, as it can be typed."""
    side = side or min(SIDES, key=lambda known: abs(known - max(edges)))
    return f"skbegan.datasets.resize_images({name}, {side})"


def _are_channels_first(shape: tuple[int, ...]) -> bool:
    """Say whether (n, a, b, c) looks like channels before pixels."""
    if len(shape) != 4 or shape[1] == shape[2]:
        return False
    return shape[2] == shape[3] or (shape[1] <= 4 and min(shape[2:]) >= SIDES[0])


def _is_column(images: Any) -> bool:
    """Say whether `images` is one-dimensional and holds objects: a pandas Series, an object array."""
    return hasattr(images, "dtype") and getattr(images.dtype, "kind", "O") == "O" and np.ndim(images) == 1


def check_images(images: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return images as a real (n, S, S) or (n, S, S, C) array of finite numbers.

    Parameters
    ----------
    images : array-like
    name : str
        What the message calls them.
    shape : tuple of int, optional
        The shape of one image that a fitted model asks for.

    Raises
    ------
    TypeError
        For something that is no array of real numbers.
    ValueError
        For another number of axes, other sides, no cells, NaN or infinity.
    """
    array = as_array(images, name)
    if array.ndim not in (3, 4):
        hint = f"; a single image is {name}[None]" if array.ndim == 2 else ""
        raise ValueError(
            f"{name} must have shape (n_cells, side, side) or (n_cells, side, side, channels), got {array.shape}{hint}"
        )
    if len(array) == 0:
        raise ValueError(f"{name} holds no cells: its shape is {array.shape}")
    if shape is not None:
        single_channel = (*shape, 1) if len(shape) == 2 else shape
        if (array.shape[1:] if array.ndim == 4 else (*array.shape[1:], 1)) != single_channel:
            raise ValueError(
                f"{name} has images of shape {array.shape[1:]}, but the model was fitted on {shape}; "
                + _how_to_match(array.shape, single_channel, name)
            )
    else:
        height, width = array.shape[1:3]
        if _are_channels_first(array.shape):
            raise ValueError(
                f"{name} has the shape {array.shape}. Channels come last, (n_cells, side, side, channels): move them "
                f"with np.moveaxis({name}, 1, -1)"
            )
        if height != width or height not in SIDES:
            raise ValueError(
                f"{name} has images of {height} x {width} pixels; the side must be a power of two from 16 to 512, the "
                f"same for both axes. Resize them: {_resizer(name, (height, width))}; those that are not square with "
                "fit='pad' (the default), 'crop' or 'stretch'"
            )
        if array.ndim == 4 and array.shape[3] == 0:
            raise ValueError(f"{name} has no channels: its shape is {array.shape}")
    _check_finite(array, name)
    return array


def _how_to_match(found: tuple[int, ...], wanted: tuple[int, ...], name: str) -> str:
    """Say what brings images of shape `found`, (n, ...), to the side and channels of a model, (S, S, C)."""
    n_channels = found[3] if len(found) == 4 else 1
    if len(found) == 4 and ((*found[2:], found[1]) == wanted or _are_channels_first(found)):
        return f"channels come last: move them with np.moveaxis({name}, 1, -1)"
    how = []
    if n_channels != wanted[2]:
        how.append(f"pass the same {wanted[2]} channel{'s' if wanted[2] > 1 else ''}, not {n_channels}")
    if found[1:3] != wanted[:2]:
        how.append(f"resize them: {_resizer(name, (), wanted[0])}")
    return ", and ".join(how)


def _check_finite(array: np.ndarray, name: str) -> None:
    if array.dtype.kind != "f":
        return
    step = max(1, (1 << 22) // max(1, array[0].size))  # bounded memory, also for a memory map
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step])
        if not finite.all():
            cells = start + np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))
            raise ValueError(
                f"{name} contains NaN or infinity, first in cell {cells[0]}; remove such cells or fill the pixels"
            )


# Labels ---------------------------------------------------------------------------------------------------------------


def check_labels(labels: Any, name: str, n_cells: int) -> np.ndarray:
    """Return labels as a 1-D array of one sortable kind, one per cell.

    Raises
    ------
    ValueError
        For another number of labels or axes, missing labels, a mix of kinds, or objects that are neither strings,
        numbers nor dates. Bytes become strings, and dates of any library ``datetime64``.
    """
    shape = getattr(labels, "shape", None)
    if shape is not None and len(shape) != 1 and tuple(shape[1:]) != (1,):
        raise ValueError(f"{name} must be one label per cell, shape ({n_cells},), got shape {tuple(shape)}")
    array = as_labels(labels, name)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must be one label per cell, shape ({n_cells},), got shape {array.shape}")
    if len(array) != n_cells:
        raise ValueError(f"{name} has {len(array)} labels for {n_cells} cells")
    return array


# What fit was given ---------------------------------------------------------------------------------------------------


def split_y(y: Any, batch: Any, cell_type: Any, y_qpi: Any, n_cells: int) -> tuple[Any, Any, Any]:
    """Tell target images from labels in what came as `y`; return ``(y_qpi, batch, cell_type)``.

    Raises
    ------
    ValueError
        When an argument was given twice, or `y` is neither images nor labels.
    """
    if y is None:
        return y_qpi, batch, cell_type
    given = {"batch": batch, "cell_type": cell_type}
    what = None if isinstance(y, list | tuple) or hasattr(y, "dtype") else what_reads_it(y, "y")
    if what is not None:
        raise TypeError(f"y must be an array of images, labels or a table of labels, got {what}")
    names = _column_names(y)
    table = {name: y[name] for name in ("batch", "cell_type") if name in names}
    lacking = [name for name, value in (given | table).items() if value is None]
    if table and (not lacking or set(names) == set(table)):
        if twice := [name for name in table if given[name] is not None]:
            raise ValueError(f"{twice[0]} was given twice, as a column of y and as {twice[0]}; give it once")
        return y_qpi, *(given | table).values()
    shape = np.shape(as_array(y, "y")) if _is_nested(y) else tuple(y.shape) if hasattr(y, "shape") else np.shape(y)
    if len(shape) >= 3:
        if y_qpi is not None:
            raise ValueError("the target images were given twice, as y and as y_qpi; give them once")
        return y, batch, cell_type
    if len(names) <= 1 and (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        if cell_type is not None:
            raise ValueError(
                "the cell types were given twice, as y (labels) and as cell_type; give them once. "
                "Target images have shape (n_cells, side, side)"
            )
        return y_qpi, batch, y
    raise ValueError(
        f"y must be the target images, shape ({n_cells}, side, side), one cell-type label per cell, shape "
        f"({n_cells},), or a table with columns batch and cell_type; got shape {shape}"
        + (f" and the columns {listed(names)}" if names else "")
    )


def _column_names(y: Any) -> list[Any]:
    """Return the names of the columns of a data frame, a structured array or a dict of columns, else nothing."""
    if isinstance(y, Mapping):
        return list(y)
    names = getattr(getattr(y, "dtype", None), "names", None)
    return list(names if names is not None else getattr(y, "columns", ()))


def _is_nested(y: Any) -> bool:
    return (isinstance(y, list | tuple) or _is_column(y)) and np.ndim(next(iter(y), 0)) >= 2


def check_fit_input(X_bf: Any, y: Any, batch: Any, cell_type: Any, y_qpi: Any) -> CellDataset:
    """Check all that :meth:`fit` is given and return it as one dataset."""
    bf = check_images(X_bf, "X_bf")
    n_cells = len(bf)
    y_qpi, batch, cell_type = split_y(y, batch, cell_type, y_qpi, n_cells)
    if y_qpi is None:
        raise ValueError(
            "no target images: give them as y (fit(X_bf, y_qpi, batch, cell_type)), or as y_qpi when y holds the cell "
            "types, as in a Pipeline (began__y_qpi=...)"
        )
    qpi = check_images(y_qpi, "y_qpi")
    if len(qpi) != n_cells:
        raise ValueError(f"X_bf has {n_cells} cells but y_qpi has {len(qpi)}; they must be pairs of the same cells")
    if qpi.shape[1] != bf.shape[1]:
        raise ValueError(
            f"X_bf has side {bf.shape[1]} but y_qpi has {qpi.shape[1]}; resize one of them: "
            + _resizer("y_qpi", (), bf.shape[1])
        )
    if n_cells < 4:
        raise ValueError(f"{n_cells} cells are too few to train on; at least 4 are needed")
    batches, batch_codes = _encode(batch, "batch", n_cells)
    _check_no_cell_ids(batches, batch_codes)
    cell_types, type_codes = _encode(cell_type, "cell_type", n_cells)
    return CellDataset(bf, qpi, batch_codes, type_codes, batches, cell_types)


def _encode(labels: Any, name: str, n_cells: int) -> tuple[np.ndarray | None, np.ndarray]:
    if labels is None:
        return None, np.zeros(n_cells, dtype=np.int64)
    classes, codes = np.unique(check_labels(labels, name, n_cells), return_inverse=True)
    return classes, codes.astype(np.int64)


def _check_no_cell_ids(batches: np.ndarray | None, codes: np.ndarray) -> None:
    """Refuse batches most of which hold one cell: nothing can be learned from them. They may be names of cells."""
    if batches is None or len(batches) <= 10:
        return
    n_single = int((np.bincount(codes) == 1).sum())
    if 2 * n_single > len(batches):
        some = listed(str(label)[:40] for label in batches[:3].tolist())
        raise ValueError(
            f"batch has {len(batches)} different labels for {len(codes)} cells, and {n_single} of them belong to a "
            f"single cell, such as {some}. Are these the names of cells? batch is what many cells share: the day, "
            "plate or site of imaging"
        )


def warn_of_partial_score(batch: np.ndarray | None, cell_type: np.ndarray | None) -> None:
    """Warn that the score of a model that knows several batches says nothing of them, and how it would.

    Warns
    -----
    UserWarning
    """
    if cell_type is None:
        lacking = "no cell types" if batch is not None else "neither batch nor cell types"
    elif batch is None:
        lacking = "no batch"
    else:
        lacking = f"cells of one batch only, {str(batch[0])!r} (folds must mix the batches)"
    what = "how well images are predicted" if cell_type is None else "how well cell types are read from the features"
    warnings.warn(
        f"score was given {lacking}: it measures {what} and says nothing of the batch. In a search, set "
        "sklearn.set_config(enable_metadata_routing=True), let y be a table with columns batch and cell_type, or set "
        "scoring=skbegan.metrics.batch_removal_scorer.with_labels(X_bf, batch, cell_type)",
        UserWarning,
        stacklevel=3,
    )


# The batch design -----------------------------------------------------------------------------------------------------


def can_remove_batch(dataset: CellDataset, batch_target: str) -> bool:
    """Say whether there is a batch effect to remove, warning where the design makes that impossible or unsafe.

    Warns
    -----
    UserWarning
        When `batch` is missing or has one value (stage 2 is skipped), when cell types are missing, or when batch and
        cell type are confounded.
    """
    if dataset.n_batches < 2:
        what = (
            "no batch was given" if dataset.batches is None else f"all cells are of batch {str(dataset.batches[0])!r}"
        )
        warnings.warn(
            f"{what}: there is no batch effect to learn, so stage 2 is skipped and the model is only pretrained. "
            "Pass batch (day, plate or site of every cell) with at least two values, or removal_epochs=0 to say that "
            "this is meant.",
            UserWarning,
            stacklevel=4,
        )
        return False
    if dataset.n_cell_types < 2:
        what = "no cell_type was given" if dataset.cell_types is None else "all cells are of one cell type"
        warnings.warn(
            f"{what}: nothing tells biology from batch, and differences between the cells of different batches will be "
            "removed whatever they are. Pass cell_type (line, drug, dose, phase) if the cells differ.",
            UserWarning,
            stacklevel=4,
        )
        return True
    table = np.zeros((dataset.n_cell_types, dataset.n_batches), dtype=bool)
    table[dataset.cell_type, dataset.batch] = True
    assert dataset.cell_types is not None and dataset.batches is not None
    if (table.sum(axis=1) == 1).all():
        skipped = batch_target == "conditional"
        warnings.warn(
            "batch and cell type are confounded: every cell type occurs in one batch only, so that their effects "
            "cannot be told apart. "
            + (
                "Stage 2 is skipped. Image at least one cell type (a control) in several batches, or choose "
                "batch_target='uniform' to remove the batch at the price of the cell type."
                if skipped
                else f"batch_target={batch_target!r} will remove the cell type with the batch. Image at least one cell "
                "type (a control) in several batches."
            ),
            UserWarning,
            stacklevel=4,
        )
        return not skipped
    groups = _linked_batches(table)
    if len(groups) > 1:
        names = " | ".join(", ".join(str(dataset.batches[b]) for b in group) for group in groups)
        warnings.warn(
            f"batch and cell type are partly confounded: the batches fall into groups that share no cell type ({names}). "  # noqa: E501
            "Differences between these groups cannot be told from differences between their cell types and may stay. "
            "Image a common cell type (a control) in all batches.",
            UserWarning,
            stacklevel=4,
        )
    return True


def _linked_batches(table: np.ndarray) -> list[list[int]]:
    """Return the groups of batches that are linked by shared cell types; `table` is (n_cell_types, n_batches) bool."""
    from scipy.sparse.csgraph import connected_components

    n_groups, group = connected_components(table.T.astype(int) @ table.astype(int), directed=False)
    return [np.flatnonzero(group == g).tolist() for g in range(n_groups)]


def reference_code(dataset: CellDataset, reference_batch: Any) -> int:
    """Return the code of the reference batch, the first one by default.

    Raises
    ------
    ValueError
        When no cell is of that batch.
    """
    if reference_batch is None or dataset.batches is None:
        return 0
    where = np.flatnonzero(dataset.batches == reference_batch)
    if len(where) == 0:
        raise ValueError(f"reference_batch={reference_batch!r} is none of the batches {dataset.batches.tolist()}")
    return int(where[0])


def split_validation(
    batch: np.ndarray, cell_type: np.ndarray, fraction: float, random_state: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells at random into training and validation rows, stratified by batch and cell type.

    Every group of batch and cell type gives the rounded fraction of its cells, and keeps at least one for training; the
    groups with the largest remainders make up what rounding loses. Both sets are in random order.
    """
    rng = check_random_state(random_state)
    order = rng.permutation(len(batch))
    groups = np.unique(np.stack([batch, cell_type]), axis=1, return_inverse=True)[1].ravel()[order]
    sizes = np.bincount(groups)
    wanted = sizes * fraction
    counts = np.floor(wanted).astype(int)
    lacking = round(wanted.sum()) - counts.sum()
    by_remainder = np.argsort(-(wanted - counts), kind="stable")
    by_remainder = by_remainder[sizes[by_remainder] >= 2]
    counts[by_remainder[: max(0, lacking)]] += 1
    counts = np.minimum(counts, sizes - 1)
    rank = np.empty(len(order), dtype=int)  # of each cell within its group, in the random order
    sorted_by_group = np.argsort(groups, kind="stable")
    rank[sorted_by_group] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held_out = rank < counts[groups]
    return order[~held_out], order[held_out]


# Parameters -----------------------------------------------------------------------------------------------------------

_COUNTS = {  # name: smallest value
    "base_width": 1,
    "n_features": 1,
    "pretrain_epochs": 0,
    "removal_epochs": 0,
    "refresh_epochs": 1,
    "classifier_epochs": 1,
    "warmup_epochs": 0,
    "n_adversaries": 1,
    "adversary_steps": 1,
    "minibatch_size": 2,
}
_WEIGHTS = (
    "pretrain_image_weight",
    "adversarial_weight",
    "cell_type_weight",
    "cell_type_image_weight",
    "batch_weight",
    "batch_image_weight",
    "image_weight",
    "alignment",
    "invariance_weight",
    "activity_weight",
    "decorrelation_weight",
    "matching",
    "look_spread",
)
_RATES = (
    "learning_rate",
    "removal_learning_rate",
    "discriminator_learning_rate",
    "classifier_learning_rate",
    "adversary_learning_rate",
)
_SHARES = {  # name: largest value
    "validation_fraction": 0.9,
    "ramp": 1.0,
    "decay": 1.0,
    "averaging": 0.9999,
    "profile_floor": 1.0,
    "batch_transfer": 1.0,
    "brightfield_transfer": 1.0,
}
_FLAGS = ("standardize", "augment", "compile", "warm_start", "image_erasure")
_CHOICES = {
    "adversary": ("online", "published"),
    "batch_target": ("conditional", "uniform", "reference"),
    "inference": ("population", "minibatch"),
    "precision": ("auto", "float32", "bfloat16", "float64"),
}


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Check the estimator's parameters by name.

    Raises
    ------
    TypeError, ValueError
        With the parameter's name, what it may be and what was found.
    """
    for name, low in _COUNTS.items():
        value = parameters[name]
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer of at least {low}, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    for name in (*_WEIGHTS, *_RATES, *_SHARES):
        value = parameters[name]
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
        value = float(value)
        if not np.isfinite(value) or value < 0 or (name in _RATES and value == 0):
            raise ValueError(f"{name} must be {'positive' if name in _RATES else 'at least 0'}, got {value}")
        if value > _SHARES.get(name, np.inf):
            raise ValueError(f"{name} must be at most {_SHARES[name]}, got {value}")
    for name in _FLAGS:
        if not isinstance(parameters[name], bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {parameters[name]!r}")
    for name, choices in _CHOICES.items():
        if parameters[name] not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {parameters[name]!r}")
    callback = parameters["callback"]
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be None or a function of one argument, callback(info), got {callback!r}")


def check_memory(memory: Any) -> Any:
    """Return a joblib.Memory for what the estimator's `memory` may be: None, a path or a Memory."""
    if memory is None or isinstance(memory, str | os.PathLike):
        return joblib.Memory(None if memory is None else os.fspath(memory), verbose=0)
    if not hasattr(memory, "cache"):
        raise ValueError(f"memory must be None, a path or a joblib.Memory, got {memory!r}")
    return memory

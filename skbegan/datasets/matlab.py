"""The original's folders of MATLAB files, in and out.

Reads trees such as ``ROOT/Batch1/H69/Train/H69_BF.mat`` + ``H69_QPI.mat`` (cell lines) and
``ROOT/Docetaxel/B1/D3/Train/D3_BF.mat`` + ``D3_QPI.mat`` (drugs), and writes predictions into the same kind of tree.
Slow libraries (torch, h5py, mat73, scipy.io) are imported by the functions that need them.
"""

import itertools
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan.datasets._matfile import ImageVariable, inspect, pick, read

if TYPE_CHECKING:
    from sklearn.utils import Bunch

__all__ = ["load_cell_images", "resize_images", "save_predictions"]

_LAYOUTS = {"cell_lines": ("BATCH", "LINE"), "drugs": ("DRUG", "BATCH", "SAMPLE")}  # folders above the state folder
_CHUNK_BYTES = 64 * 2**20  # working memory of one resizing step
_MAX_V5_BYTES = 2**31 - 1  # largest variable that MATLAB's v5 format holds
_RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL"} | {f"{port}{digit}" for port in ("COM", "LPT") for digit in range(1, 10)}


def resize_images(images: ArrayLike, size: int) -> NDArray[np.float32]:
    """Resize square images with the bicubic kernel of OpenCV (``INTER_CUBIC``), as the original's loader does.

    The kernel has A = -0.75, pixels beyond the border repeat the border pixel, and nothing is smoothed before
    shrinking. Works in chunks, so the memory needed beyond input and output is bounded.

    Parameters
    ----------
    images : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
        Real images of any dtype, in any unit.
    size : int
        Side of the resized images, in pixels.

    Returns
    -------
    resized : ndarray of shape (n_cells, size, size) or (n_cells, size, size, n_channels), float32
        A new array, in the unit of `images`. Images that already have this side are only converted.

    Raises
    ------
    ValueError
        If the images are not square, not real, or not 3- or 4-dimensional, or if `size` is below 1.
    TypeError
        If `size` is not an integer.

    Examples
    --------
    >>> import numpy as np
    >>> from skbegan.datasets import resize_images
    >>> resize_images(np.ones((5, 45, 45)), 32).shape
    (5, 32, 32)
    """
    source, side = _real_array("images", images, (3, 4)), _check_count("size", size)
    if source.shape[1] != source.shape[2]:
        raise ValueError(_not_square("images", source.shape[1], source.shape[2]))
    out = np.empty((len(source), side, side, *source.shape[3:]), dtype=np.float32)
    _resize_into(source, out)
    return out


def _resize_into(source: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Fill `out` with `source`, resized if their sides differ."""
    height, side = source.shape[1], out.shape[1]
    if height == side:
        out[...] = source
        return
    import torch

    n_channels = source.shape[3] if source.ndim == 4 else 1
    step = max(1, _CHUNK_BYTES // (4 * n_channels * (height**2 + side**2)))
    for start in range(0, len(source), step):
        chunk = source[start : start + step]
        chunk = np.moveaxis(chunk, 3, 1) if chunk.ndim == 4 else chunk[:, None]
        # A copy, because torch wants native byte order, positive strides and writable memory.
        tensor = torch.from_numpy(np.array(chunk, dtype=np.float32, order="C"))
        resized = torch.nn.functional.interpolate(
            tensor, size=(side, side), mode="bicubic", align_corners=False
        ).numpy()
        out[start : start + step] = np.moveaxis(resized, 1, 3) if source.ndim == 4 else resized[:, 0]


def load_cell_images(
    root: str | PathLike[str],
    split: str | Sequence[str] = "Train",
    *,
    image_size: int | None = 128,
    layout: Literal["auto", "cell_lines", "drugs"] = "auto",
    bf_variable: str = "BF",
    qpi_variable: str = "QPI",
    batches: str | Sequence[str] | None = None,
    cell_types: str | Sequence[str] | None = None,
    drugs: str | Sequence[str] | None = None,
    cell_type_from: Literal["drug", "dose"] = "drug",
    max_cells_per_group: int | None = None,
    verbose: int = 0,
) -> "Bunch":
    """Load paired images from the original's tree of MATLAB files.

    Two layouts are known::

        ROOT/BATCH/LINE/STATE/LINE_BF.mat            layout="cell_lines", e.g. ROOT/Batch1/H69/Train/H69_BF.mat
        ROOT/DRUG/BATCH/SAMPLE/STATE/SAMPLE_BF.mat   layout="drugs", e.g. ROOT/Docetaxel/B1/D3/Train/D3_BF.mat

    with ``..._QPI.mat`` beside each. Files are MATLAB v7.3 (HDF5) or v4 to v7, told apart by their content. They hold
    height x width x cells, or height x width x channels x cells; a matrix is one cell, because MATLAB drops a last
    dimension of 1. (One cell with several channels, saved by MATLAB, is therefore read as several cells.)

    Cells come in file order. Groups come by state in the order asked for, then (drug,) line or sample, then batch:
    all batches of H69, then all batches of H358. Names are sorted naturally: Batch10 after Batch2, H358 after H69.
    That is the original's order before it shuffles.

    Parameters
    ----------
    root : path-like
        The folder that holds the batches (cell lines) or the drugs. A single drug's folder looks like cell lines.
    split : str or sequence of str, default="Train"
        State folders to read, in any case ("Train", "Valid", "Test"). Groups that lack a state are passed over.
    image_size : int or None, default=128
        Side in pixels to which images are resized, see `resize_images`. None keeps their size.
    layout : {"auto", "cell_lines", "drugs"}, default="auto"
        "auto" goes by the depth of the state folders.
    bf_variable, qpi_variable : str, default="BF", "QPI"
        Name of the variable, and of the file after the underscore. In any case, an exact match going first.
        ``qpi_variable="CytoMAD_image"`` reads what `save_predictions` wrote.
    batches, cell_types, drugs : str, sequence of str or None, default=None
        Names to keep; None keeps all. `cell_types` are the labels returned; `drugs` are folders of the drug layout.
    cell_type_from : {"drug", "dose"}, default="drug"
        Drug layout only: the cell type is the drug ("Docetaxel") or drug and dose ("Docetaxel D3"). The untreated
        control, the sample DMSO, is the cell type "DMSO" of all drugs either way.
    max_cells_per_group : int or None, default=None
        Read only the first cells of each pair of files. None reads all.
    verbose : int, default=0
        Above 0, show a progress bar.

    Returns
    -------
    data : sklearn.utils.Bunch
        bf, qpi : ndarray of shape (n_cells, side, side) or (n_cells, side, side, n_channels), float32
            Images in the units of the files.
        batch, cell_type, split : ndarray of shape (n_cells,), str
            Labels of each cell. In the drug layout one batch name under two drugs is one batch.
        drug, dose : ndarray of shape (n_cells,), str
            Drug layout only: names of the drug folder and of the sample folder ("D3", "DMSO").
        group_files : list of (Path, Path)
            The two files of each group, in the order read.
        DESCR : str
            A short description.

    Raises
    ------
    FileNotFoundError
        If `root`, the state folders or a file of a pair is missing.
    NotADirectoryError
        If `root` is a file.
    ValueError
        If a file is unreadable or lacks the variable, a variable is no real array of images, the files of a pair
        disagree, groups differ in size with ``image_size=None``, or a parameter has an impossible value.
    TypeError
        If `image_size` or `max_cells_per_group` is not an integer.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from skbegan.datasets import load_cell_images, make_cell_images, save_predictions
    >>> cells = make_cell_images(12, 2, 2, 16, random_state=0)
    >>> labels = {"batch": cells.batch, "cell_type": cells.cell_type}
    >>> with TemporaryDirectory() as root:
    ...     _ = save_predictions(root, images=cells.qpi, features=cells.qpi[:, 0], bf=cells.bf, qpi=cells.qpi, **labels)
    ...     read = load_cell_images(root, "Test", image_size=16)
    >>> read.bf.shape, sorted(set(read.batch.tolist()))
    ((12, 16, 16), ['batch0', 'batch1'])
    """
    root = Path(root)
    side = None if image_size is None else _check_count("image_size", image_size)
    limit = None if max_cells_per_group is None else _check_count("max_cells_per_group", max_cells_per_group)
    _check_choice("layout", layout, ("auto", *_LAYOUTS))
    _check_choice("cell_type_from", cell_type_from, ("drug", "dose"))
    splits = [split] if isinstance(split, str) else [str(name) for name in split]
    if not splits or len({name.casefold() for name in splits}) < len(splits):
        raise ValueError(f"split must be one state or several different ones, got {split!r}.")

    layout_found, groups = _find_groups(root, splits, layout, cell_type_from)
    if drugs is not None and layout_found != "drugs":
        raise ValueError(f"drugs={drugs!r} was given, but {root} has the layout 'cell_lines', without drug folders.")
    groups = _select(groups, {"batches": batches, "cell_types": cell_types, "drugs": drugs})

    # Headers first: everything wrong with a tree is said before gigabytes are read, and memory is taken once.
    pairs = [_inspect_pair(group, bf_variable, qpi_variable, side) for group in groups]
    _check_same_shape(pairs, slice(2, None), "Every group needs the same channels.")
    if side is None:
        _check_same_shape(pairs, slice(0, 2), "Set image_size to resize them.")
    counts = [bf.n_cells if limit is None else min(limit, bf.n_cells) for bf, _ in pairs]
    bf_images, qpi_images = (_allocate(stacks, sum(counts), side) for stacks in zip(*pairs, strict=True))

    steps: Iterable[tuple[tuple[ImageVariable, ImageVariable], int]] = zip(pairs, counts, strict=True)
    if verbose > 0:
        from tqdm import tqdm

        steps = tqdm(list(steps), desc="reading", unit="group")
    start = 0
    for (bf, qpi), count in steps:
        for stack, out in ((bf, bf_images), (qpi, qpi_images)):
            _resize_into(read(stack, count), out[start : start + count])
        start += count

    labels = {
        name: np.repeat(np.array([getattr(group, name) for group in groups], dtype=np.str_), counts)
        for name in ("batch", "cell_type", "split", *(("drug", "dose") if layout_found == "drugs" else ()))
    }
    description = (
        f"{sum(counts)} cells of {len(groups)} groups (layout {layout_found!r}, {', '.join(splits)}) from {root}: "
        f"{bf_variable} images with {qpi_variable} as target, {bf_images.shape[1]} x {bf_images.shape[2]} pixels."
    )
    from sklearn.utils import Bunch

    files = [(bf.path, qpi.path) for bf, qpi in pairs]
    return Bunch(bf=bf_images, qpi=qpi_images, **labels, group_files=files, DESCR=description)


# --- folders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """One folder with a pair of files. `dose` is the sample's folder name in both layouts."""

    folder: Path
    batch: str
    cell_type: str
    split: str
    drug: str
    dose: str


def _natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that reads digits as numbers."""
    parts = re.split(r"(\d+)", name.casefold())  # text and digits alternate, so like meets like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """All folders exactly `depth` levels below `root`."""
    if depth == 0:
        yield root
        return
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        yield from _folders(folder, depth - 1)


def _find_groups(root: Path, splits: list[str], layout: str, cell_type_from: str) -> tuple[str, list[_Group]]:
    """Name of the layout and its groups, in the order in which they are read."""
    if not root.exists():
        raise FileNotFoundError(f"The folder {root} does not exist.")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; root must be the folder that holds the batches or the drugs.")
    tried = list(_LAYOUTS) if layout == "auto" else [layout]
    found: dict[str, dict[str, list[_Group]]] = {}
    states: set[str] = set()
    for name in tried:
        by_split: dict[str, list[_Group]] = {}
        for folder in _folders(root, len(_LAYOUTS[name])):
            present = [path.name for path in _folders(folder, 1)]
            states.update(present)
            for wanted in splits:
                state = pick(wanted, present)
                if state is not None:
                    by_split.setdefault(wanted, []).append(_group(root, folder, state, wanted, cell_type_from))
        if by_split:
            found[name] = by_split
    if len(found) > 1:
        raise ValueError(f"{root} has state folders of both layouts; choose layout='cell_lines' or layout='drugs'.")
    # States count as missing one by one, so that a mistyped name in a sequence is not passed over.
    missing = [wanted for wanted in splits if not any(wanted in by_split for by_split in found.values())]
    if missing:
        raise FileNotFoundError(_nothing_found(root, missing[0], list(found) or tried, states))
    layout_found, by_split = next(iter(found.items()))
    return layout_found, [
        group
        for wanted in splits
        for group in sorted(by_split[wanted], key=lambda g: [_natural_key(name) for name in (g.drug, g.dose, g.batch)])
    ]


def _group(root: Path, folder: Path, state: str, split: str, cell_type_from: str) -> _Group:
    *drugs, batch, sample = folder.relative_to(root).parts
    drug = drugs[0] if drugs else ""
    if not drug:
        cell_type = sample
    elif sample.upper() == "DMSO":
        cell_type = "DMSO"
    else:
        cell_type = drug if cell_type_from == "drug" else f"{drug} {sample}"
    return _Group(folder / state, batch, cell_type, split, drug, sample)


def _nothing_found(root: Path, split: str, tried: list[str], states: set[str]) -> str:
    """What to say when no folder of a state is where it should be."""
    patterns = " and ".join(f"{'/'.join(('ROOT', *_LAYOUTS[name], split))} (layout {name!r})" for name in tried)
    message = f"No {split!r} folder found under {root}. Looked for {patterns}."
    top = [path.name for path in _folders(root, 1)]
    listed = ", ".join(sorted(top, key=_natural_key)[:8]) + (", ..." if len(top) > 8 else "")
    message += f" ROOT holds the folders: {listed or 'none'}."
    usual = sorted(states, key=_natural_key)
    if usual:
        message += f" Folders where states are expected: {', '.join(usual[:8])}."
    for depth in range(1, 6):
        stray = next((path for path in _folders(root, depth) if path.name.casefold() == split.casefold()), None)
        if stray is not None:
            message += f" There is {stray}, at another depth: is ROOT one folder too high or too low?"
            break
    return message


def _select(groups: list[_Group], wanted: Mapping[str, str | Sequence[str] | None]) -> list[_Group]:
    """Keep the groups whose labels are asked for."""
    attributes = {"batches": "batch", "cell_types": "cell_type", "drugs": "drug"}
    selected = groups
    for parameter, names in wanted.items():
        if names is None:
            continue
        keep = {names} if isinstance(names, str) else {str(name) for name in names}
        available = sorted({getattr(group, attributes[parameter]) for group in groups}, key=_natural_key)
        unknown = sorted(keep - set(available))
        if unknown or not keep:
            raise ValueError(
                f"{parameter}={names!r}: {f'unknown {unknown}' if unknown else 'empty'}. Available: {available}."
            )
        selected = [group for group in selected if getattr(group, attributes[parameter]) in keep]
    if not selected:
        asked = ", ".join(f"{parameter}={names!r}" for parameter, names in wanted.items() if names is not None)
        raise ValueError(f"No group matches {asked} together, although each name exists.")
    return selected


def _inspect_pair(
    group: _Group, bf_variable: str, qpi_variable: str, side: int | None
) -> tuple[ImageVariable, ImageVariable]:
    """Find and check the two files of a group without reading images."""
    present = [path.name for path in group.folder.iterdir() if path.is_file()]
    stacks = []
    for variable in (bf_variable, qpi_variable):
        wanted = f"{group.dose}_{variable}.mat"
        name = pick(wanted, present)
        if name is None:
            raise FileNotFoundError(
                f"{group.folder / wanted} is missing; every group needs the pair {group.dose}_{bf_variable}.mat and "
                f"{group.dose}_{qpi_variable}.mat. The folder holds: {', '.join(sorted(present)[:8]) or 'nothing'}."
            )
        stack = inspect(group.folder / name, variable)
        height, width = stack.image_shape[:2]
        if side is not None and height != width:
            raise ValueError(_not_square(str(stack.path), height, width))
        stacks.append(stack)
    bf, qpi = stacks
    if (bf.n_cells, bf.image_shape[:2]) != (qpi.n_cells, qpi.image_shape[:2]):
        raise ValueError(f"The files of a pair disagree: {bf} and {qpi}. Each cell needs both images, of one size.")
    return bf, qpi


def _not_square(what: str, height: int, width: int) -> str:
    return f"{what}: {height} x {width} pixels is not square, and only square images are resized. Crop or pad first."


def _check_same_shape(pairs: Sequence[tuple[ImageVariable, ImageVariable]], axes: slice, advice: str) -> None:
    """All groups must fit into one array."""
    for pair in pairs:
        for first, other in zip(pairs[0], pair, strict=True):
            if first.image_shape[axes] != other.image_shape[axes]:
                raise ValueError(f"Images of different shapes: {first} and {other}. {advice}")


def _allocate(stacks: Sequence[ImageVariable], n_cells: int, side: int | None) -> NDArray[np.float32]:
    height, width, *channels = stacks[0].image_shape
    height, width = (height, width) if side is None else (side, side)
    return np.empty((n_cells, height, width, *channels), dtype=np.float32)


# --- writing -------------------------------------------------------------------------------------------------------


def save_predictions(
    root: str | PathLike[str],
    *,
    images: ArrayLike,
    features: ArrayLike,
    batch: ArrayLike,
    cell_type: ArrayLike,
    bf: ArrayLike | None = None,
    qpi: ArrayLike | None = None,
    split: str = "Test",
    overwrite: bool = False,
) -> list[Path]:
    """Write predictions as the original's test script does: MATLAB v5 files per batch and cell type.

    ``ROOT/BATCH/CELL_TYPE/SPLIT/`` receives ``CELL_TYPE_CytoMAD_image.mat`` and ``CELL_TYPE_CytoMAD_features.mat``,
    with variables of the same names, and ``CELL_TYPE_BF.mat`` and ``CELL_TYPE_QPI.mat`` if given. `load_cell_images`
    reads the tree back, predictions with ``qpi_variable="CytoMAD_image"``. Everything is checked before anything is
    written, and each file appears complete or not at all.

    Parameters
    ----------
    root : path-like
        Folder of the tree, made if missing. It may be the folder of the data: leave out `bf` and `qpi` then.
    images : array-like of shape (n_cells, height, width) or (n_cells, height, width, n_channels)
        Predicted images, saved as height x width x cells or height x width x channels x cells.
    features : array-like of shape (n_cells, n_features)
        Profiles, saved as cells x features.
    batch, cell_type : array-like of shape (n_cells,)
        Labels; they become names of folders.
    bf, qpi : array-like of the shapes that `images` may have, or None, default=None
        The input and the measured target of the same cells.
    split : str, default="Test"
        Name of the state folder.
    overwrite : bool, default=False
        Whether existing files are replaced.

    Returns
    -------
    paths : list of Path
        The files written.

    Raises
    ------
    ValueError
        If lengths, dimensions or dtypes do not fit, a label is no valid folder name (on Windows, so that a tree can
        travel), two labels differ in case only, or a variable is too large for the format.
    FileExistsError
        If a file exists and `overwrite` is False.
    NotADirectoryError
        If `root` is a file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from skbegan.datasets import make_cell_images, save_predictions
    >>> cells = make_cell_images(12, 2, 2, 16, random_state=0)
    >>> labels = {"batch": cells.batch, "cell_type": cells.cell_type}
    >>> with TemporaryDirectory() as root:
    ...     written = save_predictions(root, images=cells.qpi, features=cells.qpi[:, 0], **labels)
    ...     len(written), written[0].suffix
    (8, '.mat')
    """
    root = Path(root)
    arrays = {
        "CytoMAD_image": _real_array("images", images, (3, 4)),
        "CytoMAD_features": _real_array("features", features, (2,)),
    }
    for variable, given in (("BF", bf), ("QPI", qpi)):
        if given is not None:
            arrays[variable] = _real_array(variable.lower(), given, (3, 4))
    labels = {"batch": np.asarray(batch), "cell_type": np.asarray(cell_type)}
    for name, values in labels.items():
        if values.ndim != 1:
            raise ValueError(f"{name} must be one-dimensional, got the shape {values.shape}.")
        _check_folder_names(name, [str(value) for value in np.unique(values.astype(np.str_))])
    _check_folder_names("split", [split])
    lengths = {name: len(values) for name, values in {**arrays, **labels}.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All arguments need one entry per cell, got the lengths {lengths}.")
    if not len(labels["batch"]):
        raise ValueError("There is no cell to save.")

    days, types = (values.astype(np.str_) for values in labels.values())
    planned: list[tuple[Path, str, NDArray[np.intp]]] = []
    for kind in sorted(np.unique(types).tolist(), key=_natural_key):
        for day in sorted(np.unique(days[types == kind]).tolist(), key=_natural_key):
            cells = np.flatnonzero((days == day) & (types == kind))
            for variable, array in arrays.items():
                path = root / day / kind / split / f"{kind}_{variable}.mat"
                planned.append((path, variable, cells))
                if (n_bytes := array[:1].nbytes * len(cells)) > _MAX_V5_BYTES:
                    raise ValueError(
                        f"{path} would hold {n_bytes} bytes, too many for MATLAB's v5 format; save fewer cells."
                    )
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; root must be a folder.")
    existing = [str(path) for path, _, _ in planned if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{len(existing)} files exist, first {existing[0]}; set overwrite=True to replace them.")

    for path, variable, cells in planned:
        chosen = arrays[variable][cells]
        _write(path, variable, chosen if variable == "CytoMAD_features" else np.moveaxis(chosen, 0, -1))
    return [path for path, _, _ in planned]


def _write(path: Path, variable: str, array: NDArray[Any]) -> None:
    """Write one variable into a v5 file, under another name until it is complete."""
    import scipy.io

    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32)  # the format has no half and no extended precision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            scipy.io.savemat(file, {variable: array}, do_compression=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- checks --------------------------------------------------------------------------------------------------------


def _check_folder_names(what: str, names: Sequence[str]) -> None:
    """Refuse names that no folder may have on Windows, which is the strictest."""
    for name in names:
        if not name or name[-1] in ". " or re.search(r'[\\/:*?"<>|\x00-\x1f]', name):
            reason = "it is empty, ends in a dot or a space, or has a character that paths do not allow"
        elif name.split(".")[0].strip().upper() in _RESERVED_NAMES:
            reason = "Windows reserves it"
        else:
            continue
        raise ValueError(f"The {what} {name!r} cannot be the name of a folder: {reason}. Rename it.")
    folded = sorted(names, key=lambda name: (name.casefold(), name))
    for one, other in itertools.pairwise(folded):
        if one.casefold() == other.casefold():
            raise ValueError(
                f"The {what} labels {one!r} and {other!r} differ in case only, which folders may not. Rename one."
            )


def _real_array(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim not in ndims or 0 in array.shape[1:]:
        expected = "(n_cells, height, width) or (n_cells, height, width, n_channels)" if 3 in ndims else "(n_cells, n)"
        raise ValueError(f"{name} must have the shape {expected}, got {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got the dtype {array.dtype}.")
    return array


def _check_count(name: str, value: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}.")
    return int(value)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")

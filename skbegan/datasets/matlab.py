"""The original's folders of MATLAB files, in and out.

Reads trees such as ``ROOT/Batch1/H69/Train/H69_BF.mat`` + ``H69_QPI.mat`` (cell lines) and
``ROOT/Docetaxel/B1/D3/Train/D3_BF.mat`` + ``D3_QPI.mat`` (drugs), and writes predictions into the same kind of tree.
Slow libraries (torch, h5py, scipy.io) are imported by the functions that need them.
"""

import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbegan._progress import Progress
from skbegan.datasets._folders import LAYOUTS, Group, find_groups, natural_key, select
from skbegan.datasets._matfile import ImageVariable, inspect, pick, read
from skbegan.datasets._writing import (
    check_folder_names,
    check_places,
    folder_names,
    is_hidden,
    write_all,
    write_v5,
)
from skbegan.datasets.resizing import FITS, Fit, check_choice, check_count, real_array, resize_images, resize_into
from skbegan.labels.arrays import as_labels
from skbegan.stored.hdf5 import EXPANSION, TooLargeError, check_size

if TYPE_CHECKING:
    from sklearn.utils import Bunch

__all__ = ["load_cell_images", "resize_images", "save_predictions"]

_MAX_V5_BYTES = 2**31 - 1  # largest variable that MATLAB's v5 format holds


def load_cell_images(
    root: str | PathLike[str],
    split: str | Sequence[str] = "Train",
    *,
    image_size: int | None = 128,
    layout: Literal["auto", "cell_lines", "drugs"] = "auto",
    bf_variable: str | None = None,
    qpi_variable: str | None = None,
    bf_suffix: str | None = None,
    qpi_suffix: str | None = None,
    axes: str | None = None,
    fit: Fit | None = None,
    antialias: bool = False,
    batches: str | Sequence[str] | None = None,
    cell_types: str | Sequence[str] | None = None,
    drugs: str | Sequence[str] | None = None,
    cell_type_from: Literal["drug", "dose"] = "drug",
    max_cells_per_group: int | None = None,
    max_expansion: float = EXPANSION,
    verbose: int = 0,
) -> "Bunch":
    """Load paired images from the original's tree of MATLAB files.

    Two layouts are known::

        ROOT/BATCH/LINE/STATE/LINE_BF.mat            layout="cell_lines", e.g. ROOT/Batch1/H69/Train/H69_BF.mat
        ROOT/DRUG/BATCH/SAMPLE/STATE/SAMPLE_BF.mat   layout="drugs", e.g. ROOT/Docetaxel/B1/D3/Train/D3_BF.mat

    with ``..._QPI.mat`` beside each. Files are MATLAB v7.3 (HDF5) or v4 to v7, told apart by their content. They hold
    height x width x cells, or height x width x channels x cells; a matrix is one cell, because MATLAB drops a last
    dimension of 1. (One cell with several channels, saved by MATLAB, is therefore read as several cells.) Arrays of
    which this is doubtful are refused unless `axes` says it. Folders and files whose names begin with a dot, and
    ``__MACOSX``, are passed over.

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
    bf_variable, qpi_variable : str or None, default=None
        Name of the variable in the files, in any case, an exact match going first. None takes the one that is called
        as the file's suffix, or else the only one that holds images (three or four axes).
        ``qpi_variable="CytoMAD_image"`` reads what `save_predictions` wrote.
    bf_suffix, qpi_suffix : str or None, default=None
        What the files are called after the underscore, in any case. None means the name of the variable, if it was
        given and there is such a file, or else "BF" and "QPI".
    axes : str or None, default=None
        Order of the axes, letter by letter: height, width, cells (n) and channels (c), as MATLAB shows them; "hwn" and
        "hwcn" are what MATLAB's files hold, "nhw" is what ``scipy.io.savemat`` makes of images with cells first. Of
        HDF5 files that MATLAB did not write it is the order that h5py shows, and has to be given. Where an array has
        no channels or is a single image, its letter is passed over.
    fit : {"pad", "crop", "stretch"} or None, default=None
        What becomes of images that are not square when they are resized, see `resize_images`; all groups keep one
        scale with "pad" and "crop". None refuses them.
    antialias : bool, default=False
        Smooth before shrinking, see `resize_images`. The original does not.
    batches, cell_types, drugs : str, sequence of str or None, default=None
        Names to keep; None keeps all. `cell_types` are the labels returned; `drugs` are folders of the drug layout.
    cell_type_from : {"drug", "dose"}, default="drug"
        Drug layout only: the cell type is the drug ("Docetaxel") or drug and dose ("Docetaxel D3"). The untreated
        control, the sample DMSO, is the cell type "DMSO" of all drugs either way.
    max_cells_per_group : int or None, default=None
        Read only the first cells of each pair of files. None reads all.
    max_expansion : float, default=10
        How many times the size of its file a stack of images may take in memory; up to 256 MB it always may. Small
        files can declare, or be unpacked to, terabytes. Raise it for images that you trust and that compress well.
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
        disagree, groups differ in size with ``image_size=None``, the order of axes is doubtful, a file points to other
        files or expands too far, is a Git LFS pointer, or a parameter has an impossible value.
    TypeError
        If `image_size` or `max_cells_per_group` is not an integer, or `max_expansion` no number.

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
    side = None if image_size is None else check_count("image_size", image_size)
    limit = None if max_cells_per_group is None else check_count("max_cells_per_group", max_cells_per_group)
    check_choice("layout", layout, ("auto", *LAYOUTS))
    check_choice("cell_type_from", cell_type_from, ("drug", "dose"))
    if fit is not None:
        check_choice("fit", fit, FITS)
    if axes is not None and (not isinstance(axes, str) or sorted(axes) not in (sorted("hwn"), sorted("hwcn"))):
        raise ValueError(f"axes must name each of h, w and n once, and c where there are channels, got {axes!r}.")
    _check_expansion(max_expansion)
    splits = [split] if isinstance(split, str) else [str(name) for name in split]
    if not splits or len({name.casefold() for name in splits}) < len(splits):
        raise ValueError(f"split must be one state or several different ones, got {split!r}.")

    layout_found, groups = find_groups(root, splits, layout, cell_type_from)
    if drugs is not None and layout_found != "drugs":
        raise ValueError(f"drugs={drugs!r} was given, but {root} has the layout 'cell_lines', without drug folders.")
    groups = select(groups, {"batches": batches, "cell_types": cell_types, "drugs": drugs})

    # Headers first: everything wrong with a tree is said before gigabytes are read, and memory is taken once.
    named = (("BF", bf_variable, bf_suffix), ("QPI", qpi_variable, qpi_suffix))
    pairs = [_inspect_pair(group, named, axes, max_expansion, side is None or fit is not None) for group in groups]
    stacks = [stack for pair in pairs for stack in pair]
    _check_same_shape(pairs, slice(2, None), "Every group needs the same channels.")
    if side is None:
        _check_same_shape(pairs, slice(0, 2), "Set image_size to resize them.")
    counts = [bf.n_cells if limit is None else min(limit, bf.n_cells) for bf, _ in pairs]
    _check_memory(pairs, counts, side, max_expansion)
    edges = [edge for stack in stacks for edge in stack.image_shape[:2]]
    square = None if side is None else {"pad": max(edges), "crop": min(edges)}.get(fit or "")
    bf_images, qpi_images = (_allocate(column, sum(counts), side) for column in zip(*pairs, strict=True))

    _read_into(pairs, counts, bf_images, qpi_images, square, antialias, verbose)
    labels = {
        name: np.repeat(np.array([getattr(group, name) for group in groups], dtype=np.str_), counts)
        for name in ("batch", "cell_type", "split", *(("drug", "dose") if layout_found == "drugs" else ()))
    }
    description = (
        f"{sum(counts)} cells of {len(groups)} groups (layout {layout_found!r}, {', '.join(splits)}) from {root}: "
        f"{pairs[0][0].variable} images with {pairs[0][1].variable} as target, "
        f"{bf_images.shape[1]} x {bf_images.shape[2]} pixels."
    )
    from sklearn.utils import Bunch

    files = [(bf.path, qpi.path) for bf, qpi in pairs]
    return Bunch(bf=bf_images, qpi=qpi_images, **labels, group_files=files, DESCR=description)


def _read_into(
    pairs: list[tuple[ImageVariable, ImageVariable]],
    counts: list[int],
    bf_images: NDArray[np.float32],
    qpi_images: NDArray[np.float32],
    square: int | None,
    antialias: bool,
    verbose: int,
) -> None:
    """Fill both arrays with the first cells of each group, resized."""
    start = 0
    with Progress("reading", len(pairs), unit="group", verbose=verbose) as bar:
        for (bf, qpi), count in zip(pairs, counts, strict=True):
            for stack, out in ((bf, bf_images), (qpi, qpi_images)):
                done = start
                for images in read(stack, count):
                    resize_into(images, out[done : done + len(images)], square, antialias=antialias)
                    done += len(images)
            start += count
            bar.update()


# --- files ---------------------------------------------------------------------------------------------------------


def _inspect_pair(
    group: Group,
    named: Sequence[tuple[str, str | None, str | None]],
    axes: str | None,
    max_expansion: float,
    any_shape: bool,
) -> tuple[ImageVariable, ImageVariable]:
    """Find and check the two files of a group without reading images."""
    present = [path.name for path in group.folder.iterdir() if path.is_file() and not is_hidden(path.name)]
    # The names that a file may have after the sample's, the first choice first.
    suffixes = [[suffix] if suffix else [*([variable] if variable else []), usual] for usual, variable, suffix in named]
    stacks = []
    for (_, variable, _), tried in zip(named, suffixes, strict=True):
        found = [(suffix, pick(f"{group.dose}_{suffix}.mat", present)) for suffix in tried]
        suffix, name = next((pair for pair in found if pair[1] is not None), (tried[0], None))
        if name is None:
            pair = " and ".join(" or ".join(f"{group.dose}_{suffix}.mat" for suffix in names) for names in suffixes)
            raise FileNotFoundError(
                f"{group.folder / f'{group.dose}_{tried[-1]}.mat'} is missing; every group needs the pair {pair}. If "
                f"the files end otherwise, say how with bf_suffix and qpi_suffix. The folder holds: "
                f"{', '.join(sorted(present)[:8]) or 'nothing'}."
            )
        stack = inspect(group.folder / name, variable, suffix, axes, max_expansion)
        if not any_shape:
            _check_square(stack)
        stacks.append(stack)
    bf, qpi = stacks
    if (bf.n_cells, bf.image_shape[:2]) != (qpi.n_cells, qpi.image_shape[:2]):
        raise ValueError(f"The files of a pair disagree: {bf} and {qpi}. Each cell needs both images, of one size.")
    return bf, qpi


def _check_square(stack: ImageVariable) -> None:
    height, width = stack.image_shape[:2]
    if height != width:
        raise ValueError(
            f"{stack.path}: {height} x {width} pixels is not square. Say what to do with such images: fit='pad', "
            "'crop' or 'stretch'; or keep their shape with image_size=None."
        )


def _check_expansion(value: float) -> None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"max_expansion must be a number, got {value!r}.")
    if not value >= 1:
        raise ValueError(f"max_expansion must be at least 1, got {value!r}.")


def _check_memory(
    pairs: Sequence[tuple[ImageVariable, ImageVariable]], counts: Sequence[int], side: int | None, max_expansion: float
) -> None:
    """Refuse a tree of many files that each take little but together too much."""
    n_bytes = file_bytes = 0
    for pair, count in zip(pairs, counts, strict=True):
        for stack in pair:
            height, width, *channels = stack.image_shape
            pixels = height * width if side is None else min(height * width, side**2)
            n_bytes += 4 * count * pixels * math.prod(channels)
            file_bytes += stack.path.stat().st_size
    try:
        check_size(f"{sum(counts)} cells of {len(pairs)} groups", n_bytes, file_bytes, max_expansion)
    except TooLargeError as error:
        raise ValueError(f"{error}. If you trust the files, set max_expansion={math.ceil(error.times)}.") from error


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
    written, and all files appear or none: when writing fails or is interrupted, the tree is as it was. (If the process
    is killed while finished files are moved to their places, some are moved; those replaced are in a folder
    ``.*.tmp`` of `root` then.)

    Parameters
    ----------
    root : path-like
        Folder of the tree, made if missing. It may be the folder of the data: leave out `bf` and `qpi` then.
    images : array-like of shape (n_cells, height, width) or (n_cells, height, width, n_channels)
        Predicted images, saved as height x width x cells or height x width x channels x cells.
    features : array-like of shape (n_cells, n_features)
        Profiles, saved as cells x features.
    batch, cell_type : array-like of shape (n_cells,)
        Labels, of the kinds that ``fit`` takes; they become names of folders. Dates are written as 2024-01-31, with the
        time of day, if there is any, as 2024-01-31T235959.
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
        If lengths, dimensions or dtypes do not fit, a label is missing or no valid folder name (on Windows, so that a
        tree can travel), two labels differ in case or in the composition of letters only, a variable is too large for
        the format, or a folder inside `root` that would be written to is a link.
    FileExistsError
        If a file exists and `overwrite` is False.
    NotADirectoryError, IsADirectoryError
        If `root` or a folder inside it is a file, or a folder has the name of a file.

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
        "CytoMAD_image": real_array("images", images, (3, 4)),
        "CytoMAD_features": real_array("features", features, (2,)),
    }
    for variable, given in (("BF", bf), ("QPI", qpi)):
        if given is not None:
            arrays[variable] = real_array(variable.lower(), given, (3, 4))
    labels = {"batch": as_labels(batch, "batch"), "cell_type": as_labels(cell_type, "cell_type")}
    for name, values in labels.items():
        if values.ndim != 1:
            raise ValueError(f"{name} must be one-dimensional, got the shape {values.shape}.")
    lengths = {name: len(values) for name, values in {**arrays, **labels}.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All arguments need one entry per cell, got the lengths {lengths}.")
    if not len(labels["batch"]):
        raise ValueError("There is no cell to save.")
    longest = max((f"_{variable}.mat" for variable in arrays), key=len)
    days, types = (folder_names(values) for values in labels.values())
    check_folder_names("batch", np.unique(days).tolist())
    check_folder_names("cell_type", np.unique(types).tolist(), longest)
    check_folder_names("split", [split])

    planned: list[tuple[Path, str, NDArray[np.intp]]] = []
    for kind in sorted(np.unique(types).tolist(), key=natural_key):
        for day in sorted(np.unique(days[types == kind]).tolist(), key=natural_key):
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
    paths = [path for path, _, _ in planned]
    check_places(root, paths)
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{len(existing)} files exist, first {existing[0]}; set overwrite=True to replace them.")

    def write(to: Path, variable: str, cells: NDArray[np.intp]) -> None:
        chosen = arrays[variable][cells]
        write_v5(to, variable, chosen if variable == "CytoMAD_features" else np.moveaxis(chosen, 0, -1))

    write_all(root, [(path, partial(write, variable=variable, cells=cells)) for path, variable, cells in planned])
    return paths

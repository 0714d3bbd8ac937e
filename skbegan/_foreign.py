"""Things given or found in the place of images: what they are, and what reads them. Imports nothing of ours."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["listed", "refuse_lfs_pointer", "what_reads_it"]

_LFS = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: str | PathLike[str]) -> None:
    """Refuse the few lines of text that Git LFS keeps in the place of a large file.

    Raises
    ------
    ValueError
        If the file is such a pointer.
    """
    with Path(path).open("rb") as file:
        head = file.read(1024)
    if head.startswith(_LFS):
        size = next((line[5:] for line in head.decode("ascii", "replace").splitlines() if line.startswith("size ")), "")
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file itself{f' (of {size} bytes)' if size.isdigit() else ''}. "
            "Fetch the files that the pointers stand for: run `git lfs pull` in the repository."
        )


def listed(names: Iterable[Any], limit: int = 10) -> str:
    """Names for a message: the first ones, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return f"[{', '.join(map(repr, known[:limit]))}]{more}"


def what_reads_it(value: Any, name: str) -> str | None:
    """Say what something is that is no array of images but is often given for one, and what makes an array of it.

    Returns None for all else. Nothing is read, and nothing is iterated over except lists and object arrays.
    """
    kind = type(value).__name__
    data = sys.modules.get("torch.utils.data")
    if data is not None and isinstance(value, data.Dataset | data.DataLoader):
        if isinstance(value, data.DataLoader):
            return f"a torch DataLoader; stack its images: np.concatenate([images for images, *_ in {name}])"
        if isinstance(value, data.IterableDataset):
            return f"a torch IterableDataset ({kind}); stack its images: np.stack([image for image, *_ in {name}])"
        # By number: most data sets do not say where they end, and iterating over them would not.
        return f"a torch Dataset ({kind}); stack its images: np.stack([{name}[i][0] for i in range(len({name}))])"
    if isinstance(value, np.lib.npyio.NpzFile):
        arrays = listed(value.files)
        first = value.files[0] if value.files else "name"
        return f"an archive of arrays (NpzFile) with {arrays}; pass one of them: {name}[{first!r}]"
    h5py = sys.modules.get("h5py")
    if h5py is not None and isinstance(value, h5py.Group):  # a File too
        return f"an HDF5 {kind.lower()} with {listed(list(value)[:50])}; pass one of its data sets: {name}['images'][:]"
    if isinstance(value, str | PathLike):
        return f"the name of a file, {str(value)!r}; {_reads(value, name, many=False)}"
    if isinstance(value, Iterator):
        return f"{_article(kind)}, which can be read once only; stack its images: np.stack(list({name}))"
    if type(value).__module__.split(".")[0] in ("anndata", "mudata"):
        return f"{_article(kind)}, a table of numbers per cell; pass the array of images itself"
    first = _first(value)
    if isinstance(first, str | PathLike) and not _is_categorical(value):
        return f"a list of file names, first {str(first)!r}; {_reads(first, name, many=True)}"
    return None


def _first(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return value[0] if value else None
    if getattr(getattr(value, "dtype", None), "kind", "") in "OUT" and np.ndim(value) == 1:
        return next(iter(value), None)
    return None


def _is_categorical(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "name", "") == "category"


def _reads(path: str | PathLike[str], name: str, *, many: bool) -> str:
    suffix = Path(path).suffix.lower()
    if suffix == ".mat":
        return "folders of MATLAB files are read by skbegan.datasets.load_cell_images(root)"
    reader = "np.load" if suffix == ".npy" else "tifffile.imread" if suffix in (".tif", ".tiff") else "plt.imread"
    return f"read them first: np.stack([{reader}(path) for path in {name}])" if many else f"read it: {reader}({name})"


def _article(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"

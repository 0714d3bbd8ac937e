"""Make the small copies of the Keras fixtures in this folder: ``python make_copies.py SOURCE``.

SOURCE is the folder with the full fixtures (``n128/`` and ``layers.npz``), which is not part of the repository. Weights
are copied unchanged, in files that h5py packs tighter than Keras does; ``batch_mlp1.h5`` stays byte for byte what Keras
wrote. Of generated images every third row and column and the last ones are kept.
"""

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np

SIDE = 128
KEPT = np.r_[0:SIDE:3, SIDE - 1]


def repack(source: Path, target: Path) -> None:
    """Copy an HDF5 file, compressing large arrays and keeping small ones in their headers."""
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_meta_block_size(512)
    file = h5py.h5f.create(str(target).encode(), h5py.h5f.ACC_TRUNC, fapl=access)
    with h5py.File(source, "r") as old, h5py.File(file) as new:
        copy_group(old, new)


def copy_group(old: h5py.Group, new: h5py.Group) -> None:
    for name, value in old.attrs.items():
        new.attrs[name] = value
    for name, node in old.items():
        if isinstance(node, h5py.Group):
            copy_group(node, new.create_group(name))
        elif node.size >= 512:
            new.create_dataset(name, data=node[()], chunks=node.shape, compression=9, shuffle=True)
        else:
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(node.shape)
            data = h5py.h5d.create(new.id, name.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=layout)
            h5py.Dataset(data)[()] = node[()]


def main(source: Path) -> None:
    here = Path(__file__).parent
    for path in sorted((source / "n128" / "init").glob("*.h5")):
        if path.name == "batch_mlp1.h5":
            shutil.copyfile(path, here / path.name)
        else:
            repack(path, here / path.name)
    shutil.copyfile(source / "layers.npz", here / "layers.npz")
    arrays = {}
    for precision in ("f32", "f64"):
        for name, array in np.load(source / "n128" / f"io_{precision}.npz").items():
            if name in ("x", "y", "feats") or name.startswith("features_list"):
                arrays[name] = array.astype(np.float32) if array.dtype.kind == "f" else array  # equal in both files
                continue
            arrays[f"{name}_{precision}"] = array[:, KEPT][:, :, KEPT] if name.startswith("g_image") else array
    np.savez_compressed(here / "io.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Make the small copies of the training fixtures in this folder: ``python make_copies.py SOURCE``.

SOURCE is the folder with the full fixtures (``n128/``), which is not part of the repository. Losses are copied in full.
Of every large array an evenly spaced part is kept, see `thin`; all arrays of a network are joined end to end in the
order of its Keras file, so that every layer, bias and statistic is present.
"""

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np

KEPT = 512


def thin(array: np.ndarray) -> np.ndarray:
    """Return about `KEPT` numbers of an array; the odd stride visits all channels, whose numbers are powers of two."""
    return array.ravel()[:: array.size // KEPT | 1]


def joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([thin(array) for array in arrays])


def under(source: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    return joined([array for name, array in source.items() if name.startswith(f"{prefix}/")])


def file_weights(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        root = file["model_weights"]
        groups = [root[name] for name in root.attrs["layer_names"]]
        return joined([group[name][()] for group in groups for name in group.attrs["weight_names"]])


def stage(source: Path, name: str, target: Path) -> None:
    arrays = {}
    for precision in ("f32", "f64"):
        old = dict(np.load(source / f"{name}_{precision}.npz"))
        for step in (1, 2, 3):
            arrays[f"losses{step}_{precision}"] = old[f"losses{step}"]
            arrays[f"features{step}_{precision}"] = old[f"fake_features{step}"]
            arrays[f"image{step}_{precision}"] = thin(old[f"fake_image{step}"])
        arrays[f"valid_losses_{precision}"] = old["valid_losses"]
        arrays |= {key: array for key, array in old.items() if key.startswith("features_list") or key == "loss_names"}
    for network in ("generator", "discriminator"):
        for step in (1, 3):
            arrays[f"delta{step}_{network}"] = under(old, f"delta_step{step}/{network}")
        arrays[f"final_{network}_f32"] = file_weights(source / f"{name}_final_{network}.h5")
    arrays["grad1_generator"] = under(old, "grad_step1/generator")
    if name == "stage2":
        arrays["delta_end_generator"] = under(old, "delta_final/generator")
    np.savez_compressed(target / f"{name}.npz", **arrays)


def classifiers(source: Path, target: Path) -> None:
    arrays = {}
    for precision in ("f32", "f64"):
        old = dict(np.load(source / f"classifiers_{precision}.npz"))
        arrays |= {f"{key}_{precision}": array for key, array in old.items() if key.endswith("_loss_acc")}
    for network in ("cell_mlp", "batch_mlp1", "cell_cnn"):
        arrays[f"delta3_{network}"] = under(old, f"delta_step3/{network}")
    np.savez_compressed(target / "classifiers.npz", **arrays, cell=old["cell_onehot"], batch=old["batch_onehot"])


def main(source: Path) -> None:
    here = Path(__file__).parent
    shutil.copyfile(source / "batches.npz", here / "batches.npz")
    stage(source, "stage1", here)
    stage(source, "stage2", here)
    classifiers(source, here)


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "n128")

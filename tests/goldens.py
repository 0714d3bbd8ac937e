"""Golden numbers: what tiny fits gave when they were frozen, case by case.

``python tests/goldens.py`` compares the installed package with ``tests/data/goldens.npz`` and says which cases are
equal to the bit; ``--write`` freezes the numbers of now. A change that only moves code leaves every case equal to the
bit on the machine that froze them; a change that rounds otherwise is a commit of its own with new numbers and the
reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import skbegan
from skbegan import PUBLISHED, BeGANTransformer, OnlineRemoval, ProfileAlignment
from skbegan.datasets import make_cell_images

FILE = Path(__file__).parent / "data" / "goldens.npz"
TINY: dict[str, Any] = {
    "base_width": 4,
    "n_features": 16,
    "pretrain_epochs": 2,
    "removal_epochs": 3,
    "minibatch_size": 16,
    "classifier_epochs": 2,
    "refresh_epochs": 2,
    "precision": "float32",
    "device": "cpu",
    "random_state": 7,
}
N_SHOWN = 8
Result = dict[str, np.ndarray]

OLD_NAMES = {"batch_separation": "alignment", "batch_disagreement": "invariance", "redundancy": "decorrelation"}


def _cells(n_channels: int = 1) -> Any:
    cells = make_cell_images(72, 3, 3, 16, random_state=3)
    if n_channels == 2:
        cells.bf = np.stack([cells.bf, cells.bf[:, ::-1] * 0.5], axis=-1)
        cells.qpi = np.stack([cells.qpi, cells.qpi**2], axis=-1)
    return cells


def _fit(est: BeGANTransformer, cells: Any) -> BeGANTransformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


def _weights(est: BeGANTransformer) -> dict[str, np.ndarray]:
    assert est._model is not None
    return est._model.weights


def _numbers(est: BeGANTransformer, cells: Any) -> Result:
    """Features and images of the first cells, every loss of the history, and the weights."""
    found = {
        "features": est.transform(cells.bf[:N_SHOWN]),
        "images": est.predict_image(cells.bf[:N_SHOWN]),
    }
    for stage, losses in est.history_.items():
        if stage == "events":
            continue
        stage = {"profile": "profile_alignment"}.get(stage, stage)
        for name, values in losses.items():
            held_out = name.startswith("validation_")
            name = name.removeprefix("validation_")
            if stage == "profile_alignment":
                name = {"discrepancy": "matching"}.get(name, name)
            name = OLD_NAMES.get(name, name)
            found[f"history {stage} {'validation_' if held_out else ''}{name}"] = np.array(values, dtype=np.float64)
    weights = _weights(est)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    found["weights"] = np.frombuffer(digest.digest(), dtype=np.uint8)
    found["weight norms"] = np.array([np.linalg.norm(weights[name].astype(np.float64)) for name in sorted(weights)])
    return found


def _fitted(**parameters: Any) -> Callable[[], Result]:
    def run() -> Result:
        cells = _cells()
        return _numbers(_fit(BeGANTransformer(**(TINY | parameters)), cells), cells)

    return run


def _two_channels() -> Result:
    cells = _cells(2)
    return _numbers(_fit(BeGANTransformer(**TINY), cells), cells)


class _StopsAfter:
    """A callback that behaves like Ctrl-C after an epoch of a stage."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch

    def __call__(self, info: Any) -> bool:
        if (info.stage, info.epoch) == (self.stage, self.epoch):
            raise RuntimeError("stopped")
        return False


def _resumed(stage: str, epoch: int, **parameters: Any) -> Callable[[], Result]:
    def run() -> Result:
        cells = _cells()
        with tempfile.TemporaryDirectory() as folder:
            est = BeGANTransformer(**(TINY | parameters), checkpoint_dir=folder)
            try:
                _fit(est.set_params(callback=_StopsAfter(stage, epoch)), cells)
            except RuntimeError:
                pass
            else:
                raise AssertionError("the fit was not stopped")
            return _numbers(_fit(est.set_params(callback=None), cells), cells)

    return run


def _warm(**parameters: Any) -> Callable[[], Result]:
    def run() -> Result:
        cells = _cells()
        est = _fit(BeGANTransformer(**(TINY | parameters), warm_start=True), cells)
        return _numbers(_fit(est, cells), cells)

    return run


def _from_memory() -> Result:
    cells = _cells()
    with tempfile.TemporaryDirectory() as folder:
        _fit(BeGANTransformer(**TINY, memory=folder), cells)
        return _numbers(_fit(BeGANTransformer(**TINY, memory=folder), cells), cells)


def _saved_and_loaded() -> Result:
    cells = _cells()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        skbegan.save(_fit(BeGANTransformer(**TINY), cells), path)
        return _numbers(skbegan.load(path), cells)


TINY_PUBLISHED = PUBLISHED | TINY
# The default before there were canonical targets: image adversary, discriminator and transferred targets in stage 2.
EARLIER: dict[str, Any] = {
    "learning_rate": 2e-4,
    "pretrain_decay": 0.0,
    "head_width": 4,
    "adversarial_weight": 0.1,
    "image_weight": 30.0,
    "batch_image_weight": 4.0,
    "removal": OnlineRemoval(
        learning_rate=5e-4, target_style="transferred", brightfield_style_share=0.4, identity=0.0, descriptors=0.0
    ),
    "profile": ProfileAlignment(floor=0.03, correction=0.3, descriptor_share=0.0),
}

CASES: dict[str, Callable[[], Result]] = {
    "online float32": _fitted(),
    "online float64": _fitted(precision="float64"),
    "online, options": _fitted(
        augment=False, standardize=False, batch_target="uniform", validation_fraction=0.0, inference="minibatch"
    ),
    "online, two channels": _two_channels,
    "online, earlier default": _fitted(**EARLIER),
    "online, group normalisation": _fitted(norm="group", standardize="image"),
    "pretraining": _fitted(removal_epochs=0),
    "published float32": _fitted(**TINY_PUBLISHED),
    "published float64": _fitted(**(TINY_PUBLISHED | {"precision": "float64"})),
    "resumed in pretraining": _resumed("pretraining", 1),
    "resumed in batch removal": _resumed("batch_removal", 2),
    "resumed in batch removal, published": _resumed("batch_removal", 2, **TINY_PUBLISHED),
    "warm start": _warm(),
    "warm start of pretraining": _warm(removal_epochs=0),
    "warm start, published": _warm(**TINY_PUBLISHED),
    "memory": _from_memory,
    "saved and loaded": _saved_and_loaded,
}


def machine() -> dict[str, Any]:
    """What decides on the last bits: processor, threads, torch."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.exists())
        else [platform.processor()]
    )
    return {
        "processor": names[0] if names else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def read() -> tuple[dict[str, Any], dict[str, Result]]:
    """Return the machine that froze the numbers, and the numbers of each case."""
    cases: dict[str, Result] = {}
    with np.load(FILE, allow_pickle=False) as file:
        where = json.loads(str(file["machine"]))
        for key in file.files:
            if key != "machine":
                case, name = key.split(" / ")
                cases.setdefault(case, {})[name] = file[key]
    return where, cases


def same_bits(a: Result, b: Result) -> bool:
    """Whether two results have the same names, and the same bits under each."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f")
        for name in a
    )


def distance(a: Result, b: Result) -> dict[str, float]:
    """Largest difference of what both results hold, in units of the largest frozen number of that name."""
    found = {}
    for name in a.keys() & b.keys() - {"weights"}:
        if a[name].shape != b[name].shape:
            found[name] = np.inf
            continue
        x, y = np.nan_to_num(a[name].astype(np.float64)), np.nan_to_num(b[name].astype(np.float64))
        found[name] = float(np.abs(x - y).max(initial=0.0) / max(np.abs(x).max(initial=0.0), 1e-12))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="freeze the numbers of now")
    parser.add_argument("--only", nargs="*", default=list(CASES), metavar="CASE")
    arguments = parser.parse_args()
    results = {case: CASES[case]() for case in arguments.only}
    if arguments.write:
        content = {f"{case} / {name}": array for case, result in results.items() for name, array in result.items()}
        np.savez_compressed(FILE, machine=json.dumps(machine()), **content)
        print(f"wrote {FILE}")
        return
    where, frozen = read()
    if where != machine():
        print(f"frozen on {where}\nthis is   {machine()}")
    failed = False
    for case, result in results.items():
        equal = same_bits(frozen[case], result)
        failed |= not equal
        gaps = distance(frozen[case], result)
        worst = max(gaps, key=gaps.__getitem__)
        odd = sorted(frozen[case].keys() ^ result.keys())
        print(
            f"{case:40s} {'equal to the bit' if equal else f'differs, most in {worst}: {gaps[worst]:.1e}'} {odd or ''}"
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()

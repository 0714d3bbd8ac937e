"""The rules of the house: who imports whom, what is slow to import, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import skbegan

ROOT = Path(skbegan.__file__).parent
SPEAKS_SKLEARN = {"estimator", "metrics", "validation", "plotting", "persistence", "datasets"}
LEAVES = {"validation", "metrics", "datasets"}
SHARED = {"_foreign", "_hdf5", "_labels"}  # small modules that import nothing of ours, for the leaves and all others


def imports() -> dict[str, set[str]]:
    """Module name (without the package) to the full names of all that it imports, wherever in the file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or "skbegan"
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = names
    return found


def test_the_core_knows_no_scikit_learn_no_estimator_and_no_file_format():
    for name, names in imports().items():
        if name.startswith("core"):
            for imported in names:
                top = imported.split(".")[0]
                assert top not in {"sklearn", "h5py", "mat73", "safetensors", "matplotlib", "scipy", "joblib"}, (
                    name,
                    imported,
                )
                assert top != "skbegan" or imported.startswith("skbegan.core"), (name, imported)


def test_only_a_few_modules_speak_scikit_learn():
    speaking = {
        name.split(".")[0] for name, names in imports().items() if any(n.split(".")[0] == "sklearn" for n in names)
    }
    assert speaking <= SPEAKS_SKLEARN


def test_leaves_import_nothing_of_ours():
    for name, names in imports().items():
        room = name.split(".")[0]
        if room in LEAVES:
            ours = {n.split(".")[1] for n in names if n.startswith("skbegan")}
            assert ours <= {room, *SHARED}, name
        if room in SHARED:
            assert not {n for n in names if n.startswith("skbegan")}, name


def test_within_the_core_imports_run_one_way():
    order = [
        "winograd",
        "device",
        "networks",
        "data",
        "training",
        "inference",
        "alignment",
        "batch_transfer",
        "classifiers",
        "pretraining",
        "batch_removal",
        "published_removal",
        "outputs",
        "recipe",
    ]
    for name, names in imports().items():
        if not name.startswith("core."):
            continue
        rank = order.index(name.removeprefix("core."))
        used = {n.split(".")[2] for n in names if n.startswith("skbegan.core.")}
        assert all(order.index(module) < rank for module in used), (name, used)


def test_importing_the_package_loads_neither_torch_nor_scikit_learn():
    code = "import sys, skbegan; print([m for m in ('torch', 'sklearn', 'matplotlib', 'h5py') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_file_has_two_jobs():
    # A longer file needs a reason; the estimator's is its docstring and parameter list.
    limits = {"estimator": 740}
    for path in ROOT.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= limits.get(path.stem, 620), f"{path.name} has {lines} lines"


def test_every_public_name_answers():
    for name in skbegan.__all__:
        assert getattr(skbegan, name) is not None
    from skbegan import datasets, metrics

    for name in ("make_cell_images", "load_cell_images", "save_predictions", "resize_images"):
        assert callable(getattr(datasets, name))
    for name in ("batch_leakage", "cross_batch_accuracy", "audit"):
        assert callable(getattr(metrics, name))

"""The rules of the house: who imports whom, what is slow to import, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import skbegan

ROOT = Path(skbegan.__file__).parent
SPEAKS_SKLEARN = {
    "estimator",
    "_model_estimator",
    "_shift_estimator",
    "shift",
    "metrics",
    "checks",
    "plotting",
    "io",
    "datasets",
}
LEAVES = {"metrics", "datasets"}  # import nothing of ours
GROUND = {
    "_check_labels",
    "config",
    "design",
    "checks",
    "presets",
    "_rules",
    "_version",
}  # import of ours only one another
# Import nothing of ours; for the leaves and all others.
SHARED = {
    "_foreign",
    "_progress",
    "_turns",
    "labels",
    "stored",
}


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


def of_ours(names: set[str]) -> set[str]:
    """The parts of this package that are imported, without its name."""
    return {name.removeprefix("skbegan.") for name in names if name.startswith("skbegan.")}


def test_the_core_knows_no_scikit_learn_no_estimator_and_no_file_format():
    foreign = {"sklearn", "h5py", "mat73", "safetensors", "matplotlib", "scipy", "joblib"}
    for name, names in imports().items():
        if name.split(".")[0] in ("core", "data"):
            assert not {n.split(".")[0] for n in names} & foreign, name
            rooms = {n.split(".")[0] for n in of_ours(names)}
            below = {"core", "data", "config", "design", "_progress", "labels", "stored"}
            assert rooms <= below, (name, rooms)
            assert name.split(".")[0] == "core" or "core" not in rooms, name


def test_nothing_but_the_face_and_the_files_imports_the_estimator():
    for name, names in imports().items():
        if any(n.split(".")[0] == "estimator" for n in of_ours(names)):
            assert name == "skbegan" or name.startswith("io."), name


def test_only_a_few_modules_speak_scikit_learn():
    speaking = {
        name.split(".")[0] for name, names in imports().items() if any(n.split(".")[0] == "sklearn" for n in names)
    }
    assert speaking <= SPEAKS_SKLEARN


def test_leaves_and_the_ground_floor_import_nothing_from_above():
    for name, names in imports().items():
        room = name.split(".")[0]
        if room in LEAVES:
            # What a table of cells says of its design is said in the words of a fit.
            beside = {"design"} if name == "datasets._table_report" else set()
            assert {n.split(".")[0] for n in of_ours(names)} <= {room, *SHARED, *beside}, name
        if name in GROUND:
            assert {n.split(".")[0] for n in of_ours(names)} <= GROUND | SHARED, name
        if room in SHARED:
            assert {n.split(".")[0] for n in of_ours(names)} <= SHARED, name


def test_within_the_core_imports_run_one_way():
    order = [
        "cpu_kernels",
        "parallel",
        "adam",
        "converted",
        "engine",
        "recent",
        "losses",
        "descriptors",
        "outputs",
        "networks",
        "content",
        "averaging",
        "erasure",
        "checkpoint",
        "inference",
        "standalone",
        "spilled",
        "classifiers",
        "side_by_side",
        "loop",
        "plans.pretraining",
        "plans.views",
        "plans.readers",
        "plans.online",
        "plans.published",
        "plans.profile",
    ]

    def rank(module: str) -> int:
        return next(i for i, known in enumerate(order) if module == known or module.startswith(f"{known}."))

    for name, names in imports().items():
        if not name.startswith("core.") or name == "core.plans":
            continue
        used = {n.removeprefix("core.") for n in of_ours(names) if n.startswith("core.")}
        own = name.removeprefix("core.")
        assert all(rank(module) < rank(own) for module in used), (name, used)
        assert not (own.startswith("plans") and any(module.startswith("loop") for module in used)), name


def test_only_the_engine_steps():
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        # Probes of the metrics are no part of a fit.
        assert path.stem == "engine" or path.parent.name == "metrics" or "backward" not in called, path


def test_a_step_can_be_read_at_a_glance():
    for path in (ROOT / "core" / "plans").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "step":
                assert node.end_lineno - node.lineno < 40, path


def test_parameters_travel_as_attributes_not_as_keys():
    for path in (ROOT / "core").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "settings[" not in text and 'parameters["' not in text, path


def test_importing_the_package_loads_neither_torch_nor_scikit_learn():
    code = "import sys, skbegan; print([m for m in ('torch', 'sklearn', 'matplotlib', 'h5py') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_file_has_two_jobs():
    for path in ROOT.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 500, f"{path.name} has {lines} lines"


def test_dir_shows_the_public_names():
    assert set(dir(skbegan)) == set(skbegan.__all__)


def test_every_public_name_answers():
    for name in skbegan.__all__:
        assert getattr(skbegan, name) is not None
    from skbegan import datasets, metrics

    for name in ("make_cell_images", "load_cell_images", "save_predictions", "resize_images"):
        assert callable(getattr(datasets, name))
    for name in ("batch_leakage", "cross_batch_accuracy", "audit"):
        assert callable(getattr(metrics, name))

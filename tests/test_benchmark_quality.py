"""benchmarks/quality: the rivals keep their promises and know no test type; the command runs to its end."""

from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import BENCHMARKS, benchmark_modules, needs

import skbegan
from skbegan.datasets import make_cell_images, save_predictions
from skbegan.metrics import batch_leakage, cell_type_accuracy, cross_batch_accuracy

LIBRARIES = {"combat": "combatlearn", "combat-types": "combatlearn", "harmony": "harmonypy"}
LIBRARIES |= {"leace": "concept_erasure", "leace-types": "concept_erasure", "sphering": "numpy"}
FULL, INCOMPLETE = np.ones((3, 3), dtype=bool), ~np.eye(3, dtype=bool)

pytestmark = needs(BENCHMARKS)


@pytest.fixture(scope="module")
def bench() -> Any:
    """The modules of the benchmark, imported as the command imports them."""
    names = ("rivals", "data_sets", "figures", "methods", "report", "batch_removal")
    with benchmark_modules(*(f"quality.{name}" for name in names)) as modules:
        yield dict(zip(names, modules, strict=True))


# Rivals on features whose truth is known ----------------------------------------------------------------------------


def shifted_cells(design: np.ndarray, size: float = 3.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Features in which a batch is a shift and nothing else: 20 training and 20 new cells per batch of a type."""
    rng = np.random.default_rng(seed)
    types, batches = np.argwhere(design).repeat(40, axis=0).T
    of_type, of_batch = rng.normal(0, 1.5, (3, 20)), rng.normal(0, size, (3, 20))
    features = of_type[types] + of_batch[batches] + rng.normal(size=(len(types), 20))
    new = np.arange(len(types)) % 40 >= 20
    names = {"batch": np.array(["a", "b", "c"])[batches], "cell_type": np.array(["x", "y", "z"])[types]}
    found = {"train": features[~new], "new": features[new]}
    return found | {f"{part}_{k}": v[m] for part, m in (("train", ~new), ("new", new)) for k, v in names.items()}


def correct(bench: Any, name: str, cells: dict[str, np.ndarray]) -> dict[str, float]:
    """Return what probes that learn from corrected training cells read from corrected new cells."""
    pytest.importorskip(LIBRARIES[name])
    before = {key: value.copy() for key, value in cells.items()}
    given = [cells[key] for key in ("train", "train_batch", "train_cell_type", "new", "new_batch")]
    corrected = bench["rivals"].RIVALS[name].function(*given, 0)
    for key, value in before.items():
        np.testing.assert_array_equal(cells[key], value)
    return read(corrected, cells)


def read(features: Any, cells: dict[str, np.ndarray]) -> dict[str, float]:
    joined = np.concatenate(features)
    assert np.isfinite(joined).all() and len(features[1]) == len(cells["new"])
    batch, kind = (np.concatenate([cells[f"train_{k}"], cells[f"new_{k}"]]) for k in ("batch", "cell_type"))
    learns = {"probe_train": np.arange(len(joined)) < len(features[0])}
    return {
        "linear": batch_leakage(joined, batch, kind, **learns),
        "knn": batch_leakage(joined, batch, kind, probe="knn", **learns),
        "type": cell_type_accuracy(joined, kind, **learns),
        "cross": cross_batch_accuracy(joined, batch, kind, **learns),
    }


@pytest.mark.parametrize("design", [FULL, INCOMPLETE], ids=["full", "incomplete"])
def test_the_shift_is_there_before(design: np.ndarray) -> None:
    cells = shifted_cells(design)
    before = read((cells["train"], cells["new"]), cells)
    assert before["linear"] > 0.98 and before["knn"] > 0.98


@pytest.mark.parametrize("name", ["combat", "combat-types", "leace", "leace-types"])
def test_a_shift_is_removed_from_new_cells_and_the_types_stay(bench: Any, name: str) -> None:
    after = correct(bench, name, shifted_cells(FULL))
    assert abs(after["linear"]) < 0.2 and abs(after["knn"]) < 0.2
    assert after["type"] > 0.95 and after["cross"] > 0.95


@pytest.mark.parametrize("name", ["combat-types", "leace-types"])
def test_what_knows_the_training_types_holds_where_types_lack_batches(bench: Any, name: str) -> None:
    after = correct(bench, name, shifted_cells(INCOMPLETE))
    assert abs(after["linear"]) < 0.2
    assert after["type"] > 0.95 and after["cross"] > 0.9


def test_harmony_mixes_neighbours(bench: Any) -> None:
    cells = shifted_cells(FULL, size=0.8)  # batches that lie further apart than types do stay apart
    before, after = read((cells["train"], cells["new"]), cells), correct(bench, "harmony", cells)
    assert before["knn"] > 0.9 and abs(after["knn"]) < 0.2 and abs(after["linear"]) < 0.2
    assert after["type"] > 0.95 and after["cross"] > 0.95


def test_sphering_shrinks_what_varies_within_a_type(bench: Any) -> None:
    cells = shifted_cells(FULL)
    assert correct(bench, "sphering", cells)["type"] > 0.95
    given = [cells[key] for key in ("train", "train_batch", "train_cell_type", "new", "new_batch")]
    sphered, _ = bench["rivals"].sphering(*given, 0)

    def share(features: np.ndarray) -> float:
        """Largest part of the variance within a type that lies in one direction; the batch's shift, before."""
        residual = features.copy()
        for kind in np.unique(cells["train_cell_type"]):
            rows = cells["train_cell_type"] == kind
            residual[rows] -= residual[rows].mean(axis=0)
        variance = np.linalg.eigvalsh(residual.T @ residual)
        return float(variance[-1] / variance.sum())

    assert share(cells["train"]) > 0.5 > 3 * share(sphered)


def test_no_rival_is_given_the_types_of_new_cells(bench: Any) -> None:
    methods, rivals, data_sets = bench["methods"], bench["rivals"], bench["data_sets"]
    given = ["train", "train_batch", "train_type", "new", "new_batch", "seed"]
    assert all(list(inspect.signature(rival.function).parameters) == given for rival in rivals.RIVALS.values())

    class Secret(data_sets.Cells):
        def __getattribute__(self, name: str) -> Any:
            assert name != "cell_type", "the types of the audit cells were read"
            return super().__getattribute__(name)

    cells = make_cell_images(120, 2, 2, 16, random_state=0)
    arrays = (cells.bf, cells.qpi, cells.clean_qpi, cells.batch, cells.cell_type)
    train = data_sets.Cells(*(array[:80] for array in arrays))
    audit = Secret(*(array[80:] for array in arrays))
    installed = [name for name, rival in rivals.RIVALS.items() if rivals.is_installed(rival.package)]
    found = methods.pixel_methods(["pixels", "background", "contrast", "ceiling"], train, audit, 0)
    found |= methods.rival_methods(installed, found["pixels"], train, audit, 0)
    assert {"pixels", "background", "contrast", "ceiling", "sphering"} <= set(found)
    assert all(len(pair[0]) == 80 and len(pair[1]) == 40 for pair in found.values())


# Classical normalisation ---------------------------------------------------------------------------------------------


def discs(n: int, side: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of unequal radius, without background, and the coordinates."""
    y, x = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    radii = np.linspace(0.3, 0.6, n)[:, None, None]
    return np.where(x**2 + y**2 < radii**2, 0.5, 0.0), x, y


def test_background_is_found_around_the_cell(bench: Any) -> None:
    cells, x, y = discs(5)
    noise = np.random.default_rng(0).normal(0, 0.01, cells.shape)
    for order, under in ((1, 2 + 0.3 * x - 0.2 * y), (2, 2 + 0.3 * x - 0.2 * y - 0.4 * (x**2 + y**2))):
        found = bench["rivals"].background(cells + under + noise, order)
        np.testing.assert_allclose(found, np.broadcast_to(under, cells.shape), atol=0.03)


def test_equal_cells_in_unequal_light_become_equal(bench: Any) -> None:
    cells, x, y = discs(6)
    light = (1.0 + 0.2 * x) * (1 + cells), (1.6 - 0.3 * y - 0.2 * x**2) * (1 + cells)
    for contrast in (False, True):
        train, new = bench["rivals"].normalise_brightfield(*light, contrast=contrast)
        assert np.abs(train - new).max() < 0.05 < 0.3 < np.ptp(new)
    # Brightfields that were centred before have no light to divide by.
    train, new = bench["rivals"].normalise_brightfield(cells + 0.2 * x, cells - 0.3 * y, contrast=False)
    assert np.abs(train - new).max() < 0.05


def test_predicted_images_keep_their_units(bench: Any) -> None:
    cells, x, _ = discs(6)
    train, new = bench["rivals"].normalise_prediction(cells + 0.3, 1.5 * cells + 0.4 * x, contrast=True)
    assert np.abs(train - new).max() < 0.1
    assert 0.4 < np.median(train.max(axis=(1, 2))) < 0.6


# The command ---------------------------------------------------------------------------------------------------------


def test_missing_library_is_skipped_unless_asked_for(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rivals, command = bench["rivals"], bench["batch_removal"]
    found = importlib.util.find_spec

    def without_harmony(name: str, *rest: Any) -> Any:
        return None if name == "harmonypy" else found(name, *rest)

    def cannot_import(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(rivals.importlib.util, "find_spec", without_harmony)
    methods, skipped = command.choose_methods(None)
    assert "harmony" not in methods and "skbegan[benchmarks]" in skipped["harmony"]
    assert "sphering" in methods and "default" in methods
    assert command.choose_methods(["pixels"]) == (["pixels"], {})
    monkeypatch.setattr(rivals.importlib, "import_module", cannot_import)
    with pytest.raises(ImportError, match=r"skbegan\[benchmarks\]"):
        command.choose_methods(["pixels", "harmony"])


def test_refuses_before_any_job(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = bench["batch_removal"]
    monkeypatch.setattr(command, "run_job", lambda *_: pytest.fail("a job was run"))
    for arguments, message in (
        (["--no-simulated"], "leaves no cells"),
        (["--wbc", str(tmp_path / "none.npz")], "none.npz"),
        (["--jurkat", str(tmp_path)], "batch_free_target.npz"),
        (["--set", "learning_rate"], "NAME=VALUE"),
        (["--jobs", "0"], "at least 1"),
        (["--curve", "1", "0"], "multiples of the epochs"),
    ):
        with pytest.raises(SystemExit, match=message):
            command.main([*arguments, "--out", str(tmp_path / "out")])


def figures_of(**changed: float) -> dict[str, float]:
    found = {"cell_type": 0.8, "cell_type_mlp": 0.8, "cross_batch": 0.78, "gap": 0.02, "precision": 0.5, "rank": 5.0}
    found |= {f"leakage_{probe}": 0.1 for probe in ("linear", "mlp", "15nn")}
    for probe in ("linear", "mlp", "15nn", "trees"):
        found |= {f"excess_{probe}": 0.05, f"bound_{probe}": 0.08}
    for name in ("total_phase", "area", "texture", "elongation"):
        found |= {f"seen_{name}": 0.5, f"left_out_{name}": 0.6}
    return found | {"directions": 20.0, "per_cell": 54.0} | changed


def lines(bench: Any, runs: list[dict[str, Any]], data: str) -> dict[str, Any]:
    return {line.what: line for line in bench["report"].goals(runs, data)}


def test_goals_say_what_is_missed_and_by_how_much(bench: Any) -> None:
    def run(seed: int, bound: float) -> dict[str, Any]:
        ours = figures_of(bound_linear=bound, cell_type=0.77, left_out_area=0.5)
        features = {"default": ours, "stage1": figures_of(cell_type=0.7), "ceiling": figures_of()}
        image = {"mae": 0.1, "within": 0.93, "texture": 0.7, "leakage_mlp": 0.3, "excess_cnn": 0.2, "bound_cnn": 0.3}
        return {"data": "simulated", "seed": seed, "features": features, "images": {"default": image}}

    found = lines(bench, [run(0, 0.08), run(1, 0.18)], "simulated")
    missed = {what: line.missed for what, line in found.items() if line.missed > 1e-9}
    assert missed == pytest.approx(
        {
            "cell type, linear": 0.01,  # below the truth's 0.8 - 0.02
            "leakage beyond chance, linear": 0.03,  # the mean of the bounds, not of the figures
            "leakage beyond chance, CNN, of images": 0.2,
            "area, R2 within type, unseen batch": 0.04,  # below 0.9 of the truth's 0.6
            "effective rank": 1.0,
            "images, correlation of texture within type": 0.05,
        }
    )
    linear = found["leakage beyond chance, linear"]
    cells = ["95 % bound <= 0.1", "0.05±0.00 (bound 0.08)", "0.05±0.00 (bound 0.13)", "0.05±0.00 (bound 0.08)"]
    assert linear.row() == [linear.what, *cells, "**missed by 0.03**"]
    assert found["cell type, MLP"].row()[-1] == "met"
    assert found["type in other batches, mean average precision"].row()[-1] == "-"  # no goal
    assert found["type, batch that neither saw"].row()[-1] == "not measured"
    table = bench["report"].goals_table(list(found.values()), "simulated")
    wanted = [line for line in found.values() if line.wanted]
    assert f": {len(wanted) - 7} of {len(wanted)} met, 1 not measured." in table
    assert json.loads(json.dumps(linear.record()))["bound"]["default"] == [0.08, 0.18]


def test_without_a_truth_the_measured_images_are_the_reference_and_the_worst_site_comes_first(bench: Any) -> None:
    image = {"within": 0.86, "texture": 0.5, "leakage_mlp": 0.9, "excess_cnn": 0.0, "bound_cnn": 0.1}
    features = {"default": figures_of(), "stage1": figures_of(cell_type=0.9), "measured": figures_of(seen_area=0.7)}
    images = {"default": image, "stage1": image | {"within": 0.9}}
    runs: list[dict[str, Any]] = [{"data": "wbc", "seed": 0, "features": features, "images": images}]
    for site, accuracy in (("A", 0.9), ("B", 0.6), ("C", 0.65)):
        runs.append({"data": "wbc", "seed": 0, "left_out": site, "unseen": {"default": {"cell_type": accuracy}}})
    runs.append({"data": "jurkat", "seed": 0, "left_out": "D", "unseen": {"default": {"cell_type": 0.1}}})
    found = lines(bench, runs, "wbc")
    missed = {what: line.missed for what, line in found.items() if line.missed > 1e-9}
    assert missed == pytest.approx(
        {
            "cell type, linear": 0.1,  # against stage 1
            "area, R2 within type, unseen batch": 0.03,  # 0.9 of what measured images hold on sites seen
            "effective rank": 1.0,
            "images, correlation within batch and type": 0.04,
            "type, site that neither saw: B": 0.08,  # 0.85 of 0.8
            "type, site that neither saw: C": 0.03,
        }
    )
    assert [what[-1] for what in found if "neither saw" in what] == ["B", "C", "A"]


def test_batches_left_out_in_turn_count_as_one_figure_of_their_seed(bench: Any) -> None:
    runs = [
        {"data": "wbc", "seed": seed, "left_out": site, "unseen": {"stage1": {"cell_type": value}}}
        for seed, site, value in ((1, "A", 0.2), (1, "B", 0.4), (0, "A", 0.6), (0, "B", 1.0))
    ]
    collect = bench["report"].collect
    np.testing.assert_allclose(collect(runs, "wbc", "unseen")["stage1"]["cell_type"], [0.8, 0.3])
    np.testing.assert_allclose(collect(runs, "wbc", "unseen", left_out="B")["stage1"]["cell_type"], [1.0, 0.4])


# Data sets -----------------------------------------------------------------------------------------------------------


def write_tree(root: Path) -> None:
    """Write a tree of real cells, as far as the benchmark can tell, with its batch-free truth."""
    truth = {}
    for split, n_cells in (("Train", 60), ("Valid", 24), ("Test", 48)):
        cells = make_cell_images(n_cells, 2, 3, 16, batches_per_type=2, random_state=0, cells_random_state=n_cells)
        images = {"images": cells.qpi, "features": np.zeros((n_cells, 1)), "bf": cells.bf, "qpi": cells.qpi}
        save_predictions(root, **images, batch=cells.batch, cell_type=cells.cell_type, split=split)
        for batch, kind in {*zip(cells.batch.tolist(), cells.cell_type.tolist(), strict=True)}:
            rows = (cells.batch == batch) & (cells.cell_type == kind)
            truth[f"{batch}/{kind}/{split}"] = cells.clean_qpi[rows].astype(np.float16)
    np.savez(root / "batch_free_target.npz", **truth)


def test_truth_of_a_tree_is_matched_by_group(bench: Any, tmp_path: Path) -> None:
    write_tree(tmp_path)
    data = bench["data_sets"].Jurkat(16, str(tmp_path))
    data.check()
    train, audit = data.cells(0)
    assert (len(train), len(audit)) == (84, 48)
    for cells in (train, audit):  # each truth resembles its own measured image more than any other
        likeness = np.corrcoef(*(images.reshape(len(cells), -1) for images in (cells.qpi, cells.truth)))
        own = likeness[: len(cells), len(cells) :]
        assert np.mean(np.argmax(own, axis=1) == np.arange(len(cells))) > 0.6
    np.savez(tmp_path / "batch_free_target.npz", other=np.zeros((3, 16, 16)))
    with pytest.raises(ValueError, match="must hold the"):
        data.cells(0)


def write_sites(path: Path, n_per_group: int = 30, side: int = 32) -> None:
    """Write a file of cells from two sites: bright discs, whose colour channels have different gains by site."""
    rng = np.random.default_rng(0)
    site = np.repeat(["A", "B"], 2 * n_per_group)
    cell_type = np.tile(np.repeat(["round", "small"], n_per_group), 2)
    y, x = np.meshgrid(*[np.linspace(-1, 1, side)] * 2)
    radius = np.where(cell_type == "round", 0.7, 0.4) + rng.normal(0, 0.05, len(site))
    disc = (np.hypot(x, y) < radius[:, None, None])[..., None] * np.array([0.2, 0.5, 0.8])
    gain = np.where(site == "A", 200, 120)[:, None, None, None]
    images = (gain * disc + rng.normal(20, 2, disc.shape)).clip(0, 255).astype(np.uint8)
    split = np.where(np.arange(len(site)) % 3 == 0, "test", "train")
    np.savez(path, images=images, site=site, cell_type=cell_type, split=split)


def test_real_sites_are_read_as_blue_in_and_green_out(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "sites.npz"
    write_sites(file)
    data = bench["data_sets"].WhiteBloodCells(16, str(file))
    data.check()
    train, audit = data.cells(0)
    assert (len(train), len(audit)) == (56, 24) and train.truth is None and audit.reference is audit.qpi
    with np.load(file) as stored:
        small = stored["images"].reshape(120, 16, 2, 16, 2, 3).mean((2, 4)) / 255
        of_file = small[stored["split"] == "train"]  # none of the part "test"
    drawn = np.concatenate([np.stack([cells.qpi, cells.bf], axis=-1) for cells in (train, audit)])
    order = [np.argsort(images[..., 1].std((1, 2))) for images in (drawn, of_file[..., 1:])]
    np.testing.assert_allclose(drawn[order[0]], of_file[order[1], ..., 1:], rtol=1e-6)  # each once: green, blue
    for cells, count in ((train, 14), (audit, 6)):
        groups = np.char.add(cells.batch, cells.cell_type)
        assert np.unique(groups, return_counts=True)[1].tolist() == [count] * 4
    again, other = data.cells(0)[1], data.cells(1)[1]
    np.testing.assert_array_equal(audit.bf, again.bf)
    assert not np.array_equal(audit.bf, other.bf)
    assert list(data.turns(7)) == [0, 1]  # every site, whatever the seed
    few = bench["data_sets"].WhiteBloodCells(16, str(file), per_group=3)
    assert [len(cells) for cells in few.cells(0)] == [12, 12]
    with pytest.raises(ValueError, match="must divide"):
        bench["data_sets"].WhiteBloodCells(24, str(file)).check()


def test_correlation_within_a_group_ignores_what_all_its_cells_have(bench: Any) -> None:
    rng = np.random.default_rng(0)
    batch, cell_type = np.arange(60) % 2, np.arange(60) % 3
    of_group = rng.normal(0, 10, (2, 3, 8, 8))[batch, cell_type]
    own = rng.normal(size=(60, 8, 8))
    correlation = bench["figures"].within_groups
    groups = 10 * batch + cell_type
    assert correlation(of_group, of_group + own, groups) == pytest.approx(0.0, abs=1e-9)
    assert correlation(3 * own + 5, of_group + own, groups) == pytest.approx(1.0)
    assert abs(correlation(rng.normal(size=own.shape), of_group + own, groups)) < 0.1


def test_a_cell_that_is_not_found_in_a_prediction_counts_as_a_miss(bench: Any) -> None:
    rng, groups = np.random.default_rng(0), np.arange(400) % 4
    truth = rng.normal(size=400) + groups
    correlation = bench["figures"].within_groups
    lost, unknown = truth.copy(), truth.copy()
    lost[rng.permutation(400)[:200]] = np.nan
    unknown[:200] = np.nan
    assert 0.6 < correlation(lost, truth, groups) < 0.8  # the root of the half that is right
    assert correlation(truth, unknown, groups) == pytest.approx(1.0)
    assert correlation(np.full(400, np.nan), truth, groups) == 0.0


@pytest.mark.slow
def test_figures_of_the_truth_are_those_of_cells_without_batch(bench: Any) -> None:
    data = bench["data_sets"].Simulated(16, n_train=300, n_audit=200, n_cell_types=2, n_batches=2, batches_per_type=2)
    train, audit = data.cells(3)
    judge = bench["figures"].Audit(train, audit, 0, n_permutations=10)
    pair = bench["rivals"].principal_components
    truth, pixels = (judge.goals(pair(*images, 0, 15)) for images in ((train.truth, audit.truth), (train.bf, audit.bf)))
    for probe in ("linear", "mlp", "15nn", "trees"):
        assert truth[f"excess_{probe}"] < 0.25 < 0.5 < pixels[f"excess_{probe}"] < pixels[f"bound_{probe}"]
    assert truth["left_out_total_phase"] > 0.8 > truth["left_out_total_phase"] - 0.3 > pixels["left_out_total_phase"]
    assert truth["gap"] < 0.1 < pixels["gap"]
    assert 1 < truth["rank"] <= truth["directions"] == 15
    same = judge.fidelity(audit.truth)
    assert same == pytest.approx({"mae": 0.0, "within": 1.0, "texture": 1.0})
    assert judge.fidelity(audit.qpi)["within"] < 0.9


# The command, whole --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_to_its_end(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, out = bench["batch_removal"], tmp_path / "out"
    write_tree(tmp_path / "tree")
    write_sites(tmp_path / "sites.npz")
    arguments = ["--quick", "--jurkat", str(tmp_path / "tree"), "--wbc", str(tmp_path / "sites.npz")]
    arguments += ["--seeds", "3", "4", "--device", "cpu", "--out", str(out)]
    command.main([*arguments, "--jobs", "2", "--unseen"])
    printed = capsys.readouterr().out
    assert "missed by" in printed and "Goals of the default" in printed
    assert (out / "batch_removal.png").stat().st_size > 20_000
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    data_sets = bench["data_sets"].DATA_SETS
    assert set(results["goals"]) == set(data_sets)
    assert len(results["runs"]) == 6 + 2 + 2 + 4  # whole; unseen: one per seed, and both sites of real ones
    expected = {name for name in bench["methods"].METHODS if name not in results["skipped"]}
    for run in results["runs"]:
        if "unseen" in run:
            assert set(run["unseen"]) == {"stage1", "default"} and run["left_out"]
            continue
        has_truth = data_sets[run["data"]].has_truth
        assert set(run["features"]) == expected - {"measured" if has_truth else "ceiling"}
        for figures in run["features"].values():  # of few cells some measurements cannot be predicted at all
            kept = [value for name, value in figures.items() if not name.startswith(("seen_", "left_out_"))]
            assert len(kept) >= 5 and np.isfinite(kept).all()
        assert run["images"]["ceiling" if has_truth else "measured"]["mae"] == 0.0
        seen = {name: training["images_seen"] for name, training in run["training"].items()}
        assert seen["published"] == seen["default"] == seen["stage1-longer"] == 2 * seen["stage1"]
    table = (out / "table.md").read_text(encoding="utf-8")
    assert all(label in table for label in bench["methods"].METHODS.values())
    assert (
        "site that neither saw: A" in table
        and "site that neither saw: B" in table
        and "not measured" not in table.partition("## Real cells")[0]
    )

    # What is there is taken: nothing is fitted again, and the same table is made from it.
    monkeypatch.setattr(skbegan.BeGANTransformer, "fit", lambda *_, **__: pytest.fail("a model was fitted"))

    def tables() -> str:
        return (out / "table.md").read_text(encoding="utf-8").partition("Made with")[0]

    command.main([*arguments, "--resume", "--unseen"])
    assert tables() == table.partition("Made with")[0]
    command.main(["--redraw", "--out", str(out)])
    assert tables() == table.partition("Made with")[0]
    monkeypatch.undo()
    capsys.readouterr()
    only_tree = ["--resume", "--methods", "pixels", "--no-simulated"]  # other methods: done again
    command.main([*(part for part in arguments if "sites" not in part and part != "--wbc"), *only_tree])
    assert "2 of 2 jobs to do" in capsys.readouterr().out

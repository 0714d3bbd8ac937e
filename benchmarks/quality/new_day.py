"""What is expected of batches that were left out of training, what is found, and what adapting to them does.

    python benchmarks/quality/new_day.py                          # simulated instruments and sites, 20 left out of each
    python benchmarks/quality/new_day.py --wbc FILE               # and every real site in turn
    python benchmarks/quality/new_day.py --quick                  # does it run? The figures mean nothing

One model is fitted on seven batches, with every cell type in each: where types are in some only, the batch helps
to name the type, and accuracy in known batches says too much of new ones. It is fitted with brightfields shown through
drawn instruments (--instrument-share 0: without; --per-image: each brightfield is standardised by itself).

Of each batch left out 50 cells are given to `check_batch` and `adapt`; what is found is counted on its other cells, or
on all where fewer than 100 are left. `adapt` is given controls, cells of the commonest type; or the proportions of the
types among the 50 cells; or has to estimate these. Broken batches are made from the same cells in other ways than the
calibration makes them. Every job leaves its results in OUT/runs and is not run again; --models keeps fitted models.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from quality.data_sets import Cells, WhiteBloodCells
from quality.rivals import is_installed, load_library, one_hot, standardise

from skbegan import BeGANTransformer, OnlineRemoval
from skbegan.datasets import make_cell_images

Array = NDArray[Any]

SIZES = {"base_width": 8, "n_features": 64, "pretrain_epochs": 20, "removal_epochs": 40}
QUICK = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1}
N_TYPES, N_KNOWN, N_LEFT_OUT, N_NEW, SIDE = 7, 7, 20, 50, 32
SIZES_NEW = (20, 50, 200)  # numbers of cells that are adapted to
PER_GROUP, PER_GROUP_NEW = 22, 40  # cells of each type in each batch: for training, and to be counted on
ACCURATE, LOST, REFUSED, ALARMS, OF_SEEN, OF_SEEN_SITE = 0.05, 0.01, 0.95, 0.05, 0.95, 0.9


def main() -> None:
    parser = common.parser(__doc__, "new_day")
    parser.add_argument(
        "--wbc", type=Path, metavar="FILE", help="white blood cells of real sites, see batch_removal.py"
    )
    parser.add_argument("--kinds", nargs="*", default=["instrument", "site"], help="of simulated batches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[51, 52, 53])
    parser.add_argument("--instrument-share", type=float, default=0.5, help="of OnlineRemoval, in the fits")
    parser.add_argument("--per-image", action="store_true", help='fits with standardize="image"')
    parser.add_argument("--models", type=Path, metavar="DIR", help="where fitted models are kept and looked for")
    args = parser.parse_args()
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    results = []
    for name, cells in jobs(args):
        path = args.out / "runs" / f"{name}.json"
        if not path.is_file():
            common.write_json(path, run(name, *cells(), args))
            print(f"{name}: done", flush=True)
        results.append(common.read_json(path))
    common.write(args.out, table(results), {"runs": results, "machine": common.machine()})


Data = tuple[Cells, Cells, list[Cells]]  # to train on, new ones of the same batches, and those of batches left out


def jobs(args: Any) -> Iterator[tuple[str, Callable[[], Data]]]:
    for seed in args.seeds:
        for kind in args.kinds:
            yield f"{kind}-{seed}", lambda kind=kind, seed=seed: simulated(kind, seed, args.quick)
        if args.wbc:
            data = WhiteBloodCells(SIDE, str(args.wbc))
            data.check()
            for turn in data.turns(seed):
                yield f"wbc-{seed}-{turn}", lambda data=data, seed=seed, turn=turn: real(data, seed, turn)


def simulated(kind: str, seed: int, quick: bool) -> Data:
    n_out = 3 if quick else N_LEFT_OUT
    design = np.zeros((N_TYPES, N_KNOWN + n_out), dtype=bool)
    design[:, :N_KNOWN] = True
    design[0, N_KNOWN:] = True  # every batch must hold a cell
    options: dict[str, Any] = {"batch_kinds": kind, "random_state": seed}
    shape = (N_TYPES, N_KNOWN + n_out, SIDE)
    found = make_cell_images(
        PER_GROUP * int(design.sum()), *shape, design=design, cells_random_state=1000 + seed, **options
    )
    other = make_cell_images(PER_GROUP_NEW * design.size, *shape, cells_random_state=2000 + seed, **options)
    train, new = (Cells(x.bf, x.qpi, x.clean_qpi, x.batch, x.cell_type) for x in (found, other))
    names = np.unique(new.batch)
    known = [np.flatnonzero(np.isin(cells.batch, names[:N_KNOWN])) for cells in (train, new)]
    left_out = [new.take(np.flatnonzero(new.batch == name)) for name in names[N_KNOWN:]]
    return train.take(known[0]), new.take(known[1]), left_out


def real(data: WhiteBloodCells, seed: int, turn: int) -> Data:
    train, audit = data.cells(seed)
    name = np.unique(train.batch)[turn]
    out = [cells.take(np.flatnonzero(cells.batch == name)) for cells in (train, audit)]
    both = Cells(
        *(np.concatenate([getattr(c, f) for c in out]) for f in ("bf", "qpi")),
        None,
        *(np.concatenate([getattr(c, f) for c in out]) for f in ("batch", "cell_type")),
    )
    return train.take(np.flatnonzero(train.batch != name)), audit.take(np.flatnonzero(audit.batch != name)), [both]


# One job --------------------------------------------------------------------------------------------------------------


def run(name: str, train: Cells, audit: Cells, left_out: list[Cells], args: Any) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    model = fitted(name, train, args)
    classifier = new_classifier().fit(model.transform(train.bf), train.cell_type)
    rng = np.random.default_rng(0)
    seen = classifier.score(model.transform(audit.bf), audit.cell_type)
    result: dict[str, Any] = {"job": name, "seen": seen, "seen_image": image_error(model, audit)}
    result["left_out"] = [batch(model, classifier, train, new, rng) for new in left_out]
    result["known"] = []
    for label in np.unique(audit.batch):
        cells = audit.take(np.flatnonzero(audit.batch == label))
        if len(cells) >= 20:
            some = cells.take(rng.permutation(len(cells))[:N_NEW])
            report = model.check_batch(some.bf)
            accuracy = classifier.score(model.transform(cells.bf), cells.cell_type)
            known = {"refused": report.refused, "expected": report.expected_accuracy, "found": accuracy}
            result["known"].append(known | {"broken": broken(model, some)})
    return result


def fitted(name: str, train: Cells, args: Any) -> BeGANTransformer:
    path = args.models and args.models / f"{name}.joblib"
    data = train.bf, train.qpi, train.batch, train.cell_type
    if path and path.is_file():
        model: BeGANTransformer = joblib.load(path)
        return model.calibrate_batches(*data)
    sizes = QUICK if args.quick else SIZES
    options: dict[str, Any] = {
        "removal": OnlineRemoval(instrument_share=args.instrument_share),
        "random_state": int(name.split("-")[1]),
    }
    if args.per_image:
        options["standardize"] = "image"
    model = BeGANTransformer(**sizes, **options, calibrate=True).fit(*data)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        joblib.dump(model, path)
    return model


def new_classifier() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def image_error(model: BeGANTransformer, cells: Cells) -> float:
    return float(np.abs(model.predict_image(cells.bf) - cells.reference).mean())


def batch(model: BeGANTransformer, classifier: Any, train: Cells, new: Cells, rng: Any) -> dict[str, Any]:
    order = rng.permutation(len(new))
    given, rest = new.take(order[:N_NEW]), new.take(order[N_NEW:])
    counted = rest if len(rest) >= 100 else new
    report = model.check_batch(given.bf)

    def right(other: BeGANTransformer) -> float:
        return float(classifier.score(other.transform(counted.bf), counted.cell_type))

    # recalibrate replaces the fitted model, which a copy shares until then
    restated = copy.copy(model).recalibrate(given.bf)
    found = {"none": right(model), "statistics": right(restated)}
    adapted = model
    for n in SIZES_NEW:
        some = new.take(order[:n])
        left = new.take(order[n:]) if len(new) - n >= 100 else counted
        if len(some) < n:
            continue
        for way, options in ways(some, new.take(order)).items():
            other = model.adapt(some.bf, **options)
            if n == N_NEW and way == "proportions":
                adapted = other
            gained = classifier.score(other.transform(left.bf), left.cell_type)
            gained -= classifier.score(model.transform(left.bf), left.cell_type)
            found[f"{way}, {n} cells"] = found["none"] + float(gained)
    profiles = model.transform(train.bf), model.transform(counted.bf)
    found["sphering"] = sphered(profiles, train.cell_type, counted.cell_type)
    if is_installed("harmonypy"):
        found["harmony"] = harmonised(profiles, train, counted)
    every = float(classifier.score(model.transform(new.bf), new.cell_type))
    return {
        "batch": str(new.batch[0]),
        "n": len(counted),
        "refused": report.refused,
        "reasons": list(report.reasons),
        "expected": report.expected_accuracy,
        "interval": report.expected_accuracy_interval,
        "every": every,
        "image_expected": report.expected_image_error / report.seen_image_error,
        "image": image_error(model, new),
        "image_adapted": image_error(adapted, new),
        "adapted": adapted is not model and adapted.adaptation_.adapted,
        "found": found,
        "broken": broken(model, given),
    }


def ways(some: Cells, every: Cells) -> dict[str, dict[str, Any]]:
    """Return options of `adapt` by name: what is known of the types of some cells, or of other cells of their batch."""
    names, counts = np.unique(some.cell_type, return_counts=True)
    found: dict[str, dict[str, Any]] = {
        "estimated": {"proportions": "estimated"},
        "proportions": {"proportions": dict(zip(names.tolist(), counts.tolist(), strict=True))},
    }
    common_type = names[counts.argmax()]
    rows = np.flatnonzero(every.cell_type == common_type)[: len(some)]
    if len(rows) >= 20:
        found["controls"] = {"controls": every.bf[rows], "cell_type": common_type}
    return found


def sphered(profiles: tuple[Array, Array], types: Array, new_types: Array) -> float:
    """Sphering within types, refitted on each side: the new batch gets mean and spread of its own."""
    train, new = standardise(*profiles)
    member = one_hot(types)
    inner = train - member @ (member.T @ train / member.sum(0)[:, None])
    variance, axes = np.linalg.eigh(inner.T @ inner / len(inner))
    matrix = axes / np.sqrt(variance.clip(0) + 0.1 * variance.mean())
    train, new = train @ matrix, new @ matrix
    new = (new - new.mean(0)) / new.std(0) * train.std(0) + train.mean(0)
    return float(new_classifier().fit(train, types).score(new, new_types))


def harmonised(profiles: tuple[Array, Array], train: Cells, new: Cells) -> float:
    """Harmony of the profiles of the known batches and all new cells, at once."""
    harmonypy, pandas = load_library("harmonypy"), load_library("pandas")
    cells = np.concatenate(standardise(*profiles))
    batches = pandas.DataFrame({"batch": np.concatenate([train.batch, new.batch])})
    mixed = np.asarray(harmonypy.run_harmony(cells, batches, "batch", verbose=False, random_state=0, ncores=1).Z_corr)
    mixed = mixed if len(mixed) == len(cells) else mixed.T
    classifier = new_classifier().fit(mixed[: len(train)], train.cell_type)
    return float(classifier.score(mixed[len(train) :], new.cell_type))


def broken(model: BeGANTransformer, cells: Cells) -> dict[str, bool]:
    """Tell which of the batches that are made broken from these cells are refused."""
    bf, middle = cells.bf.astype(np.float64), float(np.median(cells.bf))
    side, fine = bf.shape[1], zoom(bf, (1, 1.7, 1.7), order=1)
    start = (fine.shape[1] - side) // 2
    coarse = zoom(bf, (1, 0.55, 0.55), order=1)
    lack = side - coarse.shape[1]
    pad = (lack // 2, lack - lack // 2)
    target = cells.qpi.astype(np.float64)
    made = {
        "out of focus": gaussian_filter(bf, (0, 3, 3)),
        "saturated": np.minimum(middle + 3 * (bf - middle), np.quantile(bf, 0.55)),
        "another channel": (target - target.mean()) / target.std() * bf.std() + bf.mean(),
        "inverted": 2 * middle - bf,
        "magnified 1.7": fine[:, start : start + side, start : start + side],
        "shrunk 0.55": np.pad(coarse, ((0, 0), pad, pad), mode="edge"),
    }
    return {kind: bool(model.check_batch(images.astype(np.float32)).refused) for kind, images in made.items()}


# The table ------------------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> str:
    parts = []
    for kind in dict.fromkeys(run["job"].split("-")[0] for run in results):
        runs = [run for run in results if run["job"].split("-")[0] == kind]
        parts.append(f"**{kind}**, jobs {', '.join(run['job'] for run in runs)}\n\n{of_kind(kind, runs)}")
    return "\n\n".join(parts)


def of_kind(kind: str, runs: list[dict[str, Any]]) -> str:
    out = [(run, new) for run in runs for new in run["left_out"]]
    known = [new for run in runs for new in run["known"]]
    gap = np.array([new["expected"] - new["every"] for _, new in out])
    inside = np.mean([new["interval"][0] <= new["every"] <= new["interval"][1] for _, new in out])
    faults = [refused for new in [*known, *(new for _, new in out)] for refused in new["broken"].items()]
    of_seen = OF_SEEN_SITE if kind == "wbc" else OF_SEEN
    names = list(dict.fromkeys(name for _, new in out for name in new["found"]))
    having = {name: [(run, new) for run, new in out if name in new["found"]] for name in names}
    share = {name: np.array([new["found"][name] / run["seen"] for run, new in having[name]]) for name in names}
    change = {name: np.array([new["found"][name] - new["found"]["none"] for _, new in having[name]]) for name in names}
    within = float(np.mean(abs(gap) <= ACCURATE))
    refused = float(np.mean([refused for _, refused in faults]))
    goals = [
        common.Goal("share of left-out batches with accuracy expected within .05", within, ">=", 1.0),
        common.Goal("broken batches refused", refused, ">=", REFUSED),
        common.Goal("false alarms, known batches", float(np.mean([new["refused"] for new in known])), "<=", ALARMS),
        common.Goal("false alarms, left-out batches", float(np.mean([new["refused"] for _, new in out])), "<=", ALARMS),
    ]
    for way in ("controls", "proportions"):
        name = f"{way}, {N_NEW} cells"
        if name in share:
            goals += [
                common.Goal(f"{name}: accuracy of seen, mean", float(share[name].mean()), ">=", of_seen),
                common.Goal(f"{name}: accuracy of seen, worst batch", float(share[name].min()), ">=", of_seen),
                common.Goal(f"{name}: below doing nothing, worst batch", float(-change[name].min()), "<=", LOST),
            ]
    rows = [["", "batches", "accuracy of left-out batches", "of seen", "against none, mean", "worst"]]
    for name in names:
        found = np.array([new["found"][name] for _, new in having[name]])
        gained = f"{change[name].mean():+.3f}", f"{change[name].min():+.3f}"
        rows.append([name, str(len(found)), common.spread(found), f"{share[name].mean():.2f}", *gained])
    ratio = np.array([new["image"] / run["seen_image"] for run, new in out])
    said = np.array([new["image_expected"] for _, new in out])
    seen, adapted = np.mean([run["seen"] for run in runs]), np.mean([new["adapted"] for _, new in out])
    alike = np.mean([abs(new["expected"] - new["every"]) for _, new in out if not new["refused"]] or [np.nan])
    text = (
        f"{len(out)} batches left out; accuracy in known batches {seen:.2f}. Expected less found: mean "
        f"{gap.mean():+.3f}, size {abs(gap).mean():.3f}, of batches not refused {alike:.3f}; within the interval "
        f"{inside:.0%}. Image error relative to known batches: found {ratio.mean():.2f}, expected {said.mean():.2f}, "
        f"mean size of the difference {abs(ratio - said).mean():.2f}. Adapted {adapted:.0%}."
    )
    kinds = list(dict.fromkeys(name for name, _ in faults))
    refused = ", ".join(f"{name} {np.mean([r for k, r in faults if k == name]):.2f}" for name in kinds)
    return f"{text}\nRefused: {refused}.\n\n{common.goals_text(goals)}\n\n{common.table(rows)}"


if __name__ == "__main__":
    main()

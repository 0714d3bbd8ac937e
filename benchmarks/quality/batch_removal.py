"""Compare batch removal with what a laboratory would use instead: one command, one table, one picture.

    python benchmarks/quality/batch_removal.py                                   # simulated cells, 3 seeds
    python benchmarks/quality/batch_removal.py --jurkat ROOT --unseen --jobs 2   # real cells too, and unseen batches
    python benchmarks/quality/batch_removal.py --wbc FILE --no-simulated         # real cells from real sites
    python benchmarks/quality/batch_removal.py --jurkat ROOT --wbc FILE --unseen --methods stage1 default ceiling
                                                                                 # the goals alone
    python benchmarks/quality/batch_removal.py --curve 0.25 0.5 1 2              # against images seen
    python benchmarks/quality/batch_removal.py --quick                           # does it run? The figures mean nothing

Needs the extra: pip install "skbegan[benchmarks]". Every job (a seed of a data set) leaves its results in OUT/runs as
soon as it is done; --resume takes those that were made with the same settings and the same code.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from quality import picture, report
from quality.data_sets import DATA_SETS, DataSet, Simulated
from quality.methods import METHODS, Job, described
from quality.methods import run as run_job
from quality.rivals import RIVALS, is_installed, load_library

import skbegan

SIZES = {"base_width": 16, "n_features": 128, "pretrain_epochs": 20, "removal_epochs": 40}
QUICK_SIZES = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1}
CELLS = {"image_size": 32, "n_train": 1680, "n_audit": 1260}
QUICK_CELLS = {"image_size": 16, "n_train": 90, "n_audit": 60}
QUICK_DESIGN = {"n_cell_types": 3, "n_batches": 3, "batches_per_type": 2}
QUICK_PER_GROUP = 20


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "batch_removal")
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[31, 32, 33], metavar="N", help="of simulated cells and of all models")
    for data in DATA_SETS.values():
        if data.help:
            add(f"--{data.name}", type=Path, metavar="PATH", help=data.help)
    add("--no-simulated", action="store_true", help="only the real cells")
    add("--unseen", action="store_true", help="also leave batches out of training (two fits each)")
    add("--batch-kinds", choices=["site", "instrument"], default="site", help="of simulated cells (default: site)")
    add(
        "--curve",
        type=float,
        nargs="+",
        default=[],
        metavar="X",
        help="stage 1 and default at X times the epochs, only",
    )
    add("--methods", nargs="+", choices=list(METHODS), metavar="NAME", help=", ".join(METHODS))
    sizes = parser.add_argument_group("sizes, the same for all models")
    common.add_sizes(sizes, CELLS | SIZES)
    pairs: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "NAME=VALUE"}
    sizes.add_argument("--set", **pairs, help="other parameters of stage 1 and the default, as removal__alignment=1")
    sizes.add_argument("--set-published", **pairs, help="of the published recipe; its classifier_epochs are 20 here")
    how = parser.add_argument_group("how it runs")
    how.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, each on one thread (default: 1)")
    how.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    how.add_argument("--memory", type=Path, metavar="DIR", help="where stage 1 is kept (default: cache in --out)")
    how.add_argument("--resume", action="store_true", help="take finished jobs of equal settings and code from --out")
    how.add_argument("--redraw", action="store_true", help="tables and picture anew from --out, no job is run")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        if args.redraw:
            results = common.read_json(args.out / "results.json")
        else:
            settings, methods, skipped, jobs = plan(args)
            (args.out / "runs").mkdir(parents=True, exist_ok=True)
            keys = [digest(job, methods, settings) for job in jobs]
            wanted = [
                (job, key)
                for job, key in zip(jobs, keys, strict=True)
                if not args.resume or not is_done(args, job, key)
            ]
            print(f"{len(wanted)} of {len(jobs)} jobs to do, methods: {', '.join(methods)}", flush=True)
            with joblib.parallel_config("loky" if args.jobs > 1 else "sequential", n_jobs=args.jobs):
                joblib.Parallel()(joblib.delayed(do)(job, key, methods, settings, args.out) for job, key in wanted)
            runs = [common.read_json(run_file(args.out, job)) for job in jobs]
            results = {"settings": settings, "skipped": skipped, "made_with": common.machine(), "runs": runs}
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    write(results, args.out)


# Before ---------------------------------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], dict[str, str], list[Job]]:
    """Turn options into settings, methods (and why some are skipped) and jobs, and refuse what would fail later."""
    for needed, package in (("the picture", "matplotlib"), ("the measurement of cells", "skimage")):
        if not is_installed(package):
            raise ImportError(f'{needed} needs {package}: pip install "skbegan[benchmarks]"')
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    data = chosen_data(args)
    if not data:
        raise ValueError("--no-simulated leaves no cells: give the path of real ones")
    for cells in data:
        cells.check()
    if any(not 0 < part < np.inf for part in args.curve):
        raise ValueError(f"--curve takes multiples of the epochs, above 0; got {args.curve}")
    settings = {
        "sizes": common.sizes(args, SIZES, QUICK_SIZES),
        "model": dict(map(read_parameter, args.set)),
        "published": {"classifier_epochs": 1 if args.quick else 20} | dict(map(read_parameter, args.set_published)),
        "n_permutations": 5 if args.quick else 50,
        "device": args.device,
        "memory": str(args.memory or args.out / "cache"),
    }
    jobs = [Job(cells, seed) for cells in data for seed in dict.fromkeys(args.seeds)]
    if args.curve:
        jobs = [Job(job.data, job.seed, part=part) for job in jobs for part in dict.fromkeys(args.curve)]
    elif args.unseen:
        jobs += [Job(job.data, job.seed, turn) for job in jobs for turn in job.data.turns(job.seed)]
    methods, skipped = choose_methods(args.methods)
    return settings, methods, skipped, jobs


def chosen_data(args: argparse.Namespace) -> list[DataSet]:
    sizes = common.sizes(args, CELLS, QUICK_CELLS)
    side = sizes["image_size"]
    simulated = Simulated(**sizes, **(QUICK_DESIGN if args.quick else {}), batch_kinds=args.batch_kinds)
    found: list[DataSet] = [] if args.no_simulated else [simulated]
    for name, data in DATA_SETS.items():
        if path := getattr(args, name, None):
            found.append(data(side, str(path), QUICK_PER_GROUP if args.quick else None))
    return found


def choose_methods(names: list[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the methods to run and, for those whose library is missing, why not. Asked for by name, they must run."""
    skipped = {}
    for name, rival in RIVALS.items():
        if (names is None or name in names) and not is_installed(rival.package):
            if names is not None and rival.package is not None:
                load_library(rival.package)  # raises, and says what to install
            skipped[name] = f'skipped: {rival.package} is not installed (pip install "skbegan[benchmarks]")'
    return [name for name in METHODS if (names is None or name in names) and name not in skipped], skipped


def read_parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set and --set-published take NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


# Jobs -----------------------------------------------------------------------------------------------------------------


def digest(job: Job, methods: list[str], settings: dict[str, Any]) -> str:
    """Name what a job's result depends on: settings, methods and code."""
    depends = {name: value for name, value in settings.items() if name != "memory"}
    text = json.dumps([described(job), methods, depends], sort_keys=True, default=str).encode()
    code = [Path(__file__).with_name(f"{name}.py") for name in ("data_sets", "figures", "methods", "rivals")]
    code += sorted(Path(skbegan.__file__).parent.rglob("*.py"))
    return hashlib.blake2b(text + b"".join(file.read_bytes() for file in code), digest_size=8).hexdigest()


def run_file(out: Path, job: Job | str, suffix: str = ".json") -> Path:
    return out / "runs" / f"{job}{suffix}"


def is_done(args: argparse.Namespace, job: Job, key: str) -> bool:
    file = run_file(args.out, job)
    return file.is_file() and common.read_json(file).get("key") == key


def do(job: Job, key: str, methods: list[str], settings: dict[str, Any], out: Path) -> None:
    """Do a job and write its result, in whatever process."""
    result, panel = run_job(job, methods, settings)
    if panel:
        np.savez_compressed(run_file(out, job, ".npz"), **panel)  # type: ignore[arg-type]
    common.write_json(run_file(out, job), {"key": key, "job": str(job), **described(job), **result})


# After ----------------------------------------------------------------------------------------------------------------


def write(results: dict[str, Any], out: Path) -> None:
    """Print tables and goals, and keep them with the picture and all figures."""
    panels = {}
    for run in (run for run in results["runs"] if "features" in run and run["data"] not in panels):
        with np.load(run_file(out, run["job"], ".npz")) as file:
            panels[run["data"]] = dict(file)
    every = list(dict.fromkeys(run["data"] for run in results["runs"]))
    results["goals"] = {data: [line.record() for line in report.goals(results["runs"], data)] for data in panels}
    made = ", ".join(f"{name} {version}" for name, version in results["made_with"].items())
    settings = json.dumps({k: v for k, v in results["settings"].items() if k not in ("device", "memory")})
    texts = [*(report.section(results, data) for data in every), report.EXPLANATION]
    if panels:
        picture.draw(results, panels, out / "batch_removal.png")
    common.write(out, "\n\n".join([*texts, f"Settings: `{settings}`. Made with {made}."]), results)


if __name__ == "__main__":
    main()

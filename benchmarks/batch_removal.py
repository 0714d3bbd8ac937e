"""Compare batch removal with what a laboratory would use instead: one command, one table, one picture.

    python benchmarks/batch_removal.py                                   # simulated cells, 3 seeds
    python benchmarks/batch_removal.py --jurkat ROOT --unseen --jobs 2   # real cells too, and batches never trained on
    python benchmarks/batch_removal.py --quick                           # does it run? The figures mean nothing

Needs the extra: pip install "skbegan[benchmarks]". Every job (a seed of a data set) leaves its results in OUT/runs as
soon as it is done; --resume takes those that were made with the same settings and the same code. See README.md in this
folder for how to read the table.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import report
from comparison import METHODS, Job, core_digest
from comparison import run as run_job
from rivals import RIVALS, is_installed, load_library

DESIGN = {"image_size": 32, "n_train": 1680, "n_audit": 1260, "n_cell_types": 7, "n_batches": 7, "batches_per_type": 3}
SIZES = {"base_width": 16, "n_features": 128, "pretrain_epochs": 20, "removal_epochs": 40}
QUICK_DESIGN = {
    "image_size": 16,
    "n_train": 90,
    "n_audit": 60,
    "n_cell_types": 3,
    "n_batches": 3,
    "batches_per_type": 2,
}
QUICK_SIZES = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/batch_removal"), metavar="DIR")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[31, 32, 33],
        metavar="N",
        help="simulated cells: of types, instruments, cells and model; real cells: of the model (default: 31 32 33)",
    )
    parser.add_argument(
        "--jurkat", type=Path, metavar="ROOT", help="tree of real cells with ROOT/batch_free_target.npz"
    )
    parser.add_argument("--no-simulated", action="store_true", help="only the real cells")
    parser.add_argument("--unseen", action="store_true", help="also leave a batch out of training (two fits per seed)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="NAME", help=", ".join(METHODS))
    parser.add_argument("--quick", action="store_true", help="tiny cells and networks, to see that it runs")

    sizes = parser.add_argument_group("sizes, the same for all models")
    sizes.add_argument("--image-size", type=int, metavar="N", help=f"default: {DESIGN['image_size']}")
    sizes.add_argument("--n-train", type=int, metavar="N", help=f"simulated cells (default: {DESIGN['n_train']})")
    sizes.add_argument("--n-audit", type=int, metavar="N", help=f"simulated cells (default: {DESIGN['n_audit']})")
    for name, value in SIZES.items():
        sizes.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"default: {value}")
    sizes.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="other parameters of stage 1 and the default, to try them; the published recipe keeps its own",
    )
    sizes.add_argument(
        "--set-published",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="other parameters of the published recipe; its classifier_epochs are 20 here and not 100, to save time",
    )

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
            results = read_json(args.out / "results.json")
        else:
            settings, methods, skipped, jobs = plan(args)
            (args.out / "runs").mkdir(parents=True, exist_ok=True)
            keys = [digest(job, methods, settings) for job in jobs]
            wanted = [
                (job, key)
                for job, key in zip(jobs, keys, strict=True)
                if not (args.resume and is_done(args.out, job, key))
            ]
            print(f"{len(wanted)} of {len(jobs)} jobs to do, methods: {', '.join(methods)}", flush=True)
            with joblib.parallel_config("loky" if args.jobs > 1 else "sequential", n_jobs=args.jobs):
                joblib.Parallel()(joblib.delayed(do)(job, key, methods, settings, args.out) for job, key in wanted)
            runs = [read_json(run_file(args.out, job)) for job in jobs]
            results = {"settings": settings, "skipped": skipped, "made_with": made_with(), "runs": runs}
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    datas = dict.fromkeys(run["data"] for run in results["runs"])
    results["goals"] = {data: report.goals(results["runs"], data) for data in datas}
    write(results, args.out)


# Before -----------------------------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> tuple[dict[str, Any], list[str], dict[str, str], list[Job]]:
    """Turn options into settings, methods (and why some are skipped) and jobs, and refuse what would fail later."""
    if not is_installed("matplotlib"):
        raise ImportError('the picture needs matplotlib: pip install "skbegan[benchmarks]"')
    if args.no_simulated and args.jurkat is None:
        raise ValueError("--no-simulated leaves no cells: give --jurkat ROOT")
    if args.jurkat is not None and not (args.jurkat / "batch_free_target.npz").is_file():
        raise FileNotFoundError(f"there is no {args.jurkat / 'batch_free_target.npz'} (--jurkat)")
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    design, sizes = (QUICK_DESIGN, QUICK_SIZES) if args.quick else (DESIGN, SIZES)
    given = {name: value for name, value in vars(args).items() if value is not None}
    settings = {
        "design": {name: given.get(name, value) for name, value in design.items()},
        "sizes": {name: given.get(name, value) for name, value in sizes.items()},
        "model": dict(map(read_parameter, args.set)),
        "published": {"classifier_epochs": 1 if args.quick else 20} | dict(map(read_parameter, args.set_published)),
        "jurkat": None if args.jurkat is None else str(args.jurkat),
        "device": args.device,
        "memory": str(args.memory or args.out / "cache"),
    }
    data = ([] if args.no_simulated else ["simulated"]) + ([] if args.jurkat is None else ["jurkat"])
    jobs = [Job(name, seed) for name in data for seed in dict.fromkeys(args.seeds)]
    if args.unseen:
        jobs += [Job(job.data, job.seed, unseen=True) for job in jobs]
    methods, skipped = choose_methods(args.methods)
    return settings, methods, skipped, jobs


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


# Jobs -------------------------------------------------------------------------------------------------------------


def digest(job: Job, methods: list[str], settings: dict[str, Any]) -> str:
    """Name what a job's result depends on: settings, methods and code."""
    depends = {name: value for name, value in settings.items() if name != "memory"}
    here = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem in PARTS)
    text = json.dumps([str(job), methods, depends, core_digest(".")], sort_keys=True).encode()
    return hashlib.blake2b(text + here, digest_size=8).hexdigest()


PARTS = ("comparison", "rivals")  # the files here that figures depend on


def run_file(out: Path, job: Job, suffix: str = ".json") -> Path:
    return out / "runs" / f"{job}{suffix}"


def is_done(out: Path, job: Job, key: str) -> bool:
    return run_file(out, job).is_file() and read_json(run_file(out, job)).get("key") == key


def do(job: Job, key: str, methods: list[str], settings: dict[str, Any], out: Path) -> None:
    """Do a job and write its result, in whatever process."""
    result, panel = run_job(job, methods, settings)
    if panel:
        arrays: dict[str, Any] = dict(panel)
        np.savez_compressed(run_file(out, job, ".npz"), **arrays)
    write_json(run_file(out, job), {"key": key, "data": job.data, "seed": job.seed, **result})


# After ------------------------------------------------------------------------------------------------------------


def write(results: dict[str, Any], out: Path) -> None:
    """Print tables and goals, and write them, the picture and the JSON."""
    texts, markdown = [], []
    panels = {}
    for data, found in results["goals"].items():
        missed = sum(not goal["met"] for goal in found)
        heading = f"Goals of the default: {len(found) - missed} of {len(found)} met in every seed"
        goals = f"{heading}\n{report.goals_text(found)}"
        texts.append(report.sections(results, data, report.as_text) + "\n\n" + goals)
        body = report.sections(results, data, report.as_markdown).replace("\n", "\n\n", 1)
        markdown.append(f"## {body}\n\n```text\n{goals}\n```")
        first = next(run for run in results["runs"] if run["data"] == data and "features" in run)
        with np.load(run_file(out, Job(data, first["seed"]), ".npz")) as file:
            panels[data] = dict(file)
    print("\n" + "\n\n\n".join(texts) + "\n\n" + report.EXPLANATION)
    made = ", ".join(f"{name} {version}" for name, version in results["made_with"].items())
    settings = json.dumps({name: results["settings"][name] for name in ("sizes", "model", "published")})
    markdown.append(f"```text\n{report.EXPLANATION}\n```\n\nSettings: `{settings}`. Made with {made}.")
    (out / "table.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    report.draw(results, panels, out / "batch_removal.png")
    write_json(out / "results.json", results)
    print(f"\nWritten to {out}: table.md, batch_removal.png, results.json")


def made_with() -> dict[str, str]:
    """Return the versions that figures may depend on."""
    names = ("skbegan", "torch", "numpy", "scikit-learn", "combatlearn", "harmonypy", "concept-erasure")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write at once or not at all, so that a job that is stopped leaves no half of a file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()

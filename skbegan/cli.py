"""The command line: ``skbegan fit``, ``transform``, ``predict``, ``audit``, ``report``, ``demo``, ``import-keras``.

Every command reads its arguments and calls the public functions; what it does can be done in Python in as many lines.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

import skbegan
from skbegan._demo import write_demo_cells
from skbegan._launched import rank_and_world
from skbegan._settings import parameters, read_settings, setting
from skbegan.presets import PRESETS
from skbegan.stored.atomic import write_whole

FITS = ("pad", "crop", "stretch")
TABLE_SUFFIX = ".table.json"  # of the file beside a model that says how its table was read
_COLUMNS = ("bf", "target", "batch", "cell_type")
_READING = (*_COLUMNS, "image_size", "fit", "axes", "index", "frame")
IN_MEMORY = 2 << 30  # bytes of images up to which they are read once, rather than anew in each epoch


class UsageError(Exception):
    """The command line cannot be meant as it is: exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    code : int
        0: done. 1: an error, said in one line on standard error. 2: arguments that cannot be used. 130: Ctrl-C.

    Examples
    --------
    >>> from skbegan.cli import main
    >>> main(["fit", "--help"])  # doctest: +ELLIPSIS
    usage: skbegan fit ...
    0
    """
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stopped:  # argparse has said why
        return int(stopped.code or 0)
    rank, world = rank_and_world()
    if rank > 0 and args.run is not _fit:  # only a fit is shared out among the processes of torchrun
        return 0
    with _warnings_in_a_line(silent=rank > 0):
        try:
            return int(args.run(args) or 0)
        except KeyboardInterrupt:
            _say("interrupted")
            return 130
        except UsageError as error:
            _say(f"error: {error}")
            return 2
        except BrokenPipeError:  # the reader of standard output has gone, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except Exception as error:
            if args.traceback:
                traceback.print_exc()
            kind = "" if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: "
            who = f"process {rank + 1} of {world}: " if rank > 0 else ""
            _say(f"{who}error: {kind}{' '.join(str(error).split()) or type(error).__name__}")
            return 1


def _say(text: str) -> None:
    sys.stderr.write(f"skbegan: {text}\n")


@contextmanager
def _warnings_in_a_line(silent: bool = False) -> Iterator[None]:
    said = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said and not silent:  # the estimate and the fit warn of the same design
            _say(f"warning: {text}")
        said.add(text)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


# Arguments ------------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="skbegan",
        description="Batch-free profiles and phase images of single cells. Start with: skbegan demo",
        epilog="skbegan COMMAND --help shows the options of a command, and two examples.",
    )
    parser.add_argument("--version", action="version", version=f"skbegan {skbegan.__version__}")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh"),
        help="print what completes commands and options in a shell",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], what: str, examples: str) -> Any:
        made = commands.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        made.add_argument("--traceback", action="store_true", help="show where an error came from")
        return made

    fit = command(
        "fit",
        _fit,
        "train a model on the cells of a table",
        """
        skbegan fit cells.csv --bf bf_path --target phase_path --batch day --cell-type line --image-size 64 \\
            --preset laptop -o model.safetensors
        skbegan fit cells.csv --bf bf --target qpi --batch day,plate --cell-type drug --image-size 64 --config c.toml \\
            --set removal.alignment=1.0 --checkpoint-dir run1 -o model.safetensors
        """,
    )
    fit.add_argument("table", type=Path, metavar="TABLE", help="CSV, TSV, Parquet or Excel file, a row per cell")
    fit.add_argument("--bf", required=True, metavar="COL", help="column of the brightfield images")
    fit.add_argument("--target", required=True, metavar="COL", help="column of the target images")
    fit.add_argument("--batch", required=True, **_columns("column of the batch (day, plate, site)"))
    fit.add_argument("--cell-type", metavar="COL", help="column of what must stay (line, drug, dose, phase)")
    fit.add_argument("--image-size", required=True, type=int, metavar="PIXELS", help="side that images are brought to")
    _add_reading(fit)
    _add_output(fit, "the model, model.safetensors")
    fit.add_argument("--preset", choices=tuple(PRESETS), help="sizes and epochs to start from (default: the defaults)")
    fit.add_argument("--config", type=Path, metavar="TOML", help="file of parameters, with tables [removal], [profile]")
    _add_set(fit)
    fit.add_argument("--device", help="auto, cpu or cuda")
    fit.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same model on the same machine")
    fit.add_argument("--checkpoint-dir", metavar="FOLDER", help="where the same command goes on after it was stopped")
    fit.add_argument("--no-estimate", action="store_true", help="do not measure first how long it will take")
    fit.add_argument("--dry-run", action="store_true", help="stop before training: shows the design and the estimate")
    fit.add_argument("--quiet", action="store_true", help="no progress, no reports; warnings and errors only")

    transform = command(
        "transform",
        _transform,
        "write the batch-free profile of each cell of a table",
        """
        skbegan transform model.safetensors new_cells.csv -o profiles.parquet
        skbegan transform model.safetensors other.csv --bf brightfield -o profiles.h5ad --force
        """,
    )
    predict = command(
        "predict",
        _predict,
        "write the predicted target image of each cell of a table",
        """
        skbegan predict model.safetensors new_cells.csv -o images.zarr
        skbegan predict model.safetensors new_cells.csv --pixel-size 0.2 -o images.ome.tiff
        """,
    )
    audit = command(
        "audit",
        _audit,
        "measure what a model leaves of the batch and keeps of the biology, on cells it was not trained on",
        """
        skbegan audit model.safetensors test_cells.csv
        skbegan audit model.safetensors test_cells.csv --probes linear knn -o audit.json
        """,
    )
    report = command(
        "report",
        _report,
        "write all that is known of a model into one HTML file, on cells it was not trained on",
        """
        skbegan report model.safetensors test_cells.csv -o report.html
        skbegan report model.safetensors test_cells.csv --pixel-size 0.2 -o report.html --force
        """,
    )
    for made in (transform, predict, audit, report):
        made.add_argument("model", type=Path, metavar="MODEL", help="what skbegan fit wrote")
        made.add_argument("table", type=Path, metavar="TABLE", help="CSV, TSV, Parquet or Excel file, a row per cell")
        beside = "by default as in skbegan fit"
        for name in _COLUMNS if made in (audit, report) else ("bf",):
            how = _columns(beside) if name == "batch" else {"metavar": "COL", "help": beside}
            made.add_argument(f"--{name.replace('_', '-')}", **how)
        made.add_argument("--image-size", type=int, metavar="PIXELS", help=beside)
        _add_reading(made)
        made.add_argument("--device", help="auto, cpu or cuda")
        made.add_argument("--quiet", action="store_true", help="no progress; warnings and errors only")
    _add_output(transform, "profiles.parquet, .csv, .csv.gz or .h5ad")
    _add_output(predict, "images.zarr, .ome.tiff or .mat")
    _add_output(audit, "audit.json, in addition to the table that is printed", required=False)
    _add_output(report, "report.html")
    for made in (predict, report):
        made.add_argument("--pixel-size", type=float, metavar="UM", help="micrometres per pixel")
    predict.add_argument("--as-batch", metavar="LABEL", help="as this batch of the fit would show the cells")
    audit.add_argument(
        "--probes", nargs="+", default=("linear", "mlp", "knn"), metavar="PROBE", help="(default: linear mlp knn)"
    )
    audit.add_argument("--repeats", type=int, default=3, metavar="N", help="of the probes (default: 3)")

    demo = command(
        "demo",
        _demo,
        "simulate cells, write them as TIFF files and a table, and run the other commands on them",
        """
        skbegan demo
        skbegan demo somewhere/else --seed 1
        """,
    )
    demo.add_argument("folder", type=Path, nargs="?", default=Path("skbegan-demo"), help="(default: skbegan-demo)")
    demo.add_argument("--seed", type=int, default=0, metavar="N")
    demo.add_argument(
        "--cells", type=int, default=400, metavar="N", help="to train on; half as many to test (default: 400)"
    )
    demo.add_argument("--image-size", type=int, default=32, metavar="PIXELS")
    demo.add_argument("--epochs", type=int, default=15, metavar="N", help="of either stage (default: 15)")
    demo.add_argument("--force", action="store_true", help="replace what is in the folder")
    demo.add_argument("--quiet", action="store_true", help="no progress; warnings and errors only")

    keras = command(
        "import-keras",
        _import_keras,
        "make a model of a generator that the original saved as a Keras HDF5 file",
        """
        skbegan import-keras generator.h5 -o model.safetensors
        skbegan import-keras generator.h5 --set inference=population -o model.safetensors
        """,
    )
    keras.add_argument("file", type=Path, metavar="FILE", help="a legacy Keras .h5 file")
    _add_set(keras)
    _add_output(keras, "the model, model.safetensors")
    return parser


def _columns(what: str) -> dict[str, Any]:
    """Return how an argument is read that names one column, or several by commas or by being repeated."""
    return {"action": "extend", "type": _names, "metavar": "COL", "help": f"{what}; several make a batch of each row"}


def _names(text: str) -> list[str]:
    """Return the columns that are named, with commas in between; quoted, a name may hold a comma."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True))]


class _Completion(argparse.Action):
    """Print the completion of a shell, made by shtab."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs shtab: pip install 'skbegan[completion]'")
        sys.stdout.write(shtab.complete(parser, args[1]) + "\n")
        parser.exit(0)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--fit", choices=FITS, help="how images of other sizes become squares (default: pad)")
    add("--frame", type=int, metavar="PIXELS", help="side, in the files, of the square that becomes --image-size")
    add("--root", type=Path, metavar="FOLDER", help="that names of files start from (default: that of the table)")
    add("--axes", metavar="AXES", help="order of the axes in the files, as tifffile names them: YX, CYX")
    add("--index", metavar="COL", help="column with the number of the cell's image in files that hold several")
    add("--drop-missing", action="store_true", help="leave out cells whose files are missing, instead of an error")
    add("--lazy", action="store_true", help="read images anew whenever they are needed, also where memory would do")


def _add_output(parser: argparse.ArgumentParser, what: str, required: bool = True) -> None:
    parser.add_argument("-o", "--output", type=Path, required=required, metavar="FILE", help=what)
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="a parameter, as in base_width=16 or removal.alignment=1.0; may be repeated",
    )


def _setting(text: str) -> tuple[str, Any]:
    try:
        return setting(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# What commands have in common -----------------------------------------------------------------------------------------


def _check_output(path: Path, suffixes: Sequence[str], force: bool) -> None:
    """Refuse an output that could not be written in the end, before any work."""
    if not path.name.endswith(tuple(suffixes)):
        raise UsageError(f"{path} must end in {', '.join(suffixes[:-1])}{' or ' * (len(suffixes) > 1)}{suffixes[-1]}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.absolute().parent} does not exist")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; --force replaces it")


def _load(args: argparse.Namespace, needs: Sequence[str]) -> tuple[Any, Any]:
    """Return the model and the cells of the table, read as in fit unless the arguments say otherwise."""
    est = skbegan.load(args.model)
    if args.device is not None:
        est.set_params(device=args.device)
    beside = args.model.with_name(args.model.name + TABLE_SUFFIX)
    how = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    given = {name: _one(getattr(args, name, None)) for name in _READING}
    how = {name: how.get(name) if value is None else value for name, value in given.items()}
    how["image_size"] = how["image_size"] or est.image_shape_[0]
    lacking = [name for name in needs if how[name] is None]
    if lacking:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in lacking)
        raise UsageError(f"which columns of the table? There is no {beside.name} beside the model; give {options}")
    if "batch" not in needs:  # nor need they be in the table; some column has to be named
        column, _, channel = how["bf"].rpartition(":")
        how |= {"target": None, "batch": column if channel.isdigit() else how["bf"], "cell_type": None}
    return est, _read(args, {name: value for name, value in how.items() if value is not None})


def _one(names: Any) -> Any:
    return names[0] if isinstance(names, list) and len(names) == 1 else names


def _read(args: argparse.Namespace, how: dict[str, Any]) -> Any:
    from skbegan.datasets import load_cell_table

    root = {} if args.root is None else {"root": args.root}
    missing: Literal["raise", "drop"] = "drop" if args.drop_missing else "raise"
    cells = load_cell_table(args.table, **root, **how, missing=missing)
    images = [name for name in ("bf", "qpi") if cells[name] is not None]
    if not args.lazy and sum(cells[name].nbytes for name in images) <= IN_MEMORY:
        for name in images:
            cells[name] = np.asarray(cells[name])
    return cells


# Commands -------------------------------------------------------------------------------------------------------------


def _fit(args: argparse.Namespace) -> int:
    beside = args.output.with_name(args.output.name + TABLE_SUFFIX)
    if is_first := rank_and_world()[0] == 0:  # of the processes of torchrun it writes, and says what there is to say
        _check_output(args.output, (".safetensors",), args.force)
        _check_output(beside, (TABLE_SUFFIX,), args.force)
    elif args.dry_run:
        return 0
    args.quiet |= not is_first
    settings = None if args.config is None else read_settings(args.config)
    options = {"device": args.device, "random_state": args.seed, "checkpoint_dir": args.checkpoint_dir}
    changes = [*args.set, *((name, value) for name, value in options.items() if value is not None)]
    est = skbegan.BeGANTransformer().set_params(verbose=0 if args.quiet else 1)
    known = est.get_params(deep=False)
    try:
        parameters(known, None, None, args.set)
    except ValueError as error:
        raise UsageError(f"--set: {error}") from None
    est.set_params(**parameters(known, args.preset, settings, changes))
    how = {name: _one(getattr(args, name)) for name in _READING if getattr(args, name) is not None}
    cells = _read(args, how)
    data = cells.bf, cells.qpi, cells.batch, cells.cell_type
    if not args.quiet:
        print(f"{cells.report}\n", flush=True)
    if args.dry_run or not (args.no_estimate or args.quiet):
        print(f"{est.estimate_cost(*data)}\n", flush=True)
    if args.dry_run:
        return 0
    est.fit(*data)
    if is_first:
        skbegan.save(est, args.output)
        how["frame"] = cells.report.frame  # so that further tables are read at the same scale
        write_whole(beside, json.dumps(how, indent=1).encode())
    if not args.quiet:
        print(f"wrote {args.output} and {beside.name}, which says how the table was read")
    # Ctrl-C ends a fit with the best model so far.
    return 130 if any(event.startswith("fit: interrupted") for event in est.history_["events"]) else 0


def _transform(args: argparse.Namespace) -> None:
    _check_output(args.output, (".parquet", ".csv", ".csv.gz", ".h5ad"), args.force)
    est, cells = _load(args, ("bf",))
    skbegan.write_profiles(args.output, est, cells.bf, cells.table, overwrite=args.force)
    _wrote(args)


def _predict(args: argparse.Namespace) -> None:
    _check_output(args.output, (".zarr", ".ome.tiff", ".ome.tif", ".mat"), args.force)
    est, cells = _load(args, ("bf",))
    options = {"pixel_size": args.pixel_size, "overwrite": args.force, "as_batch": args.as_batch}
    skbegan.write_images(args.output, est, cells.bf, **options)
    _wrote(args)


def _audit(args: argparse.Namespace) -> None:
    if args.output is not None:
        _check_output(args.output, (".json",), args.force)
    est, cells = _load(args, _COLUMNS)
    found = skbegan.metrics.audit(
        est,
        cells.bf,
        cells.qpi,
        cells.batch,
        cells.cell_type,
        probes=tuple(args.probes),
        n_repeats=args.repeats,
        verbose=0 if args.quiet else 1,
    )
    print(found)
    if args.output is not None:
        write_whole(args.output, json.dumps(found.to_dict(), indent=1, default=str).encode())
        _wrote(args)


def _report(args: argparse.Namespace) -> None:
    _check_output(args.output, (".html",), args.force)
    est, cells = _load(args, _COLUMNS)
    from skbegan.report import write_report

    write_report(
        args.output,
        est,
        cells.bf,
        cells.qpi,
        cells.batch,
        cells.cell_type,
        pixel_size=args.pixel_size,
        overwrite=args.force,
    )
    _wrote(args)


def _wrote(args: argparse.Namespace) -> None:
    if not args.quiet:
        print(f"wrote {args.output}")


def _import_keras(args: argparse.Namespace) -> None:
    _check_output(args.output, (".safetensors",), args.force)
    known = skbegan.BeGANTransformer().get_params(deep=False)
    try:
        changes = parameters(known, None, None, args.set)
    except ValueError as error:
        raise UsageError(f"--set: {error}") from None
    skbegan.save(skbegan.load_keras_generator(args.file, **changes), args.output)
    print(f"wrote {args.output}")


def _demo(args: argparse.Namespace) -> int:
    folder = args.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not args.force:
        raise FileExistsError(f"{folder} exists and is not empty; --force writes into it")
    tables = write_demo_cells(folder, args.cells, args.image_size, args.seed)
    model = str(folder / "model.safetensors")
    columns = ["--bf", "brightfield", "--target", "phase", "--batch", "day", "--cell-type", "line"]
    small = [f"--set={name}" for name in ("base_width=8", "n_features=32", "minibatch_size=32")]
    epochs = [f"--set={stage}_epochs={args.epochs}" for stage in ("pretrain", "removal")]
    size = ["--image-size", str(args.image_size), "--seed", str(args.seed)]
    quickly = ["--probes", "linear", "knn", "--repeats", "1"]
    for command in (
        ["fit", str(tables[0]), *columns, *size, *small, *epochs, "--no-estimate", "-o", model],
        ["transform", model, str(tables[1]), "-o", str(folder / "profiles.csv")],
        ["audit", model, str(tables[1]), *quickly, "-o", str(folder / "audit.json")],
        ["report", model, str(tables[1]), "-o", str(folder / "report.html")],
    ):
        command += ["--force"] * args.force + ["--quiet"] * args.quiet
        if not args.quiet:
            print(f"\n$ skbegan {' '.join(command)}", flush=True)
        if code := main(command):
            return code
    return 0

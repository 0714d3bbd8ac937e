"""Fit and infer on cells that do not fit into memory: peak of memory, and speed beside cells in memory.

    python benchmarks/speed/large_data.py                       # 20 GB of disk while it runs
    python benchmarks/speed/large_data.py --gigabytes 2 --keep  # less, and the files stay in --out for another run
    python benchmarks/speed/large_data.py --quick               # shows in two minutes that everything runs

Cells are written to zarr, one batch after the other as a laboratory would: tiles of simulated cells, moved, brightened
and with noise, 16 bits, uncompressed. A fit of a few steps of all stages streams them. Beside it the same fit runs on a
part of them that is in memory. `transform` is timed on an array, on zarr and on dask, into a zarr array. Every point is
a process of its own; its memory is the peak of its resident set as the system counts it (Linux only). Seconds are
processor time of all threads, which other work on the machine disturbs less than wall time; both are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from common import Goal, number

FIT = {"base_width": 8, "n_features": 64, "minibatch_size": 64, "device": "cpu", "random_state": 0}
SIZES: dict[str, Any] = {
    "gigabytes": 20,
    "side": 32,
    "chunk": 1024,  # cells
    "part": 131_072,  # cells that are in memory
    "steps": 40,  # per epoch
    "epochs": 4,  # of either stage
    "inferred": 65_536,  # cells
    "runs": 1,
    "threads": 1,
}
QUICK: dict[str, Any] = {"gigabytes": 0, "side": 16, "chunk": 64, "part": 2048, "steps": 2, "epochs": 2}
QUICK |= {"inferred": 1024, "runs": 1}
MEMORY, SHARE, INFERENCE_SHARE, EXTRA = 2048.0, 0.9, 0.8, 200.0  # goals, MiB and shares of the speed in memory
N_BATCHES, N_TYPES = 4, 5


# Cells ----------------------------------------------------------------------------------------------------------------


def labels_of(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return batch and type: one batch after the other, types mixed within."""
    batch = (np.arange(N_BATCHES, dtype=np.uint8)).repeat(-(-n // N_BATCHES))[:n]
    return batch, np.random.default_rng(1).integers(0, N_TYPES, n, dtype=np.uint8)


def write_cells(folder: Path, n: int, side: int, chunk: int) -> None:
    """Write brightfield and target of `n` cells."""
    import zarr

    from skbegan.datasets import make_cell_images

    tiles = make_cell_images(1000, N_TYPES, N_BATCHES, side, random_state=0)
    batch, cell_type = labels_of(n)
    names = np.unique(tiles.batch, return_inverse=True)[1], np.unique(tiles.cell_type, return_inverse=True)[1]
    groups = names[0] * N_TYPES + names[1]
    tile_of, counts = np.argsort(groups, kind="stable"), np.bincount(groups, minlength=N_BATCHES * N_TYPES)
    first = np.cumsum(counts) - counts
    rng = np.random.default_rng(0)
    group = zarr.open_group(folder, mode="w")
    pixels = [np.clip(8000 + 8000 * tiles[name] / np.abs(tiles[name]).max(), 0, 60000) for name in ("bf", "qpi")]
    pixels = [values.astype(np.uint16) for values in pixels]
    arrays = [
        group.create_array(name, shape=(n, side, side), dtype="uint16", chunks=(chunk, side, side), compressors=None)
        for name in ("bf", "qpi")
    ]
    for start in range(0, n, chunk):
        rows = slice(start, min(n, start + chunk))
        wanted = batch[rows].astype(int) * N_TYPES + cell_type[rows]
        chosen = tile_of[first[wanted] + (rng.random(len(wanted)) * counts[wanted]).astype(int)]
        shift = tuple(rng.integers(-2, 3, 2))
        noise = rng.integers(0, 256, (1, side, side), dtype=np.uint16)
        for array, images in zip(arrays, pixels, strict=True):
            array[rows] = np.roll(images[chosen], shift, (1, 2)) + noise
    np.save(folder / "batch.npy", batch)
    np.save(folder / "cell_type.npy", cell_type)


def read_part(folder: Path, n: int) -> list[np.ndarray]:
    """Return blocks from all over as arrays in memory, and their labels."""
    import zarr

    group = zarr.open_group(folder, mode="r")
    chunk, whole = group["bf"].chunks[0], group["bf"].shape[0]
    blocks = np.linspace(0, whole // chunk - 1, max(1, n // chunk)).astype(int)
    parts = [[group[name][b * chunk : (b + 1) * chunk] for b in blocks] for name in ("bf", "qpi")]
    rows = np.concatenate([np.arange(b * chunk, (b + 1) * chunk) for b in blocks])
    return [np.concatenate(part) for part in parts] + [
        np.load(folder / f"{x}.npy")[rows] for x in ("batch", "cell_type")
    ]


# Points, each in a process of its own ---------------------------------------------------------------------------------


def peak_memory(reset: bool = False) -> float:
    """Return the highest resident set of this process so far, in MiB, or make the present one the highest."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def run_fit(point: dict[str, Any]) -> dict[str, Any]:
    """Fit on all cells or on a part in memory; return the seconds of each epoch, and the peak."""
    import zarr

    from skbegan import BeGANTransformer
    from skbegan.data import stream

    folder = Path(point["folder"])
    if point["quick"]:
        stream.BUFFER_BYTES = stream.SAMPLE_BYTES = 512 * 2 * 2 * point["side"] ** 2
    if point["what"] == "streamed":
        group = zarr.open_group(folder, mode="r")
        data = [group["bf"], group["qpi"], *(np.load(folder / f"{x}.npy") for x in ("batch", "cell_type"))]
    else:
        data = read_part(folder, point["part"])
    held_out = point["part"] // 128  # few: an epoch is to be its steps
    stamps: list[tuple[str, float, float]] = []

    def note(info: Any) -> None:
        stamps.append((info.stage, time.perf_counter(), time.process_time()))

    model = BeGANTransformer(
        **FIT,
        pretrain_epochs=point["epochs"],
        removal_epochs=point["epochs"],
        refresh_epochs=1000,
        steps_per_epoch=point["steps"],
        validation_fraction=held_out / data[0].shape[0],
        callback=note,
    )
    began, load = time.perf_counter(), os.getloadavg()[0]
    model.fit(*data)
    seconds: dict[str, list[list[float]]] = {}
    for (stage, wall, cpu), (after, wall_after, cpu_after) in itertools.pairwise(stamps):
        if stage == after:
            seconds.setdefault(stage, []).append([wall_after - wall, cpu_after - cpu])
    return {
        "cells": data[0].shape[0],
        "bytes": 2 * data[0].nbytes,
        "peak": peak_memory(),
        "wall": time.perf_counter() - began,
        "epochs": seconds,
        "load": load,
    }


def run_order(point: dict[str, Any]) -> dict[str, Any]:
    """Draw minibatches without training on them; return cells per second, of processor time and of wall time."""
    import torch

    from skbegan.data import stream
    from skbegan.stored.adapters import as_lazy

    if point["quick"]:
        stream.BUFFER_BYTES = stream.SAMPLE_BYTES = 512 * 2 * 2 * point["side"] ** 2
    import zarr

    folder = Path(point["folder"])
    group = zarr.open_group(folder, mode="r")
    images = [as_lazy(group[name]) for name in ("bf", "qpi")]
    labels = [np.load(folder / f"{x}.npy") for x in ("batch", "cell_type")]
    bounds, stratum, slots = stream.plan_stream(*images, *labels)
    plan = stream.Stream(bounds, stratum, np.empty(0, np.int64), slots).enough_for(64)
    buffer = stream.RowBuffer(tuple(images), stream.RowsExcept(len(images[0]), plan.held_out), plan.slots)
    sampler = stream.StreamSampler(plan, buffer, 64, torch.Generator().manual_seed(0), steps=1)
    for positions in sampler.epoch():  # fills the buffer
        buffer.take(positions.numpy())
    sampler.n_steps = min(4 * slots, sampler.n - 64) // 64 - 1
    wall, cpu = time.perf_counter(), time.process_time()
    for positions in sampler.epoch():
        buffer.take(positions.numpy())
    n = 64 * sampler.n_steps
    streamed = [n / (time.perf_counter() - wall), n / (time.process_time() - cpu)]
    rows = np.random.default_rng(0).permutation(len(images[0]))[:512]
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, 512, 64):
        for each in images:
            each.read(rows[start : start + 64])
    at_random = [512 / (time.perf_counter() - wall), 512 / (time.process_time() - cpu)]
    return {"cells": n, "streamed": streamed, "at random": at_random, "peak": peak_memory(), "load": os.getloadavg()[0]}


def run_transform(point: dict[str, Any]) -> dict[str, Any]:
    """Transform cells of one kind of array into zarr; return the seconds and the memory on top."""
    import dask.array
    import zarr

    import skbegan

    folder, n = Path(point["folder"]), point["inferred"]
    model = skbegan.load(folder / "model.began")
    group = zarr.open_group(folder, mode="r")
    small = zarr.open_group(folder / "inferred.zarr", mode="r")["bf"]
    images = {"array": lambda: small[:], "zarr": lambda: small, "dask": lambda: dask.array.from_zarr(small)}[
        point["what"]
    ]()
    out = zarr.create_array(folder / f"out-{point['what']}.zarr", shape=(n, 64), dtype="float32", overwrite=True)
    model.transform(group["bf"][:1024], out=np.empty((1024, 64), np.float32))  # builds the networks
    before = peak_memory(reset=True)
    wall, cpu = time.perf_counter(), time.process_time()
    model.transform(images, out=out)
    return {
        "cells": n,
        "bytes": small.nbytes,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "extra": peak_memory() - before,
        "load": os.getloadavg()[0],
    }


def run_model(point: dict[str, Any]) -> dict[str, Any]:
    """Make the model and the cells that are transformed."""
    import zarr

    import skbegan

    folder, n = Path(point["folder"]), point["inferred"]
    bf, qpi, *labels = read_part(folder, max(n, 1024))
    group = zarr.open_group(folder / "inferred.zarr", mode="w")
    group.create_array("bf", data=bf[:n], chunks=(point["chunk"], *bf.shape[1:]), compressors=None)
    model = skbegan.BeGANTransformer(**FIT, pretrain_epochs=1, removal_epochs=1, steps_per_epoch=2)
    some = np.linspace(0, len(bf) - 1, 1024).astype(int)
    skbegan.save(model.fit(bf[some], qpi[some], *(each[some] for each in labels)), folder / "model.began")
    return {}


RUNS = {"fit": run_fit, "order": run_order, "transform": run_transform, "model": run_model}


def run_point(point: dict[str, Any], threads: int) -> dict[str, Any]:
    """Measure a point in a fresh process and return it with its figures."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=3600)
    if done.returncode:
        raise SystemExit(f"the process of {point} ended with {done.returncode}:\n{done.stderr}")
    found = {**point, **json.loads(done.stdout.splitlines()[-1])}
    print({name: value for name, value in found.items() if name not in ("folder", "quick")}, flush=True)
    return found


# Reading the figures --------------------------------------------------------------------------------------------------


def shares(points: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return by what is compared how fast it was in each run beside the same in memory, in processor time.

    Of fits it is the median of the epochs but the first of each stage.
    """
    found: dict[str, list[float]] = {}

    def of(kind: str, what: str) -> list[dict[str, Any]]:
        return [p for p in points if (p["kind"], p["what"]) == (kind, what)]

    for stage in ("pretraining", "batch_removal"):
        for pair in zip(of("fit", "memory"), of("fit", "streamed"), strict=False):
            there, streamed = (np.median([epoch[1] for epoch in p["epochs"].get(stage, [[0, np.nan]])]) for p in pair)
            found.setdefault(f"fit, {stage.replace('_', ' ')}", []).append(float(there / streamed))
    for what in ("zarr", "dask"):
        for there, lazy in zip(of("transform", "array"), of("transform", what), strict=False):
            found.setdefault(f"transform of {what}", []).append(there["cpu"] / lazy["cpu"])
    return found


def goals(points: Sequence[dict[str, Any]]) -> list[Goal]:
    """Return the goals with what was found: of speeds the median of the runs."""
    streamed = [p for p in points if p["kind"] == "fit" and p["what"] == "streamed"]
    found = [Goal("fit, peak of resident memory, MiB", max((p["peak"] for p in streamed), default=None), "<=", MEMORY)]
    speeds = {name: float(np.median(each)) for name, each in shares(points).items()}
    for name in ("fit, pretraining", "fit, batch removal"):
        found.append(Goal(f"{name}: speed beside cells in memory", speeds.get(name), ">=", SHARE))
    for what in ("zarr", "dask"):
        share = speeds.get(f"transform of {what}")
        extra = [p["extra"] for p in points if p["kind"] == "transform" and p["what"] == what]
        found.append(Goal(f"transform of {what}: speed beside an array", share, ">=", INFERENCE_SHARE))
        found.append(Goal(f"transform of {what}: memory on top, MiB", max(extra, default=None), "<=", EXTRA))
    return found


def tables(results: dict[str, Any]) -> str:
    """Return the tables and the goals."""
    points = results["points"]
    rows = [["fit", "cells", "GB", "peak, MiB", "stage 1, s/epoch", "stage 2, s/epoch", "in all, s", "load"]]
    for p in (p for p in points if p["kind"] == "fit"):
        epochs = [
            f"{np.median([e[1] for e in p['epochs'].get(s, [[np.nan] * 2])]):.2f}"
            for s in ("pretraining", "batch_removal")
        ]
        rows.append(
            [
                p["what"],
                f"{p['cells']:,}",
                number(p["bytes"] / 1e9),
                number(p["peak"]),
                *epochs,
                number(p["wall"]),
                str(round(p["load"], 1)),
            ]
        )
    text = common.table(rows)
    rows = [["drawing alone", "cells/s wall", "cells/s of processor time", "peak, MiB", "load"]]
    for p in (p for p in points if p["kind"] == "order"):
        for name in ("streamed", "at random"):
            rows.append([name, *(number(x) for x in p[name]), number(p["peak"]), str(round(p["load"], 1))])
    text += "\n\n" + common.table(rows)
    rows = [["transform", "cells", "GB", "cells/s of processor time", "cells/s wall", "memory on top, MiB", "load"]]
    for p in (p for p in points if p["kind"] == "transform"):
        speeds = [number(p["cells"] / p[name]) for name in ("cpu", "wall")]
        rows.append(
            [
                p["what"],
                f"{p['cells']:,}",
                number(p["bytes"] / 1e9),
                *speeds,
                number(p["extra"]),
                str(round(p["load"], 1)),
            ]
        )
    text += "\n\n" + common.table(rows)
    rows = [["speed beside memory", "run by run"]]
    rows += [[name, ", ".join(f"{share:.2f}" for share in found)] for name, found in shares(points).items()]
    return f"{text}\n\n{common.table(rows)}\n\n```text\n{common.goals_text(goals(points))}\n```"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the cells, measure, print the tables, keep the figures."""
    parser = common.parser(__doc__, "large_data")
    common.add_sizes(parser, SIZES)
    parser.add_argument("--keep", action="store_true", help="leave the cells in --out, and use those that are there")
    parser.add_argument(
        "--parts", nargs="*", default=["fit", "order", "transform"], choices=["fit", "order", "transform"]
    )
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.point:
        point = json.loads(args.point)
        warnings.simplefilter("ignore")
        print(json.dumps(RUNS[point["kind"]](point)))
        return
    sizes = common.sizes(args, SIZES, QUICK)
    n = (
        max(2 * sizes["part"], int(sizes["gigabytes"] * 1e9) // (4 * sizes["side"] ** 2))
        // sizes["chunk"]
        * sizes["chunk"]
    )
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.out / "cells.zarr"
    if 4 * n * sizes["side"] ** 2 > 0.9 * shutil.disk_usage(args.out).free and not folder.exists():
        raise SystemExit(f"{args.out} has no room for {sizes['gigabytes']} GB; choose fewer --gigabytes")
    results: dict[str, Any] = {"settings": {**sizes, **FIT}, "machine": common.machine(), "points": []}
    try:
        if not (args.keep and (folder / "cell_type.npy").exists()):
            write_cells(folder, n, sizes["side"], sizes["chunk"])
        given = {**sizes, "folder": str(folder), "quick": args.quick}
        if "transform" in args.parts:
            run_point({"kind": "model", **given}, sizes["threads"])
        for run in range(sizes["runs"]):
            for kind, whats in (
                ("fit", ("streamed", "memory")),
                ("order", ("",)),
                ("transform", ("array", "zarr", "dask")),
            ):
                for what in (whats if run % 2 == 0 else reversed(whats)) if kind in args.parts else ():
                    results["points"].append(run_point({"kind": kind, "what": what, **given}, sizes["threads"]))
                    common.write_json(args.out / "results.json", results)
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    common.write(args.out, tables(results), results)


if __name__ == "__main__":
    main()

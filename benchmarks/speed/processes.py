"""Time training steps of one process against two that train together, and count what they exchange.

    python benchmarks/speed/processes.py            # some minutes on two cores; a core per process
    python benchmarks/speed/processes.py --quick    # does it run?

Strong scaling: the same minibatch, shared. Weak scaling: as many cells for each process as one had. The same processes
do all of it in turn, in changing order, one thread each; figures are medians and quartiles over turns. Other work on
the machine slows one process and two by different amounts, so processor time stands beside wall time: the processor
time of two over that of one is what sharing costs, whatever else runs. Bytes are those that each process gives into
exchanges; a ring moves 2 (n - 1) / n of them through each.

Bytes at the published size are counted in one process, whose exchanges answer as if there were another one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common
from speed.steps import Steps

from skbegan.core.parallel import Group

SIZES: dict[str, int] = {"side": 32, "base_width": 16, "n_features": 128, "minibatch_size": 64}
QUICK = {"side": 16, "base_width": 4, "n_features": 16, "minibatch_size": 8}
PUBLISHED_SIZES = {"side": 128, "base_width": 64, "n_features": 512, "minibatch_size": 4}
STAGES = ("stage 1", "default stage 2", "published stage 2")
CPU = torch.device("cpu")
KINDS = ("gradients", "statistics", "features")


class Echo(Group):
    """Two processes of which the other one always has what this one has."""

    def sum_(self, values: Tensor, kind: str = "other") -> Tensor:
        self.sent[kind] += values.nbytes
        return values.mul_(self.world)

    def collect(self, values: Tensor, kind: str) -> list[Tensor]:
        self.sent[kind] += values.nbytes
        return [values.detach()] * self.world


class Shared:
    """A stage whose steps the processes of a group share."""

    def __init__(self, stage: str, sizes: dict[str, int], group: Group) -> None:
        steps = Steps(sizes | {"minibatch_size": 2 * sizes["minibatch_size"]}, CPU)
        self.plan, self.cells = steps.plan(stage, torch.float32)
        self.group = self.plan.engine.group = group
        for network in self.plan.networks.values():
            group.join(network)

    def step(self, size: int) -> None:
        """Make a step with so many cells of all processes together."""
        self.plan.step(self.cells.take(torch.arange(size), self.group.rank, self.group.world), 0.5)

    def meet(self) -> None:
        """Take up the networks of the first process, after it has gone on by itself."""
        for network in self.plan.networks.values():
            self.group.take_over(network)


def bytes_per_step(stage: str, sizes: dict[str, int]) -> dict[str, int]:
    """Count what each of two processes gives into the exchanges of one step."""
    group = Echo(0, 2)
    Shared(stage, sizes, group).step(sizes["minibatch_size"])
    return {kind: group.sent[kind] for kind in KINDS}


# Times ----------------------------------------------------------------------------------------------------------------


def _work(rank: int, folder: str, sizes: dict[str, int], turns: int, repeats: int, stages: Sequence[str]) -> None:
    torch.set_num_threads(1)
    meeting = (Path(folder) / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    group, size = Group(rank, 2), sizes["minibatch_size"]
    found: dict[str, Any] = {}
    for stage in stages:
        shared = Shared(stage, sizes, group)
        ways = {"one": (size, True), "strong": (size, False), "weak": (2 * size, False)}
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(turns + 1):
            order = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
            for way in order:
                cells, alone = ways[way]
                dist.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                if rank == 0 or not alone:
                    with group.alone() if alone else nullcontext():
                        for _ in range(repeats):
                            shared.step(cells)
                dist.barrier()
                spent = time.perf_counter() - wall, time.process_time() - cpu
                if turn > 0:
                    taken[way].append((spent[0] / repeats, spent[1] / repeats))
            shared.meet()
        found[stage] = taken
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def measure(sizes: dict[str, int], turns: int, repeats: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return wall and processor seconds per step of each stage and way, turn by turn."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (folder, sizes, turns, repeats, STAGES), nprocs=2)
        first, second = (json.loads((Path(folder) / f"{rank}.json").read_text("utf-8")) for rank in (0, 1))
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for stage in STAGES:
        found[stage] = {}
        for way, of_first in first[stage].items():
            of_second = second[stage][way]
            cpu = [a[1] + (0.0 if way == "one" else b[1]) for a, b in zip(of_first, of_second, strict=True)]
            found[stage][way] = {"wall": [a[0] for a in of_first], "cpu": cpu}
    return found


def quartiles(values: Any) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def times_table(seconds: dict[str, Any]) -> str:
    """Return the table of times: speed of two processes in that of one, and processor time per cell likewise."""
    rows = [["stage", "scaling", "ms per step, one", "two", "times as fast per cell", "processor time per cell"]]
    for stage, ways in seconds.items():
        one = {clock: np.array(ways["one"][clock]) for clock in ("wall", "cpu")}
        for way, share in (("strong", 1.0), ("weak", 2.0)):
            two = {clock: np.array(ways[way][clock]) for clock in ("wall", "cpu")}
            medians = (f"{1e3 * np.median(clocks['wall']):.0f}" for clocks in (one, two))
            faster, cost = share * one["wall"] / two["wall"], two["cpu"] / one["cpu"] / share
            rows.append([stage, way, *medians, quartiles(faster), quartiles(cost)])
    return common.table(rows)


def bytes_table(counted: dict[str, dict[str, int]]) -> str:
    """Return the table of megabytes per step."""
    rows = [["MB per step and process", *KINDS, "together"]]
    for stage, sent in counted.items():
        rows.append([stage, *(f"{sent[kind] / 1e6:.3g}" for kind in KINDS), f"{sum(sent.values()) / 1e6:.0f}"])
    return common.table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, keep the figures."""
    parser = common.parser(__doc__, "processes")
    common.add_sizes(parser, SIZES)
    parser.add_argument("--turns", type=int, default=12, metavar="N", help="default: 12")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="steps per turn (default: 3)")
    parser.add_argument("--no-bytes", action="store_true", help="do not count bytes at the published size")
    args = parser.parse_args(arguments)
    sizes, about = common.sizes(args, SIZES, QUICK), common.machine()
    seconds = measure(sizes, 2 if args.quick else args.turns, 1 if args.quick else args.repeats)
    about["load after"] = common.machine().get("load before")
    large = sizes if args.quick else PUBLISHED_SIZES
    counted = {} if args.no_bytes else {stage: bytes_per_step(stage, large) for stage in STAGES}
    text = f"{about}\n\n{sizes}\n\n{times_table(seconds)}"
    if counted:
        text += f"\n\nCounted on networks of {large}:\n\n{bytes_table(counted)}"
    kept = {"machine": about, "sizes": sizes, "seconds": seconds, "bytes": {"sizes": large, "sent": counted}}
    common.write(args.out, text, kept)


if __name__ == "__main__":
    main()

"""Damage files at random and read them: ``python tests/slow/fuzz_readers.py 10000 ["MATLAB v7.3" ...]``.

Each kind is read in processes of their own, so that a crash or a hang is counted and the next one goes on. Prints one
row of a table per kind and exits with 1 if anything crashed, hung, took much memory, raised anything but the readers'
own ValueError, or was silently wrong. The number of a damaged file is its seed, and makes it again.
"""

from __future__ import annotations

import collections
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fuzzing import mutate, outcome, targets

LIMIT_SECONDS = 10.0
LIMIT_MB = 300  # over what the process had before


def peak_mb() -> float:
    """The most memory that this process has had since the last call, where the system tells (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return int(line.split()[1]) / 1024


def work(name: str, first: int, stop: int, sender: Connection) -> None:
    """Read mutants and send (seed, outcome, seconds, MB) for each."""
    target = targets()[name]
    with tempfile.TemporaryDirectory() as folder:
        outcome(target, target.files[0], Path(folder) / "damaged")  # imports
        peak_mb()
        before = peak_mb()
        for seed in range(first, stop):
            rng = np.random.default_rng(seed)
            content = mutate(target.files[int(rng.integers(len(target.files)))], rng)
            start = time.perf_counter()
            result = outcome(target, content, Path(folder) / "damaged")
            seconds = time.perf_counter() - start
            sender.send((seed, result, seconds, peak_mb() - before))


def fuzz(name: str, n: int) -> tuple[str, bool]:
    """Return a row of the table, and whether all went well."""
    counts: collections.Counter[str] = collections.Counter()
    odd: list[str] = []
    slowest = most = 0.0
    seed = 0
    context = multiprocessing.get_context("spawn")
    while seed < n:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(name, seed, n, sender))
        process.start()
        sender.close()
        patience = 120.0  # imports
        while seed < n:
            try:
                if not receiver.poll(patience):
                    counts["hangs"] += 1
                    odd.append(f"{seed}: hang")
                    break
                _, result, seconds, mb = receiver.recv()
            except EOFError:
                process.join()
                counts["crashes"] += 1
                odd.append(f"{seed}: crash, exit code {process.exitcode}")
                break
            patience = LIMIT_SECONDS
            slowest, most = max(slowest, seconds), max(most, mb)
            kind = result if result in ("refused", "right", "silently wrong") else "other errors"
            counts["much memory"] += mb > LIMIT_MB
            counts[kind] += 1
            if mb > LIMIT_MB or seconds > 1:
                odd.append(f"{seed}: {mb:.0f} MB, {seconds:.1f} s, {result}")
            if kind not in ("refused", "right"):
                odd.append(f"{seed}: {result}")
            seed += 1
        else:
            process.join()
            break
        process.kill()
        process.join()
        seed += 1
    columns = ("refused", "right", "crashes", "hangs", "much memory", "other errors", "silently wrong")
    row = f"| {name} | {n} | " + " | ".join(str(counts[column]) for column in columns)
    print("\n".join(odd[:20]), file=sys.stderr)
    return f"{row} | {slowest:.2f} | {most:.0f} |", not any(counts[column] for column in columns[2:])


def main() -> int:
    n = int(sys.argv[1])
    names = sys.argv[2:] or list(targets())
    columns = (
        "refused | read right | crashes | hangs | over 300 MB | other errors | silently wrong | slowest, s | most MB"
    )
    print(f"| kind | mutants | {columns} |")
    fine = True
    for name in names:
        row, well = fuzz(name, n)
        print(row, flush=True)
        fine &= well
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

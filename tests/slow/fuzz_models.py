"""Damage saved models and checkpoints and read them: ``python tests/slow/fuzz_models.py 10000 ["checkpoint" ...]``.

Four kinds: damaged at random (bits, bytes, lengths, pieces cut out, put in and doubled, ends cut off), and forged, that
is changed within and sealed with a digest that agrees (any value of the JSON document, names, shapes, types and numbers
of tensors, declared shapes for which nothing is stored). Damaged ones must be refused or be the original; forged ones
must be refused or be models and fits that work.

Each kind is read in a process of its own, so that a crash or a hang is counted and the next one goes on. Prints one row
of a table per kind and exits with 1 if anything crashed, hung, took more than ten times its file and 50 MB or more than
a second of the processor, raised anything but our own errors, or was silently wrong. The number of a damaged file is
its seed, and makes it again. The second that a load may take does not hold for forged checkpoints, with which a stage
is trained on.
"""

from __future__ import annotations

import collections
import gc
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from fuzz_readers import peak_mb
from model_fuzzing import outcome, read, targets

PATIENCE, LIMIT_SECONDS = 20.0, 1.0
KINDS = ("refused", "refused in use", "right")
FAULTS = ("crashes", "hangs", "much memory", "over 1 s", "other errors", "silently wrong")


def work(name: str, first: int, stop: int, sender: Connection) -> None:
    """Read mutants and send (seed, outcome, seconds of the processor, MB, MB of the file) for each."""
    import torch

    torch.set_num_threads(1)
    target = targets()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged"
        for sound in target.files * 2:  # imports, and what is kept to compare with
            path.write_bytes(sound)
            assert read(target, sound, path) == "right"
        gc.collect()
        gc.freeze()  # so that the collections below look at what the mutants left only
        for seed in range(first, stop):
            gc.collect()
            peak_mb()
            before = peak_mb()
            start = time.process_time()
            result, size = outcome(target, seed, path)
            sender.send((seed, result, time.process_time() - start, peak_mb() - before, size / 2**20))


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
        patience = 180.0  # imports
        while seed < n:
            try:
                if not receiver.poll(patience):
                    counts["hangs"] += 1
                    odd.append(f"{seed}: hang")
                    break
                _, result, seconds, mb, size = receiver.recv()
            except EOFError:
                process.join()
                counts["crashes"] += 1
                odd.append(f"{seed}: crash, exit code {process.exitcode}")
                break
            patience = PATIENCE
            slowest, most = max(slowest, seconds), max(most, mb)
            kind = result if result in KINDS else "silently wrong" if "silently" in result else "other errors"
            much, slow = mb > 10 * size + 50, seconds > LIMIT_SECONDS and name != "checkpoint, forged"
            counts[kind] += 1
            counts["much memory"] += much
            counts["over 1 s"] += slow
            if much or slow or kind not in KINDS:
                odd.append(f"{seed}: {mb:.0f} MB, {seconds:.1f} s, {result}")
            seed += 1
        else:
            process.join()
            break
        process.kill()
        process.join()
        seed += 1
    row = f"| {name} | {n} | " + " | ".join(str(counts[column]) for column in (*KINDS, *FAULTS))
    print("\n".join(odd[:20]), file=sys.stderr)
    return f"{row} | {slowest:.2f} | {most:.0f} |", not any(counts[column] for column in FAULTS)


def main() -> int:
    """Read the number and the kinds from the command line and fuzz."""
    n = int(sys.argv[1])
    names = sys.argv[2:] or ["model file", "model file, forged", "checkpoint", "checkpoint, forged"]
    print(f"| kind | mutants | {' | '.join((*KINDS, *FAULTS))} | slowest, s | most MB |")
    fine = True
    for name in names:
        row, well = fuzz(name, n)
        print(row, flush=True)
        fine &= well
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

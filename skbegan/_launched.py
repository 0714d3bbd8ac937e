"""What torchrun tells a process that it has started, read without importing torch."""

from __future__ import annotations

import os


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many torchrun has started; ``(0, 1)`` without it."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

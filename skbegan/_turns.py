"""Processes that take turns: one does what all of them need, the others wait until it is done or has died."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from skbegan._progress import duration, log

PATIENCE = 600.0  # seconds without a sign of life until a holder counts as dead
_BEAT = 30.0  # seconds between two signs
_LOOK = 0.5  # seconds between two looks at a lock
_WARN_AFTER = 1.0  # seconds


@contextmanager
def turn(path: Path, what: str, *, verbose: int = 0, patience: float = PATIENCE, beat: float = _BEAT) -> Iterator[str]:
    """Hold the lock `path` while the block runs, after those who hold it before.

    The lock is the operating system's (flock, or its like on Windows), so that it is free when its holder dies, however
    that ends. Where a file system has none, the file itself is the lock, and a holder that died on another machine
    leaves it. Therefore a holder also writes a sign of life beside the lock; who waits looks whether it changes, by its
    own clock, and waits as long as it does. The empty lock file stays: removing it while somebody opens it would let
    two in.

    Parameters
    ----------
    path : Path
        Its folder is made.
    what : str
        What the block does, for messages.
    verbose : int, default=0
        Whether to log that there is something to wait for.
    patience : float, default=600
        Seconds without a sign of life until the block runs without the lock.
    beat : float, default=30
        Seconds between two signs.

    Yields
    ------
    reason : str
        Why the block runs without the lock, or nothing if it has it.
    """
    life = path.with_suffix(".alive")
    lock = FileLock(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = _acquired(lock, life, what, verbose, patience, min(beat, patience))
    except (OSError, NotImplementedError) as error:
        reason = f"{path} cannot be locked ({error}), so that other processes may do the same at the same time"
    if reason:
        yield reason
        return
    done = threading.Event()
    heart = threading.Thread(target=_show_life, args=(life, done, beat), name="skbegan-turn", daemon=True)
    try:
        _write_name(life)
        heart.start()
        yield ""
    finally:
        done.set()
        if heart.ident is not None:
            heart.join()
        with suppress(OSError):
            life.unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


def _acquired(lock: FileLock, life: Path, what: str, verbose: int, patience: float, slice_: float) -> str:
    """Wait for the lock; return nothing when it is held, else why it is not waited for any longer."""
    sign, since, told, pause = _sign(life), time.monotonic(), False, min(_WARN_AFTER, slice_)
    while True:
        try:
            lock.acquire(timeout=pause, poll_interval=min(_LOOK, pause))
            return ""
        except Timeout:
            pause = slice_
        if (now := _sign(life)) != sign:
            sign, since = now, time.monotonic()
        who = sign[0] or "another process"
        if verbose > 0 and not told:
            log(f"{what} is being done by {who}; waiting for it")
            told = True
        if time.monotonic() - since >= patience:
            return (
                f"{who} holds {lock.lock_file} and gave no sign of life for {duration(patience)}, so that this process "
                "did not wait for it any longer; delete the file if that process is gone"
            )


def _show_life(path: Path, done: threading.Event, beat: float) -> None:
    """Give the file another time now and then: its content is never half-written for who reads it."""
    while not done.wait(beat):
        try:
            os.utime(path)
        except OSError:
            _write_name(path)


def _write_name(path: Path) -> None:
    with suppress(OSError):
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def _sign(path: Path) -> tuple[str, int]:
    """Return who is alive and a number that changes as long as it is so."""
    try:
        return path.read_text(encoding="utf-8", errors="replace"), path.stat().st_mtime_ns
    except OSError:
        return "", 0

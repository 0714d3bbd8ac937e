"""A file from which an interrupted stage goes on, that is either whole or refused."""

from __future__ import annotations

import hashlib
import io
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_MAGIC = b"skbegan checkpoint 1\n"
_STALE = 3600.0  # seconds: a draft is written in one or two
_TRIES, _PAUSE = 6, 0.05  # seconds


class Checkpoint:
    """A checkpoint file; None as its path makes every call a no-op.

    The file holds a digest of its content. It is written beside its place under a name of its own, flushed to the disk,
    and moved there in one step, so that several fits may share a folder, also two of the same name at the same time,
    and a crash leaves the last good file.

    Parameters
    ----------
    path : Path or None
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the folder and try to write in it.

        Raises
        ------
        ValueError
            If that fails; better now than after the first epoch.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            trial = self._draft(self.path)
            self._write(b"", trial)
            trial.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"checkpoint_dir={str(self.path.parent)!r} cannot be written to ({error})") from error
        # Drafts of a process that was killed while it wrote; a young one may be that of another fit.
        for draft in self.path.parent.glob(".began-*.tmp"):
            with suppress(OSError):
                if time.time() - draft.stat().st_mtime > _STALE:
                    draft.unlink()

    def write(self, state: dict[str, Any]) -> str | None:
        """Write a state; return what went wrong, if the disk refused it, and leave the last good file then."""
        if self.path is None:
            return None
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        try:
            self._write(_MAGIC + hashlib.sha256(content).digest() + content, self.path)
        except OSError as error:
            return f"the checkpoint {self.path} could not be written ({error}); training goes on without"
        return None

    @staticmethod
    def _draft(path: Path) -> Path:
        return path.with_name(f".{path.name.removeprefix('.')}.{uuid.uuid4().hex[:8]}.tmp")

    @classmethod
    def _write(cls, content: bytes, path: Path) -> None:
        draft = cls._draft(path)
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _patiently(lambda: draft.replace(path))
        finally:
            draft.unlink(missing_ok=True)

    def read(self, stage: str, epochs: int) -> dict[str, Any] | None:
        """Return the state in the file, or None if there is no file.

        Parameters
        ----------
        stage : str
            That the state must be of.
        epochs : int
            Of the stage; a state cannot have more.

        Raises
        ------
        ValueError
            If the file is damaged or holds what no training leaves.
        """
        if self.path is None:
            return None
        try:
            content = _patiently(self.path.read_bytes)
        except FileNotFoundError:  # also when another fit, which is done, has just removed it
            return None
        except OSError as error:
            raise self.refusal(str(error)) from None
        try:
            head = len(_MAGIC) + 32
            if not content.startswith(_MAGIC):
                raise ValueError("it does not begin as a checkpoint of this version does")
            if hashlib.sha256(content[head:]).digest() != content[len(_MAGIC) : head]:
                raise ValueError("its content does not match its digest")
            state = torch.load(io.BytesIO(content[head:]), map_location="cpu", weights_only=True)
            if state["stage"] != stage or not 0 <= state["epoch"] < epochs:
                raise ValueError(f"it is of stage {state['stage']!r}, epoch {state['epoch']!r}")
            kept = [] if state["best"] is None else [state["best"]]
            if not all(map(_is_finite, [*state["networks"].values(), *kept])):
                raise ValueError("it holds weights that are not finite")
        except Exception as error:
            # PyTorch's own messages advise to load the file as a pickle, which could run code in it.
            raise self.refusal(str(error) if type(error) is ValueError else type(error).__name__) from None
        return dict(state)

    def refusal(self, reason: str) -> ValueError:
        """Return the error that says why the file is of no use, and what to do."""
        return ValueError(f"the checkpoint {self.path} cannot be read ({reason}); delete it to train from the start")

    def remove(self) -> None:
        """Remove the file if it is there and can be removed: a fit that is done is not lost for it."""
        if self.path is not None:
            path = self.path
            with suppress(OSError):
                _patiently(lambda: path.unlink(missing_ok=True))


def _patiently(action: Callable[[], T]) -> T:
    """Return what `action` does, tried again for a moment: Windows refuses while another process has the file open."""
    for _ in range(_TRIES - 1):
        try:
            return action()
        except PermissionError:
            time.sleep(_PAUSE)
    return action()


def _is_finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())

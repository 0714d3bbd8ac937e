"""A file from which an interrupted stage goes on, that is either whole or refused."""

from __future__ import annotations

import hashlib
import io
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skbegan._atomic import write_whole

_MAGIC = b"skbegan checkpoint 1\n"


class Checkpoint:
    """A checkpoint file; None as its path makes every call a no-op.

    The file holds a digest of its content. It is written beside its place under a name of its own, flushed to the disk,
    and moved there in one step, so that several fits may share a folder and a crash leaves the last good file.

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
            trial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.trial")
            write_whole(trial, b"")
            trial.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"checkpoint_dir={str(self.path.parent)!r} cannot be written to ({error})") from error

    def write(self, state: dict[str, Any]) -> str | None:
        """Write a state; return what went wrong, if the disk refused it, and leave the last good file then."""
        if self.path is None:
            return None
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        try:
            write_whole(self.path, _MAGIC + hashlib.sha256(content).digest() + content)
        except OSError as error:
            return f"the checkpoint {self.path} could not be written ({error}); training goes on without"
        return None

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
        if self.path is None or not self.path.exists():
            return None
        try:
            content = self.path.read_bytes()
            head = len(_MAGIC) + 32
            if not content.startswith(_MAGIC):
                raise ValueError("it does not begin as a checkpoint of this version does")
            if hashlib.sha256(content[head:]).digest() != content[len(_MAGIC) : head]:
                raise ValueError("its content does not match its digest")
            state = torch.load(io.BytesIO(content[head:]), map_location="cpu", weights_only=True)
            if state["stage"] != stage or not 0 <= state["epoch"] < epochs:
                raise ValueError(f"it is of stage {state['stage']!r}, epoch {state['epoch']!r}")
            if not all(map(_is_finite, state["networks"].values())):
                raise ValueError("it holds weights that are not finite")
        except Exception as error:
            # PyTorch's own messages advise to load the file as a pickle, which could run code in it.
            reason = str(error) if type(error) in (ValueError, OSError) else type(error).__name__
            raise ValueError(
                f"the checkpoint {self.path} cannot be read ({reason}); delete it to train from the start"
            ) from None
        return dict(state)

    def remove(self) -> None:
        """Remove the file if it is there."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _is_finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())

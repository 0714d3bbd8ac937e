"""A file from which an interrupted stage goes on, that is either whole or refused."""

from __future__ import annotations

import hashlib
import io
import math
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skbegan.stored.atomic import patiently, write_whole

_MAGIC = b"skbegan checkpoint 1\n"
_STALE = 3600.0  # seconds: a draft is written in one or two


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
            trial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
            write_whole(trial, b"")
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
        if self.path is None:
            return None
        try:
            content = patiently(self.path.read_bytes)
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
            if state["stage"] != stage or type(state["epoch"]) is not int or not 0 <= state["epoch"] < epochs:
                raise ValueError(f"it is of stage {str(state['stage'])[:40]!r}, epoch {str(state['epoch'])[:40]}")
            _check_history(state)
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
                patiently(lambda: path.unlink(missing_ok=True))


def _check_history(state: dict[str, Any]) -> None:
    history, epochs = state["history"], state["history"]["epoch"]
    if not epochs == sorted(set(epochs)) or not all(type(n) is int and 1 <= n <= state["epoch"] + 1 for n in epochs):
        raise ValueError("its history is not one of its epochs")
    for name, losses in history.items():
        if len(losses) != len(epochs) or not all(isinstance(value, int | float) for value in losses):
            raise ValueError(f"its history of {str(name)[:40]!r} is not one number per epoch")
    numbers = state["best_merit"], state["rollbacks"], state["stopped"]
    if tuple(map(type, numbers)) != (float, int, bool) or math.isnan(numbers[0]) or numbers[1] < 0:
        raise ValueError("its numbers of the best epoch and of rollbacks are none")
    if not all(tuple(map(type, event)) == (str, str, bool) for event in state["events"]):
        raise ValueError("its events are none")


def check_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Check a saved state of Adam against the optimizer that is to take it up.

    PyTorch does not: moments of other shapes are read beyond their end by the fused kernel.

    Raises
    ------
    ValueError, LookupError, TypeError
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(saved["param_groups"]) != len(groups):
        raise ValueError("its optimizer has other groups")
    for group, found in zip(groups, saved["param_groups"], strict=True):
        if group.keys() != found.keys():
            raise ValueError("the groups of its optimizer have other entries")
        for name, value in group.items():
            if type(found[name]) is not type(value):
                raise ValueError(f"{name} of its optimizer is a {type(found[name]).__name__}")
            moves = name in ("lr", "eps", "n_steps")
            if not (0 <= found[name] < math.inf if moves else found[name] == value):
                raise ValueError(f"{name} of its optimizer is {str(found[name])[:40]}")
    for index, moments in saved["state"].items():
        shape, dtype = parameters[index].shape, parameters[index].dtype
        expected = {"step": (torch.Size(), torch.float32), "exp_avg": (shape, dtype), "exp_avg_sq": (shape, dtype)}
        if {name: (value.shape, value.dtype) for name, value in moments.items()} != expected:
            raise ValueError(f"its optimizer has other moments of parameter {index}")
        if not _is_finite(moments) or bool((moments["exp_avg_sq"] < 0).any()) or not moments["step"] >= 0:
            raise ValueError(f"its optimizer has moments of parameter {index} that are not finite")


def check_plan_state(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Check what else a stage keeps: the same entries as it has now, and finite numbers.

    Raises
    ------
    ValueError
    """
    if saved.keys() != current.keys():
        raise ValueError("the state of its stage has other entries")
    for name, value in saved.items():
        if None not in (value, current[name]) and type(value) is not type(current[name]):
            raise ValueError(f"{name} of its stage is a {type(value).__name__}")
        if not _numbers_are_finite(value):
            raise ValueError(f"{name} of its stage is not finite")


def _numbers_are_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_numbers_are_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_numbers_are_finite, value))
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def _is_finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())

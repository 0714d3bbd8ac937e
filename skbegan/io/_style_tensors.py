"""What the batches of a model do to target images, as tensors of its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from skbegan.restyling import TargetStyles

STYLE = "style."


def styles_as_tensors(styles: TargetStyles | None) -> dict[str, np.ndarray]:
    """Return named tensors of float32, none where there are no styles."""
    if styles is None:
        return {}
    parts = {name: getattr(styles, name) for name in ("centre", "shift", "log_gain", "measured")}
    return {f"{STYLE}{name}": np.ascontiguousarray(part, dtype=np.float32) for name, part in parts.items()}


def style_tensors(file: Any, side: int, n_channels: int, n_batches: int) -> dict[str, np.ndarray]:
    """Read them from an open safetensors file; nothing where it has none.

    Raises
    ------
    ValueError
        For other names, shapes or types.
    """
    found = {name for name in file.keys() if name.startswith(STYLE)}
    if not found:
        return {}
    expected = {
        f"{STYLE}centre": [n_channels, side, side],
        f"{STYLE}shift": [n_batches, n_channels, side, side],
        f"{STYLE}log_gain": [n_batches, n_channels, side, side // 2 + 1],
        f"{STYLE}measured": [n_batches],
    }
    if odd := sorted(found ^ expected.keys()):
        raise ValueError(f"missing or unexpected among its tensors: {', '.join(odd[:5])}")
    for name, shape in expected.items():
        dtype, there = file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()
        if dtype != "F32" or there != shape:
            raise ValueError(f"tensor {name} should be F32 of shape {shape}, found {dtype} of {there}")
    return {name: file.get_tensor(name) for name in expected}


def styles_of(tensors: Mapping[str, np.ndarray]) -> TargetStyles | None:
    """Return what :func:`styles_as_tensors` was given."""
    if not tensors:
        return None
    parts = {name.removeprefix(STYLE): part for name, part in tensors.items()}
    return TargetStyles(**parts | {"measured": parts["measured"] > 0})

"""skbegan: batch-free profiles and phase images of single cells, as a scikit-learn transformer on a PyTorch core.

The face of the package; torch is loaded only when a model is trained or used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from skbegan.estimator import PUBLISHED, BeGANTransformer
    from skbegan.keras_import import load_keras_generator
    from skbegan.persistence import load, save

__all__ = [
    "PUBLISHED",
    "BeGANTransformer",
    "__version__",
    "datasets",
    "load",
    "load_keras_generator",
    "metrics",
    "save",
]

_HOMES = {
    "BeGANTransformer": "skbegan.estimator",
    "PUBLISHED": "skbegan.estimator",
    "load": "skbegan.persistence",
    "save": "skbegan.persistence",
    "load_keras_generator": "skbegan.keras_import",
}
_ROOMS = ("datasets", "metrics", "plotting")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"skbegan.{name}")
    else:
        raise AttributeError(f"module 'skbegan' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})

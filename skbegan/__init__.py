"""skbegan: batch-free profiles and phase images of single cells, as a scikit-learn transformer on a PyTorch core.

Public names are imported when they are first used; torch is loaded only when a model is trained or used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from skbegan._version import __version__, show_versions

if TYPE_CHECKING:
    from skbegan import datasets, metrics, plotting, report
    from skbegan.config import PUBLISHED, OnlineRemoval, ProfileAlignment, PublishedRemoval
    from skbegan.estimator import BeGANTransformer
    from skbegan.io.anndata import to_anndata
    from skbegan.io.images import write_images
    from skbegan.io.keras import load_keras_generator
    from skbegan.io.model_file import load, save
    from skbegan.io.profiles import write_profiles
    from skbegan.presets import PRESETS
    from skbegan.shift.checking import UnusableBatchWarning

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "BeGANTransformer",
    "OnlineRemoval",
    "ProfileAlignment",
    "PublishedRemoval",
    "UnusableBatchWarning",
    "__version__",
    "datasets",
    "load",
    "load_keras_generator",
    "metrics",
    "plotting",
    "report",
    "save",
    "show_versions",
    "to_anndata",
    "write_images",
    "write_profiles",
]

_HOMES = {
    "BeGANTransformer": "skbegan.estimator",
    "OnlineRemoval": "skbegan.config",
    "PRESETS": "skbegan.presets",
    "PUBLISHED": "skbegan.config",
    "ProfileAlignment": "skbegan.config",
    "PublishedRemoval": "skbegan.config",
    "UnusableBatchWarning": "skbegan.shift.checking",
    "load": "skbegan.io.model_file",
    "load_keras_generator": "skbegan.io.keras",
    "save": "skbegan.io.model_file",
    "to_anndata": "skbegan.io.anndata",
    "write_images": "skbegan.io.images",
    "write_profiles": "skbegan.io.profiles",
}
_ROOMS = ("datasets", "metrics", "plotting", "report")


if not TYPE_CHECKING:  # type checkers would take every name for a public one

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
    return sorted(__all__)

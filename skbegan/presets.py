"""Presets: sets of parameters of the sizes that people start from."""

from __future__ import annotations

from typing import Any

from skbegan.config import PUBLISHED

PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "base_width": 16,
        "n_features": 128,
        "pretrain_epochs": 20,
        "removal_epochs": 40,
    },
    "balanced": {
        "base_width": 32,
        "n_features": 256,
        "pretrain_epochs": 50,
        "removal_epochs": 150,
    },
    "published": dict(PUBLISHED),
}
"""Parameters by name of the preset: ``BeGANTransformer(**PRESETS["laptop"])``. They are plain dicts, to be changed.

Sizes and epochs only, all else are the defaults; ``"published"`` is :data:`~skbegan.PUBLISHED`, the original recipe
with the weights of its losses.

``"laptop"``
    Images of 32 or 64 pixels. The sizes of the README's table of 1,653 real cells (32 pixels, three seeds, with the
    defaults of then): linear leakage at chance, cell type on an unseen batch 0.64. 11 minutes for 2,000 cells of 32
    pixels, 20 minutes for 1,000 cells of 64.
``"balanced"``
    Images of 64 or 128 pixels. 88 minutes for 1,000 cells of 64 pixels, in bfloat16. Not audited yet.
``"published"``
    Images of 128 pixels. 5 hours for as few as 150 cells: for more a CUDA card. Not run to its end at this size, and
    not audited.

Times are estimates, of :meth:`~skbegan.BeGANTransformer.estimate_cost` on one thread of a shared Intel Xeon, and grow
in proportion to the cells. Ask it for those of your cells on your machine.
"""

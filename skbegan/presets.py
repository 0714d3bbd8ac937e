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

===============  ====================  ==============================================================================
preset           images                what was measured
===============  ====================  ==============================================================================
``"laptop"``     32 or 64 pixels       the sizes of the README's table of real cells (1,653 cells of 32 pixels, three
                                       seeds): leakage at chance, cell type on an unseen batch 0.64. Time: see below
``"balanced"``   64 or 128 pixels      time only; no audit yet
``"published"``  128 pixels            time of single steps only: never run to its end at this size, and not audited
===============  ====================  ==============================================================================

Ask :meth:`~skbegan.BeGANTransformer.estimate_cost` what a preset costs with your cells on your machine.
"""

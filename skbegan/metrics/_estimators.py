"""What a fitted model says about cells: the model alone, inside a Pipeline, or found by a search."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.pipeline import Pipeline

from skbegan.metrics._checks import Array


def unwrap(estimator: Any) -> Any:
    """Return the best estimator of a fitted search, else the estimator."""
    return getattr(estimator, "best_estimator_", estimator)


def features_of(estimator: Any, X: ArrayLike) -> Array:
    """Return the features of a transformer, or what a Pipeline hands to its last step where that is no transformer."""
    estimator = unwrap(estimator)
    if not hasattr(estimator, "transform") and isinstance(estimator, Pipeline) and len(estimator) > 1:
        estimator = estimator[:-1]
    if not hasattr(estimator, "transform"):
        raise TypeError(f"{type(estimator).__name__} has no transform, so there are no features to score.")
    return np.asarray(estimator.transform(X))


def images_of(estimator: Any, X: ArrayLike) -> Array | None:
    """Return predicted images, by the first step of a Pipeline that predicts some; None where nothing does."""
    estimator = unwrap(estimator)
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    if not any(hasattr(step, "predict_image") for step in steps):
        return None
    for step in steps:
        if hasattr(step, "predict_image"):
            return np.asarray(step.predict_image(X))
        X = step.transform(X) if hasattr(step, "transform") else X
    return None

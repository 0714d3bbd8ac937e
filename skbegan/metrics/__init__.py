"""How much batch is left, how much biology is kept, how true the images are: numpy in, number out."""

from skbegan.metrics.images import image_error
from skbegan.metrics.probes import batch_leakage, batch_removal_score, cell_type_accuracy, cross_batch_accuracy
from skbegan.metrics.scorers import (
    FeatureScorer,
    batch_removal_scorer,
    cell_type_scorer,
    cross_batch_scorer,
    image_error_scorer,
    leakage_scorer,
)

__all__ = [
    "FeatureScorer",
    "batch_leakage",
    "batch_removal_score",
    "batch_removal_scorer",
    "cell_type_accuracy",
    "cell_type_scorer",
    "cross_batch_accuracy",
    "cross_batch_scorer",
    "image_error",
    "image_error_scorer",
    "leakage_scorer",
]

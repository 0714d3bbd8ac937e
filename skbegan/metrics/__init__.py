"""How much batch is left, how much biology is kept, how true the images are: numpy in, number out."""

from skbegan.metrics.accuracy import cell_type_accuracy, cross_batch_accuracy, cross_batch_gap
from skbegan.metrics.activity import active_features, effective_rank
from skbegan.metrics.auditing import audit
from skbegan.metrics.calibration import leakage_calibration
from skbegan.metrics.images import image_error
from skbegan.metrics.integration import integration_scores
from skbegan.metrics.leakage import batch_leakage, image_leakage
from skbegan.metrics.measurements import cell_measurements
from skbegan.metrics.report import Audit, Measure
from skbegan.metrics.retained import RetainedVariation, retained_variation
from skbegan.metrics.retrieval import cross_batch_precision
from skbegan.metrics.scorers import (
    FeatureScorer,
    batch_removal_scorer,
    cell_type_scorer,
    cross_batch_gap_scorer,
    cross_batch_scorer,
    image_error_scorer,
    image_leakage_scorer,
    leakage_scorer,
)
from skbegan.metrics.tuning import batch_removal_score

__all__ = [
    "Audit",
    "FeatureScorer",
    "Measure",
    "RetainedVariation",
    "active_features",
    "audit",
    "batch_leakage",
    "batch_removal_score",
    "batch_removal_scorer",
    "cell_measurements",
    "cell_type_accuracy",
    "cell_type_scorer",
    "cross_batch_accuracy",
    "cross_batch_gap",
    "cross_batch_gap_scorer",
    "cross_batch_precision",
    "cross_batch_scorer",
    "effective_rank",
    "image_error",
    "image_error_scorer",
    "image_leakage",
    "image_leakage_scorer",
    "integration_scores",
    "leakage_calibration",
    "leakage_scorer",
    "retained_variation",
]

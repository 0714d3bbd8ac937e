"""Figures in scikit-learn's ``Display`` style. Matplotlib is imported when something is drawn, never before.

Every display has a ``from_*`` constructor that draws at once, keeps the data it drew as attributes and can draw again
with ``plot``; ``figure_`` and ``axes_`` hold what was drawn. Nothing here changes matplotlib's settings or backend.
"""

from skbegan.plotting.audit import AuditDisplay
from skbegan.plotting.cells import CellImagesDisplay
from skbegan.plotting.features import FeatureMapDisplay, compare_features
from skbegan.plotting.history import HistoryDisplay

__all__ = ["AuditDisplay", "CellImagesDisplay", "FeatureMapDisplay", "HistoryDisplay", "compare_features"]

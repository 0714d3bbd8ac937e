"""The metrics as scorers for ``GridSearchCV`` and ``cross_validate``, in both metadata-routing modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.metadata_routing import MetadataRequest

from skbegan.labels.arrays import known_labels
from skbegan.metrics._checks import Array, check_labels, digest, known_types
from skbegan.metrics._estimators import features_of, images_of
from skbegan.metrics.accuracy import cell_type_accuracy, cross_batch_accuracy, cross_batch_gap
from skbegan.metrics.images import image_error
from skbegan.metrics.leakage import batch_leakage, image_leakage
from skbegan.metrics.tuning import batch_removal_score

# name: function, sign, whether it looks at predicted images instead of features
_METRICS: dict[str, tuple[Callable[..., Any], int, bool]] = {
    "leakage": (batch_leakage, -1, False),
    "image_leakage": (image_leakage, -1, True),
    "cross_batch": (cross_batch_accuracy, 1, False),
    "cross_batch_gap": (cross_batch_gap, -1, False),
    "cell_type": (cell_type_accuracy, 1, False),
    "batch_removal": (batch_removal_score, 1, False),
    "image_error": (image_error, -1, True),
}


class FeatureScorer:
    """A scorer ``(estimator, X, y=None, *, batch, cell_type, y_qpi) -> float`` for searches; larger is better.

    It asks a fitted transformer (or the part of a ``Pipeline`` before its classifier) for the features of the test
    cells and measures them with fresh probes. The metrics ``"image_leakage"`` and ``"image_error"`` ask for
    ``predict_image``; the latter gives the MAE.

    Parameters
    ----------
    metric : {"batch_removal", "leakage", "image_leakage", "cross_batch", "cross_batch_gap", "cell_type", "image_error"}
        Leakage, gap and image error are returned **negated**, as scikit-learn's ``neg_`` scorers are. To tune by one
        figure take ``"batch_removal"``, see :func:`batch_removal_score`.
    **params
        Passed to the metric function, e.g. ``probe="mlp"``.

    Notes
    -----
    *Cell types* come from ``cell_type``, or from ``y`` if it is 1-D. *Batches* reach a scorer in one of two ways:

    1. Metadata routing, ``sklearn.set_config(enable_metadata_routing=True)``: ``search.fit(X, y, batch=batch, ...)``.
       The scorer requests what it needs by itself; ``set_score_request`` changes names (it changes this object, so make
       your own with ``FeatureScorer("leakage")`` rather than altering the shared ``leakage_scorer``).
    2. Routing off, scikit-learn's default, where no metadata ever reaches a scorer: give the labels beforehand,
       ``scoring=leakage_scorer.with_labels(X, batch, cell_type)``. The copy recognises test images by their content.

    Folds must mix the batches. ``LeaveOneGroupOut`` over batches leaves one batch to score, where no leakage can be
    measured. A search turns a scorer's error into a NaN score with a warning unless ``error_score="raise"``: set it.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.model_selection import GridSearchCV, KFold
    >>> from skbegan.metrics import FeatureScorer
    >>> batch, cell_type = np.repeat(["mon", "tue"], 100), np.tile(["a", "b"], 100)
    >>> X = np.random.default_rng(0).normal(size=(200, 6))
    >>> X[cell_type == "a", 0] += 20
    >>> X[batch == "tue", 1] += 9
    >>> scoring = FeatureScorer("batch_removal").with_labels(X, batch, cell_type)
    >>> folds = KFold(2, shuffle=True, random_state=0)
    >>> GridSearchCV(PCA(), {"n_components": [1, 2]}, scoring=scoring, cv=folds).fit(X).best_params_
    {'n_components': 1}
    """

    def __init__(self, metric: str = "batch_removal", **params: Any) -> None:
        if metric not in _METRICS:
            raise ValueError(f"metric must be one of {sorted(_METRICS)}, got {metric!r}.")
        self.metric = metric
        self.params = params
        self._requests: dict[str, Any] = {
            "batch": metric not in ("cell_type", "image_error"),
            "cell_type": metric != "image_error",
            "y_qpi": metric == "image_error",
        }
        self._known: dict[bytes, tuple[Any, Any]] | None = None

    def __repr__(self) -> str:
        return f"FeatureScorer({', '.join([repr(self.metric), *(f'{k}={v!r}' for k, v in self.params.items())])})"

    def with_labels(self, X: ArrayLike, batch: ArrayLike, cell_type: ArrayLike | None = None) -> FeatureScorer:
        """Return a copy that knows the labels of ``X`` (the very array that the search is given), by image content.

        Parameters
        ----------
        X : array-like of shape (n_cells, H, W) or (n_cells, H, W, C)
        batch : array-like of shape (n_cells,)
        cell_type : array-like of shape (n_cells,), default=None

        Returns
        -------
        scorer : FeatureScorer

        Raises
        ------
        ValueError
            If two images are equal and their labels are not.
        """
        images = np.asarray(X)
        batches, b = check_labels(batch, "batch", len(images))
        types: list[Any] | None = None
        if cell_type is not None:
            labelled = known_types(cell_type)
            if labelled is None:
                distinct, t = check_labels(cell_type, "cell_type", len(images))
                types = list(distinct[t])
            else:  # NaN is not None: the scorer knows types, but not of this cell
                named = iter(known_labels(cell_type, "cell_type")[0])
                types = [next(named) if has else np.nan for has in labelled]
        known: dict[bytes, tuple[Any, Any]] = {}
        for i, image in enumerate(images):
            labels = (batches[b[i]], None if types is None else types[i])
            if known.setdefault(digest(image), labels) != labels:
                raise ValueError(f"Image {i} of X equals an earlier one that has other labels, so content cannot tell.")
        scorer = copy.copy(self)
        scorer._requests, scorer._known = dict(self._requests), known
        return scorer

    def set_score_request(self, **requests: Any) -> FeatureScorer:
        """Change what metadata routing passes, e.g. ``batch="day"``; as in scikit-learn, changes and returns self.

        Parameters
        ----------
        **requests : bool, str or None
            What to pass for ``batch``, ``cell_type`` or ``y_qpi``, as in scikit-learn.

        Returns
        -------
        self : FeatureScorer

        Raises
        ------
        TypeError
            For other names.
        """
        unknown = set(requests) - set(self._requests)
        if unknown:
            raise TypeError(f"Unknown metadata {sorted(unknown)}; this scorer takes {sorted(self._requests)}.")
        self._requests = {**self._requests, **requests}
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """Tell scikit-learn which metadata to pass.

        Returns
        -------
        request : MetadataRequest
        """
        request = MetadataRequest(owner=repr(self))
        for name, alias in self._requests.items():
            request.score.add_request(param=name, alias=alias)
        return request

    def __call__(
        self,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        batch: ArrayLike | None = None,
        cell_type: ArrayLike | None = None,
        y_qpi: ArrayLike | None = None,
    ) -> float:
        function, sign, from_images = _METRICS[self.metric]
        labels = None if y is None or np.ndim(np.asarray(y)) != 1 else y
        if self.metric == "image_error":
            target = y_qpi if y_qpi is not None else (y if labels is None else None)
            if target is None:
                raise ValueError("The image-error scorer needs target images: as y, or as y_qpi with metadata routing.")
            return float(sign * function(self._images(estimator, X), target, **self.params).mae)
        if self._known is not None and (batch is None or (cell_type is None and labels is None)):
            found = [self._known.get(digest(image)) for image in np.asarray(X)]
            if None in found:
                raise ValueError(
                    "with_labels was given other images than these. Give it the array passed to the search."
                )
            if batch is None:
                batch = [pair[0] for pair in found if pair is not None]
            if cell_type is None and labels is None and found[0] is not None and found[0][1] is not None:
                cell_type = [pair[1] for pair in found if pair is not None]
        needs_batch = self.metric != "cell_type"
        if batch is None and needs_batch:
            raise ValueError(
                f"The {self.metric} scorer was not given the batch of each cell: without metadata routing scikit-learn "
                f"passes it to no scorer. Use scoring={self.metric}_scorer.with_labels(X, batch, cell_type), or "
                "sklearn.set_config(enable_metadata_routing=True) and pass batch=... to the search's fit."
            )
        if cell_type is None:
            cell_type = labels
        if cell_type is None:
            raise ValueError("The scorer was not given cell types: pass them as y (1-D) or as cell_type.")
        where = {"batch": batch, "cell_type": cell_type} if needs_batch else {"cell_type": cell_type}
        read = self._images(estimator, X) if from_images else features_of(estimator, X)
        return float(sign * function(read, **where, **self.params))

    @staticmethod
    def _images(estimator: Any, X: ArrayLike) -> Array:
        images = images_of(estimator, X)
        if images is None:
            raise TypeError(f"{type(estimator).__name__} has no predict_image.")
        return images


leakage_scorer = FeatureScorer("leakage")
image_leakage_scorer = FeatureScorer("image_leakage")
cross_batch_scorer = FeatureScorer("cross_batch")
cross_batch_gap_scorer = FeatureScorer("cross_batch_gap")
cell_type_scorer = FeatureScorer("cell_type")
batch_removal_scorer = FeatureScorer("batch_removal")
image_error_scorer = FeatureScorer("image_error")

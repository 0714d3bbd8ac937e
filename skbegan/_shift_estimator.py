"""What an estimator does about a new batch: check it, adapt to it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skbegan import checks
from skbegan._model_estimator import ModelEstimator
from skbegan.config import Config

if TYPE_CHECKING:
    from skbegan.shift.adaptation import Adaptation
    from skbegan.shift.calibration import Calibration
    from skbegan.shift.checking import BatchCheck
    from skbegan.shift.observing import Reader

MIN_CELLS = 20  # of a new batch
MAX_CELLS = 2000  # that are looked at: more make nothing clearer


class ShiftEstimator(ModelEstimator):
    """Base of estimators that know what to expect of new batches."""

    adaptation_: Adaptation
    random_state: Any
    norm: str

    def check_batch(self, X_bf_new: Any) -> BatchCheck:
        """Say of a batch that was not trained on whether it is like known ones, and what to expect of it.

        Parameters
        ----------
        X_bf_new : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
            At least 20 brightfield images of one new batch. Cell types need not be known, but give all that there are:
            a batch of a single type looks like another instrument.

        Returns
        -------
        report : BatchCheck
            Distance of the images from those of plausible batches, with its p-value; what differs, in words; the
            expected share of right cell types, ``report.expected_accuracy``, and the expected error of predicted
            images, ``report.expected_image_error``, with 90 % intervals. ``report.known`` tells whether it is like the
            known batches, ``report.refused`` whether it should not be used, ``report.reasons`` why, and
            ``report.to_dict()`` gives all of it as plain data.

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            For fewer than 20 images, images of another shape than in fit, or a model without calibration.

        Warns
        -----
        UnusableBatchWarning
            When the batch is refused.

        Notes
        -----
        Expectations come from held-out cells shown in styles drawn beyond the known ones. Where a new batch differs in
        another way, or few cells were held out, they are off by more than the interval says.

        Examples
        --------
        >>> from skbegan import BeGANTransformer
        >>> from skbegan.datasets import make_cell_images
        >>> cells = make_cell_images(200, 2, 3, 16, random_state=0)
        >>> known = cells.batch != "batch2"
        >>> began = BeGANTransformer(base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, random_state=0)
        >>> began = began.set_params(calibrate=True)
        >>> data = cells.bf, cells.qpi, cells.batch, cells.cell_type
        >>> report = began.fit(*(values[known] for values in data)).check_batch(cells.bf[~known])
        >>> report.n_cells, 0 <= report.expected_accuracy <= 1
        (67, True)
        """
        bf, calibration = self._new_batch(X_bf_new, "check_batch")
        from skbegan.shift.checking import UnusableBatchWarning, check

        reader = self._reader()
        report = check(calibration, calibration.observe(reader, reader.source(bf)))
        if report.refused:
            checks.warn_caller(
                f"this batch should not be used with this model: {'; '.join(report.reasons)}", UnusableBatchWarning
            )
        return report

    def adapt(self, X_bf_new: Any, controls: Any = None, cell_type: Any = None, *, proportions: Any = None) -> Self:
        """Return an estimator adapted to one new batch from some of its cells.

        Statistics of BatchNorm follow the new cells, as far as their cell types do not explain the difference. So it
        has to be known which types they are: from controls of known types, or from the proportions of the types. A
        batch that :meth:`check_batch` refuses is not adapted to.

        Parameters
        ----------
        X_bf_new : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
            Brightfield images of one new batch, 20 or more; of more than 256, some. With `controls` the model is
            adapted to these, and the cells only tell whether the batch can be used.
        controls : array-like of shape (n_controls, side, side) or (n_controls, side, side, n_channels), optional
            At least 20 cells of the same batch whose types are known.
        cell_type : label or array-like of shape (n_controls,), optional
            Of the controls: one type that all of them are of, or one for each; of those that fit has seen.
        proportions : {"training", "estimated"} or dict of label to float, optional
            Of the types among `X_bf_new`, where there are no controls. ``"training"``: as in the cells of the fit, also
            for a model that was fitted without types. A dict names shares or numbers of cells; types that it lacks are
            not there. ``"estimated"``: from what the model takes the cells for; it gains less, and more is lost where
            it is wrong. None, without controls: the model is left as it is. Where proportions are named that the cells
            do not have, much is lost: .22 of the accuracy on a batch of Jurkat cells.

        Returns
        -------
        adapted : BeGANTransformer
            Another estimator; this one is not changed. ``adapted.adaptation_`` says what was done and why:
            ``adaptation_.adapted``, ``.method``, ``.reason``, ``.weight`` and ``.proportions``.

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            For too few cells, images of another shape than in fit, unknown types, a model without calibration or
            without BatchNorm, or one that was adapted already.

        Notes
        -----
        With n cells statistics are moved n / (n + 25) of the way [1]_. The means and variances that they are compared
        with are those of training cells of each type, mixed in the proportions. The cells pass through the networks at
        once: 256 of 128 pixels take 2.4 GB at a base width of 64. The adapted estimator maps each cell by itself, as
        this one does. Its expectations in :meth:`check_batch` are those that were calibrated before. Figures are in
        ``docs/decisions/0009-new-batches.md``.

        References
        ----------
        .. [1] Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation",
           NeurIPS 2020, for statistics that are shrunk; Li et al., "Revisiting batch normalization for practical domain
           adaptation", ICLR workshop 2017.

        Examples
        --------
        >>> from skbegan import BeGANTransformer
        >>> from skbegan.datasets import make_cell_images
        >>> cells = make_cell_images(200, 2, 3, 16, batch_strength=0.3, random_state=2)
        >>> known = cells.batch != "batch2"
        >>> began = BeGANTransformer(base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, random_state=0)
        >>> began = began.set_params(calibrate=True)
        >>> data = cells.bf, cells.qpi, cells.batch, cells.cell_type
        >>> began = began.fit(*(values[known] for values in data))
        >>> adapted = began.adapt(cells.bf[~known], proportions="training")
        >>> adapted.transform(cells.bf[~known]).shape, adapted.adaptation_.method
        ((67, 16), 'proportions')
        """
        bf, calibration = self._new_batch(X_bf_new, "adapt")
        assert self._model is not None
        if self.norm != "batch":
            raise ValueError(f"adapt moves statistics of BatchNorm, and this model has none (norm={self.norm!r})")
        if not calibration.norm_mean.size:
            raise ValueError("adapt: this estimator was adapted to a batch already; adapt the one it was made from")
        labels: list[Any] = [None] if self.cell_types_ is None else self.cell_types_.tolist()
        method, guide, shares = "none", bf, None
        if controls is not None or cell_type is not None:
            if controls is None or cell_type is None or proportions is not None:
                raise ValueError("adapt: controls go with their cell_type, and neither with proportions")
            guide, shares = self._controls(controls, cell_type, labels)
            method = "controls"
        elif proportions is not None:
            shares = self._proportions(proportions, labels, calibration)
            method = "estimated" if shares is None else "proportions"
        from skbegan.shift.adaptation import adapt

        model, done = adapt(self._reader(), calibration, bf, guide, method, shares)
        if done.adapted and self.cell_types_ is not None:
            named = dict(zip(labels, done.shares, strict=True))
            done = dataclasses.replace(done, proportions=named)
        events = [*self.history_.get("events", ()), f"adaptation to a new batch: {done.reason}"]
        other = copy.copy(self)
        other.__dict__.pop("audit_", None)
        other._adopt(dataclasses.replace(model, history={**model.history, "events": events}))
        other.adaptation_ = done
        return other

    def _controls(self, controls: Any, cell_type: Any, labels: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return images of controls, checked, and the shares of the types among them."""
        bf, _ = self._new_batch(controls, "adapt with controls", "controls")
        types = np.asarray(cell_type)
        if types.ndim > 0 and len(types) != len(controls):
            raise ValueError(f"adapt: cell_type has {len(types)} labels for {len(controls)} controls")
        given = types.reshape(-1).tolist()
        if odd := [label for label in dict.fromkeys(given) if label not in labels]:
            raise ValueError(f"adapt: cell_type has {odd}, none of the types that fit has seen: {labels}")
        return bf, np.array([given.count(label) for label in labels]) / len(given)

    def _proportions(self, proportions: Any, labels: list[Any], calibration: Calibration) -> np.ndarray | None:
        """Return the shares of the types that were named; None where they are to be estimated."""
        if isinstance(proportions, Mapping):
            if odd := [label for label in proportions if label not in labels]:
                raise ValueError(f"adapt: proportions have {odd}, none of the types that fit has seen: {labels}")
            shares = np.array([float(proportions.get(label, 0.0)) for label in labels])
            if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
                raise ValueError(f"adapt: proportions must be 0 or more, and not all 0, got {dict(proportions)}")
            return np.asarray(shares / shares.sum())
        if not isinstance(proportions, str) or proportions not in ("training", "estimated"):
            raise ValueError(
                f"adapt: proportions must be 'training', 'estimated' or a dict of label to share, got {proportions!r}"
            )
        return calibration.type_shares if proportions == "training" else None

    def calibrate_batches(self, X_bf: Any, y_qpi: Any, batch: Any = None, cell_type: Any = None) -> Self:
        """Learn what to expect of new batches from the cells that fit was given.

        For models that were fitted with ``calibrate=False``, the default, loaded from a file of an earlier version, or
        changed by :meth:`recalibrate`. With ``calibrate=True`` fit does it by itself.

        Parameters
        ----------
        X_bf, y_qpi, batch, cell_type
            As in fit, the same cells: the same ones are held out as in the fit with an integer `random_state`. With
            another seed cells are read that were trained on, and too much is expected.

        Returns
        -------
        self : BeGANTransformer

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            For input that does not go with the model, or fewer than 20 cells.
        """
        check_is_fitted(self)
        assert self._model is not None
        parameters = self.get_params(deep=False)
        config = Config.of(parameters)
        dataset = checks.check_fit_input(X_bf, y_qpi, batch, cell_type, None)
        if tuple(dataset.bf.shape[1:]) != tuple(self.image_shape_):
            raise ValueError(f"X_bf has images of shape {dataset.bf.shape[1:]}, the model has {self.image_shape_}")
        if tuple(dataset.qpi.shape[1:]) != tuple(self.target_shape_):
            raise ValueError(f"y_qpi has images of shape {dataset.qpi.shape[1:]}, the model has {self.target_shape_}")
        for name in ("batches", "cell_types"):
            fitted, given = getattr(self._model, name), getattr(dataset, name)
            if fitted is not None and (given is None or not np.array_equal(fitted, given)):
                raise ValueError(f"{name} of the cells are {given}, but those of the fit were {fitted}")
        random_state = checks.check_seed(self.random_state)
        rng = np.random.RandomState() if random_state is None else check_random_state(copy.deepcopy(random_state))
        from skbegan.fit import SEEDS
        from skbegan.shift.of_fit import calibrated

        draws = rng.randint(2**31 - 1, size=len(SEEDS))
        model = calibrated(self._model, config, dataset, int(draws[0]))
        if model.calibration is None:
            raise ValueError(f"calibrate_batches needs at least 20 cells, got {len(dataset.bf)}")
        return self._adopt(model)

    def _reader(self) -> Reader:
        from skbegan.shift.observing import Reader

        assert self._model is not None
        return Reader(self._model, self.device, Config.of(self.get_params(deep=False)).runtime.precision)

    def _new_batch(self, X_bf: Any, what: str, name: str = "X_bf_new") -> tuple[np.ndarray, Calibration]:
        """Return some of the images of a new batch, checked, and the calibration."""
        check_is_fitted(self)
        assert self._model is not None
        bf = checks.check_images(X_bf, name, self.image_shape_)
        if len(bf) < MIN_CELLS:
            raise ValueError(f"{what} needs at least {MIN_CELLS} cells of the new batch, got {len(bf)}")
        if self._model.calibration is None:
            raise ValueError(
                f"{what} needs a calibration, and this model has none (calibrate=False, too few or streamed cells, "
                "recalibrate, or a file of an earlier version): call calibrate_batches with the cells of the fit"
            )
        rows = np.linspace(0, len(bf) - 1, min(len(bf), MAX_CELLS)).round().astype(int)
        return bf[rows], self._model.calibration

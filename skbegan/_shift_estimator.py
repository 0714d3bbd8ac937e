"""What an estimator does about a new batch: check it, adapt to it."""

from __future__ import annotations

import copy
import dataclasses
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
            expected share of right cell types and the expected error of predicted images, with 90 % intervals.
            ``report.refused`` tells whether the batch should not be used, ``report.reasons`` why, and
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
        >>> report.n_cells, 0 <= report.accuracy <= 1
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

    def adapt(self, X_bf_new: Any, controls: Any = None, cell_type: Any = None, *, apply: bool = False) -> Self:
        """Return an estimator adapted to one new batch from some of its cells, where that can be expected to help.

        Tried are a filter and an offset that bring the mean image and the spectrum of the new cells near to those of
        known batches, a correction of the magnification, and BatchNorm statistics of the encoder moved towards those of
        the new cells, all of it shrunk the more, the fewer cells there are. Each is made from one half of the cells and
        judged on the other; where none promises enough, the model is left as it is.

        Parameters
        ----------
        X_bf_new : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
            Brightfield images of one new batch, 20 to some hundred, of all cell types there are.
        controls : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels), optional
            At least 20 cells of the same batch that are known to be of type `cell_type`. The adaptation is then made
            from these, and judged by whether their type is recognised.
        cell_type : label, optional
            Of the controls; one that fit has seen.
        apply : bool, default=False
            Whether the best candidate is taken where it promises enough. It has not been measured that adapting is
            never worse than not adapting; so by default the model is left as it is, and ``adaptation_`` only says what
            was expected. Set it to True where some cells of the new batch can be checked.

        Returns
        -------
        adapted : BeGANTransformer
            Another estimator; this one is not changed. ``adapted.adaptation_`` says what was done and why:
            ``adaptation_.adapted``, ``.method``, ``.reason`` and what was expected of each candidate.

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            For too few cells, images of another shape than in fit, an unknown type, a model without calibration or one
            that was adapted already.

        Notes
        -----
        The adapted estimator maps each cell by itself, as this one does. Its own expectations in
        :meth:`check_batch` are those that were calibrated before.

        References
        ----------
        Li et al., "Revisiting batch normalization for practical domain adaptation", ICLR workshop 2017; Schneider et
        al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020, for the
        shrunk statistics.

        Examples
        --------
        >>> from skbegan import BeGANTransformer
        >>> from skbegan.datasets import make_cell_images
        >>> cells = make_cell_images(200, 2, 3, 16, random_state=0)
        >>> known = cells.batch != "batch2"
        >>> began = BeGANTransformer(base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, random_state=0)
        >>> began = began.set_params(calibrate=True)
        >>> data = cells.bf, cells.qpi, cells.batch, cells.cell_type
        >>> adapted = began.fit(*(values[known] for values in data)).adapt(cells.bf[~known])
        >>> adapted.transform(cells.bf[~known]).shape, adapted.adaptation_.n_cells
        ((67, 16), 67)
        """
        bf, calibration = self._new_batch(X_bf_new, "adapt")
        assert self._model is not None
        if self._adapted:
            raise ValueError("adapt: this estimator was adapted to a batch already; adapt the one it was made from")
        known, control = None, None
        if (controls is None) != (cell_type is None):
            raise ValueError("adapt: controls and cell_type go together: cells of one type, and which type that is")
        if controls is not None:
            known, _ = self._new_batch(controls, "adapt with controls")
            labels = [] if self.cell_types_ is None else self.cell_types_.tolist()
            if calibration.classifier is None or cell_type not in labels:
                raise ValueError(f"adapt: cell_type={cell_type!r} is none of the types that fit has seen: {labels}")
            control = labels.index(cell_type)
        from skbegan.shift.adaptation import adapt

        model, done = adapt(self._reader(), calibration, bf, known, control, apply=apply)
        event = f"adaptation to a new batch: {done.reason}"
        events = [*self.history_.get("events", ()), event]
        model = dataclasses.replace(model, history={**model.history, "events": events})
        adapted = copy.copy(self)
        adapted.__dict__.pop("audit_", None)
        adapted._adopt(model)
        adapted.adaptation_ = done
        return adapted

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

    @property
    def _adapted(self) -> bool:
        done = self.__dict__.get("adaptation_")
        assert self._model is not None
        return self._model.adaptation is not None or (done is not None and done.adapted)

    def _reader(self) -> Reader:
        from skbegan.shift.observing import Reader

        assert self._model is not None
        return Reader(self._model, self.device, Config.of(self.get_params(deep=False)).runtime.precision)

    def _new_batch(self, X_bf: Any, what: str) -> tuple[np.ndarray, Calibration]:
        """Return some of the images of a new batch, checked, and the calibration."""
        check_is_fitted(self)
        assert self._model is not None
        bf = checks.check_images(X_bf, "X_bf_new", self.image_shape_)
        if len(bf) < MIN_CELLS:
            raise ValueError(f"{what} needs at least {MIN_CELLS} cells of the new batch, got {len(bf)}")
        if self._model.calibration is None:
            raise ValueError(
                f"{what} needs a calibration, and this model has none (calibrate=False, too few or streamed cells, "
                "recalibrate, or a file of an earlier version): call calibrate_batches with the cells of the fit"
            )
        rows = np.linspace(0, len(bf) - 1, min(len(bf), MAX_CELLS)).round().astype(int)
        return bf[rows], self._model.calibration

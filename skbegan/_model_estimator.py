"""What an estimator needs whose fit leaves a FittedModel and some of whose parameters hold parameters of their own."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skbegan import checks
from skbegan._into import Predictor, check_out, lazily, write_into
from skbegan._summary import summary_html
from skbegan._version import versions
from skbegan.config import Config, Parameters
from skbegan.design import Design, removal_verdict
from skbegan.model import FittedModel
from skbegan.stored.adapters import is_dask

if TYPE_CHECKING:
    from torch import nn

    from skbegan.cost import CostEstimate

_FITTED = {  # attribute: where the fitted model has it
    "batches_": "batches",
    "cell_types_": "cell_types",
    "image_shape_": "image_shape",
    "target_shape_": "target_shape",
    "n_features_out_": "n_features",
    "history_": "history",
    "device_": "device",
    "bf_mean_": "bf_scaling.mean",
    "bf_scale_": "bf_scaling.scale",
    "qpi_mean_": "target_scaling.mean",
    "qpi_scale_": "target_scaling.scale",
    "base_width_": "base_width",
    "batch_columns_": "batch_columns",
}


class ModelEstimator(BaseEstimator):
    """Base of estimators around a :class:`~skbegan.model.FittedModel`."""

    #: All that a fit leaves, see :meth:`_adopt`.
    _model: FittedModel | None = None

    batches_: np.ndarray | None
    cell_types_: np.ndarray | None
    image_shape_: tuple[int, ...]
    target_shape_: tuple[int, ...]
    n_features_out_: int
    history_: dict[str, Any]
    device_: str
    bf_mean_: np.ndarray
    bf_scale_: np.ndarray
    qpi_mean_: np.ndarray
    qpi_scale_: np.ndarray
    base_width_: int
    batch_columns_: dict[str, np.ndarray] | None
    device: Any
    removal: Any
    batch_target: str

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name; those of `removal` and `profile` as ``removal__alignment``.

        Parameters
        ----------
        **params : dict

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            For a name that is no parameter.
        """
        flat = {name: value for name, value in params.items() if "__" not in name}
        super().set_params(**flat)
        for name, value in params.items():
            if name in flat:
                continue
            holder, _, field = name.partition("__")
            held = getattr(self, holder, None)
            if not isinstance(held, Parameters) or field not in held.get_params():
                known = sorted(n for n in self.get_params() if n.startswith(f"{holder}__")) or "none"
                raise ValueError(f"Invalid parameter {name!r} for {type(self).__name__}; those of {holder}: {known}")
            # They are frozen, since several estimators may share one.
            setattr(self, holder, dataclasses.replace(held, **{field: value}))
        return self

    def _adopt(self, model: FittedModel) -> Self:
        """Take over a fitted model and show its parts as attributes, in one step that nothing can interrupt."""
        parts = {name: operator.attrgetter(path)(model) for name, path in _FITTED.items()}
        self.__dict__.pop("adaptation_", None)
        self.__dict__.update(parts, _model=model)
        return self

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_

    def __sklearn_is_fitted__(self) -> bool:
        return self._model is not None

    def to_torch(self) -> nn.Module:
        """Return the fitted model as a plain PyTorch module, to be used without scikit-learn or exported.

        Returns
        -------
        module : torch.nn.Module
            Takes brightfields in their own units, of shape (n, n_channels, side, side): channels first, as is usual in
            PyTorch, also for a single channel. Returns ``(profile, image)``: profiles of shape (n, n_features), as
            :meth:`transform` gives them, and images of shape (n, n_target_channels, side, side) in the units of the
            target, as :meth:`predict_image` gives them but for the place of the channels. It is a copy in float32 on
            the CPU, in inference mode, and its weights ask for no gradients.

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            With ``inference="minibatch"``, where what a cell gets depends on its neighbours.

        Notes
        -----
        Give images in the type of the data. Float64 and integers of 32 bits and more have the mean subtracted before
        they are rounded to float32; where you convert such images to float32 first, a large offset costs digits.
        Nothing checks the values. With ``precision="auto"`` the estimator may compute in bfloat16, and then differs
        from the module by its rounding.

        ``torch.export.export`` and ``torch.onnx.export(..., dynamo=True)`` take it as it is, with any number of cells
        where the first axis is dynamic. An exported file needs nothing of this package; the module itself, and
        ``torch.save`` of the whole of it, need its class. :class:`torch.nn.Module.state_dict` gives the numbers alone.

        Examples
        --------
        >>> import torch
        >>> from skbegan import BeGANTransformer
        >>> from skbegan.datasets import make_cell_images
        >>> cells = make_cell_images(60, 2, 2, 16, random_state=0)
        >>> began = BeGANTransformer(base_width=4, n_features=8, pretrain_epochs=1, removal_epochs=0, random_state=0)
        >>> module = began.fit(cells.bf, cells.qpi).to_torch()
        >>> profile, image = module(torch.from_numpy(cells.bf)[:, None])
        >>> profile.shape, image.shape
        (torch.Size([60, 8]), torch.Size([60, 1, 16, 16]))
        """
        check_is_fitted(self)
        assert self._model is not None
        if Config.of(self.get_params(deep=False)).runtime.inference == "minibatch":
            raise ValueError(
                'to_torch gives each cell for itself, but inference="minibatch" lets it depend on its neighbours; '
                'est.set_params(inference="population") first, and see recalibrate for imported models'
            )
        return self._model.to_torch()

    def _predict(self, X_bf: Any, want: Literal["features", "images"], out: Any = None, as_batch: Any = None) -> Any:
        """Return what the model gives for the images, written into `out`, or lazily for an array of dask."""
        check_is_fitted(self)
        predictor = self._predictor(want, as_batch)
        if out is None and is_dask(X_bf):
            checks.check_images(X_bf, "X_bf", self.image_shape_, look=False)
            check = functools.partial(checks.check_images, name="X_bf", shape=self.image_shape_)
            return lazily(X_bf, predictor.after(check), predictor.shape, predictor.part, predictor.key())
        if out is None:
            return predictor(self._checked(X_bf))
        bf = checks.check_images(X_bf, "X_bf", self.image_shape_, look=False)
        check_out(out, (len(bf), *predictor.shape))
        return write_into(out, self._checked(bf), predictor, predictor.part, predictor.key)

    def _predictor(self, want: Literal["features", "images"], as_batch: Any = None) -> Predictor:
        assert self._model is not None
        codes = None if as_batch is None else tuple(self._model.as_of_batch(as_batch).tolist())
        config = Config.of(self.get_params(deep=False))
        size = config.removal.minibatch_size if config.runtime.inference == "minibatch" else None
        return Predictor(self._model, want, str(self.device), config.runtime.precision, size, codes)

    def _checked(self, X_bf: Any) -> np.ndarray:
        """Return brightfields that the model can be given, with a warning where their units look foreign."""
        check_is_fitted(self)
        assert self._model is not None
        Config.of(self.get_params(deep=False))
        bf = checks.check_images(X_bf, "X_bf", self.image_shape_)
        if (message := self._model.foreign_units(bf)) is not None:
            checks.warn_caller(message, UserWarning)
        return bf

    def _infer(self, bf: np.ndarray, want: Literal["features", "images"]) -> np.ndarray:
        """Return what the model gives for images that :meth:`_checked` returned, or for some of them."""
        assert self._model is not None
        config = Config.of(self.get_params(deep=False))
        by_minibatch = config.runtime.inference == "minibatch"
        return self._model.predict(
            bf,
            want,
            device=self.device,
            precision=config.runtime.precision,
            minibatch_size=config.removal.minibatch_size if by_minibatch else None,
        )

    def recalibrate(self, X_bf: Any) -> Self:
        """Re-estimate the population statistics of BatchNorm on the given cells; the weights stay.

        For a model imported from elsewhere, whose stored statistics were never meant to be used, before
        ``inference="population"``. Give cells of all batches and cell types.

        Parameters
        ----------
        X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
            At least two brightfield images like those of fit. Of stored blocks that do not fit into memory a sample is
            taken.

        Returns
        -------
        self : BeGANTransformer

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            For fewer than two images, or images of another shape than in fit.
        """
        check_is_fitted(self)
        assert self._model is not None
        config = Config.of(self.get_params(deep=False))
        bf = checks.check_images(X_bf, "X_bf", self.image_shape_)
        if len(bf) < 2:
            raise ValueError("recalibrate needs at least two cells, better some hundred, got 1")
        from skbegan.data.stream import kept_sample

        bf, rows = kept_sample(bf)
        model = self._model.recalibrated(
            bf,
            rows[np.random.RandomState(0).permutation(len(rows))],
            device=self.device,
            precision=config.runtime.precision,
            minibatch_size=config.removal.minibatch_size,
        )
        return self._adopt(model)

    def predict_image(self, X_bf: Any, *, as_batch: Any = None, out: Any = None) -> Any:
        """Return the predicted target image of each cell.

        Parameters
        ----------
        X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
            Brightfield images like those of fit. Of an array of dask the result is one too, lazily.
        as_batch : label or dict of str to label, default=None
            None: images free of the batch. One of `batches_`: the same cells as that batch would have shown them in
            the target, as far as it was measured in training: its mean image and amplitude spectrum relative to the
            mean of the batches that share cell types with it. Where `batch` was a table, also labels by column,
            ``{"day": "day3"}``: the mean effect of all batches that have them.
        out : array, memory map, h5py.Dataset or zarr.Array of the shape of the images, default=None
            Where to write them, block by block, in float32 or float64. It is returned; a call that was stopped goes on
            as one of :meth:`transform` does.

        Returns
        -------
        images : ndarray of shape (n_cells, side, side) or (n_cells, side, side, n_channels), float32
            In the units and with the channels of the target given to fit.

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            For images of another shape than in fit, or not finite, or an `out` of another shape or dtype; for a batch
            that the model was not fitted on, and with `as_batch` for a model that keeps no styles: of an earlier
            version, or without the default stage 2.
        """
        return self._predict(X_bf, "images", out, as_batch)

    def estimate_cost(
        self, X_bf: Any, y: Any = None, batch: Any = None, cell_type: Any = None, *, y_qpi: Any = None
    ) -> CostEstimate:
        """Say what a fit with these arguments would cost: time of each stage, and memory.

        A few real steps of each stage are run on the given cells, on the device and in the precision of a fit, and
        extrapolated to all epochs, validation, and profile alignment. That takes from seconds, for small networks, to
        some minutes for those of the published size on a CPU. Neither the estimator nor the cells are changed.

        Parameters
        ----------
        X_bf, y, batch, cell_type, y_qpi
            As in :meth:`fit`.

        Returns
        -------
        estimate : CostEstimate
            ``print(estimate)`` says it in words; ``estimate.seconds``, ``estimate.peak_memory`` (bytes),
            ``estimate["batch_removal"].seconds``, and ``estimate.with_epochs(pretraining=50)`` for other epochs.

        Raises
        ------
        TypeError, ValueError
            As :meth:`fit`.

        Notes
        -----
        Other work on the machine slows the measured steps down or the fit later on. `memory`, `checkpoint_dir` and
        `compile` are left out of account: what a cache holds already, the writing of checkpoints, and what compiling
        takes and saves. Profile alignment is taken to succeed at the first of its `matching_shares`. Memory is that of
        the training steps: fits of the image classifiers of PublishedRemoval may need more.

        Examples
        --------
        >>> from skbegan import PRESETS, BeGANTransformer
        >>> from skbegan.datasets import make_cell_images
        >>> cells = make_cell_images(100, 2, 2, 16, random_state=0)
        >>> estimate = BeGANTransformer(base_width=4, n_features=16).estimate_cost(
        ...     cells.bf, cells.qpi, cells.batch, cells.cell_type
        ... )
        >>> estimate.seconds > estimate.with_epochs(pretraining=10).seconds
        True
        """
        began = perf_counter()
        config = Config.of(self.get_params(deep=False))
        dataset = checks.check_fit_input(X_bf, y, batch, cell_type, y_qpi)
        reference = checks.reference_code(dataset, self.reference_batch)
        removes = self.removal_epochs > 0 and self._can_remove_batch(dataset)
        earlier = self._earlier(config, dataset, removes)
        from skbegan import cost

        took = perf_counter() - began
        return cost.estimate(config, dataset, removes=removes, reference=reference, earlier=earlier, checks_took=took)

    def _can_remove_batch(self, dataset: checks.CellDataset) -> bool:
        if (unknown := int((dataset.cell_type < 0).sum())) and not self.removal.takes_unknown_types:
            raise ValueError(
                f"{type(self.removal).__name__} needs the cell type of each cell, and {unknown} have none, first cell "
                f"{int(np.argmin(dataset.cell_type))}; leave them out, or use removal=OnlineRemoval()"
            )
        design = Design.of(dataset.batch, dataset.cell_type, dataset.n_batches, dataset.n_cell_types)
        verdict = removal_verdict(design, dataset.batches, dataset.cell_types, self.batch_target)
        if verdict.message is not None:
            checks.warn_caller(verdict.message, UserWarning)
        return verdict.removes

    def _earlier(self, config: Config, dataset: checks.CellDataset, removes: bool) -> FittedModel | None:
        """Return what a warm start goes on with, None for a fit from the start.

        Raises
        ------
        ValueError
            If the fitted model and the new fit do not go together.
        """
        if not config.runtime.warm_start or self._model is None:
            return None
        self._model.check_goes_on(config, dataset.bf, dataset.qpi, removes)
        return self._model

    # A notebook asks for the bundle, other viewers for the HTML alone.

    def _repr_html_inner(self) -> str:
        diagram: str = super()._repr_html_inner()
        return diagram + summary_html(self) if self.__sklearn_is_fitted__() else diagram

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle: dict[str, str] = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle and self.__sklearn_is_fitted__():
            bundle["text/html"] += summary_html(self)
        return bundle

    def _get_fitted_attr_html(self, doc_link: str = "") -> Any:
        # From scikit-learn 1.9 on its diagram lists fitted attributes; the losses of all epochs are no reading.
        attributes = super()._get_fitted_attr_html(doc_link)
        attributes.pop("history_", None)
        return attributes

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_versions": versions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        checks.warn_of_versions(state.pop("_versions", {}), versions(), f"this {type(self).__name__}")
        super().__setstate__(state)


class ImagesIn:
    """Mixin, the first of the bases: what scikit-learn is to know of transformers of images that need targets."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def first_argument_by_name(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method whose first argument scikit-learn's output wrapper calls X be called with ``X_bf=`` as well."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and "X_bf" in kwargs:
            args = (kwargs.pop("X_bf"),)
        if kwargs.get("out") is not None:  # the caller's own array comes back, not a container made of it
            return inspect.unwrap(method)(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    return call

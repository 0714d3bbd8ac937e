"""BeGANTransformer: the scikit-learn estimator. The work of a fit is in :mod:`skbegan.fit`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from skbegan import checks
from skbegan._model_estimator import ImagesIn, first_argument_by_name
from skbegan._shift_estimator import ShiftEstimator
from skbegan.config import Config, OnlineRemoval, ProfileAlignment, RemovalMethod

__all__ = ["BeGANTransformer"]

_REQUESTS: dict[str, bool | str] = {"X_bf": UNUSED, "batch": True, "cell_type": True, "y_qpi": True}


class BeGANTransformer(ImagesIn, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ShiftEstimator):
    """Batch-free profiles and quantitative phase images of single cells from brightfield crops.

    Stage 1, pretraining: a pix2pix conditional GAN that predicts the target image (the quantitative phase image, QPI)
    from the brightfield. Stage 2, batch removal: classifiers of batch and cell type, on the features and on the
    predicted images, train the generator so that neither reveals the batch and both keep the cell type. Stage 3,
    profile alignment: on the finished generator a small network makes the profile from the features.

    Parameters
    ----------
    base_width : int, default=64
        Channels of the first level of the networks; deeper ones have up to 8 times as many.
    n_features : int, default=512
        Length of the profile.
    pretrain_epochs : int, default=100
        Epochs of stage 1.
    pretrain_image_weight : float, default=100.0
        Weight of the mean absolute image error in stage 1, against 1 for the discriminator's verdict.
    pretrain_decay : float, default=0.5
        Share of stage 1, its last part, over which the generator's learning rate falls to nearly 0, after rising over
        the first 5 %. 0: constant, as published.
    head_width : int, default=8
        Least channels of the generator's levels at full size; 4 as published. More keep finer structure.
    removal_epochs : int, default=300
        Epochs of stage 2; 0 leaves the pretrained model.
    refresh_epochs : int, default=5
        Every so many epochs the oldest feature adversary is replaced by a new one (OnlineRemoval), or all of them are
        fitted from scratch on a new split of the features (PublishedRemoval).
    classifier_epochs : int, default=100
        Epochs of each classifier fit of PublishedRemoval, between the stages and at each refresh.
    adversarial_weight : float, default=0.0
        Weight of the discriminator's verdict in stage 2; 0 trains no discriminator there.
    cell_type_weight, cell_type_image_weight : float, default=1.0
        Weights of the cross-entropy of the cell type, read from the features and from the predicted image.
    batch_weight : float, default=1.0
        Weight of the losses that remove the batch from the features: the knob that trades batch removal against all
        else. It multiplies the fool loss of the feature adversaries (their mean; with PublishedRemoval their sum), the
        alignment and the matching. 0: no image erasure either.
    batch_image_weight : float, default=0.0
        Weight of the fool loss of an adversary that reads the batch from the predicted image. Targets in one style and
        the erasure free images of most of the batch; the adversary also takes structure.
    image_weight : float, default=60.0
        Weight of the mean absolute image error in stage 2.
    batch_target : {"conditional", "uniform", "reference"}, default="conditional"
        What the generator makes the adversaries predict: p(batch given cell type) as it is in the training cells, the
        same probability for every batch, or `reference_batch` for every cell (published).
    reference_batch : label, default=None
        Batch that ``batch_target="reference"`` pushes all cells to; None takes the first in sorted order.
    removal : OnlineRemoval or PublishedRemoval, default=OnlineRemoval()
        How stage 2 removes the batch, with the parameters of that method: :class:`~skbegan.OnlineRemoval`, adversaries
        that are trained along with the generator, or :class:`~skbegan.PublishedRemoval`, classifiers that are fitted
        between the stages and frozen. A search reaches them as ``removal__alignment``.
    profile : ProfileAlignment, default=ProfileAlignment()
        Stage 3, which makes the profile from the finished generator; not after PublishedRemoval.
    learning_rate : float, default=1e-3
        Of the generator in stage 1 (Adam, as all others).
    discriminator_learning_rate : float, default=1e-4
    classifier_learning_rate : float, default=1e-3
        Of the cell-type classifiers, and of the image classifiers of PublishedRemoval.
    minibatch_size : int, default=64
        Cells per optimisation step.
    steps_per_epoch : int, default=None
        Minibatches that are one epoch of either stage; None is one pass over all cells. With a number an epoch goes on
        where the last one stopped, and everything that is counted in epochs is counted in these: validation,
        checkpoints, callbacks, `pretrain_epochs`, `removal_epochs`, `refresh_epochs` and the warm-up. For a million
        cells, with which a pass takes hours. The classifiers of PublishedRemoval still pass over all cells.
    augment : bool, default=True
        Flip and turn each pair of images at random (the eight symmetries of the square) while training.
    validation_fraction : float, default=0.1
        Share of the cells, stratified by batch and cell type, held out: in stage 1 to choose the best generator, in the
        default stage 2 only to report losses. Where that would be a single cell none is held out.
    standardize : bool or "image", default=True
        Standardise each channel over the training cells, and start the last layer at that scale. Loss weights refer to
        standardised images; predictions come in the units of the target all the same. ``"image"``: besides, each
        brightfield by itself, so that gain and offset are lost; targets not, since theirs is the dry mass.
    norm : {"batch", "instance", "group"}, default="batch"
        Normalisation in the generator: BatchNorm, or each image by itself, one channel (``"instance"``) or eight
        (``"group"``) at a time, and more where maps are small.
    inference : {"population", "minibatch"}, default="population"
        ``"population"``: each cell for itself, with BatchNorm statistics of the training set. ``"minibatch"``: the
        original's way, in which the statistics are those of consecutive `minibatch_size` cells, so that a prediction
        depends on its neighbours. Dropout is off in both.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU; anew wherever the model is used.
    precision : {"auto", "float32", "bfloat16", "float64"}, default="auto"
        Arithmetic of the networks; losses, and stage 3, keep full precision. ``"auto"`` is bfloat16 on CUDA cards that
        have it and, for `base_width` 32 and up, on CPUs with units for it; float32 elsewhere. Name one for the same
        numbers on every machine.
    compile : bool, default=False
        Compile generator and discriminator with ``torch.compile``; falls back with a warning where that fails.
    memory : str, path, joblib.Memory or None, default=None
        Cache of stage 1, keyed by what it depends on: a search over stage-2 parameters pretrains once per fold.
        Processes that miss together wait for one. Needs an integer `random_state`. What is stopped early is not kept.
    warm_start : bool, default=False
        Whether a further fit goes on from the fitted networks instead of new ones, see Notes.
    callback : callable, default=None
        Called as ``callback(info)`` after each epoch; a true answer ends the stage, and the best generator so far is
        kept. ``info.stage`` is ``"pretraining"`` or ``"batch_removal"``, ``info.epoch`` counts from 1 to
        ``info.epochs``, and ``info.losses`` is a dict of this epoch's losses, named as in `history_`. It is not called
        for what is taken from `memory` or resumed. To be pickled it has to be defined in a module.
    checkpoint_dir : str or path, default=None
        Where the state of training is written after each epoch. A fit that was stopped goes on from there when it is
        repeated with the same data and parameters; the files are removed at the end.
    calibrate : bool, default=False
        Whether fit ends by learning what :meth:`check_batch` and :meth:`adapt` need, as :meth:`calibrate_batches` does.
    random_state : int, RandomState or None, default=None
        Seeds weights, order, dropout and splits. The global random state is neither read nor changed: None is another
        seed each time. On a CPU, the same data, seed and number of threads give the same features to the bit.
    verbose : int, default=0
        1 shows a progress bar per stage; where the output is no terminal, a line per epoch of the logger ``"skbegan"``.

    Attributes
    ----------
    batches_, cell_types_ : ndarray or None
        Sorted labels seen in fit; None where none were given.
    batch_columns_ : dict of str to ndarray of shape (n_batches,), or None
        What each batch has in the columns of the table that was given as `batch`.
    image_shape_, target_shape_ : tuple of int
        Shape of one brightfield and of one target image, as given to fit.
    n_features_out_ : int
    history_ : dict
        ``"pretraining"``, ``"batch_removal"``: dict of loss name to its value in each epoch, validation losses under
        ``"validation_..."``; ``"profile_alignment"``: losses of stage 3, means over ten parts of it; ``"events"``: list
        of str, what a user should know of the training, also which stages did not run to their end.
    device_ : str
        Device that fit ran on.
    bf_mean_, bf_scale_, qpi_mean_, qpi_scale_ : ndarray of shape (n_channels,)
        Standardisation: ``(x - mean) / scale``.
    base_width_ : int
        Width of the fitted generator.

    See Also
    --------
    skbegan.metrics.batch_leakage : How much of the batch a fresh probe reads from the features.
    skbegan.save : Write a fitted model to a file that runs no code when it is loaded.

    Notes
    -----
    The networks and the two stages are those of beGAN (later CytoMAD); ``PUBLISHED`` holds the published values. The
    defaults differ: see the README for what was measured.

    *Warm start.* With ``warm_start=True`` a fit of a fitted model (also a loaded or imported one) trains stage 2 for
    `removal_epochs` more, from the fitted generator and without repeating stage 1. Where there is no stage 2
    (``removal_epochs=0``, or no batch to remove) stage 1 goes on for `pretrain_epochs` more; after stage 2 that is
    refused, since it would bring the batch back. Standardisation and widths stay; optimizers, classifiers and schedules
    start anew, and cells, labels and loss weights may be others. The discriminator goes on too, if the earlier fit had
    ``warm_start=True``; it is pickled with the model, but :func:`skbegan.save` leaves it out.

    *Threads.* PyTorch sums gradients in another order when it has another number of threads, and small differences grow
    in training. joblib gives its worker processes fewer threads than the main process has; for equal bits in a search
    with ``n_jobs``, say ``joblib.parallel_config(inner_max_num_threads=torch.get_num_threads())``.

    Examples
    --------
    >>> from skbegan import BeGANTransformer
    >>> from skbegan.datasets import make_cell_images
    >>> cells = make_cell_images(200, 3, 3, 16, random_state=0)
    >>> began = BeGANTransformer(base_width=4, n_features=16, pretrain_epochs=1, removal_epochs=1, random_state=0)
    >>> began.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type).transform(cells.bf).shape
    (200, 16)
    """

    # Nothing to request: scikit-learn routes these to fit and score wherever they are given. It would take the first
    # argument for metadata too, since it is not called X.
    __metadata_request__fit = _REQUESTS
    __metadata_request__score = _REQUESTS
    __metadata_request__transform = {"X_bf": UNUSED, "out": UNUSED}  # noqa: RUF012

    def __init__(
        self,
        *,
        base_width: int = 64,
        n_features: int = 512,
        pretrain_epochs: int = 100,
        pretrain_image_weight: float = 100.0,
        pretrain_decay: float = 0.5,
        head_width: int = 8,
        removal_epochs: int = 300,
        refresh_epochs: int = 5,
        classifier_epochs: int = 100,
        adversarial_weight: float = 0.0,
        cell_type_weight: float = 1.0,
        cell_type_image_weight: float = 1.0,
        batch_weight: float = 1.0,
        batch_image_weight: float = 0.0,
        image_weight: float = 60.0,
        batch_target: str = "conditional",
        reference_batch: Any = None,
        removal: RemovalMethod = OnlineRemoval(),  # noqa: B008 (it is frozen)
        profile: ProfileAlignment = ProfileAlignment(),  # noqa: B008
        learning_rate: float = 1e-3,
        discriminator_learning_rate: float = 1e-4,
        classifier_learning_rate: float = 1e-3,
        minibatch_size: int = 64,
        steps_per_epoch: int | None = None,
        augment: bool = True,
        validation_fraction: float = 0.1,
        standardize: bool | str = True,
        norm: str = "batch",
        inference: str = "population",
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        memory: Any = None,
        warm_start: bool = False,
        callback: Callable[[Any], bool | None] | None = None,
        checkpoint_dir: Any = None,
        calibrate: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.base_width = base_width
        self.n_features = n_features
        self.pretrain_epochs = pretrain_epochs
        self.pretrain_image_weight = pretrain_image_weight
        self.pretrain_decay = pretrain_decay
        self.head_width = head_width
        self.removal_epochs = removal_epochs
        self.refresh_epochs = refresh_epochs
        self.classifier_epochs = classifier_epochs
        self.adversarial_weight = adversarial_weight
        self.cell_type_weight = cell_type_weight
        self.cell_type_image_weight = cell_type_image_weight
        self.batch_weight = batch_weight
        self.batch_image_weight = batch_image_weight
        self.image_weight = image_weight
        self.batch_target = batch_target
        self.reference_batch = reference_batch
        self.removal = removal
        self.profile = profile
        self.learning_rate = learning_rate
        self.discriminator_learning_rate = discriminator_learning_rate
        self.classifier_learning_rate = classifier_learning_rate
        self.minibatch_size = minibatch_size
        self.steps_per_epoch = steps_per_epoch
        self.augment = augment
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.norm = norm
        self.inference = inference
        self.device = device
        self.precision = precision
        self.compile = compile
        self.memory = memory
        self.warm_start = warm_start
        self.callback = callback
        self.checkpoint_dir = checkpoint_dir
        self.calibrate = calibrate
        self.random_state = random_state
        self.verbose = verbose

    # Learning -----------------------------------------------------------------------------------------------------

    def fit(
        self, X_bf: Any, y: Any = None, batch: Any = None, cell_type: Any = None, *, y_qpi: Any = None
    ) -> BeGANTransformer:
        """Train all stages.

        Parameters
        ----------
        X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
            Brightfield images; side a power of two from 16 to 512.
        y : array-like or DataFrame
            Either the target images, shape (n_cells, side, side) or (n_cells, side, side, n_channels), or the cell
            types, shape (n_cells,), as a Pipeline passes them, or a table (DataFrame, structured array) with columns
            ``batch`` and ``cell_type``; in the last two cases the target images are `y_qpi`.
        batch : array-like of shape (n_cells,) or table, optional
            Experimental batch (day, plate, site) of each cell. Of a table of several columns (DataFrame, structured
            array, dict of columns) each distinct row is one. Without it stage 2 is skipped, with a warning.
        cell_type : array-like of shape (n_cells,), optional
            What must be kept (line, drug, dose, phase). Cells without it (None, NaN; -1 beside 0, 1, 2, ...) train
            images and content, not types nor the comparison of batches.
        y_qpi : array-like, optional
            Target images, where `y` holds the cell types or nothing.

        Returns
        -------
        self : BeGANTransformer

        Raises
        ------
        TypeError, ValueError
            For input or parameters that cannot be used, before anything is trained; an earlier fit is kept.
        FloatingPointError
            When training diverges from the start whatever the learning rate.
        """
        config = Config.of(self.get_params(deep=False))
        dataset = checks.check_fit_input(X_bf, y, batch, cell_type, y_qpi)
        reference = checks.reference_code(dataset, self.reference_batch)
        memory = checks.check_memory(self.memory)
        random_state = checks.check_seed(self.random_state)
        from skbegan import fit
        from skbegan.core.engine import resolve_device

        resolve_device(self.device)
        removes = self.removal_epochs > 0 and self._can_remove_batch(dataset)
        earlier = self._earlier(config, dataset, removes)
        # scikit-learn takes the global generator for None, which would read and change it.
        rng = np.random.RandomState() if random_state is None else check_random_state(random_state)
        fitted = fit.run(
            config,
            dataset,
            rng.randint(2**31 - 1, size=len(fit.SEEDS)),
            memory=memory,
            removes=removes,
            reference=reference,
            earlier=earlier,
            keep_discriminator=self.warm_start,
        )
        for event in fitted.events:
            if event.warns:
                checks.warn_caller(str(event), RuntimeWarning)
        self._adopt(fitted.model)
        fitted.remove_checkpoints()
        return self

    def fit_transform(
        self, X_bf: Any, y: Any = None, batch: Any = None, cell_type: Any = None, *, y_qpi: Any = None
    ) -> Any:
        """Fit, then return the features of the same cells; see :meth:`fit` and :meth:`transform`."""
        return self.fit(X_bf, y, batch, cell_type, y_qpi=y_qpi).transform(X_bf)

    # Using what was learned ---------------------------------------------------------------------------------------

    def transform(self, X_bf: Any, *, out: Any = None) -> Any:
        """Return the profile of each cell; runs the decoder too, unless ``profile__descriptor_share`` is 0.

        Parameters
        ----------
        X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
            Brightfield images like those of fit. Of an array of dask the result is one too, and nothing is computed
            before it is asked for.
        out : array, memory map, h5py.Dataset or zarr.Array of shape (n_cells, n_features), default=None
            Where to write the profiles, block by block, in float32 or float64; it is returned as it is, whatever
            `set_output` says. Where a call was stopped, the same call goes on, see Notes.

        Returns
        -------
        features : ndarray of shape (n_cells, n_features), float32
            The bottleneck, at least 0 as it ends in a ReLU, after stage 1 or the published stage 2; after the default
            stage 2 the profile made from it, of any sign. With ``inference="population"`` each row depends on its cell
            alone.

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            For images of another shape than in fit, or not finite, or an `out` of another shape or dtype; before any
            work, but for an array of dask, whose values are checked when they are computed.

        Notes
        -----
        How far `out` was written is noted after each block, with fingerprints of model and images: in an attribute
        ``skbegan_written`` of a data set of h5py or an array of zarr, in a file ``NAME.skbegan_written.json`` beside a
        memory map. The note is removed at the end. An array in memory is written from the start.
        """
        return self._predict(X_bf, "features", out)

    def score(self, X_bf: Any, y: Any = None, batch: Any = None, cell_type: Any = None, *, y_qpi: Any = None) -> float:
        """Return how well batch is removed and biology kept in these cells; greater is better.

        What is measured depends on what is given, and never on the loss weights, so that searches can tune them:

        - cell types, and at least two batches: :func:`skbegan.metrics.batch_removal_score` of the features;
        - cell types alone, or of one batch: :func:`skbegan.metrics.cell_type_accuracy` of the features, by fresh
          probes;
        - target images alone: the coefficient of determination of the predicted pixels.

        Only the first says anything of the batch. When a model that was fitted with several batches is scored by one of
        the others, a warning says so.

        Parameters
        ----------
        X_bf, y, batch, cell_type, y_qpi
            As in :meth:`fit`, of cells that were not fitted on, and of several batches.

        Returns
        -------
        score : float

        Raises
        ------
        ValueError
            When the figure cannot be computed from what was given.

        Warns
        -----
        UserWarning
            When the model knows several batches and the score says nothing of them.

        Notes
        -----
        In a search over the bare transformer scikit-learn passes `batch`, `cell_type` and `y_qpi` to score only with
        ``sklearn.set_config(enable_metadata_routing=True)``. Without it score gets `y` alone. Then either let `y` be a
        table with columns ``batch`` and ``cell_type`` (the target images go to the search's fit as ``y_qpi=``), or set
        ``scoring=skbegan.metrics.batch_removal_scorer.with_labels(X_bf, batch, cell_type)``. Folds must mix the
        batches: one that leaves out a batch has a single batch to score.
        """
        check_is_fitted(self)
        bf, y_qpi, batch, cell_type = checks.check_score_input(X_bf, y, batch, cell_type, y_qpi, self.image_shape_)
        from skbegan import metrics

        mixed = batch is not None and len(np.unique(batch)) > 1
        if cell_type is not None and mixed:
            return float(metrics.batch_removal_score(self._predict(bf, "features"), batch, cell_type))
        if cell_type is None and y_qpi is None:
            raise ValueError("score needs cell_type (best with batch), or target images as y")
        if self.batches_ is not None and len(self.batches_) > 1:
            checks.warn_caller(checks.partial_score_message(batch, cell_type), UserWarning)
        if cell_type is not None:
            return float(metrics.cell_type_accuracy(self._predict(bf, "features"), cell_type))
        target = checks.check_images(y_qpi, "y_qpi", self.target_shape_)
        if len(target) != len(bf):
            raise ValueError(f"X_bf has {len(bf)} cells but y_qpi has {len(target)}")
        from skbegan.metrics.images import explained_share

        return explained_share(self.predict_image(bf).reshape(target.shape), target)


# scikit-learn wraps these for set_output under the name X for the first argument.
for _name in ("transform", "fit_transform"):
    setattr(BeGANTransformer, _name, first_argument_by_name(inspect.getattr_static(BeGANTransformer, _name)))

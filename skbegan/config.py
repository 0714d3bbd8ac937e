"""The parameters of a fit: one frozen dataclass per stage, with ranges, checks and presets.

:meth:`Config.of` makes them from the estimator's parameters, once per fit; from there on a parameter travels as a typed
attribute. :class:`OnlineRemoval`, :class:`PublishedRemoval` and :class:`ProfileAlignment` are also what a user gives to
the estimator: scikit-learn clones them and searches their fields, as in ``removal__alignment``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from skbegan._rules import (
    Anything,
    Choice,
    Count,
    Flag,
    FlagOr,
    Folder,
    Function,
    Number,
    Numbers,
    OptionalCount,
    Rule,
    Verbosity,
)

# Fields ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instance(Rule):
    """An object with parameters of its own, of a class in `_KINDS`."""

    kind: str

    def __call__(self, name: str, value: Any) -> Any:
        if not isinstance(value, _KINDS[self.kind]) or isinstance(value, type):
            kinds = _KINDS[self.kind].__subclasses__() or [_KINDS[self.kind]]
            known = " or ".join(f"{cls.__name__}(...)" for cls in kinds)
            raise TypeError(f"{name} must be {known}, got {value!r:.80}")
        return value.checked(name)


SHARE = Number(high=1.0)
RATE = Number(positive=True)
WEIGHT = Number()


def parameter(default: Any, rule: Rule, name: str | None = None) -> Any:
    """Declare a field; `name` is the estimator's parameter of another name that it comes from."""
    return dataclasses.field(default=default, metadata={"rule": rule, "name": name})


def constant(default: Any, rule: Rule) -> Any:
    """Declare a field that no parameter of the estimator sets."""
    return dataclasses.field(default=default, metadata={"rule": rule, "name": ""})


@dataclass(frozen=True, repr=False)
class Parameters:
    """Base of objects that hold some parameters: scikit-learn can read, clone and search them.

    They do not change: ``set_params`` of the estimator replaces them.
    """

    def __repr__(self) -> str:
        changed = (f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Parameters
        ----------
        deep : bool, default=True
            As scikit-learn passes it; there is nothing deeper.

        Returns
        -------
        params : dict of str to object
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def checked(self, name: str) -> Self:
        """Return a copy with plain Python values, or raise for the first field that its rule refuses.

        Parameters
        ----------
        name : str
            What errors call this object, e.g. ``"removal"``.

        Returns
        -------
        checked : object of the same class

        Raises
        ------
        TypeError, ValueError
            With the field as ``name.field``, what it may be and what was found.
        """
        values = {
            field.name: field.metadata["rule"](f"{name}.{field.name}", getattr(self, field.name))
            for field in dataclasses.fields(self)
        }
        return type(self)(**values)


# Stages ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks, and whether images are standardised, which the last layer starts at the scale of."""

    base_width: int = parameter(64, Count(1))
    n_features: int = parameter(512, Count(1))
    standardize: bool | str = parameter(True, FlagOr("image"))
    norm: str = parameter("batch", Choice(("batch", "instance", "group")))
    head_width: int = parameter(8, Count(1))


@dataclass(frozen=True)
class Pretraining:
    """Stage 1: epochs, weights of the losses, learning rates."""

    epochs: int = parameter(100, Count(0), "pretrain_epochs")
    adversarial: float = constant(1.0, WEIGHT)
    image: float = parameter(100.0, WEIGHT, "pretrain_image_weight")
    learning_rate: float = parameter(1e-3, RATE)
    discriminator_learning_rate: float = parameter(1e-4, RATE)
    decay: float = parameter(0.5, SHARE, "pretrain_decay")
    minibatch_size: int = parameter(64, Count(2))
    steps_per_epoch: int | None = parameter(None, OptionalCount(1))
    augment: bool = parameter(True, Flag())


@dataclass(frozen=True, repr=False)
class RemovalMethod(Parameters):
    """Base of the ways to remove the batch in stage 2.

    A further method is one new file: a subclass, and a module with a function ``build(config, cells, design, engine,
    start)`` that returns a plan (see :class:`skbegan.core.loop.Plan`), which `plan` names.
    """

    plan: ClassVar[str]
    #: Whether profile alignment follows.
    aligns_profile: ClassVar[bool] = True
    #: Whether its plan takes cells of unknown type, which have the code -1.
    takes_unknown_types: ClassVar[bool] = False


@dataclass(frozen=True, repr=False)
class OnlineRemoval(RemovalMethod):
    """Batch removal by adversaries that are trained along with the generator: the default.

    Adversaries see all features and the cell type. Further losses need no opponent: some bring the batches together,
    some keep in the features what tells cells apart.

    Parameters
    ----------
    learning_rate : float, default=1e-3
        Of the generator (Adam).
    adversary_learning_rate : float, default=1e-3
        Of the adversaries.
    n_adversaries : int, default=2
        Feature adversaries, of different age.
    adversary_steps : int, default=1
        Updates of the feature adversaries per step of the generator. More make the game unstable.
    warmup_epochs : int, default=4
        Epochs at the start in which the classifiers are trained and the generator is not.
    ramp : float, default=0.3
        Share of the stage over which the weights of the losses that remove the batch rise from 0. With full
        weights from the first step the cell-type classifiers cannot keep up.
    decay : float, default=0.5
        Share of the stage, its last part, over which the generator's learning rate falls to 0.
    averaging : float, default=0.99
        Decay per step of the exponential moving average (EMA) of the generator's weights, which is the generator that
        the stage leaves; 0 leaves the last one.
    target_style : {"canonical", "transferred"}, default="canonical"
        What the generator learns to predict. ``"canonical"``: the target in the mean style (mean image and power
        spectrum) of all batches that compare with its cell type, one image per cell. ``"transferred"``: in the style of
        a batch drawn at each step for `style_share` of the cells. Either way the best prediction is the same for all
        batches.
    style_share : float, default=0.8
        Share of the cells whose second view, see `invariance`, has the brightfield in the style of another batch, after
        Fourier-domain style transfer [1]_. Styles include those of batches that the type was never imaged in: the batch
        would otherwise predict the type.
    brightfield_style_share : float, default=0.2
        Share of the brightfields in the first view that get another style. More of it makes the cell type harder to
        name in known batches and easier in new ones, since the batch is less of a hint.
    unseen_style_share : float, default=0.7
        Share, among brightfields in another style, of those in an unseen style, which is of no batch.
    unseen_style_spread : float, default=1.5
        How widely unseen styles scatter about the mean of the batches, relative to the batches; 0: only styles of
        batches. They prepare for batches that were never seen.
    instrument_share : float, default=0.0
        Share of the brightfields, in either view, that are shown as another instrument would: magnification, transfer
        function, contrast, offset, uneven illumination and noise are drawn for each cell (domain randomisation [4]_).
        0.5 prepares for instruments that differ from those of the batches in other ways than these do from one another.
    instrument_spread : float, default=1.0
        How widely they are drawn; 1 is as far as instruments of different laboratories usually differ.
    alignment : float, default=0.6
        Weight, relative to `batch_weight`, of the Mahalanobis distance between the batches of a cell type in feature
        space.
    invariance : float, default=5.0
        Weight of the difference between the profile of a cell and that of its second view, in another style and
        orientation.
    activity : float, default=2.0
        Weight of the variance term, which keeps features from becoming constant: removing the batch is easiest with
        few features. It and `decorrelation` are the variance and covariance terms of VICReg [2]_ in other forms.
    decorrelation : float, default=2.0
        Weight of the mean squared correlation of pairs of features.
    identity : float, default=1.0
        Weight of the cross-entropy of finding a cell's own second view among the minibatch (InfoNCE [3]_). Styles are
        drawn independently of the batch, which does not help to find it.
    temperature : float, default=0.2
        Of that cross-entropy: what the cosine of two profiles is divided by.
    descriptors : float, default=2.0
        Weight of the error with which a linear head tells mass, area, elongation, radial profile, angular harmonics,
        quantiles and texture of the target from the features.

    References
    ----------
    .. [1] Yang and Soatto, "FDA: Fourier domain adaptation for semantic segmentation", CVPR 2020.
    .. [2] Bardes, Ponce and LeCun, "VICReg: variance-invariance-covariance regularization for self-supervised
       learning", ICLR 2022.
    .. [3] van den Oord, Li and Vinyals, "Representation learning with contrastive predictive coding", arXiv:1807.03748,
       2018.
    .. [4] Tobin et al., "Domain randomization for transferring deep neural networks from simulation to the real world",
       IROS 2017.

    Examples
    --------
    >>> from skbegan import BeGANTransformer, OnlineRemoval
    >>> began = BeGANTransformer(removal=OnlineRemoval(alignment=1.0))
    >>> began.set_params(removal__decay=0.3).removal.alignment
    1.0
    """

    plan: ClassVar[str] = "skbegan.core.plans.online"
    takes_unknown_types: ClassVar[bool] = True

    learning_rate: float = parameter(1e-3, RATE)
    adversary_learning_rate: float = parameter(1e-3, RATE)
    n_adversaries: int = parameter(2, Count(1))
    adversary_steps: int = parameter(1, Count(1))
    warmup_epochs: int = parameter(4, Count(0))
    ramp: float = parameter(0.3, SHARE)
    decay: float = parameter(0.5, SHARE)
    averaging: float = parameter(0.99, Number(high=0.9999))
    target_style: str = parameter("canonical", Choice(("canonical", "transferred")))
    style_share: float = parameter(0.8, SHARE)
    brightfield_style_share: float = parameter(0.2, SHARE)
    unseen_style_share: float = parameter(0.7, SHARE)
    unseen_style_spread: float = parameter(1.5, Number(high=100.0))
    instrument_share: float = parameter(0.0, SHARE)
    instrument_spread: float = parameter(1.0, Number(high=3.0))
    alignment: float = parameter(0.6, WEIGHT)
    invariance: float = parameter(5.0, WEIGHT)
    activity: float = parameter(2.0, WEIGHT)
    decorrelation: float = parameter(2.0, WEIGHT)
    identity: float = parameter(1.0, WEIGHT)
    temperature: float = parameter(0.2, RATE)
    descriptors: float = parameter(2.0, WEIGHT)


@dataclass(frozen=True, repr=False)
class PublishedRemoval(RemovalMethod):
    """Batch removal as published: classifiers fitted between the stages and frozen, those of the batch refitted.

    Batch classifiers see disjoint random subsets of the features and are fitted anew every `refresh_epochs` epochs of
    the estimator; cell-type and image classifiers are fitted once.

    Parameters
    ----------
    learning_rate : float, default=2e-4
        Of the generator (Adam).
    adversary_learning_rate : float, default=0.05
        Of the batch classifiers on features. At the published 0.05 some of them often stay at chance.
    n_subsets : int, default=4
        Batch classifiers, each on its own subset of the features.
    feature_minibatch_size, image_minibatch_size : int, default=32, 500
        Of the fits of the classifiers of features and of images.

    Examples
    --------
    >>> from skbegan import PUBLISHED, BeGANTransformer
    >>> BeGANTransformer(**PUBLISHED).removal.n_subsets
    4
    """

    plan: ClassVar[str] = "skbegan.core.plans.published"
    aligns_profile: ClassVar[bool] = False

    learning_rate: float = parameter(2e-4, RATE)
    adversary_learning_rate: float = parameter(0.05, RATE)
    n_subsets: int = parameter(4, Count(1))
    feature_minibatch_size: int = parameter(32, Count(2))
    image_minibatch_size: int = parameter(500, Count(2))


@dataclass(frozen=True)
class Removal:
    """Stage 2: what all methods share. `batch_weight` and its like are the estimator's names of the weights."""

    epochs: int = parameter(300, Count(0), "removal_epochs")
    refresh_epochs: int = parameter(5, Count(1))
    classifier_epochs: int = parameter(100, Count(1))
    adversarial: float = parameter(0.0, WEIGHT, "adversarial_weight")
    image: float = parameter(60.0, WEIGHT, "image_weight")
    cell_type: float = parameter(1.0, WEIGHT, "cell_type_weight")
    cell_type_image: float = parameter(1.0, WEIGHT, "cell_type_image_weight")
    batch: float = parameter(1.0, WEIGHT, "batch_weight")
    batch_image: float = parameter(0.0, WEIGHT, "batch_image_weight")
    batch_target: str = parameter("conditional", Choice(("conditional", "uniform", "reference")))
    reference_batch: Any = parameter(None, Anything())
    discriminator_learning_rate: float = parameter(1e-4, RATE)
    classifier_learning_rate: float = parameter(1e-3, RATE)
    minibatch_size: int = parameter(64, Count(2))
    steps_per_epoch: int | None = parameter(None, OptionalCount(1))
    augment: bool = parameter(True, Flag())
    method: RemovalMethod = parameter(OnlineRemoval(), Instance("removal"), "removal")


@dataclass(frozen=True, repr=False)
class ProfileAlignment(Parameters):
    """Stage 3, on the finished generator: a small network makes the profile, and the batch is erased from images.

    The profile reads the features and descriptors of the predicted image: mass, area, elongation, radial profile,
    angular harmonics, quantiles and texture. In a U-Net the skip connections carry shape past the features.

    Parameters
    ----------
    matching : float, default=10.0
        Weight, relative to `batch_weight`, of the maximum mean discrepancy (MMD) between the batches of a cell type
        [1]_. 0 leaves the features as they are.
    floor : float, default=0.1
        The profile keeps the directions in which features and descriptors have at least this share of the variance of
        an average direction. Fainter ones mostly hold the batch. Greater values leave a profile of fewer independent
        numbers.
    descriptor_share : float, default=0.5
        Share of the descriptors in the variance that the directions are found for, the rest being that of the features.
        0: the profile is made of the features alone, and `transform` needs the encoder only, which is several times
        faster.
    whitening : float, default=0.7
        From 0, directions of the profile have the variance of what they are made of, to 1, all have about the same.
        Only where descriptors are read.
    image_erasure : bool, default=True
        Erase from the predicted images the directions in which the batches of a cell type have different means (after
        LEACE [2]_; only with a positive `batch_weight`).
    cell_type : float, default=2.0
        Weight, relative to `cell_type_weight`, of the cross-entropy of a linear classifier of the cell type.
    correction : float, default=1.0
        Weight of the squared distance by which the network moves cells.
    learning_rate : float, default=3e-3
        Falls to 0 over the second half.
    weight_decay : float, default=0.3
        Of the network, relative to the learning rate; keeps it from overfitting to the training cells.
    steps : int, default=900
        At most; no more than stage 2 had.
    hidden : int, default=128
        Width of the network.
    views : int, default=8
        Orientations of each cell that it is fitted on (with ``augment=True``).
    kernel_widths : tuple of float, default=(0.1, 0.3, 1.0, 3.0)
        Of the Gaussian kernels of the MMD: of the squared distance, in units of its median within the type.
    ridge : float, default=0.1
        Of the variance of a standardised feature, in the metric of the kernels.
    matching_shares : tuple of float, default=(1.0, 0.25, 0.05)
        Shares of `matching` that are tried in turn until no cell type falls to chance.

    References
    ----------
    .. [1] Gretton et al., "A kernel two-sample test", Journal of Machine Learning Research 13, 2012.
    .. [2] Belrose et al., "LEACE: perfect linear concept erasure in closed form", NeurIPS 2023.

    Examples
    --------
    >>> from skbegan import BeGANTransformer, ProfileAlignment
    >>> BeGANTransformer(profile=ProfileAlignment(matching=0)).get_params()["profile__matching"]
    0
    """

    matching: float = parameter(10.0, WEIGHT)
    floor: float = parameter(0.1, SHARE)
    descriptor_share: float = parameter(0.5, SHARE)
    whitening: float = parameter(0.7, SHARE)
    image_erasure: bool = parameter(True, Flag())
    cell_type: float = parameter(2.0, WEIGHT)
    correction: float = parameter(1.0, WEIGHT)
    learning_rate: float = parameter(3e-3, RATE)
    weight_decay: float = parameter(0.3, WEIGHT)
    steps: int = parameter(900, Count(0))
    hidden: int = parameter(128, Count(1))
    views: int = parameter(8, Count(1))
    kernel_widths: tuple[float, ...] = parameter((0.1, 0.3, 1.0, 3.0), Numbers())
    ridge: float = parameter(0.1, RATE)
    matching_shares: tuple[float, ...] = parameter((1.0, 0.25, 0.05), Numbers())


@dataclass(frozen=True)
class Runtime:
    """Where and how a fit runs; nothing here is part of what is learned, but for the precision."""

    device: Any = parameter("auto", Anything())
    precision: str = parameter("auto", Choice(("auto", "float32", "bfloat16", "float64")))
    compile: bool = parameter(False, Flag())
    inference: str = parameter("population", Choice(("population", "minibatch")))
    memory: Any = parameter(None, Anything())
    warm_start: bool = parameter(False, Flag())
    callback: Callable[[Any], bool | None] | None = parameter(None, Function())
    checkpoint_dir: Any = parameter(None, Folder())
    verbose: int = parameter(0, Verbosity())
    calibrate: bool = parameter(False, Flag())


@dataclass(frozen=True)
class Config:
    """All parameters of a fit."""

    architecture: Architecture = Architecture()
    pretraining: Pretraining = Pretraining()
    removal: Removal = Removal()
    profile: ProfileAlignment = ProfileAlignment()
    runtime: Runtime = Runtime()
    validation_fraction: float = parameter(0.1, Number(high=0.9))

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Config:
        """Return the parameters of the estimator, checked.

        Parameters
        ----------
        parameters : mapping of str to object
            What ``get_params(deep=False)`` of the estimator returns.

        Raises
        ------
        TypeError, ValueError
            With the parameter's name, what it may be and what was found.
        """
        return cls(
            architecture=_stage(Architecture, parameters),
            pretraining=_stage(Pretraining, parameters),
            removal=_stage(Removal, parameters),
            profile=Instance("profile")("profile", parameters["profile"]),
            runtime=_stage(Runtime, parameters),
            validation_fraction=Number(high=0.9)("validation_fraction", parameters["validation_fraction"]),
        )

    @property
    def learned(self) -> Config:
        """The same without what says where and how it runs: what a fitted model keeps."""
        return dataclasses.replace(self, runtime=Runtime(precision=self.runtime.precision))


def _stage(stage: type[Any], parameters: Mapping[str, Any]) -> Any:
    values = {}
    for field in dataclasses.fields(stage):
        name = field.name if field.metadata["name"] is None else field.metadata["name"]
        if name:
            values[field.name] = field.metadata["rule"](name, parameters[name])
    return stage(**values)


_KINDS: dict[str, type[Parameters]] = {"removal": RemovalMethod, "profile": ProfileAlignment}

PUBLISHED: dict[str, Any] = {
    "base_width": 64,
    "n_features": 512,
    "pretrain_epochs": 100,
    "pretrain_image_weight": 100.0,
    "pretrain_decay": 0.0,
    "head_width": 4,
    "removal_epochs": 300,
    "refresh_epochs": 5,
    "classifier_epochs": 100,
    "adversarial_weight": 1.0,
    "cell_type_weight": 100.0,
    "cell_type_image_weight": 100.0,
    "batch_weight": 100.0,
    "batch_image_weight": 100.0,
    "image_weight": 300.0,
    "batch_target": "reference",
    "removal": PublishedRemoval(),
    "learning_rate": 2e-4,
    "discriminator_learning_rate": 1e-4,
    "classifier_learning_rate": 1e-3,
    "minibatch_size": 10,
    "augment": False,
    "standardize": False,
    "norm": "batch",
    "precision": "float32",
}
"""Parameters that reproduce the original recipe: ``BeGANTransformer(**PUBLISHED)``."""

"""FittedModel: the result of a fit. It is what is saved, loaded and pickled, and it predicts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from skbegan.config import Config
from skbegan.stored.lazy import spread_rows

if TYPE_CHECKING:
    import torch

    from skbegan.core.networks import Generator, Weights
    from skbegan.core.standalone import StandaloneModel
    from skbegan.data.source import ImageSource, Scaling
    from skbegan.restyling import TargetStyles
    from skbegan.shift.calibration import Calibration

FAR = 2.0  # times the range of training, beyond either end: more than instruments differ by
FAINT = 50.0  # times narrower than the range of training
MAX_CHECKED = 4096  # cells: those whose outputs are checked before a fit returns, and lazy ones whose units are


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A fitted generator with all that is needed to use it and to train on.

    Attributes
    ----------
    weights : dict of str to ndarray
        Of the generator, with its population statistics, profile map and image erasure.
    bf_scaling, target_scaling : Scaling
        Standardisation of brightfield and target.
    bf_range : tuple of two ndarray or None
        Smallest and largest value of each channel of the brightfields that were trained on, where known.
    image_shape, target_shape : tuple of int
        Shape of one brightfield and of one target image, as given to fit.
    batches, cell_types : ndarray or None
        Sorted labels seen in fit; None where none were given.
    history : dict
        Losses by stage, and ``"events"``.
    device : str
        That fit ran on.
    config : Config or None
        Parameters of the fit, without where and how it ran; None for imported models.
    discriminator : dict of str to ndarray or None
        Where training may go on.
    batch_columns : dict of str to ndarray or None
        What each of the batches has in the columns of the table that was given as batch.
    styles : TargetStyles or None
        What each batch does to target images, where stage 2 has freed the predicted ones of it.
    calibration : Calibration or None
        What the model knows of batches, see :mod:`skbegan.shift.calibration`.
    """

    weights: Weights
    bf_scaling: Scaling
    target_scaling: Scaling
    image_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    bf_range: tuple[np.ndarray, np.ndarray] | None = None
    batches: np.ndarray | None = None
    cell_types: np.ndarray | None = None
    history: dict[str, Any] = field(default_factory=dict)
    device: str = "unknown"
    config: Config | None = None
    discriminator: Weights | None = None
    batch_columns: dict[str, np.ndarray] | None = None
    styles: TargetStyles | None = None
    calibration: Calibration | None = None

    @property
    def base_width(self) -> int:
        """Channels of the first level of the generator."""
        return int(self.weights["encoder.0.conv.weight"].shape[0])

    @property
    def n_features(self) -> int:
        """Length of the profile."""
        return int(self.weights["bottleneck.weight"].shape[0])

    def fingerprint(self) -> str:
        """Return a digest of all that predictions depend on."""
        found = hashlib.blake2b(repr((self.image_shape, self.target_shape, self._per_image)).encode(), digest_size=16)
        for name, values in sorted(self.weights.items()):
            found.update(f"{name} {values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        if self.styles is not None:
            for name, values in sorted(vars(self.styles).items()):
                found.update(name.encode() + np.ascontiguousarray(values).tobytes())
        for values in (*self.bf_scaling, *self.target_scaling):
            found.update(np.asarray(values, dtype=np.float64).tobytes())
        return found.hexdigest()

    def predict(
        self,
        bf: np.ndarray,
        want: Literal["features", "images"],
        *,
        device: str = "auto",
        precision: str = "auto",
        minibatch_size: int | None = None,
    ) -> np.ndarray:
        """Return features (n, n_features) or images (n, C, H, W), in the units of the target, of checked brightfields.

        Parameters
        ----------
        bf : ndarray of shape (n, *image_shape)
        want : {"features", "images"}
        device, precision : str
        minibatch_size : int or None, default=None
            None uses population statistics; a number those of consecutive minibatches, as the original does.

        Raises
        ------
        FloatingPointError
            If any of them is not finite.
        """
        values = self._values(bf, want, device, precision, minibatch_size)
        if not _is_finite(values):
            raise FloatingPointError(
                f"the {want} that the model gives for these cells are not finite: their pixels, or the model's weights "
                "or scalings, are far from those of a fit"
            )
        return values

    def _values(
        self,
        bf: np.ndarray,
        want: Literal["features", "images"],
        device: str,
        precision: str,
        minibatch_size: int | None = None,
    ) -> np.ndarray:
        import torch

        from skbegan.core.engine import undisturbed
        from skbegan.core.inference import infer

        with undisturbed():
            generator, source, dtype = self._ready(bf, device, precision, folded=minibatch_size is None)
            order: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if minibatch_size is not None and dtype is torch.float32 and source.device.type == "cpu":
                from skbegan.io.keras import summed_in_order

                order = summed_in_order(generator)
            with order:
                values = infer(generator, source, want=want, minibatch_size=minibatch_size, dtype=dtype)
        if want == "images":  # in place: no second array of all images
            with np.errstate(over="ignore", invalid="ignore"):
                values *= self.target_scaling.scale.astype(np.float32)[:, None, None]
                values += self.target_scaling.mean.astype(np.float32)[:, None, None]
        return values

    def as_of_batch(self, as_batch: Any) -> np.ndarray:
        """Return the codes of the batches that `as_batch` names and whose style is known.

        Raises
        ------
        ValueError
            For an unknown batch, and where the model keeps no styles.
        """
        from skbegan.restyling import batches_meant

        codes = batches_meant(as_batch, self.batches, self.batch_columns)
        if self.styles is None:
            why = (
                "was written before styles were kept, or by a removal method that measures none: fit it again"
                if "batch_removal" in self.history
                else "had no stage 2, so that its images are not free of their own batch"
            )
            raise ValueError(f"as_batch={str(as_batch)!r}: the model keeps no styles of its batches. It {why}")
        measured: np.ndarray = codes[self.styles.measured[codes]]
        if not len(measured):
            raise ValueError(
                f"as_batch={str(as_batch)!r}: the style of this batch is not known, since it had fewer than 8 cells of "
                "each cell type in training"
            )
        return measured

    def restyled(self, images: np.ndarray, as_batch: Any) -> np.ndarray:
        """Return predicted images (n, C, H, W), which are changed in place, as the batches that are named show them.

        Raises
        ------
        ValueError
            As :meth:`as_of_batch`.
        """
        codes = self.as_of_batch(as_batch)
        assert self.styles is not None
        return self.styles.apply(images, codes, *self.target_scaling)

    def foreign_units(self, bf: np.ndarray) -> str | None:
        """Say that brightfields lie far outside of the range that was trained on, naming both, or return None.

        Of lazy images at most `MAX_CHECKED` cells from all over are looked at.

        Parameters
        ----------
        bf : ndarray of shape (n, *image_shape)
        """
        if self.bf_range is None:
            return None
        from skbegan.data.source import value_range

        found = value_range(bf, spread_rows(bf, MAX_CHECKED))
        for channel, (low, high, new_low, new_high) in enumerate(zip(*self.bf_range, *found, strict=True)):
            span = high - low
            far = new_low < low - FAR * span or new_high > high + FAR * span
            if far or FAINT * (new_high - new_low) < span:
                where = f" of channel {channel}" if len(self.bf_range[0]) > 1 else ""
                return (
                    f"X_bf{where} lies in {new_low:.4g} ... {new_high:.4g}, but the model was fitted on values in "
                    f"{low:.4g} ... {high:.4g}: are the units others? Nothing was rescaled"
                )
        return None

    def recalibrated(
        self, bf: np.ndarray, rows: np.ndarray, *, device: str, precision: str, minibatch_size: int
    ) -> FittedModel:
        """Return the model with BatchNorm statistics re-estimated on ``bf[rows]``.

        Parameters
        ----------
        bf : ndarray of shape (n, *image_shape)
        rows : ndarray of int
        device, precision : str
        minibatch_size : int
            That of the training, so that the statistics average over minibatches like those it saw.
        """
        from skbegan.core.engine import undisturbed
        from skbegan.core.inference import estimate_population_statistics
        from skbegan.core.networks import from_numpy, to_numpy

        with undisturbed():
            generator, source, dtype = self._ready(bf, device, precision, folded=False)
            from_numpy(generator, self.weights)
            parts = np.array_split(rows, max(1, len(rows) // minibatch_size))
            estimate_population_statistics(generator, (source.take(part) for part in parts), dtype)
            # What was calibrated was the model with the earlier statistics.
            return dataclasses.replace(self, weights=to_numpy(generator), calibration=None)

    def check_goes_on(self, config: Config, bf: np.ndarray, target: np.ndarray, removes: bool) -> None:
        """Check that a warm start can go on from here.

        Parameters
        ----------
        config : Config
            Of the further fit.
        bf, target : ndarray of shape (n, ...)
            Its images.
        removes : bool
            Whether it has a stage 2.

        Raises
        ------
        ValueError
        """
        for name, shape, images in (("X_bf", self.image_shape, bf), ("y_qpi", self.target_shape, target)):
            if (*shape, 1)[:3] != (*images.shape[1:], 1)[:3]:
                raise ValueError(
                    f"warm_start: {name} has images of shape {images.shape[1:]}, but the model was fitted on {shape}; "
                    "use warm_start=False for a new model"
                )
        for name in ("base_width", "n_features"):
            asked, fitted = getattr(config.architecture, name), getattr(self, name)
            if asked != fitted:
                raise ValueError(
                    f"warm_start: {name}={asked}, but the model was fitted with {fitted}, and networks "
                    "cannot change their size; use warm_start=False for a new model"
                )
        if "batch_removal" in self.history and not removes:
            raise ValueError(
                "warm_start: the batch was already removed, and without stage 2 (removal_epochs, batch) only stage 1 "
                "could go on, which would bring it back; use warm_start=False for a new model"
            )

    def check_finite(self, bf: np.ndarray, rows: np.ndarray, *, device: str, precision: str) -> None:
        """Check weights, scalings, and the outputs on training cells, at most `MAX_CHECKED` of them.

        Raises
        ------
        FloatingPointError
            If any of them is not finite.
        """
        numbers = {
            **{f"weights {name}": value for name, value in self.weights.items()},
            "standardisation of X_bf": np.concatenate(self.bf_scaling),
            "standardisation of y_qpi": np.concatenate(self.target_scaling),
        }
        odd = [name for name, values in numbers.items() if not np.isfinite(values).all()]
        if not odd:
            chosen = np.sort(rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_CHECKED)).round().astype(int)])
            parts = np.array_split(chosen, -(-len(chosen) // 256))
            wanted: tuple[Literal["features", "images"], ...] = ("features", "images")
            for want in wanted:
                if not all(_is_finite(self._values(bf[part], want, device, precision)) for part in parts):
                    odd.append(f"{want} of training cells")
        if odd:
            raise FloatingPointError(
                f"the fit ended with numbers that are not finite ({', '.join(odd[:3])}"
                f"{' ...' if len(odd) > 3 else ''}); nothing was kept. Check the scale of the images "
                "(standardize=True) and lower the learning rates or the loss weights"
            )

    @property
    def _per_image(self) -> bool:
        return self.config is not None and self.config.architecture.standardize == "image"

    def to_torch(self) -> StandaloneModel:
        """Return a copy as a plain module from brightfields (n, C, H, W) to profiles and images."""
        from skbegan.core.engine import undisturbed
        from skbegan.core.standalone import StandaloneModel

        with undisturbed():
            return StandaloneModel(self.weights, self.bf_scaling, self.target_scaling, self._per_image)

    def _ready(
        self, bf: np.ndarray, device: str, precision: str, folded: bool
    ) -> tuple[Generator, ImageSource, torch.dtype]:
        """Return the generator on a device, for inference alone or not, the images for it, and its dtype."""
        from skbegan.core.engine import resolve_device, resolve_precision
        from skbegan.core.inference import fold
        from skbegan.core.networks import generator_of
        from skbegan.data.source import ImageSource

        where = resolve_device(device)
        dtype = resolve_precision(precision, where, self.base_width)
        made_for, cached = (where, dtype, folded), self.__dict__.get("_generator")
        if cached is None or cached[0] != made_for:
            generator = generator_of(self.weights, where, dtype)
            cached = made_for, fold(generator, dtype) if folded else generator
            object.__setattr__(self, "_generator", cached)  # no field: not pickled, not copied
        return cached[1], ImageSource(bf, self.bf_scaling, where, dtype, self._per_image), dtype

    def __getstate__(self) -> dict[str, Any]:
        # The generator is built again from the weights where it is used, on the device of there.
        return {name: value for name, value in self.__dict__.items() if name != "_generator"}


def _is_finite(values: np.ndarray) -> bool:
    # Not np.isfinite of all: that would be another array as large.
    return not values.size or bool(np.isfinite(values.min()) and np.isfinite(values.max()))

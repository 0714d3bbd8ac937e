"""Fitted models in one file that runs no code when it is loaded: safetensors for the weights, JSON for the rest.

A file is a safetensors file. Its tensors are the state of the generator, with what makes profiles of its features
(``profile.*``) and takes the batch from its images (``erasure.*``) where they were fitted, what its batches do to
target images (``style.*``) where that was measured, and what it knows of batches (``calibration.*``) where it does. Its
metadata has two entries: ``"skbegan"``, a JSON document, and ``"digest"``, the SHA-256 of that document and of all
tensors. The document holds

``format``      number of the format
``versions``    of skbegan, scikit-learn, torch and numpy that wrote the file
``parameters``  of the estimator
``fitted``      shapes, scaling, labels, history, device, and the parameters of the fit

JSON has no tuples, arrays and objects; they are written as ``{"tuple": [...]}``, ``{"array": [...], "dtype": "<U3"}``
and ``{"object": "OnlineRemoval", "fields": [[name, value], ...]}``, and dicts as ``{"dict": [[key, value], ...]}``, so
that nothing is confused with them. Objects are those of :mod:`skbegan.config` only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
from sklearn.utils.validation import check_is_fitted

from skbegan import checks, config
from skbegan._foreign import refuse_lfs_pointer
from skbegan._version import __version__, versions
from skbegan.io._style_tensors import STYLE, style_tensors, styles_as_tensors, styles_of
from skbegan.io.plain_data import decode, encode
from skbegan.stored.atomic import write_whole

if TYPE_CHECKING:
    from skbegan.estimator import BeGANTransformer
    from skbegan.model import FittedModel
    from skbegan.shift.calibration import Calibration

__all__ = ["load", "save"]

FORMAT = 1
MAX_HEADER = 1 << 24  # bytes of the JSON document: a history of some thousand epochs takes a hundredth of it
_ENTRY, _DIGEST = "skbegan", "digest"
_SCALINGS = {
    "bf_mean": "image_shape",
    "bf_scale": "image_shape",
    "qpi_mean": "target_shape",
    "qpi_scale": "target_shape",
}
_BESIDE = "calibration."  # beginning of the names of tensors that are not of the generator
_MAY_BE_UNKNOWN = ("calibration.seen", "calibration.class_scale", "calibration.accuracy", "calibration.error")
NOT_SAVED = ("memory", "checkpoint_dir", "callback")  # of this machine, or code


def save(est: BeGANTransformer, path: str | os.PathLike[str]) -> None:
    """Write a fitted transformer to a file.

    Parameters
    ----------
    est : BeGANTransformer
        A fitted transformer. Its weights, parameters, labels, scaling and history are kept; what scikit-learn keeps
        besides, such as :meth:`~skbegan.BeGANTransformer.set_output`, is not.
    path : path-like
        The file, in a folder that exists; ``.safetensors`` is the customary suffix. An existing file is replaced at the
        very end: whenever something fails it is still what it was.

    Raises
    ------
    NotFittedError
        If `est` is not fitted.
    TypeError
        If `est` is anything but a BeGANTransformer. Pipelines and searches are for ``joblib.dump``.
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If labels and history are longer than a file may hold.

    Warns
    -----
    UserWarning
        If parameters cannot be written as plain data (a ``RandomState``); they are saved as None. `memory`,
        `checkpoint_dir` and `callback` are of this machine and always saved as None.

    Examples
    --------
    >>> import tempfile, skbegan
    >>> cells = skbegan.datasets.make_cell_images(60, 2, 2, 16, random_state=0)
    >>> began = skbegan.BeGANTransformer(base_width=4, pretrain_epochs=1, removal_epochs=0, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     skbegan.save(began.fit(cells.bf, cells.qpi), f"{folder}/model.safetensors")
    ...     skbegan.load(f"{folder}/model.safetensors").image_shape_
    (16, 16)
    """
    from skbegan.estimator import BeGANTransformer

    if type(est) is not BeGANTransformer:
        raise TypeError(
            f"save writes a BeGANTransformer, got {type(est).__name__}; joblib.dump writes other estimators"
        )
    check_is_fitted(est)
    model = est._model
    assert model is not None
    parameters, lost = {}, []
    for name, value in est.get_params(deep=False).items():
        try:
            parameters[name] = None if name in NOT_SAVED else encode(value)
        except TypeError:
            parameters[name] = None
            lost.append(f"{name}={value!r}")
    if lost:
        checks.warn_caller(f"saved as None because they are no plain data: {', '.join(lost)}", UserWarning)
    fitted = {
        "image_shape": model.image_shape,
        "target_shape": model.target_shape,
        "base_width": model.base_width,
        "n_features": model.n_features,
        "bf_mean": model.bf_scaling.mean,
        "bf_scale": model.bf_scaling.scale,
        "bf_range": model.bf_range,
        "qpi_mean": model.target_scaling.mean,
        "qpi_scale": model.target_scaling.scale,
        "batches": model.batches,
        "cell_types": model.cell_types,
        "history": model.history,
        "device": model.device,
        "config": _plain_config(model.config),
    }
    fitted |= {name: value for name in _OPTIONAL if (value := getattr(model, name)) is not None}
    document = {
        "format": FORMAT,
        "versions": versions(),
        "parameters": parameters,
        "fitted": {name: encode(value) for name, value in fitted.items()},
    }
    weights = {name: np.ascontiguousarray(array) for name, array in (model.weights | _beside(model)).items()}
    text = json.dumps(document, allow_nan=False)
    if len(text) > MAX_HEADER:
        raise ValueError(f"labels and history take {len(text)} bytes, more than the {MAX_HEADER} that a file may hold")
    weights |= styles_as_tensors(model.styles)
    entries = {_ENTRY: text, _DIGEST: _digest(text, weights)}
    _replace(Path(path), safetensors.numpy.save(weights, metadata=entries))


def _beside(model: FittedModel) -> dict[str, np.ndarray]:
    """Return the tensors that are not of the generator."""
    arrays = {} if model.calibration is None else model.calibration.as_arrays()
    return {f"{_BESIDE}{name}": array for name, array in arrays.items()}


def _read_beside(
    path: Path, tensors: Mapping[str, np.ndarray], fitted: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> Calibration | None:
    """Return the calibration, checked."""
    from skbegan.shift.calibration import Calibration

    if not tensors:
        return None
    for name, values in tensors.items():
        whole = np.isfinite(values) | name.endswith(_MAY_BE_UNKNOWN)
        if values.dtype not in (np.float32, np.float64) or not np.all(whole):
            raise _refusal(path, f"tensor {name} should hold finite float32 or float64")
    image = (_n_channels(fitted["image_shape"]), *[fitted["image_shape"][0]] * 2)
    n_types = None if fitted["cell_types"] is None else len(fitted["cell_types"])
    n_features = len(weights["profile.write"][0]) if "profile.write" in weights else fitted["n_features"]
    n_norms = sum(len(values) for name, values in weights.items() if name.endswith(".running_mean"))
    arrays = {name.removeprefix(_BESIDE): values for name, values in tensors.items()}
    try:
        return Calibration.of_arrays(arrays, image, n_features, n_types, n_norms)
    except ValueError as error:
        raise _refusal(path, f"its calibration cannot be used: {error}") from error


def _plain_config(found: config.Config | None) -> config.Config | None:
    """Return the parameters of the fit if they can be written: those of a removal method from elsewhere cannot."""
    try:
        encode(found)
    except TypeError:
        return None
    return found


def _digest(text: str, weights: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode())
        digest.update(weights[name].tobytes())
    return digest.hexdigest()


def load(path: str | os.PathLike[str]) -> BeGANTransformer:
    """Read a transformer that :func:`save` wrote.

    No code from the file is run, so a file from elsewhere can be loaded; at worst it is refused. What it predicts is
    another matter.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    BeGANTransformer
        Fitted, with the parameters it was saved with. On the same machine its output is the same to the bit.

    Raises
    ------
    ValueError
        If the file is not one of ours, is damaged, or was written in a later format. The message says what was expected
        and what was found.
    FileNotFoundError
        If there is no such file.

    Warns
    -----
    UserWarning
        If another version of skbegan, or another minor version of scikit-learn, wrote the file.

    Examples
    --------
    >>> import tempfile, skbegan
    >>> cells = skbegan.datasets.make_cell_images(60, 2, 2, 16, random_state=0)
    >>> began = skbegan.BeGANTransformer(base_width=4, pretrain_epochs=1, removal_epochs=0, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     skbegan.save(began.fit(cells.bf, cells.qpi), f"{folder}/model.safetensors")
    ...     again = skbegan.load(f"{folder}/model.safetensors")
    >>> bool((again.transform(cells.bf) == began.transform(cells.bf)).all())
    True
    """
    from skbegan.data.source import Scaling
    from skbegan.model import FittedModel

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    refuse_lfs_pointer(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_ENTRY)
            if text is None:
                raise _refusal(path, "it is a safetensors file, but without the entry that skbegan.save writes")
            document = _document(path, text)
            est, fitted = _estimator(path, document)
            weights = _weights(path, file, fitted)
            styles = _styles(path, file, fitted)
            beside = {name: file.get_tensor(name) for name in file.keys() if name.startswith(_BESIDE)}
            if (file.metadata() or {}).get(_DIGEST) != _digest(text, weights | styles | beside):
                raise _refusal(path, "its content does not match its digest: it was damaged or changed")
    except safetensors.SafetensorError as error:
        raise _refusal(path, f"it is no safetensors file, or a damaged one ({error})") from error
    _check_weights(path, weights | styles)
    model = FittedModel(
        weights=weights,
        bf_scaling=Scaling(fitted["bf_mean"], fitted["bf_scale"]),
        target_scaling=Scaling(fitted["qpi_mean"], fitted["qpi_scale"]),
        bf_range=fitted["bf_range"],
        **{
            name: fitted[name] for name in ("image_shape", "target_shape", "batches", "cell_types", "history", "device")
        },
        config=fitted["config"],
        **{name: fitted[name] for name in _OPTIONAL if name in fitted},
        styles=styles_of(styles),
        calibration=_read_beside(path, beside, fitted, weights),
    )
    checks.warn_of_versions(document["versions"], versions(), str(path))
    return est._adopt(model)


# ------------------------------------------------------------------------------------------------------------ writing


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside `path` and move it there in one step."""
    path = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist")
    write_whole(path, content)


# ------------------------------------------------------------------------------------------------------------ reading


def _refusal(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is not a model that this skbegan {__version__} can load: {reason}")


def _document(path: Path, text: str) -> dict[str, Any]:
    """Parse the JSON document and check its outline."""
    if len(text) > MAX_HEADER:
        raise _refusal(path, f"its header takes {len(text)} bytes, more than {MAX_HEADER}")
    try:
        document = json.loads(text)
        number = document["format"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _refusal(path, f"its header is no JSON document of ours ({error!r})") from error
    if type(number) is not int or number < 1:
        raise _refusal(path, f"its format should be a number from 1 up, found {number!r}")
    if number > FORMAT:
        raise _refusal(
            path, f"it is of format {number}, and only formats up to {FORMAT} are known here: update skbegan"
        )
    for part in ("versions", "parameters", "fitted"):
        if not isinstance(document.get(part), dict):
            raise _refusal(path, f"its header should hold {part!r}, found {type(document.get(part)).__name__}")
    return document


def _estimator(path: Path, document: dict[str, Any]) -> tuple[BeGANTransformer, dict[str, Any]]:
    """Return the unfitted estimator, and the checked fitted attributes."""
    from skbegan.estimator import BeGANTransformer

    unknown = sorted(document["parameters"].keys() - BeGANTransformer().get_params(deep=False).keys())
    if unknown:
        raise _refusal(path, f"it has parameters that are not known here: {', '.join(unknown)}")
    decoded: dict[str, dict[str, Any]] = {}
    for part in ("parameters", "fitted"):
        decoded[part] = {}
        for name, value in document[part].items():
            try:
                decoded[part][name] = decode(value)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                raise _refusal(path, f"{name!r} of its {part} cannot be read ({error})") from error
    fitted = decoded["fitted"]
    if odd := sorted((fitted.keys() - _OPTIONAL.keys()) ^ _EXPECTED.keys()):
        raise _refusal(path, f"missing or unexpected among its fitted attributes: {', '.join(odd)}")
    for name, (what, accepts) in (_EXPECTED | {name: _OPTIONAL[name] for name in _OPTIONAL if name in fitted}).items():
        if not accepts(fitted[name]):
            raise _refusal(path, f"{name!r} of its fitted attributes should be {what}, found {fitted[name]!r}"[:500])
    for name, shape in _SCALINGS.items():
        if len(fitted[name]) != _n_channels(fitted[shape]):
            raise _refusal(path, f"{name!r} has {len(fitted[name])} entries, which {shape} {fitted[shape]} contradicts")
    if fitted["bf_range"] is not None and any(len(x) != len(fitted["bf_mean"]) for x in fitted["bf_range"]):
        raise _refusal(path, "'bf_range' and 'bf_mean' contradict one another")
    for name in ("batches", "cell_types"):
        if fitted[name] is not None and len(set(fitted[name].tolist())) != len(fitted[name]):
            raise _refusal(path, f"{name!r} repeats a label")
    for column, labels in fitted.get("batch_columns", {}).items():
        if fitted["batches"] is None or len(labels) != len(fitted["batches"]):
            raise _refusal(path, f"its batches and their column {column!r} contradict one another")
    parameters = {**decoded["parameters"], **dict.fromkeys(NOT_SAVED)}
    try:
        config.Config.of(BeGANTransformer(**parameters).get_params(deep=False))
    except (TypeError, ValueError) as error:
        raise _refusal(path, f"its parameters are none that fit would take ({error})") from error
    return BeGANTransformer(**parameters), fitted


def _n_channels(shape: tuple[int, ...]) -> int:
    return shape[2] if len(shape) == 3 else 1


def _is_width(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 1 << 16


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) in (2, 3)
        and all(_is_width(size) for size in value)
        and value[0] == value[1]
    )


def _is_mean(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64 and bool(np.isfinite(value).all())


def _is_scale(value: Any) -> bool:
    return _is_mean(value) and bool((value > 0).all())


def _is_range(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and len(value) == 2 and all(map(_is_mean, value)))


def _is_labels(value: Any) -> bool:
    if not isinstance(value, np.ndarray):
        return value is None
    plain = value.dtype != object or all(item is None or isinstance(item, str | int | float) for item in value)
    return value.ndim == 1 and len(value) > 0 and plain


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "image_shape": ("a tuple (side, side) or (side, side, channels)", _is_shape),
    "target_shape": ("a tuple (side, side) or (side, side, channels)", _is_shape),
    "base_width": ("a positive integer", _is_width),
    "n_features": ("a positive integer", _is_width),
    **dict.fromkeys(("bf_mean", "qpi_mean"), ("an array of finite float64", _is_mean)),
    **dict.fromkeys(("bf_scale", "qpi_scale"), ("an array of positive float64", _is_scale)),
    "bf_range": ("a tuple of two arrays of finite float64 or null", _is_range),
    "batches": ("an array or null", _is_labels),
    "cell_types": ("an array or null", _is_labels),
    "history": ("a dict", lambda value: isinstance(value, dict)),
    "device": ("a string", lambda value: isinstance(value, str)),
    "config": ("the parameters of a fit or null", lambda value: value is None or isinstance(value, config.Config)),
}


def _are_columns(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and labels is not None and _is_labels(labels) for name, labels in value.items()
    )


#: Attributes that files of earlier versions lack, and that are written where the model has them.
_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "batch_columns": ("a dict of arrays of labels", _are_columns),
}


def _weights(path: Path, file: Any, fitted: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read the tensors, after comparing their names, shapes and types with those of the generator they are for."""
    import torch

    from skbegan.core.networks import Generator, with_outputs

    shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if not name.startswith((STYLE, _BESIDE))}
    try:
        with torch.device("meta"):
            generator = Generator(
                fitted["image_shape"][0],
                base_width=fitted["base_width"],
                n_features=fitted["n_features"],
                in_channels=_n_channels(fitted["image_shape"]),
                out_channels=_n_channels(fitted["target_shape"]),
                **_own_sizes(shapes),
            )
        with_outputs(generator, shapes)
    except (ValueError, TypeError, LookupError, RuntimeError, OverflowError) as error:
        raise _refusal(path, f"there is no generator of its widths ({error})") from error
    expected = {
        name: list(tensor.shape)
        for name, tensor in generator.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    if missing := sorted(expected.keys() - shapes.keys()):
        raise _refusal(path, f"tensors are missing: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    if extra := sorted(shapes.keys() - expected.keys()):
        raise _refusal(path, f"there are unexpected tensors: {', '.join(extra[:5])}{' ...' if len(extra) > 5 else ''}")
    for name, shape in expected.items():
        dtype = file.get_slice(name).get_dtype()
        if dtype not in ("F32", "F64") or shapes[name] != shape:
            raise _refusal(
                path, f"tensor {name} should be F32 or F64 of shape {shape}, found {dtype} of {shapes[name]}"
            )
    return {name: file.get_tensor(name) for name in expected}


def _styles(path: Path, file: Any, fitted: dict[str, Any]) -> dict[str, np.ndarray]:
    n_batches = 0 if fitted["batches"] is None else len(fitted["batches"])
    side, channels = fitted["target_shape"][0], _n_channels(fitted["target_shape"])
    try:
        return style_tensors(file, side, channels, n_batches)
    except ValueError as error:
        raise _refusal(path, str(error)) from None


def _check_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise _refusal(path, f"tensor {name} holds numbers that are not finite")
        if name.endswith("running_var") and (values < 0).any():
            raise _refusal(path, f"tensor {name} holds variances below 0")


def _own_sizes(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """The sizes of the generator that do not follow from the others; nothing if tensors are missing."""
    from skbegan.core.networks import Generator

    try:
        sizes = Generator.sizes_of(shapes)
    except LookupError:
        return {}
    return {name: sizes[name] for name in ("head_widths", "channels_together")}

"""Read the original's trained networks from Keras' legacy HDF5 files, without Keras or TensorFlow.

Only numbers, names and one JSON text are read, with h5py; nothing in a file is ever run. Layers are matched by their
order and by the shapes of their weights. Their names do not matter: they carry running numbers, so that a generator
that was built after other models of one session may well begin at ``conv2d_6``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from skbegan._foreign import refuse_lfs_pointer
from skbegan.core.classifiers import FeatureClassifier, ImageClassifier
from skbegan.core.networks import BN_EPS, LEAK, Discriminator, Generator, SameConv2d
from skbegan.data.source import Scaling
from skbegan.model import FittedModel
from skbegan.stored.hdf5 import RefusedError, as_text, attribute, check_dataset, check_size, member

if TYPE_CHECKING:
    from skbegan.estimator import BeGANTransformer

__all__ = ["load_keras_generator", "read_keras_network"]

_KIND = {
    Generator: "a generator",
    Discriminator: "a discriminator",
    ImageClassifier: "an image classifier",
    FeatureClassifier: "a feature classifier",
}
_MAX_NAMES = 2000  # of layers, or of the weights of one; the largest generator has 50 layers with weights
_LIKE_KERAS_PREDICT = {"inference": "minibatch", "minibatch_size": 32, "precision": "float32"}


def load_keras_generator(path: str | os.PathLike[str], **params: Any) -> BeGANTransformer:
    """Make a fitted transformer from a generator that the original saved as a Keras HDF5 file.

    Parameters
    ----------
    path : path-like
        A legacy Keras ``.h5`` file, as Keras 2 writes it with ``model.save`` or ``model.save_weights``. The side,
        width, number of features and channels are read from the shapes in it.
    **params
        Parameters of :class:`~skbegan.BeGANTransformer`. Unless given, ``inference="minibatch"``,
        ``minibatch_size=32`` and ``precision="float32"``. `base_width` and `n_features` come from the file; giving them
        can only repeat what it says.

    Returns
    -------
    BeGANTransformer
        Fitted, with unscaled inputs and outputs, no known batches or cell types, and an empty history.

    Raises
    ------
    ValueError
        If the file is no legacy Keras HDF5 file or holds anything but a generator. The message names the layer that was
        expected and what was found in its place.
    FileNotFoundError
        If there is no such file.

    Notes
    -----
    The original normalises every minibatch by its own statistics, also when it predicts, so the moving averages in its
    files were never used and fit no purpose. ``inference="minibatch"`` repeats what Keras' ``predict`` returns for the
    same minibatches, 32 cells by default, but for two things: the original leaves dropout on while predicting, which
    makes its predictions random; here it is off, which is what Keras gives with a dropout rate of 0. And Keras sums a
    minibatch's statistics in float32 one number after the other; where its own rounding makes it differ from float64 by
    3e-5 relative, the difference here is 3e-6.

    A prediction then depends on the other cells of its minibatch. To make it depend on the cell alone, re-estimate the
    statistics on cells that represent all batches and types, and switch::

        est = load_keras_generator("CytoMADmodel_000300.h5")
        est.recalibrate(X_bf)
        est.set_params(inference="population")

    Examples
    --------
    With a small generator from the tests, in a checkout of skbegan:

    >>> from skbegan import load_keras_generator
    >>> began = load_keras_generator("tests/data/keras/generator.h5")
    >>> began.image_shape_, began.n_features_out_
    ((128, 128), 32)
    """
    from skbegan.estimator import BeGANTransformer

    network, state, widths = _read(path, Generator)
    assert isinstance(network, Generator)
    for name in ("base_width", "n_features"):
        if params.setdefault(name, widths[name]) != widths[name]:
            raise ValueError(
                f"{path} holds a generator of {name}={widths[name]}, which {name}={params[name]} contradicts"
            )
    est = BeGANTransformer(**{**_LIKE_KERAS_PREDICT, **params})
    n_in, n_out, side = widths["in_channels"], widths["out_channels"], network.side
    model = FittedModel(
        weights=state,
        bf_scaling=Scaling.identity(n_in),
        target_scaling=Scaling.identity(n_out),
        image_shape=(side, side) if n_in == 1 else (side, side, n_in),
        target_shape=(side, side) if n_out == 1 else (side, side, n_out),
    )
    return est._adopt(model)


def read_keras_network(path: str | os.PathLike[str]) -> nn.Module:
    """Read any of the original's four networks from a Keras HDF5 file, recognised by its layers.

    Parameters
    ----------
    path : path-like
        A legacy Keras ``.h5`` file.

    Returns
    -------
    Generator, Discriminator, ImageClassifier or FeatureClassifier
        The network of :mod:`skbegan.core.networks` on the CPU in float32, in inference mode. It returns logits where
        Keras' network ends in a sigmoid or softmax.

    Raises
    ------
    ValueError
        If the file is no legacy Keras HDF5 file or holds none of the four networks.
    FileNotFoundError
        If there is no such file.
    """
    network, state, _ = _read(path, None)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    for name in network.state_dict():
        tensors.setdefault(name, torch.tensor(0))  # BatchNorm's count of minibatches, which Keras does not keep
    network.load_state_dict(tensors, assign=True)
    return network.eval()


# ------------------------------------------------------------------------------------------------ what is in the file


@dataclass(frozen=True)
class _Layer:
    """One layer of the file that has weights; the numbers stay in the file until the whole structure was matched."""

    name: str
    weights: dict[str, h5py.Dataset]
    config: dict[str, Any]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weights["kernel"].shape if "kernel" in self.weights else ()

    def __str__(self) -> str:
        if len(self.weights) > 4:
            return f"{self.name!r} with {len(self.weights)} weights, which seems to be a model of its own"
        return f"{self.name!r} with {_shapes({leaf: data.shape for leaf, data in self.weights.items()})}"


def _shapes(weights: dict[str, tuple[int, ...]]) -> str:
    return " and ".join(f"{leaf} {shape}" for leaf, shape in weights.items())


def _read(
    path: str | os.PathLike[str], wanted: type[nn.Module] | None
) -> tuple[nn.Module, dict[str, np.ndarray], dict[str, Any]]:
    """Return the network that the file holds (on the meta device), its weights, and its constructor's widths."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    refuse_lfs_pointer(path)
    try:
        with h5py.File(path, "r") as file:
            return _match(*_layers(file), wanted)
    except RefusedError as error:
        raise ValueError(f"{path} is not read: {error}") from None
    except _MisfitError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file; h5py lets many types through
        raise ValueError(
            f"{path} cannot be read as a legacy Keras HDF5 file (what model.save('x.h5') of Keras 2 writes): {error}"
        ) from error


class _MisfitError(Exception):
    """The file is not what was expected; the message becomes that of the one ValueError."""


def _layers(file: h5py.File) -> tuple[list[_Layer], list[tuple[int | None, ...]], list[dict[str, Any]]]:
    """Return the layers with weights in the model's order, the input shapes, and the configurations of all layers."""
    group = member(file, "model_weights")
    group = file if group is None else group  # model.save, or model.save_weights
    if not isinstance(group, h5py.Group) or not {"layer_names", "layer_names0"} & set(group.attrs):
        raise _MisfitError(
            "this HDF5 file has no 'layer_names', so it is not a legacy Keras file (what model.save('x.h5') of Keras 2 "
            "writes)"
        )
    configs = _configs(file)
    layers: list[_Layer] = []
    n_bytes = 0
    for name in _names(group, "layer_names"):
        node = _member(group, name, h5py.Group)
        weights: dict[str, h5py.Dataset] = {}
        for weight in _names(node, "weight_names"):
            data = _member(node, weight, h5py.Dataset)
            leaf = re.sub(r"(_\d+)?(:\d+)?$", "", weight.rsplit("/", 1)[-1])  # conv2d_6/kernel:0 -> kernel
            weights[weight if leaf in weights else leaf] = data
        if weights:
            n_bytes += sum(data.size * max(4, data.dtype.itemsize) for data in weights.values())
            check_size("all weights together", n_bytes, Path(file.filename).stat().st_size)  # one may be listed often
            layers.append(_Layer(name, weights, configs.get(name, {})))
    shapes = [config.get("batch_input_shape") or config.get("batch_shape") for config in configs.values()]
    inputs = [tuple(shape[1:]) for shape in shapes if isinstance(shape, list)]
    return layers, inputs, list(configs.values())


def _names(group: h5py.Group, listing: str) -> Iterator[str]:
    """Yield the names that Keras keeps in an attribute, or in numbered pieces of it when there are many."""
    pieces: Iterable[str] = [listing]
    if listing not in group.attrs:
        pieces = takewhile(group.attrs.__contains__, (f"{listing}{piece}" for piece in count()))
    n_names = 0
    for piece in pieces:
        for name in np.ravel(attribute(group, piece)):
            n_names += 1
            if n_names > _MAX_NAMES:
                raise RefusedError(f"{listing!r} of {group.name!r} has more than {_MAX_NAMES} names")
            yield as_text(name)


def _member(group: h5py.Group, name: str, kind: type[Any]) -> Any:
    """Return a group or data set that lies in this very file."""
    node = member(group, name)
    if not isinstance(node, kind):
        raise _MisfitError(f"{name!r} is listed in {group.name!r} but is not stored there")
    if isinstance(node, h5py.Dataset):
        if node.dtype.kind != "f" or node.shape is None:
            raise _MisfitError(
                f"the weights {name!r} in {group.name!r} should be floating-point numbers, found {node.dtype}"
            )
        check_dataset(node, node.size * max(4, node.dtype.itemsize))
    return node


def _configs(file: h5py.File) -> dict[str, dict[str, Any]]:
    """Return layer name -> configuration with its class under 'class_name'; empty if the file holds only weights."""
    text = attribute(file, "model_config")
    if text is None:
        return {}
    try:
        model = json.loads(text)["config"]
        layers = model["layers"] if isinstance(model, dict) else model
        return {
            layer["config"]["name"]: {**layer["config"], "class_name": layer["class_name"]}
            for layer in layers
            if "name" in layer["config"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise _MisfitError(f"the model_config in this file is no description of a Keras model ({error!r})") from error


# ----------------------------------------------------------------------------------- what a network looks like in Keras


@dataclass(frozen=True)
class _Slot:
    """One layer of ours: what Keras must have stored for it, and how that becomes our weights."""

    target: str
    role: str
    weights: dict[str, tuple[int, ...]]
    config: dict[str, Any]
    convert: Callable[[np.ndarray], np.ndarray]

    def __str__(self) -> str:
        return f"{self.target} ({self.role}) with {_shapes(self.weights)}"


def _slots(network: nn.Module) -> Iterator[_Slot]:
    """Yield the layers of one of our networks in the order of its forward pass, which is that of its definition."""
    weights: dict[str, tuple[int, ...]]
    config: dict[str, Any]
    for target, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            weights = dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (module.num_features,))
            config = {"class_name": "BatchNormalization", "epsilon": BN_EPS}
            yield _Slot(target, "batch normalisation", weights, config, lambda vector: vector)
        elif isinstance(module, nn.Linear):
            n_in, n_out = module.in_features, module.out_features
            weights = {"kernel": (n_in, n_out), "bias": (n_out,)}
            convert: Callable[[np.ndarray], np.ndarray] = np.transpose
            if isinstance(network, ImageClassifier) and module is network.dense:
                convert = partial(_dense_after_maps, n_channels=_last_width(network))
            yield _Slot(target, "dense layer", weights, {"class_name": "Dense"}, convert)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            flipped = isinstance(module, SameConv2d) and module.pad_before == 2
            transposed = flipped or isinstance(module, nn.ConvTranspose2d)
            n_in, n_out, stride = module.in_channels, module.out_channels, module.stride[0]
            channels = (n_out, n_in) if transposed else (n_in, n_out)
            weights = {"kernel": (*module.kernel_size, *channels), "bias": (n_out,)}
            role = f"{'transposed ' if transposed else ''}convolution of stride {stride}"
            config = {
                "class_name": "Conv2DTranspose" if transposed else "Conv2D",
                "strides": [stride, stride],
                "padding": "same",
            }
            yield _Slot(target, role, weights, config, _flip if flipped else _channels_first)


def _channels_first(kernel: np.ndarray) -> np.ndarray:
    """(row, column, in, out) -> (out, in, row, column); of transposed convolutions, in and out are swapped in both."""
    return kernel.transpose(3, 2, 0, 1)


def _flip(kernel: np.ndarray) -> np.ndarray:
    """Kernel of the convolution that equals a transposed one of stride 1, (row, column, out, in)."""
    return kernel[::-1, ::-1].transpose(2, 3, 0, 1)


def _dense_after_maps(kernel: np.ndarray, n_channels: int) -> np.ndarray:
    """Keras flattens a map as (row, column, channel), torch as (channel, row, column)."""
    side = round((kernel.shape[0] / n_channels) ** 0.5)
    maps = kernel.reshape(side, side, n_channels, -1)
    return maps.transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)


def _last_width(network: ImageClassifier) -> int:
    return [module for module in network.body.modules() if isinstance(module, nn.Conv2d)][-1].out_channels


_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


# ---------------------------------------------------------------------------------------------------------- matching


def _recognise(layers: list[_Layer]) -> type[nn.Module]:
    """Return the kind of network that the file resembles most."""
    n_dense = sum(len(layer.kernel) == 2 for layer in layers)
    n_convolutions = sum(len(layer.kernel) == 4 for layer in layers)
    if n_dense:
        return ImageClassifier if n_convolutions else FeatureClassifier
    return Discriminator if n_convolutions < 9 else Generator  # 6 in the one, 12 and more in the other


def _blueprint(
    kind: type[nn.Module], layers: list[_Layer], inputs: list[tuple[int | None, ...]]
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that fits the file's outermost shapes, without memory, for the layers to be compared with."""
    convolutions = [layer.kernel for layer in layers if len(layer.kernel) == 4]
    dense = [layer.kernel for layer in layers if len(layer.kernel) == 2]
    n_in, width = convolutions[0][2:] if convolutions else (1, 64)
    widths: dict[str, Any] = {"base_width": width, "in_channels": n_in}
    try:
        with torch.device("meta"):
            if kind is FeatureClassifier:
                hidden = [kernel[1] for kernel in dense[:-1]]
                return FeatureClassifier(dense[0][0], dense[-1][1], hidden), {}
            if kind is Discriminator:
                # It sees source and target as one stack; how many channels are whose does not matter to its layers.
                return Discriminator(base_width=width, in_channels=n_in - 1, out_channels=1), widths
            if kind is ImageClassifier:
                last_side = max(1, round((dense[0][0] / (8 * width)) ** 0.5))
                return ImageClassifier(128 * last_side, dense[-1][1], base_width=width, in_channels=n_in), widths
            stated = inputs[0][0] if inputs and len(inputs[0]) == 3 else None
            # 2 * depth + 4 convolutions make a generator
            side = stated if isinstance(stated, int) else 2 ** max(4, (len(convolutions) - 3) // 2)
            # The bottleneck is the first layer whose successor is no normalisation, apart from the first of all.
            features = [
                layer.kernel[3]
                for layer, after in pairwise(layers[1:])
                if len(layer.kernel) == 4 and len(after.kernel) == 4
            ]
            widths["n_features"] = features[0] if features else 8 * width
            widths["out_channels"] = convolutions[-1][2] if convolutions else 1
            if len(convolutions) >= 5:
                widths["head_widths"] = [kernel[2] for kernel in convolutions[-5:-1]]
            return Generator(side, **widths), widths
    except (ValueError, RuntimeError, OverflowError) as error:
        raise _MisfitError(f"no {kind.__name__} of ours has such layers: {error}") from None


def _match(
    layers: list[_Layer],
    inputs: list[tuple[int | None, ...]],
    configs: list[dict[str, Any]],
    wanted: type[nn.Module] | None,
) -> tuple[nn.Module, dict[str, np.ndarray], dict[str, Any]]:
    """Compare the file's layers with ours one by one, then read the numbers."""
    if not layers:
        raise _MisfitError("no layer of this file has weights")
    likely = _recognise(layers)
    kind = wanted or likely
    network, widths = _blueprint(kind, layers, inputs)
    slots = list(_slots(network))
    refusal = f"expected {_KIND[kind]}" + (f" but this looks like {_KIND[likely]}" if likely is not kind else "")
    for position, slot in enumerate(slots):
        found = layers[position] if position < len(layers) else None
        shapes = None if found is None else {leaf: data.shape for leaf, data in found.weights.items()}
        if found is None or shapes != slot.weights:
            raise _MisfitError(
                f"{refusal}; layer {position + 1} of {len(slots)} with weights should be {slot}, "
                f"found {found or 'the end of the file'}"
            )
        for setting, value in slot.config.items():
            stated = found.config.get(setting, value)
            if stated != value and not (isinstance(value, float) and np.isclose(stated, value)):
                raise _MisfitError(
                    f"{refusal}; layer {position + 1} of {len(slots)} with weights should be {slot}, "
                    f"found {found} of {setting}={stated!r} instead of {value!r}"
                )
    if len(layers) > len(slots):
        raise _MisfitError(f"{refusal}; expected nothing after {slots[-1]}, found {layers[len(slots)]}")
    for config in configs:
        slope = config.get("alpha", config.get("negative_slope", LEAK)) if config["class_name"] == "LeakyReLU" else LEAK
        if not np.isclose(slope, LEAK):
            raise _MisfitError(f"{refusal}; {config['name']!r} should have a slope of {LEAK}, found {slope}")
    if isinstance(network, Generator) and inputs:
        expected = (network.side, network.side, widths["in_channels"])
        if len(inputs[0]) != 3 or any(
            stated not in (None, own) for stated, own in zip(inputs[0], expected, strict=True)
        ):
            raise _MisfitError(f"{refusal}; its {len(slots)} layers are for input {expected}, found {inputs[0]}")
    return network, _values(slots, layers), widths


def _values(slots: list[_Slot], layers: list[_Layer]) -> dict[str, np.ndarray]:
    state = {}
    for slot, layer in zip(slots, layers, strict=True):
        for leaf, data in layer.weights.items():
            array = data[()].astype(np.float32)
            if not np.isfinite(array).all():
                raise _MisfitError(f"{leaf} of {layer.name!r}, which is {slot}, is not finite")
            array = slot.convert(array) if leaf == "kernel" else array
            state[f"{slot.target}.{_LEAVES[leaf]}"] = np.ascontiguousarray(array)
    return state


# --------------------------------------------------------------------------------------------- Keras' order of a sum


@contextmanager
def summed_in_order(generator: Generator) -> Iterator[None]:
    """Within it BatchNorm sums a minibatch pixel after pixel in float32, as Keras does on a CPU.

    PyTorch's sum depends on the number of threads. In float32 the order of a sum is worth 4e-5 of the images: with the
    same order predictions are Keras' to 1e-5, whatever the threads.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(_normalise_in_order) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _normalise_in_order(norm: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    x = inputs[0]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous().numpy()
    # Along the first axis of a C-contiguous array NumPy adds row after row.
    mean = np.add.reduce(pixels, axis=0) / np.float32(len(pixels))
    centred = pixels - mean
    variance = np.add.reduce(np.square(centred), axis=0) / np.float32(len(pixels))
    scale = norm.weight.numpy() / np.sqrt(variance + np.float32(norm.eps))
    y = torch.from_numpy(centred * scale + norm.bias.numpy())
    return y.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)

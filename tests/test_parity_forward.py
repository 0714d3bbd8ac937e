"""Outputs of all networks against those of the original's under Keras 2.15, and the import of its files.

``python -m pytest tests -k parity -s`` prints every figure. An error is the greatest absolute difference over the
greatest absolute value of the reference. Float64 references are met to 1e-12, and all of Keras' float32 outputs to
1e-5, but for one thing: Keras adds up the statistics of a minibatch in float32, number after number, which puts its own
generator up to 3.4e-5 away from float64. Torch does the same for channels-last images in one thread, and adds in blocks
or in float64 otherwise. So the generator is compared with Keras' float64 result as it is, and with its float32 result
when it adds in Keras' order.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from skbegan.core import networks
from skbegan.core.classifiers import ImageClassifier
from skbegan.core.networks import Decoding, Encoding, Generator, SameConv2d, new_network
from skbegan.io.keras import load_keras_generator, read_keras_network

KERAS = Path(__file__).parent / "data" / "keras"
PRECISIONS = {"f32": (torch.float32, 1e-5), "f64": (torch.float64, 1e-12)}
KEPT = np.r_[0:128:3, 127]  # rows and columns of generated images that the fixture keeps


@pytest.fixture(scope="module")
def io():
    with np.load(KERAS / "io.npz") as arrays:
        return dict(arrays)


def relative_error(value, reference):
    reference = np.asarray(reference, np.float64)
    return float(np.abs(np.asarray(value, np.float64) - reference).max() / np.abs(reference).max())


def check(what, value, reference, bound):
    assert np.shape(value) == np.shape(reference)
    error = relative_error(value, reference)
    print(f"parity {what}: max relative error {error:.1e} (bound {bound:.0e})")
    assert error <= bound, what


def to_torch(images, dtype):
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(dtype)


@pytest.fixture
def threads():
    """Return a function that sets the number of torch's threads for the time of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def to_keras(images):
    return np.moveaxis(images.numpy(), 1, -1)


def kept(images):
    return images[:, KEPT][:, :, KEPT]


class KerasOrderNorm(nn.Module):
    """BatchNorm by batch statistics, summed in the order and the precision of Keras on a CPU."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous().numpy()
        mean = np.add.reduce(rows, axis=0, dtype=np.float32) / np.float32(len(rows))
        centred = rows - mean
        variance = np.add.reduce(centred**2, axis=0, dtype=np.float32) / np.float32(len(rows))
        scale = self.norm.weight.numpy() / np.sqrt(variance + np.float32(self.norm.eps))
        y = centred * scale + self.norm.bias.numpy()
        return torch.from_numpy(y).reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------- the four networks


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_parity_generator(io, precision):
    dtype, bound = PRECISIONS[precision]
    generator = read_keras_network(KERAS / "generator.h5").to(dtype).train()
    for cells, suffix in ((slice(None), ""), (slice(1), "_batch1")):
        image, features = generator(to_torch(io["x"][cells], dtype))
        image, what = kept(to_keras(image)), f"{precision}{suffix.replace('_', ', ')}"
        check(f"generator image {what}", image, io[f"g_image{suffix}_f64"], bound)
        check(f"generator features {what}", features, io[f"g_features{suffix}_f64"], bound)


@torch.no_grad()
def test_parity_generator_float32_of_keras(io):
    generator = read_keras_network(KERAS / "generator.h5").train()
    image, features = generator(to_torch(io["x"], torch.float32))
    ours = {"image": kept(to_keras(image)), "features": features}
    for module in list(generator.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, KerasOrderNorm(child))
    image, features = generator(to_torch(io["x"], torch.float32))
    reordered = {"image": kept(to_keras(image)), "features": features}
    for name, value in ours.items():
        keras, reference = io[f"g_{name}_f32"], io[f"g_{name}_f64"]
        rounding = relative_error(keras, reference)
        check(f"generator {name} f32, statistics summed as Keras does", reordered[name], keras, 1e-5)
        check(f"generator {name} f32, as it is (Keras' own rounding: {rounding:.1e})", value, keras, 1.2 * rounding)


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_parity_discriminator(io, precision):
    dtype, bound = PRECISIONS[precision]
    discriminator = read_keras_network(KERAS / "discriminator.h5").to(dtype)
    x, y = to_torch(io["x"], dtype), to_torch(io["y"], dtype)
    logits = discriminator(x, y)
    check(f"discriminator logits, inference {precision}", to_keras(logits), io[f"d_infer_logits_{precision}"], bound)
    check(f"discriminator, inference {precision}", to_keras(logits.sigmoid()), io[f"d_infer_{precision}"], bound)
    trained = discriminator.train()(x, y).sigmoid()
    check(f"discriminator, training {precision}", to_keras(trained), io[f"d_train_{precision}"], bound)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cell_cnn", "batch_cnn"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_parity_image_classifier(io, precision, name):
    dtype, bound = PRECISIONS[precision]
    classifier = read_keras_network(KERAS / f"{name}.h5").to(dtype)
    y = to_torch(io["y"], dtype)
    check(f"{name}, inference {precision}", classifier(y).softmax(1), io[f"{name}_infer_{precision}"], bound)
    check(f"{name}, training {precision}", classifier.train()(y).softmax(1), io[f"{name}_train_{precision}"], bound)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cell_mlp", "batch_mlp1", "batch_mlp2", "batch_mlp3", "batch_mlp4"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_parity_feature_classifier(io, precision, name):
    dtype, bound = PRECISIONS[precision]
    classifier = read_keras_network(KERAS / f"{name}.h5").to(dtype)
    feats = torch.from_numpy(io["feats"]).to(dtype)
    if name != "cell_mlp":
        feats = feats[:, io[f"features_list{name[-1]}"]]
    check(f"{name} {precision}", classifier(feats).softmax(1), io[f"{name}_{precision}"], bound)


# -------------------------------------------------------------------------------------------------------- single layers


@torch.no_grad()
@pytest.mark.parametrize("layer", ["conv_s1", "tconv_s1", "conv_s2", "tconv_s2", "maxpool"])
def test_parity_layer(layer):
    errors = {}
    with np.load(KERAS / "layers.npz") as arrays:
        # The networks have stride 2 on even sides only.
        for side in (2, 4, 8) if layer == "conv_s2" else (1, 2, 3, 4, 5, 8):
            x = to_torch(arrays[f"n{side}/x"], torch.float64)
            if layer == "maxpool":
                pools = [
                    module for module in ImageClassifier(16, 2, base_width=1).body if isinstance(module, nn.MaxPool2d)
                ]
                # Shifted below zero, so that padding with zeros would show.
                errors[side] = relative_error(to_keras(pools[0](x - 5.0)), arrays[f"n{side}/maxpool_y"])
                continue
            module = {
                "conv_s1": SameConv2d(3, 2),
                "tconv_s1": SameConv2d(3, 2, pad_before=2),
                "conv_s2": Encoding(3, 2).conv,
                "tconv_s2": Decoding(3, 2).conv,
            }[layer].double()
            kernel = torch.from_numpy(arrays[f"n{side}/{layer}/kernel"])
            # The first of the two channel axes is `in` for convolutions and `out` for transposed ones in Keras.
            equal = {"tconv_s1": kernel.flip(0, 1).permute(2, 3, 0, 1)}.get(layer, kernel.permute(3, 2, 0, 1))
            module.weight.copy_(equal)
            module.bias.copy_(torch.from_numpy(arrays[f"n{side}/{layer}/bias"]))
            errors[side] = relative_error(to_keras(module(x)), arrays[f"n{side}/{layer}/y"])
    print(f"parity layer {layer} on sides {', '.join(map(str, errors))}: max relative error {max(errors.values()):.1e}")
    assert max(errors.values()) <= 1e-12


@torch.no_grad()
def test_parity_layer_batch_normalisation():
    with np.load(KERAS / "layers.npz") as arrays:
        norm = networks._batch_norm(6)
        weights = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        for ours, theirs in weights.items():
            getattr(norm, ours).copy_(torch.from_numpy(arrays[f"bn/{theirs}"]))
        x = to_torch(arrays["bn/x"], torch.float32)
        check("layer BatchNorm, inference f32", to_keras(norm.eval()(x)), arrays["bn/y_infer"], 1e-6)
        check("layer BatchNorm, training f32", to_keras(norm.train()(x)), arrays["bn/y_train"], 1e-6)
        check("layer BatchNorm, moving mean f32", norm.running_mean, arrays["bn/mean_after"], 1e-6)
        check("layer BatchNorm, moving variance f32", norm.running_var, arrays["bn/var_after"], 1e-6)


# ------------------------------------------------------------------------------------------------- the loaded estimator


def test_parity_estimator_equals_keras_predict(io, threads):
    """Minibatches of 4 as in the fixture, whose dropout rate is 0; the second minibatch is a single cell."""
    x = io["x"][[0, 1, 2, 3, 0], ..., 0]

    def compare(est, what, precision, bound):
        image, features = kept(est.predict_image(x)), est.transform(x)
        assert image.dtype == features.dtype == np.float32
        check(f"predict_image {what}", image[:4], io[f"g_image_{precision}"][..., 0], bound)
        check(f"predict_image {what}, one cell", image[4:], io[f"g_image_batch1_{precision}"][..., 0], bound)
        check(f"transform {what}", features[:4], io[f"g_features_{precision}"], bound)
        check(f"transform {what}, one cell", features[4:], io[f"g_features_batch1_{precision}"], bound)

    est = load_keras_generator(KERAS / "generator.h5", minibatch_size=4, device="cpu")
    threads(1)
    compare(est, "f32, one thread", "f32", 1e-5)
    threads(2)
    compare(est, "f32, two threads", "f32", 1e-5)
    est.set_params(precision="float64")
    compare(est, "f64, returned as f32", "f64", 2e-7)


def test_loaded_estimator():
    est = load_keras_generator(KERAS / "generator.h5", device="cpu", batch_weight=7.0)
    assert (est.base_width_, est.n_features_out_) == (4, 32) == (est.base_width, est.n_features)
    assert est.image_shape_ == est.target_shape_ == (128, 128)
    assert (est.inference, est.minibatch_size, est.batch_weight) == ("minibatch", 32, 7.0)
    assert est.batches_ is None and est.cell_types_ is None and est.history_ == {}
    assert load_keras_generator(KERAS / "generator.h5", inference="population").inference == "population"


def test_recalibrated_estimator_does_not_depend_on_neighbours(io):
    est = load_keras_generator(KERAS / "generator.h5", device="cpu").recalibrate(io["x"][..., 0])
    est.set_params(inference="population")
    together, alone = est.predict_image(io["x"][..., 0]), est.predict_image(io["x"][:1, ..., 0])
    np.testing.assert_allclose(together[:1], alone, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------- files as Keras would write them today


def keras_layers(network, first_numbers):
    """Yield (name, class, config, weights) of all layers of one of our networks as a Keras model has them."""
    numbers = dict(first_numbers)

    def layer(kind, class_name, weights=(), **config):
        number = numbers.get(kind, 0)
        numbers[kind] = number + 1
        name = f"{kind}_{number}" if number else kind
        return name, class_name, {"name": name, "trainable": True, "dtype": "float32", **config}, dict(weights)

    def convolution(module):
        transposed = isinstance(module, nn.ConvTranspose2d) or getattr(module, "pad_before", 1) == 2
        weight = module.weight.detach()
        if transposed and isinstance(module, SameConv2d):  # (out, in, row, column) -> (row, column, out, in), flipped
            kernel = weight.flip(2, 3).permute(2, 3, 0, 1)
        else:  # (out, in, row, column) -> (row, column, in, out), and (in, out, ...) -> (..., out, in)
            kernel = weight.permute(2, 3, 1, 0)
        kind, class_name = ("conv2d_transpose", "Conv2DTranspose") if transposed else ("conv2d", "Conv2D")
        config = {"filters": module.out_channels, "kernel_size": [4, 4], "padding": "same", "strides": [*module.stride]}
        return layer(kind, class_name, {"kernel": kernel, "bias": module.bias.detach()}, **config)

    def normalisation(module):
        names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        weights = {theirs: getattr(module, ours).detach() for theirs, ours in names.items()}
        return layer("batch_normalization", "BatchNormalization", weights, momentum=0.99, epsilon=0.001, axis=[3])

    is_generator = isinstance(network, Generator)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    shape = [getattr(network, "side", None)] * 2 if isinstance(first, nn.Conv2d) else []
    channels = first.in_channels if isinstance(first, nn.Conv2d) else first.in_features
    yield layer("input", "InputLayer", batch_input_shape=[None, *shape, channels])
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield convolution(module)
            if is_generator and (name == "bottleneck" or name == "to_image"):
                yield layer("activation", "Activation", activation="relu" if name == "bottleneck" else "linear")
        elif isinstance(module, nn.BatchNorm2d):
            yield normalisation(module)
        elif isinstance(module, nn.Linear):
            yield layer("dense", "Dense", {"kernel": module.weight.detach().T, "bias": module.bias.detach()})
        elif isinstance(module, Encoding):
            yield layer("leaky_re_lu", "LeakyReLU", alpha=0.20000000298023224)
        elif isinstance(module, Decoding):
            yield layer("concatenate", "Concatenate", axis=-1)


def write_keras_file(path, network, *, config=True, whole_model=True, edit=None):
    """Write a network in Keras' legacy HDF5 layout, as late in a session that has built other models before."""
    layers = list(keras_layers(network, {"conv2d": 6, "input": 3, "batch_normalization": 96, "conv2d_transpose": 11}))
    layers = edit(layers) if edit else layers
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        root.attrs["layer_names"] = [name.encode() for name, *_ in layers]
        root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.4.0"
        for name, _, _, weights in layers:
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{leaf}:0".encode() for leaf in weights]
            for leaf, values in weights.items():
                group.create_dataset(f"{name}/{leaf}:0", data=np.asarray(values, np.float32))
        if whole_model:
            root.create_group("top_level_model_weights").attrs["weight_names"] = np.empty(0, "S1")
            optimizer = file.create_group("optimizer_weights")
            optimizer.attrs["weight_names"] = [b"Adam/iter:0"]
            optimizer.create_dataset("Adam/iter:0", data=np.int64(300))
            file.attrs["training_config"] = json.dumps({"loss": "mae", "optimizer_config": {"class_name": "Adam"}})
            if config:
                described = [{"class_name": kind, "name": name, "config": text} for name, kind, text, _ in layers]
                model = {"class_name": "Functional", "config": {"name": "model_7", "layers": described}}
                file.attrs["model_config"] = json.dumps(model)
    return path


def random_network(network_class, *args, **kwargs):
    """A network whose normalisations are not the identity."""
    rng = torch.Generator().manual_seed(3)
    network = new_network(network_class, *args, rng=rng, **kwargs)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.weight.normal_(0.0, 0.2, generator=rng)
                module.bias.normal_(0.0, 0.1, generator=rng)
            elif isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.bias, module.running_mean):
                    values.normal_(0.5, 0.1, generator=rng)
                module.running_var.uniform_(0.5, 2.0, generator=rng)
    return network


FRESH = {
    "side 64, width 8": {"side": 64, "base_width": 8, "n_features": 64, "head_widths": [4, 2, 1, 1]},
    "side 32, width 8, 20 features": {"side": 32, "base_width": 8, "n_features": 20},
    "side 16, width 5, 2 channels to 3": {
        "side": 16,
        "base_width": 5,
        "n_features": 40,
        "in_channels": 2,
        "out_channels": 3,
    },
    "side 256, width 2": {"side": 256, "base_width": 2, "n_features": 16},
    "side 128, width 16": {"side": 128, "base_width": 16, "n_features": 128, "head_widths": [8, 4, 2, 1]},
}


@torch.no_grad()
@pytest.mark.parametrize("form", ["model", "model without config", "weights"])
@pytest.mark.parametrize("name", FRESH)
def test_parity_freshly_written_file(tmp_path, name, form):
    generator = random_network(Generator, **FRESH[name])
    path = write_keras_file(tmp_path / "g.h5", generator, config=form == "model", whole_model=form != "weights")
    est = load_keras_generator(path, minibatch_size=3, device="cpu", precision="float64")
    side, n_in, n_out = (FRESH[name].get(key, 1) for key in ("side", "in_channels", "out_channels"))
    assert est.image_shape_ == ((side, side) if n_in == 1 else (side, side, n_in))
    assert est.target_shape_ == ((side, side) if n_out == 1 else (side, side, n_out))
    x = np.random.RandomState(0).normal(size=(3, *est.image_shape_)).astype(np.float32)
    image, features = generator.double().train()(to_torch(x.reshape(3, side, side, n_in), torch.float64))
    expected = to_keras(image).reshape(3, *est.target_shape_)
    check(f"fresh file ({form}) of {name}, image f64 returned as f32", est.predict_image(x), expected, 2e-7)
    check(f"fresh file ({form}) of {name}, features f64 returned as f32", est.transform(x), features, 2e-7)
    est.set_params(precision="float32")
    # Keras' order of summation has its own rounding, which grows with the pixels of a minibatch.
    bound = 1e-5 if side <= 128 else 4e-5
    check(f"fresh file ({form}) of {name}, image f32", est.predict_image(x), expected, bound)


@torch.no_grad()
@pytest.mark.parametrize("side", [128, 256, 512])
def test_parity_flattened_maps_of_any_side(tmp_path, side):
    """Keras flattens maps with channels last: what a dense layer reads is permuted where the last map is not 1 x 1."""
    classifier = random_network(ImageClassifier, side, 3, base_width=2).eval()
    path = write_keras_file(tmp_path / "c.h5", classifier)
    image = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    maps = classifier.body(image)
    flat = maps.permute(0, 2, 3, 1).flatten(1)  # rows of the file's dense kernel are read in this order
    expected = classifier.out(classifier.dense(flat).relu())
    check(f"image classifier of side {side}, logits f32", read_keras_network(path)(image), expected, 1e-5)


# ------------------------------------------------------------------------------------------------------------- refusals


def without(position):
    return lambda layers: layers[:position] + layers[position + 1 :]


def with_weight(position, leaf, values):
    def edit(layers):
        name, kind, config, weights = layers[position]
        return [*layers[:position], (name, kind, config, {**weights, leaf: values}), *layers[position + 1 :]]

    return edit


def with_setting(position, setting, value):
    def edit(layers):
        name, kind, config, weights = layers[position]
        return [*layers[:position], (name, kind, {**config, setting: value}, weights), *layers[position + 1 :]]

    return edit


# Layers of the file: 0 input, 1 leaky relu, 2 conv2d_6, 3 leaky relu, 4 conv2d_7, 5 batch normalisation, ...
EDITS = {
    "missing layer": (without(4), r"should be encoder\.1\.conv.*found 'batch_normalization_96' with gamma \(8,\)"),
    "missing last layer": (lambda layers: layers[:-2], r"should be to_image.*found the end of the file"),
    "extra layer": (
        lambda layers: [*layers, ("x", "Dense", {}, {"kernel": np.ones((2, 2))})],
        r"nothing after to_image",
    ),
    "wrong shape": (
        with_weight(4, "kernel", np.ones((3, 3, 4, 8))),
        r"encoder\.1\.conv.*\(4, 4, 4, 8\).*\(3, 3, 4, 8\)",
    ),
    "no bias": (
        lambda layers: with_weight(4, "bias", np.ones(7))(layers),
        r"encoder\.1\.conv.*bias \(8,\).*bias \(7,\)",
    ),
    "not finite": (with_weight(4, "bias", np.full(8, np.nan)), r"bias of 'conv2d_7'.*encoder\.1\.conv.*not finite"),
    "other stride": (with_setting(4, "strides", [1, 1]), r"encoder\.1\.conv.*strides=\[1, 1\]"),
    "other epsilon": (with_setting(5, "epsilon", 1e-5), r"encoder\.1\.norm.*epsilon=1e-05"),
    "other slope": (with_setting(3, "alpha", 0.3), r"slope of 0\.2.*0\.3"),
    "other side": (
        with_setting(0, "batch_input_shape", [None, 32, 64, 1]),
        r"input \(32, 32, 1\), found \(32, 64, 1\)",
    ),
    "impossible side": (with_setting(0, "batch_input_shape", [None, 100, 100, 1]), r"power of two"),
    "malformed configuration": (with_setting(4, "name", 5), r"g\.h5"),
    "combined model": (
        lambda layers: [("model_1", "Functional", {}, {f"w{i}": np.ones(3) for i in range(9)})],
        r"should be encoder\.0\.conv.*'model_1' with 9 weights, which seems to be a model of its own",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_refusal_of_other_layers(tmp_path, edit):
    change, message = EDITS[edit]
    path = write_keras_file(tmp_path / "g.h5", random_network(Generator, 32, base_width=4, n_features=9), edit=change)
    if edit == "malformed configuration":
        load_keras_generator(path)  # names in the configuration that match no layer are ignored
        return
    with pytest.raises(ValueError, match=message):
        load_keras_generator(path)


@pytest.mark.parametrize(
    ("name", "found"),
    [("discriminator", "a discriminator"), ("cell_cnn", "an image classifier"), ("batch_mlp1", "a feature classifier")],
)
def test_refusal_of_other_networks(name, found):
    with pytest.raises(
        ValueError, match=f"expected a generator but this looks like {found}; layer .* should be encoder"
    ):
        load_keras_generator(KERAS / f"{name}.h5")


def test_refusal_of_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5"):
        load_keras_generator(tmp_path / "none.h5")
    for content in (b"", b"PK\x03\x04 not HDF5", (KERAS / "batch_mlp1.h5").read_bytes()[:9000]):
        (tmp_path / "odd.h5").write_bytes(content)
        with pytest.raises(ValueError, match=r"odd\.h5 cannot be read as a legacy Keras HDF5 file"):
            load_keras_generator(tmp_path / "odd.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones(3)
    with pytest.raises(ValueError, match="no 'layer_names'"):
        load_keras_generator(tmp_path / "other.h5")
    path = write_keras_file(tmp_path / "ints.h5", random_network(Generator, 16, base_width=2, n_features=4))
    with h5py.File(path, "r+") as file:
        group = file["model_weights/conv2d_6/conv2d_6"]
        del group["bias:0"]
        group["bias:0"] = np.ones(2, int)
    with pytest.raises(ValueError, match=r"'conv2d_6/bias:0'.*floating-point"):
        load_keras_generator(path)
    with h5py.File(path, "r+") as file:
        del file["model_weights/conv2d_6/conv2d_6/bias:0"]
        file["model_weights/conv2d_6/conv2d_6/bias:0"] = h5py.ExternalLink(
            str(KERAS / "generator.h5"), "/model_weights"
        )
    with pytest.raises(ValueError, match="is not stored there"):
        load_keras_generator(path)


def test_widths_from_the_file_cannot_be_contradicted():
    assert load_keras_generator(KERAS / "generator.h5", base_width=4).base_width == 4
    with pytest.raises(ValueError, match="base_width=4, which base_width=64 contradicts"):
        load_keras_generator(KERAS / "generator.h5", base_width=64)


def test_layer_names_in_pieces(tmp_path, io):
    """Keras cuts a long list of names into numbered attributes."""
    path = write_keras_file(tmp_path / "g.h5", random_network(Generator, 16, base_width=2, n_features=4))
    whole = load_keras_generator(path)
    with h5py.File(path, "r+") as file:
        names = file["model_weights"].attrs["layer_names"]
        del file["model_weights"].attrs["layer_names"]
        for piece, part in enumerate(np.array_split(names, 3)):
            file["model_weights"].attrs[f"layer_names{piece}"] = part
    pieces = load_keras_generator(path)
    assert whole._model.weights.keys() == pieces._model.weights.keys()
    assert all(np.array_equal(whole._model.weights[name], pieces._model.weights[name]) for name in whole._model.weights)

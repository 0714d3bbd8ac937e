"""Training steps of both stages and of the classifiers against the original's under Keras 2.15.

``python -m pytest tests -k parity -s`` prints every figure. The fixtures start from the weights in ``data/keras`` and
take three steps on the minibatches in ``data/keras_training``, once in float64, which is the sharp reference, and once
in float32, as the original runs. Their float64 weights are stored as float32 differences from the initial ones, which
limits the agreement that can be seen to some 3e-8 of what a weight moved.
"""

import functools
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from skbegan.config import Pretraining, PublishedRemoval, Removal
from skbegan.core import classifiers
from skbegan.core.engine import Adam, Engine, new_rng, place
from skbegan.core.networks import Generator, SameConv2d, new_network
from skbegan.core.plans.pretraining import PretrainingPlan
from skbegan.core.plans.published import FeatureSubsets, PublishedPlan
from skbegan.data.cells import Minibatch
from skbegan.design import Design
from skbegan.io.keras import read_keras_network

DATA = Path(__file__).parent / "data"
KERAS, TRAINING = DATA / "keras", DATA / "keras_training"
CPU = torch.device("cpu")
DTYPES = {"f32": torch.float32, "f64": torch.float64}
STEPS = (1, 2, 3)
KEPT = 512  # of each large array, as in data/keras_training/make_copies.py
LEARNING_RATES = {"generator": 2e-4, "discriminator": 1e-4}
UPDATES = {"generator": 3, "discriminator": 6}  # the discriminator has two of its own in each step
OURS = {  # the fixtures' names of the losses -> ours; b1 to b4 are the members of one group here
    "d_real": "discriminator_real",
    "d_fake": "discriminator_fake",
    "gan_total": "total",
    "gan_bce": "adversarial",
    "gan_mae": "image",
    "total": "total",
    "d": "adversarial",
    "cCNN": "cell_type_image",
    "c": "cell_type",
    "bCNN": "batch_image",
    "mae": "image",
}


@functools.cache
def stored(name):
    with np.load(TRAINING / f"{name}.npz") as arrays:
        return dict(arrays)


def report(what, figure, bound):
    print(f"parity {what}: {figure:.1e} (bound {bound:.1e})")
    assert figure <= bound, what


# ------------------------------------------------------------------------------------- our networks in Keras' layout


def in_keras_layout(network, value=lambda tensor: tensor):
    """Yield (name of layer, leaf, array) of all weights in the order and the layout of the network's Keras file.

    `value` takes what is wanted of a weight, such as its gradient.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            leaves = ("weight", "bias", "running_mean", "running_var")
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            leaves = ("weight", "bias")
        else:
            continue
        for leaf in leaves:
            tensor = value(getattr(module, leaf))
            if tensor is None:
                continue
            if leaf == "weight" and isinstance(module, nn.Linear):
                tensor = tensor.T
            elif leaf == "weight" and isinstance(module, SameConv2d) and module.pad_before == 2:
                # A transposed convolution there: (out, in, row, column) -> (row, column, out, in), flipped.
                tensor = tensor.permute(2, 3, 0, 1).flip(0, 1)
            elif leaf == "weight" and tensor.ndim == 4:
                tensor = tensor.permute(2, 3, 1, 0)
            yield name, leaf, tensor.detach().double().numpy()


def thin(array):
    return array.ravel()[:: array.size // KEPT | 1]


def weights(network, value=lambda tensor: tensor):
    return np.concatenate([thin(array) for _, _, array in in_keras_layout(network, value)])


def kinds(network):
    """Say of each number that :func:`weights` returns whether it is a statistic, a bias before a BatchNorm, or else."""
    layers = list(in_keras_layout(network))
    names = list(dict.fromkeys(name for name, _, _ in layers))
    next_name = dict(pairwise(names))
    norms = {name for name, leaf, _ in layers if leaf == "running_mean"}
    labels = []
    for name, leaf, array in layers:
        if leaf.startswith("running"):
            kind = "statistic"
        else:
            kind = "bias before BatchNorm" if leaf == "bias" and next_name.get(name) in norms else "weight"
        labels += [kind] * thin(array).size
    return np.array(labels)


# --------------------------------------------------------------------------------------------- three steps of a stage


def to_torch(images, dtype):
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(dtype)


def minibatch(step, dtype):
    cells = stored("batches")
    codes = [
        torch.from_numpy(cells.get(f"{label}_onehot{step}", np.zeros((4, 1))).argmax(1)) for label in ("batch", "cell")
    ]
    return Minibatch(to_torch(cells[f"x{step}"], dtype), to_torch(cells[f"y{step}"], dtype), *codes)


def initial_generator(dtype):
    """The generator of the fixtures, whose dropout rate is 0."""
    state = read_keras_network(KERAS / "generator.h5").state_dict()
    sizes = Generator.sizes_of({name: value.shape for name, value in state.items()})
    generator = new_network(Generator, **sizes, dropout=0.0, rng=new_rng(0))
    generator.load_state_dict(state)
    return place(generator, CPU, dtype)


def initial_discriminator(dtype):
    return place(read_keras_network(KERAS / "discriminator.h5"), CPU, dtype)


def stage_1(dtype):
    config = Pretraining(
        image=100.0,
        learning_rate=LEARNING_RATES["generator"],
        discriminator_learning_rate=LEARNING_RATES["discriminator"],
        augment=False,
    )
    return PretrainingPlan(config, initial_generator(dtype), initial_discriminator(dtype), engine_of(dtype))


def engine_of(dtype):
    return Engine(CPU, dtype, dict.fromkeys(("order", "dropout", "classifiers"), 0))


def fill_subsets(subsets, lists):
    """Give the batch classifiers the fixtures' weights and features."""
    with torch.no_grad():
        for index, features in enumerate(lists):
            subsets.rows[index] = torch.from_numpy(features.astype(np.int64))
            member = read_keras_network(KERAS / f"batch_mlp{index + 1}.h5")
            for level, layer in enumerate([*member.hidden, member.out]):
                subsets.classifiers.weights[level][index] = layer.weight.T
                subsets.classifiers.biases[level][index, 0] = layer.bias
    assert bool((subsets.kept == 1).all()) and sorted(subsets.rows.ravel().tolist()) == list(range(32))


def stage_2(dtype):
    fooled = [stored("batches")[f"fake_batch_onehot{step}"] for step in STEPS]
    assert all((onehot.argmax(1) == 0).all() for onehot in fooled)  # every cell, whatever its batch, is to look like 0
    config = Removal(
        adversarial=1.0,
        image=300.0,
        cell_type=100.0,
        cell_type_image=100.0,
        batch=100.0,
        batch_image=100.0,
        batch_target="reference",
        discriminator_learning_rate=LEARNING_RATES["discriminator"],
        minibatch_size=4,
        augment=False,
    )
    method = PublishedRemoval(learning_rate=LEARNING_RATES["generator"])
    networks = initial_generator(dtype), initial_discriminator(dtype)
    design = Design(np.ones((4, 3), int), reference=0)
    stage = PublishedPlan(config, method, 4, *networks, design, engine_of(dtype))
    files = {"cell_type": "cell_mlp", "cell_type_image": "cell_cnn", "batch_image": "batch_cnn"}
    for name, file in files.items():
        stage.classifiers[name].load_state_dict(read_keras_network(KERAS / f"{file}.h5").state_dict())
    fill_subsets(stage.classifiers["batch"], [stored("stage2")[f"features_list{index}"] for index in (1, 2, 3, 4)])
    return stage


@dataclass
class Run:
    """What three steps did; losses are in the fixture's order, weights in Keras' layout and thinned."""

    losses: list
    valid_losses: np.ndarray
    images: list
    features: list
    kinds: dict
    initial: dict
    after: dict  # of each step
    end: dict  # as the fixture's weight files were written
    gradients: list  # of the generator's parameters in each step
    grad1: np.ndarray
    frozen_moved: float


@functools.cache
def run(name, precision):
    dtype = DTYPES[precision]
    stage = {"stage1": stage_1, "stage2": stage_2}[name](dtype)
    networks = {"generator": stage.generator, "discriminator": stage.discriminator}
    frozen = {key: value.clone() for key, value in _frozen_state(stage).items()}
    by_subset = []
    if name == "stage2":
        # Ours is the sum over the four batch classifiers; the fixture has each.
        target = torch.tensor([1.0, 0.0, 0.0], dtype=dtype).expand(4, 3)
        stage.classifiers["batch"].register_forward_hook(
            lambda module, inputs, logits: by_subset.append(classifiers.group_cross_entropy(logits.detach(), target))
        )

    def ordered(losses, names):
        values = {their: float(losses[our].detach()) for their, our in OURS.items() if our in losses}
        if by_subset:
            values |= {f"b{index + 1}": float(value) for index, value in enumerate(by_subset[-1])}
            assert float(losses["batch"].detach()) == pytest.approx(sum(by_subset[-1].tolist()), rel=1e-6)
        return np.array([values[their] for their in names])

    def predict(cells):
        # The original also predicts in batch mode, and its moving averages, which nothing reads, move at that.
        with torch.no_grad():
            image, features = stage.generator(cells.source)
        return thin(np.moveaxis(image.numpy(), 1, -1)), features.numpy()

    names = stored(name)["loss_names"].tolist()
    losses, images, features, gradients, after, grad1 = [], [], [], [], {}, None
    initial = {key: weights(network) for key, network in networks.items()}
    for step in STEPS:
        cells = minibatch(step, dtype)
        image, profile = predict(cells)
        images.append(image)
        features.append(profile)
        losses.append(ordered(stage.step(cells, progress=0.5), names))
        after[step] = {key: weights(network) for key, network in networks.items()}
        gradients.append([parameter.grad.clone() for parameter in stage.generator.parameters()])
        if step == 1:
            grad1 = weights(stage.generator, lambda tensor: tensor.grad)
        if name == "stage2":
            predict(cells)  # the fixture's `features_after`
    end = {key: weights(network) for key, network in networks.items()}
    valid_losses = ordered(stage.validate(minibatch("_valid", dtype)), names[2:])
    assert all(np.array_equal(weights(network), end[key]) for key, network in networks.items())
    moved = max([float((value - frozen[key]).abs().max()) for key, value in _frozen_state(stage).items()], default=0.0)
    return Run(
        losses=losses,
        valid_losses=valid_losses,
        images=images,
        features=features,
        kinds={key: kinds(network) for key, network in networks.items()},
        initial=initial,
        after=after,
        end=end,
        gradients=gradients,
        grad1=grad1,
        frozen_moved=moved,
    )


def _frozen_state(stage):
    networks = getattr(stage, "classifiers", {})
    states = {f"{name}.{key}": value for name, n in networks.items() for key, value in n.state_dict().items()}
    return {key: value for key, value in states.items() if value.is_floating_point()}


def relative_error(value, reference):
    return float(np.abs(np.asarray(value) / reference - 1.0).max())


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_parity_three_steps_f64(name):
    ours, theirs = run(name, "f64"), stored(name)
    what = f"{name} f64, "
    by_step = [relative_error(ours.losses[step - 1], theirs[f"losses{step}_f64"]) for step in STEPS]
    report(what + "all losses of three steps, max relative error", max(by_step), 1e-12)
    report(
        what + "validation losses after them, max relative error",
        relative_error(ours.valid_losses, theirs["valid_losses_f64"]),
        1e-12,
    )
    errors = [np.abs(ours.features[step - 1] - theirs[f"features{step}_f64"]).max() for step in STEPS]
    report(what + "features before each step, max error", max(errors), 1e-11)
    errors = [np.abs(ours.images[step - 1] - theirs[f"image{step}_f64"]).max() for step in STEPS]
    # The fixture holds the second and third image in float32.
    report(what + "image before the first step, max error", errors[0], 1e-11)
    report(what + "images before the others, max error", max(errors[1:]), 2e-7)
    gradient = theirs["grad1_generator"]
    error = np.abs(ours.grad1 - gradient).max() / np.abs(gradient).max()
    report(what + "generator's first gradient, max error over its max", error, 1e-7)
    for network, labels in ours.kinds.items():
        for step in (1, 3):
            moved = ours.after[step][network] - ours.initial[network]
            error = np.abs(moved - theirs[f"delta{step}_{network}"])
            for kind in ("weight", "bias before BatchNorm", "statistic"):
                title = f"{network} after {step} step{'s' * (step > 1)}, {kind}, max error"
                report(what + title, error[labels == kind].max(), 1e-8)
    if name == "stage2":
        labels = ours.kinds["generator"]
        moved = (ours.end["generator"] - ours.initial["generator"])[labels == "statistic"]
        error = np.abs(moved - theirs["delta_end_generator"]).max()
        report(what + "generator's statistics at the end, max error", error, 1e-8)
        report(what + "frozen classifiers, weights and statistics, max change", ours.frozen_moved, 0.0)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_parity_three_steps_f32(name):
    """What float32 leaves of it. The sizes are those of rounding, as Keras' own distance to its float64 run shows.

    Adam divides a gradient by its own size, so that a weight moves by about the learning rate whichever the gradient's
    size. Where rounding decides a gradient's sign, the step is as long, in the other direction:

    - Biases of convolutions before a BatchNorm have a true gradient of zero: all that they do is to follow rounding.
      They get only the loose bound. They change nothing that a network returns.
    - The gradient of the mean absolute error is the sign of each pixel's error; pixels that are met to rounding flip.
      So single weights may differ by twice the way they can go, while nearly all agree. Therefore the bound on the
      greatest difference is loose and the one on their bulk is not.

    How close it comes depends on the order in which torch adds up here, so the bounds leave room.
    """
    ours, theirs = run(name, "f32"), stored(name)
    what = f"{name} f32, "
    errors, own = [], []
    for step in STEPS:
        errors.append(relative_error(ours.losses[step - 1], theirs[f"losses{step}_f32"]))
        own.append(relative_error(theirs[f"losses{step}_f32"], theirs[f"losses{step}_f64"]))
    title = f"all losses of three steps, max relative error (Keras' own rounding: {max(own):.1e})"
    report(what + title, max(errors), 2e-4)
    error = relative_error(ours.valid_losses, theirs["valid_losses_f32"])
    report(what + "validation losses after them, max relative error", error, 5e-4)
    error = np.abs(ours.images[0] - theirs["image1_f32"]).max()
    report(what + "image before the first step, max error", error, 1e-4)
    error = max(np.abs(image - theirs[f"image{step}_f32"]).max() for step, image in enumerate(ours.images, 1))
    report(what + "images before each step, max error", error, 2e-2)
    for network, labels in ours.kinds.items():
        keras, exact = theirs[f"final_{network}_f32"], ours.initial[network] + theirs[f"delta3_{network}"]
        error, rounding = np.abs(ours.end[network] - keras), np.abs(keras - exact)
        trained = labels == "weight"
        longest = 2.2 * UPDATES[network] * LEARNING_RATES[network]
        title = f"{network}, weights, max difference (Keras' own rounding: {rounding[trained].max():.1e})"
        report(what + title, error[trained].max(), longest)
        report(what + f"{network}, 95 % of the weights differ by less than", np.quantile(error[trained], 0.95), 1e-4)
        typical = np.median(np.abs(theirs[f"delta3_{network}"][trained]))
        title = f"{network}, median difference of weights over the median way they went"
        report(what + title, np.median(error[trained]) / typical, 3e-2)
        idle = labels == "bias before BatchNorm"
        title = (
            f"{network}, biases before a BatchNorm, max difference (Keras' own rounding: {rounding[idle].max():.1e})"
        )
        report(what + title, error[idle].max(), longest)
        report(what + f"{network}, moving statistics, max difference", error[labels == "statistic"].max(), 2e-4)


# ------------------------------------------------------------------------------------------------------ the classifiers


def classifier_and_inputs(name):
    with np.load(KERAS / "io.npz") as io:
        feats, images = torch.from_numpy(io["feats"]), to_torch(io["y"], torch.float32)
        lists = [io[f"features_list{index}"] for index in (1, 2, 3, 4)]
    if name == "batch_mlp1":
        subsets = FeatureSubsets(4, 32, 3, new_rng(0))
        fill_subsets(subsets, lists)
        return subsets.classifiers, subsets.select(feats)
    return read_keras_network(KERAS / f"{name}.h5"), images if name == "cell_cnn" else feats


def group_member(group, index):
    """Yield the weights of one member in the order of its Keras file."""
    for weight, bias in zip(group.weights, group.biases, strict=True):
        yield from (weight[index].detach().double().numpy(), bias[index, 0].detach().double().numpy())


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name, learning_rate", [("cell_mlp", 1e-3), ("batch_mlp1", 0.05), ("cell_cnn", 1e-3)])
def test_parity_classifier_fit(monkeypatch, name, learning_rate, precision):
    """Three epochs of one minibatch; the batch classifier is one of a group of four that are trained side by side."""
    dtype, theirs = DTYPES[precision], stored("classifiers")
    network, inputs = classifier_and_inputs(name)
    network, inputs = place(network, CPU, dtype), inputs.to(dtype)
    labels = torch.from_numpy(theirs["batch" if name == "batch_mlp1" else "cell"].argmax(1))
    recorded = []
    true_loss = classifiers.group_cross_entropy

    def recording(logits, target):
        loss = true_loss(logits, target)
        accuracy = (logits[:, 0].argmax(1) == target).double().mean()
        recorded.append((float(loss[0].detach()), float(accuracy)))
        return loss

    def snapshot():
        if name == "batch_mlp1":
            return np.concatenate([thin(array) for array in group_member(network, 0)])
        return weights(network)

    monkeypatch.setattr(classifiers, "group_cross_entropy", recording)
    before = snapshot()
    classifiers.fit_classifier(
        network,
        inputs,
        labels,
        learning_rate=learning_rate,
        epochs=3,
        minibatch_size=4,
        rng=new_rng(0),
        holdout=0.0,
        engine=Engine(CPU, dtype),
    )
    loss, accuracy = np.array(recorded[:3]).T
    reference = theirs[f"{name}_loss_acc_{precision}"]
    np.testing.assert_array_equal(accuracy, reference[:, 1])
    error = relative_error(loss, reference[:, 0])
    report(
        f"{name} {precision}, loss of three steps, max relative error", error, {"f64": 1e-12, "f32": 2e-5}[precision]
    )
    error = np.abs(snapshot() - before - theirs[f"delta3_{name}"])
    if name == "cell_cnn" and precision == "f32":  # biases before a BatchNorm follow rounding, see above
        error = error[kinds(network) != "bias before BatchNorm"]
    bound = {"f64": 1e-8, "f32": 6 * learning_rate}[precision]
    report(f"{name} {precision}, weights after three steps, max error", error.max(), bound)
    report(f"{name} {precision}, 95 % of the weights err by less than", np.quantile(error, 0.95), min(bound, 1e-5))


# ------------------------------------------------------------------------------------------------------------- Adam


def replay(make_optimizer, before_step=lambda optimizer, step: None):
    """Return the generator after three updates with the gradients of stage 1, recorded in float64."""
    generator = initial_generator(torch.float64)
    optimizer = make_optimizer(generator.parameters())
    for step, gradients in zip(STEPS, run("stage1", "f64").gradients, strict=True):
        for parameter, gradient in zip(generator.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        before_step(optimizer, step)
        optimizer.step()
    return generator


def parameters_of(network):
    return torch.cat([parameter.detach().ravel() for parameter in network.parameters()]).numpy()


def test_parity_adam_differs_from_torch_in_the_place_of_epsilon_only():
    rate, betas, eps = LEARNING_RATES["generator"], (0.5, 0.999), 1e-7
    assert (Adam.BETAS, Adam.EPSILON) == (betas, eps)

    def torch_adam(parameters):
        return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=eps)

    def adapt(optimizer, step):
        optimizer.param_groups[0]["eps"] = eps / (1.0 - betas[1] ** step) ** 0.5

    reference = run("stage1", "f64")
    learned = reference.kinds["generator"] != "statistic"
    keras = (reference.initial["generator"] + stored("stage1")["delta3_generator"])[learned]
    our_network, torch_network = replay(lambda parameters: Adam(parameters, rate)), replay(torch_adam)
    error = np.abs(weights(our_network)[learned] - keras).max()
    report("Adam f64, ours against Keras, max error of weights after three steps", error, 1e-8)
    error = np.abs(weights(torch_network)[learned] - keras).max()
    print(f"parity Adam f64, torch's own against Keras, max error of weights after three steps: {error:.1e}")
    assert error > 1e-4
    ours, torchs = parameters_of(our_network), parameters_of(torch_network)
    difference = np.abs(ours - torchs)
    print(f"parity Adam f64, torch's own against ours, max difference, all weights: {difference.max():.1e}")
    error = np.abs(ours - parameters_of(replay(torch_adam, adapt))).max()
    report("Adam f64, torch's with epsilon / sqrt(1 - beta2**t) against ours", error, 1e-14)
    # Epsilon counts where gradients are small. Elsewhere both go the same way.
    smallest = np.min([torch.cat([g.ravel() for g in step]).abs().numpy() for step in reference.gradients], axis=0)
    large = smallest > 0.01
    assert large.mean() > 0.05
    title = f"Adam f64, torch's own against ours where gradients exceed 0.01 ({large.mean():.0%} of all weights)"
    report(title, difference[large].max(), 3e-7)


def test_parity_torchs_own_adam_shows_in_the_weights():
    """Three steps of stage 1 with torch's place for epsilon: the losses hardly tell, the weights do."""
    stage, theirs = stage_1(torch.float64), stored("stage1")
    for name, network in stage.networks.items():
        stage.engine.optimizers[name] = torch.optim.Adam(
            network.parameters(), lr=LEARNING_RATES[name], betas=Adam.BETAS, eps=Adam.EPSILON
        )
    before, errors = weights(stage.generator), []
    for step in STEPS:
        losses = stage.step(minibatch(step, torch.float64), progress=0.0)
        values = [float(losses[OURS[name]].detach()) for name in theirs["loss_names"].tolist()]
        errors.append(relative_error(values, theirs[f"losses{step}_f64"]))
    learned = kinds(stage.generator) == "weight"
    error = np.abs(weights(stage.generator) - before - theirs["delta3_generator"])[learned].max()
    print(f"parity stage1 f64 with torch's own Adam: losses {max(errors):.1e}, weights {error:.1e} from Keras")
    assert max(errors) > 1e-6 and error > 1e-4

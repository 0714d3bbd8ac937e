"""What makes training and inference fast, held without timing anything."""

from __future__ import annotations

import contextlib
import inspect

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skbegan import PUBLISHED, BeGANTransformer
from skbegan.core import device as device_module
from skbegan.core import recipe
from skbegan.core.data import ImageStack, Scaling
from skbegan.core.device import autocast, is_bfloat16_faster, new_rng, resolve_precision, undisturbed
from skbegan.core.inference import fold, infer, is_folded
from skbegan.core.networks import Generator, build

SIDE, N_TYPES, N_BATCHES = 16, 3, 2


def prepared(name: str) -> recipe.Prepared:
    """Return a stage ready to run: "pretraining", "published" or "default"."""
    rng = np.random.default_rng(0)
    n = 48
    images = rng.normal(size=(2, n, SIDE, SIDE)).astype(np.float32)
    codes = np.arange(n)
    arrays = recipe.Arrays(
        *images, codes % N_BATCHES, codes % N_TYPES, codes, codes[:0], Scaling.identity(1), Scaling.identity(1)
    )
    settings = {name: p.default for name, p in inspect.signature(BeGANTransformer).parameters.items()}
    settings |= PUBLISHED if name == "published" else {}
    settings |= {"base_width": 4, "n_features": 16, "minibatch_size": 12, "classifier_epochs": 1, "warmup_epochs": 1}
    seeds = {name: 0 for name in ("weights", "order", "dropout", "classifiers")}
    stage_1 = recipe.prepare_pretraining(arrays, settings, seeds, "cpu")
    if name == "pretraining":
        return stage_1
    weights = (recipe.to_numpy(network) for network in (stage_1.stage.generator, stage_1.stage.discriminator))
    outcome = recipe.Outcome(*weights, history={"epoch": []}, events=[], interrupted=False)
    design = {"n_batches": N_BATCHES, "n_cell_types": N_TYPES, "reference": 0}
    return recipe.prepare_removal(arrays, outcome, settings, seeds, "cpu", **design)


class HostReads(TorchDispatchMode):
    """Records the operations that a GPU would have to be waited for: what reads a value, or has a shape that depends on
    values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(waiting in name for waiting in self.WAITING):
            self.found.append(name)
        if name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1]):
            self.found.append("index by a mask")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_copies_to_the_host(monkeypatch):
    """Refuse what on a GPU would copy to the host, and on a CPU leaves no trace."""
    with monkeypatch.context() as patch:
        for name in ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__"):

            def refuse(*args, name=name, **kwargs):
                raise AssertionError(f"a step called Tensor.{name}")

            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.mark.parametrize("name", ["pretraining", "published", "default"])
def test_a_step_never_waits_for_the_device(name, monkeypatch):
    ready = prepared(name)
    ready.stage.begin_epoch(0, ready.cells)
    minibatch = ready.cells.take(torch.arange(12))
    ready.stage.step(ready.prepare(minibatch), 0.4)  # the first step sets up what later ones use
    with HostReads() as reads, no_copies_to_the_host(monkeypatch):
        losses = ready.stage.step(ready.prepare(minibatch), 0.5)
    assert reads.found == []
    assert all(isinstance(loss, torch.Tensor) for loss in losses.values())


def test_waiting_would_be_seen(monkeypatch):
    values = torch.arange(3.0)
    for read in (lambda: values[0].item(), lambda: values[values > 1], lambda: float(values.sum()), values.unique):
        with HostReads() as reads:
            read()
        assert reads.found
    with no_copies_to_the_host(monkeypatch), pytest.raises(AssertionError, match=r"Tensor\.cpu"):
        values.cpu()


@pytest.mark.parametrize(("name", "scaled"), [("pretraining", True), ("published", False)])
def test_only_standardised_targets_scale_the_last_layer(name, scaled):
    weight = prepared(name).stage.generator.to_image.weight
    assert (float(weight.std()) > 0.1) is scaled


@pytest.mark.parametrize(("name", "encoded"), [("pretraining", 1), ("published", 1), ("default", 2)])
def test_a_step_runs_the_generator_once(name, encoded, monkeypatch):
    # The default also encodes, without decoding, a second view of the cells.
    ready = prepared(name)
    ready.stage.begin_epoch(0, ready.cells)
    calls = {"encode": 0, "decode": 0}
    for method in calls:
        original = getattr(Generator, method)

        def counted(self, *args, method=method, original=original, **kwargs):
            calls[method] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Generator, method, counted)
    ready.stage.step(ready.prepare(ready.cells.take(torch.arange(12))), 0.5)
    assert calls == {"encode": encoded, "decode": 1}


def test_frozen_networks_get_no_gradients_of_their_weights():
    ready = prepared("published")
    ready.stage.begin_epoch(0, ready.cells)
    for network in ready.stage.classifiers.values():
        network.zero_grad(set_to_none=True)
    ready.stage.step(ready.cells.take(torch.arange(12)), 0.5)
    parameters = [p for network in ready.stage.classifiers.values() for p in network.parameters()]
    assert all(p.grad is None for p in parameters)
    assert any(p.grad is not None for p in ready.stage.generator.parameters())


# Inference --------------------------------------------------------------------------------------------------------


def trained_generator() -> Generator:
    """Return a generator whose BatchNorm layers all do something."""
    rng = new_rng(0)
    generator = build(Generator, SIDE, base_width=4, n_features=8, in_channels=2, out_channels=3, rng=rng)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(values, 0.5, 0.5, generator=rng)
            torch.nn.init.uniform_(module.running_var, 0.01, 0.1, generator=rng)
    return generator.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("want", ["features", "images"])
def test_a_folded_generator_says_the_same(dtype, tolerance, want):
    images = np.random.default_rng(0).normal(size=(10, SIDE, SIDE, 2))
    stack = ImageStack(images, Scaling.identity(2), torch.device("cpu"), dtype)
    weights = torch.float64 if dtype is torch.float64 else torch.float32
    plain = infer(trained_generator().to(weights), stack, want=want, dtype=weights)
    folded = fold(trained_generator().to(weights), dtype)
    found = infer(folded, stack, want=want, dtype=dtype)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain, rtol=0, atol=tolerance * np.abs(plain).max())
    assert np.abs(plain).std() > 0


def test_a_folded_generator_has_no_batch_norm_and_no_minibatch_statistics():
    generator = trained_generator()
    assert not is_folded(generator)
    fold(generator, torch.float32)
    assert is_folded(generator)
    stack = ImageStack(np.zeros((4, SIDE, SIDE, 2)), Scaling.identity(2), torch.device("cpu"))
    with pytest.raises(ValueError, match="no statistics of minibatches"):
        infer(generator, stack, want="images", minibatch_size=2)


# Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faster", [True, False])
def test_auto_precision_on_a_cpu_follows_the_measurement(faster, monkeypatch):
    monkeypatch.setattr(device_module, "is_bfloat16_faster", lambda: faster)
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu, 64) is (torch.bfloat16 if faster else torch.float32)
    assert resolve_precision("auto", cpu, 8) is torch.float32  # too narrow to gain
    assert resolve_precision("float32", cpu, 64) is torch.float32
    assert resolve_precision("float64", cpu, 64) is torch.float64


def test_precision_of_a_fitted_model_follows_the_width_it_was_fitted_with(monkeypatch):
    monkeypatch.setattr(device_module, "is_bfloat16_faster", lambda: True)
    images = np.random.default_rng(0).normal(size=(2, 12, SIDE, SIDE))
    est = BeGANTransformer(base_width=4, n_features=8, pretrain_epochs=1, removal_epochs=0, device="cpu")
    before = est.fit(*images).transform(images[0])
    np.testing.assert_array_equal(est.set_params(base_width=64).transform(images[0]), before)


def test_the_measurement_is_made_once():
    assert is_bfloat16_faster() is is_bfloat16_faster()
    assert is_bfloat16_faster.cache_info().misses == 1


def test_bfloat16_never_computes_with_the_weights_of_an_earlier_step():
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with undisturbed():
        with autocast(torch.device("cpu"), torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        with torch.no_grad():
            layer.weight.fill_(2.0)
            layer.bias.zero_()
        with autocast(torch.device("cpu"), torch.bfloat16):
            assert torch.equal(layer(x).float(), torch.full((2, 4), 8.0))

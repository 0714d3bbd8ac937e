"""What makes training and inference fast, held without timing anything."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from skbegan import PUBLISHED, BeGANTransformer, OnlineRemoval
from skbegan.config import Config
from skbegan.core import engine as engine_module
from skbegan.core.engine import Engine, autocast, has_bfloat16_units, new_rng, resolve_precision, undisturbed
from skbegan.core.inference import fold, infer, is_folded
from skbegan.core.networks import Generator, new_network, to_numpy
from skbegan.core.plans import online, pretraining, published
from skbegan.core.plans.pretraining import Start
from skbegan.data.cells import Cells
from skbegan.data.source import ImageSource, Scaling
from skbegan.design import Design

SIDE, N_TYPES, N_BATCHES = 16, 3, 2


def prepared(name: str) -> tuple[Any, Cells]:
    """Return a plan ready to run, and its cells: "pretraining", "published" or "default"."""
    images = np.random.default_rng(0).normal(size=(2, 48, SIDE, SIDE)).astype(np.float32)
    codes = np.arange(48)
    sources = [ImageSource(x, Scaling.identity(1), torch.device("cpu")) for x in images]
    cells = Cells(*sources, codes % N_BATCHES, codes % N_TYPES, codes)
    small = {"base_width": 4, "n_features": 16, "minibatch_size": 12, "classifier_epochs": 1}
    parameters = PUBLISHED | small if name == "published" else small | {"removal": OnlineRemoval(warmup_epochs=1)}
    config = Config.of(BeGANTransformer(**parameters).get_params(deep=False))
    design = Design.of(codes % N_BATCHES, codes % N_TYPES, N_BATCHES, N_TYPES)
    seeds = dict.fromkeys(("weights", "order", "dropout", "classifiers"), 0)
    engine = Engine(torch.device("cpu"), seeds=seeds)
    stage_1 = pretraining.build(config, cells, design, engine)
    if name == "pretraining":
        return stage_1, cells
    start = Start(to_numpy(stage_1.generator), to_numpy(stage_1.discriminator))
    module = published if name == "published" else online
    return module.build(config, cells, design, Engine(torch.device("cpu"), seeds=seeds), start), cells


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
    plan, cells = prepared(name)
    plan.begin_epoch(0, cells)
    minibatch = cells.take(torch.arange(12))
    plan.step(minibatch, 0.4)  # the first step sets up what later ones use
    with HostReads() as reads, no_copies_to_the_host(monkeypatch):
        losses = plan.step(minibatch, 0.5)
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
    weight = prepared(name)[0].generator.to_image.weight
    assert (float(weight.std()) > 0.1) is scaled


@pytest.mark.parametrize(("name", "encoded"), [("pretraining", 1), ("published", 1), ("default", 2)])
def test_a_step_runs_the_generator_once(name, encoded, monkeypatch):
    # The default also encodes, without decoding, a second view of the cells.
    plan, cells = prepared(name)
    plan.begin_epoch(0, cells)
    calls = {"encode": 0, "decode": 0}
    for method in calls:
        original = getattr(Generator, method)

        def counted(self, *args, method=method, original=original, **kwargs):
            calls[method] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Generator, method, counted)
    plan.step(cells.take(torch.arange(12)), 0.5)
    assert calls == {"encode": encoded, "decode": 1}


def test_frozen_networks_get_no_gradients_of_their_weights():
    plan, cells = prepared("published")
    plan.begin_epoch(0, cells)
    for network in plan.classifiers.values():
        network.zero_grad(set_to_none=True)
    plan.step(cells.take(torch.arange(12)), 0.5)
    parameters = [p for network in plan.classifiers.values() for p in network.parameters()]
    assert all(p.grad is None for p in parameters)
    assert any(p.grad is not None for p in plan.generator.parameters())


# Inference --------------------------------------------------------------------------------------------------------


def trained_generator() -> Generator:
    """Return a generator whose BatchNorm layers all do something."""
    rng = new_rng(0)
    generator = new_network(Generator, SIDE, base_width=4, n_features=8, in_channels=2, out_channels=3, rng=rng)
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
    stack = ImageSource(images, Scaling.identity(2), torch.device("cpu"), dtype)
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
    stack = ImageSource(np.zeros((4, SIDE, SIDE, 2)), Scaling.identity(2), torch.device("cpu"))
    with pytest.raises(ValueError, match="no statistics of minibatches"):
        infer(generator, stack, want="images", minibatch_size=2)


# Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has", [True, False])
def test_auto_precision_on_a_cpu_asks_for_its_units(has, monkeypatch):
    monkeypatch.setattr(engine_module, "has_bfloat16_units", lambda: has)
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu, 64) is (torch.bfloat16 if has else torch.float32)
    assert resolve_precision("auto", cpu, 8) is torch.float32  # too narrow to gain
    assert resolve_precision("float32", cpu, 64) is torch.float32
    assert resolve_precision("float64", cpu, 64) is torch.float64


def test_precision_of_a_fitted_model_follows_the_width_it_was_fitted_with(monkeypatch):
    monkeypatch.setattr(engine_module, "has_bfloat16_units", lambda: True)
    images = np.random.default_rng(0).normal(size=(2, 12, SIDE, SIDE))
    est = BeGANTransformer(base_width=4, n_features=8, pretrain_epochs=1, removal_epochs=0, device="cpu")
    before = est.fit(*images).transform(images[0])
    np.testing.assert_array_equal(est.set_params(base_width=64).transform(images[0]), before)


@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_a_torch_that_cannot_be_asked_means_no_bfloat16_units(machine, monkeypatch):
    monkeypatch.setattr(engine_module.platform, "machine", lambda: machine)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    monkeypatch.setattr(torch.ops, "mkldnn", object(), raising=False)
    assert has_bfloat16_units.__wrapped__() is False


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

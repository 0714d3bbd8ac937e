"""Device handling without a card: all stages on a pretended CUDA device, see fake_cuda.py.

It sees tensors of two devices meet, waits, copies and how many operations there are. It does not see kernels, memory,
streams and rounding: on a real card nothing was measured yet.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from fake_cuda import CPU, CUDA, DeviceMixed, FakeCuda, no_waits

import skbegan
from skbegan import PUBLISHED, BeGANTransformer, OnlineRemoval, ProfileAlignment
from skbegan.config import Config
from skbegan.core import losses
from skbegan.core.engine import Engine, new_rng, resolve_device, undisturbed
from skbegan.core.networks import new_network, to_numpy
from skbegan.core.outputs import ProfileMap
from skbegan.core.plans import online, pretraining, profile, published
from skbegan.core.plans.pretraining import Start
from skbegan.data.cells import Cells, Split
from skbegan.data.source import ImageSource, Scaling, send
from skbegan.design import Design

SIDE, N, N_TYPES, N_BATCHES, SIZE = 16, 48, 3, 2, 12
WITHOUT_STYLES: dict[str, Any] = {
    "invariance": 0.0,
    "identity": 0.0,
    "target_style": "transferred",
    "style_share": 0.0,
    "brightfield_style_share": 0.0,
}
PLANS: dict[str, dict[str, Any]] = {
    "pretraining": {},
    "online": {"removal": OnlineRemoval(warmup_epochs=1)},
    "online without styles": {"removal": OnlineRemoval(warmup_epochs=1, **WITHOUT_STYLES)},
    "online with unknown types": {
        "removal": OnlineRemoval(warmup_epochs=1, adversary_steps=2, n_adversaries=3, instrument_share=0.5)
    },
    "published": PUBLISHED,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass
class Ready:
    """A plan that is ready to be run, with its cells."""

    plan: Any
    cells: Cells
    order: torch.Generator

    def step(self, progress: float) -> dict[str, torch.Tensor]:
        positions = torch.randperm(N, generator=self.order)[:SIZE]
        return self.plan.step(self.cells.take(positions, draws=self.plan.draws(SIZE, progress)), progress)


def prepared(
    name: str, precision: str = "float32", device: str = "cuda", images: Any = np.float32, side: int = SIDE
) -> Ready:
    rng = np.random.default_rng(0)
    bf, target = (100 + 20 * rng.normal(size=(2, N, side, side))).astype(images)
    batch, cell_type = np.arange(N) % N_BATCHES, np.arange(N) // N_BATCHES % N_TYPES
    if "unknown" in name:
        cell_type[::5] = -1
    parameters = PLANS[name] | {"base_width": 4, "n_features": 16, "minibatch_size": SIZE, "classifier_epochs": 1}
    config = Config.of(BeGANTransformer(**parameters).get_params(deep=False))
    scaling = Scaling(np.array([100.0]), np.array([20.0]))
    split = Split(np.arange(N), np.arange(0), scaling, scaling)
    where, dtype = resolve_device(device), DTYPES[precision]
    seeds = dict.fromkeys(("weights", "order", "dropout", "classifiers"), 0)
    cells, _ = Cells.of_split(bf, target, batch, cell_type, split, where, dtype)
    plan: Any = pretraining.build(config, cells, None, Engine(where, dtype, seeds))
    if name != "pretraining":
        start = Start(to_numpy(plan.generator), to_numpy(plan.discriminator))
        module = published if name == "published" else online
        design = Design.of(batch, cell_type, N_BATCHES, N_TYPES, 0)
        plan = module.build(config, cells, design, Engine(where, dtype, seeds), start)
    plan.begin_epoch(0, cells)
    return Ready(plan, cells, torch.Generator().manual_seed(1))


# Steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "free"),
    [("float32", 40 << 30), ("bfloat16", 40 << 30), ("bfloat16", 1000)],
    ids=["float32", "bfloat16", "bfloat16, streamed"],
)
@pytest.mark.parametrize("name", PLANS)
def test_a_step_stays_on_the_card_and_never_waits(name, precision, free):
    with undisturbed(), FakeCuda(free) as fake:
        ready = prepared(name, precision)
        for progress in (0.4, 0.5):
            with no_waits(fake):
                found = ready.step(progress)
            assert all(loss.device == CUDA for loss in found.values())


MOST = {
    "float32": {"pretraining": 250, "online": 750, "published": 410},
    "bfloat16": {"pretraining": 270, "online": 795, "published": 450},
}


@pytest.mark.parametrize("name", MOST["float32"])
@pytest.mark.parametrize(
    ("precision", "free", "copies"),
    [("float32", 40 << 30, 1), ("bfloat16", 40 << 30, 1), ("float32", 1000, 3)],
    ids=["float32", "bfloat16", "images sent"],
)
def test_a_step_is_few_operations_and_all_it_draws_goes_in_one_pinned_copy(name, precision, free, copies):
    """Images that are not kept on the card take a copy each; networks of larger images have some operations more."""
    most = MOST[precision][name]
    with undisturbed(), FakeCuda(free) as fake:
        ready = prepared(name, precision)
        ready.step(0.4)
        mark, before = len(fake.events), sum(fake.launches.values())
        ready.step(0.5)
        assert [event.kind for event in fake.since(mark)] == ["pinned"] * copies
        assert most / 2 < sum(fake.launches.values()) - before <= most


@pytest.mark.parametrize("name", PLANS)
def test_losses_are_those_of_the_cpu(name):
    """The stand-in's dropout draws what the CPU's does, which a card's would not.

    Optimizers get their learning rates in float32 on a card.
    """
    with undisturbed():
        with FakeCuda():
            ready = prepared(name, "float64")
            found = {key: float(loss.detach()) for _ in range(2) for key, loss in ready.step(0.5).items()}
        ready = prepared(name, "float64", "cpu")
        expected = {key: float(loss.detach()) for _ in range(2) for key, loss in ready.step(0.5).items()}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("at_once", [16, 2048], ids=["drawn", "all"])
def test_a_step_of_profile_alignment_never_waits_and_sends_one_pinned_copy(at_once, monkeypatch):
    monkeypatch.setattr(profile, "CELLS_PER_STEP", at_once)
    monkeypatch.setattr(losses, "MIN_CELLS", 2)
    views = torch.rand(2, N, 8, generator=new_rng(0), dtype=torch.float64)
    batch, cell_type = torch.arange(N) % N_BATCHES, torch.arange(N) // N_BATCHES % N_TYPES

    def fit(device: torch.device) -> profile.ProfileFit:
        mapped = new_network(ProfileMap, 8, 6, 8, 4, rng=new_rng(0)).double()
        mapped.centre.zero_()
        mapped.read.copy_(torch.rand(8, 6, generator=new_rng(1)))
        weights = {"matching": 1.0, "correction": 1.0, "cell_type": 1.0}
        codes = (codes.to(device) for codes in (batch, cell_type))
        mapped.to(device)
        made = profile.ProfileFit(
            ProfileAlignment(), weights, mapped, views.to(device), *codes, Engine(device, torch.float64), new_rng(0)
        )
        made.classifier.double()
        if device == CPU and at_once < N:
            made.stratify()  # as on a card
        return made

    with undisturbed():
        with FakeCuda() as fake:
            on_card = fit(CUDA)
            found = on_card.step(0.5)
            mark = len(fake.events)
            with no_waits(fake):
                found = on_card.step(0.6)
            assert [event.kind for event in fake.since(mark)] == ["pinned"]
            found = {name: float(loss.detach()) for name, loss in found.items()}
        on_cpu = fit(CPU)
        on_cpu.step(0.5)
        expected = {name: float(loss.detach()) for name, loss in on_cpu.step(0.6).items()}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12) and len(found) == 3 and found["matching"]


# Fits -----------------------------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "base_width": 4,
    "n_features": 8,
    "pretrain_epochs": 2,
    "removal_epochs": 2,
    "classifier_epochs": 1,
    "refresh_epochs": 1,
    "removal": OnlineRemoval(warmup_epochs=1),
    "profile": ProfileAlignment(views=2, hidden=8),
    "minibatch_size": 16,
    "precision": "float64",
    "random_state": 0,
}


def images() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    bf, qpi = rng.normal(size=(2, 40, SIDE, SIDE)).astype(np.float32)
    return bf, qpi, np.arange(40) % 2, np.arange(40) // 2 % 2


def fit(**parameters: Any) -> BeGANTransformer:
    return BeGANTransformer(**(TINY | parameters)).fit(*images())


def numbers(model: BeGANTransformer) -> tuple[np.ndarray, np.ndarray]:
    bf = images()[0][:20]
    return model.transform(bf), model.predict_image(bf)


def assert_close(found: Any, expected: Any, share: float = 1e-5) -> None:
    for values, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.fixture(scope="module")
def on_cpu() -> BeGANTransformer:
    return fit(device="cpu")


@pytest.fixture(scope="module")
def on_card() -> tuple[BeGANTransformer, FakeCuda]:
    with FakeCuda() as fake:
        return fit(device="auto"), fake


def test_a_fit_on_the_card_gives_the_cpus_numbers(on_card, on_cpu):
    model, _ = on_card
    assert model.device_ == "cuda:0"
    assert_close(numbers(model.set_params(device="cpu")), numbers(on_cpu))
    assert set(model.history_) == {"pretraining", "batch_removal", "profile_alignment", "events"}
    assert_close([model.history_["profile_alignment"]["matching"]], [on_cpu.history_["profile_alignment"]["matching"]])


def test_a_model_serves_on_the_card_and_off_it_saved_or_pickled(on_cpu, tmp_path):
    skbegan.save(on_cpu, tmp_path / "model.safetensors")
    buffer = io.BytesIO()
    with FakeCuda():
        model = skbegan.load(tmp_path / "model.safetensors").set_params(device="cuda")
        assert_close(numbers(model), numbers(on_cpu.set_params(device="cpu")))
        skbegan.save(model, tmp_path / "again.safetensors")
        joblib.dump(model, buffer)
    buffer.seek(0)
    for loaded in (skbegan.load(tmp_path / "again.safetensors"), joblib.load(buffer)):
        assert_close(numbers(loaded.set_params(device="cpu")), numbers(on_cpu), 0.0)


def test_a_published_fit_and_a_warm_start_run_on_the_card():
    parameters = PUBLISHED | {name: value for name, value in TINY.items() if name != "removal"}
    parameters |= {"warm_start": True, "pretrain_epochs": 1, "removal_epochs": 1}
    found = []
    for device in ("cuda", "cpu"):
        with FakeCuda():
            model = fit(
                **parameters | {"device": device, "warm_start": True, "pretrain_epochs": 1, "removal_epochs": 1}
            )
            found.append(numbers(model.fit(*images())))
            assert len(model.history_["batch_removal"]["epoch"]) == 2
    assert_close(*found)


class _Stop:
    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __call__(self, info: Any) -> bool:
        if info.stage == self.stage and info.epoch == 1:
            raise RuntimeError("stopped")
        return False


@pytest.mark.parametrize("stage", ["pretraining", "batch_removal"])
def test_a_fit_goes_on_from_its_checkpoint_on_the_card(stage, on_card, tmp_path):
    with FakeCuda():
        with pytest.raises(RuntimeError, match="stopped"):
            fit(device="cuda", checkpoint_dir=tmp_path, callback=_Stop(stage))
        resumed = fit(device="cuda", checkpoint_dir=tmp_path)
    model, _ = on_card
    assert_close(numbers(resumed.set_params(device="cpu")), numbers(model.set_params(device="cpu")), 1e-12)


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")], ids="-".join)
def test_a_checkpoint_of_one_device_resumes_on_another(devices, tmp_path):
    with FakeCuda():
        with pytest.raises(RuntimeError, match="stopped"):
            fit(device=devices[0], checkpoint_dir=tmp_path, callback=_Stop("batch_removal"))
        with pytest.warns(RuntimeWarning, match=f"resumed on {devices[1]} from a checkpoint of {devices[0]}"):
            model = fit(device=devices[1], checkpoint_dir=tmp_path)
        assert len(model.history_["batch_removal"]["epoch"]) == 2
        assert all(np.isfinite(values).all() for values in numbers(model))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_go_to_the_card_in_their_own_dtype(dtype):
    bf = (40 * images()[0] + 200).clip(0, 255).astype(dtype)
    rows = np.array([3, 0, 39])
    with undisturbed(), FakeCuda() as fake:
        source = ImageSource(bf, Scaling.of(bf, np.arange(40)), CUDA)
        assert source.keep_on_device() and source.keep_on_device()
        sent = [int(event.what.split()[2]) for event in fake.events if event.kind == "pinned"]
        assert max(sent) == bf.nbytes
        found = source.take(rows)
        found = found.cpu()
    expected = ImageSource(bf, Scaling.of(bf, np.arange(40)), CPU).take(rows)
    assert torch.equal(found, expected)


def test_stages_share_the_images_on_the_card(monkeypatch):
    asked: list[tuple[int, bool]] = []
    original = ImageSource.keep_on_device

    def watched(self: ImageSource) -> bool:
        asked.append((id(self), self._resident is None))
        return original(self)

    monkeypatch.setattr(ImageSource, "keep_on_device", watched)
    with FakeCuda():
        fit(device="cuda", pretrain_epochs=1, removal_epochs=1)
    assert len(asked) == 6 and len({source for source, _ in asked}) == 2  # two sources, three stages
    assert [new for _, new in asked] == [True, True, False, False, False, False]


@pytest.mark.slow
def test_generator_and_discriminator_are_one_graph_each_for_a_compiler():
    plan = prepared("pretraining", device="cpu").plan
    source = torch.zeros(4, 1, SIDE, SIDE)
    masks = plan.generator.draw_masks(4, new_rng(0))
    for network, inputs in ((plan.generator, (source, masks, 0.1)), (plan.discriminator, (source, source))):
        found = torch._dynamo.explain(network)(*inputs)
        assert (found.graph_count, found.graph_break_count) == (1, 0)


# The device -----------------------------------------------------------------------------------------------------------


def test_tensors_of_all_kinds_travel_in_one_copy():
    parts = [torch.arange(3), torch.rand(2, 3, generator=new_rng(0)), torch.tensor([True, False, True]), torch.empty(0)]
    with FakeCuda() as fake:
        found = send(parts, CUDA)
        assert [event.kind for event in fake.events] == ["pinned"]
        assert all(part.device == CUDA for part in found)
        for part, expected in zip(found, parts, strict=True):
            assert part.dtype is expected.dtype and torch.equal(part.cpu(), expected)


def test_the_index_of_a_device_is_resolved_once_as_the_oldest_pytorch_wants_it():
    with FakeCuda(strict=True):
        assert resolve_device("auto") == resolve_device("cuda") == resolve_device("cuda:0") == CUDA
        with pytest.raises(ValueError, match="1 CUDA devices"):
            resolve_device("cuda:1")
        prepared("pretraining")


def test_float32_is_no_tf32_within_and_settings_are_as_before_afterwards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def settings() -> tuple[Any, ...]:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = settings()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        with undisturbed():
            with undisturbed():
                assert settings() == (False, "highest")
            assert settings() == (False, "highest")
        assert settings() == (True, "high")
    finally:
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cudnn.allow_tf32 = before[0]


# The stand-in ---------------------------------------------------------------------------------------------------------


def test_mistakes_would_be_seen():
    with FakeCuda() as fake:
        x, y = torch.ones(3, device="cuda"), torch.ones(3)
        for mistake in (
            lambda: x + y,
            lambda: torch.cat([x, y]),
            lambda: y[torch.zeros(1, dtype=torch.int64, device="cuda")],
            lambda: x.bernoulli_(0.5, generator=torch.Generator()),
        ):
            with pytest.raises(DeviceMixed):
                mistake()
        with pytest.raises(TypeError):
            x.numpy()
        with pytest.raises(RuntimeError, match="state"):
            torch.Generator("cuda").set_state(torch.Generator().get_state())
        for wait in (x.sum().item, x.nonzero, lambda: x[x > 0], x.cpu, lambda: y.to("cuda")):
            with pytest.raises(AssertionError), no_waits(fake):
                wait()
        mark = len(fake.events)
        with no_waits(fake):
            y.to("cuda", non_blocking=True)
            pinned = y.pin_memory()
            pinned.to("cuda", non_blocking=True)
        assert [event.kind for event in fake.since(mark)] == ["pageable", "pinned"]
        with pytest.raises(AssertionError, match="hazard"), no_waits(fake):
            pinned.add_(1)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda minibatch: minibatch.source.mean().item(),
        lambda minibatch: minibatch.source[minibatch.batch == 0],
        lambda minibatch: minibatch.source + torch.zeros(SIZE, 1, SIDE, SIDE),
    ],
)
def test_mistakes_in_a_step_would_be_seen(mistake, monkeypatch):
    original = pretraining.PretrainingPlan.step

    def mistaken(self: Any, cells: Any, progress: float) -> Any:
        mistake(cells)
        return original(self, cells, progress)

    monkeypatch.setattr(pretraining.PretrainingPlan, "step", mistaken)
    with pytest.raises((AssertionError, DeviceMixed)):
        test_a_step_stays_on_the_card_and_never_waits("pretraining", "float32", 40 << 30)

"""What a graph of a step would need: each step after the first is the same operations on the same memory.

On a pretended card, see fake_cuda.py. A graph itself is not captured: that needs a card.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import CUDA, FakeCuda, no_waits
from test_fake_cuda import N_BATCHES, N_TYPES, PLANS, N, prepared

from skbegan import ProfileAlignment
from skbegan.core import losses
from skbegan.core.adam import Adam
from skbegan.core.averaging import MovingAverage
from skbegan.core.engine import Engine, new_rng, undisturbed
from skbegan.core.losses import BatchAlignment
from skbegan.core.networks import new_network
from skbegan.core.outputs import ProfileMap
from skbegan.core.plans import profile
from skbegan.core.plans.profile import ProfileFit
from skbegan.core.recent import Recent
from skbegan.core.side_by_side import SideBySide

Step = Callable[[float], Any]


def assert_same_steps(fake: FakeCuda, step: Step, between: Callable[[], Any] | None = None) -> None:
    """Three steps, of which the first makes what lasts: operations, shapes, addresses and numbers of the others agree.

    The learning rate, the ramp of the loss weights, the bias correction and the share in the average differ in each.
    """
    recordings = []
    for progress in (0.05, 0.1, 0.9):
        with fake.recorded() as recording, no_waits(fake):
            step(progress)
        recordings.append(recording)  # with all that it made, so that none of its memory is used again
        if between is not None and len(recordings) == 2:
            between()
    second, third = (recording.operations for recording in recordings[1:])
    changed = [(a, b) for a, b in zip(second, third, strict=False) if a != b]
    assert not changed, f"{len(changed)} operations differ, first {changed[0]}"
    assert len(second) == len(third) > 100


@pytest.mark.parametrize(
    ("precision", "free"),
    [("float32", 40 << 30), ("bfloat16", 40 << 30), ("float32", 1000)],
    ids=["float32", "bfloat16", "images sent"],
)
@pytest.mark.parametrize("name", PLANS)
def test_steps_are_the_same_operations_on_the_same_memory(name, precision, free):
    with undisturbed(), FakeCuda(free) as fake:
        assert_same_steps(fake, prepared(name, precision).step)


@pytest.mark.parametrize("name", ["online", "published"])
def test_steps_are_the_same_before_and_after_a_refresh(name):
    with undisturbed(), FakeCuda() as fake:
        ready = prepared(name)
        before = [weight.clone() for weight in ready.plan.networks[_refreshed(name)].parameters()]

        def refresh() -> None:
            ready.plan.begin_epoch(ready.plan.config.refresh_epochs, ready.cells)
            after = ready.plan.networks[_refreshed(name)].parameters()
            assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True) if b.ndim > 1)

        assert_same_steps(fake, ready.step, refresh)


def _refreshed(name: str) -> str:
    return "batch" if name == "published" else "batch_adversary_1"


@pytest.mark.parametrize("name", ["pretraining", "online"])
def test_steps_are_the_same_after_a_rollback(name):
    with undisturbed(), FakeCuda() as fake:
        ready = prepared(name)
        assert_same_steps(fake, ready.step, ready.plan.soften)


def profile_fit() -> ProfileFit:
    batch, cell_type = torch.arange(N) % N_BATCHES, torch.arange(N) // N_BATCHES % N_TYPES
    views = torch.rand(2, N, 8, generator=new_rng(0))
    mapped = new_network(ProfileMap, 8, 6, 8, 4, rng=new_rng(0)).to(CUDA)
    mapped.centre.zero_()
    mapped.read.copy_(torch.rand(8, 6, generator=new_rng(1)))
    weights = {"matching": 1.0, "correction": 1.0, "cell_type": 1.0}
    codes = (codes.to(CUDA) for codes in (batch, cell_type))
    return ProfileFit(ProfileAlignment(), weights, mapped, views.to(CUDA), *codes, Engine(CUDA), new_rng(0))


@pytest.mark.parametrize("at_once", [24, 2048], ids=["drawn", "all"])
def test_steps_of_profile_alignment_are_the_same(at_once, monkeypatch):
    monkeypatch.setattr(profile, "CELLS_PER_STEP", at_once)
    with undisturbed(), FakeCuda() as fake:
        fit = profile_fit()
        assert_same_steps(fake, fit.step)
        assert fit.members


def test_each_batch_of_each_type_has_its_share_in_a_step_of_profile_alignment(monkeypatch):
    monkeypatch.setattr(profile, "CELLS_PER_STEP", 30)
    batch = torch.tensor([0] * 40 + [1] * 10 + [0] * 5 + [1] * 5)
    cell_type = torch.tensor([0] * 50 + [1] * 10)
    mapped = new_network(ProfileMap, 8, 6, 8, 4, rng=new_rng(0))
    views = torch.rand(1, 60, 8, generator=new_rng(0))
    fit = ProfileFit(ProfileAlignment(), {}, mapped, views, batch, cell_type, Engine(torch.device("cpu")), new_rng(0))
    fit.stratify()
    members, types, _, _ = fit._drawn(1.0)
    assert [[len(group) for group in groups] for groups in members] == [[20, 5], [4, 4]]  # at least four of each
    assert types.tolist() == [0] * 25 + [1] * 8


# The memory of earlier features ---------------------------------------------------------------------------------------


def test_a_memory_is_a_queue():
    """On a CPU in the order of a queue; on a card the same rows in another order, and zeros before it is full."""
    rng, recent, queue = new_rng(0), Recent(10), torch.zeros(0, 3)
    with FakeCuda():
        on_card = Recent(10)
        for n in (4, 4, 4, 7, 1, 12, 4):
            rows, codes = torch.rand(n, 3, generator=rng), torch.arange(n)
            queue = torch.cat([queue, rows])[-10:]
            recent.add(rows, codes)
            on_card.add(rows.to("cuda"), codes.to("cuda"))
            assert torch.equal(recent.read()[0], queue)
            there = on_card.read()[0].cpu()
            padded = torch.cat([queue, torch.zeros(10 - len(queue), 3)])
            assert torch.equal(there.sort(0).values, padded.sort(0).values)


def test_a_memory_goes_on_from_its_state_and_refuses_others():
    recent, again = Recent(5), Recent(5)
    again.restore(recent.state(), torch.device("cpu"))
    for n in (3, 4):
        recent.add(torch.rand(n, 2, generator=new_rng(n)), torch.arange(n))
    again.restore(recent.state(), torch.device("cpu"))
    for memory in (recent, again):
        memory.add(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    assert all(map(torch.equal, recent.read(), again.read()))
    with pytest.raises(ValueError, match="another size"):
        Recent(6).restore(recent.state(), torch.device("cpu"))
    recent.forget()
    assert len(recent.read()[0]) == 0


# Faults are found -----------------------------------------------------------------------------------------------------


def _rates_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Adam.__init__
    monkeypatch.setattr(Adam, "__init__", lambda self, parameters, rate, updates=0: original(self, parameters, rate))


def _share_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    original = MovingAverage.update
    monkeypatch.setattr(MovingAverage, "update", lambda self, share=None: original(self))


def _average_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    original = MovingAverage.update

    def update(self: MovingAverage, share: Any = None) -> None:
        self._kept = [kept.clone() for kept in self._kept]
        original(self, share)

    monkeypatch.setattr(MovingAverage, "update", update)


def _memory_that_is_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: Any, rows: torch.Tensor, codes: torch.Tensor) -> None:
        if self._rows is not None:
            rows, codes = torch.cat([self._rows, rows])[-self.size :], torch.cat([self._codes, codes])[-self.size :]
        self._rows, self._codes = rows, codes

    monkeypatch.setattr(Recent, "add", add)


def _weights_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from skbegan.core.plans import online

    monkeypatch.setattr(online, "weighted_sum", lambda found, weights, there=None: losses.weighted_sum(found, weights))


def _item(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BatchAlignment._loss

    def loss(self: Any, features: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        features.detach().mean().item()
        return original(self, features, groups)

    monkeypatch.setattr(BatchAlignment, "_loss", loss)


FAULTS = {
    "rates": _rates_of_the_host,
    "share": _share_of_the_host,
    "average": _average_elsewhere,
    "queue": _memory_that_is_a_queue,
    "weights": _weights_of_the_host,
    "item": _item,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_break_a_graph_is_found(fault, monkeypatch):
    FAULTS[fault](monkeypatch)
    with (
        undisturbed(),
        FakeCuda() as fake,
        pytest.raises(AssertionError, match="wait" if fault == "item" else "differ"),
    ):
        assert_same_steps(fake, prepared("online without styles").step)


@pytest.mark.parametrize("what", ["optimizer", "network"])
def test_a_refresh_that_builds_anew_is_found(what):
    with undisturbed(), FakeCuda() as fake:
        ready = prepared("online without styles")

        def refresh() -> None:
            plan = ready.plan
            if what == "optimizer":
                del plan.engine.optimizers["batch_adversary_1"]
                plan._optimize("batch_adversary_1")
            else:
                plan.together = SideBySide(plan.feature_adversaries())

        with pytest.raises(AssertionError, match="differ"):
            assert_same_steps(fake, ready.step, refresh)


def test_more_updates_than_were_announced_are_an_error():
    with undisturbed(), FakeCuda():
        ready = prepared("pretraining")
        ready.step(0.1)
        with pytest.raises(RuntimeError, match="2 updates per step was asked for more"):
            ready.plan.engine.descend("discriminator", ready.plan.discriminator.body[0].conv.weight.sum())


def test_an_optimizer_on_a_card_steps_as_on_a_cpu_and_its_state_is_that_of_a_cpu():
    rng = new_rng(0)
    start, gradients = torch.randn(7, generator=rng), torch.randn(12, 7, generator=rng)
    here = start.clone().requires_grad_()
    on_cpu = Adam([here], 1e-2)
    with FakeCuda():
        there = start.to("cuda").requires_grad_()
        engine = Engine(CUDA)
        engine.optimize("one", [there], 1e-2)
        for gradient in gradients:
            here.grad = gradient.clone()
            on_cpu.step()
            engine.schedule({name: rates.to("cuda") for name, rates in engine.coming().items()})
            there.grad = gradient.to("cuda")
            engine.optimizers["one"].step()
            torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=1e-5, atol=1e-7)
        saved, expected = engine.optimizers["one"].state_dict(), on_cpu.state_dict()
    assert saved["param_groups"] == [{**expected["param_groups"][0], "eps": Adam.EPSILON}]
    assert float(saved["state"][0]["step"]) == float(expected["state"][0]["step"]) == len(gradients)
    again = Adam([here], 1e-2)
    again.load_state_dict(saved)
    for optimizer in (on_cpu, again):
        here.data.copy_(start)
        here.grad = gradients[0].clone()
        optimizer.step()
        assert len(gradients) + 1 == optimizer.param_groups[0]["n_steps"]

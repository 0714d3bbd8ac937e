"""Classifiers that are computed together are those that are computed one by one."""

from __future__ import annotations

import pytest
import torch

from skbegan.core.classifiers import FeatureClassifier
from skbegan.core.engine import Adam, Engine, new_rng
from skbegan.core.losses import cross_entropy, cross_entropy_together, divergence, divergence_together
from skbegan.core.networks import new_network
from skbegan.core.side_by_side import SideBySide

N, N_FEATURES, N_TYPES, N_CLASSES = 20, 6, 3, 4


def classifiers() -> dict[str, FeatureClassifier]:
    rng = new_rng(0)
    return {
        name: new_network(FeatureClassifier, N_FEATURES, N_CLASSES, (8, 5), n_conditions=N_TYPES, rng=rng)
        for name in ("first", "second", "third")
    }


def engine_of(networks: dict[str, FeatureClassifier]) -> Engine:
    engine = Engine(torch.device("cpu"))
    for name, network in networks.items():
        engine.optimize(name, network.parameters(), 1e-2)
    return engine


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = new_rng(1)
    features, condition = torch.randn(N, N_FEATURES, generator=rng), torch.eye(N_TYPES)[torch.arange(N) % N_TYPES]
    return features, condition, torch.randint(N_CLASSES, (N,), generator=rng)


@pytest.mark.parametrize("known", [None, torch.arange(N) % 5 > 0], ids=["all", "some"])
def test_they_learn_as_each_by_itself_would(inputs, known):
    features, condition, truth = inputs
    apart, united = classifiers(), classifiers()
    together, engine, other = SideBySide(united), engine_of(united), engine_of(apart)
    for _ in range(3):
        loss = cross_entropy_together(together.logits(features, condition, learns=True), truth, known)
        engine.descend(together.names, loss.sum(), together.hand_out)
        for index, (name, network) in enumerate(apart.items()):
            own = cross_entropy(network(features, condition), truth, known)
            other.descend(name, own)
            torch.testing.assert_close(loss[index], own)
    for name, network in apart.items():
        torch.testing.assert_close(united[name].state_dict(), network.state_dict(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(united[name](features, condition), network(features, condition))


@pytest.mark.parametrize("known", [None, torch.arange(N) % 5 > 0], ids=["all", "some"])
def test_gradients_reach_the_features(inputs, known):
    features, condition, _ = inputs
    target, networks = torch.rand(N, N_CLASSES, generator=new_rng(2)).softmax(1), classifiers()
    found, expected = features.clone().requires_grad_(), features.clone().requires_grad_()
    apart = [divergence(network(expected, condition), target, known) for network in networks.values()]
    together = SideBySide(networks)
    loss = divergence_together(together.logits(found, condition, learns=False), target, known)
    mean = torch.stack(apart).mean()
    torch.testing.assert_close(loss, mean)
    loss.backward()
    mean.backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_a_network_that_is_renewed_is_renewed_for_all(inputs):
    features, condition, _ = inputs
    networks = classifiers()
    together = SideBySide(networks)
    networks["second"].load_state_dict(classifiers()["third"].state_dict())
    logits = together.logits(features, condition, learns=False)
    torch.testing.assert_close(logits[1], logits[2])
    assert not torch.allclose(logits[0], logits[1])


def test_moments_of_a_checkpoint_take_the_layout_of_the_weights():
    """Of a CPU, where each network has weights of its own, on a card."""
    apart, united = classifiers()["first"], classifiers()
    before, here = Adam(apart.parameters(), 1e-2), SideBySide(united)
    apart(torch.ones(2, N_FEATURES), torch.ones(2, N_TYPES)).square().sum().backward()
    before.step()
    after = Adam(united["first"].parameters(), 1e-2, updates=1)
    after.load_state_dict(before.state_dict())
    after.schedule([torch.zeros(())])
    for old, new in zip(apart.parameters(), united["first"].parameters(), strict=True):
        assert after.state[new]["exp_avg"].stride() == new.stride()
        torch.testing.assert_close(after.state[new]["exp_avg"], before.state[old]["exp_avg"])
    assert any(not weight.is_contiguous() for weight in united["first"].parameters()) and here.names

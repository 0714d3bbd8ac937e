"""Weights that are converted at once give what autocast gives, which converts one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skbegan.core.classifiers import FeatureClassifier, FeatureClassifierGroup, ImageClassifier
from skbegan.core.converted import converted
from skbegan.core.engine import autocast, new_rng, place
from skbegan.core.networks import Discriminator, Generator, new_network

CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16
IMAGES = torch.randn(4, 1, 16, 16, generator=new_rng(1))
CASES: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, object], tuple[torch.Tensor, ...]]] = {
    "generator": (Generator, (16,), {"base_width": 4, "n_features": 8}, (IMAGES,)),
    "discriminator": (Discriminator, (), {"base_width": 4}, (IMAGES, IMAGES.flip(2))),
    "images": (ImageClassifier, (16, 3), {"base_width": 4}, (IMAGES,)),
    "features": (FeatureClassifier, (16, 3, (8,)), {}, (IMAGES.flatten(1)[:, :16],)),
    "group": (FeatureClassifierGroup, (2, 16, 3, (8,)), {}, (IMAGES.flatten(1)[:, :32].view(4, 2, 16),)),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_and_gradients_are_those_of_autocast_and_weights_stay(case):
    kind, sizes, more, inputs = CASES[case]
    found = []
    for at_once in (False, True):
        network = place(new_network(kind, *sizes, rng=new_rng(0), **more), CPU, BFLOAT16).train()
        before = dict(network.named_parameters())
        with autocast(CPU, BFLOAT16):
            if at_once:
                with converted(network, BFLOAT16):
                    out = network(*inputs)
            else:
                out = network(*inputs)
        assert all(weight is before[name] for name, weight in network.named_parameters()) and len(before) > 1
        out = out[0] if isinstance(out, tuple) else out
        out.float().square().sum().backward()
        found.append([out.detach(), *(weight.grad for weight in network.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) and one.dtype is other.dtype


def test_weights_are_back_after_an_error_and_those_that_are_not_used_get_no_gradient():
    network = new_network(Generator, 16, base_width=4, n_features=8, rng=new_rng(0))
    before = dict(network.named_parameters())
    with pytest.raises(ValueError, match="failed"), converted(network, BFLOAT16):
        assert network.bottleneck.weight.dtype is BFLOAT16
        raise ValueError("failed")
    assert all(weight is before[name] for name, weight in network.named_parameters())
    with autocast(CPU, BFLOAT16), converted(network, BFLOAT16):
        features = network.encode(IMAGES)[0]
    features.float().sum().backward()
    assert network.bottleneck.weight.grad.dtype is torch.float32
    assert network.to_image.weight.grad is None

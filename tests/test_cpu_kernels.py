"""The convolution with fewer multiplications against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skbegan.core import cpu_kernels
from skbegan.core.engine import new_rng
from skbegan.core.networks import SameConv2d, new_network


def draw(n=2, channels=6, out_channels=5, height=8, width=12, dtype=torch.float64):
    rng = new_rng(0)
    x = torch.randn(n, channels, height, width, generator=rng, dtype=dtype)
    weight = 0.02 * torch.randn(out_channels, channels, 4, 4, generator=rng, dtype=dtype)
    upstream = torch.randn(n, out_channels, height, width, generator=rng, dtype=dtype)
    return x.to(memory_format=torch.channels_last).requires_grad_(), weight.requires_grad_(), upstream


def plain(x, weight, pad_before):
    after = 3 - pad_before
    return F.conv2d(F.pad(x, (pad_before, after, pad_before, after)), weight)


@pytest.mark.parametrize("pad_before", [1, 2])
def test_it_is_the_convolution_and_has_its_gradients(pad_before):
    x, weight, upstream = draw()
    found, wanted = cpu_kernels.convolve(x, weight, pad_before), plain(x, weight, pad_before)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad(y, (x, weight), upstream) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_gradients_that_nobody_asks_for_are_not_computed():
    x, weight, upstream = draw()
    y = cpu_kernels.convolve(x, weight.detach(), 1)
    (of_x,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(of_x, torch.autograd.grad(plain(x, weight, 1), x, upstream)[0], rtol=0, atol=1e-11)
    assert y.grad_fn.next_functions[1][0] is None


def test_float32_is_within_a_few_roundings_of_the_exact_result():
    x, weight, upstream = draw(n=4, channels=256, out_channels=256, height=16, width=16, dtype=torch.float32)
    exact = [value.detach().double().requires_grad_() for value in (x, weight)]
    results = []
    for convolve, inputs in ((cpu_kernels.convolve, (x, weight)), (plain, exact)):
        y = convolve(*inputs, 1)
        results.append([y, *torch.autograd.grad(y, inputs, upstream.to(y.dtype))])
    for ours, theirs in zip(*results, strict=True):
        assert (ours.double() - theirs).norm() < 1e-5 * theirs.norm()


def test_a_layer_uses_it_where_it_pays(monkeypatch):
    calls = []
    original = cpu_kernels.convolve
    monkeypatch.setattr(cpu_kernels, "convolve", lambda *args: calls.append(args) or original(*args))
    layer = new_network(SameConv2d, 128, 128, rng=new_rng(0))
    torch.nn.init.normal_(layer.bias, generator=new_rng(1))
    x = torch.randn(4, 128, 16, 16, generator=new_rng(2))
    found = layer(x)
    assert len(calls) == 1
    for small in (x[:3], x[..., :15], x[..., :15, :]):  # fewer pixels, and sides that are no multiple of 4
        layer(small)
    layer.double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        layer.float()(x)
    new_network(SameConv2d, 128, 8, rng=new_rng(0))(x)
    assert len(calls) == 1
    torch.testing.assert_close(found, plain(x, layer.weight, 1) + layer.bias[:, None, None], rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blurring_and_sorting_are_what_pytorch_does(dtype):
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(3, 2, 20, 17, dtype=dtype, generator=rng)
    kernel = torch.rand(7, dtype=dtype, generator=rng) / 7
    both = (kernel[:, None] * kernel)[None, None]
    wanted = F.conv2d(images.view(6, 1, 20, 17), both).view(3, 2, 14, 11)
    torch.testing.assert_close(cpu_kernels.blurred(images, kernel), wanted)
    images[0, 0, 0, 3] = torch.nan
    torch.testing.assert_close(cpu_kernels.in_order(images), images.sort(-1).values, equal_nan=True, rtol=0, atol=0)


def test_what_is_plain():
    values = torch.ones(2, 3)
    assert cpu_kernels.is_plain(values) and not cpu_kernels.is_plain(values.to("meta"))
    needs = torch.ones(2, 3, requires_grad=True) * 2
    assert not cpu_kernels.is_plain(needs)
    with torch.no_grad():
        assert cpu_kernels.is_plain(needs)
        program = torch.export.export(_Plain(), (values,))
        traced = torch.jit.trace(_Plain(), (values,))
    assert program.module()(values).tolist() == traced(values).tolist() == (-values).tolist()


class _Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if cpu_kernels.is_plain(x) else -x

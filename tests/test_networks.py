"""Sizes, shapes and offsets of the networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skbegan.core.classifiers import (
    BATCH_HIDDEN,
    CELL_TYPE_HIDDEN,
    FeatureClassifier,
    FeatureClassifierGroup,
    ImageClassifier,
)
from skbegan.core.engine import Adam, autocast, new_rng, place
from skbegan.core.networks import (
    Discriminator,
    Generator,
    SameConv2d,
    new_network,
    scale_last_layer,
)


def count(network: torch.nn.Module, trainable: bool = False) -> int:
    """Parameters as Keras counts them: moving statistics belong to the untrainable ones."""
    n = sum(p.numel() for p in network.parameters())
    if not trainable:
        n += sum(b.numel() for name, b in network.named_buffers() if not name.endswith("num_batches_tracked"))
    return n


def test_parameter_counts_are_the_published_ones():
    rng = new_rng(0)
    generator = new_network(Generator, 128, rng=rng)
    assert count(generator) == 41_909_997
    assert count(generator, trainable=True) == 41_902_069
    assert count(new_network(Discriminator, rng=rng)) == 6_964_161
    assert count(new_network(ImageClassifier, 128, 7, rng=rng)) == 7_021_511
    assert count(new_network(FeatureClassifier, 512, 7, CELL_TYPE_HIDDEN, rng=rng)) == 159_857
    assert count(new_network(FeatureClassifier, 128, 7, BATCH_HIDDEN, rng=rng)) == 14_932


@pytest.mark.parametrize("side", [16, 32, 64, 128, 256, 512])
def test_shapes_at_every_side_and_channel_count(side):
    rng = new_rng(0)
    generator = new_network(Generator, side, base_width=4, n_features=20, in_channels=2, out_channels=3, rng=rng)
    source = torch.randn(2, 2, side, side, generator=rng)
    image, features = generator(source, generator.draw_masks(2, rng))
    assert image.shape == (2, 3, side, side)
    assert features.shape == (2, 20)
    assert (features >= 0).all()
    discriminator = new_network(Discriminator, base_width=4, in_channels=2, out_channels=3, rng=rng)
    assert discriminator(source, image).shape == (2, 1, side // 8, side // 8)
    classifier = new_network(ImageClassifier, side, 5, base_width=4, in_channels=3, n_conditions=2, rng=rng)
    assert classifier(image, torch.eye(2)).shape == (2, 5)


@pytest.mark.parametrize("side", [8, 48, 1024])
def test_other_sides_are_refused(side):
    with pytest.raises(ValueError, match=f"power of two from 16 to 512, got {side}"):
        new_network(Generator, side, base_width=4, rng=new_rng(0))


def test_head_widths():
    def head(**kwargs):
        generator = new_network(Generator, 16, n_features=4, rng=new_rng(0), **kwargs)
        return [generator.to_full_size.conv.out_channels, *(level[0].out_channels for level in generator.head)]

    assert head(base_width=64) == [32, 16, 8, 4]
    assert head(base_width=16) == [8, 4, 4, 4]  # never less than the published least
    assert head(base_width=4, head_widths=[2, 1, 1, 1]) == [2, 1, 1, 1]


def test_sizes_are_read_off_the_weights():
    sizes = {"base_width": 5, "n_features": 7, "in_channels": 2, "out_channels": 3, "head_widths": [3, 2, 1, 1]}
    for side in (16, 64):
        state = new_network(Generator, side, rng=new_rng(0), **sizes).state_dict()
        assert Generator.sizes_of({name: value.shape for name, value in state.items()}) == {
            "side": side,
            "channels_together": 0,
            **sizes,
        }


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_offsets_of_same_convolution_are_one_before_two_after(side):
    conv = new_network(SameConv2d, 2, 3, rng=new_rng(1)).double()
    x = torch.randn(2, 2, side, side, generator=new_rng(2), dtype=torch.float64)
    expected = F.conv2d(F.pad(x, (1, 2, 1, 2)), conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_flipped_convolution_equals_transposed_one_cropped_by_one_first_two_last(side):
    conv = new_network(SameConv2d, 2, 3, 2, rng=new_rng(1)).double()
    x = torch.randn(2, 2, side, side, generator=new_rng(2), dtype=torch.float64)
    full = F.conv_transpose2d(x, conv.weight.flip(2, 3).transpose(0, 1), conv.bias)
    torch.testing.assert_close(conv(x), full[..., 1:-2, 1:-2], rtol=1e-12, atol=1e-12)


def test_strided_offsets_centre_the_kernel_on_the_pixel_pair():
    """Stride 2 pads one pixel on each side, its transposed form crops one: an image of one pixel shows both."""
    generator = new_network(Generator, 16, base_width=4, n_features=4, rng=new_rng(0))
    conv, transposed = generator.encoder[0].conv, generator.to_full_size.conv
    x = torch.zeros(1, 1, 16, 16)
    x[..., 6, 8] = 1.0
    y = conv(x) - conv.bias[:, None, None]
    # Output row 3 sees input rows 5 to 8, so that row 6 meets kernel row 1; output column 4 sees 7 to 10.
    torch.testing.assert_close(y[0, :, 3, 4], conv.weight[:, 0, 1, 1])
    z = torch.zeros(1, transposed.in_channels, 8, 8)
    z[0, 0, 3, 4] = 1.0
    out = transposed(z) - transposed.bias[:, None, None]
    # Input pixel (3, 4) paints output rows 5 to 8 and columns 7 to 10.
    torch.testing.assert_close(out[0, :, 5:9, 7:11], transposed.weight[0])


def test_dropout_acts_only_with_masks_and_only_on_two_levels():
    generator = new_network(Generator, 32, base_width=4, n_features=8, rng=new_rng(0)).train()
    x = torch.randn(4, 1, 32, 32, generator=new_rng(1))
    with torch.no_grad():
        image, features = generator(x)
        again, _ = generator(x)
        dropped, same_features = generator(x, generator.draw_masks(4, new_rng(3)))
        dropped_again, _ = generator(x, generator.draw_masks(4, new_rng(3)))
    assert torch.equal(image, again)
    assert not torch.allclose(image, dropped, rtol=1e-2)
    assert torch.equal(dropped, dropped_again)
    assert torch.equal(features, same_features)
    assert [level.dropout for level in generator.decoder] == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masks_have_the_layout_of_the_maps(dtype):
    """Which draw is whose depends on it: other fits would be drawn in another one."""
    generator = place(
        new_network(Generator, 32, base_width=4, n_features=8, rng=new_rng(0)), torch.device("cpu"), dtype
    )
    found = []
    for level in generator.decoder[:2]:
        level.norm.register_forward_hook(lambda module, inputs, output: found.append(torch.empty_like(output).stride()))
    with autocast(torch.device("cpu"), dtype):
        generator(torch.zeros(3, 1, 32, 32, dtype=torch.float64 if dtype is torch.float64 else torch.float32))
    assert [mask.stride() for mask in generator.draw_masks(3, new_rng(0))] == found


def test_building_and_dropout_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    generator = new_network(Generator, 16, base_width=4, n_features=8, rng=new_rng(0))
    generator(torch.zeros(2, 1, 16, 16), generator.draw_masks(2, new_rng(1)))
    assert torch.equal(before, torch.get_rng_state())


def test_initial_weights():
    generator = new_network(Generator, 32, base_width=32, n_features=64, rng=new_rng(0))
    weight = generator.encoder[3].conv.weight
    assert abs(float(weight.detach().std()) - 0.02) < 5e-4
    assert abs(float(weight.detach().mean())) < 5e-4
    assert not generator.encoder[3].conv.bias.any()
    norm = generator.encoder[3].norm
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    same = new_network(Generator, 32, base_width=32, n_features=64, rng=new_rng(0))
    assert torch.equal(same.encoder[3].conv.weight, weight)


def test_group_of_classifiers_equals_its_members():
    group = new_network(FeatureClassifierGroup, 3, 6, 4, (5, 7), rng=new_rng(0))
    x = torch.randn(10, 3, 6, generator=new_rng(1))
    logits = group(x)
    for index in range(3):
        member = new_network(FeatureClassifier, 6, 4, (5, 7), rng=new_rng(0))
        with torch.no_grad():
            for layer, weight, bias in zip([*member.hidden, member.out], group.weights, group.biases, strict=True):
                layer.weight.copy_(weight[index].T)
                layer.bias.copy_(bias[index, 0])
        torch.testing.assert_close(logits[:, index], member(x[:, index]))


def test_adam_has_keras_place_for_epsilon():
    """Against the update written out; torch's own place for epsilon differs visibly for small gradients."""
    start = np.array([0.5, -1.0, 2.0])
    gradients = [np.array([1e-7, -3e-6, 0.2]), np.array([2e-7, 1e-6, -0.1]), np.array([-1e-7, 2e-6, 0.3])]
    lr, b1, b2, eps = 1e-2, 0.5, 0.999, 1e-7
    expected, m, v = start.copy(), np.zeros(3), np.zeros(3)
    parameter = torch.tensor(start, requires_grad=True)
    torchs = torch.tensor(start, requires_grad=True)
    ours, theirs = Adam([parameter], lr), torch.optim.Adam([torchs], lr=lr, betas=(b1, b2), eps=eps)
    for t, gradient in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        expected -= lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        parameter.grad, torchs.grad = torch.tensor(gradient), torch.tensor(gradient)
        ours.step()
        theirs.step()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)
    difference = np.abs(torchs.detach().numpy() - expected)
    assert difference[0] > 1e-4  # small gradients tell the two apart
    assert difference[2] < 1e-6  # large ones do not


def test_a_scaled_last_layer_starts_with_images_of_about_unit_variance():
    def spread(generator):
        source = torch.randn(16, 1, 32, 32, generator=new_rng(1))
        return float(generator(source)[0].std())

    def make():
        return new_network(Generator, 32, base_width=16, n_features=32, rng=new_rng(0))

    published, scaled = make(), scale_last_layer(make())
    assert spread(published) < 0.2
    assert 0.4 < spread(scaled) < 2.5
    others = [name for name in published.state_dict() if name != "to_image.weight"]
    assert all(torch.equal(published.state_dict()[name], scaled.state_dict()[name]) for name in others)

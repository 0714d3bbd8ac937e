"""Generator and discriminator of beGAN, their weights and modes.

Sizes follow the published networks: at side 128 and base width 64 the parameter counts are theirs, to the unit. Every
convolution has a 4 x 4 kernel, a bias and Keras' 'same' offsets. The discriminator returns logits, never probabilities:
losses are computed from logits. The classifiers are in :mod:`skbegan.core.classifiers`.

Module layout is NCHW. Weights are drawn by :func:`initialise` from a generator that the caller owns; building a network
never touches PyTorch's global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core import cpu_kernels
from skbegan.core.descriptors import Descriptors
from skbegan.core.engine import Network, new_rng, place
from skbegan.core.outputs import ImageErasure, ProfileMap
from skbegan.core.parallel import BatchNorm2d

Weights = dict[str, np.ndarray]

KERNEL = 4
BN_EPS = 1e-3  # Keras' default, not torch's 1e-5
BN_MOMENTUM = 0.01  # Keras' momentum 0.99
LEAK = 0.20000000298023224  # 0.2 as Keras holds it, rounded to float32; shows only in float64
INITIAL_SPREAD = 0.02  # of a convolution's weights
MIN_SIDE, MAX_SIDE = 16, 512
MIN_HEAD_WIDTH = 4
MIN_NORM_VALUES = 64  # of a map, whose mean and spread are taken of one image
CHANNELS_TOGETHER = {"batch": 0, "instance": 1, "group": 8}  # that are normalised together; 0: over the minibatch


def _batch_norm(n_channels: int) -> nn.BatchNorm2d:
    return BatchNorm2d(n_channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def _norm(n_channels: int, side: int, together: int) -> nn.Module:
    """Return BatchNorm, or for `together` > 0 normalisation of each image by itself, of so many channels at a time.

    Where a map is small more channels go together: the statistics of fewer values than `MIN_NORM_VALUES` would take
    away what the map holds.
    """
    if together == 0:
        return _batch_norm(n_channels)
    size = max(together, -(-MIN_NORM_VALUES // side**2))
    return nn.GroupNorm(max(1, n_channels // size) if n_channels % size == 0 else 1, n_channels, eps=BN_EPS)


class SameConv2d(nn.Conv2d):
    """4 x 4 convolution of stride 1 that keeps the side, padding 3 pixels in all per axis.

    Parameters
    ----------
    in_channels, out_channels : int
    pad_before : {1, 2}, default=1
        Pixels of padding before the first row and column. 1 is Keras' 'same' convolution. 2 is Keras' 'same'
        *transposed* convolution of stride 1 with the kernel flipped in both axes: the same numbers, and several times
        faster on CPUs than the transposed form.
    """

    def __init__(self, in_channels: int, out_channels: int, pad_before: int = 1) -> None:
        super().__init__(in_channels, out_channels, KERNEL, padding=2)
        self.pad_before = pad_before

    def forward(self, input: Tensor) -> Tensor:
        if self.bias is not None and cpu_kernels.pays(input, self.out_channels):
            return cpu_kernels.convolve(input, self.weight, self.pad_before) + self.bias[:, None, None]
        # A symmetric padding of 2 yields one row and column too many; dropping the first (or last) leaves the offset
        # that is wanted, without a padded copy of the input.
        out = super().forward(input)
        if out.device.type == "cuda":  # one operation in place of two slices, and one in place of four backwards
            return F.pad(out, (-1, 0, -1, 0) if self.pad_before == 1 else (0, -1, 0, -1))
        return out[..., 1:, 1:] if self.pad_before == 1 else out[..., :-1, :-1]


class HalvingConv2d(nn.Conv2d):
    """4 x 4 convolution of stride 2 that halves an even side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, KERNEL, stride=2, padding=1)


class DoublingConv2d(nn.ConvTranspose2d):
    """4 x 4 transposed convolution of stride 2 that doubles the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, KERNEL, stride=2, padding=1)


class Encoding(nn.Module):
    """Stride-2 convolution, optional normalisation, LeakyReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, norm: bool = True, *, side: int = 0, together: int = 0
    ) -> None:
        super().__init__()
        self.conv = HalvingConv2d(in_channels, out_channels)
        self.norm = _norm(out_channels, side, together) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), LEAK)


class Decoding(nn.Module):
    """Stride-2 transposed convolution and normalisation, with optional dropout; the ReLU follows the concatenation."""

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, *, side: int = 0, together: int = 0
    ) -> None:
        super().__init__()
        self.conv = DoublingConv2d(in_channels, out_channels)
        self.norm = _norm(out_channels, side, together)
        self.dropout = dropout

    def forward(self, x: Tensor, skip: Tensor, keep: Tensor | None = None) -> Tensor:
        """`keep` is the mask of an inverted dropout, True for what is kept."""
        x = self.norm(self.conv(x))
        if keep is not None:
            x = x * keep / (1.0 - self.dropout)
        if x.device.type == "cuda":  # rather than both in the wider precision, which what follows converts back
            skip = skip.to(x.dtype)
        return F.relu(torch.cat([x, skip], dim=1))


def check_side(side: int) -> int:
    """Return ``log2(side)``, or raise ValueError when `side` is no power of two from 16 to 512."""
    if not MIN_SIDE <= side <= MAX_SIDE or side & (side - 1):
        raise ValueError(f"the image side must be a power of two from {MIN_SIDE} to {MAX_SIDE}, got {side}")
    return side.bit_length() - 1


class Generator(nn.Module):
    """U-Net from brightfield to the target image whose 1 x 1 bottleneck is the cell's feature vector.

    Parameters
    ----------
    side : int
        Side of the square images in pixels, a power of two from 16 to 512. Smaller sides drop encoder levels from the
        deep end.
    base_width : int, default=64
        Channels of the first level; deeper levels have 2, 4, 8, 8, ... times as many.
    n_features : int, default=512
        Length of the bottleneck.
    in_channels, out_channels : int, default=1
        Channels of the brightfield and of the target.
    dropout : float, default=0.5
        Share of activations dropped in the first two decoder levels while training.
    head_widths : sequence of 4 int, optional
        Channels of the four levels at full size before the image. By default a half, quarter, eighth and sixteenth of
        `base_width`, as published, but at least 4, the published least: through a single channel that ends in a ReLU
        some images cannot pass at all (14 % of unseen cells at width 16, where they came out constant).
    head_width : int, default=4
        The least of them by default.
    channels_together : int, default=0
        0: BatchNorm. Otherwise every image is normalised by itself, so many channels at a time (Ulyanov et al.,
        arXiv:1607.08022, 2016, for 1; Wu and He, ECCV 2018, for more).
    """

    def __init__(
        self,
        side: int,
        *,
        base_width: int = 64,
        n_features: int = 512,
        in_channels: int = 1,
        out_channels: int = 1,
        dropout: float = 0.5,
        head_widths: Sequence[int] | None = None,
        head_width: int = MIN_HEAD_WIDTH,
        channels_together: int = 0,
    ) -> None:
        super().__init__()
        depth = check_side(side)
        self.side = side
        if channels_together:  # its length tells whoever loads the weights
            self.register_buffer("normalised_together", torch.zeros(channels_together))
        widths = [base_width * min(2**level, 8) for level in range(depth - 1)]
        self.encoder = nn.ModuleList(
            Encoding(before, after, level > 0, side=side >> (level + 1), together=channels_together)
            for level, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False))
        )
        self.bottleneck = HalvingConv2d(widths[-1], n_features)
        self.decoder = nn.ModuleList()
        channels = n_features
        for level, width in enumerate(reversed(widths)):
            share = dropout if level < 2 else 0.0
            self.decoder.append(Decoding(channels, width, share, side=2 << level, together=channels_together))
            channels = 2 * width  # its own channels and those of the skip connection
        head = head_widths or [max(head_width, base_width // share) for share in (2, 4, 8, 16)]
        self.to_full_size = Decoding(channels, head[0], side=side, together=channels_together)
        self.head = nn.ModuleList()
        channels = head[0] + in_channels
        for width in head[1:]:
            norm = _norm(width, side, channels_together)
            self.head.append(nn.Sequential(SameConv2d(channels, width, pad_before=2), norm, nn.ReLU()))
            channels = width
        self.to_image = SameConv2d(channels, out_channels, pad_before=2)
        # What profile alignment puts behind features and images; training bypasses both.
        self.profile: nn.Module = nn.Identity()
        self.erasure: nn.Module = nn.Identity()
        self.descriptors: Descriptors | None = None

    @staticmethod
    def sizes_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return the arguments that make a generator whose state has the given shapes, name by name."""
        n_levels = sum(name.startswith("encoder.") and name.endswith("conv.weight") for name in shapes)
        n_head = sum(name.startswith("head.") and name.endswith("0.weight") for name in shapes)
        return {
            "side": 2 ** (n_levels + 1),
            "base_width": shapes["encoder.0.conv.weight"][0],
            "n_features": shapes["bottleneck.weight"][0],
            "in_channels": shapes["encoder.0.conv.weight"][1],
            "out_channels": shapes["to_image.weight"][0],
            "channels_together": shapes["normalised_together"][0] if "normalised_together" in shapes else 0,
            "head_widths": [shapes["to_full_size.conv.weight"][1]]
            + [shapes[f"head.{level}.0.weight"][0] for level in range(n_head)],
        }

    def encode(self, x: Tensor, leak: float = 0.0) -> tuple[Tensor, list[Tensor]]:
        """Return the features (n, n_features), after ReLU, and the maps that the decoder takes over.

        `leak` is a slope for negative inputs of that ReLU in the gradient alone, so that features that are shut off for
        all cells can come back; the features themselves do not depend on it.
        """
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        x = self.bottleneck(x).flatten(1)
        features = F.relu(x)
        if leak:
            below = leak * x.clamp(max=0)
            features = features + (below - below.detach())
        return features, skips

    def draw_masks(self, n: int, rng: torch.Generator) -> list[Tensor]:
        """Return masks of the dropout for `n` cells, one for each of the first levels of the decoder that have one.

        They are drawn outside of :meth:`forward` so that this is one graph for a compiler, and from `rng`, on its
        device, so that the global random state is left alone.
        """
        masks = []
        for index, level in enumerate(self.decoder):
            assert isinstance(level, Decoding)
            if level.dropout:
                shape = (n, level.conv.out_channels, 2 << index, 2 << index)
                # In the layout of the maps, which tells which draw is whose.
                keep = torch.empty(
                    shape, dtype=torch.bool, device=rng.device, memory_format=torch.channels_last
                ).bernoulli_(1.0 - level.dropout, generator=rng)
                masks.append(keep)
        return masks

    def decode(self, features: Tensor, skips: Sequence[Tensor], source: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return the image (n, out_channels, side, side) for what :meth:`encode` returned for `source`."""
        x = features[:, :, None, None]
        for index, (level, skip) in enumerate(zip(self.decoder, reversed(skips), strict=True)):
            x = level(x, skip, masks[index] if index < len(masks) else None)
        x = self.to_full_size(x, source)
        for level in self.head:
            x = level(x)
        return self.to_image(x)

    def profile_of(self, source: Tensor) -> Tensor:
        """Return what a user gets as features: of the bottleneck, and of the predicted image where the profile asks."""
        return self.profile(self.content_of(source))

    def content_of(self, source: Tensor) -> Tensor:
        """Return what the profile is made of: the features, and descriptors of the predicted image if there are any."""
        if self.descriptors is None:
            return self.encode(source)[0]
        image, features = self(source)
        seen = self.descriptors(self.erasure(image))
        return torch.cat([features.to(seen.dtype), seen], dim=1)

    def image_of(self, source: Tensor) -> Tensor:
        """Return what a user gets as the predicted image."""
        return self.erasure(self(source)[0])

    def forward(self, source: Tensor, masks: Sequence[Tensor] = (), leak: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return ``(image, features)``. Dropout acts only with masks, see :meth:`draw_masks`."""
        features, skips = self.encode(source, leak)
        return self.decode(features, skips, source, masks), features


class Discriminator(nn.Module):
    """PatchGAN on the concatenation of source and target: logits of shape (n, 1, side / 8, side / 8)."""

    def __init__(self, *, base_width: int = 64, in_channels: int = 1, out_channels: int = 1) -> None:
        super().__init__()
        w = base_width
        self.body = nn.Sequential(
            Encoding(in_channels + out_channels, w, norm=False),
            Encoding(w, 2 * w),
            Encoding(2 * w, 4 * w),
            same_block(4 * w, 8 * w),
            same_block(8 * w, 8 * w),
            SameConv2d(8 * w, 1),
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.body(torch.cat([source, target], dim=1))


def same_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(SameConv2d(in_channels, out_channels), _batch_norm(out_channels), nn.LeakyReLU(LEAK))


class DrawsItself(nn.Module):
    """A module whose parameters :func:`initialise` does not know."""

    def draw(self, rng: torch.Generator) -> None:
        raise NotImplementedError


# Weights --------------------------------------------------------------------------------------------------------------


def glorot_(weight: Tensor, fan_in: int, fan_out: int, rng: torch.Generator) -> None:
    bound = (6.0 / (fan_in + fan_out)) ** 0.5
    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=rng))


@torch.no_grad()
def initialise(network: Network, rng: torch.Generator) -> Network:
    """Draw a network's weights from `rng` as the published networks draw theirs, and return it.

    Convolutions ~ N(0, 0.02) with zero bias; dense layers Glorot-uniform with zero bias (Keras' default); BatchNorm
    starts as the identity. `rng` is a CPU generator; the network may be on any device.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0.0, INITIAL_SPREAD, generator=rng))
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            glorot_(module.weight, module.in_features, module.out_features, rng)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Generator) and hasattr(module, "normalised_together"):
            module.normalised_together.zero_()  # type: ignore[operator]
        elif isinstance(module, DrawsItself):
            module.draw(rng)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return network


@torch.no_grad()
def scale_last_layer(generator: Generator) -> Generator:
    """Scale a new generator's last layer so that it starts with images of unit variance, and return it.

    In effect its weights come from N(0, 2 / fan-in) (He et al., ICCV 2015). The published 0.02 is far below the
    scale of standardised targets, and at a learning rate of 2e-4 the weights take a thousand steps to grow: until
    then images are discs of one shade. On real cells, 14 epochs of 19 steps reached an error of 0.055 rather than
    0.101 and a correlation of 0.94 rather than 0.83 (one seed).
    """
    weight = generator.to_image.weight
    weight.mul_((2.0 / weight[0].numel()) ** 0.5 / INITIAL_SPREAD)
    return generator


def new_network(network_class: Callable[..., Network], *args: Any, rng: torch.Generator, **kwargs: Any) -> Network:
    """Construct a network on the CPU with weights drawn from `rng` only.

    PyTorch's layers draw from the global random state while they are constructed; on the meta device they do not.
    """
    with torch.device("meta"):
        network = network_class(*args, **kwargs)
    return initialise(network.to_empty(device="cpu"), rng)


def to_numpy(network: nn.Module) -> Weights:
    """Return a network's state as numpy arrays, without the counters that nothing reads."""
    return {
        name: value.detach().cpu().numpy().copy()
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def from_numpy(network: Network, weights: Mapping[str, np.ndarray]) -> Network:
    """Load what :func:`to_numpy` returned."""
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=False)
    return network


def with_outputs(generator: Generator, shapes: Mapping[str, Sequence[int]]) -> Generator:
    """Give a generator the modules that the names and shapes of its weights speak of; their values come later."""
    generator.profile, generator.erasure, generator.descriptors = nn.Identity(), nn.Identity(), None
    if "descriptors.sign" in shapes:
        generator.descriptors = Descriptors(shapes["descriptors.sign"][0])
    if "profile.read" in shapes:
        hidden = shapes["profile.correction.0.weight"][0]
        sizes = *shapes["profile.read"], shapes["profile.write"][1]
        generator.profile = new_network(ProfileMap, *sizes, hidden, rng=new_rng(0))
    if "erasure.centre" in shapes:
        generator.erasure = ImageErasure(shapes["erasure.centre"], shapes["erasure.write"][0])
    return generator


def without_outputs(weights: Weights) -> Weights:
    """Return the weights of the generator that trains, without what profile alignment put behind it."""
    outputs = ("profile.", "erasure.", "descriptors.")
    return {name: value for name, value in weights.items() if not name.startswith(outputs)}


def generator_of(weights: Weights, device: torch.device, dtype: torch.dtype) -> Generator:
    """Build the generator that the weights belong to, whatever its sizes, on a device."""
    shapes = {name: value.shape for name, value in weights.items()}
    generator = new_network(Generator, **Generator.sizes_of(shapes), rng=new_rng(0))
    return from_numpy(place(with_outputs(generator, shapes), device, dtype), weights)


# Modes ----------------------------------------------------------------------------------------------------------------


@contextmanager
def frozen(*networks: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Within it the networks' weights get no gradients, while gradients pass through to their inputs.

    BatchNorm is in inference mode, or with `batch_statistics` uses the minibatch's statistics; either way its moving
    statistics stay. Leaves the networks in training mode.
    """
    for network in networks:
        network.train(batch_statistics)
        network.requires_grad_(False)
    try:
        with untracked(*networks):
            yield
    finally:
        for network in networks:
            network.train()
            network.requires_grad_(True)


@contextmanager
def untracked(*networks: nn.Module) -> Iterator[None]:
    """Within it BatchNorm in training mode uses the minibatch's statistics without moving its own."""
    norms = [m for network in networks for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's state that later training does not change."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}

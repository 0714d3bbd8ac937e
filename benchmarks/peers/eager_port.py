"""The obvious port of the original's networks and steps to eager PyTorch, to be measured against.

What one writes first: explicit padding, transposed convolutions as they are written, the generator run once for the
discriminator and once more for itself, Adam as it comes, losses read at every step, no thought of layout or precision.
Nothing else uses it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def down(before: int, after: int, norm: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv2d(before, after, 4, stride=2, padding=1)]
    return nn.Sequential(*parts, *([nn.BatchNorm2d(after, eps=1e-3)] if norm else []), nn.LeakyReLU(0.2))


def same(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(before, after, 4))


class Same(nn.Module):
    """Transposed convolution of stride 1 that keeps the side."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(before, after, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., 1:-2, 1:-2]


class Generator(nn.Module):
    """The published generator: image and features."""

    def __init__(self, side: int, width: int, n_features: int) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(side.bit_length() - 2)]
        self.down = nn.ModuleList(
            down(a, b, level > 0) for level, (a, b) in enumerate(zip([1, *widths], widths, strict=False))
        )
        self.bottleneck = nn.Conv2d(widths[-1], n_features, 4, stride=2, padding=1)
        self.up = nn.ModuleList()
        channels = n_features
        for after in [*reversed(widths), width // 2]:
            self.up.append(
                nn.Sequential(
                    nn.ConvTranspose2d(channels, after, 4, stride=2, padding=1), nn.BatchNorm2d(after, eps=1e-3)
                )
            )
            channels = 2 * after
        channels = width // 2 + 1
        self.head = nn.ModuleList()
        for share in (4, 8, 16):
            after = max(1, width // share)
            self.head.append(nn.Sequential(Same(channels, after), nn.BatchNorm2d(after, eps=1e-3), nn.ReLU()))
            channels = after
        self.out = Same(channels, 1)

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        x, skips = source, []
        for level in self.down:
            x = level(x)
            skips.append(x)
        x = F.relu(self.bottleneck(x))
        features = x.flatten(1)
        for index, (level, skip) in enumerate(zip(self.up, [*reversed(skips), source], strict=True)):
            x = level(x)
            if index < 2:
                x = F.dropout(x, 0.5, self.training)
            x = F.relu(torch.cat([x, skip], 1))
        for level in self.head:
            x = level(x)
        return self.out(x), features


class Discriminator(nn.Module):
    """The published discriminator."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.body = nn.Sequential(down(2, w, norm=False), down(w, 2 * w), down(2 * w, 4 * w))
        for before in (4 * w, 8 * w):
            self.body.extend([same(before, 8 * w), nn.BatchNorm2d(8 * w, eps=1e-3), nn.LeakyReLU(0.2)])
        self.body.append(same(8 * w, 1))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return torch.sigmoid(self.body(torch.cat([source, target], 1)))


class ImageClassifier(nn.Module):
    """The published classifier of images."""

    def __init__(self, side: int, width: int, n_classes: int) -> None:
        super().__init__()
        w = width
        self.body = nn.Sequential(down(1, w, norm=False), down(w, 2 * w), nn.MaxPool2d(2, ceil_mode=True))
        self.body.extend([down(2 * w, 4 * w), nn.MaxPool2d(2, ceil_mode=True)])
        for before in (4 * w, 8 * w):
            self.body.extend([same(before, 8 * w), nn.BatchNorm2d(8 * w, eps=1e-3), nn.LeakyReLU(0.2)])
            self.body.append(nn.MaxPool2d(2, ceil_mode=True))
        last_side = max(1, side // 128)
        self.head = nn.Sequential(nn.Linear(8 * w * last_side**2, 128), nn.ReLU(), nn.Linear(128, n_classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image).flatten(1))


def mlp(*widths: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class EagerPort:
    """Networks, optimizers and steps.

    Parameters
    ----------
    side, base_width, n_features, n_classes : int
    device : torch.device
    """

    N_SUBSETS = 4

    def __init__(self, side: int, base_width: int, n_features: int, n_classes: int, device: torch.device) -> None:
        self.generator = Generator(side, base_width, n_features).to(device)
        self.discriminator = Discriminator(base_width).to(device)
        self.cell_image, self.batch_image = (
            ImageClassifier(side, base_width, n_classes).to(device).eval() for _ in range(2)
        )
        self.cell = mlp(n_features, 250, 100, 50, 25, n_classes).to(device)
        width = n_features // self.N_SUBSETS
        self.batch = [mlp(width, 75, 50, 25, n_classes).to(device) for _ in range(self.N_SUBSETS)]
        self.subsets = torch.randperm(n_features, device=device)[: width * self.N_SUBSETS].split(width)
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), 2e-4, (0.5, 0.999))
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), 1e-4, (0.5, 0.999))

    def _discriminator_steps(self, bf: Tensor, qpi: Tensor) -> None:
        with torch.no_grad():
            fake, _ = self.generator(bf)
        for target, label in ((qpi, 1.0), (fake, 0.0)):
            verdict = self.discriminator(bf, target)
            loss = 0.5 * F.binary_cross_entropy(verdict, torch.full_like(verdict, label))
            self.d_optimizer.zero_grad()
            loss.backward()
            self.d_optimizer.step()
            loss.item()

    def _generator_step(self, loss: Tensor) -> None:
        self.g_optimizer.zero_grad()
        loss.backward()
        self.g_optimizer.step()
        loss.item()

    def _conversion(self, bf: Tensor, image: Tensor, qpi: Tensor, weight: float) -> Tensor:
        self.discriminator.eval()
        verdict = self.discriminator(bf, image)
        self.discriminator.train()
        return F.binary_cross_entropy(verdict, torch.ones_like(verdict)) + weight * F.l1_loss(image, qpi)

    def stage_1_step(self, bf: Tensor, qpi: Tensor) -> None:
        self._discriminator_steps(bf, qpi)
        image, _ = self.generator(bf)
        self._generator_step(self._conversion(bf, image, qpi, 100.0))

    def stage_2_step(self, bf: Tensor, qpi: Tensor, cell_type: Tensor) -> None:
        self._discriminator_steps(bf, qpi)
        image, features = self.generator(bf)
        fool = torch.zeros_like(cell_type)
        loss = self._conversion(bf, image, qpi, 300.0)
        loss = loss + 100 * F.cross_entropy(self.cell_image(image), cell_type)
        loss = loss + 100 * F.cross_entropy(self.cell(features), cell_type)
        loss = loss + 100 * F.cross_entropy(self.batch_image(image), fool)
        for subset, network in zip(self.subsets, self.batch, strict=True):
            loss = loss + 100 * F.cross_entropy(network(features[:, subset]), fool)
        self._generator_step(loss)

    @torch.no_grad()
    def predict(self, bf: Tensor, size: int = 32) -> tuple[Tensor, Tensor]:
        self.generator.eval()
        found = [self.generator(part) for part in bf.split(size)]
        self.generator.train()
        images, features = zip(*found, strict=True)
        return torch.cat(images), torch.cat(features)

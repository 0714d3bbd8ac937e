"""Inference: features without the decoder, images, and population statistics, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skbegan.core.engine import autocast
from skbegan.core.networks import Decoding, Encoding, Generator, untracked
from skbegan.data.source import ImageSource
from skbegan.stored.lazy import in_order

PIXELS_PER_CHUNK = 1 << 18  # 16 cells of side 128: enough to keep the cores busy, and little enough for their caches
PIXELS_ON_CARD = 1 << 24  # 1024 cells of side 128: copies and launches cost little beside the work


def chunk_size(side: int, device: torch.device | None = None) -> int:
    """Cells per chunk: a constant number of pixels, whatever the side; on a CPU, the default, at most 256 cells."""
    if device is not None and device.type == "cuda":
        return int(max(1, PIXELS_ON_CARD // side**2))
    return int(max(1, min(256, PIXELS_PER_CHUNK // side**2)))


@torch.no_grad()
def estimate_population_statistics(generator: Generator, minibatches: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Set the moving statistics of every BatchNorm to the mean over minibatches of batch statistics, without dropout.

    The generator trains on batch statistics; averaging them over the training set, with the final weights, gives the
    population statistics that make inference independent of the other cells at hand.

    Parameters
    ----------
    generator : Generator
        Changed in place: moving statistics only. Left in inference mode.
    minibatches : iterable of Tensor
        Standardised brightfield, in minibatches of similar size (at least two cells).
    dtype : torch.dtype
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        generator.eval()
        return
    momenta = [norm.momentum for norm in norms]
    generator.train()
    for count, source in enumerate(minibatches):
        for norm in norms:
            norm.momentum = 1.0 / (count + 1)  # a running mean over minibatches
        with autocast(source.device, dtype):
            generator(source)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    generator.eval()


def is_folded(generator: Generator) -> bool:
    """Whether :func:`fold` was applied to a generator."""
    return bool(getattr(generator, "folded", False))


def fold(generator: Generator, dtype: torch.dtype) -> Generator:
    """Make a generator one for inference alone, and return it: population statistics within the weights, in `dtype`.

    With fixed statistics BatchNorm is one factor and one offset per channel, which the convolution before it can take
    on. In bfloat16 the weights are rounded once here rather than at every call.

    Parameters
    ----------
    generator : Generator
        Changed in place; it cannot be trained or use the statistics of minibatches afterwards. What makes profiles and
        erases from images keeps its precision.
    dtype : torch.dtype
    """
    generator.eval()
    for module in generator.modules():
        if isinstance(module, Encoding | Decoding) and isinstance(module.norm, nn.BatchNorm2d):
            transposed = isinstance(module, Decoding)
            module.conv = fuse_conv_bn_eval(module.conv, module.norm, transposed)
            module.norm = nn.Identity()
    for level in generator.head:
        assert isinstance(level, nn.Sequential)
        if not isinstance(level[1], nn.BatchNorm2d):
            continue
        level[0], level[1] = fuse_conv_bn_eval(level[0], level[1]), nn.Identity()  # type: ignore[type-var]
    for name, module in generator.named_children():
        if name not in ("profile", "erasure", "descriptors"):
            module.to(dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator.folded = True  # type: ignore[assignment]
    return generator.requires_grad_(False)


def infer(
    generator: Generator,
    source: ImageSource,
    *,
    want: str,
    minibatch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Return features (n, n_features) or images (n, C, H, W) of all cells of a source, as float32.

    Parameters
    ----------
    generator : Generator
    source : ImageSource
    want : {"features", "images"}
        Features run the encoder, and the decoder where the profile reads the predicted image.
    minibatch_size : int or None, default=None
        None uses population statistics: every cell for itself. A number uses the batch statistics of consecutive
        minibatches of that many cells, as the original does.
    dtype : torch.dtype
        That of :func:`fold`, if the generator went through it, which makes population statistics faster.
    """
    folded = is_folded(generator)
    if not folded and not any(isinstance(module, nn.BatchNorm2d) for module in generator.modules()):
        minibatch_size = None  # each image is normalised by itself: there are no statistics of minibatches

    def run(images: Tensor) -> Tensor:
        images = images.to(dtype) if folded else images
        return generator.profile_of(images) if want == "features" else generator.image_of(images)

    if minibatch_size is None:
        generator.eval()
        with torch.inference_mode():
            size = chunk_size(generator.side, source.device)
            return _in_chunks(run, source, size, torch.float32 if folded else dtype)
    if folded:
        raise ValueError("a folded generator has no statistics of minibatches")
    generator.train()
    with torch.inference_mode(), untracked(generator):
        values = _in_chunks(run, source, minibatch_size, dtype)
    generator.eval()
    return values


def _in_chunks(run: Callable[[Tensor], Tensor], source: ImageSource, size: int, dtype: torch.dtype) -> np.ndarray:
    out: np.ndarray | None = None
    start = 0
    for values in (_on_card if source.device.type == "cuda" else _on_cpu)(run, source, size, dtype):
        if out is None:
            out = np.empty((len(source), *values.shape[1:]), dtype=np.float32)
        out[start : start + len(values)] = values
        start += len(values)
    assert out is not None
    return out


def _on_cpu(
    run: Callable[[Tensor], Tensor], source: ImageSource, size: int, dtype: torch.dtype
) -> Iterator[np.ndarray]:
    for part in in_order(source.images, size):
        images = source.on_device(source.staged(part))
        with autocast(images.device, dtype):
            yield run(images).to(torch.float32).numpy()


def _on_card(
    run: Callable[[Tensor], Tensor], source: ImageSource, size: int, dtype: torch.dtype
) -> Iterator[np.ndarray]:
    """Yield results chunk by chunk; images go up, and results come back, while another chunk is computed.

    Two buffers in pinned memory each way: one is copied while the host fills, or empties, the other.
    """
    device, copies = source.device, torch.cuda.Stream(source.device)
    computing = torch.cuda.current_stream(device)
    up, down = _Buffers(), _Buffers()

    def upload(part: np.ndarray, index: int) -> tuple[Tensor, torch.cuda.Event]:
        staged = source.staged(part)
        host = up.of(index, staged.shape, staged.dtype)
        host.copy_(staged)
        with torch.cuda.stream(copies):
            images = host.to(device, non_blocking=True)
            up.copied[index % 2] = copies.record_event()
        return images, up.copied[index % 2]

    parts = in_order(source.images, size)
    arrived: tuple[Tensor, torch.cuda.Event] | None = upload(next(parts), 0)
    index = 0
    while arrived is not None:
        images, there = arrived
        computing.wait_event(there)
        images.record_stream(computing)  # its memory is not given away before it was read
        with autocast(device, dtype):
            values = run(source.on_device(images)).to(torch.float32)
        computed = computing.record_event()
        part = next(parts, None)
        arrived = None if part is None else upload(part, index + 1)
        host = down.of(index, values.shape, torch.float32)
        copies.wait_event(computed)
        with torch.cuda.stream(copies):
            host.copy_(values, non_blocking=True)
            down.copied[index % 2] = copies.record_event()
        values.record_stream(copies)
        if index:
            yield down.ready(index - 1)
        index += 1
    yield down.ready(index - 1)


class _Buffers:
    """Two buffers in pinned memory that are used in turn, and when the last copy from or to each is done."""

    def __init__(self) -> None:
        self.memory: list[Tensor | None] = [None, None]
        self.used: list[Tensor | None] = [None, None]
        self.copied: list[Any] = [None, None]

    def of(self, index: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a buffer of a shape, which no copy uses any more; shapes after the first have no more rows."""
        which = index % 2
        if self.copied[which] is not None:
            self.copied[which].synchronize()
        if (memory := self.memory[which]) is None:
            memory = self.memory[which] = torch.empty(tuple(shape), dtype=dtype).pin_memory()
        used = self.used[which] = memory[: shape[0]]
        return used

    def ready(self, index: int) -> np.ndarray:
        """Return what was copied into a buffer, when it is there."""
        which = index % 2
        self.copied[which].synchronize()
        used = self.used[which]
        assert used is not None
        return used.numpy()

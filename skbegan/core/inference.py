"""The frozen generator: features without the decoder, images, and population statistics, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skbegan.core.data import ImageStack
from skbegan.core.device import autocast
from skbegan.core.networks import Decoding, Encoding, Generator
from skbegan.core.training import untracked

PIXELS_PER_CHUNK = 1 << 18  # 16 cells of side 128: enough to keep the cores busy, and little enough for their caches


def chunk_size(side: int) -> int:
    """Cells per chunk: a constant number of pixels, whatever the side, and at most 256 cells."""
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
    """Whether :func:`fold` has been here."""
    return not any(isinstance(module, nn.BatchNorm2d) for module in generator.modules())


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
        level[0], level[1] = fuse_conv_bn_eval(level[0], level[1]), nn.Identity()  # type: ignore[arg-type, type-var]
    for name, module in generator.named_children():
        if name not in ("profile", "erasure"):
            module.to(dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return generator.requires_grad_(False)


def infer(
    generator: Generator,
    stack: ImageStack,
    *,
    want: str,
    minibatch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    """Return features (n, n_features) or images (n, C, H, W) of all cells of a stack, as float32.

    Parameters
    ----------
    generator : Generator
    stack : ImageStack
    want : {"features", "images"}
        Features run the encoder only.
    minibatch_size : int or None, default=None
        None uses population statistics: every cell for itself. A number uses the batch statistics of consecutive
        minibatches of that many cells, as the original does.
    dtype : torch.dtype
        That of :func:`fold`, if the generator went through it, which makes population statistics faster.
    """
    folded = is_folded(generator)

    def run(source: Tensor) -> Tensor:
        source = source.to(dtype) if folded else source
        return generator.profile_of(source) if want == "features" else generator.image_of(source)

    if minibatch_size is None:
        generator.eval()
        with torch.inference_mode():
            return _in_chunks(run, stack, chunk_size(generator.side), torch.float32 if folded else dtype)
    if folded:
        raise ValueError("a folded generator has no statistics of minibatches")
    generator.train()
    one_by_one = stack.device.type == "cpu" and dtype is torch.float32
    with torch.inference_mode(), untracked(generator), _summed_in_order(generator, one_by_one):
        values = _in_chunks(run, stack, minibatch_size, dtype)
    generator.eval()
    return values


@contextmanager
def _summed_in_order(generator: Generator, wanted: bool) -> Iterator[None]:
    """Within it BatchNorm sums a minibatch pixel after pixel in float32, as Keras does on a CPU.

    PyTorch's sum depends on the number of threads. In float32 the order of a sum is worth 4e-5 of the images: with the
    same order predictions are Keras' to 1e-5, whatever the threads.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)] if wanted else []
    hooks = [norm.register_forward_hook(_normalise_in_order) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _normalise_in_order(norm: nn.BatchNorm2d, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    x = inputs[0]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous().numpy()
    # Along the first axis of a C-contiguous array NumPy adds row after row.
    mean = np.add.reduce(pixels, axis=0) / np.float32(len(pixels))
    centred = pixels - mean
    variance = np.add.reduce(np.square(centred), axis=0) / np.float32(len(pixels))
    scale = norm.weight.numpy() / np.sqrt(variance + np.float32(norm.eps))
    y = torch.from_numpy(centred * scale + norm.bias.numpy())
    return y.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


def _in_chunks(run: Callable[[Tensor], Tensor], stack: ImageStack, size: int, dtype: torch.dtype) -> np.ndarray:
    out: np.ndarray | None = None
    for start in range(0, len(stack), size):
        source = stack.take(slice(start, start + size))
        with autocast(source.device, dtype):
            values = run(source).to(torch.float32).cpu().numpy()
        if out is None:
            out = np.empty((len(stack), *values.shape[1:]), dtype=np.float32)
        out[start : start + size] = values
    assert out is not None
    return out

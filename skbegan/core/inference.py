"""The frozen generator: features without the decoder, images, and population statistics, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from skbegan.core.data import ImageStack
from skbegan.core.device import autocast
from skbegan.core.networks import Generator
from skbegan.core.training import untracked

PIXELS_PER_CHUNK = 1 << 19  # 32 cells of side 128: enough to keep the cores busy, with activations of some 100 MB


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
    """

    def run(source: Tensor) -> Tensor:
        return generator.profile_of(source) if want == "features" else generator.image_of(source)

    if minibatch_size is None:
        generator.eval()
        with torch.inference_mode():
            return _in_chunks(run, stack, chunk_size(generator.side), dtype)
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

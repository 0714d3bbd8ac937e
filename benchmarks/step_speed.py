"""Time of one step of stage 1 and of inference: ``python benchmarks/step_speed.py [--side 64] [--base-width 16]``.

Random images, since the time does not depend on what they show. Medians and quartiles over repeats in one process;
compare figures of one run only, machines are noisy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from skbegan.core.data import ImageStack, Minibatch, Scaling
from skbegan.core.device import new_rng, place, resolve_device, resolve_precision
from skbegan.core.inference import infer
from skbegan.core.networks import Discriminator, Generator, build
from skbegan.core.pretraining import Pretraining


def milliseconds(run: Callable[[], object], repeats: int, device: torch.device) -> np.ndarray:
    """Return the times of `repeats` runs, after two that do not count."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(times[2:])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--base-width", type=int, default=16)
    parser.add_argument("--minibatch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    device = resolve_device(args.device)
    dtype = resolve_precision(args.precision, device)
    rng = new_rng(0)
    sizes = {"base_width": args.base_width, "rng": rng}
    generator = place(build(Generator, args.side, n_features=8 * args.base_width, **sizes), device, dtype)
    stage = Pretraining(
        generator,
        place(build(Discriminator, **sizes), device, dtype),
        learning_rate=2e-4,
        discriminator_learning_rate=1e-4,
        adversarial_weight=1.0,
        image_weight=100.0,
        rng=new_rng(1, device),
        dtype=dtype,
    )
    n = args.minibatch_size
    images = np.random.default_rng(0).normal(size=(n, args.side, args.side)).astype(np.float32)
    stack = ImageStack(images, Scaling.identity(1), device, dtype)
    source = stack.take(slice(None))
    codes = torch.zeros(n, dtype=torch.int64, device=device)
    cells = Minibatch(source, source, codes, codes)
    runs: dict[str, Callable[[], object]] = {
        "stage-1 step": lambda: stage.step(cells, 0.0),
        "predict_image": lambda: infer(generator, stack, want="images", dtype=dtype),
        "transform": lambda: infer(generator, stack, want="features", dtype=dtype),
    }
    where = f"{device}, {dtype}, {torch.get_num_threads()} threads"
    print(f"side {args.side}, base width {args.base_width}, {n} cells, {where}")
    print(f"{'':<16}{'ms, median':>12}{'quartiles':>18}{'cells/s':>10}")
    for name, run in runs.items():
        low, middle, high = np.percentile(milliseconds(run, args.repeats, device), [25, 50, 75])
        print(f"{name:<16}{middle:>12.1f}{f'{low:.1f} to {high:.1f}':>18}{1e3 * n / middle:>10.0f}")


if __name__ == "__main__":
    main()

"""What each thing that makes a training step fast buys: the stage-1 step without it, against the step as it is.

    python benchmarks/ablations.py             # full size, some minutes on two cores
    python benchmarks/ablations.py --quick     # does it run?

In turn and in changing order, as in `training_speed.py`. A figure above 1 is how many times as long the step takes
without the thing.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timing
import torch
from torch import Tensor, nn
from training_speed import PRECISIONS, QUICK, SIZES, Ours

from skbegan.core import networks, pretraining, winograd
from skbegan.core.device import resolve_device
from skbegan.core.pretraining import ConditionalGAN


class Transposed(nn.Module):
    """A convolution of the head as it is written: a transposed one of stride 1, cropped."""

    def __init__(self, conv: networks.SameConv2d) -> None:
        super().__init__()
        made = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, networks.KERNEL)
        self.conv = made.to(conv.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[..., 1:-2, 1:-2]


def twice(stage: ConditionalGAN) -> None:
    """Generate once for the discriminator and once more for the generator."""
    step = stage.step  # type: ignore[attr-defined]

    def generating(cells: Any, progress: float) -> Any:
        with torch.no_grad():
            stage.generate(cells.source, stage.rng)
        return step(cells, progress)

    stage.step = generating  # type: ignore[attr-defined]


def as_transposed(stage: ConditionalGAN) -> None:
    generator = stage.generator
    for level in generator.head:
        assert isinstance(level, nn.Sequential)
        level[0] = Transposed(level[0])  # type: ignore[arg-type]
    generator.to_image = Transposed(generator.to_image)  # type: ignore[assignment]
    renew_optimizers(stage)


def channels_first(stage: ConditionalGAN) -> None:
    for network in (stage.generator, stage.discriminator):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def renew_optimizers(stage: ConditionalGAN, fused: bool = True) -> None:
    """Give both networks new optimizers, torch's plain Adam if not `fused`."""
    for name, network in (("generator", stage.generator), ("discriminator", stage.discriminator)):
        rate = getattr(stage, f"{name}_optimizer").param_groups[0]["lr"]
        make = type(stage.generator_optimizer) if fused else torch.optim.Adam
        setattr(stage, f"{name}_optimizer", make(network.parameters(), rate))


def nothing(*args: Any) -> bool:
    return False


@contextlib.contextmanager
def never_frozen(*modules: nn.Module, **kwargs: Any) -> Iterator[None]:
    yield


# What is left out: how the stage is changed before it runs, and what is patched while it does.
ABLATIONS: dict[str, tuple[Callable[[Any], None] | None, tuple[Any, str, Any] | None]] = {
    "minimal filtering in the discriminator": (None, (winograd, "pays", nothing)),
    "small maps as matrix products": (None, (networks, "_is_small", nothing)),
    "one pass of the generator": (twice, None),
    "no gradients of frozen weights": (None, (pretraining, "frozen", never_frozen)),
    "channels-last": (channels_first, None),
    "head as convolutions": (as_transposed, None),
    "fused Adam": (lambda stage: renew_optimizers(stage, fused=False), None),
}


def build(ours: Ours, precision: str, name: str | None) -> timing.Run:
    """Return the step, without what `name` says."""
    change, patch = ABLATIONS[name] if name is not None else (None, None)
    step = ours.stage_1(precision, change)
    if patch is None:
        return step

    def run() -> None:
        with mock.patch.object(*patch):
            step()

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--out", type=Path, default=Path("outputs/ablations"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs; the figures mean nothing")
    args = parser.parse_args(arguments)
    sizes, repeats = (QUICK, 2) if args.quick else (SIZES, args.repeats)
    device = resolve_device(args.device)
    about = timing.machine(device)
    ours = Ours(dict(sizes), device, compile=False)
    found: dict[str, dict[str, np.ndarray]] = {}
    for precision in args.precisions:
        runs = {name or "as it is": build(ours, precision, name) for name in (None, *ABLATIONS)}
        found[precision] = timing.alternate(runs, repeats, device)
    rows = [["stage-1 step without", *(f"{precision}, times as long" for precision in found)]]
    for name in ABLATIONS:
        rows.append([name, *(timing.show_ratio(timing.ratio(s, name, "as it is")) for s in found.values())])
    milliseconds = [f"{1e3 * float(np.median(seconds['as it is'])):.0f} ms" for seconds in found.values()]
    rows.append(["(nothing: as it is)", *milliseconds])
    print(f"{about}\n{sizes}\n\n{timing.table(rows)}")
    kept = {precision: {name: list(v) for name, v in seconds.items()} for precision, seconds in found.items()}
    timing.write_json(args.out / "results.json", {"machine": about, "sizes": sizes, "seconds": kept})
    (args.out / "table.md").write_text(timing.table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How cells are shown in a step of the online stage 2: in batch styles, through drawn instruments, turned, twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from skbegan.config import OnlineRemoval
from skbegan.data.cells import Minibatch, draw_coins, turned_together
from skbegan.data.instruments import Instruments
from skbegan.data.style import BatchStyles, Drawn


class Views:
    """Views of the cells of a minibatch, and what is drawn for them.

    Parameters
    ----------
    method : OnlineRemoval
    styles : BatchStyles
    rng : torch.Generator
        CPU generator.
    augment : bool
        Whether cells are flipped and turned at random.
    two : bool
        Whether there is a second view.
    """

    def __init__(
        self, method: OnlineRemoval, styles: BatchStyles, rng: torch.Generator, *, augment: bool, two: bool
    ) -> None:
        self.styles, self.rng, self.augment = styles, rng, augment
        self.canonical, self.target_share = method.target_style == "canonical", method.style_share
        self.shares = [method.brightfield_style_share, *([method.style_share] if two else [])]
        drawn = Instruments(method.instrument_share, method.instrument_spread)
        self.instruments = drawn if drawn.share > 0 and drawn.spread > 0 else None

    def draw(self, n: int, own: slice) -> dict[str, Tensor]:
        """Draw for a minibatch of `n` cells and return, on the CPU, what is of its `own` ones.

        Both views of the sources are one after the other, so that they are made at once.
        """
        found: dict[str, Tensor] = {}
        if not self.canonical and (target := self.styles.draw_target(n, self.target_share)) is not None:
            found |= {f"target_{name}": values for name, values in target.of(own).items()}
        sources, coins = [], []
        for share in self.shares:
            sources.append(self.styles.draw_source(n, share))
            if self.augment:
                coins.append(draw_coins(n, self.rng)[:, own])
        if any(drawn is not None for drawn in sources):
            parts = [(drawn or self.styles.nothing(n)).of(own) for drawn in sources]
            found |= {name: torch.cat([part[name] for part in parts], -1) for name in ("moved", "place")}
            if all("mixes" in part for part in parts):
                found["unseen"] = torch.cat([part["unseen"] for part in parts])
                found["mixes"] = torch.cat([part["mixes"] for part in parts], 1)
        if coins:
            found["coins"] = torch.cat(coins, 1)
        if self.instruments is not None:
            found["instruments"] = torch.cat([self.instruments.draw(n, self.rng)[own] for _ in self.shares])
        return found

    def __call__(self, cells: Minibatch, draws: Mapping[str, Tensor]) -> tuple[Minibatch, Tensor | None]:
        """Return the cells as the generator is to see and predict them, and the brightfields of their second view.

        `draws` are on the device.
        """
        n, source, types, batch = len(cells), cells.source, self.styles.types(cells), cells.batch
        if len(self.shares) > 1:
            source, types, batch = (torch.cat([values, values]) for values in (source, types, batch))
        if "moved" in draws:
            drawn = Drawn(draws["moved"], draws["place"], draws.get("unseen"), draws.get("mixes"))
            source = self.styles.restyled(0, source, types, batch, drawn)
        if self.instruments is not None and "instruments" in draws:
            source = self.instruments(source, draws["instruments"])
        target = cells.target
        if self.canonical:
            target = self.styles.canonical_target(cells)
        elif "target_moved" in draws:
            drawn = Drawn(draws["target_moved"], draws["target_place"])
            target = self.styles.restyled(1, target, types[:n], batch[:n], drawn)
        if "coins" in draws:
            source, target = turned_together(source, target, (draws["coins"], draws["coins"][:, :n]))
        first = replace(cells, source=source[:n], target=target)
        return first, source[n:] if len(self.shares) > 1 else None

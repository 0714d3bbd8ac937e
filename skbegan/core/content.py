"""What keeps the cell in the features: their descriptors, asked for by a linear head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skbegan.core.descriptors import Descriptors, signs_of
from skbegan.core.engine import Engine
from skbegan.core.losses import standardised
from skbegan.core.networks import frozen, new_network
from skbegan.data.cells import Cells, Minibatch
from skbegan.data.sampler import in_order
from skbegan.data.style import BatchStyles

HEAD = "descriptor_head"
HEAD_LEARNING_RATE = 3e-3
CHUNK = 256
SIGN_CELLS = 2048  # that tell whether cells are bright or dark, at most; held at once


class DescriptorLoss:
    """Smooth L1 error of a linear head that tells the descriptors of a cell's target from its features.

    Descriptors are of the canonical target, less the effect of the batch on them where cell types allow it to be
    measured: what is asked for is the cell.

    Parameters
    ----------
    cells : Cells
        Training cells.
    styles : BatchStyles
    n_features : int
    engine : Engine
        With the stream ``"classifiers"``; gets the optimizer of the head.
    """

    def __init__(self, cells: Cells, styles: BatchStyles, n_features: int, engine: Engine) -> None:
        self.engine = engine
        descriptors = engine.place(Descriptors(cells.out_channels))
        parts = in_order(len(cells), CHUNK)
        with torch.no_grad():
            first = cells.take(next(iter(in_order(len(cells), SIGN_CELLS))))
            sign = signs_of(styles.canonical_target(first))
            descriptors.sign.copy_(sign)
            raw = torch.cat([descriptors.raw(styles.canonical_target(cells.take(part))) for part in parts])
            descriptors.calibrate(sign, raw)
            values = descriptors.standardise(raw)
            # Whatever orientation a cell is shown in, its descriptors are the same: they are measured once.
            effects = styles.batch_effects(values, cells)
            self.values = values - effects[cells.batch]
        self._styles, self._descriptors, self._effects = styles, descriptors, effects
        head = new_network(nn.Linear, n_features, values.shape[1], rng=engine.rngs["classifiers"])
        self.head: nn.Linear = engine.place(head)
        engine.optimize(HEAD, self.head.parameters(), HEAD_LEARNING_RATE)

    def wanted(self, cells: Minibatch) -> Tensor:
        """Return the descriptors of the cells of a minibatch of training cells as stored, those of all processes."""
        if cells.whole.position is not None:
            return self.values[cells.whole.position].to(cells.target.dtype)
        with torch.no_grad():  # streamed cells, too many for a table
            values = self._descriptors(self._styles.canonical_target(cells)) - self._effects[cells.batch]
            return self.engine.group.gather(values.to(cells.target.dtype))

    def update(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Take one step of the head, on features that stay."""
        loss = F.smooth_l1_loss(self.head(standardised(features.detach())), wanted)
        self.engine.descend(HEAD, loss)
        return loss

    def loss(self, scaled: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of standardised features, the head being frozen."""
        with frozen(self.head):
            return F.smooth_l1_loss(self.head(scaled), wanted)

    def restart(self) -> None:
        """Forget the momenta of the head."""
        self.engine.optimize(HEAD, self.head.parameters(), HEAD_LEARNING_RATE)


def networks_of(loss: DescriptorLoss | None) -> dict[str, Any]:
    """Return the networks to be kept in a checkpoint."""
    return {} if loss is None else {HEAD: loss.head}

"""What processes that fit together make sure of before they begin."""

from __future__ import annotations

import joblib
import numpy as np

from skbegan.checks import CellDataset
from skbegan.config import Config
from skbegan.core.parallel import Group
from skbegan.data.cells import Split
from skbegan.model import FittedModel


def check_arguments(
    group: Group, config: Config, dataset: CellDataset, removes: bool, earlier: FittedModel | None
) -> None:
    """Check that all processes have the same parameters and cells, and can share a minibatch.

    Parameters
    ----------
    group : Group
    config : Config
    dataset : CellDataset
    removes : bool
        Whether stages 2 and 3 are due.
    earlier : FittedModel or None
        Where a warm start goes on from.

    Raises
    ------
    ValueError
        In each of them.
    """
    if group.world == 1:
        return
    group.check_equal("parameters", repr(config.learned))
    images = [(x.shape, str(x.dtype), joblib.hash(np.asarray(x[:1]))) for x in (dataset.bf, dataset.qpi)]
    group.check_equal("images", images)
    labels = (dataset.batch, dataset.cell_type, dataset.batches, dataset.cell_types)
    group.check_equal("batches or cell types", joblib.hash(labels))
    group.check_equal("earlier fits", (removes, None if earlier is None else joblib.hash(earlier.weights)))
    group.check_divides(config.removal.minibatch_size, len(dataset.bf))


def agreed_split(group: Group, split: Split, minibatch_size: int) -> Split:
    """Return the split of the first process, after a check that the images of all are the same.

    Raises
    ------
    ValueError
        When they are not, or the training cells are less than a minibatch and cannot be shared.
    """
    if group.world == 1:
        return split
    group.check_divides(minibatch_size, len(split.train_rows))
    # Sums over all pixels, to the digits that summing in another order leaves.
    measured = [[f"{value:.6g}" for value in (*s.mean, *s.scale)] for s in (split.bf_scaling, split.target_scaling)]
    group.check_equal("images", measured)
    return group.from_first(lambda: split)

"""The losses on features that need no classifier, and how losses are weighed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skbegan.core.engine import new_rng
from skbegan.core.losses import (
    Activity,
    BatchAlignment,
    decorrelation,
    invariance,
    positive,
    standardised,
    weighted_sum,
)
from skbegan.data.cells import Minibatch


def minibatch(n: int, n_batches: int = 2, n_types: int = 2) -> Minibatch:
    none = torch.zeros(n, 1, 2, 2)
    return Minibatch(none, none, torch.arange(n) % n_batches, torch.arange(n) // n_batches % n_types)


def features_of(cells: Minibatch, shift: float, n_features: int = 6) -> torch.Tensor:
    """Unit noise; batch 1 lies `shift` away along the first axis, type 1 lies 10 away along the second."""
    features = torch.randn(len(cells), n_features, generator=new_rng(0))
    features[:, 0] += shift * cells.batch
    features[:, 1] += 10.0 * cells.cell_type
    return features


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_alignment_is_the_mahalanobis_distance_from_the_centre_of_the_type(shift):
    cells = minibatch(4000)
    alignment = BatchAlignment(2, 2, memory=4000, shrinkage=0.0)
    features = features_of(cells, shift)
    alignment.remember(cells, features)
    value = float(alignment.loss(cells, features))
    assert value == pytest.approx(np.log1p((shift / 2) ** 2), abs=0.03)  # each batch is half a shift from the centre


def test_alignment_does_not_see_differences_between_types_or_scales():
    cells = minibatch(2000)
    alignment = BatchAlignment(2, 2, memory=2000)
    alignment.remember(cells, features_of(cells, 0.0))
    assert float(alignment.loss(cells, features_of(cells, 0.0))) < 0.02
    values = []
    for scale in (1.0, 1e-3):
        alignment = BatchAlignment(2, 2, memory=2000)
        alignment.remember(cells, scale * features_of(cells, 2.0))
        values.append(float(alignment.loss(cells, scale * features_of(cells, 2.0))))
    assert values[1] == pytest.approx(values[0], rel=1e-2)


def test_following_the_gradient_takes_the_batch_out_and_leaves_the_type():
    cells = minibatch(256)
    features = features_of(cells, 3.0).requires_grad_()
    alignment = BatchAlignment(2, 2, memory=512)
    optimizer = torch.optim.Adam([features], lr=0.02)
    for _ in range(300):
        alignment.remember(cells, features)
        optimizer.zero_grad()
        alignment.loss(cells, features).backward()
        optimizer.step()
    with torch.no_grad():
        batches = [features[cells.batch == b].mean(0) for b in (0, 1)]
        types = [features[cells.cell_type == t].mean(0) for t in (0, 1)]
    assert float((batches[1] - batches[0]).abs().max()) < 0.3
    assert float((types[1] - types[0])[1]) > 9.0


def test_types_of_one_batch_and_groups_of_few_cells_do_not_count():
    cells = minibatch(40)
    lonely = Minibatch(cells.source, cells.target, cells.cell_type.clone(), cells.cell_type)  # a batch per type
    alignment = BatchAlignment(2, 2)
    features = features_of(lonely, 50.0).requires_grad_()
    alignment.remember(lonely, features)
    value = alignment.loss(lonely, features)
    value.backward()
    assert float(value.detach()) < 1e-5
    assert torch.isfinite(features.grad).all()
    few = minibatch(4)
    alignment = BatchAlignment(2, 2)
    alignment.remember(few, features_of(few, 5.0))
    assert float(alignment.loss(few, features_of(few, 5.0))) == 0.0


def test_memory_forgets_the_oldest():
    alignment = BatchAlignment(2, 2, memory=100)
    for shift in (9.0, 0.0, 0.0):
        cells = minibatch(50)
        alignment.remember(cells, features_of(cells, shift))
    assert len(alignment.state()["rows"]) == 100
    assert float(alignment.loss(cells, features_of(cells, 0.0))) < 0.7


def test_dead_features_give_finite_losses_and_gradients():
    cells = minibatch(64)
    features = torch.zeros(64, 5, requires_grad=True)
    alignment = BatchAlignment(2, 2)
    alignment.remember(cells, features)
    activity = Activity(torch.rand(64, 5, generator=new_rng(0)))
    total = alignment.loss(cells, features) + invariance(features, features.detach()) + activity.loss(features)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(features.grad).all()
    assert (features.grad < 0).all()  # activity pulls them up again


def test_invariance_is_zero_for_equal_profiles_and_one_for_unrelated_ones():
    a, b = torch.randn(2, 5000, 4, generator=new_rng(0))
    assert float(invariance(a, a)) == 0.0
    assert float(invariance(a, b)) == pytest.approx(1.0, abs=0.05)
    assert float(invariance(a, 0.9 * a + 0.1 * b)) < 0.02


def test_decorrelation_is_the_mean_squared_correlation_of_pairs():
    a, b, c = torch.randn(3, 20000, generator=new_rng(0))
    assert float(decorrelation(standardised(torch.stack([a, b, c], 1)))) < 1e-3
    assert float(decorrelation(standardised(torch.stack([a, -3 * a, 2 * a], 1)))) == pytest.approx(1.0, abs=0.01)
    assert float(decorrelation(standardised(torch.stack([a, a, b], 1)))) == pytest.approx(1 / 3, abs=0.01)
    half = decorrelation(standardised(torch.stack([a, (a + b) / 2**0.5], 1)))
    assert float(half) == pytest.approx(0.5, abs=0.02)


def test_activity_is_zero_for_features_as_stage_1_left_them():
    features = torch.rand(200, 6, generator=new_rng(0))
    activity = Activity(features)
    assert float(activity.loss(features)) == 0.0
    fewer = features.clone()
    fewer[:, :3] = 0.0
    assert float(activity.loss(fewer)) == pytest.approx(0.5, abs=0.01)  # half of them, missing half in mean and spread


def test_losses_are_weighed_by_name_and_those_without_a_weight_do_not_count():
    losses = {"image": torch.tensor(2.0), "batch": torch.tensor(3.0), "adversarial": torch.tensor(torch.nan)}
    weights = positive({"image": 10.0, "batch": 0.5, "adversarial": 0.0, "activity": 4.0})
    assert weights == {"image": 10.0, "batch": 0.5, "activity": 4.0}
    assert float(weighted_sum(losses, weights)) == 21.5

"""Epochs of a number of steps: the sampler goes on where it stopped, also after an interruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY

from skbegan import BeGANTransformer, PublishedRemoval
from skbegan.data.sampler import Sampler, shuffled


def new_rng(seed=0):
    return torch.Generator().manual_seed(seed)


def fit(cells, **parameters):
    est = BeGANTransformer(**TINY | parameters)
    return est.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)


def same(a, b):
    weights, others = a._model.weights, b._model.weights
    return weights.keys() == others.keys() and all(np.array_equal(weights[name], others[name]) for name in weights)


def test_every_cell_is_seen_once_per_pass_whatever_the_length_of_an_epoch():
    sampler = Sampler(20, 4, new_rng(), steps=3)
    seen = torch.cat([part for _ in range(5) for part in sampler.epoch()])
    assert len(seen) == 5 * 3 * 4
    for start in range(0, 60, 20):
        assert seen[start : start + 20].sort().values.tolist() == list(range(20))


def test_an_epoch_may_be_longer_than_a_pass():
    sampler = Sampler(9, 4, new_rng(), steps=5)
    assert [len(part) for part in sampler.epoch()] == [4] * 5 and sampler.n_steps == 5


def test_as_many_steps_as_a_pass_has_give_the_same_order_as_none():
    rng, other, third = new_rng(), new_rng(), new_rng()
    plain, counted = Sampler(18, 4, rng), Sampler(18, 4, other, steps=4)
    for _ in range(3):
        expected = torch.stack(list(shuffled(18, 4, third)))
        assert torch.equal(torch.stack(list(plain.epoch())), expected)
        assert torch.equal(torch.stack(list(counted.epoch())), expected)
    assert torch.equal(rng.get_state(), other.get_state())


@pytest.mark.parametrize("n_before", [1, 2, 3, 4])
def test_a_sampler_goes_on_from_its_state(n_before):
    whole, first = Sampler(20, 4, new_rng(), steps=3), Sampler(20, 4, new_rng(), steps=3)
    expected = [part for _ in range(6) for part in whole.epoch()]
    found = [part for _ in range(n_before) for part in first.epoch()]
    second = Sampler(20, 4, first.rng, steps=3)
    second.restore(first.state())
    found += [part for _ in range(6 - n_before) for part in second.epoch()]
    assert torch.equal(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("done", [0, 3, 20, 24, -4, 4.0, True])
def test_a_state_of_another_sampler_is_refused(done):
    with pytest.raises(ValueError, match="order of its cells"):
        Sampler(20, 4, new_rng(), steps=3).restore({"drawn_at": new_rng().get_state(), "done": done})


def test_a_state_is_refused_where_epochs_are_passes():
    first = Sampler(20, 4, new_rng(), steps=3)
    list(first.epoch())
    with pytest.raises(ValueError, match="order of its cells"):
        Sampler(20, 4, new_rng()).restore(first.state())


def test_validation_callback_and_history_come_before_the_first_pass_ends(cells):
    seen = []
    est = fit(cells, pretrain_epochs=3, removal_epochs=2, steps_per_epoch=2, callback=seen.append)
    assert [(info.stage, info.epoch) for info in seen] == [
        *(("pretraining", epoch) for epoch in (1, 2, 3)),
        *(("batch_removal", epoch) for epoch in (1, 2)),
    ]
    assert all("validation_image" in est.history_[stage] for stage in ("pretraining", "batch_removal"))


@pytest.mark.slow
def test_the_default_and_as_many_steps_as_a_pass_has_give_the_same_model(cells):
    n_steps = round(90 * 0.9) // TINY["minibatch_size"]
    assert same(fit(cells), fit(cells, steps_per_epoch=n_steps))
    assert not same(fit(cells), fit(cells, steps_per_epoch=n_steps - 2))


def test_the_warm_up_counts_in_steps_too(cells, monkeypatch):
    from skbegan.core.plans.online import OnlinePlan

    updates = []
    wrapped = OnlinePlan.update_classifiers

    def update(self, *args):
        updates.append(1)
        return wrapped(self, *args)

    monkeypatch.setattr(OnlinePlan, "update_classifiers", update)
    fit(cells, steps_per_epoch=2, removal_epochs=3)
    assert len(updates) == (1 + 3) * 2  # TINY has one epoch of warm-up


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretraining", "batch_removal"])
@pytest.mark.parametrize("removal", [TINY["removal"], PublishedRemoval()])
def test_a_fit_that_was_stopped_within_a_pass_resumes_to_the_bit(cells, tmp_path, stage, removal):
    parameters = {"pretrain_epochs": 4, "removal_epochs": 4, "steps_per_epoch": 3, "removal": removal}

    def stop(info):
        if (info.stage, info.epoch) == (stage, 3):
            raise Stopped

    with pytest.raises(Stopped):
        fit(cells, **parameters, checkpoint_dir=tmp_path, callback=stop)
    assert list(tmp_path.glob("*.pt"))
    assert same(fit(cells, **parameters, checkpoint_dir=tmp_path), fit(cells, **parameters))


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError), ("all", TypeError)])
def test_what_is_no_number_of_steps_is_refused_by_name(cells, value, error):
    with pytest.raises(error, match="steps_per_epoch must be"):
        fit(cells, steps_per_epoch=value)

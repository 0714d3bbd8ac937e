"""Batches that are rows of a table, cells of unknown type, images as another batch, and designs that lack a link."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY

from skbegan import BeGANTransformer, OnlineRemoval, PublishedRemoval, load, metrics, save, write_images
from skbegan.checks import check_fit_input
from skbegan.cli import build_parser
from skbegan.core.losses import BatchAlignment, cross_entropy, divergence, group_members
from skbegan.core.plans.profile import recall_by_type
from skbegan.data.cells import Cells, Minibatch
from skbegan.data.source import ImageSource, Scaling
from skbegan.data.style import BatchStyles
from skbegan.datasets import load_cell_table, make_cell_images
from skbegan.design import Design, removal_verdict
from skbegan.io._predicting import as_table
from skbegan.labels.arrays import known_labels
from skbegan.labels.tables import as_batch_table
from skbegan.metrics.audit_columns import others_of

QUICK = {**TINY, "pretrain_epochs": 1, "removal_epochs": 1}


@pytest.fixture(scope="module")
def many() -> Any:
    """160 cells of side 16, 2 types in 4 batches, the plates of two days; some cells are of unknown type."""
    cells = make_cell_images(160, 2, 4, 16, random_state=0)
    code = np.unique(cells.batch, return_inverse=True)[1]
    cells.table = pd.DataFrame({"day": np.array(["2024-01-03", "2024-01-04"])[code // 2], "plate": code % 2})
    cells.known = np.arange(160) % 5 > 0
    cells.types = np.where(cells.known, cells.cell_type.astype(object), None)
    return cells


@pytest.fixture(scope="module")
def model(many: Any) -> BeGANTransformer:
    """Fitted on a table of batches and on cells of which some have no type; do not change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return BeGANTransformer(**QUICK).fit(many.bf, many.qpi, many.table, many.types)


def quietly(est: BeGANTransformer, *data: Any) -> BeGANTransformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return est.fit(*data)


# --- batches as a table --------------------------------------------------------------------------------------------


def test_each_distinct_row_is_a_batch_that_can_be_read(model):
    assert model.batches_.tolist() == [f"2024-01-0{day} / plate {plate}" for day in (3, 4) for plate in (0, 1)]
    assert model.batch_columns_["day"].tolist() == ["2024-01-03"] * 2 + ["2024-01-04"] * 2
    assert model.batch_columns_["plate"].tolist() == [0, 1, 0, 1]


def test_a_table_trains_as_its_labels_do(many):
    plain = check_fit_input(many.bf, many.qpi, as_batch_table(many.table).labels, many.types, None)
    table = check_fit_input(many.bf, many.qpi, many.table, many.types, None)
    np.testing.assert_array_equal(plain.batch, table.batch)
    assert plain.batches.tolist() == table.batches.tolist() and plain.batch_columns is None


@pytest.mark.parametrize(
    "form",
    [
        lambda table: table.set_index(np.arange(160) * 7),
        lambda table: table.to_records(index=False),
        lambda table: {name: table[name].tolist() for name in table},
        lambda table: __import__("polars").DataFrame({name: table[name].to_numpy() for name in table}),
    ],
    ids=["DataFrame", "structured", "dict", "polars"],
)
def test_forms_of_tables(many, form):
    data = check_fit_input(many.bf, many.qpi, form(many.table), many.types, None)
    assert data.batches.tolist()[0] == "2024-01-03 / plate 0" and list(data.batch_columns) == ["day", "plate"]
    one = check_fit_input(many.bf, many.qpi, form(many.table[["plate"]]), many.types, None)
    assert one.batches.tolist() == [0, 1] and one.batch_columns is None


def test_labels_do_not_depend_on_the_other_rows():
    table = pd.DataFrame({"day": np.array(["2024-01-03", "2024-01-04T12:00"], "M8[ns]"), "run": [1.0, 1.5]})
    labels = as_batch_table(table).labels
    assert labels.tolist() == ["2024-01-03 / run 1", "2024-01-04T12:00 / run 1.5"]
    assert as_batch_table(table[:1]).labels[0] == labels[0]


def test_tables_that_cannot_be_used(many):
    def given(table: Any) -> Any:
        return check_fit_input(many.bf, many.qpi, table, many.types, None)

    with pytest.raises(ValueError, match=r"batch \(column 'plate'\) has a missing label, first at cell 0"):
        given(many.table.assign(plate=[None, *many.table["plate"][1:]]))
    with pytest.raises(ValueError, match="column 'day' has the shape"):
        given(many.table[:10])
    with pytest.raises(ValueError, match="needs names of its columns"):
        given(many.table.to_numpy().astype(str))
    with pytest.raises(ValueError, match="look alike"):
        given({"a": ["x / y", "x"] * 80, "b": ["z", "y / z"] * 80})
    with pytest.raises(ValueError, match=r"fewer than 8 cells, such as .* day and plate alone make 4 batches"):
        given(many.table.assign(position=[f"pos {i // 2}" for i in range(160)]))
    with pytest.warns(UserWarning, match="too few to tell what such a batch does"):
        given(many.table.assign(position=[f"pos {i // 4 % 5}" for i in range(160)]))


def test_the_batches_of_a_table_are_saved_and_loaded(model, many, tmp_path):
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.batches_.tolist() == model.batches_.tolist() and again.cell_types_.tolist() == ["type0", "type1"]
    for name, labels in model.batch_columns_.items():
        np.testing.assert_array_equal(again.batch_columns_[name], labels)
    wanted = {"day": "2024-01-04"}
    expected = model.predict_image(many.bf[:9], as_batch=wanted)
    np.testing.assert_array_equal(again.predict_image(many.bf[:9], as_batch=wanted), expected)


class Features:
    """A transformer whose features are the first pixels."""

    def transform(self, X):
        return np.asarray(X).reshape(len(X), -1)[:, :4]


@pytest.fixture(scope="module")
def leaky() -> Any:
    """Noise in which two of the four plates, two on each of two days, can be read, and nothing else."""
    rng = np.random.default_rng(0)
    plate = rng.integers(0, 4, 480)
    table = pd.DataFrame({"day": plate // 2, "plate": [f"P{p}" for p in plate], "position": rng.integers(0, 2, 480)})
    X = rng.normal(size=(480, 4, 4))
    X[plate % 2 == 1, 0, 0] += 2.0
    types = np.array(["a", "b", None], object)[rng.integers(0, 3, 480)]
    return X, table, types


def test_the_audit_says_which_column_leaks(leaky):
    X, table, types = leaky
    found = metrics.audit(
        Features(), X, None, table, types, probes=("linear",), n_repeats=1, measurements=False, references=False
    )
    plate, day, position = (found.per_column[name] for name in ("plate", "day", "position"))
    assert plate["leakage"] > 0.2 and plate["leakage_within_others"] > 0.5
    assert plate["chance"] == pytest.approx(0.25) and plate["within_others_chance"] == pytest.approx(0.5)
    for other in (day, position):
        assert abs(other["leakage"]) < 0.2 and abs(other["leakage_within_others"]) < 0.2
    # A plate is of one day, so that the day cannot be asked for among cells of one plate.
    assert found.details.columns["day"].others == ["position"] and found.details.columns["plate"].others[0] == "day"
    assert found.to_frame("per_column").loc["plate", "n_labels"] == 4 and "each batch column" in str(found)
    assert found.to_dict()["per_column"]["day"]["n_labels"] == 2
    n_unknown = sum(label is None for label in types)
    assert f"{n_unknown} cells without a cell type are left out." in found.about
    assert found["leakage_linear"].n_cells <= 480 - n_unknown
    assert "plate is a part of day" in " ".join(found.about)


def test_parts_of_a_column():
    table = as_batch_table({"day": [0, 0, 1, 1], "plate": list("abcd"), "position": [1, 2, 1, 2]})
    assert others_of(table, "day") == ["position"]
    assert others_of(table, "position") == ["day"]
    assert others_of(table, "plate") == ["day", "position"]


def test_metrics_leave_out_cells_of_unknown_type(leaky):
    X, table, types = leaky
    features, known = Features().transform(X), np.array([label is not None for label in types])
    batch = as_batch_table(table).labels
    expected = metrics.batch_leakage(features[known], batch[known], types[known])
    assert metrics.batch_leakage(features, table, types) == expected
    assert metrics.batch_leakage(features, batch, types, probe_train=None) == expected
    assert metrics.cell_type_accuracy(features, types) == metrics.cell_type_accuracy(features[known], types[known])
    error = metrics.image_error(X, X + 1, batch=table, cell_type=types)
    assert error.n_cells == 480 and sum(part.n_cells for part in error.per_type.values()) == known.sum()
    scorer = metrics.FeatureScorer("leakage").with_labels(X, batch, types)
    assert scorer(Features(), X) == pytest.approx(-expected)


# --- cells of unknown type -----------------------------------------------------------------------------------------


def test_what_a_missing_label_is():
    for labels in (
        ["a", None, "b"],
        np.array([1.0, np.nan, 2.0]),
        pd.Series([1, None, 2], dtype="Int64"),
        pd.Categorical(["a", None, "b"]),
        np.ma.masked_equal([4, -1, 5], -1),
        np.array(["2024", "NaT", "2025"], "M8[D]"),
    ):
        found, known, note = known_labels(labels, "cell_type")
        assert known.tolist() == [True, False, True] and len(found) == 2 and note is None
    found, known, note = known_labels([0, -1, 1, 2], "cell_type")
    assert found.tolist() == [0, 1, 2] and known.tolist() == [True, False, True, True] and "unknown type" in note
    for labels in ([-1, 1], [-1, 0], [-1, 2, 3, 4], [-2, -1, 0, 1, 2], [-1.0, 0.0, 1.0, 2.0], ["-1", "0", "1", "2"]):
        found, known, note = known_labels(labels, "cell_type")
        assert known.all() and note is None, labels
    found, known, note = known_labels([-1, 0, 1], "cell_type")
    assert known.all() and "is taken for a label" in note
    assert not known_labels([None, None], "cell_type")[1].any()


def test_cells_of_unknown_type_train_all_but_what_needs_a_type(model, many):
    assert model.cell_types_.tolist() == ["type0", "type1"]
    assert "fit: 32 of 160 cells have no cell type" in model.history_["events"][0]
    losses = model.history_["batch_removal"]
    assert all(np.isfinite(values).all() for values in losses.values())
    assert {"cell_type", "batch", "alignment", "invariance"} <= losses.keys()
    assert np.isfinite(model.transform(many.bf)).all()
    assert np.isfinite(model.score(many.bf, None, many.table, many.types))


@pytest.mark.parametrize("missing", [[None] * 160, np.full(160, np.nan), np.ma.masked_all(160)])
def test_all_missing_is_as_none_given(many, missing):
    data = check_fit_input(many.bf, many.qpi, many.table, missing, None)
    assert data.cell_types is None and not data.cell_type.any()
    with pytest.warns(UserWarning, match="no cell_type was given"):
        assert BeGANTransformer()._can_remove_batch(data)


def test_published_removal_asks_for_all_types(many):
    est = BeGANTransformer(**{**QUICK, "removal": PublishedRemoval()})
    with pytest.raises(ValueError, match="needs the cell type of each cell, and 32 have none, first cell 0"):
        est.fit(many.bf, many.qpi, many.table, many.types)


def test_losses_of_known_cells_alone():
    rng = torch.Generator().manual_seed(0)
    logits, truth, known = torch.randn(20, 3, generator=rng), torch.arange(20) % 3, torch.arange(20) % 5 > 0
    torch.testing.assert_close(cross_entropy(logits, truth, known), cross_entropy(logits[known], truth[known]))
    target = torch.rand(20, 3, generator=rng).softmax(1)
    torch.testing.assert_close(divergence(logits, target, known), divergence(logits[known], target[known]))
    assert float(cross_entropy(logits, truth, known & False)) == 0
    features, batch = torch.randn(20, 5, generator=rng), torch.arange(20) // 2 % 2
    types = torch.where(known, 0, -1)

    def aligned(partial: bool, rows: torch.Tensor) -> torch.Tensor:
        alignment = BatchAlignment(2, 1, partial=partial)
        cells = Minibatch(features[rows], features[rows], batch[rows], types[rows])
        alignment.remember(cells, features[rows])
        return alignment.loss(cells, features[rows])

    torch.testing.assert_close(aligned(True, torch.ones(20, dtype=bool)), aligned(False, known))
    assert [len(group) for groups in group_members(batch, types) for group in groups] == [8, 8]
    recall = recall_by_type(features, types, features, types)
    torch.testing.assert_close(recall, recall_by_type(features[known], types[known], features[known], types[known]))


def styled(types: np.ndarray, batch: np.ndarray, images: np.ndarray) -> tuple[BatchStyles, Minibatch]:
    source = ImageSource(images, Scaling.identity(1), torch.device("cpu"))
    cells = Cells(source, source, batch, types, np.arange(len(batch)))
    styles = BatchStyles(cells, Design.of(batch, types, 3, 2), torch.Generator().manual_seed(0))
    return styles, cells.take(torch.arange(len(batch)))


def test_styles_of_cells_of_unknown_type():
    rng = np.random.default_rng(0)
    batch, types = np.repeat([0, 1, 2], 40), np.tile([0, 1], 60)
    images = rng.normal(size=(120, 16, 16)) + 4.0 * types[:, None, None] + 10.0 * batch[:, None, None]
    unknown = np.arange(120) % 4 < 2
    hidden = np.where(unknown, -1, types)
    hidden[batch == 2] = -1  # a batch without any known type
    styles, cells = styled(hidden, batch, images.astype(np.float32))
    moved = styles.canonical_target(cells).numpy()[:, 0]
    # The mean of the first two batches is 5: a cell of unknown type comes there too, and keeps what it is.
    for code in (0, 1):
        own = unknown & (batch == code)
        assert abs((moved - images)[own].mean() - (5.0 - 10.0 * code)) < 0.3
        assert np.abs(moved[own].mean((1, 2)) - types[own] * 4.0 - 5.0).max() < 1.0
    np.testing.assert_array_equal(moved[batch == 2], images[batch == 2].astype(np.float32))
    measured = styles.target_effects()["measured"]
    assert measured.tolist() == [True, True, False]


def test_styles_do_not_change_where_all_types_are_known():
    rng = np.random.default_rng(0)
    batch, types = np.repeat([0, 1, 2], 40), np.tile([0, 1], 60)
    images = (rng.normal(size=(120, 16, 16)) + batch[:, None, None]).astype(np.float32)
    styles, _ = styled(types, batch, images)
    assert styles._untyped is None and len(styles._comparable) == 2
    shift = styles.target_effects()["shift"].mean((1, 2, 3))
    np.testing.assert_allclose(shift, [-1, 0, 1], atol=0.1)


# --- images as another batch ---------------------------------------------------------------------------------------


def distance(images: np.ndarray, others: np.ndarray) -> float:
    return float(np.abs(images.mean(0) - others.mean(0)).mean())


def test_images_as_another_batch_are_nearest_to_that_batch(model, many):
    new = make_cell_images(160, 2, 4, 16, random_state=0, cells_random_state=1)
    code = np.unique(new.batch, return_inverse=True)[1]
    for source in range(4):
        own = new.bf[code == source]
        for wanted in range(4):
            images = model.predict_image(own, as_batch=model.batches_[wanted])
            found = [distance(images, new.qpi[code == other]) for other in range(4)]
            assert int(np.argmin(found)) == wanted, (source, wanted, found)
    np.testing.assert_array_equal(model.predict_image(own, as_batch=None), model.predict_image(own))


def test_the_mean_of_a_column_and_messages(model, many):
    X = many.bf[:9]
    for day in ("2024-01-03", np.datetime64("2024-01-03"), pd.Timestamp("2024-01-03")):
        np.testing.assert_array_equal(
            model.predict_image(X, as_batch={"day": day}), model.predict_image(X, as_batch={"day": "2024-01-03"})
        )
    one = model.predict_image(X, as_batch="2024-01-03 / plate 1")
    np.testing.assert_array_equal(model.predict_image(X, as_batch={"day": "2024-01-03", "plate": 1}), one)
    with pytest.raises(ValueError, match=r"'day9' is none of the batches .*2024-01-03 / plate 0.*by column"):
        model.predict_image(X, as_batch="day9")
    with pytest.raises(ValueError, match=r"'day9' is no day that the model was fitted on; there are \['2024-01-03'"):
        model.predict_image(X, as_batch={"day": "day9"})
    with pytest.raises(ValueError, match=r"names the column 'site'; the batches have \['day', 'plate'\]"):
        model.predict_image(X, as_batch={"site": 1})
    with pytest.raises(TypeError, match="label of one batch"):
        model.predict_image(X, as_batch=["2024-01-03 / plate 1"])


def test_models_without_styles_say_so(fitted, cells, tmp_path):
    X = cells.bf[:4]
    pretrained = BeGANTransformer(**{**QUICK, "removal_epochs": 0}).fit(cells.bf, cells.qpi, cells.batch)
    with pytest.raises(ValueError, match="had no stage 2"):
        pretrained.predict_image(X, as_batch=cells.batch[0])
    old = BeGANTransformer(**fitted.get_params(deep=False))
    old._adopt(dataclasses.replace(fitted._model, styles=None))
    save(old, tmp_path / "old.safetensors")
    old = load(tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match=r"keeps no styles of its batches\. It was written before"):
        old.predict_image(X, as_batch=cells.batch[0])
    np.testing.assert_array_equal(old.predict_image(X), fitted.predict_image(X))
    with pytest.raises(ValueError, match="fitted without batch"):
        quietly(BeGANTransformer(**{**QUICK, "removal_epochs": 0}), cells.bf, cells.qpi).predict_image(X, as_batch=1)


def test_images_as_another_batch_are_written(model, many, tmp_path):
    label = model.batches_[0]
    path = write_images(tmp_path / "images.npy", model, many.bf[:9], as_batch=label)
    np.testing.assert_array_equal(np.load(path), model.predict_image(many.bf[:9], as_batch=label))
    with pytest.raises(ValueError, match="none of the batches"):
        write_images(tmp_path / "others.npy", model, many.bf[:9], as_batch="day9")
    with pytest.raises(ValueError, match="written as they are"):
        write_images(tmp_path / "others.npy", many.qpi[:9], as_batch=label)
    assert not (tmp_path / "others.npy").exists()


# --- tables of files -----------------------------------------------------------------------------------------------


def test_columns_of_the_batch_and_cells_without_a_type_in_tables_of_files(many, tmp_path):
    names = []
    for row in range(20):
        np.save(tmp_path / f"{row}.npy", many.bf[row])
        names.append(f"{row}.npy")
    table = many.table[:20].assign(bf=names, line=[None, *many.cell_type[1:20]])
    table.to_csv(tmp_path / "cells.csv", index=False)
    data = load_cell_table(
        tmp_path / "cells.csv", bf="bf", batch=["day", "plate"], cell_type="line", image_size=16, lazy=False
    )
    assert data.batch.dtype.names == ("day", "plate") and data.batch["plate"][3] == str(many.table["plate"][3])
    assert data.cell_type[0] is None and data.cell_type[1] == many.cell_type[1]
    assert data.report.counts.loc["(unknown)"].sum() == 1 and data.report.counts.to_numpy().sum() == 20
    assert set(data.report.counts.columns) == set(as_batch_table(many.table[:20]).labels)
    profiles = as_table(data, 20, "obs")
    assert profiles["batch"][0] == as_batch_table(many.table).labels[0] and {"day", "plate"} <= set(profiles)


def test_the_command_line_names_several_columns():
    def asked(*batch: str) -> Any:
        words = ["fit", "cells.csv", "--bf", "bf", "--target", "qpi", "--image-size", "16", "-o", "m.safetensors"]
        return build_parser().parse_args([*words, *batch]).batch

    assert asked("--batch", "day") == ["day"]
    assert asked("--batch", "day", "--batch", "plate") == asked("--batch", "day, plate") == ["day", "plate"]
    assert asked("--batch", '"day, with a comma",plate') == ["day, with a comma", "plate"]


# --- designs that lack a link --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "removes", "said"),
    [
        (
            [[40, 0], [0, 30]],
            False,
            "Batches A and B share no cell type: some cells of H69 in batch B would connect them.",
        ),
        (
            [[40, 30, 0], [0, 30, 0], [0, 0, 20]],
            True,
            "Batches B and C share no cell type: some cells of H69 in batch C would connect them, or labels for the 7",
        ),
        ([[40, 30, 0], [0, 30, 0]], True, "Batch C has no cell of known type: labels for some of its 7 cells, or some"),
        (
            [[40, 3], [0, 30]],
            True,
            "with 9 cells or more in both (H69 has 3 in B): 6 more of H69 in batch B would connect them.",
        ),
    ],
)
def test_what_is_lacking_is_named(counts, removes, said):
    table = np.array(counts)
    unlabelled = np.array([0, 0, 7][: table.shape[1]])
    design = Design(table, 0, unlabelled)
    verdict = removal_verdict(design, ["A", "B", "C"], ["H69", "A549", "H358"], "conditional")
    assert verdict.removes is removes and said in verdict.message


def test_nothing_is_said_of_a_design_that_links_all():
    assert removal_verdict(Design(np.full((2, 3), 9)), ["A", "B", "C"], ["x", "y"], "conditional").message is None


def test_removal_methods_from_elsewhere_do_not_take_unknown_types():
    assert OnlineRemoval.takes_unknown_types and not PublishedRemoval.takes_unknown_types

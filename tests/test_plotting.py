"""Displays: what is drawn, what is refused, and that nothing is left behind."""

import subprocess
import sys
import types
from dataclasses import replace
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from skbegan import BeGANTransformer, OnlineRemoval, PublishedRemoval
from skbegan.metrics import Audit, Measure
from skbegan.plotting import AuditDisplay, CellImagesDisplay, FeatureMapDisplay, HistoryDisplay, compare_features


@pytest.fixture(autouse=True)
def without_umap(monkeypatch):
    """Maps are principal components but where a test asks for others: umap-learn compiles for many seconds."""
    monkeypatch.setitem(sys.modules, "umap", None)


@pytest.fixture(autouse=True)
def no_figure_is_left():
    plt.close("all")
    settings = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == settings


class FakeBeGAN:
    def __init__(self):
        self.seen = 0
        losses = {"epoch": [1, 2, 3], "image": [3.0, 2.0, 1.0], "validation_image": [3.5, 2.5, float("nan")]}
        more = {"batch": [1.0, 1.1, 1.2], "cell_type": [2.0, 0.02, 0.01], "adversarial": [1, 1, 1], "total": [9, 8, 7]}
        self.history_ = {"pretraining": losses, "batch_removal": {**losses, **more}, "events": ["stage 2: restarted"]}

    def predict_image(self, X_bf):
        self.seen += len(X_bf)
        return np.asarray(X_bf, np.float32) * 2

    def transform(self, X_bf):
        return np.asarray(X_bf).reshape(len(X_bf), -1)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(20, 16, 16)).astype(np.float32)


def no_overlap(figure, *artists):
    """Check that the artists lie inside the figure and apart from each other."""
    figure.canvas.draw()
    boxes = [a.get_window_extent() for a in artists]
    canvas = figure.bbox
    for i, box in enumerate(boxes):
        assert box.x0 >= canvas.x0 - 2 and box.x1 <= canvas.x1 + 2, i
        assert box.y0 >= canvas.y0 - 2 and box.y1 <= canvas.y1 + 2, i
        for other in boxes[i + 1 :]:
            assert not (box.x0 < other.x1 and other.x0 < box.x1 and box.y0 < other.y1 and other.y0 < box.y1)


# ------------------------------------------------------------------------------------------------------- images
def test_cell_images(images):
    est = FakeBeGAN()
    labels = [f"type {i}" for i in range(20)]
    shown = CellImagesDisplay.from_estimator(est, images, images, images + 1, n_cells=5, labels=labels, units="rad")
    assert shown.axes_.shape == (4, 5)
    assert est.seen == 5  # only what is drawn is predicted
    assert [a.get_ylabel() for a in shown.axes_[:, 0]] == ["brightfield", "predicted", "measured", "batch-free"]
    assert [a.get_title() for a in shown.axes_[0]] == ["type 0", "type 5", "type 10", "type 14", "type 19"]
    limits = {a.images[0].get_clim() for a in shown.axes_[1:].flat}
    assert len(limits) == 1
    assert shown.colorbar_.ax.get_ylabel() == "rad"
    np.testing.assert_array_equal(shown.axes_[1, 1].images[0].get_array(), images[5] * 2)
    no_overlap(shown.figure_, *shown.axes_.flat, shown.colorbar_.ax)
    plt.close(shown.figure_)
    shown.plot(cmap="magma")  # again


def test_every_row_of_cells_has_one_scale_with_units_and_says_what_it_clips(images):
    measured = images.copy()
    measured[3, 0, 0] = 1000  # one hot pixel does not set the scale
    shown = CellImagesDisplay.from_predictions(
        images, images + 0.5, measured, cells=[0, 3], units="rad", difference=True, pixel_size=0.5
    )
    assert [a.get_ylabel() for a in shown.axes_[:, 0]] == [
        "brightfield",
        "predicted",
        "measured",
        "predicted -\nmeasured",
    ]
    for row, scale in zip(shown.axes_, ("brightfield", "target", "target", "difference"), strict=True):
        assert {a.images[0].get_clim() for a in row} == {shown.limits_[scale]}
    assert {name: bar.ax.get_ylabel().replace("\n", " ") for name, bar in shown.colorbars_.items()} == {
        "brightfield": "brightfield, as given", "target": "rad", "difference": "difference, rad",
    }  # fmt: skip
    low, high = shown.limits_["difference"]
    assert low == -high
    np.testing.assert_allclose(shown.axes_[3, 0].images[0].get_array(), 0.5, atol=1e-6)
    assert shown.limits_["target"][1] < 10
    assert shown.colorbars_["target"].extend == "both"
    caption = " ".join(shown.figure_.get_supxlabel().split())
    both = np.stack([images[[0, 3]] + 0.5, measured[[0, 3]]])
    low, high = shown.limits_["target"]
    assert (
        f"target {low:.3g} to {high:.3g}, {(both < low).mean():.2%} below and {(both > high).mean():.2%} above"
        in caption
    )
    no_overlap(shown.figure_, *shown.axes_.flat, *(bar.ax for bar in shown.colorbars_.values()))
    wide = {"brightfield": (-99, 99), "target": (-2000, 2000)}
    again = CellImagesDisplay.from_predictions(images, images, measured, limits=wide)
    assert again.limits_ == wide
    assert again.colorbars_["target"].extend == "neither"
    assert " ".join(again.figure_.get_supxlabel().split()).count("none beyond it") == 2


def test_scale_bar(images):
    from skbegan.plotting._common import round_length

    shown = CellImagesDisplay.from_predictions(images, images, images, cells=[0], pixel_size=0.33)
    (bar,) = (line for line in shown.axes_[-1, 0].lines if line.get_gid() == "scale bar")
    length = float(np.ptp(bar.get_xdata())) * 0.33
    assert length == pytest.approx(2)  # at most half of 16 pixels, 2.64 micrometres
    assert [text.get_text() for text in shown.axes_[-1, 0].texts] == ["2 µm"]
    assert not CellImagesDisplay.from_predictions(images, images, cells=[0]).axes_[-1, 0].lines
    assert [round_length(x) for x in (0.013, 1, 4.99, 50, 73)] == [0.01, 1, 2, 50, 50]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pixel_size": 0}, ValueError, "positive number of micrometres, got 0"),
        ({"pixel_size": float("nan")}, ValueError, "positive number"),
        ({"pixel_size": "1 um"}, TypeError, "number of micrometres"),
        ({"limits": {"phase": (0, 1)}}, ValueError, "limits may name brightfield, target, difference"),
        ({"limits": {"target": (1, 1)}}, ValueError, "the smaller first"),
        ({"difference": True}, ValueError, "needs measured or batch-free"),
    ],
)
def test_cell_images_refuse_bad_options(images, options, error, message):
    with pytest.raises(error, match=message):
        CellImagesDisplay.from_predictions(images, images, **options)


def test_labels_are_text_not_formulas(images):
    strange = [r"$\frac{$", "<b>", "_hidden", "two\nlines"] * 5
    maps = FeatureMapDisplay.from_features(images.reshape(20, -1), strange, strange, title="$x")
    CellImagesDisplay.from_predictions(images, images, labels=strange).figure_.canvas.draw()
    maps.figure_.canvas.draw()
    names = {text.get_text() for text in maps.axes_[0].get_legend().get_texts()}
    assert names == {r"\$\frac{\$", "<b>", "_hidden", "two lines"}


def test_cell_images_from_predictions(images):
    shown = CellImagesDisplay.from_predictions(images, images, cells=[3, -1], labels=np.arange(20))
    assert shown.axes_.shape == (2, 2)
    assert [a.get_title() for a in shown.axes_[0]] == ["3", "19"]
    several = np.stack([images, -images], axis=-1)
    shown = CellImagesDisplay.from_predictions(several, several, several, n_cells=99)
    assert shown.axes_.shape == (3, 20)
    CellImagesDisplay.from_predictions(np.zeros((2, 16, 16)), np.zeros((2, 16, 16)))  # constant


def test_draws_into_a_given_figure(images):
    figure = plt.figure(layout="constrained")
    left, right = figure.subfigures(1, 2)
    assert CellImagesDisplay.from_predictions(images, images, n_cells=2, figure=left).figure_ is left
    features = images.reshape(20, -1)
    FeatureMapDisplay.from_features(features, np.arange(20) % 2, np.arange(20) % 3, figure=right)
    HistoryDisplay.from_estimator(FakeBeGAN(), figure=plt.figure())
    figure.canvas.draw()
    assert len(plt.get_fignums()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": [20]}, "between 0 and 19"),
        ({"cells": []}, "list of cell numbers"),
        ({"cells": [0.5]}, "list of cell numbers"),
        ({"n_cells": 0}, "at least 1"),
        ({"labels": ["a"]}, "labels must be 1-D"),
        ({"y_qpi": np.zeros((3, 16, 16))}, "as many images"),
        ({"y_qpi": np.zeros(20)}, r"\(n, H, W\)"),
    ],
)
def test_cell_images_bad_input(images, options, message):
    with pytest.raises(ValueError, match=message):
        CellImagesDisplay.from_estimator(FakeBeGAN(), images, **options)


# --------------------------------------------------------------------------------------------------------- maps
def test_feature_map_is_the_pca():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 5)) * [10, 5, 1, 1, 1] + 7
    shown = FeatureMapDisplay.from_features(features, rng.integers(0, 3, 200), rng.integers(0, 2, 200), title="raw")
    points = shown.maps["raw"]
    centred = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(u[:, :2] * s[:2]), rtol=1e-6, atol=1e-8)
    assert shown.explained["raw"] == pytest.approx(tuple(s[:2] ** 2 / (s**2).sum()))
    again = FeatureMapDisplay.from_features(features, np.zeros(200), np.zeros(200))
    np.testing.assert_array_equal(again.maps[""], points)
    assert [a.get_title() for a in shown.axes_] == ["raw, by batch", "raw, by cell type"]
    assert sum(len(c.get_offsets()) for c in shown.axes_[0].collections) == 200
    assert [t.get_text() for t in shown.axes_[0].get_legend().get_texts()] == ["0", "1", "2"]


@pytest.mark.parametrize("n_labels", [1, 7, 12, 33])
def test_legends_do_not_overlap(n_labels):
    rng = np.random.default_rng(2)
    batch = np.array([f"2024-05-{i:02d}" for i in range(n_labels)])[rng.integers(0, n_labels, 300)]
    batch[:n_labels] = [f"2024-05-{i:02d}" for i in range(n_labels)]
    kinds = np.array(["a very long cell type name", "b"])[rng.integers(0, 2, 300)]
    shown = FeatureMapDisplay.from_features(rng.normal(size=(300, 6)), batch, kinds)
    legends = [a.get_legend() for a in shown.axes_]
    no_overlap(shown.figure_, *shown.axes_, *legends)
    names = [t.get_text() for t in legends[0].get_texts()]
    assert len(names) == min(n_labels, 24)
    if n_labels > 24:
        assert names[-1] == f"and {n_labels - 23} more"


def test_long_labels_keep_to_their_place(images):
    long = [f"2024-05-{k:02d} plate {k % 3}, site Hong Kong, of a very long campaign" for k in range(20)]
    maps = FeatureMapDisplay.from_features(images.reshape(20, -1), long, ["x" * 99] * 20)
    no_overlap(maps.figure_, *maps.axes_, *(axis.get_legend() for axis in maps.axes_))
    assert min(axis.get_window_extent().width for axis in maps.axes_) > 150
    shown = CellImagesDisplay.from_predictions(images, images, labels=long, n_cells=4)
    no_overlap(shown.figure_, *(axis.title for axis in shown.axes_[0]), *shown.axes_.flat)
    found = made_audit(n_batches=2)
    found.per_batch = dict(zip(long, found.per_batch.values(), strict=False))
    drawn = AuditDisplay.from_audit(found)
    no_overlap(drawn.figure_, *drawn.axes_.values(), drawn.legend_)
    drawn.figure_.canvas.draw()
    for axis in drawn.axes_.values():
        assert axis._left_title.get_window_extent().x1 <= axis._right_title.get_window_extent().x0


def test_axes_say_which_map_it_is():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5)) * [9, 3, 1, 1, 1]
    labels = rng.integers(0, 2, 60)
    pca = FeatureMapDisplay.from_features(features, labels, labels)
    shares = pca.explained[""]
    assert [pca.axes_[0].get_xlabel(), pca.axes_[0].get_ylabel()] == [
        f"PC 1 ({shares[0]:.0%})",
        f"PC 2 ({shares[1]:.0%})",
    ]
    with pytest.raises(ImportError, match=r'pip install "skbegan\[umap\]"'):
        FeatureMapDisplay.from_features(features, labels, labels, method="umap")
    with pytest.raises(ValueError, match="'auto', 'pca' or 'umap'"):
        FeatureMapDisplay.from_features(features, labels, labels, method="tsne")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_umap_where_it_is_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "umap")
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    apart = np.repeat([0, 1], 40)
    features = rng.normal(size=(80, 60)) + 8 * apart[:, None]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    shown = FeatureMapDisplay.from_features(features, apart, apart)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert shown.axes_[0].get_xlabel() == "UMAP 1"
    assert shown.explained is None
    points = shown.maps[""]
    centres = [points[apart == k].mean(axis=0) for k in (0, 1)]
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * max(points[apart == k].std() for k in (0, 1))
    again = FeatureMapDisplay.from_features(features, apart, apart, method="umap")
    np.testing.assert_array_equal(again.maps[""], points)
    few = FeatureMapDisplay.from_features(features[::2], apart[::2], apart[::2])
    assert few.axes_[0].get_xlabel().startswith("PC 1")


def test_labels_beyond_the_palette_differ_by_marker():
    from skbegan.plotting._common import style

    styles = {tuple(style(k).values()) for k in range(60)}
    assert len(styles) == 60


def test_compare_features():
    rng = np.random.default_rng(3)
    sets = {"stage 1": rng.normal(size=(100, 6)), "after": rng.normal(size=(100, 300))}
    shown = compare_features(sets, list("ab") * 50, rng.integers(0, 3, 100), standardize=True)
    assert shown.axes_.shape == (2, 2)
    assert [a.get_title() for a in shown.axes_[0]] == ["stage 1", "after"]
    no_overlap(shown.figure_, *shown.axes_.flat, *(a.get_legend() for a in shown.axes_[:, -1]))
    assert shown.axes_[0, 0].get_legend() is None
    with pytest.raises(TypeError, match="mapping"):
        compare_features(sets["after"], list("ab") * 50, np.zeros(100))


def test_feature_map_from_estimator_and_few_dimensions(images):
    shown = FeatureMapDisplay.from_estimator(FakeBeGAN(), images, np.arange(20) % 2, np.zeros(20))
    assert shown.maps[""].shape == (20, 2)
    for features in (
        np.arange(5.0)[:, None],
        np.zeros((5, 4)),
        np.eye(2),
        np.ones((1, 3)),
        np.outer(np.arange(30), np.ones(9)),
    ):
        n = len(features)
        FeatureMapDisplay.from_features(features, np.zeros(n), np.zeros(n), standardize=True).figure_.canvas.draw()


@pytest.mark.parametrize(
    ("features", "batch", "message"),
    [
        (np.zeros((10, 4, 4)), np.zeros(10), "2-D"),
        (np.full((10, 4), np.nan), np.zeros(10), "NaN"),
        (np.zeros((10, 4)), np.zeros(9), "batch must be 1-D"),
        (np.zeros((10, 4)), None, "batch of each cell is needed"),
        ({}, np.zeros(10), "no features"),
        ({"a": np.zeros((10, 4)), "b": np.zeros((9, 4))}, np.zeros(10), "Map 'b'"),
    ],
)
def test_feature_map_bad_input(features, batch, message):
    with pytest.raises(ValueError, match=message):
        FeatureMapDisplay.from_features(features, batch, np.zeros(10))


# ------------------------------------------------------------------------------------------------------ history
def test_history():
    shown = HistoryDisplay.from_estimator(FakeBeGAN())
    assert list(shown.axes_) == [
        ("pretraining", "image"),
        ("batch_removal", "image"),
        ("batch_removal", "adversarial"),
        ("batch_removal", "batch"),
        ("batch_removal", "cell type"),
    ]
    assert shown.axes_["pretraining", "image"].get_ylabel() == "mean absolute error\n(scale of training)"
    assert all(axis.get_ylabel() for axis in shown.axes_.values())
    legend = shown.axes_["pretraining", "image"].get_legend()
    styles = {
        text.get_text(): line.get_linestyle() for text, line in zip(legend.texts, legend.get_lines(), strict=True)
    }
    assert styles == {"image": "-", "training": "-", "validation": "--"}
    solid, dashed = shown.axes_["pretraining", "image"].lines
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert solid.get_color() == dashed.get_color()
    assert list(dashed.get_xdata()) == [1, 2]  # what was not measured is left out
    assert shown.axes_["batch_removal", "cell type"].get_yscale() == "log"
    assert shown.axes_["batch_removal", "batch"].get_yscale() == "linear"
    no_overlap(shown.figure_, *shown.axes_.values(), *(a.get_legend() for a in shown.axes_.values()))
    one = HistoryDisplay.from_estimator(FakeBeGAN(), stages=["batch_removal"], details=True)
    assert {stage for stage, _ in one.axes_} == {"batch_removal"}
    assert ("batch_removal", "total") in one.axes_


@pytest.mark.parametrize("removal", [OnlineRemoval(warmup_epochs=1), PublishedRemoval()], ids=["online", "published"])
@pytest.mark.filterwarnings("ignore:batch_removal. these cell types have collapsed")
def test_every_loss_of_a_fit_has_a_panel_and_its_own_name(cells, removal):
    began = BeGANTransformer(
        base_width=4,
        n_features=16,
        pretrain_epochs=1,
        removal_epochs=2,
        classifier_epochs=1,
        removal=removal,
        minibatch_size=32,
        device="cpu",
        random_state=0,
    )
    began.fit(cells.bf, cells.qpi, cells.batch, cells.cell_type)
    shown = HistoryDisplay.from_estimator(began, details=True)
    assert "other" not in {panel for _, panel in shown.axes_}
    for stage, losses in began.history_.items():
        if stage == "events":
            continue
        drawn = {
            text.get_text().replace(" ", "_")
            for (of, _), axis in shown.axes_.items()
            if of == stage
            for text in axis.get_legend().get_texts()
        }
        assert drawn - {"training", "validation"} == {
            name.removeprefix("validation_") for name in losses if name != "epoch"
        }
    rows = [row.get_suptitle() for row in shown.figure_.subfigs]
    assert rows[:2] == ["stage 1: pretraining", "stage 2: batch removal"]
    assert rows[2:] == ["stage 3: profile alignment"] * isinstance(removal, OnlineRemoval)
    stage_3 = [axis for (stage, _), axis in shown.axes_.items() if stage == "profile_alignment"]
    assert {axis.get_xlabel() for axis in stage_3} <= {"part of the stage"}
    no_overlap(shown.figure_, *shown.axes_.values(), *(a.get_legend() for a in shown.axes_.values()))


def test_history_panels_come_from_exact_names():
    losses = {"epoch": [1, 2], "batch_adversary_12": [1, 1], "validation_active_features": [1, 1]}
    unknown = {"discrepancy": [1, 1], "my_image_score": [1, 1], "cell_type_2nd": [1, 1]}
    shown = HistoryDisplay({"batch_removal": losses | unknown}).plot()
    legends = {panel: [t.get_text() for t in axis.get_legend().get_texts()] for (_, panel), axis in shown.axes_.items()}
    assert legends == {
        "batch adversaries": ["batch adversary 12"],
        "active features": ["active features", "validation"],
        "other": ["discrepancy", "my image score", "cell type 2nd"],
    }


def test_history_with_few_or_unknown_losses():
    shown = HistoryDisplay({"pretraining": {"epoch": [1], "sparsity": [0.5]}}).plot()
    assert shown.axes_["pretraining", "other"].lines[0].get_marker() == "o"
    HistoryDisplay({"pretraining": {"image": [1, -1, None]}}).plot().figure_.canvas.draw()
    with pytest.raises(ValueError, match="no losses"):
        HistoryDisplay({"pretraining": {"epoch": []}, "events": []}).plot()
    with pytest.raises(ValueError, match="fit it first"):
        HistoryDisplay.from_estimator(object())
    with pytest.raises(ValueError, match="no stage"):
        HistoryDisplay.from_estimator(FakeBeGAN(), stages=["stage 3"])


# -------------------------------------------------------------------------------------------------------- audit
def made_audit(*, images=True, n_batches=3, shift=0.0):
    """An audit without the work."""
    measures = {}
    for prefix, section in (("", "features"), ("image_", "predicted images"))[: 2 if images else 1]:
        for k, probe in enumerate(("linear", "mlp", "knn")):
            value = 0.6 + 0.1 * k + shift
            measures[f"{prefix}leakage_{probe}"] = Measure("leak", section, value, 0.02, 0.0, "lower", 1.0, -0.01, 50)
        for k, key in enumerate(("cell_type_accuracy", "cross_batch_accuracy")):
            measures[prefix + key] = Measure("type", section, 0.8 - 0.1 * k - shift, None, 0.25, "higher", 0.4, 0.9, 50)
    per_batch = {f"2024-05-{k:02d}": {"cross_batch_accuracy": 0.5, "chance": 0.25} for k in range(n_batches)}
    per_type = {f"type {k}": {"leakage_linear": 0.6 + shift} for k in range(4)}
    if images:
        for prefix in ("", "truth_"):
            for key in ("mae", "ssim", "pearson"):
                raw = 0.3 if prefix else None
                measures[prefix + key] = Measure(key, "image error", 0.2 + shift, 0.01, None, "lower", raw, None, 50)
        for row in per_batch.values():
            row.update({"mae": 0.3, "truth_mae": 0.1})
    return Audit("an audit", [], measures, per_batch, per_type, {})


def dots(axis):
    """Return the positions of the filled dots of the audits, from top to bottom."""
    return [tuple(line.get_xydata()[0]) for line in axis.lines if line.get_marker() == "o"]


def test_audit():
    shown = AuditDisplay.from_audit(made_audit(), units="rad")
    assert list(shown.axes_) == [
        "leakage",
        "cell_type",
        "image_error",
        "image_likeness",
        "leakage_per_type",
        "cross_batch_per_batch",
        "error_per_batch",
    ]
    leakage = shown.axes_["leakage"]
    names = [label.get_text() for label in leakage.get_yticklabels()]
    assert names == ["features", "linear probe", "MLP", "15-NN", "predicted images", "linear probe", "MLP", "15-NN"]
    assert dots(leakage) == [
        (pytest.approx(x), y) for x, y in zip([0.6, 0.7, 0.8] * 2, [1, 2, 3, 5, 6, 7], strict=True)
    ]
    assert leakage.get_ylim()[0] > leakage.get_ylim()[1]  # the first row on top
    assert shown.axes_["image_error"].get_xlabel() == "MAE (rad)"
    assert shown.axes_["error_per_batch"].get_xlabel() == "MAE to truth (rad)"
    assert [t.get_text() for t in shown.legend_.get_texts()] == ["model", "raw images", "batch-free truth", "chance"]
    # a dashed tick at the chance level in each row, the references beside the dots
    ticks = [line for line in shown.axes_["cell_type"].lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in ticks] == [0.25] * 4
    marks = np.concatenate([c.get_offsets() for c in leakage.collections if len(c.get_offsets()) == 1])
    assert {(1.0, 1.0), (-0.01, 1.0)} <= {tuple(mark) for mark in marks.tolist()}
    no_overlap(shown.figure_, *shown.axes_.values(), shown.legend_)


def test_audit_of_what_is_kept_of_the_cell():
    kept = made_audit()
    for k, name in enumerate(("area", "elongation")):
        for end, value in (("", 0.8 - 0.2 * k), ("_left_out", 0.5 - 2.0 * k)):
            kept.measures[f"retained_{name}{end}"] = Measure(name, "R2", value, 0.05, -0.01, "higher", -40.0, 0.9, 50)
    shown = AuditDisplay.from_audit(kept)
    axis = shown.axes_["retained"]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["batches seen", "area", "elongation", "batch left out", "area", "elongation"]
    assert [x for x, _ in dots(axis)] == [pytest.approx(x) for x in (0.8, 0.6, 0.5, -0.5)]  # -1.5 is drawn at -0.5
    assert axis.get_xlim()[0] > -0.7
    assert "better" in axis.get_title(loc="right") and "→" in axis.get_title(loc="right")
    no_overlap(shown.figure_, *shown.axes_.values(), shown.legend_)


def test_audits_side_by_side():
    shown = AuditDisplay.from_audit({"before": made_audit(shift=0.2), "after": made_audit()}, details=False)
    assert set(shown.axes_) == {"leakage", "cell_type", "image_error", "image_likeness"}
    (x0, y0), (x1, y1) = dots(shown.axes_["leakage"])[:2]
    assert (x0, x1) == (pytest.approx(0.8), pytest.approx(0.6))
    assert 0.5 < y0 < 1 < y1 < 1.5  # the same row, one over the other
    assert [t.get_text() for t in shown.legend_.get_texts()][:2] == ["before", "after"]
    # what only one of them has is drawn for that one
    mixed = AuditDisplay.from_audit({"with images": made_audit(), "without": made_audit(images=False)})
    assert len(dots(mixed.axes_["image_error"])) == 2
    assert len(dots(mixed.axes_["leakage"])) == 9


def test_audit_without_images_and_with_many_batches():
    shown = AuditDisplay.from_audit(made_audit(images=False, n_batches=25))
    assert list(shown.axes_) == ["leakage", "cell_type", "leakage_per_type", "cross_batch_per_batch"]
    shown.figure_.canvas.draw()
    labels = [label.get_window_extent() for label in shown.axes_["cross_batch_per_batch"].get_yticklabels()]
    assert len(labels) == 25
    assert all(not upper.overlaps(lower) for upper, lower in pairwise(labels))
    no_overlap(shown.figure_, *shown.axes_.values(), shown.legend_)


def test_audit_draws_into_a_subfigure_and_off_scale_values():
    figure = plt.figure(figsize=(22, 9), layout="constrained")
    left, _ = figure.subfigures(1, 2)
    below_zero = made_audit()
    for key in [key for key in below_zero.measures if "leakage" in key]:  # -0.3, which an overfitted probe can give
        below_zero.measures[key] = replace(below_zero.measures[key], value=-0.3)
    shown = AuditDisplay.from_audit(below_zero, figure=left)
    assert shown.figure_ is left
    assert shown.axes_["leakage"].get_xlim()[0] < -0.3
    figure.canvas.draw()


def test_audit_from_estimator(images):
    cell_type, batch = np.arange(20) % 2, np.arange(20) // 2 % 2
    shown = AuditDisplay.from_estimator(
        FakeBeGAN(), images, images, batch, cell_type, probes=["knn"], n_splits=2, n_repeats=1, n_components=3
    )
    assert shown.audits["model"]["mae"].n_cells == 20
    assert dots(shown.axes_["leakage"])[0][0] == shown.audits["model"]["leakage_knn"].value
    assert shown.axes_["cell_type"].get_xlabel() == "accuracy, 15-NN"
    with pytest.raises(TypeError, match=r"what skbegan\.metrics\.audit returns"):
        AuditDisplay.from_audit({"a": 1})
    with pytest.raises(ValueError, match="One to 10 audits"):
        AuditDisplay.from_audit({})
    with pytest.raises(ValueError, match="no measure that can be drawn"):
        AuditDisplay.from_audit(Audit("empty", [], {}, {}, {}, {}))


# ------------------------------------------------------------------------------------------------- dependencies
def test_without_matplotlib(monkeypatch, images):
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (
        lambda: CellImagesDisplay.from_predictions(images, images),
        lambda: FeatureMapDisplay.from_features(images.reshape(20, -1), np.zeros(20), np.zeros(20)),
        lambda: HistoryDisplay.from_estimator(FakeBeGAN()),
        lambda: AuditDisplay.from_audit(made_audit()),
    ):
        with pytest.raises(ImportError, match=r'pip install "skbegan\[plots\]"'):
            draw()


def test_import_does_not_import_matplotlib():
    code = "import sys, skbegan.plotting; assert 'matplotlib' not in sys.modules"
    assert isinstance(plt, types.ModuleType)
    subprocess.run([sys.executable, "-c", code], check=True)

"""The report: one page that holds all it shows, says what was computed, and takes no label for markup."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import joblib
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import skbegan
from skbegan.design import Design
from skbegan.metrics import Audit, Measure, audit
from skbegan.report import words, write_report

HOSTILE = "<script>alert('x')</script>"
QUICK = {"probes": ["linear"], "n_splits": 2, "n_repeats": 1, "n_components": 5, "measurements": False}


@pytest.fixture(autouse=True)
def without_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)


@pytest.fixture(scope="module")
def found(fitted, cells):
    return audit(fitted, cells.bf, cells.qpi, cells.batch, cells.cell_type, **QUICK)


class Page(HTMLParser):
    """Tags, ids, references and text of a page."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.open, self.text, self.sources = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        assert not [name for name in given if name.startswith("on")]
        if "id" in given:
            self.ids.append(given["id"])
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def says(self, sentence):
        return sentence in " ".join(" ".join(self.text).split())


def test_one_page_with_everything_in_it(fitted, cells, found, tmp_path):
    settings, figures = dict(matplotlib.rcParams), plt.get_fignums()
    path = write_report(
        tmp_path / "report.html",
        fitted,
        cells.bf,
        cells.qpi,
        cells.batch,
        cells.cell_type,
        audit=found,
        pixel_size=0.5,
        units="rad",
        title="My model",
        card={"licence": "CC BY 4.0"},
    )
    assert path == tmp_path / "report.html" and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == (settings, figures)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for name in (
        "verdict",
        "data",
        "limits",
        "images",
        "features",
        "audit",
        "morphology",
        "training",
        "versions",
        "card",
    ):
        assert name in page.ids
    assert len(set(page.ids)) == len(page.ids)
    # Nothing is fetched and nothing runs.
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in page.sources)
    assert {source[1:] for source in page.sources if source.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert "prefers-color-scheme: dark" in text and "default-src 'none'" in text
    # Figures: one of each batch, the maps, the audit, one of each stage; their ink is that of the page.
    assert page.tags.count("svg") == 3 + 1 + 1 + 3
    assert "#0b0c0d" not in text and "#000000" not in text and "currentColor" in text
    assert page.says("CC BY 4.0") and page.says("To be filled in by the owner of the model")
    assert page.says("random_state=0") and page.says("µm")
    leakage = found["leakage_linear"]
    assert page.says(f"the greatest leakage is {words.number(leakage.value)} with a spread of")
    assert page.says("PC 1 (") and page.says("the first two principal components")
    for label, count in zip(*np.unique(cells.batch, return_counts=True), strict=True):
        assert page.says(str(label)) and page.says(str(count))


@pytest.mark.slow
def test_labels_are_no_markup(fitted, cells, found, tmp_path):
    batch = np.where(cells.batch == "batch0", HOSTILE, cells.batch)
    kinds = np.where(cells.cell_type == "type0", 'a" onload="x' + "$y$ ${title} ]]>", cells.cell_type)
    made = Audit(
        HOSTILE, [HOSTILE], found.measures, {HOSTILE: {"mae": 1.0}}, {HOSTILE: {"leakage_linear": 0.9}}, {"x": HOSTILE}
    )
    path = write_report(
        tmp_path / "r.html", fitted, cells.bf, cells.qpi, batch, kinds, audit=made, title=HOSTILE, units=HOSTILE,
        card={"contact": HOSTILE},
    )  # fmt: skip
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.says(HOSTILE)
    assert page.says('a" onload="x$y$ ${title} ]]>')


class Untouched:
    """A model that no work may be asked of."""

    history_ = {"events": []}  # noqa: RUF012
    image_shape_ = target_shape_ = (16, 16)

    def transform(self, X_bf):
        raise AssertionError("worked")

    predict_image = transform


def test_refuses_before_any_work(cells, tmp_path):
    earlier = tmp_path / "report.html"
    earlier.write_text("mine")
    given = (cells.bf, cells.qpi, cells.batch, cells.cell_type)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_report(earlier, Untouched(), *given)
    assert earlier.read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="make it first"):
        write_report(tmp_path / "none" / "r.html", Untouched(), *given)
    with pytest.raises(ValueError, match="is a folder"):
        write_report(tmp_path, Untouched(), *given)
    new = tmp_path / "new.html"
    with pytest.raises(ValueError, match="batch has 3 labels for 90 cells"):
        write_report(new, Untouched(), cells.bf, cells.qpi, list("abc"), cells.cell_type)
    with pytest.raises(ValueError, match="pairs of the same cells"):
        write_report(new, Untouched(), cells.bf, cells.qpi[:5], cells.batch, cells.cell_type)
    with pytest.raises(ValueError, match="positive number of micrometres"):
        write_report(new, Untouched(), *given, pixel_size=-1)
    with pytest.raises(ValueError, match="card may hold intended_use"):
        write_report(new, Untouched(), *given, card={"author": "me"})
    with pytest.raises(TypeError, match="random_state must be an integer"):
        write_report(new, Untouched(), *given, random_state=None)
    with pytest.raises(TypeError, match="audit must be what"):
        write_report(new, Untouched(), *given, audit={"a": 1})
    with pytest.raises(ValueError, match="not fitted"):
        write_report(new, skbegan.BeGANTransformer(), *given)
    with pytest.raises(TypeError, match=r"pipe\['began'\]"):
        write_report(new, object(), *given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html"]


def test_measures_by_itself_and_says_what_is_missing(fitted, cells, tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old")
    joblib.dump(fitted, tmp_path / "m")
    model = joblib.load(tmp_path / "m")
    model.history_ = {"events": ["stage 2: restarted"]}
    write_report(
        path, model, cells.bf, None, cells.batch, cells.cell_type, overwrite=True, audit_params=QUICK, random_state=3
    )
    page = Page(path.read_text(encoding="utf-8"))
    for said in (
        "No target images were given, so that there are no errors.",
        "The predicted images were not compared with measured ones.",
        "The model holds no losses",
        "No batch was removed: the model's history has no stage 2.",
        "Note of the training: stage 2: restarted",
        "The pixel size was not given",
        "Seed of this report: 3",
    ):
        assert page.says(said), said


# ---------------------------------------------------------------------------------------------------------- in words
def row(value, spread=0.02, chance=0.0, better="lower", raw=None, section="features"):
    return Measure("batch leakage, MLP", section, value, spread, chance, better, raw, None, 100)


@pytest.mark.parametrize(
    ("key", "measure", "said"),
    [
        ("leakage_mlp", row(0.03), "not told from chance"),
        ("leakage_mlp", row(0.05, raw=0.9), "the batch can be read; less than from raw pixels"),
        ("leakage_mlp", row(0.9, raw=0.91), "the batch can be read; like raw pixels"),
        ("leakage_mlp", row(-0.3), "below chance"),
        (
            "cross_batch_accuracy",
            row(0.6, chance=0.25, better="higher", raw=0.5),
            "above chance; better than raw pixels",
        ),
        ("cell_type_accuracy", row(0.6, chance=0.25, better="higher", raw=0.7), "above chance; worse than raw pixels"),
        ("retained_area", row(0.01, chance=-0.1, better="higher"), "not told from chance"),
        ("retained_area", row(0.2, chance=-0.1, better="higher"), "above chance"),
        ("mae", row(0.1, chance=None), ""),
        (
            "truth_mae",
            row(0.1, chance=None, raw=0.3, section="image error to the batch-free truth"),
            "closer to the truth than the measured images",
        ),
        ("effective_rank", row(3.0, chance=None, better=None, raw=1.0), ""),
        ("leakage_mlp", row(float("nan")), "no finite figure"),
    ],
)
def test_a_row_in_words(key, measure, said):
    assert words.verdict(key, measure) == said


def limits_of(fitted, counts, batches, types, measures=(), per_type=()):
    made = Audit("", [], dict(measures), {}, dict(per_type), {})
    design = Design(np.array(counts))
    return words.limitations(fitted, design, np.array(batches), np.array(types), made, 0.5)


def test_limitations_come_from_what_was_found(fitted):
    def has(limits, text):
        return any(text in limit for limit in limits)

    known = ["batch0", "batch1", "batch2"]
    types = ["type0", "type1", "type2"]
    fine = limits_of(fitted, np.full((3, 3), 50), known, types)
    assert has(fine, "Not tested on a batch that the model was not fitted on")
    for text in (
        "confounded",
        "Fewer than",
        "groups",
        "In one batch only",
        "The batch can be read",
        "not fitted on these",
    ):
        assert not has(fine, text)
    assert has(limits_of(fitted, np.diag([50, 50, 50]), known, types), "Batch and cell type are confounded")
    assert has(
        limits_of(fitted, [[50, 50, 0], [0, 0, 50], [50, 50, 0]], known, types), "2 groups that share no cell type"
    )
    assert has(limits_of(fitted, [[50, 50, 50], [0, 50, 0], [50, 50, 0]], known, types), "cell type type1")
    assert has(limits_of(fitted, [[50, 7, 50]] * 3, known, types), "type0 in batch1 (7)")
    other = limits_of(fitted, np.full((3, 2), 50), ["batch0", "new"], types)
    assert has(other, "not fitted on these batches: new") and has(other, "Not tested here on these batches")
    assert not has(other, "Not tested on a batch that")
    leaks = {"leakage_mlp": row(0.5), "leakage_knn": row(0.1)}
    found = limits_of(fitted, np.full((3, 3), 50), known, types, leaks, {"type0": {"leakage_mlp": 0.6}, "type1": {}})
    assert has(found, "leakage 0.50 (MLP), above 0.2") and has(found, "type0 (0.60)")
    lost = {"retained_area": row(0.01, chance=0.0, better="higher")}
    assert has(limits_of(fitted, np.full((3, 3), 50), known, types, lost), "do not tell")


def test_without_matplotlib(monkeypatch, cells, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="skbegan"):
        write_report(tmp_path / "r.html", Untouched(), cells.bf, None, cells.batch, cells.cell_type)

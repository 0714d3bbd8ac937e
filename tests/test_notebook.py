"""What a notebook shows of a model: scikit-learn's diagram and a short summary, not the losses of all epochs."""

import re

import joblib
import pytest
import sklearn
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC
from sklearn.utils import estimator_html_repr

from skbegan import BeGANTransformer, _summary
from skbegan.metrics import Audit, Measure


def text(html):
    """Return the text of the summary, without tags."""
    table = html[html.index("<table class='skbegan-summary'") :]
    return re.sub(r"<[^>]+>", " ", table)


def test_a_fitted_model_shows_design_and_stages(fitted):
    html = fitted._repr_html_()
    assert fitted._repr_mimebundle_()["text/html"].endswith(html[html.index("<table class='skbegan-summary'") :])
    assert html.count("skbegan-summary") == 1
    assert "sk-top-container" in html  # scikit-learn's own
    said = text(html)
    for words in ("3 batches (batch0, batch1, batch2)", "3 cell types", "16 x 16 pixels", "profile of 16 numbers"):
        assert words in said
    assert "stage 1, pretraining: 2 epochs" in said
    assert f"image loss {fitted.history_['pretraining']['image'][-1]:.3g}" in said
    assert "stage 3, profile alignment" in said
    assert "Audit" not in said
    assert "documentation" in said or "help(skbegan.BeGANTransformer)" in said
    assert len(said) < 1500
    assert "discriminator_real" not in html  # no dump of history_


def test_scikit_learns_own_display_still_works(fitted):
    assert "skbegan-summary" not in clone(fitted)._repr_html_()
    assert "BeGANTransformer" in estimator_html_repr(fitted)
    pipe = Pipeline([("began", fitted), ("clf", SVC())])
    assert "BeGANTransformer" in pipe._repr_html_()
    assert "discriminator_real" not in pipe._repr_html_()
    with sklearn.config_context(display="text"):
        assert set(fitted._repr_mimebundle_()) == {"text/plain"}
        assert not hasattr(fitted, "_repr_html_")


def test_an_audit_that_was_kept_is_summed_up(fitted, tmp_path):
    leakage = Measure("batch leakage, MLP", "features", 0.125, 0.02, 0.0, "lower", 0.9, None, 200)
    joblib.dump(fitted, tmp_path / "m")
    model = joblib.load(tmp_path / "m")
    model.audit_ = Audit("an audit", [], {"leakage_mlp": leakage}, {}, {}, {})
    assert "batch leakage, MLP 0.12 (chance 0.00), 200 cells" in text(model._repr_html_())


def test_labels_cannot_inject(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "m")
    model = joblib.load(tmp_path / "m")
    model.batches_ = ["<script>alert(1)</script>", "b"]
    model.history_ = {"events": ["<img src=x onerror=alert(2)>", "more"]}
    html = model._repr_html_()
    table = html[html.index("<table class='skbegan-summary'") :]
    assert "<script>alert" not in table and "<img" not in table
    assert "&lt;script&gt;alert(1)" in table and "and 1 more" in table


@pytest.mark.parametrize(
    ("urls", "found"),
    [
        (["Source, https://s", "Documentation, https://d"], "https://d"),
        (["Repository, https://r"], "https://r"),
        (None, None),
    ],
)
def test_the_link_is_the_one_that_the_package_names(monkeypatch, urls, found):
    class Named:
        def get_all(self, _):
            return urls

    monkeypatch.setattr(_summary.metadata, "metadata", lambda _: Named())
    assert _summary.docs_url() == found


def test_unfitted_model_has_no_summary():
    assert "skbegan-summary" not in BeGANTransformer()._repr_mimebundle_()["text/html"]

"""The command line: what each command writes, refuses and returns. Commands are called in this process."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import skbegan
from skbegan import OnlineRemoval, ProfileAlignment, PublishedRemoval, cli, datasets
from skbegan._demo_cells import write_demo_cells
from skbegan._settings import parameters, read_settings, setting
from skbegan.cli import main

TABLES = hasattr(datasets, "load_cell_table")
needs_tables = pytest.mark.skipif(not TABLES, reason="this build reads no tables")
needs_report = pytest.mark.skipif(importlib.util.find_spec("skbegan.report") is None, reason="this build has no report")
COLUMNS = ["--bf", "brightfield", "--target", "phase", "--batch", "day", "--cell-type", "line", "--image-size", "16"]
SMALL = [f"--set={name}" for name in ("base_width=4", "n_features=16", "pretrain_epochs=1", "removal_epochs=1")]
COMMANDS = ["fit", "transform", "predict", "audit", "report", "demo", "import-keras"]
KNOWN = list(skbegan.BeGANTransformer().get_params(deep=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two tables of simulated cells in TIFF files."""
    pytest.importorskip("tifffile")
    folder = tmp_path_factory.mktemp("cells")
    write_demo_cells(folder, 60, 16, 0)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """A model that the command line has fitted."""
    if not TABLES:
        pytest.skip("this build reads no tables")
    path = folder / "model.safetensors"
    command = ["fit", str(folder / "cells.csv"), *COLUMNS, *SMALL, "--seed", "0", "--no-estimate", "--quiet"]
    assert main([*command, "-o", str(path)]) == 0
    return path


def fit_command(folder, *more, output="other.safetensors"):
    return ["fit", str(folder / "cells.csv"), *COLUMNS, *SMALL, "--quiet", *more, "-o", str(folder / output)]


def in_one_line(capsys) -> str:
    """Return what was said on standard error, which is one line."""
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and said.startswith("skbegan: error: "), said
    return said


# What needs no cells --------------------------------------------------------------------------------------------------


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "skbegan", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"skbegan {skbegan.__version__}\n"


def test_the_version_needs_no_torch():
    code = "import sys; from skbegan.cli import main; main(['--version']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_entry_point_names_the_same_function():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'skbegan = "skbegan.cli:main"' in project


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_two_examples_that_can_be_parsed(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    examples = text.partition("examples:\n")[2].replace("\\\n", " ").strip().splitlines()
    assert len(examples) == 2
    for example in examples:
        program, *arguments = example.split()
        assert program == "skbegan" and arguments[0] == command
        assert cli.build_parser().parse_args(arguments)


def test_all_commands_are_listed(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^ +{command} ", text, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["fit"],
        ["transform", "model.safetensors"],
        ["fit", "cells.csv", *COLUMNS, "-o", "m.safetensors", "--preset", "huge"],
        ["fit", "cells.csv", *COLUMNS, "-o", "m.safetensors", "--set", "base_width"],
    ],
)
def test_what_cannot_be_meant_is_usage(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: skbegan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("base_widht=4", "did you mean 'base_width'"),
        ("removal.alignmet=1", "did you mean 'alignment'"),
        ("removal=magic", "online, published"),
    ],
)
def test_a_parameter_of_no_such_name_is_usage_too(folder, change, said, capsys):
    assert main(fit_command(folder, f"--set={change}")) == 2
    assert said in in_one_line(capsys)


@pytest.mark.parametrize(
    ("command", "output", "suffix"),
    [("transform", "p.xlsx", ".parquet"), ("predict", "i.png", ".zarr"), ("report", "r.pdf", ".html")],
)
def test_an_output_of_another_kind_is_refused_first(command, output, suffix, tmp_path, capsys):
    assert main([command, "no-model", "no-table", "-o", str(tmp_path / output)]) == 2
    assert suffix in in_one_line(capsys)


@pytest.mark.parametrize("command", ["fit", "transform", "predict", "audit", "report", "import-keras"])
def test_an_output_that_exists_is_refused_before_anything_is_read(command, tmp_path, capsys):
    suffixes = {"transform": ".csv", "predict": ".mat", "audit": ".json", "report": ".html"}
    output = tmp_path / f"out{suffixes.get(command, '.safetensors')}"
    output.write_bytes(b"mine")
    arguments = {"fit": ["nothing.csv", *COLUMNS], "import-keras": ["nothing.h5"]}.get(
        command, ["no-model", "no-table"]
    )
    assert main([command, *arguments, "-o", str(output)]) == 1
    assert "exists; --force replaces it" in in_one_line(capsys)
    assert output.read_bytes() == b"mine"


def test_the_file_beside_a_model_is_an_output_too(folder, capsys):
    beside = folder / f"lone.safetensors{cli.TABLE_SUFFIX}"
    beside.write_text("{}", encoding="utf-8")
    assert main(fit_command(folder, output="lone.safetensors")) == 1
    assert f"{beside.name} exists" in in_one_line(capsys) and beside.read_text(encoding="utf-8") == "{}"


def test_warnings_are_said_once_and_in_a_line(tmp_path, monkeypatch, capsys):
    def warns(*args, **kwargs):
        for _ in range(2):
            warnings.warn("units\n  are others", UserWarning, stacklevel=1)
        raise ValueError("no such\nfile")

    monkeypatch.setattr(skbegan, "load_keras_generator", warns)
    assert main(["import-keras", "x.h5", "-o", str(tmp_path / "m.safetensors")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["skbegan: warning: units are others", "skbegan: error: no such file"]


def test_a_folder_that_does_not_exist_is_said(tmp_path, capsys):
    assert main(["import-keras", "x.h5", "-o", str(tmp_path / "no" / "m.safetensors")]) == 1
    assert "does not exist" in in_one_line(capsys)


def test_errors_can_be_traced(tmp_path, capsys):
    assert main(["import-keras", "--traceback", str(tmp_path / "x.h5"), "-o", str(tmp_path / "m.safetensors")]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_ctrl_c_is_130(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(skbegan, "load_keras_generator", interrupted)
    assert main(["import-keras", "x.h5", "-o", str(tmp_path / "m.safetensors")]) == 130
    assert capsys.readouterr().err == "skbegan: interrupted\n"


def test_a_keras_generator_is_imported(tmp_path, cells):
    source = Path(__file__).parent / "data" / "keras" / "generator.h5"
    output = tmp_path / "model.safetensors"
    assert main(["import-keras", str(source), "--set", "inference=population", "-o", str(output)]) == 0
    expected, found = skbegan.load_keras_generator(source, inference="population"), skbegan.load(output)
    assert found.inference == "population"
    assert expected._model.weights.keys() == found._model.weights.keys()
    assert all(np.array_equal(value, found._model.weights[name]) for name, value in expected._model.weights.items())


def test_completion_is_made_by_shtab_or_says_what_to_install(capsys):
    code = main(["--print-completion", "bash"])
    out, err = capsys.readouterr()
    if importlib.util.find_spec("shtab") is None:
        assert code == 2 and "skbegan[completion]" in err
    else:
        assert code == 0 and "transform" in out


# Parameters -----------------------------------------------------------------------------------------------------------


def test_a_file_of_parameters_is_equal_to_them(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        'base_width = 8\nlearning_rate = 1e-3\nreference_batch = "none"\n\n[removal]\nalignment = 1.0\n\n'
        "[profile]\nmatching = 3.0\nkernel_widths = [0.5, 1.0]\n",
        encoding="utf-8",
    )
    found = skbegan.BeGANTransformer(**parameters(KNOWN, None, read_settings(path)))
    assert (
        found.get_params()
        == skbegan.BeGANTransformer(
            base_width=8,
            learning_rate=1e-3,
            removal=OnlineRemoval(alignment=1.0),
            profile=ProfileAlignment(matching=3.0, kernel_widths=(0.5, 1.0)),
        ).get_params()
    )


def test_preset_file_and_single_values_count_in_this_order():
    found = parameters(KNOWN, "laptop", {"n_features": 64, "base_width": 8}, [setting("base_width=4")])
    assert found == {**skbegan.PRESETS["laptop"], "n_features": 64, "base_width": 4}
    assert skbegan.PRESETS["laptop"]["base_width"] == 16


def test_the_method_of_removal_comes_before_its_parameters():
    found = parameters(KNOWN, None, {"removal": {"n_subsets": 2, "method": "published"}})
    assert found == {"removal": PublishedRemoval(n_subsets=2)}
    kept = parameters(KNOWN, "published", {"removal": {"method": "published"}}, [setting("removal.n_subsets=3")])
    assert kept["removal"] == PublishedRemoval(n_subsets=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base_width=16", ("base_width", 16)),
        ("removal.decay = 0.3", ("removal.decay", 0.3)),
        ("augment=false", ("augment", False)),
        ("augment=False", ("augment", False)),
        ("device=cpu", ("device", "cpu")),
        ("profile.kernel_widths=[0.1, 1.0]", ("profile.kernel_widths", [0.1, 1.0])),
    ],
)
def test_single_values_are_read_as_toml(text, expected):
    assert setting(text) == expected


@pytest.mark.parametrize("text", ["base_width", "=4", "base_width="])
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(ValueError, match="name=value"):
        setting(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_widht": 4}, "did you mean 'base_width'"),
        ({"removal": {"alignmnt": 4}}, "no parameter of OnlineRemoval; did you mean 'alignment'"),
        ({"removal": "adversarial"}, "removal must be one of online, published"),
    ],
)
def test_settings_of_no_such_name_are_refused(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parameters(KNOWN, None, settings)


def test_a_broken_file_of_parameters_is_named(tmp_path, folder, capsys):
    path = tmp_path / "c.toml"
    path.write_text("base_width = \n", encoding="utf-8")
    assert main(fit_command(folder, "--config", str(path))) == 1
    assert "c.toml is no TOML file" in in_one_line(capsys)


# From a table to its figures ------------------------------------------------------------------------------------------


@needs_tables
def test_a_fit_shows_the_design_and_what_it_will_cost_before_it_begins(folder, capsys, monkeypatch):
    monkeypatch.setattr("skbegan.cost._BLOCK", 0.0)
    monkeypatch.setattr("skbegan.cost._LONGEST", 0.0)
    command = [part for part in fit_command(folder, "--dry-run", output="none.safetensors") if part != "--quiet"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "60" in text and re.search(r"batch removal +1 epoch of 1 step ", text) and "in all" in text
    assert not (folder / "none.safetensors").exists()


@needs_tables
def test_a_fit_is_that_of_python(folder, model):
    how = {"bf": "brightfield", "target": "phase", "batch": "day", "cell_type": "line", "image_size": 16}
    data = datasets.load_cell_table(folder / "cells.csv", **how)
    small = {"base_width": 4, "n_features": 16, "pretrain_epochs": 1, "removal_epochs": 1, "random_state": 0}
    est = skbegan.BeGANTransformer(**small).fit(data.bf, data.qpi, data.batch, data.cell_type)
    assert np.array_equal(skbegan.load(model).transform(data.bf), est.transform(data.bf))


@needs_tables
@pytest.mark.parametrize("lazy", [[], ["--lazy"]])
def test_transform_gives_the_bits_of_python(folder, model, tmp_path, lazy):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    output = tmp_path / "profiles.parquet"
    assert main(["transform", str(model), str(folder / "new_cells.csv"), *lazy, "--quiet", "-o", str(output)]) == 0
    table = pandas.read_parquet(output)
    data = datasets.load_cell_table(folder / "new_cells.csv", bf="brightfield", batch="day", image_size=16)
    expected = skbegan.load(model).transform(data.bf)
    features = table[[name for name in table.columns if not name.startswith("Metadata_")]].to_numpy()
    assert features.dtype == np.float32 and np.array_equal(features, expected)
    assert table["Metadata_day"].astype(str).tolist() == data.batch.tolist()


@needs_tables
def test_a_table_without_labels_can_be_transformed(folder, model, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(folder / "new_cells.csv")[["cell", "brightfield"]]
    table.to_csv(folder / "bare.csv", index=False)
    output = tmp_path / "profiles.csv"
    assert main(["transform", str(model), str(folder / "bare.csv"), "--quiet", "-o", str(output)]) == 0
    assert len(pandas.read_csv(output)) == len(table)


@needs_tables
def test_predicted_images_are_written(folder, model, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    output = tmp_path / "images.ome.tiff"
    command = ["predict", str(model), str(folder / "new_cells.csv"), "--quiet", "-o", str(output)]
    assert main(command) == 0 and main(command) == 1 and main([*command, "--force"]) == 0
    data = datasets.load_cell_table(folder / "new_cells.csv", bf="brightfield", batch="day", image_size=16)
    assert np.array_equal(tifffile.imread(output), skbegan.load(model).predict_image(data.bf))


@pytest.mark.slow
@needs_tables
def test_an_audit_is_printed_and_written(folder, model, tmp_path, capsys):
    output = tmp_path / "audit.json"
    quickly = ["--probes", "linear", "--repeats", "1", "--quiet"]
    assert main(["audit", str(model), str(folder / "new_cells.csv"), *quickly, "-o", str(output)]) == 0
    assert "Audit of BeGANTransformer on 60 cells" in capsys.readouterr().out
    assert "leakage_linear" in json.loads(output.read_text(encoding="utf-8"))["measures"]


@pytest.mark.slow
@needs_tables
@needs_report
def test_a_report_is_written(folder, model, tmp_path):
    output = tmp_path / "report.html"
    assert main(["report", str(model), str(folder / "new_cells.csv"), "--quiet", "-o", str(output)]) == 0
    assert "<html" in output.read_text(encoding="utf-8")


@needs_tables
def test_columns_are_asked_for_where_nothing_says_them(folder, model, tmp_path, capsys):
    alone = tmp_path / "model.safetensors"
    alone.write_bytes(model.read_bytes())
    command = ["transform", str(alone), str(folder / "new_cells.csv"), "--quiet", "-o", str(tmp_path / "p.csv")]
    assert main(command) == 2
    assert "give --bf" in in_one_line(capsys)
    assert main([*command, "--bf", "brightfield"]) == 0


@needs_tables
def test_a_missing_column_is_an_error_in_one_line(folder, capsys):
    command = fit_command(folder)
    command[command.index("brightfield")] = "bright_field"
    assert main(command) == 1
    assert "bright_field" in in_one_line(capsys)


@needs_tables
def test_an_interrupted_fit_keeps_its_model_and_says_130(folder, monkeypatch):
    from skbegan.core.plans.online import OnlinePlan

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(OnlinePlan, "step", interrupted)
    assert main(fit_command(folder, "--no-estimate", output="half.safetensors")) == 130
    assert skbegan.load(folder / "half.safetensors").n_features_out_ == 16


@pytest.mark.slow
@needs_tables
@needs_report
def test_the_demo_runs_from_images_to_a_report(tmp_path, capsys):
    where = tmp_path / "demo"
    command = ["demo", str(where), "--cells", "60", "--image-size", "16", "--epochs", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("$ ")] == [
        "fit",
        "transform",
        "audit",
        "report",
    ]
    for name in ("cells.csv", "new_cells.csv", "model.safetensors", "profiles.csv", "audit.json", "report.html"):
        assert (where / name).stat().st_size > 0, name
    assert main(command) == 1

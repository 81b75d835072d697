"""StageWorkflow: options are typed and checked by themselves, whoever calls and whatever the caller's variables are."""

from __future__ import annotations

import json
import runpy
import sys
import warnings

import pytest
from bad_input.cases import make_sound
from monai.bundle import run_workflow
from stage_here import as_before, random_weights
from stage_process import CONFIGS

from monai_kwtl import StageWorkflow
from monai_kwtl.errors import KWTLError

SELECT = CONFIGS / "select.json"
QUICK = {"pretext": "skip", "window": 32, "step": 16, "report": "false", "tensorboard": "False", "device": "cpu"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of labelled images and weights, which is the current one."""
    make_sound(tmp_path)
    random_weights(tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_misspelt_option_is_named_without_a_command_line():
    with pytest.raises(KWTLError, match="unknown option --stragety; did you mean --strategy?"):
        StageWorkflow(SELECT, stragety="top_k")


def test_variables_of_the_caller_mean_nothing():
    config_file = str(CONFIGS.parents[2] / "configs" / "smoke.json")  # as an unrelated program may call its own
    workflow = StageWorkflow(SELECT, adapt_norm="false")
    assert workflow.parser["adapt_norm"] is False, config_file


def test_values_are_checked_before_anything_is_built():
    for name, value, words in (("psi", -1, "psi must be a number"), ("report", "some", "report must be true or false")):
        with pytest.raises(KWTLError, match=words):
            StageWorkflow(SELECT, **{name: value})


def test_the_root_is_that_of_the_config_wherever_it_runs(place):
    assert StageWorkflow(SELECT).parser["bundle_root"] == str(CONFIGS.parent)
    assert StageWorkflow(SELECT, bundle_root="there").parser["bundle_root"] == "there"


def test_an_overlay_counts_less_than_what_is_given(place):
    (place / "overlay.json").write_text(json.dumps({"step": 28, "psi": 1.6, "probability": 0.4, "_desc_": "tnbc"}))
    parser = StageWorkflow(SELECT, args_file=str(place / "overlay.json"), step=16).parser
    assert (parser["step"], parser["psi"]) == (16, 1.6)
    assert "probability" not in parser, "that is of other stages"


def test_it_runs_as_monai_runs_workflows_of_others(place):
    options = {"dataset_dir": "my_images", "ckpt": "weights.pt", "amp": "false", **QUICK}
    hook = sys.excepthook
    with as_before(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file", category=UserWarning)
        run_workflow("monai_kwtl.StageWorkflow", config_file=str(SELECT), output_dir="out", **options)
        assert sys.excepthook is hook, "a program of somebody else keeps its hooks"
    made = json.loads((place / "out" / "selection.json").read_text())["created_with"]
    assert made["exact"] is False and made["step"] == 16


def test_on_the_command_line_a_mistake_is_one_line(place, capsys):
    with as_before(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file", category=UserWarning)
        sys.argv = ["-m", "run_workflow", "--workflow_name", "monai_kwtl.StageWorkflow"]
        sys.argv += ["--config_file", str(SELECT), "--budgte=3"]
        with pytest.raises(KWTLError) as error:
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        sys.excepthook(error.type, error.value, error.tb)
    assert capsys.readouterr().err == "error: unknown option --budgte; did you mean --budget?\n"

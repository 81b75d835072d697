"""Flat options: which values a stage takes, which it refuses before it computes anything, and the words for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stage_process import CONFIGS

from monai_kwtl.bundle.options import _CHECKS, check_options, checked_options
from monai_kwtl.errors import KWTLError, as_bool, check_number, check_whole_number

STAGES = [path for path in sorted(CONFIGS.glob("*.json")) if path.name != "metadata.json"]


@pytest.mark.parametrize("config", STAGES, ids=lambda path: path.stem)
def test_defaults_are_accepted(config: Path):
    check_options(json.loads(config.read_text()))


def test_every_checked_name_is_a_option_of_some_stage():
    files = [json.loads(config.read_text()) for config in STAGES]
    names = {name for config in files for key in ("_desc_", "+_desc_") for name in config.get(key, {})}
    assert set(_CHECKS) <= names


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", -1, "seed must be a whole number, at least 0, got -1"),
        ("seed", True, "got True"),
        ("steps", None, "got None"),
        ("steps", 2.0, "got 2.0"),
        ("tile", "1e3", "got '1e3'"),
        ("decay", 1.5, "decay must be a number from 0 to 1, got 1.5"),
        ("warm_up", -1, "warm_up must be a whole number, at least 0, got -1"),
        ("flips", 8, "flips must be true or false, got 8"),
        ("learning_rate", 0, "learning_rate must be a number above 0, got 0"),
        ("learning_rate", float("inf"), "got inf"),
        ("learning_rate", False, "got False"),
        ("weight_decay", -1e-9, "weight_decay must be a number from 0 on, got -1e-09"),
        ("psi", "nan", "got 'nan'"),
        ("report", "yes", "report must be true or false, got 'yes'"),
        ("max_memory", 0.5, "max_memory must be a number from 0.8 on, got 0.5"),
        ("amp", 2, "amp must be auto, true or false, got 2"),
        ("adapt_norm", "batch", "adapt_norm must be true or false, got 'batch'"),
        ("labels", 7, r"labels must be a path, got the number 7; put \./ before a name like that\.$"),
        ("labels", True, r"labels must be a path, got True\.$"),
        ("labels", ["a", "b"], r"labels must be a path, got \['a', 'b'\]\.$"),
    ],
)
def test_a_senseless_value_is_refused_by_the_name_of_its_option(name, value, words):
    with pytest.raises(KWTLError, match=f"^{name} must be .*{words.removeprefix(name + ' must be ')}"):
        check_options({"stage": "any", name: value}, {"flips": False, "report": True})


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 0, "steps": np.int64(3), "learning_rate": 1, "weight_decay": 0, "psi": 1.6},
        {"max_memory": None, "tile": None},
        {"max_memory": 2},
        {"report": "False", "resume": 1, "amp": "auto", "adapt_norm": "transductive"},
        {"labels": None, "ckpt": Path("model.pt"), "dataset_dir": "2023"},
        {"crop": "$256 if @schedule == 'paper' else 128", "steps": "@epochs"},
        {"of another kind": -1, "threshold": "left to the stage"},
    ],
)
def test_what_makes_sense_passes(options):
    assert check_options(options).keys() == options.keys()


def test_truth_values_are_typed_by_the_defaults_of_the_config_and_other_values_stay():
    given = {"dataset_dir": "2023", "report": "False", "overwrite": 1, "amp": "true", "adapt_norm": "transductive"}
    typed = checked_options(given | {"budget": 3, "network_def#features": [4, 8]}, CONFIGS / "select.json")
    assert typed == given | {
        "report": False,
        "overwrite": True,
        "amp": True,
        "budget": 3,
        "network_def#features": [4, 8],
    }
    assert type(typed["overwrite"]) is bool


def test_options_of_other_stages_pass_only_in_an_overlay(tmp_path):
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"threshold": 140, "probability": 0.4}))
    options = {"threshold": 140, "probability": 0.4}
    assert checked_options(options, CONFIGS / "inference.json", str(overlay)) == {"probability": 0.4}
    with pytest.raises(KWTLError, match="unknown option --threshold"):
        checked_options(options, CONFIGS / "inference.json")
    overlay.write_text(json.dumps({"treshold": 140}))
    with pytest.raises(KWTLError, match="unknown option --treshold"):
        checked_options({"treshold": 140}, CONFIGS / "inference.json", str(overlay))


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("FALSE", False), (0, False), (1, True), (True, True)])
def test_truth_has_several_spellings(value, expected):
    assert as_bool(value, "report") is expected


def test_numbers_are_returned_as_floats():
    assert check_number("share", np.float32(0.5), 0, 1) == 0.5
    assert type(check_number("share", 1, 0, 1)) is float


@pytest.mark.parametrize(
    ("value", "limits", "words"),
    [
        (1.5, {"low": 0, "high": 1}, "share must be a number from 0 to 1, got 1.5."),
        (-0.1, {"low": 0, "high": 1}, "share must be a number from 0 to 1, got -0.1."),
        (2, {"low": 2, "above": True}, "share must be a number above 2, got 2."),
        (float("nan"), {"low": 0}, "share must be a number from 0 on, got nan."),
        (10**400, {"low": 0, "high": 1}, "share must be a number from 0 to 1, got 1000"),
    ],
)
def test_numbers_out_of_range_are_refused(value, limits, words):
    with pytest.raises(KWTLError) as error:
        check_number("share", value, **limits)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("value", [0, 1.0, "1", None, True, float("nan")])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(KWTLError, match="count must be a whole number, at least 1, got "):
        check_whole_number("count", value, 1)

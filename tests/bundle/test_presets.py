"""What the settings of a stage are where they are not given."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser
from stage_process import CONFIGS

from monai_kwtl.bundle.presets import PRESETS, default_strategy, preset_value
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import loss_function
from monai_kwtl.selection.strategies import STRATEGIES

SETTINGS = {"select": ("strategy",), "train": ("loss", "learning_rate", "falling_rate")}
CHOSEN = {"strategy": "chosen_strategy"}  # where a part of the config chooses
ITEMS = ({"height": 48, "width": 60},) * 3


def settings_of(stage: str, **given: object) -> dict[str, object]:
    parser = ConfigParser()
    parser.read_config(CONFIGS / f"{stage}.json")
    parts = {"pool": ITEMS, "chosen_strategy::network": None} if stage == "select" else {}
    for name, value in {**parts, **given}.items():
        parser[name] = value
    return {name: parser.get_parsed_content(CHOSEN.get(name, name)) for name in SETTINGS[stage]}


def test_the_paper_is_one_option_away():
    assert settings_of("select", preset="paper") == {"strategy": "top_k"}
    assert settings_of("train", preset="paper") == {"loss": "weighted", "learning_rate": 1e-4, "falling_rate": False}


@pytest.mark.parametrize("stage", SETTINGS)
def test_without_a_preset_it_is_that_of_the_project(stage):
    assert settings_of(stage) == {name: PRESETS["kwtl"][name] for name in SETTINGS[stage]}
    assert settings_of(stage) != settings_of(stage, preset="paper")


def test_what_is_given_goes_before_the_preset():
    assert settings_of("select", preset="paper", strategy="coverage") == {"strategy": "coverage"}
    assert settings_of("train", loss="weighted")["loss"] == "weighted"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_what_there_is(preset):
    assert preset_value(preset, "strategy") in STRATEGIES
    assert callable(loss_function("auto", (), preset_value(preset, "loss")))
    assert isinstance(preset_value(preset, "falling_rate"), bool)
    assert 0 < preset_value(preset, "learning_rate") < 0.01


def test_presets_settle_the_same_settings_and_no_others():
    assert {frozenset(preset) for preset in PRESETS.values()} == {frozenset(sum(SETTINGS.values(), ()))}
    for stage, names in SETTINGS.items():
        found, paper = settings_of(stage), settings_of(stage, preset="paper")
        assert all(found[name] != paper[name] for name in names)


@pytest.mark.parametrize(
    "items",
    [[{"height": 5000, "width": 5000}], [{"height": 1024, "width": 1024}] * 300],
    ids=["a large image", "many windows"],
)
def test_windows_too_many_to_compare_are_drawn_and_that_is_said(items, caplog):
    caplog.set_level("INFO", logger="monai_kwtl")
    assert default_strategy("kwtl", items, 256, 30) == "stratified_random"
    assert "too many to compare; a larger --step" in caplog.text
    caplog.clear()
    assert default_strategy("kwtl", items, 256, 128) == PRESETS["kwtl"]["strategy"]
    assert default_strategy("paper", items, 256, 30) == "top_k"
    assert not caplog.text


@pytest.mark.parametrize("preset", ["Paper", None, 1, ["paper"]])
def test_another_preset_is_refused_in_one_line(preset):
    with pytest.raises(KWTLError, match="preset must be kwtl or paper, got"):
        preset_value(preset, "loss")

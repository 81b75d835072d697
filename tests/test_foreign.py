"""Values from outside are data: nothing in them is evaluated, and paths are meant as they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.foreign import TRAINING_OPTIONS, check_data, harmless_knob, training_options
from monai_kwtl.networks import FCRN
from monai_kwtl.workflow import stage_workflow

BUNDLE = Path(__file__).resolve().parent.parent / "bundles" / "kwtl"
EVALUATED = ["$1 + 1", " $x", "@imports", "%configs/train.json::steps", "x.__class__", "\n@seed"]


def hidden_in(value: object) -> list[object]:
    """The value by itself, and inside lists and objects, as a value and as a key."""
    forms: list[object] = [value, [value], {"a": value}, [[{"b": [1, value]}]]]
    return forms + ([{value: 1}, [{"a": {value: None}}]] if isinstance(value, str) else [])


@pytest.mark.parametrize("text", EVALUATED)
def test_what_a_config_evaluates_is_refused_wherever_it_stands(text):
    for form in hidden_in(text):
        with pytest.raises(KWTLError, match="steps"):
            check_data(form, "steps")


@pytest.mark.parametrize("key", ["_target_", "_mode_", "_requires_", "_disabled_", "_desc_", "a#b", "a::b", "__x__"])
def test_keys_that_a_config_knows_are_refused(key):
    for form in hidden_in({key: "torch.zeros"}):
        with pytest.raises(KWTLError, match="key"):
            check_data(form, "params")


@pytest.mark.parametrize("text", ["img $3", "a@b.org", "50 %", "_x", "a_b__", "#1", "Zürich"])
def test_a_sign_elsewhere_in_a_text_means_nothing(text):
    assert check_data({"a": [text]}, "a") == {"a": [text]}


def test_depth_size_and_kind_have_bounds():
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    for value in (deep, [0] * 200_000, float("nan"), 10**1000, object(), {1: 2}, "a\x00b", "\ud800"):
        with pytest.raises(KWTLError):
            check_data(value, "a")


@pytest.mark.parametrize("name", TRAINING_OPTIONS)
def test_options_of_a_training_are_of_their_type_and_range(name):
    wrong = ["$print(1)", "@seed", {"_target_": "os.system"}, [1], -1, 1e99, float("nan"), 10**1000, {}, "x"]
    for value in wrong:
        with pytest.raises(KWTLError, match=name):
            training_options({name: value})
    assert training_options({name: None}) == {}


def test_options_that_make_sense_pass_and_unknown_ones_name_the_nearest():
    given = {"steps": 5, "learning_rate": 0.01, "amp": "auto", "foreground_weight": "pool", "held_out": 0, "seed": 3}
    assert training_options(given | {"tracking": "None", "model": "kwtl"}) == given
    assert training_options({"from_last": "true", "rescore": False}) == {"from_last": True, "rescore": False}
    for name in ("stpes", "bundle_path", "imports", "network_def", "train::trainer::max_epochs", "$x"):
        with pytest.raises(KWTLError, match="unknown option"):
            training_options({name: 1})


@pytest.mark.parametrize("name", ["$x", "@x", "%x", "a#b", "_target_", "${x}", "@#x"])
def test_a_folder_of_any_name_reaches_a_stage_as_it_is_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in (Path(name), Path(name, "labels")):
        folder.mkdir()
        pixels = rng.integers(0, 2 if folder.name == "labels" else 255, (40, 50)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "$a.png")
    os.rename(Path(name, "labels"), Path(f"{name}_masks"))
    torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), "$w.pt")
    workflow = stage_workflow(
        BUNDLE, "train", set_logging=False, dataset_dir=Path(name), labels=Path(f"{name}_masks"), ckpt=Path("$w.pt"),
        output_dir=Path(f"{name}_out"), steps=1, crop=16, batch_size=1, tensorboard=False, device="cpu", amp=False,
    )  # fmt: skip
    assert [item["name"] for item in workflow.parser.get_parsed_content("pool")] == ["$a.png"]
    workflow.run()
    note = json.loads(Path(f"{name}_out", "model.json").read_text())
    assert note["steps"] == 1 and Path(f"{name}_out", "model.pt").is_file()


@pytest.mark.parametrize(
    "value", ["$__import__('os').mkdir('made')", "@imports", [{"_target_": "os.mkdir", "path": "made"}]]
)
def test_a_knob_that_is_code_ends_a_stage_before_it_is_read(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("steps", "dataset_dir", "rescale", "device"):
        with pytest.raises(KWTLError, match=name):
            stage_workflow(BUNDLE, "train", set_logging=False, **{name: value})
    assert os.listdir() == []
    assert harmless_knob("device", torch.device("cpu")) == torch.device("cpu")

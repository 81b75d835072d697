"""Values from outside are data: nothing in them is evaluated, and paths are meant as they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_kwtl.bundle.failures import message_for_user
from monai_kwtl.bundle.foreign import TRAINING_OPTIONS, check_data, harmless, training_options
from monai_kwtl.bundle.workflow import StageWorkflow
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.fcrn import FCRN

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "kwtl"
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


def stage_of(stage, **options):
    """A stage of the bundle whose options came from outside."""
    workflow = StageWorkflow(BUNDLE / "configs" / f"{stage}.json", logging_file=False, **harmless(**options))
    workflow.initialize()
    return workflow


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
    workflow = stage_of(
        "train", dataset_dir=Path(name), labels=Path(f"{name}_masks"), ckpt=Path("$w.pt"),
        output_dir=Path(f"{name}_out"), steps=1, crop=16, batch_size=1, tensorboard=False, device="cpu", amp=False,
    )  # fmt: skip
    assert [item["name"] for item in workflow.parser.get_parsed_content("pool")] == ["$a.png"]
    workflow.run()
    note = json.loads(Path(f"{name}_out", "model.json").read_text())
    assert note["steps"] == 1 and Path(f"{name}_out", "model.pt").is_file()


@pytest.mark.parametrize(
    "value", ["$__import__('os').mkdir('made')", "@imports", [{"_target_": "os.mkdir", "path": "made"}]]
)
def test_a_option_that_is_code_ends_a_stage_before_it_is_read(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("steps", "dataset_dir", "rescale", "device"):
        with pytest.raises(KWTLError, match=name):
            stage_of("train", **{name: value})
    assert os.listdir() == []
    assert harmless(device=torch.device("cpu")) == {"device": torch.device("cpu")}


def leaves(document: object, path: tuple = ()) -> list[tuple]:
    """Where the numbers and texts of a document stand."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    found = [leaf for key, value in pairs for leaf in leaves(value, (*path, key))]
    return found if isinstance(document, dict | list) else [path]


def changed(document: object, path: tuple, value: object) -> object:
    copied = json.loads(json.dumps(document))
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copied


@pytest.fixture(scope="module")
def finished_round(tmp_path_factory):
    """A folder of images with project.json, a selection, masks, and weights with their note."""
    folder = tmp_path_factory.mktemp("round")
    rng, images = np.random.default_rng(0), folder / "images"
    for place in (images, folder / "masks"):
        place.mkdir()
        for number in range(2):
            pixels = rng.integers(0, 2 if place.name == "masks" else 255, (40, 50)).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), folder / "w.pt")
    common = {"dataset_dir": images, "device": "cpu", "amp": False}
    stage_of(
        "select", **common, ckpt=folder / "w.pt", pretext="skip", output_dir=folder / "select", window=16,
        step=8, strategy="top_k", tensorboard=False, report=False,
    ).run()  # fmt: skip
    stage_of(
        "train", **common, ckpt=folder / "w.pt", labels=folder / "masks", output_dir=folder / "train",
        selection=folder / "select" / "selection.json", steps=1, crop=16, batch_size=1, tensorboard=False,
    ).run()  # fmt: skip
    assert json.loads((images / "project.json").read_text())["rounds"][0]["model"]
    return folder


@pytest.mark.parametrize("name", ["images/project.json", "select/selection.json", "train/model.json"])
def test_files_that_a_stage_reads_are_not_code(name, finished_round, tmp_path):
    made, path = tmp_path / "made", finished_round / name
    original = path.read_text()
    call = f"$__import__('pathlib').Path({str(made)!r}).touch()"
    component = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(made)]}}
    document, read = json.loads(original), 0
    places = leaves(document)
    try:
        for place in places[:: max(1, len(places) // 12)]:
            for value in (call, component, "%configs/train.json::steps"):
                path.write_text(json.dumps(changed(document, place, value)))
                try:
                    workflow = stage_of(
                        "train", dataset_dir=finished_round / "images", device="cpu",
                        labels=finished_round / "masks", selection=finished_round / "select" / "selection.json",
                    )  # fmt: skip
                    for item in ("ckpt", "support", "settings"):
                        workflow.parser.get_parsed_content(item)
                    read += 1
                except Exception as error:  # MONAI wraps ours
                    assert message_for_user(error), error
                assert not made.exists()
    finally:
        path.write_text(original)
    assert read or name == "select/selection.json"


def test_a_checkpoint_with_texts_in_it_is_no_code(tmp_path):
    made = tmp_path / "made"
    state = FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict()
    for content in (
        {"model": state, "note": f"$open({str(made)!r}, 'w')"},
        {**state, "x": f"$open({str(made)!r}, 'w')"},
    ):
        torch.save(content, tmp_path / "w.pt")
        for ckpt in (tmp_path / "w.pt", tmp_path / f"$open({made.name!r}, 'w')"):
            workflow = stage_of("train", ckpt=ckpt, dataset_dir=tmp_path, device="cpu")
            try:
                workflow.parser.get_parsed_content("network")
            except Exception as error:
                assert message_for_user(error), error
    assert not made.exists() and not Path(made.name).exists()

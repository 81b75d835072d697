"""``kwtl select`` and the other stages do what ``python -m monai.bundle run`` does with the same options."""

from __future__ import annotations

import json

import pytest
from bad_input.cases import make_sound
from stage_here import as_before, command, random_weights
from stage_process import CONFIGS

from monai_kwtl.cli import main
from monai_kwtl.errors import KWTLError

QUICK = {"ckpt": "weights.pt", "pretext": "skip", "window": 32, "step": 16, "report": "false", "tensorboard": "false"}
QUICK |= {"device": "cpu", "amp": "false"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of labelled images and weights, which is the current one, and no bundle."""
    make_sound(tmp_path)
    random_weights(tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kwtl(*arguments: str) -> int:
    with as_before():
        return main.main(list(arguments))


def flags(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_every_stage_of_the_bundle_is_a_command():
    assert set(main.STAGES) == {
        path.stem for path in CONFIGS.glob("*.json") if "stage" in json.loads(path.read_text()).get("_desc_", {})
    }


@pytest.mark.parametrize("given", ["name", "word"])
def test_a_selection_is_that_of_monai_bundle(place, capsys, given):
    images = ["my_images"] if given == "word" else ["--dataset_dir", "my_images"]
    assert kwtl("select", *images, "--output_dir", "ours", "--project=false", *flags(QUICK)) == 0
    ended = command("--config_file", CONFIGS / "select.json", dataset_dir="my_images", output_dir="theirs", **QUICK)
    assert ended.status == 0, ended.err
    ours, theirs = ((place / name / "selection.json").read_bytes() for name in ("ours", "theirs"))
    assert json.loads(ours)["regions"] and ours == theirs
    said = capsys.readouterr()
    assert said.err == "" and " INFO " not in said.out


def test_an_overlay_counts_less_than_what_is_given(place):
    (place / "set.json").write_text(json.dumps({"window": 32, "step": 28, "probability": 0.4}))
    options = QUICK | {"args_file": "set.json"}
    del options["window"]
    assert kwtl("select", "my_images", *flags(options)) == 0
    made = json.loads((place / "output" / "my_images" / "select" / "selection.json").read_text())["created_with"]
    assert (made["window"], made["step"]) == (32, 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("select --budgte 3", "unknown option --budgte; did you mean --budget?"),
        ("train --budget 3", "unknown option --budget"),
        ("select --psi -1", "psi must be a number"),
        ("select my_images more", "takes one folder of images, got 'my_images' and 'more'"),
        ("select my_images --dataset_dir more", "takes one folder of images, got 'my_images' and 'more'"),
        ("meta_train my_images", "takes options only"),
        ("select $x", "there is no folder .x"),
        ("select 2023_01", "there is no folder 2023_01"),
        ("select --config_file x.json", "for another config: python -m monai.bundle run"),
        ("select --bundle nowhere", "there is no bundle in nowhere"),
        ("select --args_file --report", "--args_file needs a path"),
    ],
)
def test_mistakes_are_named_before_anything_is_computed(place, arguments, words):
    with pytest.raises(Exception) as error:  # MONAI wraps what parts of a config raise
        kwtl(*arguments.split())
    cause = error.value
    while not isinstance(cause, KWTLError):
        cause = cause.__cause__
    assert words.replace(".x", "$x") in str(cause)
    assert not (place / "output").exists()


def test_configs_in_the_current_folder_are_not_run(place, capsys):
    (place / "configs").mkdir()
    for name in ("metadata.json", "select.json"):
        (place / "configs" / name).write_text("{\"imports\": [\"$open('proof', 'w')\"]}")
    assert kwtl("select", "my_images", *flags(QUICK)) == 0
    assert not (place / "proof").exists()


@pytest.mark.parametrize("stage", list(main.STAGES))
def test_the_help_of_a_stage_is_what_its_config_says(place, capsys, stage):
    assert kwtl(stage, "--help") == 0
    out, err = capsys.readouterr()
    content = json.loads((CONFIGS / f"{stage}.json").read_text())
    said = "".join(out.split())
    assert err == "" and "".join(content["_desc_"]["stage"].split()) in said
    for name, text in content["_desc_"].items():
        assert name == "stage" or f"--{name}" in out and "".join(text.split()) in said, name
    assert "seed VALUE" not in out or "(default:0)" in said


def test_a_stage_of_the_command_line_leaves_no_warning_of_its_own(place, recwarn):
    assert kwtl("inference", "my_images", "--ckpt", "weights.pt", "--device", "cpu", "--amp", "false") == 0
    assert [str(one.message) for one in recwarn] == []

"""Training stages as processes of their own: killed at any point and resumed, they leave the weights of one run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stage_process import CONFIGS, ROOT, Death, Stage, run

from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.synthetic import make_pool

STAGES = ("pretext", "train", "meta_train")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two pools and start weights."""
    folder = tmp_path_factory.mktemp("stages")
    make_pool(folder / "cells", "fluorescence", count=6, height=65, width=90, seed=1)
    make_pool(folder / "nuclei", "brightfield", count=3, height=80, width=64, seed=2)
    torch.manual_seed(0)
    torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), folder / "start.pt")
    return folder


def stage_options(stage, place):
    """Options that make a stage take a second."""
    common = {"crop": 32, "checkpoint_every": 2, "device": "cpu", "tensorboard": "false"}
    if stage == "meta_train":
        own = {"sources": f"[{place / 'cells'}, {place / 'nuclei'}]", "meta_epochs": 6, "inner_steps": 2, "crops": 2}
        return {**common, **own}
    common |= {"dataset_dir": place / "cells", "ckpt": place / "start.pt", "steps": 6, "batch_size": 2}
    return common | ({"validate_every": 2, "falling_rate": "true"} if stage == "train" else {})


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def assert_same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.fixture(scope="module")
def whole(place):
    """Folder of what each stage leaves when nothing disturbs it, made on first use."""
    made: dict[str, Path] = {}

    def of(stage):
        if stage not in made:
            folder = place / f"whole_{stage}"
            ended = run(stage, folder / "log", output_dir=folder, **stage_options(stage, place))
            assert ended.status == 0, ended.err
            made[stage] = folder
        return made[stage]

    return of


def survive(stage, options, deaths, log):
    """Run and resume a stage that dies so many times, and at last does not; return the steps it continued after."""
    continued = []
    for death in deaths:
        if isinstance(death, Death):
            ended = run(stage, log, death, **options)
            assert ended.status == -9, ended
        else:
            ended = Stage(stage, log, **options).kill_after(death)
            assert ended.status in (-9, 0), ended.err
            if ended.status == 0:  # too quick to be killed: begin anew, without it
                shutil.rmtree(options["output_dir"])
        lines = [line for line in ended.out.splitlines() if line.startswith("continuing after step ")]
        continued.append(int(lines[0].split()[3]) if lines else 0)
    ended = run(stage, log, **options)
    assert ended.status == 0, ended.err
    return continued


def files(stage):
    """How many files a stage commits before its first checkpoint."""
    return 1 if stage == "pretext" else 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_continues_to_the_same_weights(stage, place, whole, tmp_path):
    deaths = {
        "moment": [np.random.default_rng(5).uniform(0.6, 1.6)],  # at any moment, however far it is by then
        "files": [
            Death("half", 2),  # in a checkpoint, of which there is one before
            Death("after", files(stage) + 4),  # between the weights and the note on them, or after both
        ],
    }
    for name, those in deaths.items():
        options = stage_options(stage, place) | {"output_dir": tmp_path / name, "resume": "true"}
        survive(stage, options, those, tmp_path / "log")
        assert_same(weights(tmp_path / name), weights(whole(stage)))
        assert {p.name for p in (tmp_path / name).iterdir()} <= {"model.pt", "model.json", "pseudo_labels.png"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_while_it_writes_anything_continues_to_the_same_weights(stage, place, whole, tmp_path):
    options = stage_options(stage, place) | {"output_dir": tmp_path / "out", "resume": "true"}
    first = files(stage)
    deaths = [
        Death("half", 1),  # nothing is there to continue from
        Death("after", first + 1),  # step 2 is there
        Death("half", 1),  # step 4 is lost
        Death("before", first + 1),  # again
        Death("after", first + 2),  # 4 and 6 are there
        Death("before", first + 1),  # the weights were about to be written
        Death("after", first + 1),  # they are there, the note on them is not
        Death("after", first + 2),  # the note too, the checkpoint has not been removed
    ]
    assert survive(stage, options, deaths, tmp_path / "log") == [0, 0, 2, 2, 2, 6, 6, 6]
    assert_same(weights(tmp_path / "out"), weights(whole(stage)))
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"model.pt", "model.json", "pseudo_labels.png"}
    notes = [json.loads((folder / "model.json").read_text()) for folder in (tmp_path / "out", whole(stage))]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_stage_that_is_resumed_changes_nothing(stage, place, whole):
    folder = whole(stage)
    before = {name: (folder / name).stat().st_mtime_ns for name in ("model.pt", "model.json")}
    ended = run(stage, folder / "log", output_dir=folder, resume="true", **stage_options(stage, place))
    assert ended.status == 0
    assert f"{folder / 'model.pt'} is finished: nothing to do" in ended.out
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_are_there_are_neither_overwritten_nor_resumed_with_other_settings(stage, place, whole):
    folder = whole(stage)
    before = (folder / "model.pt").read_bytes()
    ended = run(stage, folder / "log", output_dir=folder, **stage_options(stage, place))
    assert ended.status == 1
    assert ended.error.endswith("model.pt already exists: choose another --output_dir or add --overwrite true")
    ended = run(stage, folder / "log", output_dir=folder, resume="true", seed=7, **stage_options(stage, place))
    assert ended.status == 1
    assert "was made with other settings, images or weights" in ended.error
    assert "Traceback" not in ended.err
    assert (folder / "model.pt").read_bytes() == before


def test_weights_are_overwritten_where_that_is_asked_for(place, whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole("pretext"), folder)
    options = stage_options("pretext", place) | {"output_dir": folder, "overwrite": "true"}
    assert run("pretext", tmp_path / "log", **options | {"seed": 7}).status == 0
    other = weights(folder)
    assert any(not torch.equal(value, weights(whole("pretext"))[name]) for name, value in other.items())
    assert run("pretext", tmp_path / "log", **options, resume="true").status == 0
    assert_same(weights(folder), weights(whole("pretext")))


@pytest.fixture(scope="module")
def interrupted(place, tmp_path_factory):
    """Folder of a train stage that was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("interrupted")
    ended = run("train", folder / "log", Death("after", 1), output_dir=folder, **stage_options("train", place))
    assert ended.status == -9, ended.err
    return folder


@pytest.mark.parametrize("changed", ["learning_rate", "ckpt", "labels", "amp"])
def test_a_checkpoint_of_other_settings_is_refused(changed, place, interrupted, tmp_path):
    value = {"learning_rate": 2e-3, "amp": "true"}.get(changed, tmp_path / changed)
    if changed == "ckpt":
        torch.manual_seed(1)
        torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), value)
    if changed == "labels":  # of one pixel
        shutil.copytree(place / "cells" / "labels", value)
        path = sorted(value.iterdir())[0]
        mask = np.array(Image.open(path))
        mask[0, 0] = 255 - mask[0, 0]
        Image.fromarray(mask).save(path)
    before = (interrupted / "checkpoint.pt").read_bytes()
    options = stage_options("train", place) | {"output_dir": interrupted, "resume": "true", changed: value}
    ended = run("train", tmp_path / "log", **options)
    assert ended.status == 1
    assert ended.error.startswith("error: ")
    assert "checkpoint.pt was made with other settings, images or weights: give the same ones" in ended.error
    assert (interrupted / "checkpoint.pt").read_bytes() == before


def test_a_truncated_checkpoint_is_said_and_not_used(place, whole, interrupted, tmp_path):
    options = stage_options("train", place) | {"output_dir": tmp_path / "out", "resume": "true"}
    path = tmp_path / "out" / "checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes((interrupted / "checkpoint.pt").read_bytes()[:-100])
    ended = run("train", tmp_path / "log", **options)
    assert ended.status == 0
    assert f"{path} is not a whole checkpoint; the stage begins anew" in ended.out
    assert_same(weights(tmp_path / "out"), weights(whole("train")))


@pytest.mark.slow
def test_the_command_of_the_readme_gives_the_same_weights_in_a_process_that_shares_nothing(place, whole, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", CONFIGS / "train.json"]
    for name, value in (stage_options("train", place) | {"output_dir": tmp_path / "out"}).items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    assert_same(weights(tmp_path / "out"), weights(whole("train")))

"""Bad input of every kind gets one clear line that names it and exit status 1, and changes nothing of the user's."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from bad_input.cases import ALL, SOUND, Case, make_sound
from bad_input.images import IMAGES
from bad_input.masks import MASKS, REGIONS
from bad_input.settings import OUTPUT, SELECTING, WEIGHTS
from bad_input.training import META_TRAINING, TUNING
from stage_here import random_weights, run
from stage_process import ROOT

# of what has been selected and trained, and what of it is still to be noted
NOTES = {"my_images/project.json", "my_images/.project.json.lock", "my_images/.project.json.expected"}
RESULTS = ("model.pt", "model.json", "selection.json", "selection.csv", "evaluation.json", "evaluation.csv")
CASES = [*IMAGES, *SELECTING, *WEIGHTS, *OUTPUT, *MASKS, *REGIONS, *TUNING, *META_TRAINING]
# each case in one of its stages, in turn
RUNS = [(case, case.stages[number % len(case.stages)]) for number, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory):
    """A folder with which every stage works: labelled images, and weights."""
    folder = tmp_path_factory.mktemp("sound")
    make_sound(folder)
    random_weights(folder / "weights.pt")
    return folder


@pytest.fixture
def place(sound_folder, tmp_path, monkeypatch):
    """A copy of it, which is the current folder."""
    folder = tmp_path / "place"
    shutil.copytree(sound_folder, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the same words on every machine
    return folder


def contents(folder: Path) -> dict[str, str]:
    """What each file and link below a folder holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("stage", ALL)
def test_what_the_cases_depart_from_is_sound(stage, place):
    before = contents(place)
    ended = run(stage, **SOUND[stage])
    assert (ended.status, ended.err) == (0, "")
    after = contents(place)
    assert before.items() <= after.items()
    assert all(name.startswith("out/") for name in after.keys() - before.keys() - NOTES)


@pytest.mark.parametrize(("case", "stage"), [pytest.param(*run, id=f"{run[1]}: {run[0].title}") for run in RUNS])
def test_bad_input_gets_a_line_that_names_it_and_changes_nothing(case: Case, stage: str, place: Path):
    case.prepare(place)
    before = contents(place)
    ended = run(stage, **case.options(stage))
    if case.status:
        assert ended.err.startswith("error: ") and ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
    else:
        assert ended.err == ""
    said = ended.err.replace(f"{ROOT}/", "") if case.status else ended.out
    assert re.search(rf"(?<![\w/]){re.escape(case.names)}(?!\w)", said), said
    assert ended.status == case.status
    after = contents(place)
    assert before.items() <= after.items(), "something of the user's has changed"
    new = after.keys() - before.keys() - (set() if case.status else NOTES)
    assert all(name.startswith("out/") for name in new), "files at a place that was not named"
    if case.status:
        results = {name for name in new if Path(name).name in RESULTS}
        results |= {name for name in new if stage == "inference" and name.endswith(".png")}
        assert not results, "results of a run that failed"


def test_every_stage_gets_bad_input():
    assert {stage for _, stage in RUNS} == set(ALL)

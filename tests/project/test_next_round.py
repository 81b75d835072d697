"""Which weights the next training begins with, and where its model goes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from stage_here import random_weights, run

from monai_kwtl.data.pool import load_pool, pool_hash
from monai_kwtl.project.history import note_selection
from monai_kwtl.project.next_round import stage_of_round, starting_weights
from monai_kwtl.synthetic import make_pool

QUICK = {"window": 32, "step": 16, "report": "false", "tensorboard": "false", "budget_windows": 3}


@pytest.fixture
def items(tmp_path, monkeypatch):
    """A pool of three images in the current folder."""
    monkeypatch.chdir(tmp_path)
    make_pool("cells", "fluorescence", count=3, height=65, width=90, seed=1)
    return load_pool("cells", with_labels=False)


def tuned(folder: str, pool: str) -> str:
    """Weights that pretext tuning may have left in a folder."""
    path = Path(folder, "pretext", "model.pt")
    path.parent.mkdir(parents=True)
    random_weights(path)
    path.with_suffix(".json").write_text(json.dumps({"pool": pool}))
    return str(path)


def test_a_training_begins_with_the_pretext_weights_of_these_images(items, caplog):
    caplog.set_level(logging.INFO, logger="monai_kwtl")
    own = "bundle.pt"
    assert starting_weights(items, "cells", "output/cells/train", None, own) == own and not caplog.messages
    beside = tuned("output/cells", pool_hash(items))
    assert starting_weights(items, "cells", "output/cells/train", None, own) == beside
    chosen = tuned("elsewhere", pool_hash(items))
    for selection in ("elsewhere", "elsewhere/selection.json"):
        assert starting_weights(items, "cells", "output/cells/train", selection, own) == chosen
    assert caplog.messages[-1] == f"training begins with the weights of pretext tuning, {chosen}"


@pytest.mark.parametrize("note", ['{"pool": "of other images"}', "[]", "{", None])
def test_weights_of_other_images_are_passed_over(items, note):
    path = Path(tuned("output/cells", pool_hash(items))).with_suffix(".json")
    path.unlink()
    if note is not None:
        path.write_text(note)
    assert starting_weights(items, None, "output/cells/train", None, "bundle.pt") == "bundle.pt"


def test_weights_without_their_note_or_a_note_without_its_weights_are_passed_over(items):
    Path(tuned("output/cells", pool_hash(items))).unlink()
    assert starting_weights(items, None, "output/cells/train", None, "bundle.pt") == "bundle.pt"


def test_the_selection_of_the_first_round_tells_where_they_are(items):
    random_weights(Path("start.pt"))
    options = {"dataset_dir": "cells", "ckpt": "start.pt", "pretext": "skip", "output_dir": "chosen"}
    assert run("select", **QUICK | options).status == 0
    path = tuned("chosen", pool_hash(items))
    assert os.path.samefile(starting_weights(items, "cells", "output/cells/train", None, "bundle.pt"), path)
    assert starting_weights(items, None, "output/cells/train", None, "bundle.pt") == "bundle.pt"


def test_without_masks_of_rounds_a_training_has_its_plain_name(items, tmp_path):
    assert stage_of_round("train", None, None) == "train"
    assert stage_of_round("train", "cells", None) == "train"
    assert stage_of_round("train", "cells", "cells/labels") == "train"  # whole images
    assert stage_of_round("train", "cells", tmp_path / "missing") == "train"


def test_a_select_stage_and_a_training_go_together(items, tmp_path):
    """select tunes by pretext, and train.json begins with what it left, without being told."""
    random_weights(Path("start.pt"))
    options = {"dataset_dir": "cells", "ckpt": "start.pt", "pretext": "always", "pretext_steps": 2}
    ended = run("select", **QUICK | options)
    assert ended.status == 0, ended.err
    ended = run("train", dataset_dir="cells", steps=2, crop=32, batch_size=2, tensorboard="false", held_out=0)
    assert ended.status == 0, ended.err
    assert "training begins with the weights of pretext tuning, output/cells/select/pretext/model.pt" in ended.out
    note_selection("cells", "output/cells/select/selection.json")  # once more changes nothing
    assert len(json.loads(Path("cells/project.json").read_text())["rounds"]) == 1

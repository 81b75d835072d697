"""The select stage as a user runs it: the same command gives the same bytes, wherever, on any kind of image."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from stage_here import random_weights, run

from monai_kwtl.bundle import file_sha256
from monai_kwtl.synthetic import make_pool

QUICK = {"pretext": "skip", "window": 64, "step": 20, "report": "false", "tensorboard": "false"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pool of 3 images, 100 rows and 130 columns, and weights."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pool(folder / "pool", "fluorescence", count=3, height=100, width=130, seed=1)
    random_weights(folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def chosen(place):
    """Bytes of the selection that the pool gives."""
    return select(place / "pool", place / "first", place)


def select(dataset, output, place, **knobs):
    """Run select and return the bytes of its selection.json."""
    ended = run("select", dataset_dir=dataset, output_dir=output, ckpt=place / "model.pt", **QUICK | knobs)
    assert ended.status == 0, ended.err
    return (output / "selection.json").read_bytes()


def regions(selection):
    return [(r["image"], r.get("page"), r["x"], r["y"]) for r in json.loads(selection)["regions"]]


def test_the_same_command_twice_gives_the_same_bytes(place, chosen, tmp_path):
    assert select(place / "pool", tmp_path / "out", place) == chosen
    assert len(json.loads(chosen)["regions"]) == 3


def test_loader_workers_change_nothing(place, chosen, tmp_path):
    assert select(place / "pool", tmp_path / "out", place, num_workers=2) == chosen


def test_names_of_the_folders_change_nothing(place, chosen, tmp_path):
    shutil.copytree(place / "pool", tmp_path / "Zellen von früher")
    assert select(tmp_path / "Zellen von früher", tmp_path / "a folder" / "below", place) == chosen


def _random_masks(labels, rng):
    for path in labels.iterdir():
        mask = (rng.random(np.asarray(Image.open(path)).shape) < 0.5) * np.uint8(255)
        Image.fromarray(mask).save(path)


def _unreadable(labels, rng):
    for path in labels.iterdir():
        path.write_bytes(rng.bytes(300))


def _other_sizes(labels, rng):
    for path in labels.iterdir():
        Image.fromarray(np.zeros((3, 4), dtype=np.uint8)).save(path)


def _other_names(labels, rng):
    for number, path in enumerate(sorted(labels.iterdir())):
        path.rename(labels / f"mask {number}.png")


def _two_of_one(labels, rng):
    path = sorted(labels.iterdir())[0]
    shutil.copy(path, path.with_suffix(".bmp"))


def _none(labels, rng):
    shutil.rmtree(labels)


@pytest.mark.parametrize("poison", [_random_masks, _unreadable, _other_sizes, _other_names, _two_of_one, _none])
def test_labels_of_the_pool_change_nothing(poison, place, chosen, tmp_path, rng):
    shutil.copytree(place / "pool", tmp_path / "pool")
    poison(tmp_path / "pool" / "labels", rng)
    assert select(tmp_path / "pool", tmp_path / "out", place) == chosen


def test_training_from_scratch_knows_no_weights(place, tmp_path):
    options = {"dataset_dir": place / "pool", "steps": 1, "crop": 32, "batch_size": 1, "tensorboard": "false"}
    notes = []
    for number, ckpt in enumerate(("random", "random", place / "model.pt")):
        ended = run("train", output_dir=tmp_path / str(number), ckpt=ckpt, adapt_norm="false", **options)
        assert ended.status == 0, ended.err
        notes.append(json.loads((tmp_path / str(number) / "model.json").read_text()))
    assert notes[0] == notes[1]
    assert [note["start"] for note in notes] == [None, None, file_sha256(place / "model.pt")]
    assert notes[2]["sha256"] == notes[0]["sha256"]  # those of the file are random ones of the same seed

"""Sources are the folders that the user named, read whole and once, and their crops depend on seed and place only."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_kwtl.data import sources as module
from monai_kwtl.data.crops import CropDataset
from monai_kwtl.data.pool import load_pool
from monai_kwtl.data.sources import load_sources, simulated_sources, source_crops, source_folders, sources_hash
from monai_kwtl.errors import KWTLError
from monai_kwtl.synthetic import DOMAINS, make_pool


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two sources, five images of stained nuclei and three of another kind."""
    folder = tmp_path_factory.mktemp("sources")
    make_pool(folder / "nuclei", "fluorescence", count=5, height=101, width=88, seed=3)
    make_pool(folder / "cells", "brightfield", count=3, height=128, width=96, seed=3)
    return folder


@pytest.fixture(autouse=True)
def level(caplog):
    caplog.set_level(logging.INFO, logger="monai_kwtl")


# --- which folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "folders"),
    [
        ("cells", ["cells"]),
        (["a", "b"], ["a", "b"]),  # what fire makes of [a,b]
        (("a", "b"), ["a", "b"]),
        ("[../data/a, b/c]", ["../data/a", "b/c"]),  # what it leaves of paths with a slash
        ("[ 'a b/c' ,\n \"d\" ]", ["a b/c", "d"]),
        ("[one/source]", ["one/source"]),
        ([39, "b5"], ["39", "b5"]),  # a folder whose name is a number
        ("a [old]", ["a [old]"]),
        (Path("x/y"), ["x/y"]),
    ],
)
def test_folders_are_given_as_one_path_or_several(given, folders):
    assert source_folders(given, "out") == [Path(folder) for folder in folders]


@pytest.mark.parametrize("given", ["", [], "[]", "[ , ]", ["", " "]])
def test_no_folder_at_all_is_refused(given):
    with pytest.raises(KWTLError, match=r'no source is given; name folders of labelled images: --sources "\[dirA'):
        source_folders(given, "out")


@pytest.mark.parametrize("again", ["a", "./a", "b/../a"])
def test_a_folder_is_named_once(tmp_path, monkeypatch, again):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(KWTLError, match="the source a is named twice"):
        source_folders(["a", "b", again], "out")


def test_where_none_is_given_there_is_one_of_every_simulated_domain(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(module, "make_pool", lambda folder, kind, **options: made.append((folder, kind, options)))
    folders = source_folders(None, tmp_path)
    assert folders == [tmp_path / "sources" / f"{kind}_0" for kind in DOMAINS]
    assert [(folder, kind) for folder, kind, _ in made] == list(zip(folders, DOMAINS, strict=True))
    assert len(set(DOMAINS)) >= 4


def test_looks_of_a_domain_have_seeds_of_their_own(tmp_path, monkeypatch):
    made = {}
    monkeypatch.setattr(module, "make_pool", lambda folder, kind, **options: made.update({folder.name: options}))
    folders = simulated_sources(tmp_path, count=7, seed=5, looks=2)
    assert [folder.name for folder in folders] == [f"{kind}_{seed}" for seed in (5, 6) for kind in DOMAINS]
    assert all(options["count"] == 7 and options["seed"] == int(name[-1]) for name, options in made.items())


def test_simulated_sources_are_labelled_and_made_once(tmp_path, monkeypatch):
    small = lambda folder, kind, **options: make_pool(folder, kind, **options | {"height": 40, "width": 56})  # noqa: E731
    monkeypatch.setattr(module, "make_pool", small)
    folders = simulated_sources(tmp_path, count=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert simulated_sources(tmp_path, count=2) == folders
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    assert len(before) == 4 * len(DOMAINS)
    assert all("label" in item for folder in folders for item in load_pool(folder))


# --- what is in them --------------------------------------------------------------------------------------------------


def test_images_and_masks_are_those_of_the_files(place, caplog):
    loaded = load_sources([place / "nuclei", place / "cells"])
    assert list(loaded) == ["nuclei", "cells"]
    for name, data in loaded.items():
        files = sorted((place / name / "images").iterdir())
        assert [entry["name"] for entry in data] == [f"images/{file.name}" for file in files]
        for entry, file in zip(data, files, strict=True):
            assert np.array_equal(entry["image"][0], np.array(Image.open(file)))
            mask = np.array(Image.open(place / name / "labels" / file.name))
            assert entry["label"].dtype == np.uint8 and np.array_equal(entry["label"][0], mask // 255)
    assert "sources (images): nuclei (5), cells (3)" in caplog.messages
    assert not any("one source" in message for message in caplog.messages)


def test_the_most_images_are_spread_over_a_source(place):
    (data,) = load_sources([place / "nuclei"], most=3).values()
    assert [entry["name"][-6:-4] for entry in data] == ["00", "02", "04"]


def test_unlabelled_images_are_left_out_and_counted(place, tmp_path, caplog):
    shutil.copytree(place / "nuclei", tmp_path / "partly")
    for number in (0, 3):
        (tmp_path / "partly" / "labels" / f"fluorescence_{number:02}.png").unlink()
    (data,) = load_sources([tmp_path / "partly"]).values()
    assert [entry["name"][-6:-4] for entry in data] == ["01", "02", "04"]
    assert "2 of 5 images have no label and are left out" in caplog.messages
    (tmp_path / "partly" / "labels" / "fluorescence_01.png").unlink()
    assert [len(data) for data in load_sources([tmp_path / "partly"], most=1).values()] == [1], "of the labelled ones"


def test_one_source_is_allowed_and_said(place, caplog):
    load_sources([place / "cells"])
    assert any("with one source meta-training is plain training" in message for message in caplog.messages)


def test_other_values_of_masks_are_said_with_their_folder(place, tmp_path, caplog):
    shutil.copytree(place / "cells", tmp_path / "instances")
    for number, path in enumerate(sorted((tmp_path / "instances" / "labels").iterdir()), start=1):
        Image.fromarray(np.array(Image.open(path)) // 255 * np.uint8(number)).save(path)
    (data,) = load_sources([tmp_path / "instances"]).values()
    notes = [message for message in caplog.messages if "masks hold other values than 0 and 255" in message]
    assert len(notes) == 1 and notes[0].startswith(f"{tmp_path / 'instances'}: ")
    assert {int(value) for entry in data for value in np.unique(entry["label"])} == {0, 1}


def test_sources_of_the_same_name_are_told_apart(place, tmp_path):
    for number in range(3):
        shutil.copytree(place / "cells", tmp_path / str(number) / "cells")
    loaded = load_sources([tmp_path / str(number) / "cells" for number in range(3)], most=1)
    assert list(loaded) == ["cells", "cells'", "cells''"]


def test_a_grey_range_holds_for_all_images_of_16_bit(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / "deep" / name).mkdir(parents=True)
    for number, top in enumerate((1000, 2000)):
        pixels = np.linspace(0, top, 30 * 20).reshape(30, 20).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "deep" / "images" / f"{number}.png")
        Image.fromarray(np.uint8(255) * (pixels > 500)).save(tmp_path / "deep" / "labels" / f"{number}.png")
    tops = [[int(e["image"].max()) for e in load_sources([tmp_path / "deep"], r)["deep"]] for r in (None, (0, 2000))]
    assert tops == [[255, 255], [128, 255]]


def test_a_source_without_labels_is_refused(place, tmp_path):
    shutil.copytree(place / "cells" / "images", tmp_path / "bare")
    with pytest.raises(KWTLError, match=f"no image of {tmp_path / 'bare'} has a label"):
        load_sources([place / "nuclei", tmp_path / "bare"])


def test_a_source_without_any_foreground_is_refused(place, tmp_path):
    shutil.copytree(place / "cells", tmp_path / "empty")
    for path in (tmp_path / "empty" / "labels").iterdir():
        Image.fromarray(np.zeros((128, 96), dtype=np.uint8)).save(path)
    with pytest.raises(KWTLError, match=f"no mask of {tmp_path / 'empty'} has any foreground"):
        load_sources([place / "nuclei", tmp_path / "empty"])


@pytest.mark.parametrize("most", [0, -1])
def test_less_than_one_image_is_refused(place, most):
    with pytest.raises(KWTLError):
        load_sources([place / "cells"], most=most)


# --- what is made of them ---------------------------------------------------------------------------------------------


def test_the_hash_sees_names_order_images_and_masks(place, tmp_path):
    shutil.copytree(place / "cells", tmp_path / "cells")
    loaded = load_sources([place / "nuclei", place / "cells"])
    base = sources_hash(loaded)
    assert sources_hash(load_sources([place / "nuclei", tmp_path / "cells"])) == base, "wherever they are"
    assert sources_hash(dict(reversed(loaded.items()))) != base, "the order decides on the crops"
    assert sources_hash(load_sources([place / "nuclei", place / "cells"], most=2)) != base
    for name in ("labels", "images"):
        path = sorted((tmp_path / "cells" / name).iterdir())[0]
        pixels = np.array(Image.open(path))
        pixels[3, 5] = 255 - pixels[3, 5]
        Image.fromarray(pixels).save(path)
        found = sources_hash(load_sources([place / "nuclei", tmp_path / "cells"]))
        assert found[0] == base[0] and found[1] != base[1]
        base = found


def test_crops_depend_on_seed_and_place_of_the_source_only(place):
    loaded = load_sources([place / "nuclei", place / "cells"])
    crops = source_crops(loaded, crop=24, crops=3, seed=4)
    assert list(crops) == ["nuclei", "cells"]
    for task, (name, data) in enumerate(loaded.items()):
        expected = CropDataset(data, size=24, batch_size=3, seed=[4, task], rank=0, world_size=1)
        for step in (0, 1, 7):
            batch = crops[name].crop_batch(step)
            assert batch["image"].shape == (3, 1, 24, 24)
            assert all(torch.equal(batch[key], expected.crop_batch(step)[key]) for key in batch)
    alone = source_crops({"cells": loaded["cells"]}, crop=24, crops=3, seed=4)
    assert not torch.equal(alone["cells"].crop_batch(0)["image"], crops["cells"].crop_batch(0)["image"])
    other = source_crops(loaded, crop=24, crops=3, seed=5)
    assert not torch.equal(other["cells"].crop_batch(0)["image"], crops["cells"].crop_batch(0)["image"])

"""Masks are PNGs of 0 and 255 in the size of their image, one an image and page, never written over by accident."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers.mask_saver import MaskSaver
from monai_kwtl.project.file_names import mask_file_names


def item(name, page=None):
    return {"name": name, "page": page}


def predict(saver, items, masks):
    """Run an evaluator whose predictions are given."""

    def step(engine, batch):
        return {"pred": batch["mask"]}

    engine = Engine(step)
    saver.attach(engine)
    batches = [
        {**entry, "image": torch.zeros(1, *mask.shape[-2:]), "mask": torch.as_tensor(mask)}
        for entry, mask in zip(items, masks, strict=True)
    ]
    engine.run(batches, max_epochs=1)


def random_mask(height, width, seed=0):
    return (np.random.default_rng(seed).random((1, 1, height, width)) < 0.4).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (40, 7), (33, 65)])
def test_a_mask_is_an_8_bit_png_of_its_image_s_size(tmp_path, size):
    items, mask = [item("images/a.tif")], random_mask(*size)
    predict(MaskSaver(items, tmp_path), items, [mask])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.mode == "L"
        assert picture.size == (size[1], size[0])
        assert np.array_equal(np.asarray(picture), (mask[0, 0] * 255).astype(np.uint8))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_masks_are_written_too(tmp_path, value):
    items = [item("a.png")]
    predict(MaskSaver(items, tmp_path), items, [np.full((1, 1, 5, 9), value, dtype=np.float32)])
    assert (np.asarray(Image.open(tmp_path / "a.png")) == value * 255).all()


def test_every_image_and_every_page_gets_a_name_of_its_own():
    items = [item("images/03.png"), item("images/03.tif", 0), item("images/03.tif", 1), item("images/a b.png")]
    names = mask_file_names(items)
    assert names[("images/03.png", None)] == "03.png"
    assert names[("images/a b.png", None)] == "a_b.png"
    assert names[("images/03.tif", 0)].endswith("_p0.png")
    assert names[("images/03.tif", 1)].endswith("_p1.png")
    assert len({name.casefold() for name in names.values()}) == 4


def test_a_page_s_name_is_not_that_of_another_image():
    items = [item("a.tif", 0), item("a.tif", 1), item("a_p0.png")]
    names = mask_file_names(items)
    assert names[("a_p0.png", None)] == "a_p0.png"
    assert names[("a.tif", 1)] == "a_p1.png"
    assert len(set(names.values())) == 3
    assert mask_file_names(items[::-1]) == names


def test_pages_are_written_beside_each_other(tmp_path):
    items = [item("stack.tif", page) for page in range(3)]
    masks = [random_mask(5, 8, seed) for seed in range(3)]
    predict(MaskSaver(items, tmp_path), items, masks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stack_p0.png", "stack_p1.png", "stack_p2.png"]
    for page, mask in enumerate(masks):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"stack_p{page}.png")) > 0, mask[0, 0] > 0)


def test_masks_that_are_there_are_kept_unless_told(tmp_path):
    items = [item("a.png"), item("b.png")]
    (tmp_path / "b.png").write_bytes(b"precious")
    with pytest.raises(KWTLError, match=r"already holds masks such as b.png.*--output_dir.*--overwrite true") as caught:
        MaskSaver(items, tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "b.png").read_bytes() == b"precious"
    predict(MaskSaver(items, tmp_path, overwrite=True), items, [random_mask(4, 6)] * 2)
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size == (6, 4)


def test_other_files_in_the_folder_are_no_hindrance(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    MaskSaver([item("a.png")], tmp_path)


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(KWTLError, match="cannot write to .*file.*--output_dir"):
        MaskSaver([item("a.png")], tmp_path / "file" / "masks")


def test_a_mask_that_cannot_be_written_is_said_and_leaves_nothing_half(tmp_path, monkeypatch):
    saver = MaskSaver([item("a.png")], tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(KWTLError, match="cannot write .*a.png .No space left on device"):
        saver.write(item("a.png"), np.ones((3, 4), dtype=bool))
    assert list(tmp_path.iterdir()) == []


def test_the_last_line_says_how_many_and_how_much_foreground(tmp_path, caplog):
    items = [item("a.png"), item("b.png")]
    with caplog.at_level(logging.INFO, logger="monai_kwtl"):
        predict(MaskSaver(items, tmp_path), items, [np.ones((1, 1, 2, 2)), np.zeros((1, 1, 4, 4))])
    assert caplog.messages == [f"masks: 2 in {tmp_path}, on average 50.0 % foreground"]

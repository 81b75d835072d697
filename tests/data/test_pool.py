"""Data sets are scanned, read and labelled as they are: names, pages, sizes, hashes; what is broken is named."""

from __future__ import annotations

import hashlib
import logging
import random
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from monai.data import Dataset, MetaTensor
from PIL import Image
from torch.utils.data import DataLoader

from monai_kwtl.data import loading, pool
from monai_kwtl.data.folders import find_images
from monai_kwtl.data.loading import LoadMicroscopyd, describe_label_values, read_image, read_label
from monai_kwtl.data.pool import load_pool, scan_images
from monai_kwtl.errors import KWTLError


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def mixed(tmp_path, rng):
    """A folder of images of many kinds, and the luminance that each should give."""
    expected = {}
    grey = rng.integers(0, 256, (20, 51)).astype(np.uint8)
    colour = rng.integers(0, 256, (33, 17, 3)).astype(np.uint8)
    save(tmp_path / "images/grey.png", grey)
    save(tmp_path / "images/colour.bmp", colour)
    expected["images/grey.png", None] = grey
    expected["images/colour.bmp", None] = np.asarray(Image.fromarray(colour).convert("L"))
    deep = np.linspace(700, 1210, 20 * 51).reshape(20, 51).astype(np.uint16)
    save(tmp_path / "images/deep.png", deep)
    expected["images/deep.png", None] = np.rint((deep - 700.0) / 510 * 255).astype(np.uint8)
    pages = np.stack([deep, deep * 3, np.full_like(deep, 9)])
    tifffile.imwrite(tmp_path / "images/stack.ome.tif", pages)
    for page in range(2):
        expected["images/stack.ome.tif", page] = expected["images/deep.png", None]
    expected["images/stack.ome.tif", 2] = np.zeros((20, 51), dtype=np.uint8)
    volume = rng.normal(size=(9, 5, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "images/volume.nii.gz")
    for z in range(2):
        plane = volume[:, :, z].T.astype(np.float64)
        scaled = 255 * (plane - plane.min()) / (plane.max() - plane.min())
        expected["images/volume.nii.gz", z] = np.rint(scaled).astype(np.uint8)
    return tmp_path, expected


# --- scanning and reading ---------------------------------------------------------------------------------------------


def test_scanned_items_say_page_size_and_hash(mixed):
    folder, expected = mixed
    items = load_pool(folder)
    assert [(i["name"], i["page"]) for i in items] == sorted(expected, key=lambda key: (key[0], key[1] or 0))
    for item in items:
        assert (item["height"], item["width"]) == expected[item["name"], item["page"]].shape
        assert type(item["height"]) is int and type(item["width"]) is int
        assert item["sha256"] == hashlib.sha256((folder / item["name"]).read_bytes()).hexdigest()
        assert item["image"] == str(folder / item["name"]) and "label" not in item


def test_images_are_read_as_8_bit_luminance(mixed):
    folder, expected = mixed
    for item in load_pool(folder):
        image = read_image(item)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        assert np.array_equal(image, expected[item["name"], item["page"]][None]), item["name"]


def test_a_fixed_range_holds_for_all_but_8_bit(mixed):
    folder, expected = mixed
    items = {item["name"]: item for item in load_pool(folder)}
    with Image.open(folder / "images/deep.png") as image:
        deep = np.asarray(image).astype(np.float64)
    clipped = np.clip(deep, 800, 1100)
    assert np.array_equal(read_image(items["images/deep.png"], [800, 1100])[0], np.rint((clipped - 800) / 300 * 255))
    assert np.array_equal(read_image(items["images/grey.png"], [800, 1100])[0], expected["images/grey.png", None])
    with pytest.raises(KWTLError, match="rescale"):
        read_image(items["images/deep.png"], [5, 1])


def test_scanning_again_changes_nothing_and_order_does_not_matter(mixed):
    folder, _ = mixed
    items = load_pool(folder)
    found = find_images(folder)
    assert scan_images(items) == items
    assert scan_images(random.Random(1).sample(found, len(found))) == items


def test_a_file_is_hashed_once_whatever_its_pages(mixed, monkeypatch):
    folder, _ = mixed
    hashed, original = [], pool.file_sha256
    monkeypatch.setattr(pool, "file_sha256", lambda path: (hashed.append(Path(path).name), original(path))[1])
    load_pool(folder)
    assert sorted(hashed) == ["colour.bmp", "deep.png", "grey.png", "stack.ome.tif", "volume.nii.gz"]


def test_large_images_are_not_decoded_when_scanned(tmp_path, rng, monkeypatch):
    pixels = save(tmp_path / "a.png", rng.integers(0, 256, (20, 51)).astype(np.uint8))
    tifffile.imwrite(tmp_path / "b.tif", pixels)
    tifffile.imwrite(tmp_path / "short.tif", pixels)
    (tmp_path / "short.tif").write_bytes((tmp_path / "short.tif").read_bytes()[:-1])
    monkeypatch.setattr(pool, "DECODE_LIMIT", 1000)
    monkeypatch.setattr(loading, "DECODE_LIMIT", 1000)
    monkeypatch.setattr(pool, "checked", None)
    items = load_pool(tmp_path)
    assert [(i["name"], i["height"], i["width"]) for i in items] == [("a.png", 20, 51), ("b.tif", 20, 51)]


def test_broken_files_are_counted_named_and_left_out(tmp_path, rng, caplog, capfd):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, rng.integers(0, 256, (20, 51)).astype(np.uint8))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    pages = rng.random((3, 20, 51)).astype(np.float32)
    pages[1, 0, 0] = np.nan
    tifffile.imwrite(tmp_path / "holes.tif", pages, photometric="minisblack")
    with caplog.at_level(logging.WARNING):
        items = load_pool(tmp_path)
    assert [(i["name"], i["page"]) for i in items] == [
        ("a.png", None),
        ("b.png", None),
        ("holes.tif", 0),
        ("holes.tif", 2),
    ]
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        (
            "monai_kwtl",
            "5 of 9 images cannot be read and are left out: cut.png (it is truncated or broken), "
            "empty.tif (the file is empty), gone.png (No such file or directory), "
            "holes.tif page 1 (it has pixels that are NaN or infinite), "
            "text.jpg (it is no image)",
        )
    ]
    assert capfd.readouterr() == ("", "")


def test_long_lists_of_broken_files_are_cut_short(tmp_path, caplog):
    save(tmp_path / "good.png", np.zeros((2, 3), dtype=np.uint8))
    for number in range(50):
        (tmp_path / f"{number:02d}.png").write_bytes(b"")
    load_pool(tmp_path)
    assert caplog.messages[0].endswith("19.png (the file is empty), and 30 more")
    (tmp_path / "good.png").unlink()
    with pytest.raises(KWTLError, match=r"none of the 50 images can be read: 00\.png .* and 30 more"):
        load_pool(tmp_path)


def test_nothing_to_scan_is_an_error():
    with pytest.raises(KWTLError, match="no images"):
        scan_images([])


def test_a_file_that_went_away_is_an_error_in_one_line(tmp_path):
    save(tmp_path / "a.png", np.zeros((2, 3), dtype=np.uint8))
    item = load_pool(tmp_path)[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(KWTLError, match=r"cannot read .*a\.png: No such file"):
        read_image(item)


# --- masks ------------------------------------------------------------------------------------------------------------


def masked(tmp_path, mask, name="a.png"):
    """An item of a black image of the mask's size."""
    save(tmp_path / "images/a.png", np.zeros(mask.shape[:2], dtype=np.uint8))
    if name.endswith((".nii", ".nii.gz")):
        (tmp_path / "labels").mkdir()
        nibabel.save(nibabel.Nifti1Image(mask.T, np.eye(4)), tmp_path / "labels" / name)
    elif name.endswith(".tif"):
        (tmp_path / "labels").mkdir()
        tifffile.imwrite(tmp_path / "labels" / name, mask, **({"photometric": "rgb"} if mask.ndim == 3 else {}))
    else:
        save(tmp_path / "labels" / name, mask)
    return load_pool(tmp_path)[0]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz"])
@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 1, 2, 77), (0,)])
def test_every_value_but_0_is_foreground(tmp_path, rng, name, values):
    mask = rng.choice(values, (20, 51)).astype(np.uint8)
    label = read_label(masked(tmp_path, mask, name))
    assert label.shape == (1, 20, 51) and label.dtype == np.uint8
    assert np.array_equal(label[0], mask > 0)


@pytest.mark.parametrize(("name", "dtype"), [("a.png", "u2"), ("a.tif", "u2"), ("a.tif", "i4"), ("a.tif", "f4")])
def test_instance_numbers_are_foreground_however_many(tmp_path, rng, name, dtype):
    mask = (rng.integers(0, 3, (20, 51)) * 500).astype(dtype)
    assert np.array_equal(read_label(masked(tmp_path, mask, name))[0], mask > 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colour_in_any_channel_is_foreground(tmp_path, name):
    mask = np.zeros((6, 9, 3), dtype=np.uint8)
    mask[1, 2], mask[3, 4], mask[5, 6] = (1, 0, 0), (0, 0, 1), (0, 1, 0)
    label = read_label(masked(tmp_path, mask, name))[0]
    assert label.sum() == 3 and label[1, 2] and label[3, 4] and label[5, 6]


def test_pages_have_their_masks_in_the_same_pages(tmp_path, rng):
    images = rng.integers(0, 256, (3, 20, 51)).astype(np.uint8)
    masks = (rng.random((3, 20, 51)) < 0.3).astype(np.uint8)
    for folder, pages in (("images", images), ("labels", masks)):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", pages, photometric="minisblack")
    for item in load_pool(tmp_path):
        assert np.array_equal(read_label(item)[0], masks[item["page"]])
    tifffile.imwrite(tmp_path / "labels/a.tif", masks[:2], photometric="minisblack")
    with pytest.raises(KWTLError, match=r"cannot read the mask .*a\.tif: it holds no page 2"):
        read_label(load_pool(tmp_path)[2])
    (tmp_path / "labels/a.tif").unlink()
    save(tmp_path / "labels/a.png", masks[0])
    with pytest.raises(KWTLError, match="it holds one image, page 0"):
        read_label(load_pool(tmp_path)[0])


def test_masks_of_another_size_are_refused_naming_both(tmp_path):
    item = masked(tmp_path, np.zeros((20, 51), dtype=np.uint8))
    save(tmp_path / "labels/a.png", np.zeros((51, 20), dtype=np.uint8))
    with pytest.raises(KWTLError) as error:
        read_label(item)
    assert str(tmp_path / "labels/a.png") in str(error.value) and "images/a.png" in str(error.value)
    assert "20 wide and 51 high" in str(error.value) and "51 wide and 20 high" in str(error.value)


def test_masks_can_be_read_without_an_image(tmp_path):
    save(tmp_path / "a.png", np.eye(3, 5, dtype=np.uint8))
    assert read_label({"label": str(tmp_path / "a.png"), "page": None}).sum() == 3


def test_masks_that_are_missing_or_broken(tmp_path):
    item = masked(tmp_path, np.zeros((2, 3), dtype=np.uint8))
    (tmp_path / "labels/a.png").write_bytes(b"")
    with pytest.raises(KWTLError, match="cannot read the mask .*: the file is empty"):
        read_label(item)
    with pytest.raises(KWTLError, match=r"images/a\.png has no mask"):
        read_label({key: value for key, value in item.items() if key != "label"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 255), None),
        ((0,), None),
        ((255,), None),
        ((0, 1), r"\(0, 1 in a\.png\)"),
        ((0, 1, 2, 3, 4, 200), r"\(0, 1, 2, \.\.\., 200 in a\.png\)"),
    ],
)
def test_unusual_mask_values_are_described_in_one_sentence(tmp_path, values, words):
    item = masked(tmp_path, np.resize(np.array(values, dtype=np.uint8), (20, 51)))
    note = describe_label_values([{"image": "no label"}, item])
    if words is None:
        assert note is None
    else:
        assert "\n" not in note and "all but 0 is taken for foreground" in note
        assert re.search(words, note), note


def test_nothing_is_said_of_bits_of_white_in_16_bit_and_of_no_masks(tmp_path):
    assert describe_label_values([]) is None
    assert describe_label_values([masked(tmp_path, np.array([[0, 65535]], dtype=np.uint16))]) is None


def test_masks_of_a_whole_data_set_are_looked_at(tmp_path):
    for number in range(30):
        save(tmp_path / f"images/{number:02d}.png", np.zeros((2, 3), dtype=np.uint8))
        save(tmp_path / f"labels/{number:02d}.png", np.full((2, 3), 255 if number < 29 else 7, dtype=np.uint8))
    assert "29.png" in describe_label_values(load_pool(tmp_path))


# --- the transform ----------------------------------------------------------------------------------------------------


def test_the_transform_reads_image_and_label_and_keeps_the_rest(mixed, rng):
    folder, expected = mixed
    masks = {"grey.png": (20, 51), "colour.png": (33, 17), "deep.png": (20, 51)}
    for name, shape in masks.items():
        save(folder / "labels" / name, (rng.random(shape) < 0.5).astype(np.uint8))
    items = load_pool(folder)
    load = LoadMicroscopyd(keys=("image", "label"), allow_missing_keys=True)
    for item in items:
        before = dict(item)
        loaded = load(item)
        assert item == before and {k: loaded[k] for k in ("name", "page", "sha256")} == {
            k: item[k] for k in ("name", "page", "sha256")
        }
        image = loaded["image"]
        assert isinstance(image, MetaTensor) and image.dtype == torch.uint8
        assert np.array_equal(image.numpy(), expected[item["name"], item["page"]][None])
        assert image.meta["filename_or_obj"] == item["image"] and image.meta["name"] == item["name"]
        assert image.meta.get("page") == item["page"]
        if "label" in item:
            assert np.array_equal(loaded["label"].numpy(), read_label(item))
            assert loaded["label"].meta["filename_or_obj"] == item["label"]
    assert sum("label" in item for item in items) == 3


def test_the_transform_passes_the_range_on_and_checks_it(mixed):
    folder, _ = mixed
    item = next(item for item in load_pool(folder) if item["name"] == "images/deep.png")
    assert np.array_equal(LoadMicroscopyd(rescale=[800, 900])(item)["image"].numpy(), read_image(item, [800, 900]))
    with pytest.raises(KWTLError, match="rescale"):
        LoadMicroscopyd(rescale=[9, 8])
    with pytest.raises(KWTLError, match="mask"):
        LoadMicroscopyd(keys="mask")
    with pytest.raises(KeyError, match="label"):
        LoadMicroscopyd(keys="label")(item)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_from_any_number_of_workers(mixed, workers):
    folder, expected = mixed
    items = load_pool(folder)
    loader = DataLoader(Dataset(items, LoadMicroscopyd()), batch_size=None, num_workers=workers)
    for item, loaded in zip(items, loader, strict=True):
        assert np.array_equal(np.asarray(loaded["image"])[0], expected[item["name"], item["page"]])


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "shape", "dtype"),
    [
        ("ssTEM", 20, (1024, 1024), "uint8"),
        ("TNBC", 50, (512, 512), "uint8"),
        ("B39", 200, (520, 696), "uint16"),
        ("B5", 400, (520, 696), "uint8"),
    ],
)
def test_real_sets_are_read_as_other_libraries_read_them(kwtl_data, name, count, shape, dtype):
    if not (kwtl_data / name).is_dir():
        pytest.skip(f"{kwtl_data} has no {name}")
    items = find_images(kwtl_data / name)
    assert len(items) == count and all(Path(i["label"]).stem == Path(i["image"]).stem for i in items)
    items = scan_images(items[:3])
    for item in items:
        raw = (
            tifffile.imread(item["image"]) if item["image"].endswith(".tif") else np.asarray(Image.open(item["image"]))
        )
        assert raw.dtype == dtype and raw.shape[:2] == shape == (item["height"], item["width"]) and item["page"] is None
        if raw.ndim == 3:
            expected = np.asarray(Image.fromarray(raw).convert("L"))
        elif raw.dtype == np.uint8:
            expected = raw
        else:
            low, high = float(raw.min()), float(raw.max())
            expected = np.rint((raw - low) * 255 / (high - low)).astype(np.uint8)
        assert np.array_equal(read_image(item)[0], expected)
        with Image.open(item["label"]) as mask:
            assert np.array_equal(read_label(item)[0] * 255, np.asarray(mask))
    assert describe_label_values(items) is None

"""The simulated annotator cuts the true masks of the selected regions, pixel for pixel, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_kwtl.benchmark.experiments.annotator import reveal_masks, write_region_masks
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.selection_file import dump_selection
from monai_kwtl.project.support_set import read_support
from monai_kwtl.selection.regions import Region

SHAPE = (41, 57)


@pytest.fixture
def truth(tmp_path, rng):
    """A data set of grey.png, whose mask is 0 and 1, a stack of two pages with instances, and one without a mask."""
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    images, labels = tmp_path / "data" / "images", tmp_path / "data" / "labels"
    masks = {("images/grey.png", None): rng.random(SHAPE) < 0.4}
    stack = rng.random((2, *SHAPE)) < 0.4
    masks |= {("images/stack.tif", page): stack[page] for page in range(2)}
    for name in ("grey.png", "bare.png"):
        Image.fromarray(rng.integers(0, 256, SHAPE, dtype=np.uint8)).save(images / name)
    Image.fromarray(masks["images/grey.png", None].astype(np.uint8)).save(labels / "grey.png")
    tifffile.imwrite(images / "stack.tif", rng.integers(0, 256, stack.shape, dtype=np.uint8), photometric="minisblack")
    numbered = stack * rng.integers(1, 900, stack.shape)
    tifffile.imwrite(labels / "stack.tif", numbered.astype(np.uint16), photometric="minisblack")
    return masks


def select(tmp_path, places):
    """Write a selection of (name, page, x, y, width, height); path and regions."""
    hashes = {(item["name"], item["page"]): item["sha256"] for item in load_pool(tmp_path / "data")}
    regions = [
        Region(rank, name, page, hashes[name, page], x, y, width, height, score=1 / rank)
        for rank, (name, page, x, y, width, height) in enumerate(places, start=1)
    ]
    path = tmp_path / "selection.json"
    cost = {"windows": len(regions), "images": 1, "unique_pixels": 1}
    path.write_text(dump_selection(regions, budget={"windows": len(regions)}, cost=cost, created_with={}))
    return path, regions


PLACES = [
    ("images/grey.png", None, 13, 7, 20, 11),
    ("images/stack.tif", 1, 37, 30, 20, 11),  # in the corner
    ("images/grey.png", None, 0, 0, 57, 41),  # all of it
    ("images/stack.tif", 0, 5, 29, 1, 12),
    ("images/grey.png", None, 20, 10, 20, 11),  # overlaps the first
]


def test_masks_are_slices_of_the_truth_under_the_names_of_the_crops(truth, tmp_path):
    path, regions = select(tmp_path, PLACES)
    folder = tmp_path / "below" / "masks"
    assert write_region_masks(path, load_pool(tmp_path / "data"), folder) == len(PLACES)
    names = region_file_names(regions)
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)
    for (name, page, x, y, width, height), file in zip(PLACES, names, strict=True):
        mask = np.array(Image.open(folder / file))
        assert mask.dtype == np.uint8 and mask.shape == (height, width)
        for row in range(height):
            for column in range(width):
                assert mask[row, column] == (255 if truth[name, page][y + row, x + column] else 0)


def test_what_it_leaves_is_read_as_an_annotators_masks(truth, tmp_path):
    path, _ = select(tmp_path, PLACES[:2])
    pool = load_pool(tmp_path / "data")
    write_region_masks(path, pool, tmp_path / "masks")
    grey, page = read_support(pool, tmp_path / "masks", path)
    for entry, (name, number, x, y, width, height) in ((grey, PLACES[0]), (page, PLACES[1])):
        known = np.zeros(SHAPE, dtype=bool)
        known[y : y + height, x : x + width] = True
        assert np.array_equal(entry["known"][0], known)
        assert np.array_equal(entry["label"][0], truth[name, number] & known)


def test_labels_of_other_images_are_not_even_read(truth, tmp_path):
    path, _ = select(tmp_path, PLACES[:1])
    pool = load_pool(tmp_path / "data")
    (tmp_path / "data" / "labels" / "stack.tif").write_bytes(b"no image")
    assert write_region_masks(path, pool, tmp_path / "masks") == 1


def test_an_image_without_a_mask_is_named(truth, tmp_path):
    path, _ = select(tmp_path, [("images/bare.png", None, 0, 0, 9, 9)])
    with pytest.raises(KWTLError, match="no true mask of images/bare.png; the simulated annotator needs labels"):
        write_region_masks(path, load_pool(tmp_path / "data"), tmp_path / "masks")


def test_an_image_that_is_not_in_the_pool_is_named(truth, tmp_path):
    path, _ = select(tmp_path, PLACES[:1])
    pool = [item for item in load_pool(tmp_path / "data") if item["name"] != "images/grey.png"]
    with pytest.raises(KWTLError, match="no true mask of images/grey.png"):
        write_region_masks(path, pool, tmp_path / "masks")


def test_revealed_masks_hold_the_truth_inside_the_regions_and_nothing_outside(truth, tmp_path):
    _, regions = select(tmp_path, [PLACES[0], PLACES[1], PLACES[4]])
    grey, page = reveal_masks(regions, load_pool(tmp_path / "data"))
    assert (grey["name"], page["name"], page["page"]) == ("images/grey.png", "images/stack.tif", 1)
    assert [region.rank for region in grey["regions"]] == [1, 3]
    for entry, places in ((grey, [PLACES[0], PLACES[4]]), (page, [PLACES[1]])):
        for row in range(SHAPE[0]):
            for column in range(SHAPE[1]):
                inside = any(x <= column < x + w and y <= row < y + h for _, _, x, y, w, h in places)
                assert entry["known"][0, row, column] == inside
                assert entry["label"][0, row, column] == (inside and truth[entry["name"], entry["page"]][row, column])


def test_masks_are_revealed_without_reading_those_of_other_images(truth, tmp_path):
    _, regions = select(tmp_path, PLACES[:1])
    pool = load_pool(tmp_path / "data")
    (tmp_path / "data" / "labels" / "stack.tif").write_bytes(b"no image")
    assert len(reveal_masks(regions, pool)) == 1
    assert reveal_masks([], pool) == []


def test_a_region_of_an_image_without_a_mask_cannot_be_revealed(truth, tmp_path):
    _, regions = select(tmp_path, [("images/bare.png", None, 0, 0, 9, 9)])
    with pytest.raises(KWTLError, match="no true mask of images/bare.png"):
        reveal_masks(regions, load_pool(tmp_path / "data"))

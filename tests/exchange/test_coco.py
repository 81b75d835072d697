"""COCO against pycocotools: what it reads of ours and we of its, and which regions count as finished."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import Handout
from monai_kwtl.exchange.coco import decode_counts, encode_counts, read_cvat, unpack_counts, write_cvat
from monai_kwtl.exchange.polygons import number_objects
from monai_kwtl.selection.regions import Region

REGIONS = [Region(rank, "a.png", None, "0" * 64, 5, 6, 21, 17, 1.0) for rank in (1, 2)]
NAMES = ["001_a_x5_y6.png", "002_a_x5_y6.png"]
CELLS = np.zeros((17, 21), dtype=bool)
CELLS[2:12, 3:14] = True
CELLS[5:8, 6:9] = False  # a hole
CELLS[13:16, 15:21] = True

quick = settings(max_examples=60, deadline=None)
masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 11)))


def write(folder, predictions=None):
    crops = [np.zeros((17, 21), dtype=np.uint8) for _ in REGIONS]
    write_cvat(folder, Handout(REGIONS, NAMES, crops, predictions))
    return json.loads((folder / "annotations" / "instances_default.json").read_text())


def save(folder, document):
    (folder / "annotations" / "instances_default.json").write_text(json.dumps(document))


def read(folder):
    return {annotation.rank: annotation for annotation in read_cvat(folder, REGIONS, NAMES)}


def cell(segmentation, image=1, category=1, **more):
    return {"id": 99, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


@quick
@given(masks)
def test_run_lengths_are_those_of_pycocotools(mask):
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encode_counts(mask)
    assert unpack_counts(packed["counts"].decode()) == counts
    assert (
        coco_mask.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape)["counts"] == packed["counts"]
    )
    assert np.array_equal(decode_counts(counts, mask.shape), mask)


def test_long_run_lengths_are_unpacked(rng):
    mask = np.zeros((1200, 900), dtype=np.uint8)
    for _ in range(40):
        y, x = rng.integers(0, 900, 2)
        mask[y : y + rng.integers(1, 300), x : x + rng.integers(1, 300)] ^= 1
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert np.array_equal(decode_counts(unpack_counts(packed), mask.shape), mask > 0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools, against NumPy 2
def test_pycocotools_reads_what_is_exported(tmp_path, capsys):
    write(tmp_path, [number_objects(CELLS), number_objects(np.zeros_like(CELLS))])
    coco = COCO(tmp_path / "annotations" / "instances_default.json")
    assert [coco.imgs[1][key] for key in ("file_name", "width", "height")] == [NAMES[0], 21, 17]
    found = coco.loadAnns(coco.getAnnIds(imgIds=1, catIds=coco.getCatIds(["cell"])))
    assert len(found) == 2
    total = np.zeros(CELLS.shape, dtype=bool)
    for entry in found:
        mask = coco.annToMask(entry) > 0
        assert mask.sum() == entry["area"]
        assert entry["bbox"] == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()
        total |= mask
    assert np.array_equal(total, CELLS)
    assert len(coco.getAnnIds(catIds=coco.getCatIds(["unfinished"]))) == 2


def test_run_lengths_and_polygons_come_back(tmp_path):
    document = write(tmp_path)
    packed = coco_mask.encode(np.asfortranarray(CELLS.astype(np.uint8)))
    shapes = {
        "counts": {"size": [17, 21], "counts": encode_counts(CELLS)},
        "text": {"size": [17, 21], "counts": packed["counts"].decode()},
    }
    for shape in shapes.values():
        document["annotations"] = [cell(shape)]
        save(tmp_path, document)
        found = read(tmp_path)
        assert np.array_equal(found[1].mask, CELLS) and found[1].finished and not found[2].finished
    document["annotations"] = [
        cell([[0, 0, 4, 0, 4, 3, 0, 3], [10, 10, 12, 10, 12, 12, 10, 12]]),
        cell([], bbox=[18, 2, 3, 4]),
    ]
    save(tmp_path, document)
    found = read(tmp_path)[1]
    assert found.mask.sum() == 12 + 4 + 12 and found.objects == 2
    assert found.mask[:3, :4].all() and found.mask[10:12, 10:12].all() and found.mask[2:6, 18:].all()


def test_marks_overrule(tmp_path):
    document = write(tmp_path)
    document["annotations"] = [cell([[0, 0, 4, 0, 4, 3]]), cell([], category=3, bbox=[0, 0, 21, 17])]
    document["annotations"].append(cell([[1, 1, 2, 2, 3, 1]], image=2, category=2))
    save(tmp_path, document)
    found = read(tmp_path)
    assert not found[1].finished
    assert found[2].finished and not found[2].mask.any() and found[2].objects == 0


def test_other_labels_are_cells_but_those_to_ignore(tmp_path):
    document = write(tmp_path)
    document["categories"] += [{"id": 7, "name": "nucleus"}, {"id": 8, "name": "Ignored"}]
    document["annotations"] = [cell([[0, 0, 4, 0, 4, 4, 0, 4]], category=7), cell([[9, 9, 14, 9, 14, 14]], category=8)]
    save(tmp_path, document)
    assert read(tmp_path)[1].mask.sum() == 16


def test_images_that_are_not_ours_are_passed_over(tmp_path):
    document = write(tmp_path)
    document["images"].append({"id": 9, "file_name": "default/other.png", "width": 3, "height": 4})
    document["images"][0]["file_name"] = f"default/{NAMES[0]}"
    document["annotations"] = [cell([[0, 0, 1, 0, 1, 1]], image=9)]
    save(tmp_path, document)
    assert sorted(read(tmp_path)) == [1, 2]


def _change(path, value):
    def change(document):
        document["annotations"] = [cell({"size": [17, 21], "counts": encode_counts(CELLS)})]
        target = document
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


HUGE = 10**30
SHAPE = ("annotations", 0, "segmentation")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images", 0, "file_name"), "../../etc/passwd", "leads out of the folder"),
        (("images", 0, "file_name"), "/etc/passwd", "leads out of the folder"),
        (("images", 0, "file_name"), "C:\\a.png", "leads out of the folder"),
        (("images", 0, "width"), 22, "but the region of rank 1 is 21 wide"),
        (("images", 1, "id"), 1, "is that of another image"),
        (("images", 1, "file_name"), NAMES[0], "two images are the crop of rank 1"),
        (("annotations", 0, "image_id"), 77, "that is not there"),
        (("annotations", 0, "category_id"), True, "must be a whole number"),
        ((*SHAPE, "size"), [HUGE, HUGE], "run lengths are of size"),
        ((*SHAPE, "counts"), [HUGE], "do not sum up"),
        ((*SHAPE, "counts"), [-1, 358], "whole numbers from 0"),
        ((*SHAPE, "counts"), [1.5, 355.5], "whole numbers from 0"),
        ((*SHAPE, "counts"), "~~~~", "hold something that is none"),
        ((*SHAPE, "counts"), "o" * 500, "hold something that is none"),
        ((*SHAPE, "counts"), "o", "end within a number"),
        ((*SHAPE, "counts"), None, "counts must be a list or a text"),
        (SHAPE, "x", "segmentation must be"),
        (SHAPE, [[1, 2, 3]], "list of numbers x, y"),
        (SHAPE, [["a", 2]], "list of numbers"),
        (SHAPE, [[0, 0, HUGE, 0, 5, 5]], "beyond"),
        (SHAPE, [], "list of numbers"),
        (("images",), 3, "images must be a list"),
        (("categories", 0), None, "must be an object"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, path, value, message):
    document = write(tmp_path)
    _change(path, value)(document)
    save(tmp_path, document)
    with pytest.raises(KWTLError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and "instances_default.json" in str(caught.value)

"""Label Studio's JSON against a second decoder of its run lengths, and which annotations count."""

from __future__ import annotations

import base64
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import Handout
from monai_kwtl.exchange.labelstudio import decode_brush, encode_brush, read_labelstudio, write_labelstudio
from monai_kwtl.exchange.polygons import number_objects
from monai_kwtl.selection.regions import Region

REGIONS = [Region(rank, "a.png", None, "0" * 64, 5, 6, 21, 17, 1.0) for rank in (1, 2)]
NAMES = ["001_a_x5_y6.png", "002_a_x5_y6.png"]
CELLS = np.zeros((17, 21), dtype=bool)
CELLS[2:12, 3:14] = True
CELLS[5:8, 6:9] = False
CELLS[13:16, 15:21] = True
masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 11)))


def values_of(encoded):
    """All values of a stream, by cutting up a text of noughts and ones; as the description of the format has it."""
    text = "".join(f"{byte:08b}" for byte in encoded)

    def take(count):
        nonlocal text
        number, text = int(text[:count], 2), text[count:]
        return number

    size, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < size:
        if take(1):
            count = take(lengths[take(2)]) + 1
            values += [take(word)] * count
        else:
            values += [take(word) for _ in range(take(lengths[take(2)]) + 1)]
    assert len(values) == size and set(text) <= {"0"} and len(text) < 8
    return values


def literal(values):
    """A stream without runs, blocks of three values each."""
    text = f"{len(values):032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (2, 5, 9, 12))
    for start in range(0, len(values), 3):
        block = values[start : start + 3]
        text += f"000{len(block) - 1:02b}" + "".join(f"{value:08b}" for value in block)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


@settings(max_examples=60, deadline=None)
@given(masks)
def test_a_second_decoder_reads_our_masks_and_we_read_literal_ones(mask):
    values = values_of(encode_brush(mask))
    assert values == np.repeat(mask.ravel() * 255, 4).tolist()
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape), mask)
    rgba = np.stack([np.full(mask.shape, 9), np.zeros(mask.shape), np.full(mask.shape, 3), mask * 128], axis=-1)
    assert np.array_equal(decode_brush(literal(rgba.astype(int).ravel().tolist()), mask.shape), mask)


def test_long_runs_are_cut():
    mask = np.zeros((300, 400), dtype=bool)
    mask[100:250] = True
    assert values_of(encode_brush(mask)) == np.repeat(mask.ravel() * 255, 4).tolist()
    assert len(encode_brush(mask)) < 100
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape), mask)


def write(folder, predictions=None):
    crops = [np.arange(17 * 21, dtype=np.uint8).reshape(17, 21) for _ in REGIONS]
    write_labelstudio(folder, Handout(REGIONS, NAMES, crops, predictions))
    return json.loads((folder / "tasks.json").read_text())


def result(kind="brushlabels", **value):
    value = value or {"format": "rle", "rle": encode_brush(CELLS)}
    size = {"original_width": 21, "original_height": 17, "image_rotation": 0}
    return {"id": "x", "type": kind, "from_name": "f", "to_name": "image", **size, "value": value}


def annotate(folder, *annotations, name="export.1.json"):
    tasks = write(folder)
    tasks[0]["annotations"] = list(annotations)
    tasks[1]["annotations"] = []
    (folder / name).write_text(json.dumps(tasks))
    return read_labelstudio(folder, REGIONS, NAMES)


def test_tasks_hold_picture_and_predictions(tmp_path):
    tasks = write(tmp_path, [number_objects(CELLS), number_objects(~CELLS)])
    picture = Image.open(io.BytesIO(base64.b64decode(tasks[0]["data"]["image"].split(",")[1])))
    assert np.array_equal(np.array(picture), np.arange(17 * 21, dtype=np.uint8).reshape(17, 21))
    cells = tasks[0]["predictions"][0]["result"]
    assert len(cells) == 2
    found = np.logical_or.reduce([np.array(values_of(c["value"]["rle"])).reshape(17, 21, 4)[..., 3] > 0 for c in cells])
    assert np.array_equal(found, CELLS)
    view = ElementTree.parse(tmp_path / "label_config.xml").getroot()
    names = {child.get("name") for child in view}
    assert {cell["from_name"] for cell in cells} <= names and cells[0]["to_name"] in names
    assert view.find("Image").get("value") == "$image"
    assert read_labelstudio(tmp_path, REGIONS, NAMES) == []


def test_submitted_annotations_are_finished_and_skipped_ones_are_not(tmp_path):
    found = annotate(
        tmp_path,
        {"id": 1, "result": [result()], "was_cancelled": True},
        {"id": 2, "result": [], "was_cancelled": False, "created_at": "2026-01-02T03:04:05.600000Z"},
        {"id": 3, "result": [result()], "updated_at": "2026-01-02T03:04:06+00:00"},
    )
    assert [annotation.finished for annotation in found] == [False, True, True]
    assert found[2].time - found[1].time == pytest.approx(0.4)
    assert not found[1].mask.any() and np.array_equal(found[2].mask, CELLS) and found[2].objects == 1


def test_polygons_and_rectangles_are_in_percent(tmp_path):
    polygon = result("polygonlabels", points=[[0, 0], [100, 0], [100, 50], [0, 50]], polygonlabels=["cell"])
    box = result("rectanglelabels", x=0, y=100 * 12 / 17, width=100 * 5 / 21, height=100 * 3 / 17, rotation=0)
    ignored = result("brushlabels", format="rle", rle=encode_brush(~CELLS), brushlabels=["Ignore this"])
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    (found,) = annotate(tmp_path, {"id": 1, "result": [polygon, box, ignored, choice]})
    expected = np.zeros((17, 21), dtype=bool)
    expected[:8] = True  # the centres of row 8 lie on the edge
    expected[12:15, :5] = True
    found.mask[8] = False
    assert np.array_equal(found.mask, expected) and found.objects == 2


def test_a_turned_rectangle_turns_about_its_corner(tmp_path):
    box = result("rectangle", x=100 * 10 / 21, y=100 * 2 / 17, width=100 * 6 / 21, height=100 * 4 / 17, rotation=90)
    (found,) = annotate(tmp_path, {"id": 1, "result": [box]})
    expected = np.zeros((17, 21), dtype=bool)
    expected[2:8, 6:10] = True
    assert np.array_equal(found.mask, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": {"format": "rle", "rle": encode_brush(CELLS)[:-3]}}, "ends too early"),
        ({"value": {"format": "rle", "rle": encode_brush(CELLS[:, 1:])}}, "is not of 17 x 21 pixels"),
        ({"value": {"format": "rle", "rle": [255] * 40}}, "is not of 17 x 21 pixels"),
        ({"value": {"format": "rle", "rle": encode_brush(CELLS)[:7] + [255] * 40}}, "more than its size"),
        ({"value": {"format": "rle", "rle": [300]}}, "numbers from 0 to 255"),
        ({"value": {"format": "rle", "rle": 10**12}}, "numbers from 0 to 255"),
        ({"value": {"format": "png"}}, "format rle"),
        ({"value": []}, "value must be an object"),
        ({"original_width": 22}, "another size"),
        ({"image_rotation": 90}, "turned"),
        ({"type": "polygon", "value": {"points": [[0, 0], [1e300, 0], [3, 3]]}}, "beyond"),
        ({"type": "polygon", "value": {}}, "list of points"),
        ({"type": "rectangle", "value": {"x": 1}}, "numbers x, y, width"),
    ],
)
def test_results_that_cannot_be_read_are_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(KWTLError, match=message) as caught:
        annotate(tmp_path, {"id": 1, "result": [result() | changes]})
    assert "export.1.json: [0].annotations[0].result[0]" in str(caught.value) and "\n" not in str(caught.value)


def test_paths_out_of_the_folder_are_refused(tmp_path):
    tasks = write(tmp_path)
    tasks[0]["data"]["region"] = "../../secret"
    (tmp_path / "export.1.json").write_text(json.dumps(tasks))
    with pytest.raises(KWTLError, match="leads out of the folder"):
        read_labelstudio(tmp_path, REGIONS, NAMES)

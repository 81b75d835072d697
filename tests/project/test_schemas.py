"""What does not fit the schema of one of our files is said in a line with the field."""

from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import pytest

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.mask_index import read_record
from monai_kwtl.project.project_file import read_project

SHA256 = "0123456789abcdef" * 4
REGION = {
    "rank": 1, "image": "a/b.png", "image_sha256": SHA256, "x": 0, "y": 3, "width": 7, "height": 5, "score": 0.5,
}  # fmt: skip
MASK = {"mask": "b.png", **REGION, "selection_sha256": SHA256, "source": "cvat"}
COUNTS = {"windows": 1, "images": 1, "unique_pixels": 35}
SELECTION = {"path": "s.json", "sha256": SHA256, "time": "t", "strategy": "x", **COUNTS, "regions": [REGION]}
MASKS = {"path": "m", "time": "t", "source": "cvat", "regions": 1, "pixels": 35, "foreground": 0.5}
MODEL = {
    "path": "m.pt", "sha256": SHA256, "time": "t", "labelled_images": 1, "held_out_images": 0, "held_out_iou": None,
}  # fmt: skip


def records(folder, *masks):
    (folder / "regions.json").write_text(json.dumps({"format": "kwtl-masks/1", "regions": masks}))
    return read_record(folder)


def rounds(folder, **changes):
    entry = {"round": 1, "selection": SELECTION, "masks": MASKS, "model": MODEL} | changes
    (folder / "project.json").write_text(json.dumps({"format": "kwtl-project/1", "rounds": [entry]}))
    return read_project(folder)


def the_line(read, *arguments, **changes):
    with pytest.raises(KWTLError) as error:
        read(*arguments, **changes)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


@pytest.mark.parametrize("name", ["selection", "project", "regions"])
def test_the_schemas_are_schemas(name):
    schema = json.loads(files("monai_kwtl.project").joinpath(f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)


def test_files_that_fit_are_read(tmp_path):
    (found,) = records(tmp_path, MASK)
    assert (found.mask, found.region.image, found.region.y, found.source) == ("b.png", "a/b.png", 3, "cvat")
    assert rounds(tmp_path)[0]["model"] == MODEL
    assert rounds(tmp_path, masks=None, model=None)[0]["masks"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("mask", value) for value in ("a/b.png", "a\\b.png", "..", "", "a\n", 3, None)],
        *[("selection_sha256", value) for value in ("0" * 63, f"{SHA256}\n", SHA256.upper(), None)],
        *[("image", value) for value in ("/a", "../a", "1:a", "a\x7f")],
        *[("x", value) for value in (1.0, True, -1, 2**31)],
        *[("score", value) for value in (10**400, True, "1")],
        ("source", 1),
        ("page", None),
    ],
)
def test_a_wrong_field_of_the_mask_index_is_named(tmp_path, field, value):
    line = the_line(records, tmp_path, MASK, MASK | {"mask": "c.png", "x": 9, field: value})
    assert line.startswith(f"{tmp_path / 'regions.json'}: regions[1].{field} must be ")
    assert line.endswith("write it again with kwtl import")


@pytest.mark.parametrize("field", MASK)
def test_a_missing_field_of_the_mask_index_is_named(tmp_path, field):
    line = the_line(records, tmp_path, {key: value for key, value in MASK.items() if key != field})
    assert f"regions[0].{field} is missing" in line


@pytest.mark.parametrize("other", [MASK, MASK | {"mask": "c.png"}, MASK | {"mask": "B.PNG", "x": 9}])
def test_a_mask_or_region_given_twice_is_refused(tmp_path, other):
    assert "regions[1] repeats an earlier region or mask" in the_line(records, tmp_path, MASK, other)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"round": 2}, "round"),
        ({"selection": None}, "selection"),
        ({"selection": SELECTION | {"images": -1}}, "selection.images"),
        ({"selection": SELECTION | {"regions": [REGION, REGION | {"width": 0}]}}, "selection.regions[1].width"),
        ({"masks": 3}, "masks"),
        ({"masks": MASKS | {"foreground": 1.5}}, "masks.foreground"),
        ({"model": MODEL | {"sha256": "x"}}, "model.sha256"),
        ({"model": MODEL | {"held_out_iou": True}}, "model.held_out_iou"),
        ({"model": {key: value for key, value in MODEL.items() if key != "held_out_iou"}}, "model.held_out_iou"),
    ],
)
def test_a_wrong_field_of_the_project_is_named(tmp_path, changes, field):
    assert f"{tmp_path / 'project.json'}: rounds[0].{field} " in the_line(rounds, tmp_path, **changes)


def test_another_format_is_said_before_all_else(tmp_path):
    (tmp_path / "regions.json").write_text('{"format": "kwtl-masks/2", "regions": [{}, {"x": 1.5}], "z": 1}')
    assert "format must be kwtl-masks/1, not 'kwtl-masks/2'" in the_line(read_record, tmp_path)


def test_fields_that_are_nested_deeply_are_refused_or_read(tmp_path):
    for depth in range(100, 1100, 25):
        nested = "[" * depth + "]" * depth
        (tmp_path / "regions.json").write_text(f'{{"format": "kwtl-masks/1", "regions": {{"a": {nested}}}}}')
        the_line(read_record, tmp_path)

from __future__ import annotations

import csv
import json
import logging
import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.file_names import region_file_names, safe_stems
from monai_kwtl.project.region_masks import read_region_masks
from monai_kwtl.project.selection_file import read_selection
from monai_kwtl.project.selection_folder import check_output, write_selection
from monai_kwtl.selection.regions import Region

SHA_A, SHA_B = "a" * 64, "0123456789abcdef" * 4
BUDGET, COST = {"shots": 3}, {"windows": 4, "images": 2, "unique_pixels": 7777}


def make_items(folder: Path, sizes=((50, 70), (41, 33)), names=("images/03.png", "images/b.tif")) -> list[dict]:
    """Two images of odd, non-square sizes."""
    generator = np.random.default_rng(5)
    items = []
    for (height, width), name, sha in zip(sizes, names, (SHA_A, SHA_B), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width), dtype=np.uint8)).save(path)
        items.append({"image": str(path), "name": name, "page": None, "sha256": sha, "height": height, "width": width})
    return items


def read(item: dict) -> np.ndarray:
    return np.asarray(Image.open(item["image"]))[None]


REGIONS = [
    Region(1, "images/03.png", None, SHA_A, 7, 2, 20, 16, 0.123456789123),
    Region(2, "images/b.tif", None, SHA_B, 0, 25, 20, 16, 0.1),
    Region(3, "images/03.png", None, SHA_A, 50, 34, 20, 16, 1e-12),
    Region(4, "images/03.png", None, SHA_A, 10, 5, 20, 16, 0.0),
]


def windows():
    for region in REGIONS:
        yield region.image, region.page, region.x, region.y, region.width, region.height, np.float64(region.score)


def write(folder: Path, data: Path, regions=REGIONS, **options) -> Path:
    arguments = {
        "budget": BUDGET,
        "cost": COST,
        "created_with": {"torch": "2.13.0", "seed": 0, "ckpt": "/home/somebody/model.pt", "psi": 1.3},
        "items": make_items(data),
        "windows": windows(),
        "read": read,
    }
    return write_selection(folder, regions, **{**arguments, **options})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write(tmp_path / "out", tmp_path / "data")
    return tmp_path / "out"


def one_line(error: pytest.ExceptionInfo[KWTLError]) -> str:
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 600
    return message


# ---- writing


def test_what_is_read_is_what_was_written(written: Path):
    selection = read_selection(written)
    expected = [replace(region, score=float(f"{region.score:.9g}")) for region in REGIONS]
    assert selection["regions"] == expected
    assert selection["budget"] == BUDGET and selection["cost"] == COST
    assert read_selection(written / "selection.json") == selection


def test_file_follows_the_published_schema(written: Path):
    schema = json.loads(files("monai_kwtl.project").joinpath("selection.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((written / "selection.json").read_text()), schema)


def test_fields_and_layout_of_the_file(written: Path):
    raw = (written / "selection.json").read_bytes()
    document = json.loads(raw)
    assert list(document) == ["format", "created_with", "budget", "cost", "regions"]
    assert document["format"] == "kwtl-selection/1"
    assert list(document["regions"][0]) == ["rank", "image", "image_sha256", "x", "y", "width", "height", "score"]
    assert document["regions"][0]["score"] == 0.123456789
    assert raw.endswith(b"}\n") and b"\r" not in raw and b'\n  "format"' in raw
    assert document["created_with"]["ckpt"] == "model.pt"


def test_bytes_do_not_depend_on_folder_order_or_key_order(tmp_path: Path):
    write(tmp_path / "a", tmp_path / "data")
    write(
        tmp_path / "somewhere/else",
        tmp_path / "other data",
        regions=REGIONS[::-1],
        created_with={"psi": np.float64(1.3), "ckpt": Path("/mnt/model.pt"), "seed": np.int64(0), "torch": "2.13.0"},
    )
    names = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file())
    other = tmp_path / "somewhere/else"
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (other / name).read_bytes(), name


def test_tables_hold_every_region_and_every_window(written: Path):
    rows = list(csv.DictReader((written / "selection.csv").read_text().splitlines()))
    assert list(rows[0]) == ["rank", "image", "page", "x", "y", "width", "height", "score"]
    assert [(row["rank"], row["image"], row["page"], row["x"]) for row in rows][:2] == [
        ("1", "images/03.png", "", "7"),
        ("2", "images/b.tif", "", "0"),
    ]
    scores = list(csv.reader((written / "scores.csv").read_text().splitlines()))
    assert scores[0] == ["image", "page", "x", "y", "width", "height", "score"]
    assert len(scores) == 1 + len(REGIONS)
    assert [float(row[-1]) for row in scores[1:]] == [0.123456789, 0.1, 1e-12, 0.0]


def test_outlines_are_closed_boxes_through_the_pixel_edges(written: Path):
    assert sorted(path.name for path in (written / "geojson").iterdir()) == ["03.geojson", "b.geojson"]
    document = json.loads((written / "geojson/03.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    for region, feature in zip([REGIONS[0], REGIONS[2], REGIONS[3]], document["features"], strict=True):
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid and polygon.area == region.width * region.height
        assert polygon.bounds == (region.x, region.y, region.x + region.width, region.y + region.height)
        assert polygon.contains(shapely.Point(region.x + 0.5, region.y + 0.5))  # the centre of the top left pixel
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["name"] == f"rank {region.rank}"
        assert feature["properties"]["classification"]["name"] == "KWTL region"
        assert len(feature["properties"]["classification"]["color"]) == 3


def test_crops_are_the_pixels_of_the_image(written: Path, tmp_path: Path):
    names = region_file_names(REGIONS)
    assert names[0] == "001_03_x7_y2.png"
    assert sorted(path.name for path in (written / "regions").iterdir()) == sorted(names)
    for region, name in zip(REGIONS, names, strict=True):
        image = cv2.imread(str(tmp_path / "data" / region.image), cv2.IMREAD_GRAYSCALE)
        crop = cv2.imread(str(written / "regions" / name), cv2.IMREAD_UNCHANGED)
        rows, columns = range(region.y, region.y + region.height), range(region.x, region.x + region.width)
        assert np.array_equal(crop, image[np.ix_(rows, columns)])


def test_pages_carry_their_number_everywhere(tmp_path: Path):
    stack = np.random.default_rng(0).integers(0, 256, (3, 1, 20, 30), dtype=np.uint8)
    items = [{"name": "s.tif", "page": page, "height": 20, "width": 30, "sha256": SHA_A} for page in range(3)]
    regions = [Region(1, "s.tif", 2, SHA_A, 1, 2, 10, 8, 0.5), Region(2, "s.tif", 0, SHA_A, 1, 2, 10, 8, 0.4)]
    options = {"items": items, "windows": [], "read": lambda item: stack[item["page"]]}
    write(tmp_path, tmp_path, regions=regions, **options)
    assert read_selection(tmp_path)["regions"] == regions
    assert json.loads((tmp_path / "selection.json").read_text())["regions"][0]["page"] == 2
    crop = np.asarray(Image.open(tmp_path / "regions/001_s_p2_x1_y2.png"))
    assert np.array_equal(crop, stack[2, 0, 2:10, 1:11])
    planes = json.loads((tmp_path / "geojson/s.geojson").read_text())["features"]
    assert [feature["geometry"]["plane"]["z"] for feature in planes] == [2, 0]
    assert next(csv.DictReader((tmp_path / "selection.csv").read_text().splitlines()))["page"] == "2"


def test_each_image_is_read_once(tmp_path: Path):
    seen = []
    write(tmp_path / "out", tmp_path, read=lambda item: seen.append(item["name"]) or read(item))
    assert sorted(seen) == ["images/03.png", "images/b.tif"]


def test_a_failed_run_leaves_the_former_selection_whole(written: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in written.rglob("*") if path.is_file()}

    def stop(item):
        if item["name"].endswith("b.tif"):
            raise OSError(28, "No space left on device")
        return read(item)

    with pytest.raises(KWTLError, match="cannot be read"):
        write(written, tmp_path / "data", read=stop, overwrite=True)
    assert {path: path.read_bytes() for path in written.rglob("*") if path.is_file()} == before
    assert not list(written.glob(".*"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch):
    save_picture = Image.Image.save

    def save_until_full(self, path, *arguments):
        if "regions" in Path(path).parts:
            raise OSError(28, "No space left on device")
        save_picture(self, path, *arguments)

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with pytest.raises(KWTLError, match="No space left on device") as error:
        write(tmp_path / "out", tmp_path / "data")
    assert "--output_dir" in one_line(error)
    assert list((tmp_path / "out").iterdir()) == []


def test_selection_json_comes_last(tmp_path: Path, monkeypatch):
    from monai_kwtl.project import selection_folder as module

    moved = []
    original = module.os.replace
    monkeypatch.setattr(module.os, "replace", lambda a, b: (moved.append(Path(b).name), original(a, b)))
    write(tmp_path / "out", tmp_path / "data")
    assert moved[-1] == "selection.json" and len(moved) == 4 + 2 + 3


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path):
    (tmp_path / "out/.selection.unfinished/regions").mkdir(parents=True)
    (tmp_path / "out/.selection.unfinished/regions/001_x_x0_y0.png").write_bytes(b"")
    write(tmp_path / "out", tmp_path / "data")
    assert not (tmp_path / "out/.selection.unfinished").exists()
    assert not (tmp_path / "out/regions/001_x_x0_y0.png").exists()


def test_overwriting_removes_the_former_files_and_nothing_else(written: Path, tmp_path: Path):
    theirs = [
        "notes.txt",
        "regions/notes.txt",
        "regions/my mask.png",
        "geojson/cells.geojson",
        "masks/001_03_x7_y2.png",
    ]
    for name in theirs:
        (written / name).parent.mkdir(exist_ok=True)
        (written / name).write_text("mine")
    with pytest.raises(KWTLError):
        write(written, tmp_path / "data")
    write(written, tmp_path / "data", regions=[replace(REGIONS[1], rank=1)], overwrite=True)
    assert all((written / name).read_text() == "mine" for name in theirs)
    assert sorted(path.name for path in written.glob("regions/0*.png")) == ["001_b_x0_y25.png"]
    assert sorted(path.name for path in written.glob("geojson/*")) == ["b.geojson", "cells.geojson"]
    assert len(read_selection(written)["regions"]) == 1


@pytest.mark.parametrize(
    ("region", "word"),
    [
        (Region(1, "images/03.png", None, SHA_A, 60, 0, 20, 16, 0.0), "leaves"),
        (Region(1, "images/04.png", None, SHA_A, 0, 0, 20, 16, 0.0), "not in the pool"),
        (Region(1, "images/03.png", 1, SHA_A, 0, 0, 20, 16, 0.0), "not in the pool"),
    ],
)
def test_regions_that_do_not_fit_the_pool_are_refused(tmp_path: Path, region: Region, word: str):
    with pytest.raises(KWTLError, match=word) as error:
        write(tmp_path / "out", tmp_path / "data", regions=[region])
    one_line(error)
    assert not (tmp_path / "out/selection.json").exists()


def test_values_without_a_json_form_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="nan"):
        write(tmp_path / "out", tmp_path, created_with={"psi": math.nan})
    with pytest.raises(TypeError, match="object"):
        write(tmp_path / "out", tmp_path, created_with={"psi": object()})


# ---- where to write


def test_output_is_checked_before_the_run(written: Path, tmp_path: Path):
    with pytest.raises(KWTLError) as error:
        check_output(written)
    message = one_line(error)
    assert str(written / "selection.json") in message
    assert "choose another --output_dir or add --overwrite true" in message
    check_output(written, overwrite=True)
    check_output(tmp_path / "new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(KWTLError, match="cannot be written") as error:
            check_output(folder)
        one_line(error)


# ---- names


def test_stems_are_unique_and_portable():
    names = [
        "images/03.png",
        "images/03.tif",
        "a/03.png",
        "b.nii.gz",
        "B.png",
        "con<img onerror=1>.png",
        "x" * 300 + ".png",
    ]
    stems = safe_stems(names)
    assert len({stem.casefold() for stem in stems.values()}) == len(names)
    assert all(len(stem) <= 70 and not set(stem) & set('<>:"/\\|?* ') for stem in stems.values())
    assert stems["a/03.png"] == "03" and stems["images/03.tif"].startswith("03")
    assert safe_stems(names[::-1]) == stems


def test_crop_names_sort_by_rank():
    regions = [replace(REGIONS[0], rank=rank, x=rank) for rank in range(1, 1201)]
    assert region_file_names(regions) == sorted(region_file_names(regions))


# ---- reading what others wrote


def change(document: dict, key: str, value) -> None:
    *path, last = key.split(".")
    for part in path:
        document = document[int(part)] if part.isdigit() else document[part]
    if value is KeyError:
        del document[last]
    else:
        document[int(last) if last.isdigit() else last] = value


BAD_FIELDS = [
    ("format", "kwtl-selection/2", "format"),
    ("format", KeyError, "format"),
    ("format", 1, "format"),
    ("created_with", KeyError, "created_with"),
    ("budget", [], "budget"),
    ("cost.windows", "4", "cost.windows"),
    ("cost.images", -1, "cost.images"),
    ("cost.unique_pixels", KeyError, "cost.unique_pixels"),
    ("regions", {}, "regions"),
    ("regions.1", 5, "regions[1]"),
    ("regions.1.rank", 1, "regions[1].rank"),
    ("regions.1.rank", 9, "regions[1].rank"),
    ("regions.1.rank", 0, "regions[1].rank"),
    ("regions.1.rank", True, "regions[1].rank"),
    ("regions.1.rank", KeyError, "regions[1].rank"),
    ("regions.1.image", "../secret.png", "regions[1].image"),
    ("regions.1.image", "images/../../secret.png", "regions[1].image"),
    ("regions.1.image", "images\\..\\..\\secret.png", "regions[1].image"),
    ("regions.1.image", "/etc/passwd", "regions[1].image"),
    ("regions.1.image", "C:/x.png", "regions[1].image"),
    ("regions.1.image", "\\\\server\\share\\x.png", "regions[1].image"),
    ("regions.1.image", "images//x.png", "regions[1].image"),
    ("regions.1.image", "", "regions[1].image"),
    ("regions.1.image", "a\nb.png", "regions[1].image"),
    ("regions.1.image", "a\x00.png", "regions[1].image"),
    ("regions.1.image", None, "regions[1].image"),
    ("regions.1.page", -1, "regions[1].page"),
    ("regions.1.page", None, "regions[1].page"),
    ("regions.1.page", 1.0, "regions[1].page"),
    ("regions.1.image_sha256", "abc", "regions[1].image_sha256"),
    ("regions.1.image_sha256", "G" * 64, "regions[1].image_sha256"),
    ("regions.2.image_sha256", "b" * 64, "regions[2].image_sha256"),
    ("regions.1.x", -1, "regions[1].x"),
    ("regions.1.y", 2**31, "regions[1].y"),
    ("regions.1.x", 1.5, "regions[1].x"),
    ("regions.1.width", 0, "regions[1].width"),
    ("regions.1.height", "16", "regions[1].height"),
    ("regions.1.score", "high", "regions[1].score"),
    ("regions.1.score", 10**400, "regions[1].score"),
]


@pytest.mark.parametrize(("key", "value", "field"), BAD_FIELDS)
def test_a_wrong_field_is_named_in_one_line(written: Path, key: str, value, field: str):
    path = written / "selection.json"
    document = json.loads(path.read_text())
    change(document, key, value)
    path.write_text(json.dumps(document))
    with pytest.raises(KWTLError) as error:
        read_selection(path)
    message = one_line(error)
    assert str(path) in message and field in message


def test_the_schema_refuses_what_the_reader_refuses(written: Path):
    schema = jsonschema.Draft202012Validator(
        json.loads(files("monai_kwtl.project").joinpath("selection.schema.json").read_text())
    )
    beyond = [("regions.1.rank", 1), ("regions.1.rank", 9), ("regions.2.image_sha256", "b" * 64)]  # compare regions
    beyond += [("regions.1.page", 1.0), ("regions.1.score", 10**400)]  # for JSON Schema 1.0 is whole, any number finite
    for key, value, _ in BAD_FIELDS:
        document = json.loads((written / "selection.json").read_text())
        change(document, key, value)
        if (key, value) not in beyond:
            assert not schema.is_valid(document), (key, value)


def test_a_region_given_twice_is_refused(written: Path):
    path = written / "selection.json"
    document = json.loads(path.read_text())
    document["regions"].append({**document["regions"][0], "rank": 5})
    path.write_text(json.dumps(document))
    with pytest.raises(KWTLError, match=r"regions\[4\] is the same region as regions\[0\]") as error:
        read_selection(path)
    one_line(error)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "line 1"),
        (b'{"format": "kwtl-selection/1",\n "regions": [}', "line 2, column 14"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"format": NaN}', "NaN"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
        (b"[" * 100_000, "deep"),
        (b'{"format": ' + b"9" * 5000 + b"}", "digits"),
        (b"[]", "object"),
        (b'"text"', "object"),
    ],
)
def test_what_is_no_selection_is_refused_with_its_place(tmp_path: Path, content: bytes, word: str):
    path = tmp_path / "selection.json"
    path.write_bytes(content)
    with pytest.raises(KWTLError, match=word) as error:
        read_selection(path)
    assert str(path) in one_line(error)


def test_a_missing_selection_is_refused(tmp_path: Path):
    with pytest.raises(KWTLError, match="No such file") as error:
        read_selection(tmp_path)
    one_line(error)


def test_unknown_fields_order_and_byte_order_mark_do_not_matter(written: Path):
    path = written / "selection.json"
    document = json.loads(path.read_text())
    document["regions"] = [{**region, "note": "x"} for region in document["regions"][::-1]]
    expected = read_selection(path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({**document, "later": 1}).encode())
    assert read_selection(path) == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_or_refused_in_one_line(written: Path, data: st.DataObject):
    raw = bytearray((written / "selection.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = written / "mutated.json"
    path.write_bytes(raw)
    try:
        regions = read_selection(path)["regions"]
        assert [region.rank for region in regions] == list(range(1, len(regions) + 1))
    except KWTLError as error:
        assert "\n" not in str(error)


# ---- masks back


def save(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.fixture
def support(written: Path, tmp_path: Path) -> tuple[dict, list[dict], Path]:
    return read_selection(written), make_items(tmp_path / "data"), tmp_path / "masks"


def test_only_pixels_of_annotated_regions_are_known(support, caplog):
    selection, items, masks = support
    generator = np.random.default_rng(1)
    drawn = {}
    names = region_file_names(REGIONS)
    for index in (0, 3):  # these two overlap
        drawn[index] = generator.integers(0, 2, (16, 20), dtype=np.uint8)
        save(masks / names[index], drawn[index] * (255 if index else 1))
    with caplog.at_level(logging.WARNING, "monai_kwtl"):
        entries = read_region_masks(selection, masks, items)
    assert [entry["item"]["name"] for entry in entries] == ["images/03.png"]
    assert "2 of 4 regions have no mask" in caplog.text
    label, known = entries[0]["label"], entries[0]["known"]
    assert label.shape == known.shape == (1, 50, 70) and label.dtype == np.uint8 and known.dtype == bool
    for y in range(50):
        for x in range(70):
            values = [
                drawn[index][y - REGIONS[index].y, x - REGIONS[index].x]
                for index in drawn
                if 0 <= y - REGIONS[index].y < 16 and 0 <= x - REGIONS[index].x < 20
            ]
            assert known[0, y, x] == bool(values)
            assert label[0, y, x] == max(values, default=0)


def test_whole_masks_count_only_inside_the_regions(support):
    selection, items, masks = support
    save(masks / "03.png", np.full((50, 70), 7, np.uint8))  # an instance label: any non-zero value is foreground
    (entry,) = read_region_masks(selection, masks, items)
    inside = np.zeros((50, 70), bool)
    for region in (REGIONS[0], REGIONS[2], REGIONS[3]):
        inside[region.y : region.y + 16, region.x : region.x + 20] = True
    assert np.array_equal(entry["known"][0], inside)
    assert np.array_equal(entry["label"][0], inside.astype(np.uint8))


def test_whole_masks_without_a_selection_are_known_everywhere(support):
    _, items, masks = support
    mask = np.random.default_rng(2).integers(0, 2, (41, 33), dtype=np.uint8)
    save(masks / "b.png", mask * 255)
    (entry,) = read_region_masks(None, masks, items)
    assert entry["item"] is items[1] and entry["known"].all()
    assert np.array_equal(entry["label"], mask[None])


def test_the_mask_of_a_region_holds_over_that_of_its_image(support):
    selection, items, masks = support
    save(masks / "b.png", np.full((41, 33), 255, np.uint8))
    save(masks / region_file_names(REGIONS)[1], np.zeros((16, 20), np.uint8))
    (entry,) = read_region_masks(selection, masks, items)
    assert entry["known"].sum() == 16 * 20 and not entry["label"].any()


def test_sixteen_bit_tiff_masks_of_regions_are_read(support):
    selection, items, masks = support
    mask = np.zeros((16, 20), np.uint16)
    mask[3:5, 4:9] = 40_000
    save((masks / region_file_names(REGIONS)[1]).with_suffix(".tif"), mask)
    (entry,) = read_region_masks(selection, masks, items)
    assert entry["label"].sum() == 10 and entry["label"][0, 25 + 3, 4] == 1


def test_pages_have_masks_of_their_own(tmp_path: Path):
    items = [{"name": "s.tif", "page": page, "height": 20, "width": 30, "sha256": SHA_A} for page in range(3)]
    selection = {
        "regions": [Region(1, "s.tif", 1, SHA_A, 4, 5, 6, 7, 0.0), Region(2, "s.tif", 2, SHA_A, 0, 0, 6, 7, 0.0)]
    }
    save(tmp_path / "001_s_p1_x4_y5.png", np.full((7, 6), 255, np.uint8))
    save(tmp_path / "s_p2.png", np.full((20, 30), 255, np.uint8))
    first, second = read_region_masks(selection, tmp_path, items)
    assert first["item"]["page"] == 1 and first["known"].sum() == 42 and first["known"][0, 5, 4]
    assert second["item"]["page"] == 2 and second["known"].sum() == 42 and second["known"][0, 0, 0]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("001_03_x7_y2.png", (20, 16), ["001_03_x7_y2.png", "16 wide and 20 high", "rank 1", "20 wide and 16 high"]),
        ("03.png", (70, 50), ["03.png", "50 wide and 70 high", "70 wide and 50 high"]),
    ],
)
def test_a_mask_of_another_size_is_refused(support, name: str, shape: tuple[int, int], words: list[str]):
    selection, items, masks = support
    save(masks / name, np.zeros(shape, np.uint8))
    with pytest.raises(KWTLError) as error:
        read_region_masks(selection, masks, items)
    assert all(word in one_line(error) for word in words)


def test_masks_that_cannot_be_matched_name_what_was_expected(support):
    selection, items, masks = support
    save(masks / "result.png", np.zeros((16, 20), np.uint8))
    with pytest.raises(KWTLError, match=r"001_03_x7_y2\.png or .*03\.png") as error:
        read_region_masks(selection, masks, items)
    one_line(error)
    with pytest.raises(KWTLError, match=r"03\.png or b\.png"):
        read_region_masks(None, masks, items)


def test_a_missing_folder_of_masks_is_refused(support):
    selection, items, masks = support
    with pytest.raises(KWTLError, match="No such file") as error:
        read_region_masks(selection, masks, items)
    one_line(error)


def test_two_masks_of_one_region_are_refused(support):
    selection, items, masks = support
    save(masks / "001_03_x7_y2.png", np.zeros((16, 20), np.uint8))
    save(masks / "001_03_x7_y2.tif", np.zeros((16, 20), np.uint8))
    with pytest.raises(KWTLError, match="both claim") as error:
        read_region_masks(selection, masks, items)
    one_line(error)


def test_a_mask_that_could_belong_to_two_images_is_refused(tmp_path: Path):
    items = make_items(tmp_path / "data", ((20, 30), (20, 30)), ("images/a.png", "images/a.tif"))
    save(tmp_path / "masks/a.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(KWTLError, match="could be the mask of images/a.png and images/a.tif") as error:
        read_region_masks(None, tmp_path / "masks", items)
    one_line(error)


def test_base_names_end_before_ome_and_other_files_are_passed_over(tmp_path: Path):
    items = make_items(tmp_path / "data", names=("images/a.ome.tif", "images/b.tif"))
    save(tmp_path / "masks/a.png", np.ones((50, 70), np.uint8))
    (tmp_path / "masks/a.txt").write_text("notes")
    (entry,) = read_region_masks(None, tmp_path / "masks", items)
    assert entry["item"] is items[0] and entry["label"].all()


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"height": 17}, "leaves"),
        ({"sha256": "c" * 64}, "has changed"),
        ({"name": "images/04.png"}, "not in the data set"),
    ],
)
def test_a_selection_of_other_images_is_refused(support, changed: dict, word: str):
    selection, items, masks = support
    save(masks / "001_03_x7_y2.png", np.zeros((16, 20), np.uint8))
    with pytest.raises(KWTLError, match=word) as error:
        read_region_masks(selection, masks, [{**items[0], **changed}, items[1]])
    one_line(error)

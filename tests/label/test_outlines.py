"""Outlines of QuPath, CVAT and MONAI Label's viewers, against masks that OpenCV and counting give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from monai_kwtl.errors import KWTLError
from monai_kwtl.label.state.outlines import geojson, mask_outlines, read_outlines, xml
from monai_kwtl.project.selection_folder import feature_collection
from monai_kwtl.selection.regions import Region

ITEM = {"name": "images/cells.png", "page": None, "height": 31, "width": 47}


def blob(shape=(31, 47)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[4:12, 20:41] = True
    mask[6:9, 25:30] = False
    mask[20:29, 1:5] = True
    return mask


def write(path: Path, document: object) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def box(x, y, width, height, **properties) -> dict:
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


@pytest.mark.parametrize("form", ["collection", "list of features", "multipolygon", "collection of geometries"])
def test_geojson_in_every_form_gives_back_the_mask(tmp_path, form):
    document = geojson(mask_outlines(blob()))
    if form == "list of features":
        document = document["features"]
    elif form != "collection":
        geometries = [feature["geometry"] for feature in document["features"]]
        whole = {"type": "MultiPolygon", "coordinates": [g["coordinates"] for g in geometries]}
        document = whole if form == "multipolygon" else {"type": "GeometryCollection", "geometries": geometries}
    assert np.array_equal(read_outlines(write(tmp_path / "a.geojson", document), ITEM).mask, blob())


def test_regions_that_kwtl_gave_out_are_no_cells(tmp_path):
    region = Region(1, "images/cells.png", None, "0" * 64, 10, 3, 20, 25, 0.5)
    document = feature_collection([region])
    document["features"].append(box(12, 5, 4, 3))
    outlines = read_outlines(write(tmp_path / "a.geojson", document), ITEM)
    assert outlines.regions == [(10, 3, 20, 25)]
    assert outlines.mask.sum() == 12 and outlines.mask[5:8, 12:16].all()


def test_points_and_lines_hold_no_pixel_and_null_properties_do_no_harm(tmp_path):
    features = [{"type": "Feature", "properties": None, "geometry": {"type": "Point", "coordinates": [3, 4]}}]
    document = {"type": "FeatureCollection", "features": [*features, box(1, 2, 3, 4) | {"properties": None}]}
    assert read_outlines(write(tmp_path / "a.geojson", document), ITEM).mask.sum() == 12


def test_a_page_has_the_outlines_of_its_plane(tmp_path):
    document = geojson(mask_outlines(blob()), page=2)
    document["features"] += geojson(mask_outlines(~blob()), page=1)["features"]
    path = write(tmp_path / "a.geojson", document)
    assert np.array_equal(read_outlines(path, ITEM | {"page": 2}).mask, blob())
    assert np.array_equal(read_outlines(path, ITEM | {"page": 1}).mask, ~blob())
    assert not read_outlines(path, ITEM | {"page": 0}).mask.any()


def coco(**changes) -> dict:
    return {
        "images": [
            {"id": 1, "file_name": "other.png"},
            {"id": 7, "file_name": "sub/cells.png", "height": 31, "width": 47},
        ],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {
                "image_id": 7,
                "category_id": 1,
                "segmentation": [[2, 3, 12, 3, 12, 9, 2, 9], [20, 20, 22, 20, 22, 21, 20, 21]],
            },
            {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 47, 0, 47, 31, 0, 31]]},
        ],
    } | changes


def test_coco_polygons_are_those_of_the_image_by_its_name(tmp_path):
    mask = read_outlines(write(tmp_path / "instances.json", coco()), ITEM).mask
    expected = np.zeros((31, 47), dtype=bool)
    expected[3:9, 2:12] = expected[20, 20:22] = True
    assert np.array_equal(mask, expected)


def test_coco_run_lengths_go_down_the_columns(tmp_path):
    flat = blob().T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    annotation = {"image_id": 7, "category_id": 1, "segmentation": {"counts": counts, "size": [31, 47]}}
    assert np.array_equal(read_outlines(write(tmp_path / "a.json", coco(annotations=[annotation])), ITEM).mask, blob())


def test_compressed_run_lengths_of_coco_are_read_as_pycocotools_writes_them(tmp_path):
    encoded = coco_mask.encode(np.asfortranarray(blob(), dtype=np.uint8))
    segmentation = {"counts": encoded["counts"].decode(), "size": [31, 47]}
    document = coco(annotations=[{"image_id": 7, "category_id": 1, "segmentation": segmentation}])
    assert np.array_equal(read_outlines(write(tmp_path / "a.json", document), ITEM).mask, blob())


def test_an_outline_that_crosses_itself_holds_what_it_goes_round(tmp_path):
    ring = [[1, 1], [9, 9], [9, 1], [1, 9], [1, 1]]
    document = {"type": "Polygon", "coordinates": [ring]}
    mask = read_outlines(write(tmp_path / "a.geojson", document), ITEM).mask
    assert mask[4, 1] and mask[4, 8] and not mask[1, 4] and not mask[8, 4]


def test_xml_gives_back_outlines_without_holes(tmp_path):
    mask = blob()
    mask[6:9, 25:30] = True
    (tmp_path / "a.xml").write_bytes(xml(mask_outlines(mask)))
    assert np.array_equal(read_outlines(tmp_path / "a.xml", ITEM).mask, mask)


def winding(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """How often a closed ring goes round each pixel centre, by the angles under which its edges are seen."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    start = np.stack([ring[:, 0] - columns[..., None], ring[:, 1] - rows[..., None]])
    end = np.roll(start, -1, axis=-1)
    cross, dot = start[0] * end[1] - start[1] * end[0], (start * end).sum(axis=0)
    return np.rint(np.arctan2(cross, dot).sum(axis=-1) / (2 * np.pi)).astype(int)


@pytest.mark.parametrize("points", [3, 4, 7, 40])
def test_outlines_that_cross_themselves_anywhere_hold_what_they_go_round(tmp_path, rng, points):
    for _ in range(10):
        ring, hole = rng.uniform(-5, 50, (2, points, 2))
        document = {"type": "Polygon", "coordinates": [ring.tolist(), hole.tolist()]}
        mask = read_outlines(write(tmp_path / "a.geojson", document), ITEM).mask
        assert np.array_equal(mask, (winding(ring, 31, 47) != 0) & (winding(hole, 31, 47) == 0))


@pytest.mark.parametrize("points", [2_000, 3_000, 100_000])
def test_the_work_of_an_outline_grows_with_its_size_and_not_with_its_crossings(tmp_path, rng, points, monkeypatch):
    from monai_kwtl.exchange import polygons

    crossed = []
    spans = polygons._spans
    monkeypatch.setattr(polygons, "_spans", lambda ring, height: crossed.append(len(ring)) or spans(ring, height))
    monkeypatch.setattr("shapely.make_valid", None)
    item = ITEM | {"height": 300, "width": 310}
    document = {"type": "Polygon", "coordinates": [rng.uniform(0, 300, (points, 2)).round(1).tolist()]}
    mask = read_outlines(write(tmp_path / "a.geojson", document), item).mask
    assert mask.mean() > 0.7
    assert sum(crossed) == 2 * (points + 1)  # each edge is looked at twice: what it will cost, and where it crosses


@pytest.mark.parametrize(
    ("rings", "reason"),
    [
        ([[[0, 0], [9, 0], [9, 9]] * 400_000], "1,000,000 points"),
        ([[[0, 0], [2**20, 2**20]] * 4_000], "too often"),
    ],
)
def test_outlines_beyond_the_budget_are_refused_before_they_are_painted(tmp_path, rings, reason, monkeypatch):
    monkeypatch.setattr("monai_kwtl.exchange.polygons.paint_rings", None)
    item = ITEM | {"height": 20_000, "width": 100}
    for name, document in (
        ("a.geojson", {"type": "Polygon", "coordinates": rings}),
        (
            "a.json",
            coco(
                images=[{"id": 7, "file_name": "cells.png"}],
                annotations=[{"image_id": 7, "segmentation": [np.ravel(rings[0]).tolist()]}],
            ),
        ),
    ):
        with pytest.raises(KWTLError, match=reason):
            read_outlines(write(tmp_path / name, document), item)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.geojson", ""),
        ("a.geojson", "[1, 2"),
        ("a.geojson", "3"),
        ("a.geojson", '{"type": "FeatureCollection"}'),
        ("a.geojson", '{"type": "Feature", "geometry": {"type": "Circle"}}'),
        ("a.geojson", '{"type": "Polygon", "coordinates": [[0, 0], [1, 1]]}'),
        ("a.geojson", '{"type": "Polygon", "coordinates": [[["a", 0], [1, 1], [2, 2]]]}'),
        ("a.geojson", '{"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [2, 2]]]}'),
        ("a.geojson", "[" * 100_000),
        ("a.json", json.dumps(coco(images=[]))),
        ("a.json", json.dumps(coco(images=[{"id": 7, "file_name": "cells.png", "height": 3, "width": 3}]))),
        (
            "a.json",
            json.dumps(coco(annotations=[{"image_id": 7, "segmentation": {"counts": "abc", "size": [31, 47]}}])),
        ),
        ("a.json", json.dumps(coco(annotations=[{"image_id": 7, "segmentation": {"counts": [5], "size": [31, 47]}}]))),
        ("a.json", json.dumps(coco(annotations=[{"image_id": 7, "segmentation": [[1, 2, 3]]}]))),
        ("a.xml", "<a"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'),
        ("a.xml", '<a><Annotation><Coordinate X="b" Y="1"/></Annotation></a>'),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(tmp_path, name, content):
    with pytest.raises(KWTLError) as error:
        read_outlines(write(tmp_path / name, content), ITEM)
    assert "\n" not in str(error.value) and "cells.png" in str(error.value)

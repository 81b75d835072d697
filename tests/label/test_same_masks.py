"""One file of outlines gives one mask, whether it is imported by ``kwtl import`` or sent to the label server."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.coco import encode_counts, read_cvat
from monai_kwtl.exchange.geojson import read_qupath
from monai_kwtl.label.state.outlines import read_outlines
from monai_kwtl.project.selection_folder import feature_collection
from monai_kwtl.selection.regions import Region

HEIGHT, WIDTH = 45, 62
ITEM = {"name": "images/a.png", "page": None, "height": HEIGHT, "width": WIDTH}
WHOLE = Region(1, "images/a.png", None, "0" * 64, 0, 0, WIDTH, HEIGHT, 1.0)
PART = Region(2, "images/a.png", None, "0" * 64, 11, 7, 33, 25, 0.5)
CROP = "001_a_x0_y0.png"

STAR = [[20.3, 3.1], [55.2, 12.4], [44.7, 41.9], [30.1, 22.2], [4.6, 38.8]]
HOLE = [[24.4, 12.3], [31.2, 12.9], [27.7, 19.1]]
BOW = [[8.2, 5.1], [50.3, 40.4], [50.9, 6.6], [7.7, 39.3]]
TWICE = [[10, 10], [40, 10], [40, 40], [20, 40], [20, 2], [30, 2], [30, 44], [10, 44]]  # goes round a part of it twice


def square(x, y, size=9):
    return [[x, y], [x + size, y], [x + size, y + size], [x, y + size], [x, y]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry, kind=None, **properties):
    classification = {} if kind is None else {"classification": kind}
    return {"type": "Feature", "geometry": geometry, "properties": {**properties, **classification}}


MULTI = {"type": "MultiPolygon", "coordinates": [[STAR, HOLE], [square(1, 30)], [square(5, 33)]]}
LINE = {"type": "LineString", "coordinates": [[0, 0], [60, 40]]}
GEOJSON = {
    "polygon": [feature(polygon(STAR))],
    "hole": [feature(polygon(STAR, HOLE))],
    "hole over the edge": [feature(polygon(STAR, square(1, 30, 20)))],
    "multipolygon": [feature(MULTI)],
    "collection": [feature({"type": "GeometryCollection", "geometries": [MULTI, LINE, polygon(square(50, 1))]})],
    "crossing": [feature(polygon(BOW))],
    "round twice": [feature(polygon(TWICE))],
    "crossing hole": [feature(polygon(square(2, 2, 40), BOW))],
    "beyond the image": [feature(polygon(square(-20, -20, 50)))],
    "overlapping": [feature(polygon(STAR)), feature(polygon(BOW))],
    "points and lines": [feature(LINE), feature({"type": "Point", "coordinates": [3, 4]}), feature(polygon(STAR))],
    "classes": [
        feature(polygon(square(1, 1)), {"name": "cell"}),
        feature(polygon(square(20, 1)), "Nucleus"),
        feature(polygon(square(1, 20)), {"names": ["Tumour", "Positive"]}),
        feature(polygon(square(30, 30)), {"name": "Ignore*"}),
        feature(polygon(square(40, 5)), {"name": "finish"}),
    ],
    "a bare list": None,
}
GEOJSON["a bare list"] = GEOJSON["classes"]


@pytest.mark.parametrize("mark", ["KWTL region", "Finished", "unfinished", "kwtl REGION"])
@pytest.mark.parametrize("case", GEOJSON)
def test_geojson(tmp_path, case, mark):
    document = feature_collection([WHOLE, PART])
    for rectangle in document["features"]:
        rectangle["properties"]["classification"] = {"name": mark}
    document["features"] += GEOJSON[case]
    (tmp_path / "a.geojson").write_text(json.dumps(document["features"] if case == "a bare list" else document))
    sent = read_outlines(tmp_path / "a.geojson", ITEM)
    imported = {annotation.rank: annotation for annotation in read_qupath(tmp_path, [WHOLE, PART], [])}
    assert 0 < sent.mask.sum() < HEIGHT * WIDTH
    assert np.array_equal(imported[1].mask, sent.mask)
    assert np.array_equal(imported[2].mask, sent.mask[PART.box.slices])
    assert sent.regions == ([] if mark == "unfinished" else [WHOLE.box, PART.box])
    assert (mark == "unfinished") == (not imported[1].finished)


def test_valid_polygons_are_what_shapely_finds_inside(tmp_path):
    document = feature_collection([WHOLE])
    document["features"] += GEOJSON["multipolygon"]
    (tmp_path / "a.geojson").write_text(json.dumps(document))
    rows, columns = np.indices((HEIGHT, WIDTH)) + 0.5
    shape = shapely.union_all([shapely.Polygon(rings[0], rings[1:]) for rings in MULTI["coordinates"]])
    (imported,) = read_qupath(tmp_path, [WHOLE], [])
    assert np.array_equal(imported.mask, shapely.contains_xy(shape, columns, rows))


def test_a_page_has_the_outlines_of_its_plane_and_a_file_without_pages_all(tmp_path):
    planes = [polygon(square(3, 4)), polygon(square(20, 4)) | {"plane": {"z": 2}}]
    for page, painted in ((None, 2), (0, 1), (2, 1)):
        region = Region(1, "images/a.png", page, "0" * 64, 0, 0, WIDTH, HEIGHT, 1.0)
        document = feature_collection([region])
        document["features"] += map(feature, planes)
        (tmp_path / "a.geojson").write_text(json.dumps(document))
        sent = read_outlines(tmp_path / "a.geojson", ITEM | {"page": page})
        (imported,) = read_qupath(tmp_path, [region], [])
        assert np.array_equal(imported.mask, sent.mask) and sent.mask.sum() == 81 * painted


def cell(segmentation, category=1, **more):
    return {"id": 1, "image_id": 5, "category_id": category, "segmentation": segmentation, **more}


def flat(ring):
    return np.ravel(ring).tolist()


CATEGORIES = ["cell", "nucleus", "Ignored", "finished", "unfinished", "KWTL region"]
RUNS = np.zeros((HEIGHT, WIDTH), dtype=bool)
RUNS[3:30, 5:40] = True
RUNS[10:20, 8:17] = False
COCO = {
    "polygon": [cell([flat(STAR)])],
    "pieces": [cell([flat(square(1, 1)), flat(square(30, 20)), flat(square(5, 5))])],
    "crossing": [cell([flat(BOW)])],
    "round twice": [cell([flat(TWICE)])],
    "run lengths": [cell({"size": [HEIGHT, WIDTH], "counts": encode_counts(RUNS)})],
    "box": [cell([], bbox=[4.2, 5.7, 20, 11.5])],
    "beyond the image": [cell([flat(square(-20, -20, 50))])],
    "labels": [cell([flat(square(1, 1))], 2), cell([flat(square(20, 1))], 3), cell([flat(square(40, 20))], 1)],
    "finished": [cell([flat(STAR)]), cell([flat(square(50, 0))], 4)],
    "unfinished": [cell([flat(STAR)]), cell([], 5, bbox=[0, 0, WIDTH, HEIGHT])],
    "a region": [cell([flat(STAR)]), cell([flat(square(2, 3, 30))], 6)],
    "no category": [{"image_id": 5, "segmentation": [flat(STAR)]}],
}


@pytest.mark.parametrize("case", COCO)
def test_coco(tmp_path, case):
    document = {
        "images": [{"id": 5, "file_name": f"sub/{CROP}", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, start=1)],
        "annotations": COCO[case],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    sent = read_outlines(tmp_path / "a.json", ITEM | {"name": CROP})
    (imported,) = read_cvat(tmp_path, [WHOLE], [CROP])
    assert 0 < sent.mask.sum() < HEIGHT * WIDTH
    assert np.array_equal(imported.mask, sent.mask)
    said = {"finished": [WHOLE.box], "unfinished": [], "a region": [(2, 3, 30, 30)]}
    assert sent.regions == said.get(case)
    assert imported.finished == (case != "unfinished")


@pytest.mark.parametrize("kind", ["geojson", "coco"])
def test_what_takes_long_to_paint_is_refused_by_both(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("monai_kwtl.exchange.polygons.MOST_POINTS", 20)
    monkeypatch.setattr("monai_kwtl.exchange.polygons.paint_rings", None)
    ring = square(3, 4) * 400
    document = feature_collection([WHOLE])
    document["features"].append(feature(polygon(ring)))
    if kind == "coco":
        document = {"images": [{"id": 5, "file_name": CROP}], "annotations": [cell([flat(ring)])]}
    path = tmp_path / ("a.json" if kind == "coco" else "a.geojson")
    path.write_text(json.dumps(document))
    with pytest.raises(KWTLError, match="more than 697 points"):
        read_outlines(path, ITEM | {"name": CROP if kind == "coco" else ITEM["name"]})
    with pytest.raises(KWTLError, match="more than 697 points"):
        read_cvat(tmp_path, [WHOLE], [CROP]) if kind == "coco" else read_qupath(tmp_path, [WHOLE], [])

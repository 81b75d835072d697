"""QuPath's GeoJSON: what shapely reads of it, which regions count as finished, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import Handout
from monai_kwtl.exchange.geojson import read_qupath, write_qupath
from monai_kwtl.exchange.polygons import number_objects
from monai_kwtl.selection.regions import Region

FIRST = Region(1, "images/a.png", None, "0" * 64, 10, 20, 30, 25, 1.0)
SECOND = Region(2, "images/a.png", None, "0" * 64, 60, 20, 30, 25, 0.5)


def write(folder, regions, predictions=None):
    write_qupath(folder, Handout(regions, [""] * len(regions), [], predictions))
    return {path.stem: json.loads(path.read_text()) for path in (folder / "geojson").iterdir()}


def save(folder, document, name="a.geojson"):
    (folder / "geojson").mkdir(exist_ok=True)
    (folder / "geojson" / name).write_text(json.dumps(document))


def square(x, y, size=6, **properties):
    ring = [[x, y], [x + size, y], [x + size, y + size], [x, y + size], [x, y]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def read(folder, regions=(FIRST, SECOND)):
    return {annotation.rank: annotation for annotation in read_qupath(folder, list(regions), [])}


def test_outlines_are_valid_and_have_their_holes(tmp_path):
    mask = np.zeros((25, 30), dtype=bool)
    mask[3:15, 4:20] = True
    mask[7:10, 8:12] = False
    mask[18:22, 18:30] = True
    document = write(tmp_path, [FIRST], [number_objects(mask)])["a"]
    shapes = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in document["features"]]
    assert all(shape.is_valid for shape in shapes)
    assert shapes[0].equals(shapely.box(10, 20, 40, 45))
    assert sorted(shape.area for shape in shapes[1:]) == [48, 12 * 16 - 12]
    assert sorted(len(shape.interiors) for shape in shapes[1:]) == [0, 1]
    assert document["features"][0]["properties"]["classification"]["name"] == "unfinished"
    assert document["features"][1]["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "cell", "color": [213, 94, 0]},
    }
    found = read(tmp_path, [FIRST])[1]
    assert not found.finished and found.objects == 2
    assert np.array_equal(found.mask, mask)


def test_pages_are_planes_and_do_not_mix(tmp_path):
    pages = [Region(rank, "s.tif", page, "0" * 64, 2, 3, 20, 15, 1.0) for rank, page in ((1, 4), (2, 0))]
    masks = [np.zeros((15, 20), dtype=np.int32) for _ in pages]
    masks[0][2:5, 2:9] = 1
    masks[1][8:12, 10:20] = 1
    document = write(tmp_path, pages, masks)["s"]
    assert [feature["geometry"]["plane"]["z"] for feature in document["features"]] == [4, 0, 4, 0]
    found = read(tmp_path, pages)
    for region, mask in zip(pages, masks, strict=True):
        assert np.array_equal(found[region.rank].mask, mask > 0)


def test_an_outline_makes_a_region_finished_and_a_class_overrules_it(tmp_path):
    document = write(tmp_path, [FIRST, SECOND])["a"]
    assert not any(annotation.finished for annotation in read(tmp_path).values())
    document["features"].append(square(15, 25))
    save(tmp_path, document)
    found = read(tmp_path)
    assert found[1].finished and found[1].objects == 1 and found[1].mask.sum() == 36
    assert not found[2].finished
    for rank, name, finished in ((0, "Unfinished", False), (1, "finished", True)):
        document["features"][rank]["properties"]["classification"] = {"name": name, "colorRGB": -1}
        save(tmp_path, document)
        assert read(tmp_path)[rank + 1].finished == finished


def test_an_outline_of_a_neighbour_does_not_finish_a_region(tmp_path):
    other = Region(2, "images/a.png", None, "0" * 64, 20, 20, 30, 25, 0.5)
    document = write(tmp_path, [FIRST, other])["a"]
    document["features"] += [square(12, 22), square(25, 25)]  # one in the first alone, one in both
    save(tmp_path, document)
    found = read(tmp_path, [FIRST, other])
    assert found[1].finished and not found[2].finished
    assert found[2].mask.sum() == 36


def test_a_deleted_rectangle_leaves_the_region_out(tmp_path):
    document = write(tmp_path, [FIRST, SECOND])["a"]
    document["features"] = [document["features"][1], square(15, 25), square(65, 25)]
    save(tmp_path, document)
    assert list(read(tmp_path)) == [2]


def test_old_and_new_ways_of_writing_are_read(tmp_path):
    document = write(tmp_path, [FIRST])["a"]
    multi = {
        "type": "MultiPolygon",
        "coordinates": [square(15, 25)["geometry"]["coordinates"], square(30, 25)["geometry"]["coordinates"]],
    }
    collection = {
        "type": "GeometryCollection",
        "geometries": [square(15, 35)["geometry"], {"type": "Point", "coordinates": [1, 2]}],
    }
    extra = [
        {"type": "Feature", "geometry": multi, "properties": {"objectType": "detection"}},
        {"type": "Feature", "geometry": collection, "properties": None},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [12, 22]}, "properties": {}},
        {"type": "Feature", "geometry": None, "properties": {}},
        square(30, 35, classification={"name": "Ignore*"}),
    ]
    save(tmp_path, document["features"] + extra)  # a bare list, as QuPath 0.2 wrote it
    found = read(tmp_path, [FIRST])[1]
    assert found.mask.sum() == 3 * 36 and found.finished


def test_two_files_are_two_annotations(tmp_path):
    document = write(tmp_path, [FIRST])["a"]
    document["features"].append(square(15, 25))
    save(tmp_path, document)
    save(tmp_path, document, "by_anna.geojson")
    found = read_qupath(tmp_path, [FIRST], [])
    assert len(found) == 2 and found[0].source != found[1].source


def test_outlines_without_any_rectangle_are_spoken_of(tmp_path, caplog):
    write(tmp_path, [FIRST])
    save(tmp_path, {"type": "FeatureCollection", "features": [square(15, 25)]})
    assert read(tmp_path) == {}
    assert "none of the rectangles" in caplog.text


def _moved(document):
    document["features"][0]["geometry"]["coordinates"][0][0] = [0, 0]
    document["features"][0]["geometry"]["coordinates"][0][-1] = [0, 0]


def _renamed(document):
    document["features"][0]["properties"]["name"] = "rank 17"


def _unnamed(document):
    del document["features"][0]["properties"]["name"]


def _far(document):
    document["features"].append(square(1e308, 0))


def _kind(document):
    document["features"].append({"type": "Feature", "geometry": {"type": "Curve"}, "properties": {}})


def _no_list(document):
    document["features"] = {}


def _text(document):
    document["features"].append("text")


@pytest.mark.parametrize("spoil", [_moved, _renamed, _unnamed, _far, _kind, _no_list, _text])
def test_what_does_not_belong_is_refused_in_one_line(tmp_path, spoil):
    document = write(tmp_path, [FIRST])["a"]
    spoil(document)
    save(tmp_path, document)
    with pytest.raises(KWTLError, match=r"a\.geojson: .+; export the objects again") as caught:
        read(tmp_path, [FIRST])
    assert "\n" not in str(caught.value)

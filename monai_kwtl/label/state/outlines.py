"""Outlines that annotation tools export: GeoJSON of QuPath, COCO of CVAT, and the XML of MONAI Label's viewers."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from monai_kwtl.data.folders import base_name
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.coco import paint_cell, rings_of
from monai_kwtl.exchange.polygons import mask_polygons, number_objects, paint_cost, paint_rings, ring_arrays
from monai_kwtl.project.selection_folder import CLASSIFICATION
from monai_kwtl.windows.box import Box

__all__ = ["OUTLINE_SUFFIXES", "Outlines", "geojson", "mask_outlines", "read_outlines", "xml"]

OUTLINE_SUFFIXES = (".geojson", ".json", ".xml")
REGION = CLASSIFICATION["name"]  # outlines of this class are no cells: everything inside them has been outlined
MOST_POINTS = 1_000_000  # of the outlines of one image
MOST_WORK = 1 << 28  # of painting them, as paint_cost() counts it; some seconds

Rings = list[np.ndarray]


class Outlines(NamedTuple):
    """Content of a file of outlines about one image (page).

    Args:
        mask: bool, (H, W), the cells.
        regions: where everything has been outlined, as far as the file says so.
    """

    mask: np.ndarray
    regions: list[Box]


def read_outlines(path: Path, item: Mapping[str, Any]) -> Outlines:
    """Read the outlines of one image.

    Args:
        path: of a ``.geojson`` or ``.json`` (GeoJSON or COCO) or ``.xml`` (ASAP) file, in pixels, origin top left.
        item: with ``name``, ``page``, ``height`` and ``width``. Outlines on another plane (QuPath's z) than its page
            are passed over.

    Returns:
        Its mask and regions.

    Raises:
        KWTLError: when the file is none of these, is about another image, or has outlines that are none.
    """
    try:
        if path.suffix.lower() == ".xml":
            return _from_polygons(_asap(path.read_bytes()), item)
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(document, dict) and {"images", "annotations"} <= document.keys():
            return _coco(document, item)
        return _from_polygons(_features(document, item["page"]), item)
    except KWTLError as error:
        raise KWTLError(f"the label of {item['name']} cannot be used: {error}") from error
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        ElementTree.ParseError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:80]
        raise KWTLError(
            f"the label of {item['name']} is no GeoJSON, COCO or ASAP XML that can be read ({reason}): export it again."
        ) from error


class _Budget:
    """Refuses outlines that would keep the server busy for long, before they are painted."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self.height, self.width = item["height"], item["width"]
        self.points, self.work = MOST_POINTS, max(MOST_WORK, 8 * self.height * self.width)

    def spend(self, rings: Rings) -> None:
        self.points -= sum(map(len, rings))
        if self.points < 0:
            raise KWTLError(f"its outlines have more than {MOST_POINTS:,} points: simplify them, or send a mask.")
        self.work -= paint_cost(rings, self.height, self.width)
        if self.work < 0:
            raise KWTLError("its outlines run to and fro over the image too often: draw them anew, or send a mask.")


def _from_polygons(polygons: Iterator[tuple[str, Rings]], item: Mapping[str, Any]) -> Outlines:
    mask, regions, budget = np.zeros((item["height"], item["width"]), dtype=bool), [], _Budget(item)
    for name, rings in polygons:
        budget.spend(rings)
        if name == REGION:
            regions.append(_box(rings, item))
        else:
            paint_rings(mask, rings)
    return Outlines(mask, regions)


def _box(rings: Rings, item: Mapping[str, Any]) -> Box:
    if rings and len(rings[0]) >= 3:
        corners = np.array([rings[0].min(axis=0), rings[0].max(axis=0)]).round()
        (left, top), (right, bottom) = corners.clip(0, [item["width"], item["height"]]).astype(int).tolist()
        if right > left and bottom > top:
            return Box(left, top, right - left, bottom - top)
    raise KWTLError("a region lies outside the image, or is empty.")


def _features(document: Any, page: int | None) -> Iterator[tuple[str, Rings]]:
    """Yield class name and rings of each polygon of a GeoJSON document; QuPath also writes plain lists of features."""
    if isinstance(document, list):
        features = document
    elif document.get("type") == "FeatureCollection":
        features = document["features"]
    else:
        features = [document]
    for feature in features:
        geometry = feature.get("geometry", feature)
        name = ((feature.get("properties") or {}).get("classification") or {}).get("name", "")
        plane = (geometry.get("plane") or {}).get("z", 0)
        if page is None or plane == page:
            yield from ((name, polygon) for polygon in _polygons(geometry))


def _polygons(geometry: Mapping[str, Any]) -> Iterator[Rings]:
    kind = geometry["type"]
    if kind == "Polygon":
        yield ring_arrays(geometry["coordinates"])
    elif kind == "MultiPolygon":
        yield from map(ring_arrays, geometry["coordinates"])
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):  # those hold no pixel
        raise KWTLError(f"{kind!r} is no kind of geometry.")


def _coco(document: Mapping[str, Any], item: Mapping[str, Any]) -> Outlines:
    images = document["images"]
    own = [image for image in images if base_name(str(image["file_name"])) == base_name(item["name"])]
    if len(own) != 1:
        named = ", ".join(str(image["file_name"]) for image in images[:3])
        raise KWTLError(f"it holds {len(own)} images of this name (it has {named or 'none at all'}).")
    height, width = item["height"], item["width"]
    if (own[0].get("height", height), own[0].get("width", width)) != (height, width):
        raise KWTLError(
            f"it is for an image {own[0]['width']} wide and {own[0]['height']} high, not {width} and {height}."
        )
    names = {category["id"]: category["name"] for category in document.get("categories", [])}
    mask, regions, budget = np.zeros((height, width), dtype=bool), [], _Budget(item)
    for annotation in document["annotations"]:
        if annotation["image_id"] != own[0]["id"]:
            continue
        if names.get(annotation.get("category_id")) == REGION:
            regions += [_box([ring], item) for ring in rings_of(annotation)]
        else:
            for ring in rings_of(annotation):  # each is a cell of its own, or a part of one
                budget.spend([ring])
            paint_cell(mask, annotation)
    return Outlines(mask, regions)


def _asap(content: bytes) -> Iterator[tuple[str, Rings]]:
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", content, re.IGNORECASE):
        raise KWTLError("XML with a document type is not read.")
    for annotation in ElementTree.fromstring(content).iter("Annotation"):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: float(point.get("Order", 0)))
        ring = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points]
        if len(ring) > 2:
            yield annotation.get("PartOfGroup") or annotation.get("Name", ""), ring_arrays([ring])


def mask_outlines(mask: np.ndarray) -> list[shapely.Polygon]:
    """Return the outline of each cell of a mask, (H, W), along pixel edges."""
    return mask_polygons(number_objects(mask))


def geojson(polygons: Sequence[BaseGeometry], page: int | None = None, name: str = "Cell") -> dict[str, Any]:
    """Return polygons as GeoJSON that QuPath opens.

    Args:
        polygons: as from :func:`mask_outlines`.
        page: of a multi-page file; becomes the z plane.
        name: of their class.

    Returns:
        A FeatureCollection.
    """
    features = []
    for polygon in polygons:
        geometry = shapely.geometry.mapping(polygon)
        if page is not None:
            geometry["plane"] = {"c": -1, "z": page, "t": 0}
        properties = {"objectType": "annotation", "classification": {"name": name}}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def xml(polygons: Sequence[shapely.Polygon], name: str = "Cell") -> bytes:
    """Return polygons as the XML that MONAI Label's viewers read; it knows no holes."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for polygon in polygons:
        attributes = {"Name": name, "Type": "Polygon", "PartOfGroup": name, "Color": "#009e73"}
        coordinates = ElementTree.SubElement(
            ElementTree.SubElement(annotations, "Annotation", attributes), "Coordinates"
        )
        for order, (x, y) in enumerate(polygon.exterior.coords[:-1]):
            ElementTree.SubElement(coordinates, "Coordinate", {"Order": str(order), "X": f"{x:g}", "Y": f"{y:g}"})
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    ElementTree.SubElement(groups, "Group", {"Name": name, "PartOfGroup": "None", "Color": "#009e73"})
    return ElementTree.tostring(root, xml_declaration=True, encoding="utf-8")

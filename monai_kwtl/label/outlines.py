"""Outlines that annotation tools export: GeoJSON of QuPath, COCO of CVAT, and the XML of MONAI Label's viewers."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.folders import base_name
from monai_kwtl.label.sidecar import Box
from monai_kwtl.raster import Polygon, rasterize
from monai_kwtl.regions import CLASSIFICATION

__all__ = ["OUTLINE_SUFFIXES", "Outlines", "geojson", "read_outlines", "xml"]

OUTLINE_SUFFIXES = (".geojson", ".json", ".xml")
REGION = CLASSIFICATION["name"]  # outlines of this class are no cells: everything inside them has been outlined


class Outlines(NamedTuple):
    """What a file of outlines says about one image (page).

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


def _from_polygons(polygons: Iterator[tuple[str, Polygon]], item: Mapping[str, Any]) -> Outlines:
    cells, regions = [], []
    for name, polygon in polygons:
        if name == REGION:
            regions.append(_box(polygon, item))
        else:
            cells.append(polygon)
    return Outlines(rasterize(cells, (item["height"], item["width"])), regions)


def _box(polygon: Polygon, item: Mapping[str, Any]) -> Box:
    points = np.asarray(polygon[0], dtype=np.float64)[:, :2]
    if not np.isfinite(points).all():
        raise KWTLError("a region has a coordinate that is not a finite number.")
    size = item["width"], item["height"]
    (left, top), (right, bottom) = (np.clip(e.round(), 0, size).astype(int) for e in (points.min(0), points.max(0)))
    if right <= left or bottom <= top:
        raise KWTLError("a region lies outside the image.")
    return Box(int(left), int(top), int(right - left), int(bottom - top))


def _features(document: Any, page: int | None) -> Iterator[tuple[str, Polygon]]:
    """Class name and rings of each polygon of a GeoJSON document; QuPath also writes plain lists of features."""
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


def _polygons(geometry: Mapping[str, Any]) -> Iterator[Polygon]:
    kind = geometry["type"]
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
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
    polygons, mask = [], np.zeros((height, width), dtype=bool)
    for annotation in document["annotations"]:
        if annotation["image_id"] != own[0]["id"]:
            continue
        shape = annotation["segmentation"]
        if isinstance(shape, dict):
            mask |= _runs(shape, (height, width))
        else:
            name = names.get(annotation.get("category_id"), "")
            polygons += [(name, [np.reshape(np.asarray(ring, dtype=np.float64), (-1, 2))]) for ring in shape]
    outlines = _from_polygons(iter(polygons), item)
    return outlines._replace(mask=outlines.mask | mask)


def _runs(shape: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths: background first, down the columns."""
    if not isinstance(shape["counts"], list):
        raise KWTLError("it holds compressed masks: export polygons, or 'Segmentation mask 1.1'.")
    counts = np.asarray(shape["counts"], dtype=np.int64)
    if tuple(shape["size"]) != size or (counts < 0).any() or counts.sum() != size[0] * size[1]:
        raise KWTLError("a mask in it is not of the image's size.")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[::-1]).T


def _asap(content: bytes) -> Iterator[tuple[str, Polygon]]:
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", content, re.IGNORECASE):
        raise KWTLError("XML with a document type is not read.")
    for annotation in ElementTree.fromstring(content).iter("Annotation"):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: float(point.get("Order", 0)))
        ring = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points]
        if len(ring) > 2:
            yield annotation.get("PartOfGroup") or annotation.get("Name", ""), [ring]


def geojson(polygons: list[list[np.ndarray]], page: int | None = None, name: str = "Cell") -> dict[str, Any]:
    """Polygons as GeoJSON that QuPath opens.

    Args:
        polygons: as from :func:`monai_kwtl.raster.trace`.
        page: of a multi-page file; becomes the z plane.
        name: of their class.

    Returns:
        A FeatureCollection.
    """
    features = []
    for polygon in polygons:
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring.tolist() for ring in polygon]}
        if page is not None:
            geometry["plane"] = {"c": -1, "z": page, "t": 0}
        properties = {"objectType": "annotation", "classification": {"name": name}}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def xml(polygons: list[list[np.ndarray]], name: str = "Cell") -> bytes:
    """Polygons as the XML that MONAI Label's viewers read; it knows no holes."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for polygon in polygons:
        attributes = {"Name": name, "Type": "Polygon", "PartOfGroup": name, "Color": "#009e73"}
        coordinates = ElementTree.SubElement(
            ElementTree.SubElement(annotations, "Annotation", attributes), "Coordinates"
        )
        for order, (x, y) in enumerate(polygon[0][:-1]):
            ElementTree.SubElement(coordinates, "Coordinate", {"Order": str(order), "X": f"{x:g}", "Y": f"{y:g}"})
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    ElementTree.SubElement(groups, "Group", {"Name": name, "PartOfGroup": "None", "Color": "#009e73"})
    return ElementTree.tostring(root, xml_declaration=True, encoding="utf-8")

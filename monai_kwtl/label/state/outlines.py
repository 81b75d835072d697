"""Outlines that annotation tools export: GeoJSON of QuPath, COCO of CVAT, and the XML of MONAI Label's viewers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from monai_kwtl.data.folders import base_name
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import FINISHED, IGNORED, REGION_CLASSES, UNFINISHED
from monai_kwtl.exchange.coco import CocoImage, paint_image, read_images, rings_of
from monai_kwtl.exchange.geojson import Feature, feature_of, paint_features, read_features
from monai_kwtl.exchange.polygons import Canvas, Rings, mask_polygons, number_objects, ring_arrays
from monai_kwtl.utils.json_documents import Checker, parse_json
from monai_kwtl.windows.box import Box

__all__ = ["OUTLINE_SUFFIXES", "Outlines", "geojson", "mask_outlines", "read_outlines", "xml"]

OUTLINE_SUFFIXES = (".geojson", ".json", ".xml")


class Outlines(NamedTuple):
    """Content of a file of outlines about one image (page).

    Args:
        mask: bool, (H, W), the cells.
        regions: where everything has been outlined; None where the file says nothing of it. Outlines of class
            "KWTL region" or "finished" say so; where all are "unfinished" it is nowhere.
    """

    mask: np.ndarray
    regions: list[Box] | None


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
    check, shown = Checker(path, "export it again"), f"the label of {item['name']} cannot be used"
    try:
        if path.suffix.lower() == ".xml":
            return _from_features(_asap(path.read_bytes()), item, check)
        document = parse_json(path, "GeoJSON or COCO file")
        if isinstance(document, dict) and {"images", "annotations"} <= document.keys():
            return _coco(read_images(document, check), item, check)
        cells = (feature for feature in read_features(document, check) if feature.on(item["page"]))
        return _from_features(cells, item, check)
    except KWTLError as error:
        raise KWTLError(f"{shown}: {str(error).removeprefix(f'{path}: ')}.") from error
    except (ValueError, KeyError, ElementTree.ParseError) as error:
        reason = " ".join(str(error).split())[:80]
        raise KWTLError(f"{shown}: it is no ASAP XML that can be read ({reason}): export it again.") from error


def _from_features(features: Iterable[Feature], item: Mapping[str, Any], check: Checker) -> Outlines:
    canvas, cells, marks = Canvas(item["height"], item["width"]), [], []
    for feature in features:
        (marks if feature.kind in REGION_CLASSES else cells).append(feature)
    paint_features(canvas, cells, check)
    done = [rings for mark in marks if mark.kind != UNFINISHED for rings in mark.polygons]
    return Outlines(canvas.mask, [_box(rings, item) for rings in done] if marks else None)


def _box(rings: Rings, item: Mapping[str, Any]) -> Box:
    if rings and len(rings[0]) >= 3:
        corners = np.array([rings[0].min(axis=0), rings[0].max(axis=0)]).round()
        (left, top), (right, bottom) = corners.clip(0, [item["width"], item["height"]]).astype(int).tolist()
        if right > left and bottom > top:
            return Box(left, top, right - left, bottom - top)
    raise KWTLError("a region lies outside the image, or is empty")


def _coco(images: Sequence[CocoImage], item: Mapping[str, Any], check: Checker) -> Outlines:
    own = [image for image in images if base_name(image.file_name) == base_name(item["name"])]
    if len(own) != 1:
        named = ", ".join(image.file_name for image in images[:3])
        raise KWTLError(f"it holds {len(own)} images of this name (it has {named or 'none at all'})")
    canvas = Canvas(item["height"], item["width"])
    _, marks = paint_image(canvas, own[0], "the image", check)
    regions = []
    for kind, entry in marks:
        if kind == FINISHED:  # as in CVAT: says it of the image, wherever it lies
            regions.append(Box(0, 0, item["width"], item["height"]))
        elif kind != UNFINISHED:
            regions += [_box([ring], item) for ring in rings_of(entry)]
    return Outlines(canvas.mask, list(dict.fromkeys(regions)) if marks else None)


def _asap(content: bytes) -> Iterator[Feature]:
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", content, re.IGNORECASE):
        raise KWTLError("XML with a document type is not read")
    for index, annotation in enumerate(ElementTree.fromstring(content).iter("Annotation")):
        points = sorted(annotation.iter("Coordinate"), key=lambda point: float(point.get("Order", 0)))
        ring = [(float(point.attrib["X"]), float(point.attrib["Y"])) for point in points]
        name = annotation.get("PartOfGroup") or annotation.get("Name", "")
        kind = name.strip().casefold()
        if len(ring) > 2 and not kind.startswith(IGNORED):
            yield Feature(f"annotation {index}", kind, name, 0, [ring_arrays([ring])])


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
    features = [feature_of(polygon, page, {"name": name}) for polygon in polygons]
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

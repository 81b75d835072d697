"""GeoJSON as QuPath reads and writes it: regions as annotations with a class, cells as outlines with their holes."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from monai_kwtl.exchange.annotation import (
    FINISHED,
    IGNORED,
    REGION_CLASSES,
    UNFINISHED,
    Annotation,
    Handout,
    files_below,
)
from monai_kwtl.exchange.polygons import Canvas, Rings, mask_polygons, ring_arrays
from monai_kwtl.project.file_names import safe_stems
from monai_kwtl.project.selection_folder import CLASSIFICATION, feature_collection
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import Checker, parse_json, short
from monai_kwtl.windows.box import Box, pixels_inside

__all__ = ["Feature", "feature_of", "paint_features", "read_features", "read_qupath", "write_qupath"]

logger = logging.getLogger("monai_kwtl")

CELL = {"name": "cell", "color": [213, 94, 0]}
FIX = "export the objects again as GeoJSON"
MOVED = 1.0  # pixels that the edges of a region's rectangle may be off


def write_qupath(folder: Path, handout: Handout) -> None:
    """Write ``geojson/<image stem>.geojson``: the rectangles of the regions and, with predictions, outlines of cells.

    With predictions the regions are of the class ``unfinished``, so that nothing counts before it was looked at.
    """
    (folder / "geojson").mkdir()
    by_image: dict[str, list[int]] = defaultdict(list)
    for index, region in enumerate(handout.regions):
        by_image[region.image].append(index)
    stems = safe_stems(by_image)
    for name, members in by_image.items():
        document = feature_collection(handout.regions[index] for index in members)
        if handout.predictions is not None:
            for feature in document["features"]:
                feature["properties"]["classification"] = {"name": UNFINISHED, "color": CLASSIFICATION["color"]}
            document["features"] += _outlines([(handout.regions[i], handout.predictions[i]) for i in members])
        text = json.dumps(document, allow_nan=False) + "\n"
        (folder / "geojson" / f"{stems[name]}.geojson").write_text(text, encoding="ascii", newline="\n")


def _outlines(predictions: Iterable[tuple[Region, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """Yield the predicted cells of an image; where regions overlap, one outline each, not one a region."""
    drawn: dict[int | None, list[BaseGeometry]] = defaultdict(list)
    done: dict[int | None, list[BaseGeometry]] = defaultdict(list)
    for region, labels in predictions:
        new = mask_polygons(labels, region.x, region.y)
        if done[region.page]:
            before = shapely.union_all(done[region.page])
            # what sticks out of a region drawn before is a piece of a cell that was cut there
            new = [polygon for whole in new for polygon in _pieces(shapely.difference(whole, before))]
        drawn[region.page] += new
        done[region.page].append(shapely.box(*region.box.corners))
    for page, polygons in drawn.items():
        for polygon in polygons:
            yield feature_of(polygon, page, CELL)


def feature_of(polygon: BaseGeometry, page: int | None, classification: Mapping[str, Any]) -> dict[str, Any]:
    """Return a polygon as a feature of QuPath.

    Args:
        polygon: or multi-polygon, in pixels.
        page: of a multi-page file; becomes the z plane.
        classification: its class, with ``name`` and, if it shall have one, ``color``.
    """
    geometry = shapely.geometry.mapping(polygon)
    if page is not None:
        geometry["plane"] = {"c": -1, "z": page, "t": 0}
    properties = {"objectType": "annotation", "classification": classification}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _pieces(geometry: BaseGeometry) -> list[BaseGeometry]:
    return [part for part in getattr(geometry, "geoms", [geometry]) if part.geom_type == "Polygon" and part.area]


class Feature(NamedTuple):
    """What one feature of a GeoJSON file outlines.

    Args:
        where: it stands in the file, for messages.
        kind: its class, in small letters; empty without one.
        name: as it is in the file.
        plane: QuPath's z.
        polygons: the rings of each.
    """

    where: str
    kind: str
    name: Any
    plane: int
    polygons: list[Rings]

    def on(self, page: int | None) -> bool:
        """Whether it lies on a page of a file; in a file without pages everything does."""
        return page is None or self.plane == page


def read_features(document: Any, check: Checker) -> Iterator[Feature]:
    """Read the areas of a GeoJSON document, but those of classes that begin with "ignore".

    Args:
        document: a collection of features, a list of them as QuPath 0.2 wrote it, a feature, or a geometry; in pixels
            from the top left.
        check: makes the errors.

    Raises:
        KWTLError: one line with file and feature, for what is no GeoJSON.
    """
    features = document
    if isinstance(document, Mapping):
        features = document["features"] if "features" in document else [document]
    if not isinstance(features, list):
        raise check.fail("holds no list of features")
    for index, feature in enumerate(features):
        where = f"features[{index}]"
        if not isinstance(feature, Mapping):
            raise check.fail(f"{where} is {short(feature)}, not an object")
        wrapped = "geometry" in feature or feature.get("type") == "Feature"
        properties, geometry = feature.get("properties") or {}, feature.get("geometry") if wrapped else feature
        if not isinstance(properties, Mapping) or not isinstance(geometry, Mapping | None):
            raise check.fail(f"{where} has properties or a geometry that are no objects")
        kind = _class_of(properties)
        if geometry is None or kind.startswith(IGNORED):
            continue
        try:
            polygons = _polygons(geometry)
        except ValueError as error:
            raise check.fail(f"{where}: {error}") from error
        if polygons:
            yield Feature(where, kind, properties.get("name"), _plane_of(geometry), polygons)


def _polygons(geometry: Mapping, depth: int = 0) -> list[Rings]:
    """Return the rings of each polygon; none of points and lines."""
    kind, coordinates, parts = (geometry.get(key) for key in ("type", "coordinates", "geometries"))
    if kind == "Polygon" and isinstance(coordinates, list):
        return [ring_arrays(coordinates)]
    if kind == "MultiPolygon" and isinstance(coordinates, list):
        if not all(isinstance(rings, list) for rings in coordinates):
            raise ValueError("an outline must be a list of points [x, y]")
        return [ring_arrays(rings) for rings in coordinates]
    if kind == "GeometryCollection" and isinstance(parts, list) and depth < 8:
        return [rings for part in parts if isinstance(part, Mapping) for rings in _polygons(part, depth + 1)]
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return []
    raise ValueError(f"a geometry of type {short(kind)} cannot be read")


def _class_of(properties: Mapping) -> str:
    kind = properties.get("classification")
    name = kind.get("name") if isinstance(kind, Mapping) else kind
    if name is None and isinstance(kind, Mapping) and isinstance(kind.get("names"), list):
        name = ": ".join(str(part) for part in kind["names"])
    return name.strip().casefold() if isinstance(name, str) else ""


def _plane_of(geometry: Mapping) -> int:
    plane = geometry.get("plane")
    z = plane.get("z", 0) if isinstance(plane, Mapping) else 0
    return z if isinstance(z, int) else 0


def paint_features(canvas: Canvas, features: Iterable[Feature], check: Checker) -> int:
    """Paint features, each a cell; returns how many have any pixel.

    Raises:
        KWTLError: one line with file and feature, when there is too much to paint.
    """
    objects = 0
    for feature in features:
        try:
            objects += canvas.paint(feature.polygons)
        except ValueError as error:
            raise check.fail(f"{feature.where}: {error}") from error
    return objects


class _File:
    """What one GeoJSON file says: marks of regions, and outlines of cells."""

    def __init__(self, path: Path, regions: Mapping[int, Region]) -> None:
        self.path, self.check = path, Checker(path, FIX)
        self.marks: dict[int, str] = {}
        self.outlines: list[Feature] = []
        self.images: set[str] = set()
        for feature in read_features(parse_json(path, "GeoJSON file"), self.check):
            if feature.kind in REGION_CLASSES:
                region = self.region(feature, regions)
                self.images.add(region.image)
                self.marks[region.rank] = feature.kind
            else:
                self.outlines.append(feature)

    def region(self, feature: Feature, regions: Mapping[int, Region]) -> Region:
        """Return the region that a rectangle stands for, by its name and its place."""
        match = re.fullmatch(r"rank ([1-9]\d{0,9})", feature.name.strip()) if isinstance(feature.name, str) else None
        region = regions.get(int(match[1])) if match else None
        if region is None:
            raise self.check.fail(
                f"{feature.where} has the class of a region, but its name {short(feature.name)} is not that of one"
            )
        corners = np.concatenate([rings[0] for rings in feature.polygons if rings] or [np.zeros((0, 2))])
        bounds = [*corners.min(axis=0), *corners.max(axis=0)] if len(corners) else None
        if bounds is None or np.abs(np.subtract(bounds, region.box.corners)).max() > MOVED:
            raise self.check.fail(
                f"{feature.where}: the rectangle of rank {region.rank} was moved, or is of another selection"
            )
        return region


def read_qupath(folder: Path, regions: Sequence[Region], names: Sequence[str]) -> list[Annotation]:
    """Read every GeoJSON file below a folder.

    A region is finished where its rectangle is there and of the class ``finished``; or of the class it was exported
    with, not ``unfinished``, and an outline lies in it (where regions overlap: in the part that is its own, if it has
    one). Outlines are all other polygons but those of classes that begin with "ignore". A file belongs to the image
    that its regions are of.

    Args:
        folder: of the files.
        regions: of the selection.
        names: are not needed.

    Raises:
        KWTLError: one line with file and feature, for what is no GeoJSON, or regions that were moved.
    """
    by_rank = {region.rank: region for region in regions}
    found: list[Annotation] = []
    for path in files_below(folder, (".geojson", ".json")):
        if path.suffix.lower() == ".json" and path.name in ("selection.json", "export.json"):
            continue
        file = _File(path, by_rank)
        if file.outlines and not file.images:
            logger.warning(f"{path} has outlines, but none of the rectangles that were exported: it is left out")
        if len(file.images) > 1:
            raise file.check.fail(f"holds regions of several images, {' and '.join(sorted(file.images)[:2])}")
        for rank, mark in file.marks.items():
            found.append(_annotation(file, by_rank[rank], mark, regions))
    return found


def _annotation(file: _File, region: Region, mark: str, regions: Sequence[Region]) -> Annotation:
    canvas = Canvas(region.height, region.width, region.x, region.y)
    objects = paint_features(canvas, (cell for cell in file.outlines if cell.on(region.page)), file.check)
    others = [one for one in regions if one.rank != region.rank and one.key[:2] == region.key[:2]]
    boxes = [Box(one.x - region.x, one.y - region.y, one.width, one.height) for one in others]
    mask, own = canvas.mask, ~pixels_inside(canvas.mask.shape, boxes)
    touched = bool(mask[own].any() if own.any() else mask.any())
    finished = mark == FINISHED or (mark != UNFINISHED and touched)
    return Annotation(region.rank, mask, objects, finished, str(file.path), file.path.stat().st_mtime)

"""GeoJSON as QuPath reads and writes it: regions as annotations with a class, cells as outlines with their holes."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import FINISHED, UNFINISHED, Annotation, Handout, files_below
from monai_kwtl.exchange.polygons import make_polygon, mask_polygons, paint
from monai_kwtl.project.file_names import safe_stems
from monai_kwtl.project.selection_folder import CLASSIFICATION, feature_collection
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import parse_json, short

__all__ = ["read_qupath", "write_qupath"]

logger = logging.getLogger("monai_kwtl")

CELL = {"name": "cell", "color": [213, 94, 0]}
REGION_CLASSES = (CLASSIFICATION["name"].casefold(), FINISHED, UNFINISHED)
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
            geometry = shapely.geometry.mapping(polygon)
            if page is not None:
                geometry["plane"] = {"c": -1, "z": page, "t": 0}
            properties = {"objectType": "annotation", "classification": CELL}
            yield {"type": "Feature", "geometry": geometry, "properties": properties}


def _pieces(geometry: BaseGeometry) -> list[BaseGeometry]:
    return [part for part in getattr(geometry, "geoms", [geometry]) if part.geom_type == "Polygon" and part.area]


class _File:
    """Content of one GeoJSON file: marks of regions, and outlines by plane."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks: dict[int, str] = {}
        self.outlines: dict[int, list[BaseGeometry]] = defaultdict(list)
        document = parse_json(path, "GeoJSON file")
        features = document.get("features") if isinstance(document, Mapping) else document
        if isinstance(document, Mapping) and document.get("type") == "Feature":
            features = [document]
        if not isinstance(features, list):
            raise self.fail("holds no list of features")
        self.features = features

    def fail(self, message: str) -> KWTLError:
        return KWTLError(f"{self.path}: {message}; export the objects again as GeoJSON")

    def read(self, regions: Mapping[int, Region]) -> set[str]:
        """Take in all features; returns the images that its regions are of."""
        images = set()
        for index, feature in enumerate(self.features):
            where = f"features[{index}]"
            if not isinstance(feature, Mapping):
                raise self.fail(f"{where} is {short(feature)}, not an object")
            properties, geometry = feature.get("properties") or {}, feature.get("geometry")
            if not isinstance(properties, Mapping) or not isinstance(geometry, Mapping | None):
                raise self.fail(f"{where} has properties or a geometry that are no objects")
            kind = _class_of(properties)
            if geometry is None or kind.startswith("ignore"):
                continue
            shape = self.shape(geometry, where)
            if kind in REGION_CLASSES:
                region = self.region(properties, shape, regions, where)
                images.add(region.image)
                self.marks[region.rank] = kind
            elif shape is not None:
                self.outlines[_plane_of(geometry)].append(shape)
        return images

    def region(
        self, properties: Mapping, shape: BaseGeometry | None, regions: Mapping[int, Region], where: str
    ) -> Region:
        """Return the region that a rectangle stands for, by its name and its place."""
        name = properties.get("name")
        match = re.fullmatch(r"rank ([1-9]\d{0,9})", name.strip()) if isinstance(name, str) else None
        region = regions.get(int(match[1])) if match else None
        if region is None:
            raise self.fail(f"{where} has the class of a region, but its name {short(name)} is not that of one")
        moved = None if shape is None or shape.is_empty else np.abs(np.subtract(shape.bounds, region.box.corners)).max()
        if moved is None or moved > MOVED:
            raise self.fail(f"{where}: the rectangle of rank {region.rank} was moved, or is of another selection")
        return region

    def shape(self, geometry: Mapping, where: str, depth: int = 0) -> BaseGeometry | None:
        """Return a valid area; None for points and lines."""
        kind, coordinates = geometry.get("type"), geometry.get("coordinates")
        try:
            if kind == "Polygon" and isinstance(coordinates, list):
                return make_polygon(coordinates)
            if kind == "MultiPolygon" and isinstance(coordinates, list):
                if not all(isinstance(rings, list) for rings in coordinates):
                    raise ValueError("an outline must be a list of points [x, y]")
                return shapely.union_all([make_polygon(rings) for rings in coordinates])
        except ValueError as error:
            raise self.fail(f"{where}: {error}") from error
        parts = geometry.get("geometries")
        if kind == "GeometryCollection" and isinstance(parts, list) and depth < 8:
            shapes = [self.shape(part, where, depth + 1) for part in parts if isinstance(part, Mapping)]
            shapes = [shape for shape in shapes if shape is not None]
            return shapely.union_all(shapes) if shapes else None
        if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
            return None
        raise self.fail(f"{where} has a geometry of type {short(kind)} that cannot be read")


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
        file = _File(path)
        images = file.read(by_rank)
        if file.outlines and not images:
            logger.warning(f"{path} has outlines, but none of the rectangles that were exported: it is left out")
        if len(images) > 1:
            raise file.fail(f"holds regions of several images, {' and '.join(sorted(images)[:2])}")
        for rank, mark in file.marks.items():
            found.append(_annotation(file, by_rank[rank], mark, regions))
    return found


def _annotation(file: _File, region: Region, mark: str, regions: Sequence[Region]) -> Annotation:
    mask = np.zeros((region.height, region.width), dtype=bool)
    own = np.ones(mask.shape, dtype=bool)
    for other in regions:
        if other.rank != region.rank and (other.image, other.page) == (region.image, region.page):
            top, left = other.y - region.y, other.x - region.x
            own[max(top, 0) : max(top + other.height, 0), max(left, 0) : max(left + other.width, 0)] = False
    objects = sum(paint(mask, shape, region.x, region.y) for shape in file.outlines[region.page or 0])
    touched = bool(mask[own].any() if own.any() else mask.any())
    finished = mark == FINISHED or (mark != UNFINISHED and touched)
    return Annotation(region.rank, mask, objects, finished, str(file.path), file.path.stat().st_mtime)

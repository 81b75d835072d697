"""Masks to polygons and polygons to masks: both go by pixel edges and centres, so that a round trip loses nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import shapely
from scipy import ndimage
from shapely.errors import GEOSException, ShapelyError
from shapely.geometry.base import BaseGeometry

from monai_kwtl.crop_images import Box
from monai_kwtl.raster import runs_of

__all__ = ["make_polygon", "mask_polygons", "number_objects", "paint"]

FARTHEST = 1e7  # pixels; no image is larger, and GEOS stays exact far below
AREAL = ("Polygon", "MultiPolygon")


def number_objects(mask: np.ndarray) -> np.ndarray:
    """Number the objects of a mask.

    Args:
        mask: (H, W); of truth values or 0 and one other value: objects are what holds together by pixel edges. Of
            several values but 0: each value is an object, as label images have it.

    Returns:
        int32 (H, W): 0 background, objects 1 to n.
    """
    mask = np.asarray(mask)
    values, indices = np.unique(mask, return_inverse=True)
    if np.count_nonzero(values) <= 1:
        return ndimage.label(mask != 0)[0].astype(np.int32)
    indices = indices.reshape(mask.shape).astype(np.int32)
    return indices if values[0] == 0 else np.where(mask == 0, 0, indices + 1).astype(np.int32)


def mask_polygons(labels: np.ndarray, x: int = 0, y: int = 0) -> list[BaseGeometry]:
    """The outline of each object, along pixel edges: (0, 0) is the top left corner of the top left pixel.

    Args:
        labels: objects 1 to n, (H, W), as from :func:`number_objects`.
        x: column of the left edge in the coordinates of the polygons.
        y: row of the top edge.

    Returns:
        A valid polygon with its holes for each object, a multi-polygon where the object is in pieces.
    """
    polygons = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        if place is None:
            continue
        rows, starts, stops = runs_of(labels[place] == number)
        top, left = place[0].start + y, place[1].start + x
        boxes = shapely.box(starts + left, rows + top, stops + left, rows + top + 1)
        polygons.append(shapely.simplify(shapely.union_all(boxes), 0))  # drops points in the middle of straight lines
    return polygons


def make_polygon(rings: Iterable[Any]) -> BaseGeometry:
    """A valid geometry of one outline and its holes, whatever the hand that drew it.

    An outline that crosses or touches itself becomes the pieces that it encloses; what it goes round twice is inside.

    Args:
        rings: the outer ring, then the holes, each a sequence of (x, y) in pixels; closed or not.

    Returns:
        A polygon or multi-polygon, empty where the outline encloses nothing.

    Raises:
        ValueError: one line, for anything that is no sequence of points, or points beyond any image.
    """
    arrays = []
    for ring in rings:
        try:
            points = np.asarray(ring, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError("an outline must be a list of points [x, y]") from error
        if not points.size:
            points = points.reshape(0, 2)
        if points.ndim != 2 or points.shape[1] < 2:
            raise ValueError("an outline must be a list of points [x, y]")
        points = points[:, :2]
        if not np.isfinite(points).all() or (np.abs(points) > FARTHEST).any():
            raise ValueError(f"an outline has a point that is no number, or beyond {FARTHEST:g} pixels")
        arrays.append(points)
    if not arrays or len(arrays[0]) < 3:
        return shapely.Polygon()
    try:
        polygon = shapely.Polygon(arrays[0], [hole for hole in arrays[1:] if len(hole) >= 3])
        return areas_of(polygon if polygon.is_valid else shapely.make_valid(polygon, method="structure"))
    except (GEOSException, ShapelyError, ValueError) as error:
        raise ValueError("an outline cannot be made sense of") from error


def areas_of(geometry: BaseGeometry) -> BaseGeometry:
    """What of a geometry has an area: points and lines are left out."""
    if geometry.geom_type in AREAL:
        return geometry
    parts = [part for part in getattr(geometry, "geoms", []) if part.geom_type in AREAL]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def paint(mask: np.ndarray, geometry: BaseGeometry, x: int = 0, y: int = 0) -> bool:
    """Set the pixels of a mask whose centres lie inside a geometry.

    Args:
        mask: bool (H, W), changed in place.
        geometry: in pixels; the centre of the pixel in column c and row r is (c + 0.5, r + 0.5).
        x: column of the mask's left edge.
        y: row of the mask's top edge.

    Returns:
        Whether any pixel lies inside.
    """
    if geometry.is_empty:
        return False
    height, width = mask.shape
    bounds = np.array(geometry.bounds) - (x, y, x, y)
    left, top = (max(int(np.floor(edge)), 0) for edge in bounds[:2])
    right, bottom = (min(int(np.ceil(edge)), size) for edge, size in zip(bounds[2:], (width, height), strict=True))
    if left >= right or top >= bottom:
        return False
    box = Box(top, left, bottom - top, right - left)
    columns, rows = np.meshgrid(np.arange(box.width) + (box.x + x + 0.5), np.arange(box.height) + (box.y + y + 0.5))
    shapely.prepare(geometry)
    inside = shapely.contains_xy(geometry, columns, rows)
    mask[top:bottom, left:right] |= inside
    return bool(inside.any())

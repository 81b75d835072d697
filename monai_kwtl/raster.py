"""Outlines and masks: the pixels whose centres an outline holds, and the outlines along the pixel edges of a mask.

Coordinates are in pixels from the top left corner of the image, x to the right and y down, as in GeoJSON of QuPath and
in COCO: pixel (row, column) covers [column, column + 1] x [row, row + 1]. Both ways together lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import shapely
from scipy import ndimage
from shapely.errors import GEOSException, ShapelyError
from shapely.geometry.base import BaseGeometry

__all__ = ["make_polygon", "mask_polygons", "number_objects", "paint", "runs_of"]

FARTHEST = 1e7  # pixels; no image is larger, and GEOS stays exact far below
AREAL = ("Polygon", "MultiPolygon")


def runs_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The horizontal runs of a mask.

    Args:
        mask: bool (H, W).

    Returns:
        Row, first column and column after the last of each run, int64.
    """
    edges = np.diff(np.pad(np.asarray(mask, dtype=np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return rows, starts, np.nonzero(edges == -1)[1]


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


def _crossings(points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of every pixel row whose centre line a closed ring crosses, and the first column right of there."""
    start, end = points[:-1], points[1:]
    # from top to bottom, so that two outlines that share an edge compute the same crossings
    down = (start[:, 1] <= end[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(down, start, end).T, np.where(down, end, start).T
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (y0, y1))
    counts = last - first
    edge = np.repeat(np.arange(len(start)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    share = (rows + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + share * (x1 - x0)[edge]
    return rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)


def paint(mask: np.ndarray, geometry: BaseGeometry, x: int = 0, y: int = 0) -> bool:
    """Set the pixels of a mask whose centres lie inside a geometry.

    A centre exactly on an edge belongs to the polygon to its right, or below, so that polygons which share an edge
    share no pixel and leave no gap (``skimage.draw.polygon`` gives it to both, ``shapely.contains_xy`` to neither).

    Args:
        mask: bool (H, W), changed in place.
        geometry: polygon or multi-polygon, as of :func:`make_polygon`; it may leave the mask.
        x: column of the mask's left edge.
        y: row of the mask's top edge.

    Returns:
        Whether any pixel lies inside.
    """
    painted = False
    for polygon in getattr(geometry, "geoms", [geometry]):
        rings = [shapely.get_coordinates(ring) - (x, y) for ring in shapely.get_rings(polygon)]
        crossings = [_crossings(ring, *mask.shape) for ring in rings]
        if not sum(len(rows) for rows, _ in crossings):
            continue
        rows, columns = (np.concatenate(part) for part in zip(*crossings, strict=True))
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max()
        flips = np.zeros((bottom - top, right - left + 1), dtype=bool)
        np.logical_xor.at(flips, (rows - top, columns - left), True)
        inside = np.logical_xor.accumulate(flips, axis=1)[:, :-1]
        mask[top:bottom, left:right] |= inside
        painted = painted or bool(inside.any())
    return painted

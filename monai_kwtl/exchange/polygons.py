"""Outlines and masks: the pixels whose centres an outline holds, and the outlines along the pixel edges of a mask.

Coordinates are in pixels from the top left corner of the image, x to the right and y down, as in GeoJSON of QuPath and
in COCO: pixel (row, column) covers [column, column + 1] x [row, row + 1]. Both ways together lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import shapely
from scipy import ndimage
from shapely.geometry.base import BaseGeometry

__all__ = [
    "Canvas",
    "Rings",
    "mask_polygons",
    "number_objects",
    "paint_rings",
    "ring_arrays",
    "runs_of",
]

Rings = list[np.ndarray]  # of a polygon: the outer ring, then its holes, each float64 (N, 2)

FARTHEST = 1e7  # pixels; no image is larger, and GEOS stays exact far below
MOST_POINTS = 1_000_000  # of the outlines on a mask of four million pixels; on a larger one a point each four pixels
MOST_WORK = 1 << 28  # of painting them, as _paint_cost() counts it; some seconds
_AT_ONCE = 1 << 16  # crossings of edges and pixel rows that are worked out together; bounds the memory


def runs_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the horizontal runs of a mask.

    Args:
        mask: bool (H, W).

    Returns:
        Row, first column and column after the last of each run, int64.
    """
    edges = np.diff(np.pad(np.asarray(mask, dtype=np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return rows, starts, np.nonzero(edges == -1)[1]


def number_objects(mask: np.ndarray) -> np.ndarray:
    """Give each object of a mask a number.

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
    """Return each object's outline along pixel edges: (0, 0) is the top left corner of the top left pixel.

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


def ring_arrays(rings: Iterable[Any]) -> list[np.ndarray]:
    """Check the rings of a polygon that comes from outside.

    Args:
        rings: the outer ring, then the holes, each a sequence of (x, y) in pixels; closed or not.

    Returns:
        Each ring as float64 (N, 2).

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
    return arrays


def _spans(ring: np.ndarray, height: int) -> tuple[np.ndarray, ...]:
    """Return a ring's edges from top to bottom: x0, y0, x1, y1, first row, row after the last, which way it goes.

    From top to bottom, so that two outlines that share an edge compute the same crossings.
    """
    start, end = ring[:-1], ring[1:]
    down = start[:, 1] <= end[:, 1]
    (x0, y0), (x1, y1) = np.where(down[:, None], start, end).T, np.where(down[:, None], end, start).T
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (y0, y1))
    return x0, y0, x1, y1, first, last, np.where(down, 1, -1).astype(np.int32)


def _closed(ring: np.ndarray) -> np.ndarray:
    return ring if np.array_equal(ring[0], ring[-1]) else np.vstack([ring, ring[:1]])


def _goes_round(ring: np.ndarray, height: int, width: int) -> tuple[slice, slice, np.ndarray] | None:
    """Return rows and columns of a mask, and which pixels there have their centre inside a ring."""
    x0, y0, x1, y1, first, last, way = _spans(_closed(ring), height)
    counts = last - first
    crossed = np.flatnonzero(counts)
    if not len(crossed):
        return None
    top, bottom = int(first[crossed].min()), int(last[crossed].max())
    left, right = (int(np.clip(np.ceil(x - 0.5), 0, width)) for x in (ring[:, 0].min(), ring[:, 0].max()))
    turns = np.zeros((bottom - top, right - left + 1), dtype=np.int32)
    done = np.cumsum(counts[crossed])
    for part in np.split(crossed, np.searchsorted(done, np.arange(_AT_ONCE, done[-1], _AT_ONCE), side="right")):
        count = counts[part]
        edge = np.repeat(part, count)
        rows = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        fraction = (rows + 0.5 - y0[edge]) / (y1 - y0)[edge]
        x = x0[edge] + fraction * (x1 - x0)[edge]
        columns = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
        np.add.at(turns, (rows - top, columns - left), way[edge])
    return slice(top, bottom), slice(left, right), np.cumsum(turns, axis=1)[:, :-1] != 0


def _paint_cost(rings: Iterable[np.ndarray], height: int, width: int) -> int:
    """Estimate the work of :func:`paint_rings`: crossings of edges and pixel rows, and pixels looked at."""
    cost = 0
    for ring in rings:
        if len(ring) >= 3:
            *_, first, last, _ = _spans(_closed(ring), height)
            left, right = np.clip([ring[:, 0].min(), ring[:, 0].max()], 0, width)
            cost += 4 * int((last - first).sum()) + int((last.max() - first.min()) * (right - left)) + len(ring)
    return cost


def paint_rings(mask: np.ndarray, rings: Sequence[np.ndarray]) -> bool:
    """Set the pixels of a mask whose centres lie inside an outline and in none of its holes.

    Inside is what a ring goes round, once or more often, so that outlines that cross themselves are no special case.
    A centre exactly on an edge belongs to the polygon to its right, or below, so that polygons which share an edge
    share no pixel and leave no gap (``skimage.draw.polygon`` gives it to both, ``shapely.contains_xy`` to neither).

    Args:
        mask: bool (H, W), changed in place.
        rings: of :func:`ring_arrays`; they may leave the mask.

    Returns:
        Whether any pixel lies inside.
    """
    outer = _goes_round(rings[0], *mask.shape) if rings and len(rings[0]) >= 3 else None
    if outer is None:
        return False
    rows, columns, inside = outer
    for ring in rings[1:]:
        hole = _goes_round(ring - (columns.start, rows.start), *inside.shape) if len(ring) >= 3 else None
        if hole is not None:
            inside[hole[0], hole[1]] &= ~hole[2]
    mask[rows, columns] |= inside
    return bool(inside.any())


class Canvas:
    """A mask that outlines are painted on, as :func:`paint_rings` does; those that would take long are refused before.

    Args:
        height: of the mask.
        width: of the mask.
        x: column of its left edge in the coordinates of the outlines.
        y: row of its top edge.
    """

    def __init__(self, height: int, width: int, x: int = 0, y: int = 0) -> None:
        self.mask = np.zeros((height, width), dtype=bool)
        self.corner = x, y
        self.most = max(MOST_POINTS, height * width // 4)
        self.points, self.work = self.most, max(MOST_WORK, 8 * height * width)

    def paint(self, polygons: Iterable[Rings]) -> bool:
        """Paint the polygons of one object.

        Args:
            polygons: the rings of each, of :func:`ring_arrays`; they may leave the mask.

        Returns:
            Whether any pixel lies inside.

        Raises:
            ValueError: one line, when all the outlines so far and these have more points, or run to and fro over the
                mask more often, than any that were drawn; nothing of these is painted then.
        """
        moved = [[ring - self.corner for ring in rings] for rings in polygons if self._reached(rings)]
        height, width = self.mask.shape
        for rings in moved:
            self.points -= sum(map(len, rings))
            if self.points < 0:
                raise ValueError(f"the outlines have more than {self.most:,} points: simplify them, or send a mask")
            self.work -= _paint_cost(rings, height, width)
            if self.work < 0:
                raise ValueError("the outlines run to and fro over the image too often: draw them anew, or send a mask")
        # a list, since each of them has to be painted
        return any([paint_rings(self.mask, rings) for rings in moved])

    def _reached(self, rings: Rings) -> bool:
        if not rings or len(rings[0]) < 3:
            return False
        low, high = rings[0].min(axis=0) - self.corner, rings[0].max(axis=0) - self.corner
        return bool((high > 0).all() and (low < self.mask.shape[::-1]).all())

"""Outlines and masks: the pixels whose centres an outline holds, and the outlines along the pixel edges of a mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import shapely

from monai_kwtl.errors import KWTLError

__all__ = ["Polygon", "rasterize", "runs_of", "trace"]

Ring = Sequence[Sequence[float]] | np.ndarray
Polygon = Sequence[Ring]


def _crossings(ring: Ring, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row of every pixel row that the ring's edges cross at its centre line, and the first column right of there."""
    points = np.asarray(ring, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 2 or len(points) < 3:
        raise KWTLError("an outline must be a list of at least three points [x, y].")
    points = points[:, :2]
    if not np.isfinite(points).all():
        raise KWTLError("an outline has a coordinate that is not a finite number.")
    start, end = points, np.roll(points, -1, axis=0)
    # from top to bottom, so that two outlines that share an edge compute the same crossings
    down = (start[:, 1] <= end[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(down, start, end).T, np.where(down, end, start).T
    first, last = (np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64) for y in (y0, y1))
    counts = last - first
    edge = np.repeat(np.arange(len(points)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    share = (rows + 0.5 - y0[edge]) / (y1 - y0)[edge]
    x = x0[edge] + share * (x1 - x0)[edge]
    return rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)


def rasterize(polygons: Iterable[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons: a pixel is inside where its centre is.

    Coordinates are in pixels from the top left corner of the image, x to the right and y down, as in GeoJSON of QuPath
    and in COCO: pixel (row, column) covers [column, column + 1] x [row, row + 1]. A centre exactly on an edge belongs
    to the polygon to its right, or below, so that polygons which share an edge share no pixel and leave no gap
    (``skimage.draw.polygon`` gives such a pixel to both). Within a polygon the rings count by the even-odd rule: the
    first is the outline, the others are its holes. Polygons may overlap and leave the image.

    Args:
        polygons: each a list of rings, each ring a list of points (x, y); whether it repeats its first point at the
            end makes no difference.
        shape: rows and columns of the mask.

    Returns:
        Bool, of that shape.

    Raises:
        KWTLError: for a ring of fewer than three points, or a coordinate that is not finite.
    """
    height, width = shape
    mask = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        crossings = [_crossings(ring, height, width) for ring in polygon]
        if not sum(len(rows) for rows, _ in crossings):
            continue
        rows, columns = (np.concatenate(part) for part in zip(*crossings, strict=True))
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max()
        flips = np.zeros((bottom - top, right - left + 1), dtype=bool)
        np.logical_xor.at(flips, (rows - top, columns - left), True)
        mask[top:bottom, left:right] |= np.logical_xor.accumulate(flips, axis=1)[:, :-1]
    return mask


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


def trace(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Outline a mask along the edges of its pixels; :func:`rasterize` gives back the very mask.

    Args:
        mask: (H, W), every value but 0 is foreground.

    Returns:
        A polygon for each connected part (pixels that touch at a corner only are not connected): its rings, float64
        (N, 2) points (x, y), closed, the outline first and then its holes.
    """
    rows, starts, ends = runs_of(mask != 0)
    whole = shapely.union_all(shapely.box(starts, rows, ends, rows + 1))
    parts = [part.simplify(0) for part in shapely.get_parts(whole) if not part.is_empty]
    return [[np.asarray(ring.coords) for ring in (part.exterior, *part.interiors)] for part in parts]

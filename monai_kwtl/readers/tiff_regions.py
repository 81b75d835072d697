"""Rectangles of a TIFF page, of which only the strips or tiles that they touch are read."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import tifffile

__all__ = ["SegmentCache", "has_small_segments", "read_region"]

_LARGEST_SEGMENT = 1 << 26  # bytes, decoded


class SegmentCache:
    """Decoded strips and tiles, the last used ones: rectangles that follow each other share strips.

    Args:
        limit: bytes that are kept at most.
    """

    def __init__(self, limit: int = 1 << 27) -> None:
        self.limit, self._held = limit, 0
        self._segments: OrderedDict[tuple[int, int], np.ndarray | None] = OrderedDict()

    def get(self, key: tuple[int, int], decode: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """Return the segment of that key, decoded where it is not held."""
        if key in self._segments:
            self._segments.move_to_end(key)
            return self._segments[key]
        segment = self._segments[key] = decode()
        self._held += 0 if segment is None else segment.nbytes
        while self._held > self.limit and len(self._segments) > 1:
            _, oldest = self._segments.popitem(last=False)
            self._held -= 0 if oldest is None else oldest.nbytes
        return segment


def _segment_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """Return the rows and columns of a strip or tile."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def has_small_segments(page: tifffile.TiffPage) -> bool:
    """Return True if a rectangle can be read without the whole page: it is not one large compressed strip."""
    depth_one = page.shaped[1] == 1 and page.dtype is not None
    samples = page.shaped[4]
    size = math.prod(_segment_size(page)) * samples * (page.dtype.itemsize if page.dtype is not None else 1)
    return depth_one and (page.is_contiguous or size <= _LARGEST_SEGMENT)


def _decoded(page: tifffile.TiffPage, index: int) -> np.ndarray | None:
    offset, count = page.dataoffsets[index], page.databytecounts[index]
    if not count:
        return None
    page.parent.filehandle.seek(offset)
    data = page.parent.filehandle.read(count)
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.jpegtables is not None else {}
    segment = page.decode(data, index, **tables)[0]
    return None if segment is None else segment[0]


def read_region(page: tifffile.TiffPage, rows: slice, columns: slice, cache: SegmentCache) -> np.ndarray:
    """Read a rectangle of a page.

    Args:
        page: with the axes YX, YXS or SYX, and :func:`has_small_segments`.
        rows: with a start and a stop inside the page.
        columns: likewise.
        cache: of this file; kept between calls.

    Returns:
        ``page.asarray()[rows, columns]``, for the axes SYX ``[:, rows, columns]``.
    """
    planes, _, height, width, samples = page.shaped
    shape = (planes, rows.stop - rows.start, columns.stop - columns.start, samples)
    if page.is_contiguous:
        dtype = page.parent.byteorder + page.dtype.char
        row = width * samples
        result = np.empty(shape, dtype=page.dtype)
        for plane in range(planes):
            offset = page.dataoffsets[0] + (plane * height + rows.start) * row * page.dtype.itemsize
            block = page.parent.filehandle.read_array(dtype, shape[1] * row, offset)
            result[plane] = block.reshape(shape[1], width, samples)[:, columns]
    else:
        result = np.full(shape, page.nodata, dtype=page.dtype)
        high, wide = _segment_size(page)
        down, across = -(-height // high), -(-width // wide)
        for plane in range(planes):
            for down_index in range(rows.start // high, -(-rows.stop // high)):
                for across_index in range(columns.start // wide, -(-columns.stop // wide)):
                    index = (plane * down + down_index) * across + across_index
                    segment = cache.get((page.index, index), lambda index=index: _decoded(page, index))
                    if segment is None:
                        continue
                    y, x = down_index * high, across_index * wide
                    top, left = max(y, rows.start), max(x, columns.start)
                    part = segment[top - y : rows.stop - y, left - x : columns.stop - x]
                    y, x = top - rows.start, left - columns.start
                    result[plane, y : y + part.shape[0], x : x + part.shape[1]] = part
    if page.axes == "SYX":
        return result[..., 0]
    return result[0] if page.axes == "YXS" else result[0, ..., 0]

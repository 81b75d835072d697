"""A rectangle of an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

__all__ = ["Box", "pixels_inside"]


class Box(NamedTuple):
    """A rectangle of pixels: column and row of its top left pixel, width and height."""

    x: int
    y: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns: ``plane[box.slices]`` of an array (H, W), ``planes[(..., *box.slices)]`` of several."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge, as Pillow and shapely want them."""
        return self.x, self.y, self.x + self.width, self.y + self.height


def pixels_inside(shape: tuple[int, int], boxes: Iterable[Box]) -> np.ndarray:
    """Return which pixels of an image, bool (H, W), lie inside any of the boxes; these may leave it."""
    inside = np.zeros(shape, dtype=bool)
    for x, y, width, height in boxes:
        inside[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    return inside

"""A rectangle of an image."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Box"]


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

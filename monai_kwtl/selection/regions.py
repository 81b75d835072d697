"""A selected region, and what a selection costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from monai_kwtl.windows.box import Box

__all__ = ["Cost", "Region", "cost_of"]


@dataclass(frozen=True)
class Region:
    """One region to label; ``x`` is the column, ``y`` the row of its top-left pixel, from the image's top left."""

    rank: int
    image: str
    page: int | None
    image_sha256: str
    x: int
    y: int
    width: int
    height: int
    score: float

    @property
    def box(self) -> Box:
        """Rectangle in its image."""
        return Box(self.x, self.y, self.width, self.height)

    @property
    def key(self) -> tuple[str, int | None, int, int, int, int]:
        """Identity of the region, whatever its rank and score: image, page and box."""
        return (self.image, self.page, *self.box)


@dataclass(frozen=True)
class Cost:
    """Cost of labelling a selection: windows, images touched, pixels (each counted once)."""

    windows: int
    images: int
    unique_pixels: int

    def as_dict(self) -> dict[str, int]:
        """Return the cost as ``selection.json`` holds it."""
        return asdict(self)


def cost_of(regions: Sequence[Region]) -> Cost:
    """Count windows, images and pixels of a selection, a pixel in several regions once."""
    pixels = 0
    images = {(region.image, region.page) for region in regions}
    for image in images:
        mine = [r for r in regions if (r.image, r.page) == image]
        rows = np.unique([edge for r in mine for edge in (r.y, r.y + r.height)])
        columns = np.unique([edge for r in mine for edge in (r.x, r.x + r.width)])
        covered = np.zeros((len(rows) - 1, len(columns) - 1), dtype=bool)
        for r in mine:
            top, bottom = np.searchsorted(rows, [r.y, r.y + r.height])
            left, right = np.searchsorted(columns, [r.x, r.x + r.width])
            covered[top:bottom, left:right] = True
        pixels += int((np.outer(np.diff(rows), np.diff(columns)) * covered).sum())
    return Cost(windows=len(regions), images=len(images), unique_pixels=pixels)

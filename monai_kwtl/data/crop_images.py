"""Images held in memory for training: pixels, label, what of it is known, and where crops may lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from monai_kwtl.errors import KWTLError
from monai_kwtl.windows.box import Box

__all__ = ["CropImage", "draw_start"]


def draw_start(rng: np.random.Generator, start: int, length: int, size: int, shift: int, limit: int) -> int:
    """Draw where a crop starts along one axis: inside a span, or around it where the span is shorter.

    Args:
        rng: draws uniformly.
        start: first pixel of the span.
        length: pixels of the span.
        size: pixels of the crop.
        shift: how many pixels further the crop may stick out of the span, or the span out of the crop; at least one
            pixel stays common.
        limit: pixels of the axis, at least ``size``.

    Returns:
        First pixel of the crop, in [0, limit - size].
    """
    inner = sorted((start, start + length - size))
    slack = min(shift, size - 1, length - 1)
    low, high = (int(np.clip(end, 0, limit - size)) for end in (inner[0] - slack, inner[1] + slack))
    return int(rng.integers(low, high, endpoint=True))


def _plane(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 3 or array.shape[0] != 1:
        raise ValueError(f"crops are cut from arrays of shape (1, H, W), got {array.shape}.")
    return array[0]


def _boxes_of(known: np.ndarray) -> list[Box]:
    """Return the bounding boxes of the connected parts of a mask."""
    found = ndimage.find_objects(ndimage.label(known)[0])
    return [Box(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in found]


@dataclass(frozen=True)
class CropImage:
    """An image in memory, no smaller than a crop.

    Args:
        name: for messages.
        image: grey values, uint8 (H, W).
        label: 1 foreground, 0 background, uint8 (H, W).
        known: bool (H, W), False where the label says nothing; None: known everywhere.
        boxes: the parts of the image that crops are drawn from.
        weights: known pixels of each box, times its importance.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    known: np.ndarray | None
    boxes: tuple[Box, ...]
    weights: tuple[int, ...]

    @classmethod
    def from_item(cls, item: Mapping[str, Any], size: int, require_known: bool = True) -> CropImage:
        """Take image, label and what is known out of an item.

        A side shorter than a crop is padded by reflection, at its bottom or right; nothing is known of the padding.

        Args:
            item: ``image``, uint8 (1, H, W); ``label``, (1, H, W), above 0 is foreground; optionally ``known``, bool
                (1, H, W), ``regions``, objects with ``x``, ``y``, ``width`` and ``height``, ``importance``, how much
                each region counts, 1 being as much as without it, and ``name``.
            size: side of a crop, in pixels.
            require_known: whether the boxes are the regions, or without them the connected parts of ``known``; else,
                and where all is known, the whole image is the one box.

        Raises:
            KWTLError: when there is no label, or it has another size than the image.
        """
        name = str(item.get("name", "an image"))
        if item.get("label") is None:
            raise KWTLError(f"{name} has no label; give labelled images only.")
        image = _plane(item["image"])
        if image.dtype != np.uint8:
            raise ValueError(f"{name} is {image.dtype}, crops are cut from uint8 grey values.")
        label = (_plane(item["label"]) > 0).astype(np.uint8)
        known = None if item.get("known") is None else _plane(item["known"]).astype(bool)
        for what, plane in (("label", label), ("known mask", known)):
            if plane is not None and plane.shape != image.shape:
                raise KWTLError(
                    f"the {what} of {name} is {plane.shape[1]} wide and {plane.shape[0]} high, the image "
                    f"{image.shape[1]} wide and {image.shape[0]} high; give a mask of the image's size."
                )
        boxes = [Box(0, 0, image.shape[1], image.shape[0])]
        weights = [image.size]
        if known is not None and require_known:
            regions = item.get("regions")
            boxes = _boxes_of(known) if regions is None else [Box(r.x, r.y, r.width, r.height) for r in regions]
            weights = [int(known[box.slices].sum()) for box in boxes]
            if regions is not None and (importance := item.get("importance")) is not None:
                weights = [round(pixels * part) for pixels, part in zip(weights, importance, strict=True)]
        missing = [max(size - side, 0) for side in image.shape]
        if any(missing):
            pads = [(0, pixels) for pixels in missing]
            known = np.pad(np.ones(image.shape, dtype=bool) if known is None else known, pads)
            image, label = np.pad(image, pads, mode="reflect"), np.pad(label, pads, mode="reflect")
        return cls(name, image, label, known, tuple(boxes), tuple(weights))

"""Images of a pool in batches, for statistics over the pool."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_kwtl.data.loading import DECODE_LIMIT, read_image
from monai_kwtl.readers.slides import Slide
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.utils.prefetch import prefetched
from monai_kwtl.utils.sampling import evenly_spaced_indices

__all__ = ["PoolPart", "pool_batches", "pool_sample"]

_CORNERS = ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0))  # top and left; the middle first
_SMALLEST = 32  # pixels; at a stride of 16 the deepest layer still has several values, without which it has no variance


class PoolPart(NamedTuple):
    """A part of an image of the pool that statistics are measured on: as much of it as a square covers.

    ``corner`` says where in an image that is larger the square lies, as fractions of what is left beside it, in [0, 1].
    """

    item: Mapping[str, Any]
    side: int
    corner: tuple[float, float]


def pool_sample(
    items: Sequence[Mapping[str, Any]], limit: int = 32, largest: int = 1536, most: int = 1 << 23
) -> list[PoolPart]:
    """Return parts of images spread evenly over a pool, from the first to the last.

    Of large images many with a part of each say more than few whole ones. The parts lie in the middle and in the four
    corners in turn, because a field of view is often darker at its rim.

    Args:
        items: the pool.
        limit: at most so many images.
        largest: side of a part, in pixels, at most.
        most: pixels of all parts together; a side has at least the square root of ``most / limit``.

    Returns:
        The parts; their order is that of the pool.
    """
    chosen = evenly_spaced_indices(len(items), limit).tolist()
    side = min(largest, math.isqrt(most // max(1, len(chosen))))
    return [PoolPart(items[i], side, _CORNERS[n % len(_CORNERS)]) for n, i in enumerate(chosen)]


def pool_batches(
    items: Sequence[Mapping[str, Any]],
    limit: int = 32,
    largest: int = 1536,
    rescale: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[torch.Tensor]:
    """Read network input of the parts of a pool that :func:`pool_sample` chooses, for re-estimating statistics.

    Args:
        items: the pool.
        limit: as of :func:`pool_sample`.
        largest: as of :func:`pool_sample`.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the batches shall live.

    Yields:
        Batches of one part, shape (1, 1, H, W), in [-1, 1]; sides below 32 are mirrored.
    """
    yield from _batches(pool_sample(items, limit, largest), rescale, device)


def _batches(
    parts: Sequence[PoolPart], rescale: Sequence[float] | None, device: torch.device | str
) -> Iterator[torch.Tensor]:
    for image in prefetched(_read(part, rescale) for part in parts):  # the next while the caller works on one
        missing = [(0, max(0, _SMALLEST - size)) for size in image.shape[1:]]
        image = np.pad(image, [(0, 0), *missing], mode="symmetric")  # a copy, which torch may write to
        yield normalize(torch.from_numpy(image)[None].to(device))


def _read(part: PoolPart, rescale: Sequence[float] | None) -> np.ndarray:
    """Read the grey values of a part, uint8 (1, H, W)."""

    def along(size: int, fraction: float) -> slice:
        start = int(fraction * max(0, size - part.side))
        return slice(start, min(start + part.side, size))

    item = part.item
    if item.get("height", 0) * item.get("width", 0) > DECODE_LIMIT:
        return Slide(item, rescale).pixels(*map(along, (item["height"], item["width"]), part.corner))
    image = read_image(item, rescale)
    return image[(slice(None), *map(along, image.shape[1:], part.corner))]

"""Fitting a network's batch-norm statistics to a pool of unlabelled images, as an Ignite handler."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_kwtl.data import DECODE_LIMIT, read_image
from monai_kwtl.distributed import gathered, share
from monai_kwtl.errors import true_or_false
from monai_kwtl.feature_strategies import evenly
from monai_kwtl.inferers import autocast_choice
from monai_kwtl.networks import pad_to_multiple
from monai_kwtl.normalization import (
    batch_norm_layers,
    batch_norm_statistics,
    channels_last,
    fold_batch_norm,
    set_batch_norm_statistics,
    use_batch_statistics,
)
from monai_kwtl.pooling import quick_pooling
from monai_kwtl.prefetch import prefetched
from monai_kwtl.rectified import fuse_rectifiers
from monai_kwtl.scoring import normalize
from monai_kwtl.slides import Slide

__all__ = ["BatchNormAdapter", "PoolPart", "pool_batches", "pool_sample"]

logger = logging.getLogger("monai_kwtl")

_CORNERS = ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0))  # top and left; the middle first
_SMALLEST = 32  # pixels; at a stride of 16 the deepest layer still has several values, without which it has no variance


class PoolPart(NamedTuple):
    """A part of an image of the pool that statistics are measured on: as much of it as a square covers.

    ``corner`` says where in an image that is larger the square lies, as shares of what is left beside it, in [0, 1].
    """

    item: Mapping[str, Any]
    side: int
    corner: tuple[float, float]


def pool_sample(
    items: Sequence[Mapping[str, Any]], limit: int = 32, largest: int = 1536, most: int = 1 << 23
) -> list[PoolPart]:
    """Parts of images spread evenly over a pool, from the first to the last.

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
    chosen = evenly(len(items), limit).tolist()
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
    """Grey values of a part, uint8 (1, H, W)."""

    def along(size: int, share: float) -> slice:
        start = int(share * max(0, size - part.side))
        return slice(start, min(start + part.side, size))

    item = part.item
    if item.get("height", 0) * item.get("width", 0) > DECODE_LIMIT:
        return Slide(item, rescale).pixels(*map(along, (item["height"], item["width"]), part.corner))
    image = read_image(item, rescale)
    return image[(slice(None), *map(along, image.shape[1:], part.corner))]


class BatchNormAdapter:
    """Give an evaluator, as it starts, a network for inference whose batch-norm statistics are those of the pool.

    Args:
        network: with its trained weights; its statistics are replaced in place.
        items: the pool; labels are not looked at.
        adapt: False keeps the running statistics of the checkpoint; ``"transductive"`` uses those of each batch.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the network lives.
        limit: how many images the statistics are averaged over, of those parts that :func:`pool_sample` chooses.
        amp: whether the statistics are measured under bfloat16 autocast, best as the network will be run; None or
            ``auto``: where the device multiplies bfloat16 natively.
    """

    def __init__(
        self,
        network: nn.Module,
        items: Sequence[Mapping[str, Any]],
        adapt: bool | str = True,
        rescale: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        limit: int = 32,
        amp: bool | str | None = False,
    ) -> None:
        self.network, self.items = network, items
        self.adapt = adapt if adapt == "transductive" else true_or_false(adapt, "adapt_norm")
        self.rescale, self.device, self.limit, self.amp = rescale, device, limit, autocast_choice(amp)
        self._ready: nn.Module | None = None

    def fit(self) -> None:
        """Fit the statistics in several processes, each on a part of the images; all of them must call it.

        The result is that of one process, to the bit. Where this is not called, :meth:`ready` works alone.
        """
        if self._ready is None:
            self._ready = self._adapted(share, gathered)

    def ready(self) -> nn.Module:
        """Return the adapted network, folded for inference; the work is done once."""
        if self._ready is None:
            self._ready = self._adapted(list, list)
        return self._ready

    def _adapted(self, shared_out: Callable[[Sequence], list], collected: Callable[[list], list]) -> nn.Module:
        if self.adapt == "transductive":
            return use_batch_statistics(self.network)
        if self.adapt and batch_norm_layers(self.network):
            logger.info("fitting the network's normalisation to the images")
            stride = int(getattr(self.network, "stride", 16))
            mine = shared_out(pool_sample(self.items, self.limit))
            batches = _batches(mine, self.rescale, self.device)
            rows = batch_norm_statistics(self.network, (pad_to_multiple(batch, stride) for batch in batches), self.amp)
            set_batch_norm_statistics(self.network, collected(rows))
        return fuse_rectifiers(quick_pooling(channels_last(fold_batch_norm(self.network))))

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that holds its network as ``engine.network``."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Hand the adapted network to the evaluator."""
        engine.network = self.ready()

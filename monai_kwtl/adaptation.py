"""Fitting a network's batch-norm statistics to a pool of unlabelled images, as an Ignite handler."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_kwtl.data import read_image
from monai_kwtl.networks import pad_to_multiple
from monai_kwtl.normalization import (
    batch_norm_layers,
    estimate_batch_norm_statistics,
    fold_batch_norm,
    use_batch_statistics,
)
from monai_kwtl.scoring import normalize

__all__ = ["BatchNormAdapter", "pool_batches"]

logger = logging.getLogger("monai_kwtl")

_SMALLEST = 32  # pixels; at a stride of 16 the deepest layer still has several values, without which it has no variance


def pool_batches(
    items: Sequence[Mapping[str, Any]],
    limit: int = 32,
    largest: int = 1536,
    rescale: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[torch.Tensor]:
    """Read network input of images spread evenly over a pool, for re-estimating batch-norm statistics.

    Args:
        items: the pool.
        limit: at most so many images.
        largest: an image's longer sides are cut to so many pixels around its centre; sides below 32 are mirrored.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the batches shall live.

    Yields:
        Batches of one image, shape (1, 1, H, W), in [-1, 1].
    """
    for index in sorted({int(i) for i in np.linspace(0, len(items) - 1, min(limit, len(items))).round()}):
        image = read_image(items[index], rescale)
        top, left = (max(0, (size - largest) // 2) for size in image.shape[1:])
        image = image[:, top : top + largest, left : left + largest]
        missing = [(0, max(0, _SMALLEST - size)) for size in image.shape[1:]]
        image = np.pad(image, [(0, 0), *missing], mode="symmetric")  # a copy, which torch may write to
        yield normalize(torch.from_numpy(image)[None].to(device))


class BatchNormAdapter:
    """Give an evaluator, as it starts, a network for inference whose batch-norm statistics are those of the pool.

    Args:
        network: with its trained weights; its statistics are replaced in place.
        items: the pool; labels are not looked at.
        adapt: False keeps the running statistics of the checkpoint; ``"transductive"`` uses those of each batch.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the network lives.
        limit: how many images, spread evenly over the pool, the statistics are averaged over.
    """

    def __init__(
        self,
        network: nn.Module,
        items: Sequence[Mapping[str, Any]],
        adapt: bool | str = True,
        rescale: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        limit: int = 32,
    ) -> None:
        self.network, self.items, self.adapt = network, items, adapt
        self.rescale, self.device, self.limit = rescale, device, limit
        self._ready: nn.Module | None = None

    def ready(self) -> nn.Module:
        """Return the adapted network, folded for inference; the work is done once."""
        if self._ready is None:
            if self.adapt == "transductive":
                self._ready = use_batch_statistics(self.network)
                return self._ready
            if self.adapt and batch_norm_layers(self.network):
                logger.info("fitting the network's normalisation to the images")
                stride = int(getattr(self.network, "stride", 16))
                batches = pool_batches(self.items, self.limit, rescale=self.rescale, device=self.device)
                estimate_batch_norm_statistics(self.network, (pad_to_multiple(batch, stride) for batch in batches))
            self._ready = fold_batch_norm(self.network).to(memory_format=torch.channels_last)
        return self._ready

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that holds its network as ``engine.network``."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Hand the adapted network to the evaluator."""
        engine.network = self.ready()

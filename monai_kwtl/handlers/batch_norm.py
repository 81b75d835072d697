"""Fitting a network's batch-norm statistics to a pool of unlabelled images, as an Ignite handler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_kwtl.data.pool_batches import _batches, pool_sample
from monai_kwtl.errors import as_bool
from monai_kwtl.networks.autocast import autocast_choice
from monai_kwtl.networks.batch_norm import (
    batch_norm_layers,
    batch_norm_statistics,
    set_batch_norm_statistics,
    use_batch_statistics,
)
from monai_kwtl.networks.fcrn import pad_to_multiple
from monai_kwtl.networks.optimize import channels_last, fold_batch_norm, fuse_rectifiers, quick_pooling
from monai_kwtl.utils.distributed import gathered, scatter

__all__ = ["BatchNormAdapter"]

logger = logging.getLogger("monai_kwtl")


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
        self.adapt = adapt if adapt == "transductive" else as_bool(adapt, "adapt_norm")
        self.rescale, self.device, self.limit, self.amp = rescale, device, limit, autocast_choice(amp)
        self._ready: nn.Module | None = None

    def fit(self) -> None:
        """Fit the statistics in several processes, each on a part of the images; all of them must call it.

        The result is that of one process, to the bit. Where this is not called, :meth:`ready` works alone.
        """
        if self._ready is None:
            self._ready = self._adapted(scatter, gathered)

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

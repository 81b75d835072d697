"""The fraction of foreground of a pool, by a network's predictions."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.data.pool_batches import pool_batches
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.handlers.batch_norm import BatchNormAdapter
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.choice import load_network
from monai_kwtl.networks.parallel import unsynchronized
from monai_kwtl.networks.weights import FROM_SCRATCH
from monai_kwtl.utils.distributed import on_main_process

__all__ = ["foreground_fraction", "fraction_for"]

logger = logging.getLogger("monai_kwtl")

LEAST = 1.0 / 51.0  # of a fraction and of what is left of it: weights of the foreground are then from 1/50 to 50


@torch.no_grad()
def foreground_fraction(
    network: nn.Module,
    items: Sequence[Mapping[str, Any]],
    inferer: Inferer | None = None,
    rescale: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    limit: int = 32,
) -> float:
    """Estimate how much of a pool is foreground, as a network predicts it; no label is read.

    It is the fraction of pixels of probability 0.5 or more, over images spread evenly over the pool, by a copy of the
    network whose batch-norm statistics are fitted to them. The mean probability would be nearer to a half: what the
    network is unsure of counts in it.

    Args:
        network: gives logits; is not changed.
        items: the pool.
        inferer: how the network is run; None: in tiles, as the stages do.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the network lives.
        limit: at most so many images, of large ones the parts that ``pool_sample`` chooses.

    Returns:
        A fraction from 1/51 to 50/51, so that background over foreground is from 1/50 to 50.

    Raises:
        KWTLError: when an image cannot be read.
    """
    inferer = TiledInferer() if inferer is None else inferer
    ready = BatchNormAdapter(copy.deepcopy(network), items, rescale=rescale, device=device, limit=limit).ready()
    foreground = pixels = 0
    for batch in pool_batches(items, limit, rescale=rescale, device=device):
        mask = inferer(batch, ready) >= 0
        foreground, pixels = foreground + int(mask.sum()), pixels + mask.numel()
    return float(np.clip(foreground / pixels, LEAST, 1.0 - LEAST))


def fraction_for(
    foreground_weight: str | float,
    match_foreground: bool,
    network: nn.Module,
    ckpt: str | os.PathLike | None,
    items: Sequence[Mapping[str, Any]],
    rescale: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
) -> float | None:
    """Estimate the pool's fraction of foreground for a training stage, with its start weights also where it is resumed.

    Args:
        foreground_weight: of the stage; ``pool`` needs the fraction.
        match_foreground: of the stage; True needs it as well.
        network: of that kind; is not changed.
        ckpt: start weights.
        items: the pool.
        rescale: as of :func:`foreground_fraction`.
        device: as of :func:`foreground_fraction`.

    Returns:
        As of :func:`foreground_fraction`, the same in all processes; None where it is not needed.

    Raises:
        KWTLError: where training begins from scratch, with weights that cannot predict anything.
    """
    if foreground_weight != "pool" and not as_bool(match_foreground, "match_foreground"):
        return None
    if ckpt in FROM_SCRATCH:
        raise KWTLError(
            "the foreground of the pool is estimated by the start weights, and --ckpt random has none; give weights, "
            "or use neither --foreground_weight pool nor --match_foreground true."
        )

    def estimate() -> float:
        started = load_network(ckpt, unsynchronized(copy.deepcopy(network)), device)
        fraction = foreground_fraction(started, items, rescale=rescale, device=device)
        logger.info(f"the start weights predict {100 * fraction:.1f} % foreground in the images")
        return fraction

    return on_main_process(estimate)

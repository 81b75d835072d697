"""What windows look like to the network: its latent, averaged over each window."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from monai_kwtl.cells import cells_of
from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers import TiledInferer, stride_of
from monai_kwtl.score_tiles import padded_tiles
from monai_kwtl.slides import ImageInMemory, Slide
from monai_kwtl.windows import WindowGrid, block_sums

__all__ = ["window_features"]

_MOST_BYTES = 3 << 29  # of the sums over cells
_GROUP = 64  # channels that are summed up over windows at once


def _has_latent(network: nn.Module) -> bool:
    return all(hasattr(network, part) for part in ("features", "decoder", "head", "stride"))


def _spans(starts: np.ndarray, size: int, before: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one latent row of each window, rounded, at least one."""
    first = np.floor((starts + before) / stride + 0.5).astype(np.int64)
    last = np.floor((starts + before + size) / stride + 0.5).astype(np.int64)
    return first, np.maximum(last, first + 1)


@torch.no_grad()
def window_features(
    image: torch.Tensor | ImageInMemory | Slide, network: nn.Module, grid: WindowGrid, inferer: TiledInferer
) -> np.ndarray:
    """Describe each window by the mean of the network's latent, over all of it and over what it predicts as foreground.

    Sums over windows follow from an integral image on the latent's own grid, to which the edges of windows are
    rounded; an image is run through the network once, a tile at a time.

    Args:
        image: grey values in [0, 255], shape (1, 1, H, W), or to be read a tile at a time.
        network: in evaluation mode, with ``features`` (the latent), ``decoder``, ``head`` and ``stride``, as FCRN.
        grid: the windows.
        inferer: says how large a tile is, and the arithmetic.

    Returns:
        float16, shape (len(grid), 2 C) for a latent of C channels: the mean latent, then the mean weighted by the
        probability of foreground, each of length ``sqrt(1/2)`` or 0, so that a row has length 1 at most.

    Raises:
        KWTLError: for a network without a latent, or where the windows are so many that their sums fill the memory.
    """
    if not _has_latent(network):
        raise KWTLError(f"{type(network).__name__} has no latent to compare windows by; choose another --strategy.")
    source = ImageInMemory(image) if isinstance(image, torch.Tensor) else image
    stride = stride_of(network, inferer.stride)
    missing = [-size % stride for size in (source.height, source.width)]
    starts = ((grid.rows, grid.size[0], missing[0] // 2), (grid.columns, grid.size[1], missing[1] // 2))
    (top, bottom), (left, right) = (_spans(*axis, stride) for axis in starts)
    shape = [(size + gap) // stride for size, gap in zip((source.height, source.width), missing, strict=True)]
    top, left = np.minimum(top, shape[0] - 1), np.minimum(left, shape[1] - 1)
    bottom, right = np.clip(bottom, top + 1, shape[0]), np.clip(right, left + 1, shape[1])
    rows, columns = (np.unique(np.concatenate([[0], *ends])) for ends in ((top, bottom), (left, right)))
    cells: np.ndarray | None = None
    weight = np.zeros((len(rows), len(columns)))
    for tile, part in padded_tiles(source, network, inferer):
        amp = inferer.uses_amp(part.device)
        with torch.autocast(part.device.type, dtype=torch.bfloat16, enabled=amp):
            latent = network.features(part)
            logits = network.head(network.decoder(latent))
        seen = tuple(slice(s.start // stride, s.stop // stride) for s in tile.within)
        kept = tuple(slice(s.start // stride, s.stop // stride) for s in tile.kept)
        probability = F.avg_pool2d(torch.sigmoid(logits.float()), stride)[0, 0][seen].cpu().numpy()
        values = latent[0].float()[(slice(None), *seen)].cpu().numpy()
        if cells is None:
            if 2 * len(values) * weight.size * 4 > _MOST_BYTES:
                raise KWTLError(f"an image has {len(grid)} windows, too many to compare; use a larger --step.")
            cells = np.zeros((2 * len(values), *weight.shape), dtype=np.float32)
        _add(cells, rows, columns, kept, np.concatenate([values, values * probability]))
        _add(weight[None], rows, columns, kept, probability[None])
    if cells is None:  # cannot be: an image has at least one tile
        raise KWTLError("the image is empty.")
    spans = tuple(np.searchsorted(*pair) for pair in ((rows, top), (rows, bottom), (columns, left), (columns, right)))
    divisors = np.outer(bottom - top, right - left), np.maximum(block_sums(weight, spans), 1e-6)
    half = len(cells) // 2
    means = np.empty((len(grid), 2 * half), dtype=np.float32)
    for first in range(0, 2 * half, _GROUP):
        for part in (slice(first, min(first + _GROUP, half)), slice(max(first, half), first + _GROUP)):
            if part.start < part.stop:  # a group may lie in both halves
                sums = block_sums(cells[part].astype(np.float64), spans) / divisors[part.start >= half]
                means[:, part] = sums.reshape(len(sums), -1).T
    for part in (slice(0, half), slice(half, None)):
        length = np.sqrt((means[:, part].astype(np.float64) ** 2).sum(1, keepdims=True))
        means[:, part] *= np.sqrt(0.5) / np.maximum(length, 1e-12)
    return means.astype(np.float16)


def _add(
    cells: np.ndarray, rows: np.ndarray, columns: np.ndarray, where: tuple[slice, slice], values: np.ndarray
) -> None:
    """Add a rectangle of a map, shape (C, h, w), to its sums over cells; a cell ends where the next one begins."""
    first, cuts = zip(*(cells_of(edges, part) for edges, part in zip((rows, columns), where, strict=True)), strict=True)
    summed = np.add.reduceat(values, cuts[0], axis=1, dtype=np.float64)
    cells[(slice(None), *first)] += np.add.reduceat(summed, cuts[1], axis=2)

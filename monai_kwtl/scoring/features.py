"""Features of windows: the network's latent, averaged over each window."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.tiled import Tile, TiledInferer, stride_of
from monai_kwtl.networks.choice import has_latent
from monai_kwtl.readers.slides import ImageInMemory, Slide
from monai_kwtl.scoring.tiles import latent_and_logits, padded_tiles
from monai_kwtl.windows.blocks import blocks_of
from monai_kwtl.windows.grid import WindowGrid, rectangle_sums

__all__ = ["WindowMeans", "window_features"]

_MOST_BYTES = 3 << 29  # of the sums over blocks
_GROUP = 64  # channels that are summed up over windows at once


def _spans(starts: np.ndarray, size: int, before: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last-plus-one latent row of each window, rounded, at least one."""
    first = np.floor((starts + before) / stride + 0.5).astype(np.int64)
    last = np.floor((starts + before + size) / stride + 0.5).astype(np.int64)
    return first, np.maximum(last, first + 1)


class WindowMeans:
    """The mean of the network's latent over each window, of all of it and of what is predicted as foreground.

    Sums over windows follow from an integral image on the latent's own grid, to which the edges of windows are
    rounded. The latent comes a tile at a time, and is never there as a whole.

    Args:
        height: rows of the image.
        width: its columns.
        network: with ``features`` (the latent), ``decoder``, ``head`` and ``stride``, as FCRN.
        grid: the windows.
        inferer: that the network is run by.

    Raises:
        KWTLError: for a network without a latent.
    """

    def __init__(self, height: int, width: int, network: nn.Module, grid: WindowGrid, inferer: TiledInferer) -> None:
        if not has_latent(network):
            raise KWTLError(f"{type(network).__name__} has no latent to compare windows by; choose another --strategy.")
        self.grid, self.stride = grid, stride_of(network, inferer.stride)
        missing = [-size % self.stride for size in (height, width)]
        starts = ((grid.rows, grid.size[0], missing[0] // 2), (grid.columns, grid.size[1], missing[1] // 2))
        (top, bottom), (left, right) = (_spans(*axis, self.stride) for axis in starts)
        shape = [(size + gap) // self.stride for size, gap in zip((height, width), missing, strict=True)]
        top, left = np.minimum(top, shape[0] - 1), np.minimum(left, shape[1] - 1)
        bottom, right = np.clip(bottom, top + 1, shape[0]), np.clip(right, left + 1, shape[1])
        self._rows, self._columns = (np.unique(np.concatenate([[0], *ends])) for ends in ((top, bottom), (left, right)))
        pairs = (self._rows, top), (self._rows, bottom), (self._columns, left), (self._columns, right)
        self._spans = tuple(np.searchsorted(*pair) for pair in pairs)
        self._areas = np.outer(bottom - top, right - left)
        self._weight = np.zeros((len(self._rows), len(self._columns), 1))
        self._blocks: np.ndarray | None = None  # rows, columns, channels: twice those of the latent

    def add(self, tile: Tile, latent: torch.Tensor, logits: torch.Tensor) -> None:
        """Take in a tile.

        Args:
            tile: of the padded image.
            latent: of what is seen of it, shape (1, C, h / stride, w / stride).
            logits: likewise, shape (1, 1, h, w).

        Raises:
            KWTLError: where the windows are so many that their sums fill the memory.
        """
        stride, channels = self.stride, latent.shape[1]
        if self._blocks is None:
            if 2 * channels * self._weight.size * 4 > _MOST_BYTES:
                raise KWTLError(f"an image has {len(self.grid)} windows, too many to compare; use a larger --step.")
            self._blocks = np.zeros((*self._weight.shape[:2], 2 * channels), dtype=np.float32)
        seen = tuple(slice(s.start // stride, s.stop // stride) for s in tile.within)
        kept = tuple(slice(s.start // stride, s.stop // stride) for s in tile.kept)
        probability = F.avg_pool2d(torch.sigmoid(logits.float()), stride)[0].permute(1, 2, 0)[seen].cpu().numpy()
        values = latent[0].permute(1, 2, 0)[seen].float().cpu().numpy()
        self._add(self._blocks[..., :channels], kept, values)
        self._add(self._blocks[..., channels:], kept, values * probability)
        self._add(self._weight, kept, probability)

    def _add(self, blocks: np.ndarray, where: tuple[slice, slice], values: np.ndarray) -> None:
        """Add a rectangle of a map, shape (h, w, C), to its sums over blocks.

        A block ends where the next one begins.
        """
        (rows, down), (columns, along) = (
            blocks_of(edges, part) for edges, part in zip((self._rows, self._columns), where, strict=True)
        )
        strips = np.stack([values[a:b].sum(0) for a, b in pairwise([*down, values.shape[0]])])
        for column, (a, b) in enumerate(pairwise([*along, values.shape[1]]), start=columns.start):
            blocks[rows, column] += strips[:, a:b].sum(1)

    def rows(self) -> np.ndarray:
        """Return the result of :func:`window_features`, once all tiles are in."""
        if self._blocks is None:  # cannot be: an image has at least one tile
            raise KWTLError("the image is empty.")
        weights = np.maximum(rectangle_sums(self._weight[..., 0], self._spans), 1e-6)
        half = self._blocks.shape[-1] // 2
        means = np.empty((len(self.grid), 2 * half), dtype=np.float32)
        for first in range(0, 2 * half, _GROUP):
            for part in (slice(first, min(first + _GROUP, half)), slice(max(first, half), first + _GROUP)):
                if part.start < part.stop:  # a group may lie in both halves
                    blocks = np.moveaxis(self._blocks[..., part], -1, 0).astype(np.float64, order="C")
                    sums = rectangle_sums(blocks, self._spans) / (weights if part.start >= half else self._areas)
                    means[:, part] = sums.reshape(len(sums), -1).T
        for part in (slice(0, half), slice(half, None)):
            length = np.sqrt((means[:, part].astype(np.float64) ** 2).sum(1, keepdims=True))
            means[:, part] *= np.sqrt(0.5) / np.maximum(length, 1e-12)
        return means.astype(np.float16)


@torch.no_grad()
def window_features(
    image: torch.Tensor | ImageInMemory | Slide, network: nn.Module, grid: WindowGrid, inferer: TiledInferer
) -> np.ndarray:
    """Describe each window by the mean of the network's latent, over all of it and over what it predicts as foreground.

    An image is run through the network once, a tile at a time.

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
    source = ImageInMemory(image) if isinstance(image, torch.Tensor) else image
    means = WindowMeans(source.height, source.width, network, grid, inferer)
    for tile, part in padded_tiles(source, network, inferer):
        means.add(tile, *latent_and_logits(part, network, inferer))
    return means.rows()

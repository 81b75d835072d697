"""Memory of predictions and trainings: freed memory that is kept, and the tile that fits."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

import torch

from monai_kwtl.errors import check_number

__all__ = ["freed_memory_is_kept", "give_back_freed_memory", "keep_freed_memory", "tile_within"]

_PROCESS, _PIXEL = 0.75 * 2**30, 320  # bytes: of the process with the maps of an image; of a pixel of a tile, float32

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
# bytes; a layer of a training step is smaller, the grey values of a slide are not. Some versions take 32 MiB at most
_LARGEST_KEPT = (1 << 27, 1 << 25)


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Have glibc keep blocks up to 128 MiB when they are freed, instead of giving them back to the system.

    Each layer of a step is a block of a few MiB. By default glibc maps it anew each time, and the system zeroes its
    pages before they can be written. How much that takes depends on what else the process has asked for: a quarter of a
    bare training loop of one thread, next to nothing of the stage's trainer on two. What the process holds at its peak
    stays the same; it holds on to more of it afterwards.

    Returns:
        Whether it was done: False where the C library is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return any(mallopt(_MMAP_THRESHOLD, size) and mallopt(_TRIM_THRESHOLD, 2 * size) for size in _LARGEST_KEPT)


def freed_memory_is_kept() -> bool:
    """Return True if :func:`keep_freed_memory` has been called in this process, and was of use."""
    return keep_freed_memory.cache_info().currsize > 0 and keep_freed_memory()


def give_back_freed_memory() -> bool:
    """Give back to the system what was kept so far, between a part of the work and another that needs other blocks.

    Returns:
        Whether some was: False where the C library is no glibc, and where nothing is to be given back.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))


def _usual_tile(device: torch.device | str) -> int:
    if torch.device(device).type != "cpu":
        return 1536
    # a layer of 32 channels at 384 pixels with their margin is 12 MB in bfloat16; larger ones wait for the memory, most
    # of all where the system has to find and to zero it anew for each of them
    return 1024 if freed_memory_is_kept() else 384


def tile_within(
    max_memory: float | None = None, device: torch.device | str = "cpu", halo: int = 24, tile: int | None = None
) -> int:
    """Return the side of the largest tile with which scoring by FCRN keeps within a budget of memory.

    Args:
        max_memory: GiB that the whole process, on CUDA also its part of the GPU, may take, from 0.8 on; None: as much
            as the usual tile takes.
        device: that computes.
        halo: margin around the tile, in pixels.
        tile: taken as it is where it is given.

    Returns:
        Pixels, a multiple of 16, at most those of the usual tile.

    Raises:
        KWTLError: when it is no such number.
    """
    if tile is not None:
        return tile
    if max_memory is None:
        return _usual_tile(device)
    pixels = (check_number("max_memory", max_memory, 0.8) * 2**30 - _PROCESS) / _PIXEL
    return int(min(pixels**0.5 - 2 * halo, _usual_tile(device))) // 16 * 16

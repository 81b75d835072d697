"""Keep freed memory in the process: layers of a training step are freed and asked for again, many times a second."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

__all__ = ["freed_memory_is_kept", "give_back_freed_memory", "keep_freed_memory"]

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
    """Whether :func:`keep_freed_memory` has been called in this process, and was of use."""
    return keep_freed_memory.cache_info().currsize > 0 and keep_freed_memory()


def give_back_freed_memory() -> bool:
    """Give back to the system what was kept so far, between a part of the work and another that needs other blocks.

    Returns:
        Whether some was: False where the C library is no glibc, and where nothing is to be given back.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))

"""Images that several pictures want are read once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import numpy as np

__all__ = ["remembering"]


def remembering(
    read: Callable[[Mapping[str, Any]], np.ndarray | None], limit: int = 1 << 26
) -> Callable[[Mapping[str, Any]], np.ndarray | None]:
    """Make a reader that keeps what it read last; several threads may share it.

    Args:
        read: from an item of the pool to an array, which nobody changes, or None.
        limit: bytes that are kept at most; a larger array is not kept at all.

    Returns:
        The same function, but for its time.
    """
    kept: OrderedDict[tuple, np.ndarray] = OrderedDict()
    lock = Lock()  # also while reading: what one thread reads another one most likely wants next

    def cached(item: Mapping[str, Any]) -> np.ndarray | None:
        key = item["image"], item.get("page")
        with lock:
            array = kept.pop(key) if key in kept else read(item)
            if array is None:
                return None
            if array.nbytes <= limit:
                kept[key] = array
            while sum(other.nbytes for other in kept.values()) > limit:
                kept.popitem(last=False)
            return array

    return cached

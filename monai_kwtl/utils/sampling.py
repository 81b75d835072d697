"""Some of many, evenly spaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_kwtl.errors import check_whole_number

__all__ = ["evenly_spaced", "evenly_spaced_indices"]


def evenly_spaced_indices(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` of the numbers from 0 to ``count - 1``, evenly spread, int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def evenly_spaced(items: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Return at most so many items, evenly spaced over the pool."""
    check_whole_number("most_images", most, 1)
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in sorted(set(places.tolist()))]

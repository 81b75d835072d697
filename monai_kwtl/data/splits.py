"""Seeded splits of a data set into pool and test."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from monai_kwtl.errors import KWTLError

__all__ = ["name_and_page", "split_pool_test"]


def name_and_page(item: Mapping[str, Any]) -> tuple[str, int]:
    """Sort key of items: by name, then page."""
    page = item.get("page")
    return item["name"], -1 if page is None else page


def _group_of(item: Mapping[str, Any], group: str | Callable[[Mapping[str, Any]], Hashable]) -> Hashable:
    if callable(group):
        return group(item)
    if group not in item:
        raise KWTLError(f"group {group!r}: {item['name']} has no such key; use one of {', '.join(sorted(item))}.")
    return item[group]


def split_pool_test(
    items: Iterable[Mapping[str, Any]],
    test_fraction: float = 0.2,
    seed: int = 0,
    group: str | Callable[[Mapping[str, Any]], Hashable] | None = None,
    blocked: bool = False,
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Split a data set into pool and test; labels are never looked at.

    Args:
        items: with ``name`` and ``page``, in any order: it does not matter.
        test_fraction: fraction of the test images, in (0, 1). Groups stay whole, so it is met as nearly as they allow;
            each side gets at least one.
        seed: of the draw.
        group: what must stay on one side, patients for example: a function of an item, or a key of the items. None
            keeps the pages of a file together, unless there is only one file.
        blocked: take neighbours instead of scattered groups: one block in the order of names, at a drawn position, of
            ``test_fraction`` of the groups. For stacks, where a slice looks like the next.

    Returns:
        Pool and test, each sorted by name and page.

    Raises:
        KWTLError: when there are fewer than two groups, or a setting is out of range.
    """
    if not 0 < test_fraction < 1:
        raise KWTLError(f"test_fraction must be between 0 and 1, got {test_fraction!r}.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise KWTLError(f"seed must be a whole number from 0, got {seed!r}.")
    ordered = sorted(items, key=name_and_page)
    if group is None:
        group = "name" if len({item["name"] for item in ordered}) > 1 else name_and_page
    members: dict[Hashable, list[Mapping[str, Any]]] = {}
    for item in ordered:
        members.setdefault(_group_of(item, group), []).append(item)
    groups = list(members)
    if len(groups) < 2:
        what = "one image" if len(ordered) == 1 else f"one group of {len(ordered)} images" if ordered else "no image"
        raise KWTLError(f"a split into pool and test needs at least two images or groups, there is {what}.")
    rng = np.random.default_rng(seed)
    if blocked:
        count = min(max(round(test_fraction * len(groups)), 1), len(groups) - 1)
        start = int(rng.integers(len(groups) - count, endpoint=True))
        chosen = set(groups[start : start + count])
    else:
        drawn = [groups[index] for index in rng.permutation(len(groups))]
        # the first so many of the drawn groups that come nearest to the wanted number of images; never all of them
        totals = np.cumsum([len(members[one]) for one in drawn])[:-1]
        chosen = set(drawn[: int(np.abs(totals - test_fraction * len(ordered)).argmin()) + 1])
    test = [item for one in groups if one in chosen for item in members[one]]
    pool = [item for one in groups if one not in chosen for item in members[one]]
    return sorted(pool, key=name_and_page), sorted(test, key=name_and_page)

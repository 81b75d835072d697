"""Settings of each target data set: windows per shot, pseudo-labels, views, and how its images group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_kwtl.data.splits import split_pool_test
from monai_kwtl.errors import KWTLError

__all__ = ["TARGETS", "Target", "make_splits", "target_named"]

PROTOCOLS = ("random", "blocked")


@dataclass(frozen=True)
class Target:
    """Settings of a target data set.

    Args:
        windows_per_shot: windows that one shot stands for, table 1 of the paper: shots are a number of windows from
            anywhere in the pool, not a number of images.
        polarity: ``dark`` or ``bright`` cells, ``auto`` guesses.
        threshold: gamma of the pseudo-labels, grey level of the equalised image in [0, 255]; None: see ``fraction``.
        fraction: expected fraction of foreground instead, in (0, 1); None for both: Otsu's threshold.
        psi: factor of the brightness and sharpness views.
        step: pixels between windows.
        block: pattern whose first group names what stays together in a blocked split, such as a patient; None: one
            run of neighbours in the order of the numbers in the names, for stacks.
    """

    windows_per_shot: int = 100
    polarity: str = "auto"
    threshold: float | None = None
    fraction: float | None = None
    psi: float = 1.3
    step: int = 30
    block: str | None = None


_WELL = r"_([A-P]\d\d)_"  # sites of a well of the same plate are alike; in B5 so are the two stains of a site

TARGETS: dict[str, Target] = {
    "TNBC": Target(100, "dark", threshold=20, step=28, block=r"(\d+)_\d+\.\w+$"),
    "EM": Target(400, "dark", threshold=140),
    "ssTEM": Target(500, "dark", threshold=140),
    "B5": Target(100, "bright", fraction=0.2, psi=1.6, block=_WELL),
    "B39": Target(100, "bright", fraction=0.2, block=_WELL),
}


def target_named(name: str) -> Target:
    """Return the settings of a target; those of ``Target()`` for a data set that the paper does not have."""
    return TARGETS.get(name, Target())


def _in_order(item: Mapping[str, Any]) -> str:
    """Name whose alphabetical order is that of the numbers in it: ``z2`` before ``z10``."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(12), item["name"])


def make_splits(
    items: Sequence[Mapping[str, Any]], protocol: str, count: int, test_fraction: float = 0.2, block: str | None = None
) -> list[tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]]:
    """Make distinct splits into pool and test; labels are never looked at.

    Args:
        items: a data set, as ``monai_kwtl.data.pool.load_pool`` gives it.
        protocol: ``random``: images are drawn; ``blocked``: groups are drawn, or for stacks a run of neighbours, so
            that no test image has its like in the pool.
        count: number of splits. The first n of them are the same whatever the count.
        test_fraction: fraction of the test images, in (0, 1).
        block: as in :class:`Target`.

    Returns:
        Pool and test of each split, in the order of names.

    Raises:
        KWTLError: when there are fewer distinct splits than asked for, or a name does not match ``block``.
    """
    if protocol not in PROTOCOLS:
        raise KWTLError(f"unknown protocol {protocol!r}; use {' or '.join(PROTOCOLS)}.")
    named = [{"name": _in_order(item), "page": item.get("page"), "item": item} for item in items]
    blocked = protocol == "blocked"

    def group(entry: Mapping[str, Any]) -> str:
        found = re.search(block or "", entry["item"]["name"])
        if not found:
            raise KWTLError(f"{entry['item']['name']} does not match {block!r}, by which blocked splits group images.")
        return found[1]

    by_group = group if blocked and block is not None else None
    splits: dict[tuple, tuple[list, list]] = {}
    for seed in range(200 * count):
        parts = split_pool_test(named, test_fraction, seed, group=by_group, blocked=blocked and by_group is None)
        pool, test = ([entry["item"] for entry in part] for part in parts)
        splits.setdefault(tuple((item["name"], item.get("page")) for item in test), (pool, test))
        if len(splits) == count:
            return list(splits.values())
    raise KWTLError(f"there are only {len(splits)} distinct {protocol} splits of {len(named)} images; ask for fewer.")

"""Names of the files made for images and regions: unique, portable, and the same on every machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import PurePosixPath
from typing import Any

from monai_kwtl.selection.regions import Region

__all__ = ["mask_file_names", "region_file_names", "safe_stems"]

WEIGHTS_NAME, CHECKPOINT_NAME = "model.pt", "checkpoint.pt"

_UNSAFE = re.compile(r'[<>:"/\\|?*\s\x00-\x1f\x7f]+')


def _safe(text: str) -> str:
    return _UNSAFE.sub("_", text)[:60].strip(". ") or "image"


def safe_stems(names: Iterable[str]) -> dict[str, str]:
    """Return a file name stem for each image name, unique on every file system.

    ``images/03.png`` becomes ``03``; where two images share a stem (``03.png`` and ``03.tif``) the later one, by name,
    becomes ``03_tif``. Characters that Windows refuses turn into underscores, very long names are cut.

    Args:
        names: image names, posix paths relative to the data set.

    Returns:
        {name: stem}; the same for any order of names.
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(set(names)):
        base = re.sub(r"\.(gz|bz2)$", "", PurePosixPath(name).name, flags=re.IGNORECASE)
        stem = _safe(PurePosixPath(base).stem)
        spare = (f"{_safe(PurePosixPath(base).name.replace('.', '_'))}{n}" for n in chain([""], count(2)))
        stems[name] = next(candidate for candidate in chain([stem], spare) if candidate.casefold() not in taken)
        taken.add(stems[name].casefold())
    return stems


def region_file_names(regions: Iterable[Region]) -> list[str]:
    """Return the file names of a selection's crops, in its order: ``003_<image stem>[_p<page>]_x<x>_y<y>.png``.

    Args:
        regions: all regions of one selection (the names depend on all of them).

    Returns:
        One name for each region, without a folder.
    """
    regions = list(regions)
    stems = safe_stems(region.image for region in regions)
    digits = max(3, len(str(max((region.rank for region in regions), default=0))))
    return [
        f"{r.rank:0{digits}d}_{stems[r.image]}{'' if r.page is None else f'_p{r.page}'}_x{r.x}_y{r.y}.png"
        for r in regions
    ]


def mask_file_names(items: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int | None], str]:
    """Return the file name of each item's mask: ``<image stem>.png``, for pages ``<image stem>_p<page>.png``.

    A page whose name is that of another image (``a.tif``, page 0, beside ``a_p0.png``) gets a number behind it.

    Args:
        items: of a data set, with ``name`` and ``page``.

    Returns:
        {(name, page): file name}, unique on every file system; the same for any order of items.
    """
    stems = safe_stems(item["name"] for item in items)
    names: dict[tuple[str, int | None], str] = {}
    taken: set[str] = set()
    for name, page in sorted({(i["name"], i["page"]) for i in items}, key=lambda key: (key[1] is not None, key)):
        stem = stems[name] if page is None else f"{stems[name]}_p{page}"
        spare = (f"{stem}_{number}" for number in count(2))
        stem = next(candidate for candidate in chain([stem], spare) if candidate.casefold() not in taken)
        taken.add(stem.casefold())
        names[(name, page)] = f"{stem}.png"
    return names

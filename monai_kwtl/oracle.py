"""A simulated annotator: the true masks of selected regions, and of nothing else, for benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from monai_kwtl.data import read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.file_names import region_file_names
from monai_kwtl.selection_file import read_selection

__all__ = ["write_region_masks"]


def write_region_masks(
    selection: str | os.PathLike, items: Iterable[Mapping[str, Any]], folder: str | os.PathLike
) -> int:
    """Cut the true masks of the regions of a selection, named as their crops, as an annotator would leave them.

    Args:
        selection: path of ``selection.json``.
        items: the pool with its labels; only labels of images with a region are read.
        folder: of the masks, PNG 0 and 255; made if absent.

    Returns:
        The number of masks.

    Raises:
        KWTLError: when a selected image has no label.
    """
    regions = read_selection(selection)["regions"]
    by_key = {(item["name"], item["page"]): item for item in items}
    Path(folder).mkdir(parents=True, exist_ok=True)
    labels: dict[tuple[str, int | None], Any] = {}
    for region, name in zip(regions, region_file_names(regions), strict=True):
        key = (region.image, region.page)
        if key not in by_key or not by_key[key].get("label"):
            raise KWTLError(f"there is no true mask of {region.image}; the simulated annotator needs labels.")
        if key not in labels:
            labels[key] = read_label(by_key[key])[0]
        mask = labels[key][region.y : region.y + region.height, region.x : region.x + region.width]
        Image.fromarray(mask * 255).save(Path(folder) / name)
    return len(regions)

"""A simulated annotator: the true masks of selected regions, and of nothing else, for benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kwtl.data.loading import read_image, read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.region_masks import write_mask
from monai_kwtl.project.selection_file import read_selection
from monai_kwtl.selection.regions import Region
from monai_kwtl.windows.box import pixels_inside

__all__ = ["reveal_masks", "write_region_masks"]


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
        mask = labels[key][region.box.slices]
        write_mask(Path(folder) / name, mask)
    return len(regions)


def reveal_masks(regions: Sequence[Region], items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Read the true masks of regions, in the form that training takes, without files between.

    Args:
        regions: selected ones, which may overlap.
        items: the pool with its labels; only labels of images with a region are read, and of those only the regions
            leave this function.

    Returns:
        For each image with a region, in the order of ``items``: ``name``, ``page``, ``sha256``, ``image``, uint8
        (1, H, W), ``label``, uint8 (1, H, W), 0 outside the regions, ``known``, bool (1, H, W), the union of the
        regions, and ``regions``.

    Raises:
        KWTLError: when a selected image is not in the pool or has no label.
    """
    by_key = {(item["name"], item["page"]): item for item in items}
    wanted: dict[tuple[str, int | None], list[Region]] = {}
    for region in regions:
        key = (region.image, region.page)
        if key not in by_key or not by_key[key].get("label"):
            raise KWTLError(f"there is no true mask of {region.image}; the simulated annotator needs labels.")
        wanted.setdefault(key, []).append(region)
    support = []
    for key, item in by_key.items():
        if key not in wanted:
            continue
        image, truth = read_image(item), read_label(item)
        known = pixels_inside(truth.shape[-2:], [region.box for region in wanted[key]])[None]
        found = {name: item[name] for name in ("name", "page", "sha256")}
        support.append({**found, "image": image, "label": truth * known, "known": known, "regions": wanted[key]})
    return support

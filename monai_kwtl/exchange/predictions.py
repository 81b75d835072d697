"""Outlines drawn beforehand: the current prediction of each region, from a network or a folder of masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.polygons import number_objects
from monai_kwtl.networks.choice import grey_range, load_network
from monai_kwtl.networks.device import choose_device
from monai_kwtl.pipeline.scoring import adapt, segment
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.region_masks import MaskFolder
from monai_kwtl.selection.regions import Region

__all__ = ["predict_regions"]

Item = Mapping[str, Any]


def predict_regions(
    source: str | os.PathLike, regions: Sequence[Region], items: Sequence[Item], rescale: Sequence[float] | None = None
) -> list[np.ndarray]:
    """Predict the objects of each region.

    Args:
        source: weights of the network, whose batch-norm statistics are then fitted to the images as in the other
            stages; or a folder of masks, of regions (named like the crops) or of whole images (named like the images).
        regions: of a selection.
        items: the pool.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.

    Returns:
        For each region its objects, numbered, int32 (height, width).

    Raises:
        KWTLError: when there is neither, or nothing predicts a region.
    """
    by_key = {(item["name"], item["page"]): item for item in items}
    if Path(source).is_dir():
        return _from_folder(Path(source), regions, items, by_key)
    scale = grey_range(rescale, source)
    network = adapt(load_network(source, device=choose_device()), items, rescale=scale).ready()
    wanted = [by_key[key] for key in dict.fromkeys((region.image, region.page) for region in regions)]
    found = segment(wanted, network, rescale=scale)
    masks = {(item["name"], item["page"]): mask for item, mask in found}
    return [number_objects(masks[region.image, region.page][region.box.slices]) for region in regions]


def _from_folder(folder: Path, regions: Sequence[Region], items: Sequence[Item], by_key: Mapping) -> list[np.ndarray]:
    masks = MaskFolder(folder, list(items))
    found = []
    for region, name in zip(regions, region_file_names(regions), strict=True):
        what = f"the region of rank {region.rank}"
        mask = masks.read(Path(name).stem, (region.height, region.width), what)
        if mask is None:
            whole = masks.of_image(by_key[region.image, region.page])
            if whole is None:
                raise KWTLError(f"{folder} has no mask of {what}: name masks like the crops or the images")
            mask = whole["label"][0][region.box.slices]
        found.append(number_objects(mask))
    return found

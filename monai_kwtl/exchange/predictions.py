"""Outlines drawn beforehand: the current prediction of each region, from a network or a folder of masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import ScaleIntensityRange

from monai_kwtl.adaptation import BatchNormAdapter
from monai_kwtl.bundle import choose_device, load_weights
from monai_kwtl.data import read_image
from monai_kwtl.errors import KWTLError
from monai_kwtl.file_names import region_file_names
from monai_kwtl.inferers import TiledInferer
from monai_kwtl.networks import FCRN
from monai_kwtl.raster import number_objects
from monai_kwtl.region_masks import MaskFolder
from monai_kwtl.selection import Region

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
    predict = _predictor(source, items, rescale)
    masks: dict[tuple, np.ndarray] = {}
    for region in regions:
        key = region.image, region.page
        if key not in masks:
            masks[key] = predict(by_key[key])
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


def _predictor(source: str | os.PathLike, items: Sequence[Item], rescale: Any) -> Callable[[Item], np.ndarray]:
    device = choose_device()
    network = load_weights(FCRN(spatial_dims=2, in_channels=1, out_channels=1), source, device)
    network = BatchNormAdapter(network, items, rescale=rescale, device=device, amp=None).ready()
    inferer, scale = TiledInferer(amp=None), ScaleIntensityRange(0, 255, -1, 1)  # as inference.json has them

    @torch.inference_mode()
    def predict(item: Item) -> np.ndarray:
        image = torch.as_tensor(scale(read_image(item, rescale))).to(device)[None]
        return (torch.sigmoid(inferer(image, network))[0, 0] >= 0.5).cpu().numpy()

    return predict

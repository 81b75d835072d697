"""Crops as PNG with an index, and one mask a region back: for any painting program, Fiji, or a script."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import Annotation, Handout, files_below
from monai_kwtl.exchange.polygons import number_objects
from monai_kwtl.project.region_masks import write_mask
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import SUFFIXES, read_pixels
from monai_kwtl.selection.regions import Region

__all__ = ["read_napari", "read_png", "write_napari", "write_png"]

INDEX_COLUMNS = ("file", "rank", "image", "page", "x", "y", "width", "height")


def write_png(folder: Path, handout: Handout) -> None:
    """Write ``index.csv``, ``images/<crop>.png``, an empty ``masks/``, and ``start/<crop>.png`` with predictions.

    Masks are 0 and 255, of the size of the crop.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir()
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(INDEX_COLUMNS)
        for region, name in zip(handout.regions, handout.names, strict=True):
            writer.writerow([name, *(getattr(region, column) for column in INDEX_COLUMNS[1:])])
    for name, crop in zip(handout.names, handout.crops, strict=True):
        Image.fromarray(crop).save(folder / "images" / name)
    if handout.predictions is not None:
        (folder / "start").mkdir()
        for name, labels in zip(handout.names, handout.predictions, strict=True):
            write_mask(folder / "start" / name, labels > 0)


def write_napari(folder: Path, handout: Handout) -> None:
    """Write ``images/<crop>.tif``, ``start/<crop>.tif``, label images to begin with, and an empty ``labels/``.

    Label images are int32: 0 background, the predicted objects numbered from 1; all 0 without predictions.
    """
    for name in ("images", "start", "labels"):
        (folder / name).mkdir()
    predictions = handout.predictions or [np.zeros(crop.shape, dtype=np.int32) for crop in handout.crops]
    for name, crop, labels in zip(handout.names, handout.crops, predictions, strict=True):
        tifffile.imwrite(folder / "images" / f"{name[:-4]}.tif", crop, photometric="minisblack")
        tifffile.imwrite(folder / "start" / f"{name[:-4]}.tif", labels.astype(np.int32), compression="zlib")


def read_png(folder: Path, regions: Sequence[Region], names: Sequence[str]) -> list[Annotation]:
    """Read the masks below ``masks/``, named like the crops; a mask that is there is finished.

    Any value but 0 is foreground, also in one channel of a coloured mask. Folders below ``masks/`` may hold the masks
    of several annotators.

    Raises:
        KWTLError: when a mask cannot be read or is of another size than its region.
    """
    return _read_masks(folder / "masks", regions, names)


def read_napari(folder: Path, regions: Sequence[Region], names: Sequence[str]) -> list[Annotation]:
    """Read the label images below ``labels/``, as :func:`read_png` does those below ``masks/``."""
    return _read_masks(folder / "labels", regions, names)


def _read_masks(folder: Path, regions: Sequence[Region], names: Sequence[str]) -> list[Annotation]:
    if not folder.is_dir():
        raise KWTLError(f"there is no folder {folder}: save the masks there, each under the name of its crop")
    by_stem = {Path(name).stem.casefold(): region for name, region in zip(names, regions, strict=True)}
    found = []
    for path in files_below(folder, SUFFIXES):
        region = by_stem.get(path.stem.casefold())
        if region is None:
            continue
        pixels = _read(path)
        if pixels.shape != (region.height, region.width):
            raise KWTLError(
                f"{path} is {pixels.shape[1]} wide and {pixels.shape[0]} high, but the region of rank {region.rank} is "
                f"{region.width} wide and {region.height} high: save the mask in the size of its crop"
            )
        objects = int(number_objects(pixels).max(initial=0))
        found.append(Annotation(region.rank, pixels != 0, objects, True, str(path), path.stat().st_mtime))
    return found


def _read(path: Path) -> np.ndarray:
    try:
        pixels = read_pixels(path)
    except UnreadableError as error:
        raise KWTLError(f"cannot read the mask {path}: {error}.") from error
    return pixels if pixels.ndim == 2 else pixels.any(axis=2)

"""Masks that annotators give back: whole images, or only the selected regions with everything else unknown."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from monai_kwtl.data.loading import read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.mask_index import has_record, read_record
from monai_kwtl.readers.image_files import SUFFIXES, has_suffix
from monai_kwtl.selection.regions import Region

__all__ = ["MaskFolder", "check_images", "labelled_regions", "read_region_masks", "write_mask"]

logger = logging.getLogger("monai_kwtl")


def write_mask(file: str | Path | BinaryIO, mask: np.ndarray) -> None:
    """Write a mask, bool (H, W), as PNG: 0 background, 255 foreground."""
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")


def labelled_regions(selection: Mapping[str, Any] | None, masks_dir: str | Path) -> list[tuple[Region, str]] | None:
    """Return the regions that need masks, each with the base name of its mask; no mask is opened.

    Args:
        selection: as from ``read_selection``; None asks the folder itself, see :mod:`monai_kwtl.project.mask_index`.
        masks_dir: folder of masks.

    Returns:
        Pairs of region and base name; None where neither tells of regions: the masks are of whole images.
    """
    if selection is not None:
        regions = list(selection["regions"])
        names = [PurePosixPath(name).stem for name in region_file_names(regions)]
        return list(zip(regions, names, strict=True))
    if not has_record(masks_dir):
        return None
    return [(record.region, PurePosixPath(record.mask).stem) for record in read_record(masks_dir)]


def read_region_masks(
    selection: Mapping[str, Any] | None, masks_dir: str | Path, items: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Read the support set: the annotated masks, and which pixels they say something about.

    A mask is either that of a region, named like its crop in ``regions/`` and of the region's size, or that of a whole
    image, named like the image (a page also: ``<image stem>_p<page>``) and of its size; the file type does not matter.
    Where both exist, the region's mask holds inside the region. Any non-zero value is foreground; where regions
    overlap, foreground of either counts.

    Args:
        selection: as from ``read_selection``: pixels outside its regions are unknown, whatever the masks say there.
            None: the regions that ``kwtl import`` noted in the folder; without such a note whole-image masks only,
            known everywhere.
        masks_dir: folder of masks.
        items: the pool, dicts with "name", "page", "height", "width" and, to notice changed images, "sha256".

    Returns:
        For each image with at least one mask, in the order of ``items``: {"item": the item, "label": uint8 0 or 1,
        shape (1, H, W), 0 where unknown, "known": bool, shape (1, H, W)}.

    Raises:
        KWTLError: one line, when a mask has another size than its region or image, a region lies outside its image,
            an image of the selection is not in ``items`` or has changed, two files claim to be the same mask,
            or no mask is found at all.
    """
    folder = Path(masks_dir)
    items = list(items)
    masks = MaskFolder(folder, items)
    named = labelled_regions(selection, folder)
    if named is None:
        found = [masks.of_image(item) for item in items]
        found = [entry for entry in found if entry is not None]
        if not found:
            raise _nothing_found(folder, [_stem(item["name"]) for item in items])
        return found

    if not named:
        raise KWTLError("the selection has no region: there is nothing to learn from; select again")
    members: dict[tuple, list[tuple[Region, str]]] = defaultdict(list)
    for region, name in named:
        members[region.image, region.page].append((region, name))
    check_images((region for region, _ in named), items)
    result, done = [], 0
    for item in items:
        its = members.get((item["name"], item.get("page")), [])
        entry, count = _selected_regions(item, its, masks)
        done += count
        result += [entry] if count else []
    if not done:
        images = [_stem(region.image) for region, _ in named[:1]]
        raise _nothing_found(folder, [name for _, name in named[:2]] + images)
    missing = len(named) - done
    if missing:
        logger.warning("%d of %d regions have no mask in %s yet; they stay unknown", missing, len(named), folder)
    return result


def _stem(name: str) -> str:
    """Return the base name without suffix; ``.nii.gz`` is one."""
    name = PurePosixPath(name).name
    return PurePosixPath(name[:-3] if name.lower().endswith(".nii.gz") else name).stem


def _nothing_found(folder: Path, stems: list[str]) -> KWTLError:
    expected = " or ".join(f"{stem}.png" for stem in stems[:3])
    return KWTLError(f"{folder}: no mask has a name that was looked for; save masks as {expected} or so on")


def check_images(regions: Iterable[Region], items: Iterable[Mapping[str, Any]]) -> None:
    """Find out whether regions belong to a pool.

    Args:
        regions: of a selection.
        items: the pool, dicts with "name", "page", "height" and "width" and, to notice changed images, "sha256".

    Raises:
        KWTLError: when an image is not in the pool or has changed, or a region lies outside its image.
    """
    by_key = {(item["name"], item.get("page")): item for item in items}
    for region in regions:
        key = region.image, region.page
        if key not in by_key:
            raise KWTLError(
                f"the selection names {key[0]!r:.200}, which is not in the data set: give the folder it was made on"
            )
        item, height, width = by_key[key], by_key[key]["height"], by_key[key]["width"]
        if region.y + region.height > height or region.x + region.width > width:
            box = f"x {region.x}, y {region.y}, {region.width} wide, {region.height} high"
            raise KWTLError(
                f"the region of rank {region.rank} ({box}) leaves {region.image!r}, which is {width} wide and "
                f"{height} high: select again on these images"
            )
        if item.get("sha256", region.image_sha256) != region.image_sha256:
            raise KWTLError(
                f"{region.image!r} has changed since it was selected: put the former file back or select again"
            )


class MaskFolder:
    """The masks of a folder, found by base name.

    Args:
        folder: of masks.
        items: the pool, to notice a mask that could be of two images.

    Raises:
        KWTLError: when there is no such folder.
    """

    def __init__(self, folder: Path, items: list[Mapping]) -> None:
        try:
            paths = sorted(path for path in folder.iterdir() if path.is_file() and has_suffix(path.name, SUFFIXES))
        except OSError as error:
            message = f"{folder}: no folder of masks ({error.strerror}); give the folder that holds them"
            raise KWTLError(message) from error
        self.paths: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            if not path.name.startswith("."):
                self.paths[_stem(path.name)].append(path)
        self.owners: dict[str, set[str]] = defaultdict(set)
        for item in items:
            self.owners[_stem(item["name"])].add(item["name"])

    def read(self, stem: str, shape: tuple[int, int], what: str, page: int | None = None) -> np.ndarray | None:
        """Return the mask with this base name, uint8 0 or 1, (H, W); None where there is no such file."""
        paths = self.paths.get(stem, [])
        if not paths:
            return None
        if len(paths) > 1:
            raise KWTLError(f"{paths[0]} and {paths[1].name} both claim to be the mask of {what}: remove one")
        label = np.asarray(read_label({"label": str(paths[0]), "page": page}))
        if label.shape[-2:] != shape:
            rows, columns = label.shape[-2:]
            raise KWTLError(
                f"{paths[0]} is {columns} wide and {rows} high, but {what} is {shape[1]} wide and {shape[0]} high: "
                f"save the mask in the size of its picture"
            )
        return label.reshape(shape)

    def names_image(self, item: Mapping) -> bool:
        """Return True if a mask has the name of an image; the mask is not opened."""
        stem, page = _stem(item["name"]), item.get("page")
        names = [stem, stem[:-4] if stem.lower().endswith(".ome") else stem]
        return any(name in self.paths for name in [*names, *([] if page is None else [f"{stem}_p{page}"])])

    def of_image(self, item: Mapping) -> dict[str, Any] | None:
        """Return the entry of an image by its whole-image mask: of its page, of its file, or without the ``.ome``."""
        stem, page, what = _stem(item["name"]), item.get("page"), repr(item["name"])
        shape = item["height"], item["width"]
        label = None if page is None else self.read(f"{stem}_p{page}", shape, what)
        for name in dict.fromkeys([stem, stem[:-4] if stem.lower().endswith(".ome") else stem]):
            if label is None and name in self.paths and len(self.owners[name] | {item["name"]}) > 1:
                both = " and ".join(sorted(self.owners[name] | {item["name"]})[:2])
                raise KWTLError(f"{self.paths[name][0]} could be the mask of {both}: rename one of the images")
            label = self.read(name, shape, what, page) if label is None else label
        if label is None:
            return None
        return {"item": item, "label": label[None], "known": np.ones((1, *shape), dtype=bool)}


def _selected_regions(item: Mapping, members: list, masks: MaskFolder) -> tuple[dict[str, Any] | None, int]:
    """Return the entry of one image, and how many of its regions have a mask."""
    if not members:
        return None, 0
    whole = masks.of_image(item)
    label = np.zeros((item["height"], item["width"]), dtype=np.uint8)
    known = np.zeros(label.shape, dtype=bool)
    count = 0
    for region, stem in members:
        inside = region.box.slices
        mask = masks.read(stem, (region.height, region.width), f"the region of rank {region.rank}")
        if mask is None and whole is not None:
            mask = whole["label"][0][inside]
        if mask is not None:
            count += 1
            known[inside] = True
            label[inside] |= mask
    return {"item": item, "label": label[None], "known": known[None]}, count

"""Folders of images and of masks: what is in them, and which mask belongs to which image."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

from monai_kwtl.data.splits import name_and_page
from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.image_files import SUFFIXES, has_suffix

__all__ = ["base_name", "find_images"]


def base_name(name: str) -> str:
    """Return a file name without folder and suffix (``.nii.gz`` is one), composed: macOS splits umlauts in two."""
    name = os.path.basename(name)
    name = name[:-3] if name.lower().endswith(".nii.gz") else name
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def _list(folder: Path, what: str, option: str) -> tuple[list[Path], list[str]]:
    """List the image files of a folder by name, and the suffixes of its other files; hidden files are left out."""
    try:
        if not folder.exists():
            raise KWTLError(f"there is no folder {folder}: give the folder of the {what} with {option}.")
        if not folder.is_dir():
            raise KWTLError(f"{folder} is a file: give the folder that holds the {what} with {option}.")
        # a link that leads nowhere is kept, to be named among what cannot be read; pipes and the like are not
        files = [
            path
            for path in sorted(folder.iterdir(), key=lambda path: path.name)
            if not path.name.startswith(".") and (path.is_file() or (path.is_symlink() and not path.exists()))
        ]
    except OSError as error:
        raise KWTLError(f"cannot look into {folder} ({error.strerror}): give another folder with {option}.") from error
    images = [path for path in files if has_suffix(path, SUFFIXES)]
    return images, sorted({path.suffix or path.name for path in files if path not in images})


def _images_of(folder: Path, what: str, option: str) -> list[Path]:
    images, others = _list(folder, what, option)
    if not images:
        found = f"only {', '.join(others[:5])}" if others else "it is empty or has only folders in it"
        raise KWTLError(f"there are no {what} in {folder} ({found}): their names end in {', '.join(SUFFIXES)}.")
    return images


def find_images(
    dataset_dir: str | os.PathLike,
    labels: str | os.PathLike | None = None,
    with_labels: bool = True,
    option: str = "--dataset_dir",
) -> list[dict[str, Any]]:
    """List the images of a data set and match masks to them by base name; no file is opened.

    Args:
        dataset_dir: a folder with an ``images`` folder in it, which then counts alone, or a flat folder of images.
            Sub-folders, hidden files and files of other kinds are passed over.
        labels: folder of masks. None takes ``<dataset_dir>/labels`` where that holds any.
        with_labels: False looks for no masks at all, so that nothing about them can matter.
        option: the option that names ``dataset_dir``, for messages.

    Returns:
        Dicts of ``image`` (path), ``name`` (posix path relative to ``dataset_dir``), ``page`` (None, until
        :func:`monai_kwtl.data.pool.scan_images` has looked inside) and, where there is one, ``label`` (path), sorted by
        name.

    Raises:
        KWTLError: when there is no such folder, no image in it, no mask that belongs to any image, or a mask and an
            image that do not belong to each other alone.
    """
    root = Path(dataset_dir)
    try:
        inner = (root / "images").is_dir()
    except OSError as error:
        raise KWTLError(f"cannot look into {root} ({error.strerror}): give another folder with {option}.") from error
    folder = root / "images" if inner else root
    paths = _images_of(folder, "images", option)
    items = [{"image": str(path), "name": path.relative_to(root).as_posix(), "page": None} for path in paths]
    if not with_labels:
        return sorted(items, key=name_and_page)
    if labels is None:
        label_dir = root / "labels"
        # masks that kwtl import wrote are of regions; train.json takes them where it is told of their folder
        whole = label_dir.is_dir() and not (label_dir / "regions.json").exists()
        masks = _list(label_dir, "masks", "--labels")[0] if whole else []
    else:
        label_dir = Path(labels)
        masks = _images_of(label_dir, "masks", "--labels")
    if masks:
        if label_dir.samefile(folder):
            raise KWTLError(f"{label_dir} holds the images themselves: give the folder of their masks with --labels.")
        _match(items, masks)
    return sorted(items, key=name_and_page)


def _match(items: list[dict[str, Any]], masks: list[Path]) -> None:
    """Add ``label`` to the items that have one."""
    masks_of, images_of = defaultdict(list), defaultdict(list)
    for path in masks:
        masks_of[base_name(path.name)].append(path)
    for item in items:
        key = base_name(item["name"])
        # x.ome.tif may have its mask in x.ome.tif, x.ome.png or x.png
        images_of[key[:-4] if key.lower().endswith(".ome") and key not in masks_of else key].append(item)
    for key, claims in images_of.items():
        if len(claims) > 1:
            both = f"{claims[0]['name']} and {claims[1]['name']}"
            raise KWTLError(f"{both} have the same base name, so that masks cannot be told apart: rename one.")
        found = masks_of[key]
        if len(found) > 1:
            raise KWTLError(f"{found[0]} and {found[1].name} are both masks of {claims[0]['name']}: remove one.")
        if found:
            claims[0]["label"] = str(found[0])
    if not any("label" in item for item in items):
        wanted = base_name(items[0]["name"])
        raise KWTLError(
            f"no mask in {masks[0].parent} has the base name of an image ({masks[0].name} is there, {wanted}.png or "
            f"the like was looked for): rename the masks like the images, or give another folder with --labels."
        )

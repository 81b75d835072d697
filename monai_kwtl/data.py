"""Data sets on disk: find images and labels, read them as grey images, split them into pool and test."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_kwtl.errors import KWTLError
from monai_kwtl.readers import (
    SUFFIXES,
    UnreadableError,
    has_suffix,
    is_stack,
    page_shapes,
    read_pixels,
    to_grey,
    to_uint8,
)

__all__ = [
    "LoadMicroscopyd",
    "describe_label_values",
    "find_images",
    "load_pool",
    "read_image",
    "read_label",
    "scan_images",
    "split_pool_test",
]

logger = logging.getLogger("monai_kwtl")

DECODE_LIMIT = 1 << 26  # pixels; of larger images only the header is read before they are used


def _stem(name: str) -> str:
    """Base name of a file without its suffix; ``.nii.gz`` is one suffix."""
    name = name[:-3] if name.lower().endswith(".nii.gz") else name
    return os.path.splitext(name)[0]


def _files(folder: Path) -> list[Path]:
    """Image files of a folder, by name; hidden files and other kinds are left out."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise KWTLError(f"cannot read the folder {folder} ({error.strerror}).") from error
    return sorted((e for e in entries if has_suffix(e.name, SUFFIXES) and e.is_file()), key=lambda entry: entry.name)


def _check_rescale(rescale: Sequence[float] | None) -> tuple[float, float] | None:
    if rescale is None:
        return None
    try:
        low, high = (float(value) for value in rescale)
    except (TypeError, ValueError):
        low, high = 0.0, float("nan")
    if not low < high:
        raise KWTLError(f"rescale must be two grey values [low, high] with low below high, got {rescale!r}.")
    return low, high


def find_images(dataset_dir: str | os.PathLike, labels: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """List the images of a data set and match labels to them by base name; no pixels are read.

    Args:
        dataset_dir: a folder with an ``images`` folder in it, or a flat folder of images.
        labels: folder of masks; None takes ``<dataset_dir>/labels`` where it exists.

    Returns:
        Dicts of ``image`` (path), ``name`` (posix path relative to ``dataset_dir``), ``page`` (None, until
        :func:`scan_images` has looked inside) and, where there is one, ``label`` (path), sorted by name.

    Raises:
        KWTLError: when there is no such folder, no image in it, no label that belongs to any image in a folder that
            was named, or a label that could belong to several images.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise KWTLError(f"there is no folder {root}; give the folder of the images with --dataset_dir.")
    if not root.is_dir():
        raise KWTLError(f"{root} is a file; give the folder that holds the images with --dataset_dir.")
    folder = root / "images" if (root / "images").is_dir() else root
    files = _files(folder)
    if not files:
        kinds = sorted({entry.suffix or entry.name for entry in folder.iterdir() if entry.is_file()})
        found = f"only {', '.join(kinds[:5])}" if kinds else "nothing"
        raise KWTLError(f"there is no image in {folder}, {found}; images end in {', '.join(SUFFIXES)}.")
    items = [{"image": str(path), "name": path.relative_to(root).as_posix(), "page": None} for path in files]
    label_dir = Path(labels) if labels is not None else root / "labels"
    if labels is not None and not label_dir.is_dir():
        raise KWTLError(f"there is no folder {label_dir}; give the folder of the masks with --labels.")
    if label_dir.is_dir():
        matched = _match(items, label_dir)
        if labels is not None and not matched:
            raise KWTLError(
                f"no mask in {label_dir} has the base name of an image in {folder}; "
                f"{files[0].name} would need {_stem(files[0].name)}.png."
            )
    return items


def _match(items: list[dict[str, Any]], label_dir: Path) -> int:
    """Add ``label`` to items by base name; returns to how many."""
    masks: dict[str, list[Path]] = {}
    for path in _files(label_dir):
        masks.setdefault(_stem(path.name), []).append(path)
    by_stem: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        stem = _stem(Path(item["image"]).name)
        # x.ome.tif may be matched by x.ome.png and by x.png
        key = stem if stem in masks or not stem.lower().endswith(".ome") else stem[:-4]
        by_stem.setdefault(key, []).append(item)
    count = 0
    for stem, claims in by_stem.items():
        found = masks.get(stem, [])
        if found and len(claims) > 1:
            names = " and ".join(Path(item["image"]).name for item in claims[:2])
            raise KWTLError(f"{names} have the same base name, so {found[0]} could belong to either; rename one.")
        if len(found) > 1:
            raise KWTLError(f"{found[0]} and {found[1].name} are both masks of {claims[0]['name']}; remove one.")
        if found:
            claims[0]["label"] = str(found[0])
            count += 1
    return count


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _scan_file(item: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """Items of one file, one a page, and why pages of it had to be left out."""
    path = item["image"]
    try:
        digest, shapes = _sha256(path), page_shapes(path)
        if not shapes:
            raise UnreadableError("there is no image in it")
    except (UnreadableError, OSError) as error:
        return [], getattr(error, "strerror", None) or str(error)
    found, reason = [], None
    for page, (height, width) in enumerate(shapes):
        number = page if is_stack(path) and len(shapes) > 1 else None
        try:
            if height * width <= DECODE_LIMIT:
                height, width = to_uint8(to_grey(read_pixels(path, number))).shape
        except (UnreadableError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            reason = reason if number is None else f"page {number + 1}: {reason}"
            continue
        found.append({**item, "page": number, "sha256": digest, "height": int(height), "width": int(width)})
    return found, reason


def scan_images(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Look into each file once: its hash, the size of its images, whether they can be read.

    Args:
        items: as from :func:`find_images`.

    Returns:
        The items that can be read, one for each page of a multi-page file, with ``sha256`` (of the file's bytes),
        ``height`` and ``width`` added, sorted by name and page. Those that cannot be read are named in one warning.

    Raises:
        KWTLError: when none can be read.
    """
    items = list(items)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
        results = list(threads.map(_scan_file, items))
    found = [entry for entries, _ in results for entry in entries]
    broken = [(Path(i["image"]).name, why) for i, (_, why) in zip(items, results, strict=True) if why is not None]
    if broken:
        named = ", ".join(f"{name} ({why})" for name, why in broken[:5])
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        if not found:
            raise KWTLError(f"none of {len(items)} images can be read: {named}{more}.")
        logger.warning(f"{len(broken)} of {len(items)} images cannot be read and are left out: {named}{more}")
    return sorted(found, key=lambda item: (item["name"], -1 if item["page"] is None else item["page"]))


def load_pool(dataset_dir: str | os.PathLike, labels: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """Find and scan the images of a data set: :func:`scan_images` of :func:`find_images`."""
    return scan_images(find_images(dataset_dir, labels))


def read_image(item: Mapping[str, Any], rescale: Sequence[float] | None = None) -> np.ndarray:
    """Read an image as luminance.

    Args:
        item: with ``image`` and ``page``.
        rescale: grey values (low, high) of 16 bit and float images that become 0 and 255; None takes the range of
            each image. 8 bit images are never rescaled.

    Returns:
        uint8, shape (1, H, W).

    Raises:
        KWTLError: when the file cannot be read any more, or rescale is no range.
    """
    limits = _check_rescale(rescale)
    try:
        return np.ascontiguousarray(to_uint8(to_grey(read_pixels(item["image"], item.get("page"))), limits)[None])
    except (UnreadableError, OSError) as error:
        raise KWTLError(f"cannot read {item['image']}: {getattr(error, 'strerror', None) or error}.") from error


def _raw_label(item: Mapping[str, Any]) -> np.ndarray:
    path = item["label"]
    try:
        pages = len(page_shapes(path)) if is_stack(path) else 1
        pixels = read_pixels(path, item.get("page") if pages > 1 else None)
    except (UnreadableError, OSError, IndexError) as error:
        raise KWTLError(f"cannot read the mask {path}: {getattr(error, 'strerror', None) or error}.") from error
    return pixels if pixels.ndim == 2 else pixels[..., :3].max(axis=2)


def read_label(item: Mapping[str, Any]) -> np.ndarray:
    """Read a mask; every value but 0 is foreground, in colour masks in any channel.

    Args:
        item: with ``label``, ``page`` and, to be checked against, ``height`` and ``width``.

    Returns:
        uint8, 0 or 1, shape (1, H, W).

    Raises:
        KWTLError: when the file cannot be read, or is of another size than the image.
    """
    label = np.ascontiguousarray((_raw_label(item) != 0).astype(np.uint8)[None])
    if "height" in item and label.shape[1:] != (item["height"], item["width"]):
        raise KWTLError(
            f"the mask {item['label']} is {label.shape[2]} wide and {label.shape[1]} high, its image {item['name']} "
            f"{item['width']} wide and {item['height']} high; save the mask in the size of the image."
        )
    return label


def describe_label_values(items: Iterable[Mapping[str, Any]], most: int = 20) -> str | None:
    """Say in one sentence how masks are understood that hold other values than 0 and 255.

    Args:
        items: those without ``label`` are passed over.
        most: at most so many masks are looked at.

    Returns:
        The sentence, or None where there is nothing to say.
    """
    for item in [item for item in items if item.get("label")][:most]:
        others = np.setdiff1d(np.unique(_raw_label(item)), [0, 255])
        if others.size:
            name = Path(item["label"]).name
            return f"masks hold other values than 0 and 255 ({others[0]} in {name}): all but 0 is taken as foreground"
    return None


class LoadMicroscopyd(MapTransform):
    """Read the image, and the label, of an item of a data set.

    Args:
        keys: ``image``, ``label`` or both.
        rescale: as in :func:`read_image`.
        allow_missing_keys: items without a label are passed on as they are.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image",),
        rescale: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rescale = _check_rescale(rescale)
        unknown = set(self.keys) - {"image", "label"}
        if unknown:
            raise KWTLError(f"keys are image and label, got {sorted(map(str, unknown))}.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with arrays read: MetaTensors, uint8 (1, H, W); labels hold 0 and 1."""
        result = dict(data)
        for key in self.key_iterator(result):
            pixels = read_image(data, self.rescale) if key == "image" else read_label(data)
            meta = {"filename_or_obj": str(data[key]), "name": data.get("name"), "page": data.get("page")}
            result[key] = MetaTensor(torch.from_numpy(pixels), meta=meta)
        return result


def split_pool_test(
    items: Sequence[Mapping[str, Any]],
    test_fraction: float = 0.2,
    seed: int = 0,
    group: str | Callable[[Mapping[str, Any]], Hashable] | None = None,
    blocked: bool = False,
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Split a data set into pool and test; labels are never looked at.

    Args:
        items: in any order: the split depends on names only.
        test_fraction: share of the test set, in (0, 1); each side gets at least one group.
        seed: of the draw.
        group: what must stay on one side: a function of an item, or a key; None keeps the pages of a file together
            where there are several files.
        blocked: the test set is one contiguous block in the order of names, at a drawn position, for stacks.

    Returns:
        Pool and test, each sorted by name and page.

    Raises:
        KWTLError: when there are fewer than two groups, or the fraction is out of range.
    """
    if not 0 < test_fraction < 1:
        raise KWTLError(f"test_fraction must be between 0 and 1, got {test_fraction!r}.")
    ordered = sorted(items, key=lambda item: (item["name"], -1 if item["page"] is None else item["page"]))
    if group is None:
        several = len({item["name"] for item in ordered}) > 1
        keys = [item["name"] if several else (item["name"], item["page"]) for item in ordered]
    else:
        keys = [group(item) if callable(group) else item[group] for item in ordered]
    groups = list(dict.fromkeys(keys))
    if len(groups) < 2:
        raise KWTLError(f"a split needs at least two images (or groups), there is {len(groups)}.")
    count = min(max(1, round(test_fraction * len(groups))), len(groups) - 1)
    rng = np.random.default_rng(seed)
    if blocked:
        start = int(rng.integers(len(groups) - count + 1))
        chosen = set(groups[start : start + count])
    else:
        chosen = {groups[index] for index in rng.permutation(len(groups))[:count]}
    test = [item for item, key in zip(ordered, keys, strict=True) if key in chosen]
    pool = [item for item, key in zip(ordered, keys, strict=True) if key not in chosen]
    return pool, test

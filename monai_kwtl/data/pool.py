"""Data sets: what can be read of a folder, as a list of items, and the hash of the list."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai_kwtl.data.folders import find_images
from monai_kwtl.data.loading import DECODE_LIMIT
from monai_kwtl.data.splits import name_and_page
from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.decoding import UnreadableError, quiet, with_a_reason
from monai_kwtl.readers.image_files import checked, open_image
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["labelled", "load_pool", "pool_hash", "scan_file", "scan_images", "unlabelled_pool"]

logger = logging.getLogger("monai_kwtl")

NAMED_AT_MOST = 20  # unreadable images in one message


def _memory() -> float:
    """Return the bytes of memory of this machine; infinite where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def scan_file(item: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str], int]:
    """Look into one file, as :func:`scan_images` does into many.

    Returns:
        Its items, one a page, what of it cannot be read and why, and how many pages are of one colour.
    """
    found, broken, plain = [], [], 0
    name = item["name"]
    try:
        with open_image(item["image"]) as file:
            sizes = [size for size in file.sizes() if item.get("page") in (None, size[0])]
            if not sizes:
                raise UnreadableError(f"it holds no page {item['page']} (counted from 0)")
            digest = file_sha256(item["image"])
            for page, height, width in sizes:
                try:
                    if 2 * height * width > _memory():  # as in the file, and as 8 bit
                        raise UnreadableError("it is too large for the memory")
                    if height * width <= DECODE_LIMIT:
                        with with_a_reason():
                            pixels = checked(file.read(page))
                        height, width = pixels.shape[:2]
                        plain += bool((pixels == pixels[0, 0]).all())
                    found.append({**item, "page": page, "sha256": digest, "height": int(height), "width": int(width)})
                except UnreadableError as error:
                    broken.append(f"{name} ({error})" if page is None else f"{name} page {page} ({error})")
    except UnreadableError as error:
        broken.append(f"{name} ({error})")
    return found, broken, plain


def scan_images(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Look into each file once: its hash, its pages, their size, and whether they can be read.

    Pages of up to ``DECODE_LIMIT`` pixels are decoded to find out; of larger ones only the header is checked, and that
    the file and the memory can hold what it claims.

    Args:
        items: as from :func:`find_images`; scanning them twice does no harm.

    Returns:
        The items that can be read, one for each page of a multi-page TIFF or slice of a NIfTI volume (``page`` counts
        from 0; None where the file holds one image), sorted by name and page, with ``sha256`` (of the file's bytes),
        ``height`` and ``width`` added. What cannot be read is counted and named in one warning.

    Raises:
        KWTLError: when nothing can be read.
    """
    items = list(items)
    # the decoders let go of the interpreter while they work; map keeps the order
    with quiet, ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
        results = list(threads.map(scan_file, items))
    found = [item for readable, _, _ in results for item in readable]
    broken = [reason for _, reasons, _ in results for reason in reasons]
    named = ", ".join(broken[:NAMED_AT_MOST])
    if len(broken) > NAMED_AT_MOST:
        named += f", and {len(broken) - NAMED_AT_MOST} more"
    if not found:
        if not broken:
            raise KWTLError("there are no images.")
        what = "the only image cannot" if len(broken) == 1 else f"none of the {len(broken)} images can"
        raise KWTLError(f"{what} be read: {named}; give other files, or save them anew as PNG or TIFF.")
    if broken:
        total = len(found) + len(broken)
        logger.warning(f"{len(broken)} of {total} images cannot be read and are left out: {named}")
    if sum(plain for _, _, plain in results) == len(found):
        logger.warning(f"every image is of one grey value, such as {found[0]['name']}: were they exported right?")
    return sorted(found, key=name_and_page)


def load_pool(
    dataset_dir: str | os.PathLike,
    labels: str | os.PathLike | None = None,
    with_labels: bool = True,
    option: str = "--dataset_dir",
) -> list[dict[str, Any]]:
    """Return the readable images of a data set: :func:`find_images`, then :func:`scan_images`.

    Args:
        dataset_dir: folder of the images.
        labels: folder of the masks; None takes ``<dataset_dir>/labels`` where that holds any.
        with_labels: False looks for no masks at all, as everything does that chooses or needs none.
        option: the option that names ``dataset_dir``, for messages.

    Returns:
        The items, as :func:`scan_images` gives them.

    Raises:
        KWTLError: as both do.
    """
    return scan_images(find_images(dataset_dir, labels, with_labels, option))


def labelled(items: Sequence[Mapping[str, Any]], where: str | os.PathLike) -> list[Mapping[str, Any]]:
    """Return the items that have a label; says how many have none.

    Raises:
        KWTLError: when none has.
    """
    found = [item for item in items if item.get("label")]
    if not found:
        raise KWTLError(
            f"no image of {where} has a label: put masks of the same base names into its labels/ folder, "
            "or name their folder with --labels"
        )
    if len(found) < len(items):
        logger.info(f"{len(items) - len(found)} of {len(items)} images have no label and are left out")
    return found


def unlabelled_pool(dataset_dir: str | os.PathLike, test_dir: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """Return the images of a data set, and of further ones, without looking for masks.

    Args:
        dataset_dir: as of :func:`monai_kwtl.data.pool.load_pool`.
        test_dir: folder of further images, or None.
    """
    further = [] if test_dir is None else load_pool(test_dir, with_labels=False, option="--test_dir")
    return load_pool(dataset_dir, with_labels=False) + further


def pool_hash(items: Sequence[Mapping[str, Any]]) -> str:
    """Return a SHA-256 over the hashes of a pool's images and pages, whatever their order or names."""
    keys = sorted((item["sha256"], item["page"] or 0) for item in items)
    return hashlib.sha256(repr(keys).encode()).hexdigest()

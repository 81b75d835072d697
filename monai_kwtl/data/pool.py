"""Data sets: what can be read of a folder, and images and masks as arrays."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_kwtl.decoding import UnreadableError, quiet, with_a_reason
from monai_kwtl.errors import KWTLError
from monai_kwtl.folders import find_images
from monai_kwtl.grey import check_rescale, to_grey, to_uint8
from monai_kwtl.readers import checked, open_image, read_pixels
from monai_kwtl.slides import Slide
from monai_kwtl.splits import name_and_page, split_pool_test

__all__ = [
    "LoadMicroscopyd",
    "describe_label_values",
    "find_images",
    "load_pool",
    "read_image",
    "read_label",
    "scan_file",
    "scan_images",
    "split_pool_test",
]

logger = logging.getLogger("monai_kwtl")

DECODE_LIMIT = 1 << 26  # pixels; larger images are not decoded when scanned, only their headers are looked at
NAMED_AT_MOST = 20  # unreadable images in one message


def _memory() -> float:
    """Bytes of memory that this machine has; infinite where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
            digest = _sha256(item["image"])
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
    knob: str = "--dataset_dir",
) -> list[dict[str, Any]]:
    """The readable images of a data set: :func:`find_images`, then :func:`scan_images`.

    Args:
        dataset_dir: folder of the images.
        labels: folder of the masks; None takes ``<dataset_dir>/labels`` where that holds any.
        with_labels: False looks for no masks at all, as everything does that chooses or needs none.
        knob: the option that names ``dataset_dir``, for messages.

    Returns:
        The items, as :func:`scan_images` gives them.

    Raises:
        KWTLError: as both do.
    """
    return scan_images(find_images(dataset_dir, labels, with_labels, knob))


def read_image(item: Mapping[str, Any], rescale: Sequence[float] | None = None) -> np.ndarray:
    """Read an image as luminance, rows and columns as a viewer shows it.

    Of NIfTI the first axis, x, are the columns and the second, y, the rows; the orientation of EXIF and TIFF is
    applied; alpha is dropped. 8 bit grey stays as it is and 8 bit colour becomes what Pillow's ``convert("L")`` gives;
    any other type is scaled, see :func:`monai_kwtl.grey.to_uint8`.

    Args:
        item: with ``image`` and ``page``.
        rescale: fixed grey range: values (low, high) of images other than 8 bit that become 0 and 255. None takes the
            smallest and the largest value of each image (page).

    Returns:
        uint8, shape (1, H, W).

    Raises:
        KWTLError: when the file cannot be read (any more), or ``rescale`` is no range.
    """
    limits = check_rescale(rescale)
    if item.get("height", 0) * item.get("width", 0) > DECODE_LIMIT:
        return Slide(item, limits).array()
    try:
        grey = to_uint8(to_grey(read_pixels(item["image"], item.get("page"))), limits)
    except UnreadableError as error:
        raise KWTLError(f"cannot read {item['image']}: {error}.") from error
    return np.require(grey[None], requirements=("C", "W"))  # Pillow's arrays are read-only, which PyTorch warns about


def _read_mask(item: Mapping[str, Any]) -> np.ndarray:
    try:
        return read_pixels(item["label"], item.get("page"))
    except UnreadableError as error:
        raise KWTLError(f"cannot read the mask {item['label']}: {error}.") from error


def read_label(item: Mapping[str, Any]) -> np.ndarray:
    """Read a mask: every value but 0 is foreground, in colour masks a value in any channel.

    Args:
        item: with ``label`` and ``page``: the page of a stack has its mask in the same page of a stack of masks. Where
            it has ``height`` and ``width``, as scanned items do, the mask must be of that size.

    Returns:
        uint8, 0 or 1, shape (1, H, W).

    Raises:
        KWTLError: when there is no mask, it cannot be read, or it is of another size than the image.
    """
    if not item.get("label"):
        raise KWTLError(f"{item.get('name', 'an image')} has no mask: give labelled images only.")
    mask = _read_mask(item) != 0
    mask = mask.any(axis=2) if mask.ndim == 3 else mask
    if "height" in item and "width" in item and mask.shape != (item["height"], item["width"]):
        raise KWTLError(
            f"the mask {item['label']} is {mask.shape[1]} wide and {mask.shape[0]} high, its image {item['name']} is "
            f"{item['width']} wide and {item['height']} high: save the mask in the size of the image."
        )
    return np.ascontiguousarray(mask[None], dtype=np.uint8)


def describe_label_values(items: Iterable[Mapping[str, Any]], most: int = 20) -> str | None:
    """Say in one sentence how masks are understood that hold other values than 0 and 255.

    Args:
        items: those without ``label`` are passed over.
        most: look at so many masks at most, spread over all.

    Returns:
        The sentence, for stages to say once; None where masks hold 0 and 255 only (of 16 bit masks 65535 is as good).

    Raises:
        KWTLError: when a mask cannot be read.
    """
    labelled = [item for item in items if item.get("label")]
    for index in sorted({int(i) for i in np.linspace(0, len(labelled) - 1, min(most, len(labelled))).round()}):
        mask = _read_mask(labelled[index])
        usual = [0, 255, np.iinfo(mask.dtype).max if mask.dtype.kind in "ui" else 255]
        if not np.isin(mask, usual).all():
            values = [f"{value:g}" for value in np.unique(mask)]
            shown = ", ".join(values if len(values) <= 4 else [*values[:3], "...", values[-1]])
            name = os.path.basename(labelled[index]["label"])
            return f"masks hold other values than 0 and 255 ({shown} in {name}): all but 0 is taken for foreground"
    return None


class LoadMicroscopyd(MapTransform):
    """Read the image, the mask, or both, of an item of a data set.

    Args:
        keys: ``image``, ``label``, or both.
        rescale: as in :func:`read_image`.
        allow_missing_keys: whether items without a ``label`` pass as they are.
        slides: whether images of more than ``DECODE_LIMIT`` pixels are left in their file, to be read in parts.

    Raises:
        KWTLError: for other keys, or when ``rescale`` is no range.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image",),
        rescale: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
        slides: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rescale, self.slides = check_rescale(rescale), slides
        if unknown := set(self.keys) - {"image", "label"}:
            raise KWTLError(f"LoadMicroscopyd reads image and label, got the keys {sorted(map(str, unknown))}.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read an item.

        Args:
            data: with ``image`` or ``label`` (paths) and, as :func:`scan_images` gives them, the rest.

        Returns:
            A copy, its keys as MetaTensors: ``image`` as :func:`read_image`, ``label`` as :func:`read_label` gives it,
            uint8 (1, H, W), with ``filename_or_obj``, ``name`` and, for pages, ``page`` in their meta; or, for
            ``image``, a :class:`~monai_kwtl.slides.Slide`.

        Raises:
            KWTLError: when a file cannot be read, or a mask is of another size than its image.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            if key == "image" and self.slides and data["height"] * data["width"] > DECODE_LIMIT:
                result[key] = Slide(data, self.rescale)
                continue
            pixels = read_image(data, self.rescale) if key == "image" else read_label(data)
            meta = {"filename_or_obj": str(data[key])}
            meta |= {field: data[field] for field in ("name", "page") if data.get(field) is not None}
            result[key] = MetaTensor(torch.from_numpy(pixels), meta=meta)
        return result

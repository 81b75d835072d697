"""Images and masks as arrays: files of many formats, pages of a stack, grey values as uint8."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import read_pixels
from monai_kwtl.readers.luminance import check_rescale, to_grey, to_uint8
from monai_kwtl.readers.slides import Slide

__all__ = ["LoadMicroscopyd", "describe_label_values", "read_image", "read_label", "support_hash"]

DECODE_LIMIT = 1 << 26  # pixels; larger images are not decoded when scanned, only their headers are looked at


def read_image(item: Mapping[str, Any], rescale: Sequence[float] | None = None) -> np.ndarray:
    """Read an image as luminance, rows and columns as a viewer shows it.

    Of NIfTI the first axis, x, are the columns and the second, y, the rows; the orientation of EXIF and TIFF is
    applied; alpha is dropped. 8 bit grey stays as it is and 8 bit colour becomes what Pillow's ``convert("L")`` gives;
    any other type is scaled, see :func:`monai_kwtl.readers.luminance.to_uint8`.

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
            ``image``, a :class:`~monai_kwtl.readers.slides.Slide`.

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


def support_hash(support: Sequence[Mapping[str, Any]]) -> str:
    """Return a SHA-256 over images, labels and what is known of them."""
    digest = hashlib.sha256()
    for entry in support:
        # surrogateescape: names that are not UTF-8 keep their bytes
        digest.update(f"{entry['name']} {entry['page']} {entry['sha256']}".encode("utf-8", "surrogateescape"))
        digest.update(np.packbits(entry["label"]).tobytes())
        if "known" in entry:
            digest.update(np.packbits(entry["known"]).tobytes())
    return digest.hexdigest()

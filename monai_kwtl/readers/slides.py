"""Images read a rectangle at a time: slides out of their files, others out of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch

from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import checked, open_image, read_pixels
from monai_kwtl.readers.luminance import check_rescale, to_grey, to_uint8
from monai_kwtl.readers.tiff_regions import SegmentCache

__all__ = ["ImageInMemory", "Slide", "bands", "grey_range"]

_BAND = 1 << 25  # pixels of a band


def bands(height: int, width: int) -> Iterator[slice]:
    """Cut an image into bands of rows of about 32 million pixels, from top to bottom."""
    rows = max(1, _BAND // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def grey_range(image: ImageInMemory | Slide) -> tuple[float, float]:
    """Return the smallest and largest grey value of an image."""
    ends = [torch.aminmax(image.read(rows, slice(0, image.width))) for rows in bands(image.height, image.width)]
    return min(float(low) for low, _ in ends), max(float(high) for _, high in ends)


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    try:
        yield
    except UnreadableError as error:
        raise KWTLError(f"cannot read {path}: {error}.") from error


class ImageInMemory:
    """An image that is there, with the methods of a :class:`Slide`.

    Args:
        image: grey values in [0, 255], any real type, shape (1, 1, H, W), on any device.
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.image, self.device = image, image.device
        self.height, self.width = image.shape[-2:]

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """Read a rectangle, shape (1, 1, h, w)."""
        return self.image[:, :, rows, columns]

    def whole(self) -> torch.Tensor:
        """Read all of it, shape (1, 1, H, W)."""
        return self.image


class Slide:
    """An image that stays in its file: rectangles of what ``read_image`` gives, without the rest.

    Only of TIFF files a rectangle can be read by itself, and not where a page is one large compressed strip, is turned
    by its orientation tag, or is of a kind left to Pillow; any other image is read once and kept, as 8 bit.

    Args:
        item: of the pool, as ``scan_images`` gives it.
        rescale: fixed grey range, as in ``read_image``.
        device: where rectangles shall live.

    Raises:
        KWTLError: from all methods, when the file cannot be read (any more).
    """

    def __init__(
        self,
        item: Mapping[str, Any],
        rescale: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.item, self.rescale, self.device = dict(item), check_rescale(rescale), torch.device(device)
        self.height, self.width = item["height"], item["width"]
        self._cache = SegmentCache()

    def to(self, device: torch.device | str, **_kwargs: Any) -> Slide:
        """Return the slide, whose rectangles shall live on a device."""
        return Slide(self.item, self.rescale, device)

    def __reduce__(self) -> tuple:
        return Slide, (self.item, self.rescale, self.device)  # without what is kept, for worker processes

    @cached_property
    def in_parts(self) -> bool:
        """True if rectangles are read by themselves."""
        with _errors_of(self.item["image"]), open_image(self.item["image"]) as file:
            return hasattr(file, "in_parts") and file.in_parts(self.item.get("page"))

    def _grey(self, rows: slice, columns: slice) -> np.ndarray:
        """Read the luminance in the type of the file, (h, w)."""
        with _errors_of(self.item["image"]), open_image(self.item["image"]) as file:
            return to_grey(checked(file.region(self.item.get("page"), rows, columns, self._cache)))

    @cached_property
    def _range(self) -> tuple[float, float] | None:
        """Return the grey values that become 0 and 255; None keeps all values as they are."""
        if self.rescale is not None:
            return self.rescale
        low, high = np.inf, -np.inf
        for rows in bands(self.height, self.width):
            grey = self._grey(rows, slice(0, self.width))
            if grey.dtype == np.uint8:
                return None
            low, high = min(low, float(grey.min())), max(high, float(grey.max()))
        return low, high

    @cached_property
    def _pixels(self) -> np.ndarray:
        with _errors_of(self.item["image"]):
            pixels = read_pixels(self.item["image"], self.item.get("page"))
        return np.require(to_uint8(to_grey(pixels), self.rescale), requirements=("C", "W"))

    def pixels(self, rows: slice, columns: slice) -> np.ndarray:
        """Read ``read_image(item)[:, rows, columns]``, uint8 (1, h, w), with starts and stops inside."""
        if not self.in_parts:
            return np.array(self._pixels[None, rows, columns])
        return np.array(to_uint8(self._grey(rows, columns), self._range))[None]

    def read(self, rows: slice, columns: slice) -> torch.Tensor:
        """Read a rectangle of grey values, uint8 (1, 1, h, w)."""
        return torch.from_numpy(self.pixels(rows, columns))[None].to(self.device)

    def array(self) -> np.ndarray:
        """Read all of it, uint8 (1, H, W), put together from bands, so that no more than that is in memory."""
        if not self.in_parts:
            return self._pixels[None]
        whole = np.empty((1, self.height, self.width), dtype=np.uint8)
        for rows in bands(self.height, self.width):
            whole[:, rows] = self.pixels(rows, slice(0, self.width))
        return whole

    def whole(self) -> torch.Tensor:
        """Read all of it, uint8 (1, 1, H, W)."""
        return torch.from_numpy(self.array())[None].to(self.device)

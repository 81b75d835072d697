"""Image files opened page by page: PNG, JPEG, BMP, TIFF and NIfTI to arrays of the file's own pixel type."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Protocol

import imagecodecs
import numpy as np
import tifffile
from monai.data import NibabelReader

from monai_kwtl.readers.decoding import (
    ORIENTATION,
    PIL_READER,
    UnreadableError,
    pillow_pixels,
    quiet,
    shown_size,
    turn,
    with_a_reason,
)
from monai_kwtl.readers.tiff import TiffFile

__all__ = ["ImageFile", "SUFFIXES", "checked", "has_suffix", "open_image", "read_pixels"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".nii.gz")

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class ImageFile(Protocol):
    """An open image file."""

    def sizes(self) -> list[tuple[int | None, int, int]]:
        """List (page, height, width) of each image, from headers; the page is None where the file holds one image."""

    def read(self, page: int | None) -> np.ndarray:
        """Read the pixels of one page, (H, W), or (H, W, 3) for colour, in the type of the file."""


def has_suffix(path: str | os.PathLike, suffixes: Sequence[str]) -> bool:
    """Return True if a file name ends in one of the suffixes, in any case."""
    return os.fspath(path).lower().endswith(tuple(suffixes))


class _PillowFile:
    """PNG, JPEG or BMP; of animations the first frame."""

    def __init__(self, stream: BinaryIO, start: bytes) -> None:
        # PILReader takes lists of what Image.open takes; a stream of ours is closed also when decoding fails
        self._stream, self._image = stream, PIL_READER.read([stream])
        self._orientation = self._image.getexif().get(ORIENTATION, 1)
        self._deep_colour = self._image.format == "PNG" and start[24] == 16 and start[25] in (2, 4, 6)

    def sizes(self) -> list[tuple[int | None, int, int]]:
        return [(None, *shown_size(self._image.height, self._image.width, self._orientation))]

    def read(self, page: int | None) -> np.ndarray:
        if page is not None:
            raise UnreadableError(f"it holds one image, page {page} was asked for")
        self._image.load()  # finds out about truncation
        if not self._deep_colour:
            return pillow_pixels(self._image)
        # Pillow cuts 16 bit colour to 8 bit, ITKReader has no such type
        self._stream.seek(0)
        pixels = imagecodecs.png_decode(self._stream.read())
        return turn(pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0], self._orientation)


class _NiftiFile:
    """NIfTI: (x, y), or (x, y, z) with one image for each z; x are the columns, as nibabel's arrays have it."""

    def __init__(self, path: str) -> None:
        self._reader = NibabelReader(keep_file_open=True)  # else each slice of a .nii.gz unpacks from the start
        self._image = self._reader.read(path)
        dtype, shape = self._image.get_data_dtype(), self._image.shape
        if dtype.names or dtype.kind not in "uif":
            kind = "coloured" if dtype.names else "complex"
            raise UnreadableError(f"{kind} voxels: save it as grey values, or as PNG or TIFF")
        if len(shape) < 2 or any(length > 1 for length in shape[3:]):
            raise UnreadableError(f"{len(shape)} dimensions: save single volumes (x, y, z) or images (x, y)")
        # Deflate makes data at most 1 032 times smaller
        room = os.path.getsize(path) * (1032 if has_suffix(path, (".gz",)) else 1)
        if math.prod(shape) * dtype.itemsize > room:
            raise UnreadableError("it is truncated")
        self._depth = shape[2] if len(shape) > 2 else 1

    def sizes(self) -> list[tuple[int | None, int, int]]:
        width, height = self._image.shape[:2]
        return [(z if self._depth > 1 else None, height, width) for z in range(self._depth)]

    def read(self, page: int | None) -> np.ndarray:
        if page is None and self._depth > 1:
            raise UnreadableError(f"it holds {self._depth} slices, none of them was asked for by page")
        if page is not None and not (0 <= page < self._depth and self._depth > 1):
            raise UnreadableError(f"it holds no slice {page} (counted from 0)")
        image = self._image if page is None else self._image.slicer[:, :, page : page + 1]
        pixels = self._reader.get_data(image)[0]
        return pixels.reshape(pixels.shape[:2]).T


@contextmanager
def open_image(path: str | os.PathLike) -> Iterator[ImageFile]:
    """Open an image file; TIFF is known by its first bytes, NIfTI by its suffix, the rest is left to Pillow.

    Images come as a viewer shows them, rows from the top and columns from the left: the orientation of EXIF and TIFF is
    applied, palettes become RGB, 1 bit becomes 0 and 255, white-is-zero is inverted, alpha is dropped.

    Args:
        path: of the file.

    Yields:
        What lists its pages and reads them one at a time.

    Raises:
        UnreadableError: also out of the body, when the file is missing, empty, broken, or no image.
    """
    path = os.fspath(path)
    with quiet, with_a_reason(), open(path, "rb") as stream:
        start = stream.read(26)
        if not start:
            raise UnreadableError("the file is empty")
        stream.seek(0)
        if start[:4] in _TIFF_STARTS:
            with tifffile.TiffFile(stream) as tiff:
                yield TiffFile(stream, tiff)
        elif has_suffix(path, (".nii", ".nii.gz")):
            yield _NiftiFile(path)
        else:
            yield _PillowFile(stream, start)


def checked(pixels: np.ndarray) -> np.ndarray:
    """Return pixels in native byte order, if there are any and they are finite real numbers.

    Raises:
        UnreadableError: if not.
    """
    if not pixels.size:
        raise UnreadableError("it has no pixels")
    if pixels.dtype.kind not in "uif":
        raise UnreadableError(f"pixels of type {pixels.dtype}")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UnreadableError("it has pixels that are NaN or infinite")
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


def read_pixels(path: str | os.PathLike, page: int | None = None) -> np.ndarray:
    """Read one image of a file.

    Args:
        path: of the file.
        page: of a multi-page TIFF or slice of a NIfTI volume, from 0; None for files that hold one image.

    Returns:
        (H, W), or (H, W, 3) for colour: unsigned or signed integers or float as in the file, in native byte order.

    Raises:
        UnreadableError: when the file is missing, empty, broken, no image, holds NaN or infinity, or has not this page.
    """
    with open_image(path) as file:
        return checked(file.read(page))

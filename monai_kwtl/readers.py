"""Image files of all kinds as grey images: PNG, JPEG, BMP, TIFF and NIfTI to (1, H, W) uint8 luminance."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from monai.data import NibabelReader, PILReader
from PIL import Image, ImageOps

__all__ = [
    "NIFTI_SUFFIXES",
    "SUFFIXES",
    "TIFF_SUFFIXES",
    "UnreadableError",
    "page_shapes",
    "read_pixels",
    "to_grey",
    "to_uint8",
]

PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_SUFFIXES = (".tif", ".tiff")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = (*PILLOW_SUFFIXES, *TIFF_SUFFIXES, *NIFTI_SUFFIXES)

for _name in ("tifffile", "nibabel.global", "nibabel"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # what they say of broken files, our own message says


class UnreadableError(ValueError):
    """A file that cannot be read as an image; the message is the reason."""


def has_suffix(path: str | os.PathLike, suffixes: Sequence[str]) -> bool:
    """Whether a file name ends in one of the suffixes, in any case."""
    return str(path).lower().endswith(tuple(suffixes))


@contextmanager
def _as_unreadable() -> Iterator[None]:
    """Turn whatever a decoder raises on a broken file into one exception with a short reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UnreadableError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except MemoryError as error:
        raise UnreadableError("too large for the memory") from error
    except Exception as error:  # decoders raise nearly anything, from struct.error to zlib.error
        reason = " ".join(str(error).split()) or type(error).__name__
        known = {"cannot identify image file": "no image of a known kind", "not a TIFF file": "no TIFF file"}
        reason = next((short for long, short in known.items() if long in reason), reason)
        raise UnreadableError(reason if len(reason) <= 100 else reason[:97] + "...") from error


def _pillow_converter(image: Image.Image) -> Image.Image:
    """To one grey channel: luminance of colour, no alpha, 16 and 32 bit kept; orientation as displayed."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB" if image.mode not in ("1", "LA", "La") else "L")
    return image.convert("L") if image.mode == "RGB" else image


@lru_cache(maxsize=1)
def _pil_reader() -> PILReader:
    # the default transposes images; see the trap about reverse_indexing
    return PILReader(converter=_pillow_converter, reverse_indexing=False)


def _read_pillow(path: str) -> np.ndarray:
    reader = _pil_reader()
    image = reader.read(path)
    image.load()
    return np.asarray(reader.get_data(image)[0])


def _read_tiff(path: str, page: int | None) -> np.ndarray:
    # Pillow knows neither 16 bit colour nor single pages of OME-TIFF, ITK reads the whole stack for one page
    with tifffile.TiffFile(path) as tiff:
        frame = tiff.pages[page or 0]
        pixels = frame.asarray()
        photometric = frame.aspage().photometric
        if photometric == tifffile.PHOTOMETRIC.PALETTE and frame.aspage().colormap is not None:
            pixels = np.moveaxis(frame.aspage().colormap, 0, -1)[pixels]
            pixels = (pixels >> 8).astype(np.uint8)
        elif photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            if pixels.dtype.kind not in "bu":
                raise UnreadableError("inverted grey levels of a signed or float type")
            pixels = ~pixels
        if "S" in frame.axes:
            pixels = np.moveaxis(pixels, frame.axes.index("S"), -1)
    pixels = np.squeeze(pixels, axis=tuple(a for a in range(pixels.ndim - 3) if pixels.shape[a] == 1))
    return pixels


def _read_nifti(path: str, page: int | None) -> np.ndarray:
    reader = NibabelReader()
    array = np.asarray(reader.get_data(reader.read(path))[0])
    if array.dtype.names is not None:
        raise UnreadableError("NIfTI with colour is not supported; export grey values")
    array = array.reshape(array.shape[:3]) if array.ndim > 3 and all(n == 1 for n in array.shape[3:]) else array
    if array.ndim not in (2, 3):
        raise UnreadableError(f"NIfTI with {array.ndim} dimensions; export single volumes")
    plane = array if array.ndim == 2 else array[:, :, page or 0]
    return plane.T  # the first axis of a NIfTI array runs along x, which are the columns of an image


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Luminance of an image with Pillow's weights (ITU-R 601-2); alpha is dropped, bool becomes 0 and 255.

    Args:
        pixels: (H, W) or (H, W, 1 to 4).

    Returns:
        (H, W); 8 bit colour gives uint8, exactly as Pillow's ``convert("L")``; deeper colour gives float64.

    Raises:
        UnreadableError: for other shapes and for complex numbers.
    """
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2):
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        if pixels.dtype == np.uint8:
            return np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., :3])).convert("L"))
        return pixels[..., :3].astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    if pixels.ndim != 2 or pixels.dtype.kind not in "uif":
        raise UnreadableError(f"an array of shape {pixels.shape} and type {pixels.dtype} is no image")
    return pixels


def to_uint8(grey: np.ndarray, rescale: Sequence[float] | None = None) -> np.ndarray:
    """Grey values as 8 bit: uint8 stays; everything else is scaled to [0, 255] and rounded.

    Args:
        grey: (H, W), any real type.
        rescale: (low, high), the grey values that become 0 and 255; None takes the image's own range. A constant
            image becomes 0.

    Returns:
        uint8, same shape.

    Raises:
        UnreadableError: for NaN and infinity.
    """
    if grey.dtype == np.uint8:
        return grey
    values = grey.astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableError("pixels that are NaN or infinite")
    low, high = (values.min(), values.max()) if rescale is None else rescale
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint(np.clip((values - low) * (255.0 / (high - low)), 0.0, 255.0)).astype(np.uint8)


def read_pixels(path: str | os.PathLike, page: int | None = None) -> np.ndarray:
    """Read one image of a file, oriented as viewers show it: rows from top, columns from left.

    EXIF orientation is applied; NIfTI's first axis is x and becomes the columns.

    Args:
        path: of the file; its suffix says what it is.
        page: of a multi-page TIFF or slice of a NIfTI volume, from 0.

    Returns:
        (H, W) or, for colour TIFF, (H, W, channels), in the type of the file.

    Raises:
        UnreadableError: when the file is broken, empty, or no image.
        OSError: when it cannot be opened at all.
    """
    path = os.fspath(path)
    if os.path.getsize(path) == 0:
        raise UnreadableError("the file is empty")
    with _as_unreadable():
        if has_suffix(path, TIFF_SUFFIXES):
            pixels = _read_tiff(path, page)
        elif has_suffix(path, NIFTI_SUFFIXES):
            pixels = _read_nifti(path, page)
        else:
            pixels = _read_pillow(path)
    if pixels.size == 0:
        raise UnreadableError("the image has no pixels")
    return pixels


def page_shapes(path: str | os.PathLike) -> list[tuple[int, int]]:
    """Height and width of every image in a file, from its header.

    Args:
        path: of the file.

    Returns:
        One (height, width) a page, slice or plain image.

    Raises:
        UnreadableError: when the header cannot be read.
    """
    path = os.fspath(path)
    if os.path.getsize(path) == 0:
        raise UnreadableError("the file is empty")
    with _as_unreadable():
        if has_suffix(path, TIFF_SUFFIXES):
            with tifffile.TiffFile(path) as tiff:
                pages = [page.aspage() for page in tiff.pages]
                return [(int(page.imagelength), int(page.imagewidth)) for page in pages]
        if has_suffix(path, NIFTI_SUFFIXES):
            shape = nibabel.load(path).shape
            if len(shape) < 2:
                raise UnreadableError(f"NIfTI with {len(shape)} dimensions is no image")
            return [(int(shape[1]), int(shape[0]))] * (int(shape[2]) if len(shape) > 2 else 1)
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return [image.size if turned else image.size[::-1]]


def is_stack(path: str | os.PathLike) -> bool:
    """Whether a file may hold several images."""
    return has_suffix(path, (*TIFF_SUFFIXES, *NIFTI_SUFFIXES))


def short_name(path: str | os.PathLike) -> str:
    """Last part of a path, for messages."""
    return Path(path).name

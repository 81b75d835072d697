"""Parts that the readers of image files share: silence, one kind of error, and the way images are shown."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import numpy as np
from monai.data import PILReader
from PIL import Image, ImageOps

__all__ = [
    "ORIENTATION",
    "PIL_READER",
    "UnreadableError",
    "pillow_pixels",
    "quiet",
    "shown_size",
    "turn",
    "with_a_reason",
]

ORIENTATION = 0x0112  # the tag of TIFF and EXIF

# PILReader transposes by default. Pillow goes by content, so only the kinds that are meant are let in.
PIL_READER = PILReader(reverse_indexing=False, formats=("PNG", "JPEG", "BMP", "TIFF"))

_REASONS = (
    ("cannot identify image file", "it is no image"),
    ("Cannot work out file type", "it is no image"),
    ("is not a gzip file", "it is no image"),
    ("truncated", "it is truncated"),
    ("Truncated", "it is truncated"),
    ("unpack requires", "it is truncated"),
    ("failed to read", "it is truncated"),
    ("Compressed file ended", "it is truncated"),
    ("Expected ", "it is truncated"),  # nibabel: Expected 12 bytes, got 3 bytes
    ("mmap length is greater", "it is truncated"),
    ("not enough data in file", "it is truncated"),
    ("corrupted", "it is broken"),
    ("broken", "it is broken"),
    ("unrecognized data stream", "it is broken"),  # Pillow's decoders, and next those of imagecodecs and zlib
    ("decompress", "it is broken"),
    ("_CORRUPT", "it is broken"),
)


class UnreadableError(ValueError):
    """A file that cannot be read as an image; the message is the reason, without the file's name."""


class _Quiet(logging.Filter):
    """Keeps what decoders say of odd files off the terminal, in all threads while any of them reads."""

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._depth, self._warnings = threading.Lock(), 0, warnings.catch_warnings()
        self._local = threading.local()
        for name in ("tifffile", "nibabel.global", "PIL.TiffImagePlugin"):
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if self._depth and record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage())
        return not self._depth

    @property
    def errors(self) -> list[str]:
        """Errors logged by decoders in this thread."""
        return self._local.__dict__.setdefault("errors", [])

    # warnings.catch_warnings is not safe in threads by itself: the first reader to come and the last to leave use it
    def __enter__(self) -> None:
        with self._lock:
            if not self._depth:
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")
            self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self._warnings.__exit__(kind, error, trace)


quiet = _Quiet()


@contextmanager
def with_a_reason() -> Iterator[None]:
    """Turn whatever a decoder raises on a broken file into one exception with a short reason."""
    try:
        yield
    except UnreadableError:
        raise
    except MemoryError as error:
        raise UnreadableError("it is too large for the memory") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError("more pixels than Pillow opens (179 million): save it as TIFF") from error
    except Exception as error:  # decoders raise nearly anything, from struct.error to zlib.error
        if isinstance(error, OSError) and error.strerror:
            raise UnreadableError(error.strerror) from error
        text = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(next((ours for theirs, ours in _REASONS if theirs in text), text[:100])) from error


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels as stored into pixels as shown (TIFF 6.0, tag Orientation)."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def shown_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Return (height, width) as shown of an image of this size as stored."""
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def pillow_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of one frame as shown: palettes and other colours as RGB, bits as 0 and 255, without alpha."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparent palettes
    grey = image.mode in ("L", "F") or image.mode.startswith("I")
    if not grey and image.mode != "RGB":
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    return PIL_READER.get_data(image)[0]

"""Parts that the readers of image files share: silence, one kind of error, and the way images are shown."""

from __future__ import annotations

import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from types import TracebackType

import numpy as np
from monai.data import PILReader
from nibabel.filebasedimages import ImageFileError
from PIL import Image, ImageOps, UnidentifiedImageError
from tifffile import TiffFileError

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

# what decoders raise on a file that is not of their kind, and on one that is cut off or has wrong bytes in it: Pillow
# and nibabel an OSError without a number, or a SyntaxError; imagecodecs a RuntimeError
_OF_NO_IMAGE = (UnidentifiedImageError, ImageFileError, BadGzipFile)
_OF_DAMAGE = (OSError, EOFError, SyntaxError, RuntimeError, struct.error, zlib.error, TiffFileError)


class UnreadableError(ValueError):
    """A file that cannot be read as an image; the message is the reason, without the file's name."""


_TALKATIVE = ("tifffile", "nibabel.global", "PIL.TiffImagePlugin")  # loggers of decoders


class _Quiet(logging.Filter):
    """Keeps what decoders say of odd files off the terminal, in all threads while any of them reads, and no longer."""

    def __init__(self) -> None:
        super().__init__()
        self._lock, self._depth, self._warnings = threading.Lock(), 0, warnings.catch_warnings()
        self._local = threading.local()

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
                for name in _TALKATIVE:
                    logging.getLogger(name).addFilter(self)
            self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                for name in _TALKATIVE:
                    logging.getLogger(name).removeFilter(self)
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
        if isinstance(error, _OF_NO_IMAGE):
            raise UnreadableError("it is no image") from error
        if isinstance(error, _OF_DAMAGE):
            raise UnreadableError("it is truncated or broken") from error
        raise UnreadableError((" ".join(str(error).split()) or type(error).__name__)[:100]) from error


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

"""TIFF files opened page by page."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from monai_kwtl.readers.decoding import ORIENTATION, PIL_READER, UnreadableError, pillow_pixels, quiet, shown_size, turn
from monai_kwtl.readers.tiff_regions import SegmentCache, has_small_segments, read_region

__all__ = ["TiffFile"]

# of compressions that have a limit, none makes data so many times smaller (Deflate 1 032, LZW 2 731, PackBits 64)
_DENSEST = 4096
_LIMITED = (COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS)


class TiffFile:
    """TIFF, OME-TIFF and BigTIFF, read by tifffile.

    MONAI's ITKReader, the default for .tif, reads a whole stack for one page, turns tiled, planar, 1 bit, JPEG-coded
    and turned images into 8 bit RGBA, fails on 64 bit float, 16 bit colour and Zstandard, and prints to the terminal
    from C++. PILReader cuts 16 bit colour to 8 bit and misreads uint32, int8 and inverted 16 bit; but it knows the old
    kinds that tifffile hands out raw (palettes, CMYK, YCbCr, less than 8 bit), so those are left to it.

    Args:
        stream: the file.
        tiff: the same, opened by tifffile.
    """

    def __init__(self, stream: BinaryIO, tiff: tifffile.TiffFile) -> None:
        self._stream, self._tiff = stream, tiff

    def sizes(self) -> list[tuple[int | None, int, int]]:
        """List (page, height, width) of each image, from headers; the page is None where the file holds one image."""
        quiet.errors.clear()
        count = len(self._tiff.pages)
        if quiet.errors or not count:  # the chain of pages leads out of the file, or in a circle
            raise UnreadableError("it is truncated" if count else "it holds no image")
        pages = list(self._tiff.pages)
        for page in pages:
            self._check_end(page, 1)
        # thumbnails and the lower levels of pyramids are no images of their own
        numbers = [number for number, page in enumerate(pages) if not page.is_reduced] or [0]
        if count == 1 and (frames := self._frames(pages[0])) > 1:
            pages, numbers = pages * frames, list(range(frames))
            self._check_end(pages[0], frames)
        shown = [(n, *shown_size(pages[n].imagelength, pages[n].imagewidth, self._turned(pages[n]))) for n in numbers]
        return shown if len(shown) > 1 else [(None, *shown[0][1:])]

    @staticmethod
    def _turned(page: tifffile.TiffPage) -> int:
        return page.tags.valueof(ORIENTATION, 1)

    def _check_end(self, page: tifffile.TiffPage, frames: int) -> None:
        if page.is_contiguous:
            end = page.dataoffsets[0] + page.nbytes * frames
        else:
            end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
            there = [count for count in page.databytecounts if count]
            claimed = len(there) * math.prod(page.chunks) * page.dtype.itemsize if page.dtype else 0
            if page.compression in _LIMITED and claimed > _DENSEST * sum(there):
                raise UnreadableError("it is truncated")
        if end > self._tiff.filehandle.size:
            raise UnreadableError("it is truncated")

    def _frames(self, page: tifffile.TiffPage) -> int:
        """Count the images behind the only page header: ImageJ writes stacks over 4 GB like that."""
        if not page.is_contiguous:
            return 1
        stated = 1
        if self._tiff.is_imagej:
            stated = (self._tiff.imagej_metadata or {}).get("images", 1)
        elif self._tiff.is_shaped and (self._tiff.shaped_metadata or [{}])[0].get("truncated"):
            stated = math.prod(self._tiff.shaped_metadata[0]["shape"]) // page.size
        # tools that take one page out of a stack copy what is stated; then there is no second image in the file
        there = (self._tiff.filehandle.size - page.dataoffsets[0]) // page.nbytes
        return stated if there > 1 else 1

    def _found(self, page: int | None) -> tuple[tifffile.TiffPage, int, int]:
        """Return the header of a page, which of the images behind it is meant, and its photometric interpretation."""
        if page is None:
            sizes = self.sizes()
            if len(sizes) > 1:
                raise UnreadableError(f"it holds {len(sizes)} images, none of them was asked for by page")
            page = next((n for n, found in enumerate(self._tiff.pages) if not found.is_reduced), 0)
        try:
            found, hidden = self._tiff.pages[page], 0
        except IndexError:
            found, hidden = self._tiff.pages[0], page
            if len(self._tiff.pages) > 1 or page >= self._frames(found):
                raise UnreadableError(f"it holds no page {page} (counted from 0)") from None
        photometric = found.photometric if found.tags.get("PhotometricInterpretation") else PHOTOMETRIC.MINISBLACK
        return found, hidden, photometric

    @staticmethod
    def _is_plain(page: tifffile.TiffPage, photometric: int) -> bool:
        plain = photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
        return plain and page.bitspersample >= 8

    def read(self, page: int | None) -> np.ndarray:
        """Read the pixels of one page, (H, W), or (H, W, 3) for colour, in the type of the file."""
        found, hidden, photometric = self._found(page)
        if not self._is_plain(found, photometric):
            self._stream.seek(0)
            image = PIL_READER.read([self._stream])
            image.seek(found.index)
            return pillow_pixels(image)
        self._check_end(found, hidden + 1)
        if hidden:
            dtype, offset = self._tiff.byteorder + found.dtype.char, found.dataoffsets[0] + found.nbytes * hidden
            pixels = self._tiff.filehandle.read_array(dtype, found.size, offset).reshape(found.shape)
        else:
            pixels = found.asarray()
        return turn(self._plain_pixels(found, pixels, photometric), self._turned(found))

    def in_parts(self, page: int | None) -> bool:
        """Return True if parts of a page can be read by :meth:`region`, without reading all of it."""
        found, hidden, photometric = self._found(page)
        plain = self._is_plain(found, photometric) and found.axes in ("YX", "YXS", "SYX")
        return plain and not hidden and self._turned(found) == 1 and has_small_segments(found)

    def region(self, page: int | None, rows: slice, columns: slice, cache: SegmentCache) -> np.ndarray:
        """Read ``read(page)[rows, columns]``, of a page that is :meth:`in_parts`; both with start and stop."""
        found, _, photometric = self._found(page)
        self._check_end(found, 1)
        return self._plain_pixels(found, read_region(found, rows, columns, cache), photometric)

    @staticmethod
    def _plain_pixels(page: tifffile.TiffPage, pixels: np.ndarray, photometric: int) -> np.ndarray:
        if page.axes not in ("YX", "YXS", "SYX"):
            raise UnreadableError(f"a page with the axes {page.axes}, where rows and columns were expected")
        pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
        if pixels.ndim == 3:
            samples = pixels.shape[2]
            if photometric == PHOTOMETRIC.RGB and samples >= 3:
                pixels = pixels[..., :3]
            elif samples == 2 and page.extrasamples and page.extrasamples[0] in (1, 2):  # alpha
                pixels = pixels[..., 0]
            else:
                raise UnreadableError(f"{samples} channels that are neither grey nor RGB: save each channel as a page")
        if photometric == PHOTOMETRIC.MINISWHITE:
            if pixels.dtype.kind != "u":
                raise UnreadableError(f"inverted grey values of type {pixels.dtype}: save it with black as 0")
            pixels = pixels.dtype.type(2**page.bitspersample - 1) - pixels
        return pixels

"""Pixels, probabilities and scores as pictures: display contrast, colours, compressed images, outlines, labels."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import lru_cache

import contourpy
import matplotlib
import numpy as np
from PIL import Image

from monai_kwtl.windows.box import Box

__all__ = [
    "PNG_EFFORT",
    "colourise",
    "data_uri",
    "for_display",
    "outline_path",
    "place_labels",
    "rank_colours",
    "shrink",
    "text_colour",
]

SCORE_COLOURS = "magma"
RANK_COLOURS = "plasma"
LARGEST_GAIN = 8.0
PNG_EFFORT = 1  # of zlib; the usual 6 takes three times as long, for files that are as large
_AT_ONCE = 1 << 24  # pixels that are stretched


def for_display(image: np.ndarray) -> np.ndarray:
    """Stretch the contrast of an image so that a person sees what is in it; for looking at, not for computing.

    The 0.1st percentile becomes black, the 99.9th white, with a gain of at most eight, so that the noise of an empty
    image stays noise.

    Args:
        image: uint8, shape (1, H, W).

    Returns:
        uint8, shape (H, W).
    """
    pixels = np.asarray(image)[0]
    stride = max(1, int(np.sqrt(pixels.size / 1e6)))
    looked_at = np.ascontiguousarray(pixels[::stride, ::stride])
    low, high = _percentiles(Image.fromarray(looked_at).histogram(), (0.1, 99.9))
    gain = min(255.0 / max(high - low, 1.0), LARGEST_GAIN)
    table = np.rint(np.clip((np.arange(256) - low) * gain, 0, 255)).astype(int).tolist()
    shown = np.empty_like(pixels)
    rows = max(1, _AT_ONCE // max(pixels.shape[1], 1))
    for top in range(0, len(pixels), rows):  # Pillow holds a copy before and one after
        shown[top : top + rows] = Image.fromarray(pixels[top : top + rows]).point(table)
    return shown


def _percentiles(histogram: Sequence[int], wanted: Sequence[float]) -> list[float]:
    """Compute percentiles of grey values from their counts, interpolated as ``numpy.percentile`` does."""
    below = np.cumsum(histogram)
    found = []
    for place in (np.asarray(wanted) / 100) * (below[-1] - 1):
        lower, upper = np.searchsorted(below, (np.floor(place), np.ceil(place)), side="right")
        found.append(float(lower + (upper - lower) * (place - np.floor(place))))
    return found


def shrink(array: np.ndarray, longest: int) -> np.ndarray:
    """Average an image or map down until no side is longer than ``longest``; smaller ones stay as they are.

    Args:
        array: uint8 (H, W) or (H, W, 3), or float (H, W).
        longest: side length in pixels, at least 1.

    Returns:
        An array of the same kind; float maps come back as float32.
    """
    array = np.asarray(array)
    array = array if array.dtype == np.uint8 else array.astype(np.float32)
    scale = longest / max(array.shape[:2])
    if scale >= 1:
        return array
    size = max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale))
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BOX))


def colourise(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Draw a score map in matplotlib's "magma" colours.

    Args:
        values: float, shape (H, W); NaN is drawn like ``low``.
        low: what becomes black.
        high: what becomes the brightest colour; values beyond it are clipped.

    Returns:
        uint8 RGB, shape (H, W, 3).
    """
    scaled = (np.nan_to_num(np.asarray(values, dtype=np.float64), nan=low) - low) / max(high - low, 1e-12)
    table = _colour_table()
    return table[np.minimum(np.clip(scaled, 0, 1) * len(table), len(table) - 1).astype(np.uint8)]


@lru_cache(maxsize=1)
def _colour_table() -> np.ndarray:
    """Return the 256 colours of score maps, uint8 (256, 3); each look into matplotlib's register makes the map anew."""
    return matplotlib.colormaps[SCORE_COLOURS](np.arange(256), bytes=True)[:, :3]


def score_gradient(stops: int = 12) -> list[str]:
    """Return the colours of :func:`colourise` from low to high, as ``#rrggbb``."""
    return [_hexadecimal(colour) for colour in matplotlib.colormaps[SCORE_COLOURS](np.linspace(0, 1, stops))]


def rank_colours(count: int) -> list[str]:
    """Return a colour for each rank, from bright yellow (rank 1) to violet, as ``#rrggbb``."""
    return [_hexadecimal(colour) for colour in matplotlib.colormaps[RANK_COLOURS](np.linspace(0.95, 0.3, count))]


def text_colour(background: str) -> str:
    """Return black or white, whichever contrasts more with ``background`` (``#rrggbb``), by WCAG relative luminance."""
    channels = np.array([int(background[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "#000000" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "#ffffff"  # where both contrast equally


def _hexadecimal(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in colour[:3])


def _jpeg(array: np.ndarray, quality: int) -> bytes:
    """Encode a picture, uint8 (H, W) or (H, W, 3), as JPEG with colours as sharp as brightness."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def data_uri(array: np.ndarray, largest: int) -> str:
    """Encode a picture as a JPEG data URI of at most so many bytes.

    Quality falls first, then size, so that a page of any number of pictures keeps within its limit.

    Args:
        array: uint8, shape (H, W) or (H, W, 3).
        largest: limit for the JPEG file in bytes (the URI is a third longer).

    Returns:
        ``data:image/jpeg;base64,...``
    """
    for quality in (88, 78, 65, 50, 35):
        packed = _jpeg(array, quality)
        if len(packed) <= largest:
            break
    else:
        if max(array.shape[:2]) > 16:
            return data_uri(shrink(array, max(array.shape[:2]) // 2), largest)
    return "data:image/jpeg;base64," + base64.b64encode(packed).decode("ascii")


def outline_path(probability: np.ndarray, largest: int = 12_000) -> str:
    """Trace the outline of the predicted foreground (probability 0.5) as an SVG path.

    Lines are interpolated between pixels (marching squares) and thinned to every second point, or fewer where the
    outline is ragged; objects that touch the border are closed along it.

    Args:
        probability: float in [0, 1], shape (H, W).
        largest: limit for the path in characters; beyond it small outlines are left out.

    Returns:
        The path's ``d`` in tenths of a pixel, with (0, 0) at the top left corner of the first pixel; "" without
        foreground.
    """
    padded = np.pad(np.nan_to_num(np.asarray(probability, dtype=np.float64)), 1)
    contours = [contour for contour in contourpy.contour_generator(z=padded).lines(0.5) if len(contour) >= 5]
    contours.sort(key=len, reverse=True)
    pieces: list[str] = []
    for thin in (2, 3, 4, 6, 8):
        strides = [max(1, min(thin, len(contour) // 4)) for contour in contours]
        points = sum(-(-(len(contour) - 1) // stride) for contour, stride in zip(contours, strides, strict=True))
        if thin < 8 and 4 * points > largest:  # a point has at least two digits and what is before each
            continue  # a noisy map has thousands of outlines, which take seconds to write down
        pieces, room = [], largest
        for contour, stride in zip(contours, strides, strict=True):
            piece = _polygon(contour[:-1][::stride] - 0.5)
            room -= len(piece)
            if room < 0:
                break
            pieces.append(piece)
        if len(pieces) == len(contours):
            break
    return "".join(pieces)


def _polygon(points: np.ndarray) -> str:
    """Return a closed path through (x, y) points, relative from point to point: the shortest text."""
    tenths = np.rint(points * 10).astype(int)
    steps = " ".join(map(str, np.diff(tenths, axis=0).ravel().tolist())).replace(" -", "-")
    return f"M{tenths[0, 0]} {tenths[0, 1]}l{steps}z"


def place_labels(
    boxes: Sequence[Box], size: tuple[float, float], label: Sequence[tuple[float, float]]
) -> list[tuple[float, float] | None]:
    """Find places for labels of boxes that may overlap heavily: in a corner of the box, never on another label.

    Args:
        boxes: the most important first.
        size: (width, height) of the picture.
        label: (width, height) of each box's label.

    Returns:
        For each box the top left corner (x, y) of its label, or None where none fits.
    """
    taken = np.empty((0, 4))
    places: list[tuple[float, float] | None] = []
    for (x, y, width, height), (w, h) in zip(boxes, label, strict=True):
        right, bottom = x + width - w, y + height - h
        middle = x + (width - w) / 2, y + (height - h) / 2
        corners = [(x, y), (right, y), (x, bottom), (right, bottom), middle]
        fitting = (
            corner
            for corner in corners
            if w <= width
            and h <= height
            and 0 <= corner[0] <= size[0] - w
            and 0 <= corner[1] <= size[1] - h
            and not _meets(taken, (*corner, corner[0] + w, corner[1] + h))
        )
        place = next(fitting, None)
        places.append(place)
        if place is not None:
            taken = np.vstack([taken, [*place, place[0] + w, place[1] + h]])
    return places


def _meets(taken: np.ndarray, box: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = box
    return bool(np.any((taken[:, 0] < right) & (taken[:, 2] > left) & (taken[:, 1] < bottom) & (taken[:, 3] > top)))

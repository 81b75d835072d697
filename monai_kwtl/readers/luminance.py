"""Pixels of any kind as 8 bit luminance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from monai_kwtl.errors import KWTLError

__all__ = ["check_rescale", "to_grey", "to_uint8"]

# ITU-R 601-2 as Pillow has it, in 65536ths; they add up to 1, so that grey stays the grey it is
_WEIGHTS = np.array([19595, 38470, 7471]) / 65536


def check_rescale(rescale: Sequence[float] | None) -> tuple[float, float] | None:
    """Return a fixed grey range as two numbers, or None for each image's own.

    Raises:
        KWTLError: when it is not two finite numbers, the lower first.
    """
    if rescale is None:
        return None
    try:
        low, high = (float(value) for value in rescale)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (low < high and np.isfinite([low, high]).all()):
        raise KWTLError(f"rescale must be two grey values [low, high], low below high, got {rescale!r}.")
    return low, high


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return the luminance, L = 0.299 R + 0.587 G + 0.114 B (ITU-R 601-2).

    Args:
        pixels: (H, W), or (H, W, 3).

    Returns:
        (H, W): grey as it came; of uint8 colour exactly what Pillow's ``convert("L")`` gives; else float64.
    """
    if pixels.ndim == 2:
        return pixels
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return pixels @ _WEIGHTS


def to_uint8(grey: np.ndarray, rescale: Sequence[float] | None = None) -> np.ndarray:
    """Convert grey values to 8 bit: uint8 as it is, all else 255 (x - low) / (high - low), clipped and rounded.

    Args:
        grey: finite real numbers of any type, any shape.
        rescale: (low, high); None takes the smallest and the largest value of the image.

    Returns:
        uint8, same shape; 0 for a constant image without ``rescale``.
    """
    if grey.dtype == np.uint8:
        return grey
    values = grey.astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if rescale is None else rescale
    if low == high:
        return np.zeros(values.shape, dtype=np.uint8)
    if max(abs(low), abs(high)) > 1e300:  # 255 times that would be infinite
        values, low, high = values / 1e10, low / 1e10, high / 1e10
    np.clip(values, low, high, out=values)
    values -= low
    values *= 255  # before the division: integers of up to 45 bits stay exact, and so do ties
    values /= high - low
    return np.rint(values, out=values).astype(np.uint8)

"""Photometric augmentation: what another exposure, stain or focus would have made of a crop."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["BLUR", "BRIGHTNESS", "CONTRAST", "GAMMA", "NOISE", "photometric"]

BRIGHTNESS = (0.8, 1.25)  # factor of the grey values
CONTRAST = (0.7, 1.4)  # factor of their distance from the mean of the crop
GAMMA = (0.7, 1.4)  # exponent of grey values in [0, 1]
NOISE = (0.0, 10.0)  # standard deviation of Gaussian noise, in grey levels
BLUR = (0.3, 1.2)  # standard deviation of a Gaussian blur, in pixels


def _between(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """Draw log-uniformly: halving is as likely as doubling."""
    return float(np.exp(rng.uniform(*np.log(limits))))


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change grey values at random, in mild ways that leave the label as it is.

    In this order ``x <- b x``, ``x <- m + c (x - m)`` with m the mean of the crop, ``x <- 255 (x / 255)^g``, each
    clipped to [0, 255]; and then, with a chance of a third each, Gaussian noise, Gaussian blur or neither. b, c and g
    are log-uniform in ``BRIGHTNESS``, ``CONTRAST`` and ``GAMMA``; the noise is uniform in ``NOISE``, the blur in
    ``BLUR``. What is drawn does not depend on the image.

    Args:
        image: uint8 (H, W).
        rng: of the crop.

    Returns:
        uint8 (H, W), a new array.
    """
    brightness, contrast, gamma = (_between(rng, limits) for limits in (BRIGHTNESS, CONTRAST, GAMMA))
    further = int(rng.integers(3))
    x = np.clip(image.astype(np.float32) * np.float32(brightness), 0, 255)
    mean = x.mean()
    x = np.clip(mean + np.float32(contrast) * (x - mean), 0, 255)
    x = 255 * (x / 255) ** np.float32(gamma)
    if further == 0:
        x = x + np.float32(rng.uniform(*NOISE)) * rng.standard_normal(x.shape, dtype=np.float32)
    elif further == 1:
        x = ndimage.gaussian_filter(x, rng.uniform(*BLUR), mode="nearest")
    return np.rint(np.clip(x, 0, 255)).astype(np.uint8)

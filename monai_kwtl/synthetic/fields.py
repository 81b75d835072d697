"""Random fields and the light path: smooth noise, fibres, uneven light, focus, shot and read noise."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

__all__ = ["coordinates", "expose", "fibrous", "smooth_noise"]


def coordinates(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of every pixel, float32, as arrays that broadcast to ``shape``."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return rows.astype(np.float32), columns.astype(np.float32)


def smooth_noise(
    shape: tuple[int, int], scale: float | tuple[float, float], rng: np.random.Generator, periodic: bool = False
) -> np.ndarray:
    """Make white noise after a Gaussian filter, scaled to mean 0 and standard deviation 1.

    The filter is applied in the Fourier domain, so that it takes the same time for every scale.

    Args:
        shape: rows and columns.
        scale: standard deviation of the Gaussian in pixels, or one for rows and one for columns.
        rng: random generator.
        periodic: opposite edges continue each other (else the field is cut from a larger one).

    Returns:
        float32 array of that shape.
    """
    sigmas = np.broadcast_to(np.asarray(scale, dtype=np.float32), (2,))
    rows, columns = shape
    if not periodic:
        rows, columns = (
            fft.next_fast_len(n + int(min(3 * sigma, n)), real=True) for n, sigma in zip(shape, sigmas, strict=True)
        )
    spectrum = fft.rfft2(rng.standard_normal((rows, columns), dtype=np.float32))
    decay = [
        np.exp(-2 * (np.pi * sigma * frequency.astype(np.float32)) ** 2)
        for sigma, frequency in zip(sigmas, (fft.fftfreq(rows), fft.rfftfreq(columns)), strict=True)
    ]
    spectrum *= decay[0][:, None] * decay[1]
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=(rows, columns))
    field /= max(float(field.std()), 1e-12)
    return field[: shape[0], : shape[1]]


def fibrous(
    shape: tuple[int, int], length: float, width: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw wavy bundles of fibres, as in connective tissue.

    Noise that is smooth along one axis is looked up at turned and smoothly displaced positions.

    Args:
        shape: rows and columns.
        length: length of the fibres in pixels.
        width: their width in pixels.
        rng: random generator.

    Returns:
        The fibres (mean about 0, standard deviation about 1), and the angle of their direction against the columns'
        axis in radians; both float32.
    """
    rows, columns = coordinates(shape)
    turn = rng.uniform(0, np.pi)
    along = columns * np.cos(turn) + rows * np.sin(turn)
    across = rows * np.cos(turn) - columns * np.sin(turn)
    across += 1.2 * length * smooth_noise(shape, 2.5 * length, rng)
    slope_y, slope_x = np.gradient(across)
    across += 0.08 * length * smooth_noise(shape, length / 5, rng)  # crimp
    canvas = smooth_noise((512, 512), (width / 2, length / 2), rng, periodic=True)
    field = ndimage.map_coordinates(canvas, [across, along], order=1, mode="grid-wrap", output=np.float32)
    return field, np.arctan2(-slope_x, slope_y).astype(np.float32)


def uneven_light(shape: tuple[int, int], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Make an illumination that falls off from a centre and is tilted, mean 1.

    Args:
        shape: rows and columns.
        strength: about the relative difference of the brightest and the darkest place, in [0, 1].
        rng: random generator.

    Returns:
        Positive float32 array of that shape.
    """
    rows, columns = coordinates(shape)
    y = 2 * rows / max(shape[0] - 1, 1) - 1 - rng.uniform(-0.6, 0.6)
    x = 2 * columns / max(shape[1] - 1, 1) - 1 - rng.uniform(-0.6, 0.6)
    turn = rng.uniform(0, 2 * np.pi)
    light = -rng.uniform(0.2, 1) * (x**2 + y**2) / 2 + 0.6 * (x * np.cos(turn) + y * np.sin(turn))
    light = np.exp(strength * (light - light.mean()) / max(float(np.ptp(light)), 1e-6))
    return (light / light.mean()).astype(np.float32)


def expose(
    scene: np.ndarray,
    difficulty: float,
    rng: np.random.Generator,
    photons: tuple[float, float] = (1500, 60),
    additive: bool = False,
) -> np.ndarray:
    """Take the picture: focus, contrast, uneven light, shot noise and read noise, 8 bit.

    With the difficulty, the point spread function widens (standard deviation 0.7 to about 2.2 pixels), contrast falls
    by 45 %, light gets less even, and photons get fewer: the contrast-to-noise ratio falls.

    Args:
        scene: intensities in units of full scale, float32, shape (height, width).
        difficulty: 0 is easy, 1 is hard.
        rng: random generator.
        photons: photons of a pixel at full scale, in an easy and in a hard image.
        additive: the scene shines by itself (fluorescence): contrast is lost against its darkest part, not its median.

    Returns:
        uint8 array of the same shape.
    """
    focus = 0.7 + 1.5 * difficulty * rng.uniform(0.3, 1)
    ground = np.percentile(scene, 5 if additive else 50)
    seen = ground + (ndimage.gaussian_filter(scene, focus, mode="nearest") - ground) * (1 - 0.45 * difficulty)
    seen = seen * uneven_light(scene.shape, (0.05 + 0.6 * difficulty) * rng.uniform(0.3, 1), rng)
    scale = photons[0] * (photons[1] / photons[0]) ** difficulty
    counts = rng.poisson(scale * np.clip(seen, 0, 1.5)) + rng.normal(0, 1.5 + 1.5 * difficulty, scene.shape)
    return np.rint(255 * np.clip(counts / scale, 0, 1)).astype(np.uint8)

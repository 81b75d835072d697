"""Auto-contrast of every window by itself, from a few contrasts of the whole image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from monai_kwtl.readers.slides import ImageInMemory, Slide, bands
from monai_kwtl.windows.blocks import BlockReduction, window_extremes
from monai_kwtl.windows.grid import WindowGrid

__all__ = ["ContrastLevels", "levels_between", "window_ranges"]


def window_ranges(image: ImageInMemory | Slide, grid: WindowGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest grey value inside each window, float64, shape (len(grid),) each."""
    ends = [(np.minimum, np.inf), (np.maximum, -np.inf)]
    blocks = [BlockReduction(grid, operation, start) for operation, start in ends]
    for rows in bands(image.height, image.width):
        columns = slice(0, image.width)
        grey = image.read(rows, columns)[0, 0].cpu().numpy()
        for reduction in blocks:
            reduction.add(rows, columns, grey)
    low, high = (window_extremes(grid, c.blocks, operation) for c, (operation, _) in zip(blocks, ends, strict=True))
    return low, high


def levels_between(values: np.ndarray, spacing: float) -> np.ndarray:
    """Return evenly spaced levels from the smallest to the largest value, at most ``spacing`` apart."""
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high, 1 + int(np.ceil((high - low) / spacing))) if high > low else np.array([low])


class ContrastLevels:
    """The ranges of grey values of an image's windows, as weighted means of a few ranges.

    The auto-contrast view of a window depends on its image only by the window's smallest and largest grey value (l, h).
    Scores are computed for a few values of each, and those of a window interpolated between the four nearest pairs,
    linearly in l and in h. Where all windows have the range of the image, that is the one pair.

    Args:
        low: smallest grey value of each window.
        high: largest grey value of each window, same shape.
        spacing: how far levels are apart at most, in grey levels; with 1 or less, ranges of whole numbers are exact.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, spacing: float = 16.0) -> None:
        lows, highs = levels_between(low, spacing), levels_between(high, spacing)
        weights = _linear(low, lows)[:, None, :] * _linear(high, highs)[None, :, :]
        weights = weights.reshape(-1, len(low))
        used = weights.any(axis=1)
        pairs = [(float(a), float(b)) for a in lows for b in highs]
        self.pairs = [pair for pair, enabled in zip(pairs, used, strict=True) if enabled]
        self.weights = weights[used]

    def needed(self, grid: WindowGrid) -> Callable[[int, slice, slice], bool]:
        """Return True if a window that counts on a pair, by its number, has pixels in a rectangle."""
        height, width = grid.size
        y, x = grid.y, grid.x
        users = [np.flatnonzero(weights) for weights in self.weights]

        def is_needed(pair: int, rows: slice, columns: slice) -> bool:
            of = users[pair]
            across = (x[of] < columns.stop) & (x[of] + width > columns.start)
            return bool(((y[of] < rows.stop) & (y[of] + height > rows.start) & across).any())

        return is_needed


def _linear(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the weights of the levels, shape (levels, values), with which their mean is each value."""
    return np.stack([np.interp(values, levels, np.eye(len(levels))[level]) for level in range(len(levels))])

"""The grid of windows over an image, and exact window sums of a map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from monai_kwtl.errors import KWTLError

__all__ = ["WindowGrid", "rectangle_sums", "window_starts"]


def rectangle_sums(blocks: np.ndarray, spans: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Sum rectangles of an array by an integral image in float64.

    Args:
        blocks: shape (..., rows, columns).
        spans: first row and row after the last of each row of rectangles, then the same of columns.

    Returns:
        Sums, float64, shape (..., len(spans[0]), len(spans[2])).
    """
    top, bottom, left, right = spans
    integral = np.zeros((*blocks.shape[:-2], blocks.shape[-2] + 1, blocks.shape[-1] + 1))
    integral[..., 1:, 1:] = blocks.cumsum(axis=-2).cumsum(axis=-1)
    rows = integral[..., bottom, :] - integral[..., top, :]
    return rows[..., right] - rows[..., left]


def window_starts(length: int, window: int, step: int) -> np.ndarray:
    """Return the first pixel of each window along one axis.

    Starts are the multiples of ``step``; the last window is moved to be flush with the edge, and one more is added
    where that move would leave pixels uncovered. An axis no longer than the window has one window, of its own length.

    Args:
        length: pixels of the axis, at least 1.
        window: pixels of the window.
        step: pixels between starts, at least 1.

    Returns:
        Increasing starts, int64.
    """
    if length <= window:
        return np.zeros(1, dtype=np.int64)
    last = length - window
    starts = np.arange(0, last + 1, step, dtype=np.int64)
    if starts[-1] != last:
        uncovered = len(starts) < 2 or last - starts[-2] > window
        starts = np.append(starts if uncovered else starts[:-1], last)
    return starts


@dataclass(frozen=True)
class WindowGrid:
    """Overlapping windows of one size over an image, and the blocks that their edges cut the image into.

    Every window is a union of blocks, so sums over windows, and over what is left of a window when others are taken
    away, follow exactly from the sums over blocks; the map itself need not be kept.

    Args:
        height: rows of the image.
        width: columns of the image.
        window: rows and columns of a window; a shorter side of the image shortens the window.
        step: pixels between windows.

    Raises:
        KWTLError: when a size is not a positive whole number.
    """

    height: int
    width: int
    window: int = 256
    step: int = 30

    def __post_init__(self) -> None:
        for name in ("height", "width", "window", "step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise KWTLError(f"{name} must be a whole number of pixels, at least 1, got {value!r}.")

    @cached_property
    def rows(self) -> np.ndarray:
        """Top row of each row of windows, increasing."""
        return window_starts(self.height, self.window, self.step)

    @cached_property
    def columns(self) -> np.ndarray:
        """Left column of each column of windows, increasing."""
        return window_starts(self.width, self.window, self.step)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every window, in pixels."""
        return min(self.window, self.height), min(self.window, self.width)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def y(self) -> np.ndarray:
        """Top row of each window, row-major order."""
        return np.repeat(self.rows, len(self.columns))

    @property
    def x(self) -> np.ndarray:
        """Left column of each window, row-major order."""
        return np.tile(self.columns, len(self.rows))

    @cached_property
    def row_edges(self) -> np.ndarray:
        """Rows at which a window starts or ends: the horizontal edges of the blocks."""
        return np.unique(np.concatenate([self.rows, self.rows + self.size[0]]))

    @cached_property
    def column_edges(self) -> np.ndarray:
        """Columns at which a window starts or ends: the vertical edges of the blocks."""
        return np.unique(np.concatenate([self.columns, self.columns + self.size[1]]))

    @cached_property
    def spans(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """First and last-plus-one block of each row of windows, then of each column of windows."""
        bottom, right = self.rows + self.size[0], self.columns + self.size[1]
        return (
            np.searchsorted(self.row_edges, self.rows),
            np.searchsorted(self.row_edges, bottom),
            np.searchsorted(self.column_edges, self.columns),
            np.searchsorted(self.column_edges, right),
        )

    def block_areas(self) -> np.ndarray:
        """Return the pixels of each block, float64, shape (block rows, block columns)."""
        return np.outer(np.diff(self.row_edges), np.diff(self.column_edges)).astype(np.float64)

    def block_sums(self, values: np.ndarray) -> np.ndarray:
        """Sum a map over every block, in float64.

        Args:
            values: map of shape (..., height, width), any real type.

        Returns:
            Sums, float64, shape (..., block rows, block columns).
        """
        values = np.asarray(values)
        if values.shape[-2:] != (self.height, self.width):
            raise ValueError(f"the map is {values.shape[-2:]}, the grid is for {(self.height, self.width)}.")
        rows = np.add.reduceat(values, self.row_edges[:-1], axis=-2, dtype=np.float64)
        return np.add.reduceat(rows, self.column_edges[:-1], axis=-1)

    def window_sums(self, blocks: np.ndarray) -> np.ndarray:
        """Sum blocks over every window by an integral image in float64.

        Args:
            blocks: sums over blocks, shape (..., block rows, block columns).

        Returns:
            Sums, float64, shape (..., window rows, window columns).
        """
        return rectangle_sums(blocks, self.spans)

    def window_means(self, blocks: np.ndarray) -> np.ndarray:
        """Return the mean of a map over every window, from its sums over blocks.

        Args:
            blocks: sums over blocks, shape (..., block rows, block columns).

        Returns:
            Means, float64, row-major, shape (..., len(self)).
        """
        sums = self.window_sums(blocks) / (self.size[0] * self.size[1])
        return sums.reshape(*blocks.shape[:-2], len(self))

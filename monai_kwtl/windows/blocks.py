"""Sums, minima and maxima over the blocks of a window grid, of a map that comes a rectangle at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from monai_kwtl.windows.grid import WindowGrid

__all__ = ["BlockReduction", "blocks_of", "window_extremes"]


class BlockReduction:
    """Reduces a map to the blocks of a grid; the map itself is never there as a whole.

    Args:
        grid: whose blocks are meant.
        operation: ``np.add``, ``np.minimum`` or ``np.maximum``.
        start: what a block holds before anything is added.
    """

    def __init__(self, grid: WindowGrid, operation: np.ufunc = np.add, start: float = 0.0) -> None:
        self.grid, self.operation = grid, operation
        self.blocks = np.full((len(grid.row_edges) - 1, len(grid.column_edges) - 1), start)

    def add(self, rows: slice, columns: slice, values: np.ndarray) -> None:
        """Take in a rectangle of the map.

        Args:
            rows: of the rectangle in the map, with start and stop.
            columns: likewise.
            values: shape (rows, columns), any real type; summed in float64.
        """
        where, cuts = zip(
            *(
                blocks_of(edges, part)
                for edges, part in ((self.grid.row_edges, rows), (self.grid.column_edges, columns))
            ),
            strict=True,
        )
        dtype = np.float64 if self.operation is np.add else None
        # of rows first, a strip at a time: reduceat along them takes fifteen times as long
        strips = [self.operation.reduce(values[a:b], axis=0, dtype=dtype) for a, b in pairwise([*cuts[0], len(values)])]
        reduced = self.operation.reduceat(np.stack(strips), cuts[1], axis=1)
        self.blocks[where] = self.operation(self.blocks[where], reduced)


def blocks_of(edges: np.ndarray, part: slice) -> tuple[slice, np.ndarray]:
    """Return the blocks along one axis that a part of it touches, and where in the part each of them begins."""
    first = int(np.searchsorted(edges, part.start, side="right")) - 1
    last = int(np.searchsorted(edges, part.stop, side="left"))
    return slice(first, last), np.maximum(edges[first:last], part.start) - part.start


def window_extremes(grid: WindowGrid, blocks: np.ndarray, operation: np.ufunc) -> np.ndarray:
    """Return the smallest or largest value inside each window.

    Args:
        grid: the windows.
        blocks: smallest or largest value of each block.
        operation: ``np.minimum`` or ``np.maximum``.

    Returns:
        float64, row-major, shape (len(grid),).
    """
    top, bottom, left, right = grid.spans
    rows = np.stack([operation.reduce(blocks[a:b], axis=0) for a, b in zip(top, bottom, strict=True)])
    return np.stack([operation.reduce(rows[:, a:b], axis=1) for a, b in zip(left, right, strict=True)], 1).ravel()

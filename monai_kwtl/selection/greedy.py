"""Taking windows one after the other: what all strategies share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from monai_kwtl.windows.grid import rectangle_sums
from monai_kwtl.windows.scores import ImageScores, flat_windows, free_windows

__all__ = ["Coverage", "TIE", "first_of_best", "ranked", "take_apart", "take_in_order"]

TIE = 1e-6  # of the largest value: what is nearer counts as equal, for which is larger changes with the processor


def first_of_best(values: np.ndarray, scale: float | None = None) -> int:
    """Return the number of the largest value, of equal ones the first.

    Args:
        values: shape (N,), N > 0; the largest is finite.
        scale: values that are within :data:`TIE` of it of the largest one count as equal; None: that of the largest.
    """
    top = int(values.argmax())
    largest = float(values[top])
    return int((values[: top + 1] >= largest - TIE * abs(largest if scale is None else scale)).argmax())


def ranked(values: np.ndarray) -> np.ndarray:
    """Return the numbers of values by falling value, equal ones by rising number.

    Values count as equal to the largest one not yet ranked where they are within :data:`TIE` of the largest of all.

    Args:
        values: finite, shape (N,).

    Returns:
        int64, shape (N,), each number once.
    """
    order = np.argsort(-values, kind="stable")
    rising, apart, done = -values[order], TIE * float(np.abs(values).max(initial=0.0)), 0
    for first in np.flatnonzero(np.diff(rising) <= apart):  # all others stand alone
        if first >= done:
            done = int(np.searchsorted(rising, rising[first] + apart, side="right"))
            order[first:done].sort()
    return order


class Coverage:
    """Covered part of a pool: new pixels and left-over score of each window, up to date as windows are taken."""

    def __init__(self, pool: Sequence[ImageScores], with_scores: bool = False) -> None:
        self.pool = pool
        self.pixels = 0.0
        self._areas: dict[int, np.ndarray] = {}
        self.blocks = [self._left_over(image) for image in pool] if with_scores else []
        self.gains = [i.grid.window_sums(c).reshape(-1) for i, c in zip(pool, self.blocks, strict=bool(with_scores))]
        for image, gains in enumerate(self.gains):
            if pool[image].covered is not None:
                gains[pool[image].grid.window_sums(self._area(image)).reshape(-1) == 0] = -np.inf

    @staticmethod
    def _left_over(image: ImageScores) -> np.ndarray:
        """Sum the score map over blocks, less the covered fraction; within a block the score is even."""
        blocks = image.blocks.astype(np.float64)
        return blocks if image.covered is None else blocks * (1.0 - image.covered / image.grid.block_areas())

    def _where(self, image: int, window: int) -> tuple[slice, slice]:
        grid = self.pool[image].grid
        row, column = divmod(window, len(grid.columns))
        top, bottom, left, right = grid.spans
        return slice(top[row], bottom[row]), slice(left[column], right[column])

    def _area(self, image: int) -> np.ndarray:
        if image not in self._areas:
            covered = self.pool[image].covered
            self._areas[image] = self.pool[image].grid.block_areas() - (0.0 if covered is None else covered)
        return self._areas[image]

    def new_pixels(self, image: int, window: int) -> float:
        """Return the pixels of a window that are not covered."""
        return float(self._area(image)[self._where(image, window)].sum())

    def new_pixels_of_all(self, image: int) -> np.ndarray:
        """Return the new pixels of every window of an image, float64, row-major."""
        return self.pool[image].grid.window_sums(self._area(image)).reshape(-1).round()

    def take(self, image: int, window: int) -> None:
        """Cover a window."""
        where = self._where(image, window)
        self.pixels += self.new_pixels(image, window)
        self._area(image)[where] = 0.0
        if self.blocks:
            self.blocks[image][where] = 0.0
            self._update(image, window)

    def _update(self, image: int, window: int) -> None:
        """Recompute the gains of the windows that overlap the one taken; one with nothing new to it leaves the race."""
        grid = self.pool[image].grid
        top, bottom, left, right = grid.spans
        rows, columns = self._where(image, window)
        r0, r1 = np.searchsorted(bottom, rows.start, side="right"), np.searchsorted(top, rows.stop, side="left")
        c0, c1 = np.searchsorted(right, columns.start, side="right"), np.searchsorted(left, columns.stop, side="left")
        block = slice(top[r0], bottom[r1 - 1]), slice(left[c0], right[c1 - 1])
        spans = (top[r0:r1] - top[r0], bottom[r0:r1] - top[r0], left[c0:c1] - left[c0], right[c0:c1] - left[c0])
        both = np.stack([self.blocks[image][block], self._area(image)[block]])
        sums, areas = rectangle_sums(both, spans)
        gains = self.gains[image].reshape(len(grid.rows), len(grid.columns))[r0:r1, c0:c1]
        gains[...] = np.where((areas > 0) & (gains > -np.inf), sums, -np.inf)


def take_in_order(pool: Sequence[ImageScores], order: np.ndarray, windows: int, pixels: float) -> list[int]:
    """Take windows in the given order while the budget lasts; with a pixel budget, what does not fit is skipped.

    Windows that overlap what is labelled or assigned already are left out.
    """
    order = order[free_windows(pool)[order]]
    if pixels == np.inf:
        return [int(i) for i in order[:windows]]
    images, indices = flat_windows(pool)
    covered, chosen = Coverage(pool), []
    for flat in order:
        image, window = images[flat], indices[flat]
        new = covered.new_pixels(image, window)
        if new and covered.pixels + new <= pixels:
            covered.take(image, window)
            chosen.append(int(flat))
            if covered.pixels == pixels:
                break
    return chosen


def take_apart(
    pool: Sequence[ImageScores], windows: int, pixels: float, best: Callable[[np.ndarray], int]
) -> list[int]:
    """Take the best window again and again while the budget lasts, one that overlaps none before while there is one.

    When every window overlaps one that was taken, or no whole one fits into the budget of pixels any more, what is left
    of it goes to the best windows with something new to them that fit. Windows that overlap what is labelled or
    assigned already are left out.

    Args:
        pool: images.
        windows: largest number of windows.
        pixels: largest number of distinct pixels.
        best: from which windows may be taken, bool in the order of :func:`flat_windows`, at least one, to the number of
            the best of them, which then counts as taken.

    Returns:
        Numbers of the windows in the order in which they were taken.
    """
    images, indices = flat_windows(pool)
    free, covered, chosen = free_windows(pool), Coverage(pool), []
    apart = free.copy()
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    new = np.concatenate([np.full(len(i.grid), float(i.grid.size[0] * i.grid.size[1])) for i in pool])
    while len(chosen) < windows and covered.pixels < pixels:
        fits = free & (new > 0) & (covered.pixels + new <= pixels)
        wanted = fits & apart
        if not wanted.any():
            wanted = fits
        if not wanted.any():
            break
        flat = int(best(wanted))
        image, window = int(images[flat]), int(indices[flat])
        covered.take(image, window)
        chosen.append(flat)
        grid, own = pool[image].grid, slice(offsets[image], offsets[image + 1])
        near = (abs(grid.y - grid.y[window]) < grid.size[0]) & (abs(grid.x - grid.x[window]) < grid.size[1])
        apart[own] &= ~near
        new[own] = covered.new_pixels_of_all(image)
    return chosen

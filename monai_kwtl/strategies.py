"""Strategies: from the window scores of a pool and a budget to the windows to label, as pure functions."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.windows import WindowGrid, block_sums

__all__ = ["STRATEGIES", "ImageScores", "flat_windows"]


@dataclass(frozen=True)
class ImageScores:
    """Window scores of one image of the pool.

    Args:
        name: of the image, relative to the data set.
        page: of a multi-page file, from 0; None for a file of one image.
        sha256: of the file.
        grid: the windows.
        window_scores: mean score of each window, float64, shape (len(grid),), row-major.
        cells: sums of the score map over the grid's cells, or None where windows were scored one by one.
        foreground: predicted foreground fraction of each window, shape (len(grid),), in [0, 1].
        covered: pixels of each cell that are labelled or handed out already, shape of ``cells``; None: none are.
    """

    name: str
    page: int | None
    sha256: str
    grid: WindowGrid
    window_scores: np.ndarray
    cells: np.ndarray | None = None
    foreground: np.ndarray | None = None
    covered: np.ndarray | None = None

    @property
    def free(self) -> np.ndarray:
        """Whether each window shares no pixel with what is covered, bool, shape (len(grid),)."""
        if self.covered is None:
            return np.ones(len(self.grid), dtype=bool)
        return self.grid.window_sums(self.covered).reshape(-1) < 0.5  # whole numbers, summed exactly

    @property
    def key(self) -> tuple[str, int]:
        """What images are ordered by: name, then page."""
        return self.name, -1 if self.page is None else self.page


class _Coverage:
    """What of a pool is covered: new pixels and left-over score of each window, up to date as windows are taken."""

    def __init__(self, pool: Sequence[ImageScores], with_scores: bool = False) -> None:
        self.pool = pool
        self.pixels = 0.0
        self._areas: dict[int, np.ndarray] = {}
        self.cells = [self._left_over(image) for image in pool] if with_scores else []
        self.gains = [i.grid.window_sums(c).reshape(-1) for i, c in zip(pool, self.cells, strict=bool(with_scores))]
        for image, gains in enumerate(self.gains):
            if pool[image].covered is not None:
                gains[pool[image].grid.window_sums(self._area(image)).reshape(-1) == 0] = -np.inf

    @staticmethod
    def _left_over(image: ImageScores) -> np.ndarray:
        """Sums of the score map over cells, less the share of what is covered; within a cell the score is even."""
        cells = image.cells.astype(np.float64)
        return cells if image.covered is None else cells * (1.0 - image.covered / image.grid.cell_areas())

    def _where(self, image: int, window: int) -> tuple[slice, slice]:
        grid = self.pool[image].grid
        row, column = divmod(window, len(grid.columns))
        top, bottom, left, right = grid.spans
        return slice(top[row], bottom[row]), slice(left[column], right[column])

    def _area(self, image: int) -> np.ndarray:
        if image not in self._areas:
            covered = self.pool[image].covered
            self._areas[image] = self.pool[image].grid.cell_areas() - (0.0 if covered is None else covered)
        return self._areas[image]

    def new_pixels(self, image: int, window: int) -> float:
        return float(self._area(image)[self._where(image, window)].sum())

    def take(self, image: int, window: int) -> None:
        where = self._where(image, window)
        self.pixels += self.new_pixels(image, window)
        self._area(image)[where] = 0.0
        if self.cells:
            self.cells[image][where] = 0.0
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
        both = np.stack([self.cells[image][block], self._area(image)[block]])
        sums, areas = block_sums(both, spans)
        gains = self.gains[image].reshape(len(grid.rows), len(grid.columns))[r0:r1, c0:c1]
        gains[...] = np.where((areas > 0) & (gains > -np.inf), sums, -np.inf)


def flat_windows(pool: Sequence[ImageScores]) -> tuple[np.ndarray, np.ndarray]:
    """Image index and window index of every window of the pool, images in the order given."""
    counts = [len(image.grid) for image in pool]
    return np.repeat(np.arange(len(pool)), counts), np.concatenate([np.arange(n) for n in counts])


def _take_in_order(pool: Sequence[ImageScores], order: np.ndarray, windows: int, pixels: float) -> list[int]:
    """Take windows in the given order while the budget lasts; with a pixel budget, what does not fit is skipped.

    Windows that overlap what is labelled or handed out already are left out.
    """
    order = order[_free(pool)[order]]
    if pixels == np.inf:
        return [int(i) for i in order[:windows]]
    images, indices = flat_windows(pool)
    covered, chosen = _Coverage(pool), []
    for flat in order:
        image, window = images[flat], indices[flat]
        new = covered.new_pixels(image, window)
        if new and covered.pixels + new <= pixels:
            covered.take(image, window)
            chosen.append(int(flat))
            if covered.pixels == pixels:
                break
    return chosen


def _free(pool: Sequence[ImageScores]) -> np.ndarray:
    return np.concatenate([image.free for image in pool])


def _top_k(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """The windows of highest mean score (the paper's choice)."""
    scores = np.concatenate([image.window_scores for image in pool])
    return _take_in_order(pool, np.argsort(-scores, kind="stable"), windows, pixels)


def _coverage(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Greedily the window with the largest sum of score that no window taken before covers.

    What is labelled or handed out already counts as covered from the start.
    """
    if any(image.cells is None for image in pool):
        raise KWTLError("strategy 'coverage' needs score maps; exact scoring has none: use --exact false or top_k.")
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    covered, chosen = _Coverage(pool, with_scores=True), []
    # one entry an image, its best window: only the image last touched has to be looked at again
    heap = [(-gain.max(), image) for image, gain in enumerate(covered.gains)]
    heapq.heapify(heap)
    while heap and len(chosen) < windows:
        negative, image = heapq.heappop(heap)
        if negative == np.inf:
            break
        window = int(covered.gains[image].argmax())
        if covered.pixels + covered.new_pixels(image, window) <= pixels:
            covered.take(image, window)
            chosen.append(int(offsets[image] + window))
        covered.gains[image][window] = -np.inf
        heapq.heappush(heap, (-covered.gains[image].max(), image))
    return chosen


def _random(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Windows drawn uniformly without replacement."""
    return _take_in_order(pool, rng.permutation(sum(len(image.grid) for image in pool)), windows, pixels)


def _stratified_random(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Images in random order, a random window of each in turn, until the budget is spent."""
    images, _ = flat_windows(pool)
    shuffled = rng.permutation(len(images))
    shuffled = shuffled[_free(pool)[shuffled]]
    turn = np.full(len(images), len(images))  # how many windows of its image come before a window
    for image in range(len(pool)):
        mine = shuffled[images[shuffled] == image]
        turn[mine] = np.arange(len(mine))
    order = np.lexsort((rng.permutation(len(pool))[images], turn))
    return _take_in_order(pool, order, windows, pixels)


def _strided(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Windows evenly spaced in the order of image, row, column."""
    images, _ = flat_windows(pool)
    areas = np.array([image.grid.size[0] * image.grid.size[1] for image in pool])
    fitting = np.flatnonzero((areas[images] <= pixels) & _free(pool))
    if pixels < np.inf:
        windows = max(1, int(pixels // areas[areas <= pixels].mean()))
    windows = min(windows, len(fitting))
    order = fitting[((np.arange(windows) + 0.5) * len(fitting) / windows).astype(np.int64)]
    return _take_in_order(pool, order, windows, pixels)


def _foreground_random(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Windows drawn without replacement, with probability proportional to the predicted foreground fraction.

    Drawn by the Gumbel top-k rule: the order of ``log(p) + Gumbel`` is that of successive weighted draws.
    """
    if any(image.foreground is None for image in pool):
        raise KWTLError("strategy 'foreground_random' needs the predicted foreground of every window.")
    foreground = np.concatenate([image.foreground for image in pool])
    keys = np.log(np.maximum(foreground, 1e-9)) + rng.gumbel(size=len(foreground))
    return _take_in_order(pool, np.argsort(-keys, kind="stable"), windows, pixels)


STRATEGIES: dict[str, Callable[[Sequence[ImageScores], int, float, np.random.Generator], list[int]]] = {
    "top_k": _top_k,
    "coverage": _coverage,
    "random": _random,
    "stratified_random": _stratified_random,
    "strided": _strided,
    "foreground_random": _foreground_random,
}

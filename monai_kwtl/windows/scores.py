"""Scores and features of the windows of an image, and which are covered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monai_kwtl.windows.grid import WindowGrid

__all__ = ["ImageScores", "flat_windows", "free_windows"]


@dataclass(frozen=True)
class ImageScores:
    """Window scores of one image of the pool.

    Args:
        name: of the image, relative to the data set.
        page: of a multi-page file, from 0; None for a file of one image.
        sha256: of the file.
        grid: the windows.
        window_scores: mean score of each window, float64, shape (len(grid),), row-major.
        blocks: sums of the score map over the grid's blocks, or None where windows were scored one by one.
        foreground: predicted foreground fraction of each window, shape (len(grid),), in [0, 1].
        covered: pixels of each block that are labelled or assigned already, shape of ``blocks``; None: none are.
        foreground_scores: part of each window's mean score that lies on predicted foreground: the mean of score times
            probability, shape (len(grid),).
        features: of each window, shape (len(grid), D), as :mod:`monai_kwtl.scoring.features` makes them.
    """

    name: str
    page: int | None
    sha256: str
    grid: WindowGrid
    window_scores: np.ndarray
    blocks: np.ndarray | None = None
    foreground: np.ndarray | None = None
    covered: np.ndarray | None = None
    foreground_scores: np.ndarray | None = None
    features: np.ndarray | None = None

    @property
    def free(self) -> np.ndarray:
        """Windows that share no pixel with what is covered, bool, shape (len(grid),)."""
        if self.covered is None:
            return np.ones(len(self.grid), dtype=bool)
        return self.grid.window_sums(self.covered).reshape(-1) < 0.5  # whole numbers, summed exactly

    @property
    def key(self) -> tuple[str, int]:
        """Sort key of images: name, then page."""
        return self.name, -1 if self.page is None else self.page


def flat_windows(pool: Sequence[ImageScores]) -> tuple[np.ndarray, np.ndarray]:
    """Return image index and window index of every window of the pool, images in the order given."""
    counts = [len(image.grid) for image in pool]
    return np.repeat(np.arange(len(pool)), counts), np.concatenate([np.arange(n) for n in counts])


def free_windows(pool: Sequence[ImageScores]) -> np.ndarray:
    """Return which windows share no pixel with what is covered, bool, in the order of :func:`flat_windows`."""
    return np.concatenate([image.free for image in pool])

"""Random windows that are drawn until they are like the pool: rerandomisation, by what the network sees in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_kwtl.feature_strategies import features_of, mostly_covered, principal_components
from monai_kwtl.taking import ImageScores, take_apart

__all__ = ["balanced", "covariates"]

DRAWS = 500  # sets of windows, of which the one most like the pool is taken
COMPONENTS = 8  # of the features


def covariates(pool: Sequence[ImageScores], components: int = COMPONENTS) -> np.ndarray:
    """What sets of windows are compared by: the main components of the latent, and the predicted foreground.

    Args:
        pool: images, with features.
        components: at most so many of the latent.

    Returns:
        float64, shape (all windows, at most ``components`` + 1), each column of mean 0 and standard deviation 1, or 0
        where it is the same for all.
    """
    columns = [principal_components(features_of(pool, "balanced"), components).astype(np.float64)]
    if all(image.foreground is not None for image in pool):
        columns.append(np.concatenate([image.foreground for image in pool])[:, None].astype(np.float64))
    values = np.concatenate(columns, axis=1)
    values -= values.mean(0)
    deviation = values.std(0)
    values[:, deviation < 1e-9] = 0.0
    return values / np.where(deviation < 1e-9, 1.0, deviation)


def _draw(
    pool: Sequence[ImageScores], free: Sequence[np.ndarray], windows: int, pixels: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Images in random order, a random window of each in turn that overlaps none before: (image, window)."""
    chosen: list[tuple[int, int]] = []
    taken: dict[int, list[int]] = {}
    spent, left = 0.0, [image for image in range(len(pool)) if len(free[image])]
    while left and len(chosen) < windows:
        further = []
        for image in rng.permutation(left)[: windows - len(chosen)].tolist():
            grid = pool[image].grid
            area = grid.size[0] * grid.size[1]
            if spent + area > pixels:
                continue
            candidates = free[image]
            for other in taken.get(image, ()):
                near = abs(grid.y[candidates] - grid.y[other]) < grid.size[0]
                near &= abs(grid.x[candidates] - grid.x[other]) < grid.size[1]
                candidates = candidates[~near]
            if not len(candidates):
                continue
            window = int(candidates[rng.integers(len(candidates))])
            taken.setdefault(image, []).append(window)
            chosen.append((image, window))
            spent += area
            further.append(image)
        left = further
    return chosen


def balanced(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Random windows, images in turn, drawn 500 times: the draw that is most like the whole pool is taken.

    Rerandomisation (Morgan and Rubin 2012). A draw is like the pool where the means of its windows' covariates
    (:func:`covariates`) are near to those of all windows, by the sum of squares of the differences in standard
    deviations. What is labelled or handed out already counts as drawn. Of the draw the windows come in an order in
    which the first ones are like the pool already. Drawn windows do not overlap; what is left of the budget then goes
    to the windows that keep the means nearest.
    """
    values = covariates(pool)
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    free = [np.flatnonzero(image.free) for image in pool]
    known = mostly_covered(pool)
    spent = sum(float(image.covered.sum()) for image in pool if image.covered is not None)
    before = spent / np.mean([image.grid.size[0] * image.grid.size[1] for image in pool]) if known.any() else 0.0
    total = before * values[known].mean(0) if known.any() else np.zeros(values.shape[1])

    best, least = [], np.inf
    for _ in range(DRAWS):
        drawn = [int(offsets[image]) + window for image, window in _draw(pool, free, windows, pixels, rng)]
        if not drawn:
            break  # the budget holds no whole window: all is left to the end
        distance = float((((total + values[drawn].sum(0)) / (before + len(drawn))) ** 2).sum())
        if distance < least:
            best, least = drawn, distance
    waiting = np.zeros(len(values), dtype=bool)
    waiting[best] = True

    def nearest(wanted: np.ndarray) -> int:
        numbers = np.flatnonzero(wanted & waiting)
        if not len(numbers):
            numbers = np.flatnonzero(wanted)
        chosen = int(numbers[((total + values[numbers]) ** 2).sum(1).argmin()])
        total[:] += values[chosen]
        waiting[chosen] = False
        return chosen

    return take_apart(pool, windows, pixels, nearest)

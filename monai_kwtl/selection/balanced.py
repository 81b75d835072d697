"""Random windows that are drawn until they are like the pool: rerandomisation, by what the network sees in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monai_kwtl.selection.diversity import (
    features_of,
    mostly_covered,
    nearest_of,
    pixels_covered,
    principal_components,
    window_area,
)
from monai_kwtl.selection.greedy import TIE, take_apart
from monai_kwtl.windows.scores import ImageScores

__all__ = ["balanced", "covariates"]

DRAWS = 500  # sets of windows, of which the one most like the pool is taken
COMPONENTS = 8  # of the features


def covariates(pool: Sequence[ImageScores], components: int = COMPONENTS) -> np.ndarray:
    """Return the features that sets of windows are compared by: latent components and predicted foreground.

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


class _Image(NamedTuple):
    free: np.ndarray  # numbers of the windows that may be drawn
    y: np.ndarray  # their places
    x: np.ndarray
    size: tuple[int, int]


def _images(pool: Sequence[ImageScores]) -> list[_Image]:
    images = []
    for image in pool:
        free = np.flatnonzero(image.free)
        images.append(_Image(free, image.grid.y[free], image.grid.x[free], image.grid.size))
    return images


def _draw(images: Sequence[_Image], windows: int, pixels: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw images in random order, from each in turn a random window that overlaps none before: (image, window)."""
    chosen: list[tuple[int, int]] = []
    apart: dict[int, np.ndarray] = {}  # which free windows of an image overlap none drawn
    spent, left = 0.0, [number for number, image in enumerate(images) if len(image.free)]
    while left and len(chosen) < windows:
        further = []
        for number in rng.permutation(left)[: windows - len(chosen)].tolist():
            image = images[number]
            height, width = image.size
            if spent + height * width > pixels:
                continue
            candidates = np.flatnonzero(apart[number]) if number in apart else None
            count = len(image.free) if candidates is None else len(candidates)
            if not count:
                continue
            drawn = int(rng.integers(count))
            place = drawn if candidates is None else int(candidates[drawn])
            far = (abs(image.y - image.y[place]) >= height) | (abs(image.x - image.x[place]) >= width)
            apart[number] = far & apart[number] if number in apart else far
            chosen.append((number, int(image.free[place])))
            spent += height * width
            further.append(number)
        left = further
    return chosen


def balanced(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Draw random windows, images in turn, 500 times, and take the draw that is most like the whole pool.

    Rerandomisation (Morgan and Rubin 2012). A draw is like the pool where the means of its windows' covariates
    (:func:`covariates`) are near to those of all windows, by the sum of squares of the differences in standard
    deviations. What is labelled or assigned already counts as drawn. Of the draw the windows come in an order in
    which the first ones are like the pool already. Drawn windows do not overlap; what is left of the budget then goes
    to the windows that keep the means nearest.
    """
    values = covariates(pool)
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    images = _images(pool)
    known = mostly_covered(pool)
    before = pixels_covered(pool) / window_area(pool) if known.any() else 0.0
    total = before * values[known].mean(0) if known.any() else np.zeros(values.shape[1])

    best, least = [], np.inf
    for _ in range(DRAWS):
        drawn = [int(offsets[image]) + window for image, window in _draw(images, windows, pixels, rng)]
        if not drawn:
            break  # the budget holds no whole window: all is left to the end
        distance = float((((total + values[drawn].sum(0)) / (before + len(drawn))) ** 2).sum())
        if distance < least - TIE:  # of draws that are as good the first
            best, least = drawn, distance
    waiting = np.zeros(len(values), dtype=bool)
    waiting[best] = True

    def nearest(wanted: np.ndarray) -> int:
        numbers = np.flatnonzero(wanted & waiting)
        if not len(numbers):
            numbers = np.flatnonzero(wanted)
        chosen = nearest_of(numbers, ((total + values[numbers]) ** 2).sum(1))
        total[:] += values[chosen]
        waiting[chosen] = False
        return chosen

    return take_apart(pool, windows, pixels, nearest)

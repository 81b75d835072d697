"""Strategies: from the window scores of a pool and a budget to the windows to label, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.balanced import balanced
from monai_kwtl.selection.diversity import herding, k_centre, typical
from monai_kwtl.selection.greedy import Coverage, first_of_best, ranked, take_apart, take_in_order
from monai_kwtl.windows.scores import ImageScores, flat_windows, free_windows

__all__ = ["FEATURE_STRATEGIES", "MAP_STRATEGIES", "STRATEGIES"]


def _top_k(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Choose the windows of highest mean score (the paper's choice)."""
    scores = np.concatenate([image.window_scores for image in pool])
    return take_in_order(pool, ranked(scores), windows, pixels)


def _coverage(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Greedily the window with the largest sum of score that no window taken before covers.

    What is labelled or assigned already counts as covered from the start.
    """
    if any(image.blocks is None for image in pool):
        raise KWTLError("strategy 'coverage' needs score maps; exact scoring has none: use --exact false or top_k.")
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    covered, chosen = Coverage(pool, with_scores=True), []
    best = np.array([gains.max() for gains in covered.gains])  # only that of the image last touched changes
    while len(chosen) < windows and best.max() > -np.inf:
        image = first_of_best(best)
        gains = covered.gains[image]
        window = first_of_best(gains)
        if covered.pixels + covered.new_pixels(image, window) <= pixels:
            covered.take(image, window)
            chosen.append(int(offsets[image] + window))
        gains[window] = -np.inf
        best[image] = gains.max()
    return chosen


def _random(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Draw windows uniformly without replacement."""
    return take_in_order(pool, rng.permutation(sum(len(image.grid) for image in pool)), windows, pixels)


def _stratified_random(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Draw images in random order, from each in turn a random window, until the budget is spent."""
    images, _ = flat_windows(pool)
    shuffled = rng.permutation(len(images))
    shuffled = shuffled[free_windows(pool)[shuffled]]
    turn = np.full(len(images), len(images))  # how many windows of its image come before a window
    for image in range(len(pool)):
        mine = shuffled[images[shuffled] == image]
        turn[mine] = np.arange(len(mine))
    order = np.lexsort((rng.permutation(len(pool))[images], turn))
    return take_in_order(pool, order, windows, pixels)


def _strided(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Take windows evenly spaced in the order of image, row, column."""
    images, _ = flat_windows(pool)
    areas = np.array([image.grid.size[0] * image.grid.size[1] for image in pool])
    fitting = np.flatnonzero((areas[images] <= pixels) & free_windows(pool))
    if pixels < np.inf:
        windows = max(1, int(pixels // areas[areas <= pixels].mean()))
    windows = min(windows, len(fitting))
    order = fitting[((np.arange(windows) + 0.5) * len(fitting) / windows).astype(np.int64)]
    return take_in_order(pool, order, windows, pixels)


def _foreground_random(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Draw windows without replacement, with probability proportional to the predicted foreground fraction.

    Drawn by the Gumbel top-k rule: the order of ``log(p) + Gumbel`` is that of successive weighted draws.
    """
    if any(image.foreground is None for image in pool):
        raise KWTLError("strategy 'foreground_random' needs the predicted foreground of every window.")
    foreground = np.concatenate([image.foreground for image in pool])
    keys = np.log(np.maximum(foreground, 1e-9)) + rng.gumbel(size=len(foreground))
    return take_in_order(pool, np.argsort(-keys, kind="stable"), windows, pixels)


def _first_of(order: np.ndarray) -> Callable[[np.ndarray], int]:
    return lambda wanted: int(order[wanted[order]][0])


def _power(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Draw windows with probability proportional to their score, none overlapping another while there are such.

    The power distribution of Kirsch et al. 2023 with exponent 1, drawn by the Gumbel top-k rule: a batch of the highest
    scores shows one thing many times.
    """
    scores = np.concatenate([image.window_scores for image in pool])
    keys = np.log(np.maximum(scores, 1e-30)) + rng.gumbel(size=len(scores))
    return take_apart(pool, windows, pixels, _first_of(np.argsort(-keys, kind="stable")))


def _two_thirds(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Take two windows by the score on predicted foreground, then one by that on background, and so on; apart."""
    if any(image.foreground_scores is None for image in pool):
        raise KWTLError("strategy 'two_thirds' needs score maps; exact scoring has none: use --exact false or top_k.")
    scores = np.concatenate([image.window_scores for image in pool])
    inside = np.concatenate([image.foreground_scores for image in pool])
    by_part = [_first_of(ranked(part)) for part in (inside, scores - inside)]
    count = 0

    def best(wanted: np.ndarray) -> int:
        nonlocal count
        count += 1
        return by_part[count % 3 == 0](wanted)

    return take_apart(pool, windows, pixels, best)


FEATURE_STRATEGIES = ("balanced", "herding", "typical", "k_centre")  # they need features of the windows
MAP_STRATEGIES = ("coverage", "two_thirds")  # they need score maps

STRATEGIES: dict[str, Callable[[Sequence[ImageScores], int, float, np.random.Generator], list[int]]] = {
    "top_k": _top_k,
    "coverage": _coverage,
    "random": _random,
    "stratified_random": _stratified_random,
    "strided": _strided,
    "foreground_random": _foreground_random,
    "power": _power,
    "two_thirds": _two_thirds,
    "balanced": balanced,
    "herding": herding,
    "typical": typical,
    "k_centre": k_centre,
}

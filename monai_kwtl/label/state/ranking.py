"""Ranking of what to label next, as pure functions of window scores, labels and what others are labelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.greedy import first_of_best, ranked
from monai_kwtl.selection.select import select_windows
from monai_kwtl.windows.box import Box, pixels_inside
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

__all__ = ["Pick", "best_images", "best_regions", "unscored", "without"]

MOSTLY_EXCLUDED = 0.5  # a window of which more is taken than this fraction is not offered
TOGETHER = 10  # windows that are compared with the pool together


class Pick(NamedTuple):
    """A region to label: which image of the pool, where, and its mean score over what is not yet taken."""

    image: int
    box: Box
    score: float | None


def unscored(item: Mapping[str, Any], window: int, step: int) -> ImageScores:
    """Return an image whose windows all have the score 0, for random choice."""
    grid = WindowGrid(item["height"], item["width"], window, step)
    blocks = np.zeros((len(grid.row_edges) - 1, len(grid.column_edges) - 1))
    return ImageScores(item["name"], item["page"], item["sha256"], grid, np.zeros(len(grid)), blocks)


def without(scores: ImageScores, boxes: Sequence[Box]) -> tuple[ImageScores, np.ndarray]:
    """Return scores without what lies in the boxes.

    A block of the grid that is taken in part keeps its score in proportion.

    Args:
        scores: with blocks.
        boxes: labelled, or being labelled.

    Returns:
        The scores, and for each window the fraction of it that is not taken.
    """
    grid = scores.grid
    if not boxes:
        return scores, np.ones(len(grid))
    free = grid.block_sums(~pixels_inside((grid.height, grid.width), boxes))
    blocks = scores.blocks * (free / grid.block_areas())
    fractions = (grid.window_sums(free) / (grid.size[0] * grid.size[1])).reshape(-1)
    return replace(scores, blocks=blocks, window_scores=grid.window_means(blocks)), fractions


def _allowed(pool: Sequence[ImageScores], excluded: Sequence[Sequence[Box]]) -> list[tuple[ImageScores, np.ndarray]]:
    return [without(scores, boxes) for scores, boxes in zip(pool, excluded, strict=True)]


def _box(scores: ImageScores, window: int) -> Box:
    height, width = scores.grid.size
    return Box(int(scores.grid.x[window]), int(scores.grid.y[window]), width, height)


def best_regions(
    pool: Sequence[ImageScores],
    excluded: Sequence[Sequence[Box]],
    count: int,
    strategy: str = "balanced",
    seed: int = 0,
) -> list[Pick]:
    """Return the next regions of a pool, best first.

    Regions are chosen by one of :data:`monai_kwtl.selection.STRATEGIES`, one after the other, each where it is not
    mostly taken, by those before it as well. ``balanced`` chooses among windows that nothing taken touches, where all
    scores have features; where none of those is left, or there are no features, ``coverage`` goes on.

    Args:
        pool: the images.
        excluded: boxes of each image.
        count: how many at most.
        strategy: ``balanced``, ``coverage``, or ``random``, for which scores need not mean anything.
        seed: of random choice.

    Returns:
        The picks; fewer than asked for where nothing else is left.
    """
    boxes = [list(one) for one in excluded]
    picks: list[Pick] = []
    if strategy == "balanced":
        strategy = "coverage"
        while further := _balanced(pool, boxes, seed)[: count - len(picks)]:
            picks += further
            for pick in further:
                boxes[pick.image].append(pick.box)
        if len(picks) == count:
            return picks
    left = _allowed(pool, boxes)
    if not any((fractions > MOSTLY_EXCLUDED).any() for _, fractions in left):
        return picks
    total = sum(len(scores.grid) for scores in pool)
    # coverage zeroes what it takes, so its order holds; of a random order windows that overlap are passed over
    asked = total if strategy == "random" else min(total, 4 * count + 16)
    for number, window in select_windows([scores for scores, _ in left], strategy, Budget(windows=asked), seed):
        scores, fractions = left[number]
        if fractions[window] > MOSTLY_EXCLUDED:
            box = _box(scores, window)
            picks.append(Pick(number, box, None if strategy == "random" else float(scores.window_scores[window])))
            boxes[number].append(box)
            left[number] = without(pool[number], boxes[number])
        if len(picks) == count:
            break
    return picks


def _balanced(pool: Sequence[ImageScores], excluded: Sequence[Sequence[Box]], seed: int) -> list[Pick]:
    """Return the next regions by ``balanced``, the same however many are asked for; none where all are touched."""
    if any(scores.features is None for scores in pool):
        return []
    covered = []
    for scores, boxes in zip(pool, excluded, strict=True):
        grid = scores.grid
        pixels = grid.block_sums(pixels_inside((grid.height, grid.width), boxes)) if boxes else None
        covered.append(replace(scores, covered=pixels))
    count = min(TOGETHER, sum(int(scores.free.sum()) for scores in covered))
    if not count:
        return []
    picks: list[Pick] = []
    for number, window in select_windows(covered, "balanced", Budget(windows=count), seed):
        box = _box(pool[number], window)
        if any(pick.image == number and _touch(pick.box, box) for pick in picks):
            break  # from here on they overlap
        picks.append(Pick(number, box, float(pool[number].window_scores[window])))
    return picks


def _touch(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def best_images(
    pool: Sequence[ImageScores],
    excluded: Sequence[Sequence[Box]],
    count: int,
    strategy: str = "coverage",
    seed: int = 0,
) -> list[Pick]:
    """Return the next images of a pool, each with its best region; an image counts for as much as that.

    Args:
        pool: as for :func:`best_regions`.
        excluded: as there.
        count: as there.
        strategy: as there.
        seed: as there.

    Returns:
        Picks of different images, best first.
    """
    rng = np.random.default_rng(seed)
    best = []
    for number, (scores, fractions) in enumerate(_allowed(pool, excluded)):
        windows = np.flatnonzero(fractions > MOSTLY_EXCLUDED)
        if len(windows):
            values = scores.window_scores[windows]
            draw = rng.choice(windows) if strategy == "random" else windows[first_of_best(values)]
            value = None if strategy == "random" else float(scores.window_scores[draw])
            best.append(Pick(number, _box(scores, int(draw)), value))
    if strategy == "random":
        return [best[place] for place in rng.permutation(len(best))[:count]]
    best.sort(key=lambda pick: pool[pick.image].key)
    return [best[place] for place in ranked(np.array([pick.score for pick in best]))[:count]]

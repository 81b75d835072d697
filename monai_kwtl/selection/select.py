"""Choice of windows to label: a strategy within a budget, as pure functions of window scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Region
from monai_kwtl.selection.strategies import STRATEGIES
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores, flat_windows

__all__ = ["check_free", "checked_budget", "cover", "select_regions", "select_windows"]

NOTHING_LEFT = (
    "every window overlaps a region that is labelled or assigned already: add images, use a smaller --window, or "
    "--strategy coverage, which takes what is left between them"
)


def select_windows(pool: Sequence[ImageScores], strategy: str, budget: Budget, seed: int = 0) -> list[tuple[int, int]]:
    """Choose windows of a pool.

    Args:
        pool: scores of each image; the result does not depend on their order.
        strategy: a name in :data:`STRATEGIES`; what each does is said there.
        budget: how much to take.
        seed: of the random strategies.

    Returns:
        (index into ``pool``, index into its windows) of each window, best first. Ties are broken by image name, page,
        then row, then column; what differs by less than a millionth of the largest counts as tied. May hold less than
        the budget where nothing more fits or everything is covered.

    Raises:
        KWTLError: for an unknown strategy, an empty pool, a budget larger than the pool, or where every window is
            labelled or assigned already.
    """
    if strategy not in STRATEGIES:
        raise KWTLError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}.")
    if not pool:
        raise KWTLError("the pool is empty: there is nothing to select from.")
    order = sorted(range(len(pool)), key=lambda index: pool[index].key)
    ordered = [pool[index] for index in order]
    windows, pixels = budget.limits([image.grid for image in ordered])
    images, indices = flat_windows(ordered)
    chosen = STRATEGIES[strategy](ordered, windows, pixels, np.random.default_rng(seed))
    if not chosen and any(image.covered is not None for image in pool):
        raise KWTLError(NOTHING_LEFT)
    return [(order[images[flat]], int(indices[flat])) for flat in chosen]


def select_regions(pool: Sequence[ImageScores], strategy: str, budget: Budget, seed: int = 0) -> list[Region]:
    """Choose windows as :func:`select_windows` does and return them as ranked regions, rank 1 first."""
    regions = []
    for rank, (image, window) in enumerate(select_windows(pool, strategy, budget, seed), start=1):
        scores = pool[image]
        height, width = scores.grid.size
        x, y = int(scores.grid.x[window]), int(scores.grid.y[window])
        score = float(scores.window_scores[window])
        regions.append(Region(rank, scores.name, scores.page, scores.sha256, x, y, width, height, score))
    return regions


def cover(scores: ImageScores, regions: Iterable[Region]) -> ImageScores:
    """Tell the scores of an image which of its pixels are labelled or assigned already.

    Args:
        scores: of the image.
        regions: of any images and sizes; those of this image and page count, as far as they lie inside.

    Returns:
        The scores with ``covered``; the same where no region is of this image.
    """
    mine = [r for r in regions if (r.image, r.page) == (scores.name, scores.page)]
    if not mine:
        return scores
    covered = np.zeros((scores.grid.height, scores.grid.width), dtype=np.uint8)
    for r in mine:
        covered[r.box.slices] = 1
    return replace(scores, covered=scores.grid.block_sums(covered)) if covered.any() else scores


def check_free(items: Iterable[Mapping[str, Any]], window: int, step: int, regions: Sequence[Region]) -> None:
    """Raise a :class:`KWTLError` where no window of a pool is free of the regions.

    Args:
        items: the pool, dicts with "name", "page", "sha256", "height" and "width".
        window: side of a window, in pixels.
        step: pixels between windows.
        regions: that are labelled or assigned already.
    """
    for item in items:
        grid = WindowGrid(item["height"], item["width"], window, step)
        if cover(ImageScores(item["name"], item["page"], item["sha256"], grid, np.empty(0)), regions).free.any():
            return
    raise KWTLError(NOTHING_LEFT)


def checked_budget(
    items: Sequence[Mapping[str, Any]],
    window: int,
    step: int,
    strategy: str,
    budget: float | None,
    budget_windows: int | None,
    budget_pixels: int | None,
) -> Budget:
    """Return the budget of a selection; 1 image's worth where none is given.

    Raises:
        KWTLError: for a bad budget or strategy, or a budget larger than the pool.
    """
    if budget is None and budget_windows is None and budget_pixels is None:
        budget = 1
    if strategy not in STRATEGIES:
        raise KWTLError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}.")
    checked = Budget(shots=budget, windows=budget_windows, pixels=budget_pixels)
    checked.limits([WindowGrid(item["height"], item["width"], window, step) for item in items])
    return checked

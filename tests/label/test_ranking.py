"""What to label next, against brute force over windows and pixels."""

from __future__ import annotations

import numpy as np
import pytest

from monai_kwtl.label.state.ranking import best_images, best_regions, unscored, without
from monai_kwtl.windows.box import Box, pixels_inside
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

SHAPES = [(61, 90), (75, 53), (40, 64)]


def pool_of(maps: list[np.ndarray], window: int = 24, step: int = 9) -> list[ImageScores]:
    pool = []
    for number, score in enumerate(maps):
        grid = WindowGrid(*score.shape, window, step)
        blocks = grid.block_sums(score)
        pool.append(ImageScores(f"{number}.png", None, f"{number:064x}", grid, grid.window_means(blocks), blocks))
    return pool


@pytest.fixture
def maps(rng) -> list[np.ndarray]:
    return [rng.random(shape) for shape in SHAPES]


def part(array: np.ndarray, box: Box) -> np.ndarray:
    return array[box.y : box.y + box.height, box.x : box.x + box.width]


def test_the_first_region_is_the_window_of_highest_mean(maps):
    pool = pool_of(maps)
    (pick,) = best_regions(pool, [[], [], []], 1)
    everywhere = [
        part(m, Box(x, y, 24, 24)).mean() for m in maps for y in range(m.shape[0] - 23) for x in range(m.shape[1] - 23)
    ]
    on_grid = max(
        part(m, Box(x, y, 24, 24)).mean()
        for m, s in zip(maps, pool, strict=True)
        for x, y in zip(s.grid.x, s.grid.y, strict=True)
    )
    assert pick.score == pytest.approx(on_grid) and on_grid <= max(everywhere)
    assert part(maps[pick.image], pick.box).mean() == pytest.approx(pick.score)


def test_what_is_taken_is_worth_nothing(maps):
    # boxes along the grid's edges, so that proportions are exact
    pool, boxes = pool_of(maps), [Box(9, 18, 24, 24), Box(0, 0, 24, 24)]
    left, fractions = without(pool[0], boxes)
    free = ~pixels_inside(SHAPES[0], boxes)
    for window, (x, y) in enumerate(zip(left.grid.x, left.grid.y, strict=True)):
        box = Box(x, y, 24, 24)
        assert left.window_scores[window] == pytest.approx((part(maps[0] * free, box)).mean())
        assert fractions[window] == pytest.approx(part(free, box).mean())


@pytest.mark.parametrize("strategy", ["coverage", "random"])
def test_regions_are_not_mostly_taken_by_those_before_them(maps, strategy):
    pool, known = pool_of(maps), [[Box(0, 0, 90, 30)], [], [Box(5, 5, 11, 13)]]
    picks = best_regions(pool, known, 50, strategy)
    assert 8 < len(picks) < 50
    taken = [pixels_inside(shape, boxes) for shape, boxes in zip(SHAPES, known, strict=True)]
    for pick in picks:
        assert part(taken[pick.image], pick.box).mean() < 0.5
        part(taken[pick.image], pick.box)[:] = True


def test_nothing_is_offered_of_a_pool_that_is_taken(maps):
    everything = [[Box(0, 0, shape[1], shape[0])] for shape in SHAPES]
    for strategy in ("coverage", "random"):
        assert best_regions(pool_of(maps), everything, 3, strategy) == []
        assert best_images(pool_of(maps), everything, 3, strategy) == []


def test_images_come_by_their_best_window_that_is_left(maps):
    pool = pool_of(maps)
    picks = best_images(pool, [[], [], []], 3)
    best = [scores.window_scores.max() for scores in pool]
    assert [pick.image for pick in picks] == np.argsort([-b for b in best]).tolist()
    assert [pick.score for pick in picks] == pytest.approx(sorted(best, reverse=True))
    assert [pick.image for pick in best_images(pool, [[], [], []], 2)] == [pick.image for pick in picks[:2]]
    first = picks[0]
    again = best_images(pool, [[first.box] if n == first.image else [] for n in range(3)], 3)
    assert next(pick for pick in again if pick.image == first.image).score < first.score


def test_random_is_seeded_needs_no_scores_and_reaches_every_image():
    pool = [
        unscored({"name": f"{n}", "page": None, "sha256": "", "height": h, "width": w}, 24, 9)
        for n, (h, w) in enumerate(SHAPES)
    ]
    none = [[], [], []]
    assert best_regions(pool, none, 5, "random", 1) == best_regions(pool, none, 5, "random", 1)
    assert best_regions(pool, none, 5, "random", 1) != best_regions(pool, none, 5, "random", 2)
    assert {pick.image for seed in range(20) for pick in best_images(pool, none, 1, "random", seed)} == {0, 1, 2}
    assert all(pick.score is None for pick in best_regions(pool, none, 5, "random"))


def test_images_smaller_than_a_window_are_offered_whole(rng):
    (pick,) = best_regions(pool_of([rng.random((13, 20))]), [[]], 4)
    assert pick.box == (0, 0, 20, 13)

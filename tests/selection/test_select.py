"""Budgets allow what they say, and regions and their cost are those of the windows taken."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Cost, Region, cost_of
from monai_kwtl.selection.select import select_regions, select_windows
from monai_kwtl.selection.strategies import STRATEGIES
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores


def scored(name, height, width, window=12, step=5, page=None, seed=0):
    grid = WindowGrid(height, width, window, step)
    values = np.random.default_rng(seed).random((height, width))
    blocks = grid.block_sums(values)
    means = grid.window_means(blocks)
    further = {"foreground_scores": 0.25 * means, "features": np.stack([means, means % 7, means % 11], axis=1)}
    return ImageScores(name, page, name * 3, grid, means, blocks, np.full(len(grid), 0.25), **further)


def pool():
    return [scored("b.png", 30, 41), scored("a.tif", 24, 36, page=1, seed=1), scored("a.tif", 24, 36, page=0, seed=2)]


def grids(*sizes, window=256, step=30):
    return [WindowGrid(height, width, window, step) for height, width in sizes]


def region(x, y, width, height, image="a.png", page=None):
    return Region(1, image, page, "", x, y, width, height, 0.0)


# ---- budgets


def test_exactly_one_budget_is_given():
    for wrong in ({}, {"shots": 1, "windows": 2}, {"windows": 1, "pixels": 9}, {"shots": 1, "windows": 1, "pixels": 1}):
        with pytest.raises(KWTLError, match=f"give one of budget, budget_windows and budget_pixels, got {len(wrong)}"):
            Budget(**wrong)


@pytest.mark.parametrize(
    ("kind", "name"), [("shots", "budget"), ("windows", "budget_windows"), ("pixels", "budget_pixels")]
)
@pytest.mark.parametrize(
    "value", [0, -1, -0.5, float("nan"), float("inf"), -float("inf"), True, np.True_, "3", "many", [3], 1j]
)
def test_a_budget_is_a_number_above_zero(kind, name, value):
    with pytest.raises(KWTLError, match=f"^{name} must be a number above 0"):
        Budget(**{kind: value})


@pytest.mark.parametrize("kind", ["windows", "pixels"])
def test_windows_and_pixels_come_whole(kind):
    with pytest.raises(KWTLError, match=f"^budget_{kind} must be a whole number, got 2.5"):
        Budget(**{kind: 2.5})
    assert Budget(**{kind: 300.0}).limits(grids((512, 512), window=16)) == Budget(**{kind: 300}).limits(
        grids((512, 512), window=16)
    )


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float32(2)])
def test_numbers_of_numpy_are_numbers(value):
    assert Budget(windows=value).limits(grids((512, 512))) == (2, np.inf)
    assert Budget(shots=value).limits(grids((512, 512), (512, 512))) == (8, np.inf)


@pytest.mark.parametrize("kind", ["shots", "windows", "pixels"])
@pytest.mark.parametrize("value", [1e300, 10**30])
def test_more_than_the_pool_holds_is_refused(kind, value):
    with pytest.raises(KWTLError, match="the pool has only .* ask for less"):
        Budget(**{kind: value}).limits(grids((512, 512)))


def test_limits_are_those_of_the_pool():
    two = grids((512, 512), (300, 256))  # 100 and 2 windows
    assert len(two[0]) == 81 and len(two[1]) == 2
    assert Budget(windows=83).limits(two) == (83, np.inf)
    with pytest.raises(KWTLError, match="budget_windows is 84, but the pool has only 83 windows.*--step"):
        Budget(windows=84).limits(two)
    area = 512 * 512 + 300 * 256
    assert Budget(pixels=area).limits(two) == (83, area)
    with pytest.raises(KWTLError, match=f"budget_pixels is {area + 1}, but the pool has only {area} pixels"):
        Budget(pixels=area + 1).limits(two)
    assert Budget(shots=2).limits(two)[0] == round(2 * (area / 2) / 256**2)
    with pytest.raises(KWTLError, match="budget is 2.1 images' worth, but the pool has only 2 images"):
        Budget(shots=2.1).limits(two)


def test_less_pixels_than_the_smallest_window_are_refused():
    two = grids((512, 512), (100, 90))
    assert Budget(pixels=9000).limits(two)[1] == 9000
    with pytest.raises(KWTLError, match="budget_pixels is 8999, less than one window of 9000 pixels.*--window"):
        Budget(pixels=8999).limits(two)


@pytest.mark.parametrize(("shots", "windows"), [(1, 16), (3, 48), (0.5, 8), (1 / 16, 1), (0.001, 1)])
def test_a_shot_is_the_area_of_a_mean_image(shots, windows):
    assert Budget(shots=shots).limits(grids(*[(1024, 1024)] * 5)) == (windows, np.inf)


def test_a_shot_of_images_smaller_than_a_window_is_an_image():
    small = grids((100, 200), (50, 60), (90, 90))
    assert [Budget(shots=n).limits(small)[0] for n in (1, 2, 3)] == [1, 2, 3]


def test_a_budget_as_data_is_what_was_given():
    assert Budget(shots=1.5).as_dict() == {"shots": 1.5}
    assert Budget(pixels=70000).as_dict() == {"pixels": 70000}
    assert Budget(windows=3) == Budget(windows=3) != Budget(windows=4)
    assert copy.copy(Budget(windows=3)) == Budget(windows=3)


# ---- selecting


def test_unknown_strategies_and_empty_pools_are_refused():
    with pytest.raises(KWTLError, match="unknown strategy 'topk'; use one of top_k, coverage, random"):
        select_windows(pool(), "topk", Budget(windows=1))
    with pytest.raises(KWTLError, match="the pool is empty"):
        select_windows([], "top_k", Budget(windows=1))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_regions_are_the_windows_in_their_order(strategy):
    images = pool()
    windows = select_windows(images, strategy, Budget(windows=9), seed=2)
    regions = select_regions(images, strategy, Budget(windows=9), seed=2)
    assert [r.rank for r in regions] == list(range(1, 10))
    for r, (index, window) in zip(regions, windows, strict=True):
        image = images[index]
        assert (r.image, r.page, r.image_sha256) == (image.name, image.page, image.sha256)
        assert (r.y, r.x) == (image.grid.y[window], image.grid.x[window])
        assert (r.height, r.width) == image.grid.size
        assert r.score == image.window_scores[window]
        assert 0 <= r.x <= image.grid.width - r.width and 0 <= r.y <= image.grid.height - r.height
        for value in (r.rank, r.x, r.y, r.width, r.height, r.score):
            assert type(value) in (int, float)  # JSON takes no numbers of NumPy


def test_regions_of_an_image_smaller_than_the_window_are_the_image():
    (only,) = select_regions([scored("a.png", 9, 20, window=64)], "coverage", Budget(shots=1))
    assert (only.x, only.y, only.width, only.height) == (0, 0, 20, 9)


# ---- cost


def test_cost_of_nothing_is_nothing():
    assert cost_of([]) == Cost(0, 0, 0)
    assert cost_of([]).as_dict() == {"windows": 0, "images": 0, "unique_pixels": 0}


def test_overlaps_and_repeats_count_once():
    assert cost_of([region(0, 0, 10, 10), region(5, 5, 10, 10)]) == Cost(2, 1, 175)
    assert cost_of([region(0, 0, 10, 10), region(0, 0, 10, 10)]) == Cost(2, 1, 100)
    assert cost_of([region(0, 0, 10, 10), region(2, 3, 4, 5), region(10, 0, 3, 10)]) == Cost(3, 1, 130)


def test_pages_and_images_are_counted_apart():
    same = [
        region(0, 0, 4, 5, page=None),
        region(0, 0, 4, 5, page=0),
        region(0, 0, 4, 5, page=1),
        region(0, 0, 4, 5, "b"),
    ]
    assert cost_of(same) == Cost(4, 4, 80)


@pytest.mark.parametrize("seed", range(10))
def test_cost_equals_a_count_of_pixels(seed):
    rng = np.random.default_rng(seed)
    masks, regions = {}, []
    for _ in range(rng.integers(1, 30)):
        name, page = str(rng.choice(["a", "b"])), int(rng.integers(0, 2))
        y, x = (int(v) for v in rng.integers(0, 60, 2))
        height, width = (int(v) for v in rng.integers(1, 40, 2))
        masks.setdefault((name, page), np.zeros((100, 100), bool))[y : y + height, x : x + width] = True
        regions.append(region(x, y, width, height, name, page))
    expected = Cost(len(regions), len(masks), int(sum(mask.sum() for mask in masks.values())))
    assert cost_of(regions) == expected
    assert all(type(value) is int for value in cost_of(regions).as_dict().values())

"""Strategies that compare windows do what a plain loop over all windows does."""

from __future__ import annotations

import numpy as np
import pytest

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.diversity import principal_components, weight_of_scores
from monai_kwtl.selection.regions import Region, cost_of
from monai_kwtl.selection.select import cover, select_regions, select_windows
from monai_kwtl.selection.strategies import FEATURE_STRATEGIES
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

SIZES = [(40, 52), (30, 61), (24, 24)]


def pool_of(sizes=SIZES, dimensions=5, seed=0, window=12, step=6):
    rng = np.random.default_rng(seed)
    pool = []
    for number, (height, width) in enumerate(sizes):
        grid = WindowGrid(height, width, window, step)
        scores = rng.random(len(grid))
        features = rng.normal(size=(len(grid), dimensions)).astype(np.float32)
        pool.append(
            ImageScores(
                f"{number}.png", None, "0" * 64, grid, scores, foreground=rng.random(len(grid)),
                foreground_scores=scores * rng.random(len(grid)), features=features,
            )
        )  # fmt: skip
    return pool


def boxes_of(pool, chosen):
    return [(i, int(pool[i].grid.y[w]), int(pool[i].grid.x[w])) for i, w in chosen]


def overlap(first, second, size=12):
    return first[0] == second[0] and abs(first[1] - second[1]) < size and abs(first[2] - second[2]) < size


def windows_of(pool):
    return [(i, w) for i in range(len(pool)) for w in range(len(pool[i].grid))]


def apart(pool, candidates, chosen):
    taken = boxes_of(pool, chosen)
    return [c for c in candidates if not any(overlap(boxes_of(pool, [c])[0], t) for t in taken)]


def kernels(pool):
    """Gaussian kernel between all windows, and their numbers, in float64 and without principal components."""
    points = np.concatenate([image.features for image in pool]).astype(np.float64)
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    width = np.median(np.sqrt(squared[np.triu_indices(len(points), 1)]))
    return np.exp(-squared / (2 * width**2))


@pytest.mark.parametrize(("budget", "beta"), [(Budget(windows=5), 0.0), (Budget(windows=20), None)])
def test_herding_is_the_greedy_choice_of_all_windows(budget, beta):
    pool = pool_of()
    kernel, windows = kernels(pool), windows_of(pool)
    scores = np.concatenate([image.window_scores for image in pool])
    found = weight_of_scores(budget.windows, np.inf, pool)
    assert beta is None or found == beta
    weights = ((scores - scores.min()) / np.ptp(scores)) ** found
    nearest, chosen = np.zeros(len(windows)), []
    for _ in range(budget.windows):
        candidates = apart(pool, windows, chosen)
        if not candidates:
            break
        gains = [(weights * np.maximum(kernel[windows.index(c)] - nearest, 0)).sum() for c in candidates]
        best = candidates[int(np.argmax(gains))]
        chosen.append(best)
        nearest = np.maximum(nearest, kernel[windows.index(best)])
    assert select_windows(pool, "herding", budget)[: len(chosen)] == chosen


def test_the_weight_of_scores_grows_with_the_logarithm_of_the_budget():
    pool = pool_of([(40, 40)] * 3, window=20)
    assert weight_of_scores(4, np.inf, pool) == 0.0
    assert weight_of_scores(1, np.inf, pool) == 0.0
    assert weight_of_scores(40, np.inf, pool) == pytest.approx(1.0)
    assert weight_of_scores(4000, np.inf, pool) == 1.0
    assert weight_of_scores(10**6, 1600 * 10**0.5, pool) == pytest.approx(0.5)


def test_k_centre_takes_what_is_farthest_from_all_before():
    pool = pool_of()
    points = np.concatenate([image.features for image in pool]).astype(np.float64)
    windows, chosen = windows_of(pool), []
    for _ in range(6):
        candidates = apart(pool, windows, chosen)
        numbers = [windows.index(c) for c in candidates]
        if chosen:
            taken = points[[windows.index(c) for c in chosen]]
            far = [((points[n] - taken) ** 2).sum(1).min() for n in numbers]
            chosen.append(candidates[int(np.argmax(far))])
        else:
            chosen.append(candidates[int(np.argmin(((points[numbers] - points.mean(0)) ** 2).sum(1)))])
    assert select_windows(pool, "k_centre", Budget(windows=6)) == chosen


def test_typical_takes_one_window_of_each_kind():
    pool = pool_of([(24, 120)] * 4, step=12, window=24)
    kinds = np.eye(5)
    rng = np.random.default_rng(5)
    pool = [
        ImageScores(i.name, i.page, i.sha256, i.grid, i.window_scores,
                    features=kinds[np.arange(len(i.grid)) % 5] * 10 + rng.normal(scale=0.01, size=(len(i.grid), 5)))
        for i in pool
    ]  # fmt: skip
    for seed in range(4):
        chosen = select_windows(pool, "typical", Budget(windows=5), seed=seed)
        assert sorted(window % 5 for _, window in chosen) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("strategy", ["power", "two_thirds", *FEATURE_STRATEGIES])
def test_windows_do_not_overlap_while_there_are_others(strategy):
    pool = pool_of()
    boxes = boxes_of(pool, select_windows(pool, strategy, Budget(windows=8), seed=1))
    assert len(boxes) == 8
    assert not any(overlap(a, b) for n, a in enumerate(boxes) for b in boxes[:n])


@pytest.mark.parametrize("strategy", ["power", "two_thirds", *FEATURE_STRATEGIES])
def test_what_is_left_of_a_budget_of_pixels_is_filled_with_overlapping_windows(strategy):
    pool = pool_of([(40, 52)] * 2)
    regions = select_regions(pool, strategy, Budget(pixels=40 * 52), seed=1)
    assert 40 * 52 - 36 <= cost_of(regions).unique_pixels <= 40 * 52


@pytest.mark.parametrize("strategy", FEATURE_STRATEGIES)
def test_features_are_needed_and_said(strategy):
    bare = [ImageScores(i.name, i.page, i.sha256, i.grid, i.window_scores) for i in pool_of()]
    with pytest.raises(KWTLError, match=f"{strategy}.*needs features of the windows"):
        select_windows(bare, strategy, Budget(windows=2))


@pytest.mark.parametrize("strategy", ["herding", "k_centre"])
def test_what_is_labelled_counts_as_chosen(strategy):
    """Its twins, which look the same, come last."""
    pool = pool_of([(24, 60)] * 2, window=12, step=12)
    twins = [
        ImageScores(i.name, i.page, i.sha256, i.grid, np.ones(len(i.grid)), features=pool[0].features) for i in pool
    ]
    labelled = [Region(1, "0.png", None, "0" * 64, int(x), int(y), 12, 12, 0.0)
                for y, x in zip(pool[0].grid.y[:8], pool[0].grid.x[:8], strict=True)]  # fmt: skip
    chosen = select_windows([cover(image, labelled) for image in twins], strategy, Budget(windows=2))
    assert {window for _, window in chosen} == {8, 9}


def test_principal_components_keep_all_distances():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 20))
    projected = principal_components([points[:20], points[20:]])
    assert projected.shape == (50, 3) and projected.dtype == np.float32
    distances = lambda x: ((x[:, None] - x[None]) ** 2).sum(-1)  # noqa: E731
    np.testing.assert_allclose(distances(projected.astype(np.float64)), distances(points), rtol=1e-4, atol=1e-3)
    assert (np.diff(projected.var(0)) <= 0).all()
    assert principal_components([points], dimensions=2).shape == (50, 2)


def test_windows_that_all_look_alike_are_still_chosen():
    pool = pool_of()
    alike = [
        ImageScores(i.name, i.page, i.sha256, i.grid, np.zeros(len(i.grid)), features=np.ones((len(i.grid), 4)))
        for i in pool
    ]
    for strategy in FEATURE_STRATEGIES:
        assert len(set(select_windows(alike, strategy, Budget(windows=4)))) == 4

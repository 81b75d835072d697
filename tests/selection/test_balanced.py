"""Random windows that are drawn until they are like the pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monai_kwtl.selection import balanced as module
from monai_kwtl.selection.balanced import covariates
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Region, cost_of
from monai_kwtl.selection.select import cover, select_regions, select_windows
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores


def pool_of(sizes=((96, 120),) * 6, dimensions=3, seed=0, window=24, step=12):
    """Images that differ from each other in their features, and a foreground that follows one of them."""
    rng = np.random.default_rng(seed)
    pool = []
    for number, (height, width) in enumerate(sizes):
        grid = WindowGrid(height, width, window, step)
        features = rng.normal(size=dimensions) + 0.5 * rng.normal(size=(len(grid), dimensions))
        foreground = np.clip(0.2 + 0.1 * features[:, 0], 0, 1)
        pool.append(
            ImageScores(f"{number}.png", None, "0" * 64, grid, rng.random(len(grid)),
                        foreground=foreground, features=features.astype(np.float32))
        )  # fmt: skip
    return pool


def distance(pool, chosen):
    """Plainly: squared difference of means in standard deviations, summed over all features and the foreground."""
    table = np.concatenate([np.c_[image.features, image.foreground] for image in pool]).astype(np.float64)
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    taken = table[[offsets[image] + window for image, window in chosen]]
    return float((((taken.mean(0) - table.mean(0)) / table.std(0)) ** 2).sum())


@pytest.mark.parametrize("budget", [Budget(windows=3), Budget(windows=9), Budget(pixels=5 * 24 * 24 + 30)])
def test_windows_are_more_like_the_pool_than_random_ones(budget):
    pool = pool_of()
    ours = [distance(pool, select_windows(pool, "balanced", budget, seed)) for seed in range(5)]
    random = [distance(pool, select_windows(pool, "stratified_random", budget, seed)) for seed in range(100)]
    assert max(ours) < np.quantile(random, 0.1)


def test_the_draw_that_is_most_like_the_pool_is_taken(monkeypatch):
    drawn = []
    draw = module._draw
    monkeypatch.setattr(module, "_draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    monkeypatch.setattr(module, "DRAWS", 20)
    pool = pool_of(dimensions=2)  # so few that the principal components span them, and keep their variances apart
    values = covariates(pool)
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    chosen = select_windows(pool, "balanced", Budget(windows=5))
    by_hand = [(values[[offsets[i] + w for i, w in one]].mean(0) ** 2).sum() for one in drawn]
    assert len(drawn) == 20 and len(set(by_hand)) == 20
    assert sorted(chosen) == sorted(drawn[int(np.argmin(by_hand))])


def test_each_window_keeps_the_means_nearest_to_those_of_the_pool():
    pool = pool_of()
    values = covariates(pool)
    offsets = np.cumsum([0, *(len(image.grid) for image in pool)])
    chosen = [offsets[i] + w for i, w in select_windows(pool, "balanced", Budget(windows=6), seed=2)]
    for place in range(6):
        left = [(np.square(values[[*chosen[:place], other]].sum(0)).sum(), other) for other in chosen[place:]]
        assert min(left)[1] == chosen[place]


def test_images_come_in_turn():
    pool = pool_of()
    for windows, most in ((4, 1), (6, 1), (9, 2), (12, 2)):
        images = [image for image, _ in select_windows(pool, "balanced", Budget(windows=windows), seed=3)]
        assert max(map(images.count, range(6))) == most and min(map(images.count, range(6))) >= most - 1


def test_the_same_seed_gives_the_same_windows_and_another_one_others():
    pool = pool_of()
    first, again, other = (select_windows(pool, "balanced", Budget(windows=5), seed) for seed in (1, 1, 2))
    assert first == again != other


def test_what_is_labelled_counts_as_drawn():
    """Where all that is labelled is dark, bright windows make up for it."""
    pool = [replace(image, features=np.zeros((len(image.grid), 1), np.float32)) for image in pool_of()]
    pool = [replace(i, foreground=(i.grid.x >= 48).astype(float)) for i in pool]
    dark = [Region(1, f"{n}.png", None, "0" * 64, 0, int(y), 24, 24, 0.0) for n in range(6) for y in (0, 24, 48, 72)]
    covered = [cover(image, dark) for image in pool]
    share = lambda chosen: np.mean([pool[i].foreground[w] for i, w in chosen])  # noqa: E731
    fresh = share(select_windows(pool, "balanced", Budget(windows=6)))
    further = share(select_windows(covered, "balanced", Budget(windows=6)))
    assert abs(fresh - np.concatenate([i.foreground for i in pool]).mean()) < 0.15
    assert further == 1.0


def test_without_a_predicted_foreground_the_features_are_balanced_alone():
    bare = [replace(image, foreground=None) for image in pool_of()]
    assert covariates(bare).shape[1] == 3 and covariates(pool_of()).shape[1] == 4
    assert len(select_windows(bare, "balanced", Budget(windows=5))) == 5


def test_covariates_are_standardised_and_constant_ones_say_nothing():
    pool = pool_of(dimensions=12)
    values = covariates(pool)
    assert values.shape[1] == 9
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-6)
    flat = [replace(i, foreground=np.full(len(i.grid), 0.3), features=np.ones((len(i.grid), 4))) for i in pool]
    assert not covariates(flat).any()


def test_images_of_other_sizes_and_small_ones_are_drawn_from():
    pool = pool_of([(96, 120), (24, 24), (20, 60), (130, 31)])
    regions = select_regions(pool, "balanced", Budget(pixels=6000), seed=1)
    assert cost_of(regions).unique_pixels <= 6000 and cost_of(regions).images == 4


def test_a_budget_below_the_area_of_most_windows_is_spent_on_what_fits():
    pool = pool_of([(96, 120), (16, 20)])
    assert select_windows(pool, "balanced", Budget(pixels=16 * 20 + 5)) == [(1, 0)]

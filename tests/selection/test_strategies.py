"""Every strategy takes what a direct loop over pixels takes, and never more than the budget allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.greedy import first_of_best, ranked
from monai_kwtl.selection.select import select_windows
from monai_kwtl.selection.strategies import STRATEGIES
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores, flat_windows

quick = settings(deadline=None, database=None, max_examples=60)
SIZES = [(30, 41), (24, 24), (9, 50), (37, 20)]


def scored(name, values, window=12, step=5, page=None, foreground=None):
    """An image with the given map (H, W) as its scores."""
    grid = WindowGrid(*values.shape, window, step)
    h, w = grid.size
    means = np.array([values[y : y + h, x : x + w].mean() for y, x in zip(grid.y, grid.x, strict=True)])
    edges = grid.row_edges, grid.column_edges
    blocks = np.add.reduceat(np.add.reduceat(values, edges[0][:-1], axis=0), edges[1][:-1], axis=1).astype(np.float64)
    foreground = np.full(len(grid), 0.5) if foreground is None else foreground
    features = np.random.default_rng(len(name) + values.shape[1]).normal(size=(len(grid), 6)).astype(np.float32)
    return ImageScores(
        name,
        page,
        "0" * 64,
        grid,
        means,
        blocks,
        foreground,
        foreground_scores=means * foreground,
        features=features,
    )


def maps(seed=0, levels=1000, sizes=SIZES):
    """Maps of whole numbers, whose sums are exact."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, levels, size).astype(np.float64) for size in sizes]


def pool_of(values, **kwargs):
    return [scored(f"{index}.png", image, **kwargs) for index, image in enumerate(values)]


def places(pool, chosen):
    """(name, page, y, x) of each window taken."""
    return [(pool[i].name, pool[i].page, int(pool[i].grid.y[w]), int(pool[i].grid.x[w])) for i, w in chosen]


def windows_of(pool):
    """Every window of a pool in the order of ties, as (image, window)."""
    order = sorted(range(len(pool)), key=lambda i: (pool[i].name, -1 if pool[i].page is None else pool[i].page))
    return [(i, w) for i in order for w in range(len(pool[i].grid))]


def box(pool, image, window):
    grid = pool[image].grid
    y, x = int(grid.y[window]), int(grid.x[window])
    return slice(y, y + grid.size[0]), slice(x, x + grid.size[1])


def blank(pool):
    return [np.zeros((image.grid.height, image.grid.width), dtype=bool) for image in pool]


def pixels_of(pool, chosen):
    masks = blank(pool)
    for image, window in chosen:
        masks[image][box(pool, image, window)] = True
    return sum(int(mask.sum()) for mask in masks)


def greedy(pool, values, windows=None, pixels=None):
    """Coverage on the pixels themselves: look at every window again at every step."""
    covered, left = blank(pool), [image.copy() for image in values]
    candidates, chosen = windows_of(pool), []
    while candidates and (windows is None or len(chosen) < windows):
        candidates = [(i, w) for i, w in candidates if not covered[i][box(pool, i, w)].all()]
        if not candidates:
            break
        gains = [left[i][box(pool, i, w)].sum() for i, w in candidates]
        image, window = best = candidates[int(np.argmax(gains))]  # the first of equals
        candidates.remove(best)
        where = box(pool, image, window)
        if pixels is not None and sum(int(m.sum()) for m in covered) + int((~covered[image][where]).sum()) > pixels:
            continue
        covered[image][where], left[image][where] = True, 0.0
        chosen.append(best)
    return chosen


def in_order(pool, order, pixels):
    """Take windows in an order, skipping what shows nothing new and what does not fit."""
    covered, chosen = blank(pool), []
    for image, window in order:
        new = int((~covered[image][box(pool, image, window)]).sum())
        if new and sum(int(m.sum()) for m in covered) + new <= pixels:
            covered[image][box(pool, image, window)] = True
            chosen.append((image, window))
    return chosen


# ---- top_k


@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("windows", [1, 7, 53])
def test_top_k_equals_a_direct_loop(levels, windows):
    values = maps(levels=levels)
    pool = pool_of(values)
    means = {(i, w): values[i][box(pool, i, w)].mean() for i, w in windows_of(pool)}
    expected = sorted(windows_of(pool), key=lambda place: -means[place])[:windows]  # stable: ties stay in order
    assert select_windows(pool, "top_k", Budget(windows=windows)) == expected


@pytest.mark.parametrize("pixels", [144, 500, 1500, 2996])
def test_top_k_by_pixels_skips_what_does_not_fit(pixels):
    values = maps()
    pool = pool_of(values)
    means = {(i, w): values[i][box(pool, i, w)].mean() for i, w in windows_of(pool)}
    order = sorted(windows_of(pool), key=lambda place: -means[place])
    assert select_windows(pool, "top_k", Budget(pixels=pixels)) == in_order(pool, order, pixels)


# ---- coverage


@pytest.mark.parametrize("levels", [1, 2, 4, 1000])
@pytest.mark.parametrize("windows", [1, 5, 30, 53])
def test_coverage_equals_greedy_on_the_pixels(levels, windows):
    values = maps(levels=levels)
    pool = pool_of(values)
    assert len(windows_of(pool)) == 53
    assert select_windows(pool, "coverage", Budget(windows=windows)) == greedy(pool, values, windows=windows)


@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("pixels", [144, 300, 1234, 2500, sum(h * w for h, w in SIZES)])
def test_coverage_by_pixels_equals_greedy_on_the_pixels(levels, pixels):
    values = maps(levels=levels, seed=1)
    pool = pool_of(values)
    assert select_windows(pool, "coverage", Budget(pixels=pixels)) == greedy(pool, values, pixels=pixels)


@given(
    st.lists(st.tuples(st.integers(1, 25), st.integers(1, 25)), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 14),
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.booleans(),
)
@quick
def test_coverage_equals_greedy_whatever_the_sizes(sizes, window, step, seed, amount, by_pixels):
    values = maps(seed=seed, levels=5, sizes=sizes)
    pool = pool_of(values, window=window, step=step)
    if by_pixels:
        smallest = min(image.grid.size[0] * image.grid.size[1] for image in pool)
        pixels = min(smallest * amount, sum(v.size for v in values))
        assert select_windows(pool, "coverage", Budget(pixels=pixels)) == greedy(pool, values, pixels=pixels)
    else:
        windows = min(amount, len(windows_of(pool)))
        assert select_windows(pool, "coverage", Budget(windows=windows)) == greedy(pool, values, windows=windows)


def test_coverage_covers_everything_and_stops_before_a_window_without_new_pixels():
    values = maps()
    pool = pool_of(values, step=3)
    chosen = select_windows(pool, "coverage", Budget(windows=len(windows_of(pool))))
    covered = blank(pool)
    for image, window in chosen:
        assert not covered[image][box(pool, image, window)].all()
        covered[image][box(pool, image, window)] = True
    assert len(chosen) < len(windows_of(pool))
    assert all(mask.all() for mask in covered)


def test_coverage_does_not_change_the_scores_that_it_is_given():
    pool = pool_of(maps())
    before = [(image.blocks.copy(), image.window_scores.copy()) for image in pool]
    for image in pool:
        image.blocks.setflags(write=False)
        image.window_scores.setflags(write=False)
    for strategy in STRATEGIES:
        select_windows(pool, strategy, Budget(windows=9))
    for image, (blocks, means) in zip(pool, before, strict=True):
        assert np.array_equal(image.blocks, blocks) and np.array_equal(image.window_scores, means)


def test_coverage_needs_maps():
    pool = pool_of(maps())
    without = [ImageScores(i.name, i.page, i.sha256, i.grid, i.window_scores) for i in pool]
    with pytest.raises(KWTLError, match="coverage.*top_k"):
        select_windows(without, "coverage", Budget(windows=1))
    with pytest.raises(KWTLError, match="foreground"):
        select_windows(without, "foreground_random", Budget(windows=1))
    for strategy in ("top_k", "random", "stratified_random", "strided"):
        assert len(select_windows(without, strategy, Budget(windows=4))) == 4


# ---- random strategies


@pytest.mark.parametrize("strategy", ["random", "stratified_random", "foreground_random"])
def test_random_strategies_are_seeded_and_draw_without_replacement(strategy):
    pool = pool_of(maps())
    draws = [select_windows(pool, strategy, Budget(windows=20), seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 20
    everything = select_windows(pool, strategy, Budget(windows=len(windows_of(pool))))
    assert sorted(everything) == sorted(windows_of(pool))


def test_random_is_uniform_over_windows():
    pool = pool_of(maps(sizes=[(20, 30), (9, 9)]))
    every = windows_of(pool)
    counts = dict.fromkeys(every, 0)
    for seed in range(1500):
        for place in select_windows(pool, "random", Budget(windows=3), seed=seed):
            counts[place] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_stratified_random_touches_every_image_before_any_twice():
    pool = pool_of(maps())
    chosen = select_windows(pool, "stratified_random", Budget(windows=12), seed=3)
    for turn in range(3):
        assert sorted(image for image, _ in chosen[4 * turn : 4 * turn + 4]) == [0, 1, 2, 3]


def test_stratified_random_goes_on_when_an_image_has_no_window_left():
    pool = pool_of(maps(sizes=[(30, 41), (12, 12)]))
    chosen = select_windows(pool, "stratified_random", Budget(windows=6), seed=3)
    assert sorted(image for image, _ in chosen[:2]) == [0, 1]
    assert [image for image, _ in chosen[2:]] == [0, 0, 0, 0]


def test_stratified_random_is_uniform_over_images_and_within_each():
    pool = pool_of(maps(sizes=[(20, 30), (9, 9), (14, 12)]))
    first = [select_windows(pool, "stratified_random", Budget(windows=1), seed=seed)[0] for seed in range(1500)]
    assert chisquare(np.bincount([image for image, _ in first], minlength=3)).pvalue > 1e-3
    within = np.bincount([window for image, window in first if image == 0], minlength=len(pool[0].grid))
    assert chisquare(within).pvalue > 1e-3


def test_foreground_random_follows_the_predicted_foreground():
    rng = np.random.default_rng(0)
    values = maps(sizes=[(20, 30), (14, 14)])
    pool = [
        scored(f"{i}.png", v, foreground=rng.random(len(WindowGrid(*v.shape, 12, 5)))) for i, v in enumerate(values)
    ]
    every = windows_of(pool)
    weights = np.array([pool[i].foreground[w] for i, w in every])
    first, second = np.zeros(len(every)), np.zeros(len(every))
    draws = 3000
    for seed in range(draws):
        one, two = select_windows(pool, "foreground_random", Budget(windows=2), seed=seed)
        first[every.index(one)] += 1
        second[every.index(two)] += 1
    share = weights / weights.sum()
    assert chisquare(first, draws * share).pvalue > 1e-3
    # second of two successive draws without replacement
    after = np.array(
        [sum(share[i] * share[j] / (1 - share[i]) for i in range(len(share)) if i != j) for j in range(len(share))]
    )
    assert chisquare(second, draws * after).pvalue > 1e-3


def test_foreground_random_leaves_empty_windows_for_last():
    values = maps(sizes=[(30, 41)])
    count = len(WindowGrid(30, 41, 12, 5))
    foreground = np.zeros(count)
    foreground[[3, 8, 11]] = 1e-3
    pool = [scored("a.png", values[0], foreground=foreground)]
    for seed in range(20):
        assert {w for _, w in select_windows(pool, "foreground_random", Budget(windows=3), seed=seed)} == {3, 8, 11}
    assert len(select_windows(pool, "foreground_random", Budget(windows=count))) == count


# ---- strided


@pytest.mark.parametrize("windows", [1, 2, 9, 50])
def test_strided_is_even_over_the_pool(windows):
    pool = pool_of(maps())
    every = windows_of(pool)
    positions = [every.index(place) for place in select_windows(pool, "strided", Budget(windows=windows))]
    assert len(set(positions)) == windows
    gaps = np.diff([-1 - positions[0], *positions, 2 * len(every) - positions[-1]])
    assert gaps.max() - gaps.min() <= 2
    assert select_windows(pool, "strided", Budget(windows=len(every))) == every


def test_strided_by_pixels_takes_a_window_that_fits():
    pool = pool_of(maps(sizes=[(30, 41), (8, 9), (30, 41)]))
    assert pixels_of(pool, select_windows(pool, "strided", Budget(pixels=80))) == 72
    assert pixels_of(pool, select_windows(pool, "strided", Budget(pixels=144 * 5))) > 144


# ---- all of them


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("pixels", [72, 150, 700, 1999, 30 * 41 + 8 * 9 + 37 * 20])
def test_pixel_budgets_are_never_exceeded(strategy, pixels):
    pool = pool_of(maps(sizes=[(30, 41), (8, 9), (37, 20)]))
    for seed in range(3):
        chosen = select_windows(pool, strategy, Budget(pixels=pixels), seed=seed)
        assert 0 < pixels_of(pool, chosen) <= pixels
        assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("strategy", ["top_k", "coverage", "random", "stratified_random", "foreground_random"])
def test_a_pixel_budget_of_the_whole_pool_covers_it(strategy):
    pool = pool_of(maps())
    total = sum(h * w for h, w in SIZES)
    assert pixels_of(pool, select_windows(pool, strategy, Budget(pixels=total))) == total


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize(
    "budget", [Budget(windows=11), Budget(pixels=900), Budget(shots=1)], ids=["windows", "pixels", "shots"]
)
def test_order_of_the_pool_does_not_matter(strategy, budget):
    values = maps(levels=3)
    pool = [scored("b.tif", values[0], page=10), scored("b.tif", values[1], page=2), scored("a.png", values[2])]
    pool.append(scored("B.png", values[3]))
    expected = places(pool, select_windows(pool, strategy, budget, seed=5))
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        shuffled = [pool[i] for i in order]
        assert places(shuffled, select_windows(shuffled, strategy, budget, seed=5)) == expected


@pytest.mark.parametrize("strategy", ["top_k", "coverage"])
def test_ties_go_to_the_first_name_page_row_and_column(strategy):
    same = np.ones((24, 24))
    pool = [
        scored(name, same, window=12, step=12, page=page)
        for name, page in (("b", 10), ("b", 2), ("a", None), ("B", None))
    ]
    chosen = places(pool, select_windows(pool, strategy, Budget(windows=16)))
    corners = [(0, 0), (0, 12), (12, 0), (12, 12)]
    assert chosen == [(n, p, y, x) for n, p in (("B", None), ("a", None), ("b", 2), ("b", 10)) for y, x in corners]


def trembling(pool, rng):
    """A pool whose every number is off by what another order of additions changes."""

    def moved(values, size):
        return (values * (1.0 + size * rng.uniform(-1, 1, values.shape))).astype(values.dtype)

    doubles = ("window_scores", "blocks", "foreground", "foreground_scores")
    return [
        replace(
            image,
            **{name: moved(getattr(image, name), 1e-10) for name in doubles},
            features=moved(image.features, 1e-7),
        )
        for image in pool
    ]


@pytest.mark.parametrize("budget", [Budget(windows=20), Budget(pixels=1500)], ids=["windows", "pixels"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_last_bits_decide_nothing(strategy, budget, rng):
    twice = maps(levels=3) * 2  # whatever is in an image is in another as well, and many windows have the same mean
    pool = [replace(image, features=pool[i % 4].features) for pool in [pool_of(twice)] for i, image in enumerate(pool)]
    expected = select_windows(pool, strategy, budget, seed=2)
    assert len(expected) > 5
    for _ in range(5):
        assert select_windows(trembling(pool, rng), strategy, budget, seed=2) == expected


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e12, -3.0])
def test_values_a_millionth_apart_rank_by_position(scale):
    values = scale * np.array([5.0, 5.0 - 4e-6, 5.0 - 6e-6, 4.0, 5.0, 4.0 + 4e-6, 0.0, 4e-6, -1e-7])
    if scale > 0:
        assert ranked(values).tolist() == [0, 1, 4, 2, 3, 5, 6, 7, 8]
    else:
        assert ranked(values).tolist() == [6, 7, 8, 3, 5, 1, 2, 0, 4]
    assert first_of_best(values, 5.0 * scale) == ranked(values)[0]


def test_without_near_values_a_ranking_is_a_plain_sort(rng):
    values = rng.permutation(5000) / 5000.0
    assert np.array_equal(ranked(values), np.argsort(-values))
    assert ranked(np.zeros(4)).tolist() == [0, 1, 2, 3] and ranked(np.zeros(0)).tolist() == []


def test_windows_are_numbered_image_by_image():
    pool = pool_of(maps())
    images, windows = flat_windows(pool)
    assert list(zip(images.tolist(), windows.tolist(), strict=True)) == windows_of(pool)

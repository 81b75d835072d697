from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import rankdata

from monai_kwtl.benchmark.analysis.statistics import (
    area_under_curve,
    bootstrap_interval,
    compare,
    wilcoxon_p,
)


def every_sign(differences: list[float]) -> float:
    """Two-sided signed-rank p by counting all 2^n ways to give the ranks signs: as likely, or less, as what is."""
    kept = [d for d in differences if d != 0]
    ranks = rankdata(np.abs(kept))

    def low(signs: tuple[int, ...]) -> float:
        above = sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign > 0)
        return above

    found = low(tuple(1 if d > 0 else -1 for d in kept))
    ways = [low(signs) for signs in itertools.product((1, -1), repeat=len(kept))]
    below, above = (sum(test(way) for way in ways) / len(ways) for test in (lambda w: w <= found, lambda w: w >= found))
    return min(1.0, 2 * min(below, above))


def test_the_interval_is_that_of_all_resamples():
    differences = [-0.02, 0.01, 0.05, 0.11]
    means = np.sort([np.mean(draw) for draw in itertools.product(differences, repeat=4)])
    low, high = bootstrap_interval(differences, resamples=200_000)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.003)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.003)


def test_the_interval_depends_on_the_seed_alone(rng):
    differences = rng.normal(0.02, 0.03, 10)
    assert bootstrap_interval(differences, seed=3) == bootstrap_interval(differences, seed=3)
    assert bootstrap_interval(differences, seed=3) != bootstrap_interval(differences, seed=4)


def test_a_wider_level_gives_a_wider_interval(rng):
    differences = rng.normal(0.02, 0.03, 10)
    narrow, wide = (bootstrap_interval(differences, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < np.mean(differences) < narrow[1] < wide[1]


def test_intervals_of_too_few_or_equal_differences():
    assert all(math.isnan(end) for end in bootstrap_interval([]) + bootstrap_interval([0.1]))
    assert bootstrap_interval([0.25] * 6) == (0.25, 0.25)
    assert bootstrap_interval([0.0] * 3) == (0.0, 0.0)


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, 0.3, 0.4, 0.5],
        [0.1, -0.2, 0.3, 0.4, 0.5, 0.7, -0.05],
        [0.1, 0.1, -0.1, 0.2, 0.2, 0.2, 0.5],  # ties
        [0.0, 0.0, 0.1, 0.2, -0.3, 0.4],  # zeros
        [0.0, 0.1, 0.1, -0.1],
        [0.3],
        [-0.3, 0.3],
    ],
)
def test_wilcoxon_is_what_counting_all_signs_gives(differences):
    assert wilcoxon_p(differences) == pytest.approx(every_sign(differences))


def test_five_differences_of_one_sign_are_not_significant():
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 32)


def test_ties_are_seen_through_rounding_errors():
    assert len({0.3 - 0.2, 0.2 - 0.1}) == 2
    exact, noisy = [0.1, 0.1, -0.2, 0.4], [0.3 - 0.2, 0.2 - 0.1, -0.2, 0.4]
    assert wilcoxon_p(noisy) == wilcoxon_p(exact) == pytest.approx(every_sign(exact))


def test_wilcoxon_without_a_difference_or_without_pairs():
    assert wilcoxon_p([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(wilcoxon_p([]))


def test_many_tied_differences_take_the_normal_approximation(rng):
    differences = np.repeat([0.01, -0.02, 0.03, 0.04], 10)
    ranks = rankdata(np.abs(differences))
    statistic = ranks[differences < 0].sum()
    centre, variance = ranks.sum() / 2, (ranks**2).sum() / 4  # the exact moments of the sum of randomly signed ranks
    z = (statistic - centre) / math.sqrt(variance)
    assert wilcoxon_p(differences) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))


def test_compare_counts_pairs_and_wins():
    first = {(0, 0): 0.6, (1, 1): 0.7, (2, 2): 0.5, (3, 3): 0.9}
    second = {(4, 4): 0.2, (2, 2): 0.6, (0, 0): 0.48, (1, 1): 0.7}
    found = compare(first, second)
    assert (found["pairs"], found["wins"]) == (3, 1)
    assert found["difference"] == pytest.approx(100 * (0.12 + 0.0 - 0.1) / 3)
    assert (found["low"], found["high"]) == pytest.approx((-10, 12))  # of the draws, 1 in 27 is thrice the same
    assert found["p"] == pytest.approx(1.0)


def test_compare_without_a_common_pair():
    found = compare({(0, 0): 0.5}, {(1, 1): 0.5})
    assert (found["pairs"], found["wins"]) == (0, 0)
    assert all(math.isnan(found[name]) for name in ("difference", "low", "high", "p"))


def test_area_by_hand():
    # trapezoids: (0.2 + 0.4) / 2 * 2 = 0.6 and (0.4 + 0.6) / 2 * 6 = 3.0, over a base of 8
    assert area_under_curve([2, 4, 10], [0.2, 0.4, 0.6]) == pytest.approx(0.45)
    assert area_under_curve([10, 2, 4], [0.6, 0.2, 0.4]) == pytest.approx(0.45)


def test_area_over_the_logarithm_by_hand():
    # abscissas log2: 0, 1, 3: 0.3 * 1 + 0.5 * 2 over 3
    assert area_under_curve([1, 2, 8], [0.2, 0.4, 0.6], log=True) == pytest.approx(1.3 / 3)


def test_area_of_a_constant_is_the_constant(rng):
    pixels = rng.uniform(1, 100, 9)
    for log in (False, True):
        assert area_under_curve(pixels, np.full(9, 0.7), log) == pytest.approx(0.7)


def test_area_within_limits_is_that_of_a_fine_riemann_sum():
    pixels, values = [10, 30, 50, 100], [0.1, 0.5, 0.4, 0.8]
    at = np.linspace(20, 70, 200_001)
    assert area_under_curve(pixels, values, limits=(20, 70)) == pytest.approx(
        np.interp(at, pixels, values).mean(), abs=1e-5
    )


def test_values_at_the_same_abscissa_are_averaged():
    assert area_under_curve([1, 1, 3], [0.2, 0.4, 0.5]) == pytest.approx(0.4)


def test_there_is_no_area_without_a_base_or_beyond_what_was_measured():
    for area in (
        area_under_curve([], []),
        area_under_curve([5], [0.5]),
        area_under_curve([5, 5], [0.5, 0.6]),
        area_under_curve([5, 9], [0.5, 0.6], limits=(4, 9)),
        area_under_curve([5, 9], [0.5, 0.6], limits=(5, 10)),
        area_under_curve([5, 9], [0.5, 0.6], limits=(7, 7)),
        area_under_curve([5, 9], [0.5, 0.6], log=True, limits=(0, 7)),
        area_under_curve([0, 2], [0.1, 0.2], log=True),
    ):
        assert math.isnan(area)

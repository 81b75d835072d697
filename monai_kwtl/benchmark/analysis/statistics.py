"""What results say of methods: paired differences with their uncertainty, area under curves."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy import stats

__all__ = ["area_under_curve", "bootstrap_interval", "compare", "wilcoxon_p"]

EXACT_AT_MOST = 13  # differences whose 2^n signs are all tried where ties make SciPy's table of exact values wrong
_DECIMALS = 12  # differences closer than this are ties: 0.3 - 0.2 and 0.2 - 0.1 are


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap confidence interval of a mean (Efron), from :func:`scipy.stats.bootstrap`.

    With the few splits of a benchmark such intervals are somewhat too narrow, and splits of one data set share images,
    so read an end close to 0 as no difference.

    Args:
        differences: shape (N,), finite.
        level: of confidence, above 0 and below 1.
        resamples: drawn with replacement, each of N differences.
        seed: of the draw; the same for every call gives the same interval for the same differences.

    Returns:
        Lower and upper end; NaN both for N < 2.
    """
    vector = np.asarray(differences, dtype=np.float64)
    if len(vector) < 2:
        return math.nan, math.nan
    if np.ptp(vector) == 0:
        return float(vector[0]), float(vector[0])
    found = stats.bootstrap(
        (vector,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilcoxon_p(differences: Sequence[float] | np.ndarray) -> float:
    """Return the two-sided p-value of the Wilcoxon signed-rank test, from :func:`scipy.stats.wilcoxon`.

    Zeros are discarded (Wilcoxon's rule). The null distribution is exact up to 50 differences without ties, and with
    ties up to 13, where all 2^n signs are tried; above that the normal approximation with its correction for ties
    serves. Of fewer than six differences p cannot fall below 0.05 (it is 2 / 2^n at best), however clear they are.

    Args:
        differences: shape (N,), finite; those that agree in 12 decimals count as ties.

    Returns:
        In (0, 1]; 1 where all differences are 0, NaN where there are none.
    """
    vector = np.round(np.asarray(differences, dtype=np.float64), _DECIMALS)
    if not len(vector):
        return math.nan
    vector = vector[vector != 0]
    if not len(vector):
        return 1.0
    method: str | stats.PermutationMethod = "exact" if len(vector) <= 50 else "asymptotic"
    if len(np.unique(np.abs(vector))) < len(vector):
        method = stats.PermutationMethod(n_resamples=np.inf) if len(vector) <= EXACT_AT_MOST else "asymptotic"
    return min(1.0, float(stats.wilcoxon(vector, method=method).pvalue))


def compare(first: Mapping[Hashable, float], second: Mapping[Hashable, float], seed: int = 0) -> dict[str, float]:
    """Compare two methods on what both were run on.

    Args:
        first: IoU in [0, 1] of each (split, seed).
        second: the same of what to compare with.
        seed: of :func:`bootstrap_interval`, whose level is 95 %.

    Returns:
        ``pairs``: how many (split, seed) both have; ``wins``: where the first is ahead; ``difference``: the mean of
        first minus second in percentage points, NaN where there is no pair; ``low`` and ``high``: the bootstrap
        interval of that mean; ``p``: :func:`wilcoxon_p`.
    """
    differences = np.array([first[run] - second[run] for run in sorted(first.keys() & second.keys())])
    low, high = bootstrap_interval(differences, seed=seed)
    return {
        "pairs": len(differences),
        "wins": int(np.count_nonzero(np.round(differences, _DECIMALS) > 0)),
        "difference": 100 * float(differences.mean()) if len(differences) else math.nan,
        "low": 100 * low,
        "high": 100 * high,
        "p": wilcoxon_p(differences),
    }


def area_under_curve(
    pixels: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> float:
    """Return the area under a learning curve by the trapezoid rule, over the length of its base: the mean value.

    ``1 / (b - a)`` times the integral of the piecewise linear curve through the points from ``a`` to ``b``. Values of
    the same abscissa are averaged first. With ``log`` the abscissa is the logarithm of the pixels (in which the curve
    is then piecewise linear): doubling the labels counts the same at any budget, so the small budgets weigh more.

    Args:
        pixels: unique labelled pixels, shape (N,), in any order.
        values: IoU at each, shape (N,).
        log: whether to integrate over the logarithm.
        limits: (a, b) in pixels, inside what was measured; None takes the smallest and the largest of ``pixels``.
            Curves can be compared by their areas only between the same limits.

    Returns:
        In the unit of the values; NaN where fewer than two different abscissas leave no base, or ``limits`` go beyond
        what was measured (nothing is extrapolated), or pixels are 0 with ``log``.
    """
    x, y = np.asarray(pixels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    ends = (x.min(), x.max()) if limits is None and len(x) else limits
    if log:
        if (x <= 0).any():
            return math.nan
        x, ends = np.log(x), tuple(np.log(ends)) if ends is not None and min(ends) > 0 else None
    if ends is None or len(np.unique(x)) < 2 or not x.min() <= ends[0] < ends[1] <= x.max():
        return math.nan
    at, place = np.unique(x, return_inverse=True)
    means = np.bincount(place, weights=y) / np.bincount(place)
    inside = np.unique(np.concatenate(([ends[0]], at[(at > ends[0]) & (at < ends[1])], [ends[1]])))
    return float(np.trapezoid(np.interp(inside, at, means), inside) / (ends[1] - ends[0]))

"""Statistics of methods: spread over splits, paired differences with their uncertainty, area under curves."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from monai_kwtl.errors import KWTLError, check_number, check_whole_number

__all__ = [
    "Comparison",
    "Spread",
    "area_under_curve",
    "bootstrap_interval",
    "compare",
    "paired_differences",
    "spread",
    "wilcoxon_p",
]

EXACT_AT_MOST = 13  # differences whose 2^n signs are all tried where ties make SciPy's table of exact values wrong
_DECIMALS = 12  # differences closer than this are ties: 0.3 - 0.2 and 0.2 - 0.1 are


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of ``count`` values; NaN where there are too few for one."""

    count: int
    mean: float
    std: float


@dataclass(frozen=True)
class Comparison:
    """Paired differences, first minus second, in a nutshell.

    Args:
        pairs: how many there are.
        wins: how many of them are above 0.
        difference: their mean; NaN where there is none.
        low: lower end of the bootstrap interval of the mean; NaN for fewer than two pairs.
        high: its upper end.
        p: of the two-sided Wilcoxon signed-rank test; NaN where there is no pair.
    """

    pairs: int
    wins: int
    difference: float
    low: float
    high: float
    p: float


def _vector(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise KWTLError(f"{what} must be a list of finite numbers.")
    return vector


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Return mean and standard deviation over splits.

    Args:
        values: shape (N,), finite; N may be 0.

    Returns:
        With the sample standard deviation ``sqrt(sum((x - mean)^2) / (N - 1))``, NaN for N < 2.

    Raises:
        KWTLError: for anything else than finite numbers.
    """
    vector = _vector(values, "values")
    mean = float(vector.mean()) if len(vector) else math.nan
    return Spread(len(vector), mean, float(vector.std(ddof=1)) if len(vector) > 1 else math.nan)


def paired_differences(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> np.ndarray:
    """Return differences where both have a value, which is never made up where one has not.

    Args:
        first: a value for each (split, seed), say.
        second: the same of what to compare with.

    Returns:
        first minus second of the keys that both have, in the order of the sorted keys, float64, shape (N,).
    """
    common = sorted(first.keys() & second.keys())
    return np.array([first[key] - second[key] for key in common], dtype=np.float64)


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap confidence interval of a mean (Efron), from :func:`scipy.stats.bootstrap`.

    With the few splits of a benchmark such intervals are somewhat too narrow, and splits of one data set share images,
    so read an end close to 0 as no difference.

    Args:
        differences: shape (N,).
        level: of confidence, above 0 and below 1.
        resamples: drawn with replacement, each of N differences.
        seed: of the draw; the same for every call gives the same interval for the same differences.

    Returns:
        Lower and upper end; NaN both for N < 2.

    Raises:
        KWTLError: for differences that are not finite, or settings out of range.
    """
    vector = _vector(differences, "differences")
    if check_number("level", level, 0, 1, above=True) == 1:
        raise KWTLError("level must be below 1.")
    check_whole_number("resamples", resamples, 1)
    check_whole_number("seed", seed, 0)
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
        differences: shape (N,); those that agree in 12 decimals count as ties.

    Returns:
        In (0, 1]; 1 where all differences are 0, NaN where there are none.

    Raises:
        KWTLError: for differences that are not finite.
    """
    vector = np.round(_vector(differences, "differences"), _DECIMALS)
    if not len(vector):
        return math.nan
    vector = vector[vector != 0]
    if not len(vector):
        return 1.0
    method: str | stats.PermutationMethod = "exact" if len(vector) <= 50 else "asymptotic"
    if len(np.unique(np.abs(vector))) < len(vector):
        method = stats.PermutationMethod(n_resamples=np.inf) if len(vector) <= EXACT_AT_MOST else "asymptotic"
    return min(1.0, float(stats.wilcoxon(vector, method=method).pvalue))


def compare(
    first: Mapping[Hashable, float], second: Mapping[Hashable, float], resamples: int = 9999, seed: int = 0
) -> Comparison:
    """Compare two methods on what both were run on: :func:`paired_differences` and what follows from them.

    Args:
        first: a value for each (split, seed).
        second: the same of what to compare with.
        resamples: of :func:`bootstrap_interval`, whose level is 95 %.
        seed: of it.
    """
    differences = paired_differences(first, second)
    low, high = bootstrap_interval(differences, resamples=resamples, seed=seed)
    wins = int(np.count_nonzero(np.round(differences, _DECIMALS) > 0))
    return Comparison(len(differences), wins, spread(differences).mean, low, high, wilcoxon_p(differences))


def area_under_curve(
    pixels: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> float:
    """Compute the area under a learning curve by the trapezoid rule, over the length of its base: its mean value.

    ``1 / (b - a)`` times the integral of the piecewise linear curve through the points from ``a`` to ``b``. Values of
    the same abscissa are averaged first. With ``log`` the abscissa is the logarithm of the pixels (in which the curve
    is then piecewise linear): doubling the labels counts the same at any budget, so the small budgets weigh more.

    Args:
        pixels: unique labelled pixels, shape (N,), in any order; above 0 with ``log``.
        values: IoU at each, shape (N,).
        log: whether to integrate over the logarithm.
        limits: (a, b) in pixels, inside what was measured; None takes the smallest and the largest of ``pixels``.
            Curves can be compared by their areas only between the same limits.

    Returns:
        In the unit of the values; NaN where fewer than two different abscissas leave no base, or ``limits`` go beyond
        what was measured: nothing is extrapolated.

    Raises:
        KWTLError: for lists of different lengths, or pixels that are not above 0 with ``log``.
    """
    x, y = _vector(pixels, "pixels"), _vector(values, "values")
    if len(x) != len(y):
        raise KWTLError(f"there are {len(x)} pixels but {len(y)} values: give one for each.")
    ends = (x.min(), x.max()) if limits is None and len(x) else limits
    if log:
        if (x <= 0).any():
            raise KWTLError("over the logarithm, pixels must be above 0.")
        x, ends = np.log(x), tuple(np.log(ends)) if ends is not None and min(ends) > 0 else None
    if ends is None or len(np.unique(x)) < 2 or not x.min() <= ends[0] < ends[1] <= x.max():
        return math.nan
    at, place = np.unique(x, return_inverse=True)
    means = np.bincount(place, weights=y) / np.bincount(place)
    inside = np.unique(np.concatenate(([ends[0]], at[(at > ends[0]) & (at < ends[1])], [ends[1]])))
    return float(np.trapezoid(np.interp(inside, at, means), inside) / (ends[1] - ends[0]))

"""Paired differences: methods against the random baselines, also in area under curves; ablations against the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from monai_kwtl.benchmark.analysis.layout import Column, Table, markdown_table, shown
from monai_kwtl.benchmark.analysis.statistics import Comparison, area_under_curve, compare, spread
from monai_kwtl.benchmark.analysis.tables import Groups
from monai_kwtl.benchmark.plan.methods import VARIANTS, Variant
from monai_kwtl.benchmark.plan.rows import BASELINES, METHODS, WITHOUT_BUDGET, Row, Scope, missing_cells

__all__ = [
    "ablation_table",
    "area_difference_table",
    "area_table",
    "both_table",
    "comparison_matrix",
    "difference_table",
    "missing_table",
    "verdict_table",
    "window_table",
]

_SCOPE = tuple(map(Column, ("target", "protocol", "schedule", "variant", "budget kind")))
_COSTS = ("windows", "unique_pixels", "images", "objects")
_COMPARISON = (
    Column("pairs", "d"),
    Column("wins", "d"),
    Column("difference", "+.2f"),
    Column("low", "+.2f"),
    Column("high", "+.2f"),
    Column("p", ".4f"),
)


def _points(found: Comparison) -> tuple[Any, ...]:
    """Return a comparison of IoUs in percentage points."""
    return found.pairs, found.wins, 100 * found.difference, 100 * found.low, 100 * found.high, found.p


def _ious(rows: Iterable[Row]) -> dict[tuple[int, int], float]:
    return {row.pair: row.mean_iou for row in rows}


def difference_table(groups: Groups, seed: int = 0) -> Table:
    """Compare methods with the random baselines of their variant, at each budget, paired by split and seed.

    Args:
        groups: as from :func:`monai_kwtl.benchmark.analysis.grouped`. Of variants besides the base only the comparisons
            are made that have a pair: an ablation seldom repeats the baselines.
        seed: of the bootstrap.

    Returns:
        Differences of mean IoU in percentage points, method minus baseline, with 95 % intervals: of selection alone.
    """
    return _compared("differences", groups, seed, lambda variant: variant)


def both_table(groups: Groups, seed: int = 0) -> Table:
    """Compare methods of a variant with the base's random baselines: other windows and another tuning at once.

    A baseline is also compared with itself. Arguments and result are those of :func:`difference_table`.
    """
    return _compared("both", groups, seed, lambda variant: None if variant == "base" else "base")


def window_table(groups: Groups, seed: int = 0) -> Table:
    """Compare methods of a variant with other windows with random baselines of windows of the usual size.

    Both are tuned and measured alike: the size of the windows is a part of the choice of what to label. Arguments and
    result are those of :func:`difference_table`.
    """

    def usual(variant: str) -> str | None:
        other = VARIANTS.get(variant, Variant())
        alike = (name for name, found in VARIANTS.items() if found == replace(other, window=1.0))
        return next(alike, None) if other.window != 1 else None

    return _compared("windows", groups, seed, usual)


def _compared(name: str, groups: Groups, seed: int, other_variant: Callable[[str], str | None]) -> Table:
    """Compare methods with the baselines of a variant, for each variant its own; of None nothing is compared."""
    rows = []
    for (scope, method, budget), found in groups.items():
        variant = other_variant(scope.variant)
        if method in WITHOUT_BUDGET or variant is None:
            continue
        for baseline in BASELINES:
            if baseline != method or variant != scope.variant:
                other = groups.get((scope._replace(variant=variant), baseline, budget), [])
                comparison = compare(_ious(found), _ious(other), seed=seed)
                if comparison.pairs or scope.variant == "base":
                    rows.append((*scope, budget, method, baseline, *_points(comparison)))
    columns = (*_SCOPE, Column("budget", "g"), Column("method"), Column("baseline"), *_COMPARISON)
    return Table(name, columns, tuple(rows))


def verdict_table(differences: Table) -> Table:
    """Sum up :func:`difference_table`: at how many budgets a method is ahead of a baseline, behind it, or neither.

    Returns:
        A row for each scope and method, for each baseline ``ahead / behind / open`` by the 95 % interval; budgets with
        fewer than two pairs, which have no interval, count as open.
    """
    names = [column.name for column in differences.columns]
    counts: dict[tuple[Any, ...], dict[str, list[int]]] = {}
    for values in differences.rows:
        row = dict(zip(names, values, strict=True))
        found = counts.setdefault((*values[:5], row["method"]), {}).setdefault(row["baseline"], [0, 0, 0])
        found[0 if row["low"] > 0 else 1 if row["high"] < 0 else 2] += 1
    rows = [
        (*key, *("{} / {} / {}".format(*found[b]) if b in found else None for b in BASELINES))
        for key, found in counts.items()
    ]
    columns = (*_SCOPE, Column("method"), *(Column(f"ahead / behind / open against {b}") for b in BASELINES))
    return Table("verdicts", columns, tuple(rows))


def ablation_table(groups: Groups, seed: int = 0) -> Table:
    """Compare every variant with the base, of the same method at the same budget, paired by split and seed.

    Returns:
        Means of IoU in % over the runs that both have (all of the variant's where there are none), and differences in
        percentage points, variant minus base.
    """
    rows = []
    for (scope, method, budget), found in groups.items():
        if scope.variant == "base":
            continue
        base = groups.get((scope._replace(variant="base"), method, budget), [])
        both = (_ious(base).keys() & _ious(found).keys()) or _ious(found).keys()
        means = (100 * spread([row.mean_iou for row in each if row.pair in both]).mean for each in (base, found))
        costs = (float(np.mean([getattr(row, name) for row in found])) for name in _COSTS)
        comparison = _points(compare(_ious(found), _ious(base), seed=seed))
        rows.append((*scope, method, budget, *means, *comparison, *costs))
    figures = (Column("base IoU %", ".1f"), Column("variant IoU %", ".1f"))
    costs = (Column(name.replace("_", " "), ".0f" if name in _COSTS[:2] else ".1f") for name in _COSTS)
    return Table(
        "ablations", (*_SCOPE, Column("method"), Column("budget", "g"), *figures, *_COMPARISON, *costs), tuple(rows)
    )


Curve = tuple[list[float], list[float]]


def _curves(groups: Groups) -> dict[tuple[Scope, str], dict[tuple[int, int], Curve]]:
    """Return (unique pixels, IoU) of each run with all budgets of its scope; a run that misses one has no curve.

    Of the variants only those have curves that have several budgets.
    """
    budgets: dict[Scope, set[float]] = {}
    points: dict[tuple[Scope, str], dict[tuple[int, int], list[Row]]] = {}
    for (scope, method, budget), rows in groups.items():
        if method not in WITHOUT_BUDGET:
            budgets.setdefault(scope, set()).add(budget)
            for row in rows:
                points.setdefault((scope, method), {}).setdefault(row.pair, []).append(row)
    return {
        (scope, method): {
            pair: ([row.unique_pixels for row in rows], [row.mean_iou for row in rows])
            for pair, rows in runs.items()
            if len(rows) == len(budgets[scope])
        }
        for (scope, method), runs in points.items()
        if scope.variant == "base" or len(budgets[scope]) > 1
    }


def _area(curve: Curve, log: bool, limits: tuple[float, float] | None = None) -> float:
    if log and min(curve[0]) <= 0:
        return math.nan
    return area_under_curve(*curve, log=log, limits=limits)


def area_table(groups: Groups) -> Table:
    """Compute the area under IoU against unique labelled pixels, over its base, so that it reads as an IoU in %.

    Each method's area is over its own range of pixels, which stands beside it; see :func:`area_difference_table` for
    comparisons over a common range.
    """
    rows = []
    for (scope, method), runs in _curves(groups).items():
        areas = [[100 * _area(curve, log) for curve in runs.values()] for log in (False, True)]
        found = [spread([area for area in each if not math.isnan(area)]) for each in areas]
        ends = [float(np.mean([end(c[0]) for c in runs.values()])) if runs else math.nan for end in (min, max)]
        rows.append((*scope, method, len(runs), *(f for s in found for f in (s.mean, s.std)), *ends))
    columns = (
        Column("method"),
        Column("runs", "d"),
        Column("area %", ".2f"),
        Column("std", ".2f"),
        Column("area % (log pixels)", ".2f"),
        Column("std (log)", ".2f"),
        Column("from pixels", ".0f"),
        Column("to pixels", ".0f"),
    )
    return Table("areas", (*_SCOPE, *columns), tuple(rows))


def area_difference_table(groups: Groups, seed: int = 0) -> Table:
    """Compare areas with the random baselines', each pair of curves over the range of pixels that both cover.

    A run whose two curves have no pixels in common is no pair: it would take extrapolation to compare them.

    Returns:
        Differences in percentage points of IoU, with 95 % intervals, over pixels and over their logarithm.
    """
    rows, curves = [], _curves(groups)
    for (scope, method), runs in curves.items():
        for baseline in BASELINES:
            if baseline == method:
                continue
            others = curves.get((scope, baseline), {})
            for log in (False, True):
                first, second, ranges = {}, {}, []
                for pair in runs.keys() & others.keys():
                    one, two = runs[pair], others[pair]
                    limits = (max(min(one[0]), min(two[0])), min(max(one[0]), max(two[0])))
                    areas = _area(one, log, limits), _area(two, log, limits)
                    if not any(map(math.isnan, areas)):
                        first[pair], second[pair] = areas
                        ranges.append(limits)
                axis = "log pixels" if log else "pixels"
                ends = np.mean(ranges, axis=0).tolist() if ranges else (None, None)
                rows.append((*scope, axis, method, baseline, *_points(compare(first, second, seed=seed)), *ends))
    ends = (Column("from pixels", ".0f"), Column("to pixels", ".0f"))
    columns = (*_SCOPE, Column("over"), Column("method"), Column("baseline"), *_COMPARISON, *ends)
    return Table("area_differences", columns, tuple(rows))


def comparison_matrix(table: Table, keys: Iterable[str]) -> list[str]:
    """Return lines of Markdown: a row a method, a column a baseline, bold where the interval leaves out 0.

    Args:
        table: from :func:`difference_table` or :func:`area_difference_table`.
        keys: headings of the columns that a row is of.
    """
    names, keys = [column.name for column in table.columns], list(keys)
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for values in table.rows:
        row = dict(zip(names, values, strict=True))
        text = "-"
        if row["pairs"]:
            text = f"{shown(row['difference'], '+.1f')} [{shown(row['low'], '+.1f')}, {shown(row['high'], '+.1f')}]"
            text = f"**{text}**" if row["low"] > 0 or row["high"] < 0 else text
            text += f" p {shown(row['p'], '.3f')}, {row['wins']}/{row['pairs']}"
        cells.setdefault(tuple(row[key] for key in keys), {})[row["baseline"]] = text
    forms = [table.columns[names.index(key)].form for key in keys]
    rows = [
        [*(shown(value, form) for value, form in zip(key, forms, strict=True)), *(found.get(b, "") for b in BASELINES)]
        for key, found in sorted(cells.items(), key=lambda item: _order(item[0]))
    ]
    header = [*keys, *(f"against {baseline}" for baseline in BASELINES)]
    return markdown_table(header, rows, [*map(bool, forms), *[False] * len(BASELINES)])


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(METHODS.index(value) if value in METHODS else value for value in key)


def missing_table(rows: Iterable[Row]) -> Table:
    """List cells that a complete grid would have, see :func:`monai_kwtl.benchmark.plan.rows.missing_cells`."""
    columns = (*_SCOPE, Column("method"), Column("budget", "g"), Column("split", "d"), Column("seed", "d"))
    return Table("missing", columns, tuple((*s, m, b, *pair) for s, m, b, pair in missing_cells(rows)))

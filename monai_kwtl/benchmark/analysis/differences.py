"""Paired differences: methods against the random baselines, also in area under curves; ablations against the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from monai_kwtl.benchmark.analysis.layout import Table, markdown_table, shown
from monai_kwtl.benchmark.analysis.statistics import area_under_curve, compare
from monai_kwtl.benchmark.plan.methods import VARIANTS, Variant
from monai_kwtl.benchmark.plan.rows import BASELINES, RUN, SCOPE, WITHOUT_BUDGET, missing_experiments, places

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

_CELL = [*SCOPE, "method", "budget"]
_COSTS = ["windows", "unique_pixels", "images", "objects"]
_COMPARISON = {
    **dict.fromkeys(("pairs", "wins"), ".0f"),
    **dict.fromkeys(("difference", "low", "high"), "+.2f"),
    "p": ".4f",
}
_PIXELS = {"from pixels": ".0f", "to pixels": ".0f"}


def _table(name: str, rows: list, columns: list[str], forms: dict[str, str]) -> Table:
    return Table(name, pd.DataFrame(rows, columns=columns), {"budget": "g", **forms})


def _ious(rows: pd.DataFrame) -> dict[tuple, dict[tuple[int, int], float]]:
    """Return the IoUs of each scope, method and budget, by split and seed."""
    groups = rows.groupby(_CELL, sort=False)
    return {
        key: dict(zip(zip(cells["split"], cells["seed"], strict=True), cells["mean_iou"], strict=True))
        for key, cells in groups
    }


def difference_table(rows: pd.DataFrame, seed: int = 0) -> Table:
    """Compare every method with every random baseline of its variant, at each budget, paired by split and seed.

    Args:
        rows: as from :func:`monai_kwtl.benchmark.plan.rows.read_rows`. Of variants besides the base only the
            comparisons are made that have a pair: an ablation seldom repeats the baselines.
        seed: of the bootstrap.

    Returns:
        Differences of mean IoU in percentage points, method minus baseline, with 95 % intervals: of selection alone.
    """
    return _compared("differences", rows, seed, lambda variant: variant)


def both_table(rows: pd.DataFrame, seed: int = 0) -> Table:
    """Compare every method of a variant with every random baseline of the base: other windows and another tuning.

    A baseline is also compared with itself. Arguments and result are those of :func:`difference_table`.
    """
    return _compared("both", rows, seed, lambda variant: None if variant == "base" else "base")


def window_table(rows: pd.DataFrame, seed: int = 0) -> Table:
    """Compare every method of a variant with other windows with every random baseline of windows of the usual size.

    Both are tuned and measured alike: the size of the windows is a part of the choice of what to label. Arguments and
    result are those of :func:`difference_table`.
    """

    def usual(variant: str) -> str | None:
        other = VARIANTS.get(variant, Variant())
        alike = (name for name, found in VARIANTS.items() if found == replace(other, window=1.0))
        return next(alike, None) if other.window != 1 else None

    return _compared("windows", rows, seed, usual)


def _compared(name: str, rows: pd.DataFrame, seed: int, other_variant: Callable[[str], str | None]) -> Table:
    """Compare methods with the baselines of a variant, for each variant its own; of None nothing is compared."""
    found, ious = [], _ious(rows[~rows["method"].isin(WITHOUT_BUDGET)])
    for key, ours in ious.items():
        cell = dict(zip(_CELL, key, strict=True))
        variant = other_variant(cell["variant"])
        for baseline in BASELINES if variant else ():
            other = {**cell, "variant": variant, "method": baseline}
            if other != cell:
                comparison = compare(ours, ious.get(tuple(other.values()), {}), seed)
                if comparison["pairs"] or cell["variant"] == "base":
                    found.append({**cell, "baseline": baseline, **comparison})
    return _table(name, found, [*SCOPE, "budget", "method", "baseline", *_COMPARISON], _COMPARISON)


def verdict_table(differences: Table) -> Table:
    """Sum up :func:`difference_table`: at how many budgets a method is ahead of a baseline, behind it, or neither.

    Returns:
        A row for each scope and method, for each baseline ``ahead / behind / open`` by the 95 % interval; budgets with
        fewer than two pairs, which have no interval, count as open.
    """
    found: dict[tuple, dict[str, str]] = {}
    for (*key, baseline), budgets in differences.data.groupby([*SCOPE, "method", "baseline"], sort=False):
        ahead, behind = (budgets["low"] > 0).sum(), (budgets["high"] < 0).sum()
        found.setdefault(tuple(key), {})[baseline] = f"{ahead} / {behind} / {len(budgets) - ahead - behind}"
    rows = [(*key, *map(texts.get, BASELINES)) for key, texts in found.items()]
    headings = [f"ahead / behind / open against {baseline}" for baseline in BASELINES]
    return _table("verdicts", rows, [*SCOPE, "method", *headings], {})


def ablation_table(rows: pd.DataFrame, seed: int = 0) -> Table:
    """Compare every variant with the base, of the same method at the same budget, paired by split and seed.

    Returns:
        Means of IoU in % over the runs that both have (all of the variant's where there are none), and differences in
        percentage points, variant minus base.
    """
    ious, costs, found = _ious(rows), rows.groupby(_CELL, sort=False)[_COSTS].mean(), []
    for key, ours in ious.items():
        cell = dict(zip(_CELL, key, strict=True))
        if cell["variant"] != "base":
            base = ious.get(tuple({**cell, "variant": "base"}.values()), {})
            both = (base.keys() & ours.keys()) or ours.keys()
            means = [100 * pd.Series([each[run] for run in both if run in each]).mean() for each in (base, ours)]
            means = dict(zip(("base IoU %", "variant IoU %"), means, strict=True))
            found.append({**cell, **means, **compare(ours, base, seed), **costs.loc[key]})
    forms = {"base IoU %": ".1f", "variant IoU %": ".1f", **_COMPARISON}
    forms |= dict(zip(_COSTS, (".0f", ".0f", ".1f", ".1f"), strict=True))
    return _table("ablations", found, [*_CELL, *forms], forms)


def _curves(rows: pd.DataFrame) -> dict[tuple, dict[tuple[int, int], np.ndarray]]:
    """Return pixels and IoUs, shape (2, N), of each run with all budgets of its scope, by scope and method.

    A run that misses a budget has no curve. Of the variants only those have curves that have several budgets.
    """
    rows = rows[~rows["method"].isin(WITHOUT_BUDGET)]
    budgets = rows.groupby(SCOPE)["budget"].transform("nunique")
    found = rows.groupby([*SCOPE, "method", *RUN])["budget"].transform("size")
    wanted = rows[(rows["variant"] == "base") | (budgets > 1)]
    complete = found == budgets
    return {
        key: {
            run: curve[["unique_pixels", "mean_iou"]].to_numpy().T
            for run, curve in cells[complete[cells.index]].groupby(RUN)
        }
        for key, cells in wanted.groupby([*SCOPE, "method"], sort=False)
    }


def area_table(rows: pd.DataFrame) -> Table:
    """Make the table of areas under the curve of IoU against unique labelled pixels, over its base: an IoU in %.

    Each method's area is over its own range of pixels, which stands beside it; see :func:`area_difference_table` for
    comparisons over a common range.
    """
    found = []
    for key, runs in _curves(rows).items():
        figures = pd.DataFrame(
            [
                (
                    100 * area_under_curve(*curve),
                    100 * area_under_curve(*curve, log=True),
                    curve[0].min(),
                    curve[0].max(),
                )
                for curve in runs.values()
            ],
            columns=range(4),
            dtype=float,
        )
        mean, std = figures.mean(), figures.std()
        found.append((*key, len(runs), mean[0], std[0], mean[1], std[1], mean[2], mean[3]))
    areas = ("area %", "std", "area % (log pixels)", "std (log)")
    forms = {"runs": ".0f", **dict.fromkeys(areas, ".2f"), **_PIXELS}
    return _table("areas", found, [*SCOPE, "method", *forms], forms)


def area_difference_table(rows: pd.DataFrame, seed: int = 0) -> Table:
    """Compare areas with those of the random baselines, each pair of curves over the range of pixels that both cover.

    A run whose two curves have no pixels in common is no pair: it would take extrapolation to compare them.

    Returns:
        Differences in percentage points of IoU, with 95 % intervals, over pixels and over their logarithm.
    """
    found, curves = [], _curves(rows)
    for (*scope, method), runs in curves.items():
        for baseline in BASELINES:
            if baseline == method:
                continue
            others = curves.get((*scope, baseline), {})
            for log in (False, True):
                first, second, limits = {}, {}, []
                for run in runs.keys() & others.keys():
                    curve, other = runs[run], others[run]
                    ends = (max(curve[0].min(), other[0].min()), min(curve[0].max(), other[0].max()))
                    areas = [area_under_curve(*each, log=log, limits=ends) for each in (curve, other)]
                    if not any(map(math.isnan, areas)):
                        first[run], second[run] = areas
                        limits.append(ends)
                ends = pd.DataFrame(limits, columns=list(_PIXELS), dtype=float).mean()
                names = (*scope, "log pixels" if log else "pixels", method, baseline)
                found.append((*names, *compare(first, second, seed).values(), *ends))
    forms = {**_COMPARISON, **_PIXELS}
    return _table("area_differences", found, [*SCOPE, "over", "method", "baseline", *forms], forms)


def comparison_matrix(table: Table, keys: Sequence[str]) -> list[str]:
    """Return lines of Markdown: a row a method, a column a baseline, bold where the interval leaves out 0.

    Args:
        table: from :func:`difference_table` or :func:`area_difference_table`.
        keys: columns that a row is of.
    """
    keys = list(keys)
    cells = table.texts([*keys, "baseline"]).assign(text=[_cell(row) for row in table.data.itertuples()])
    order = table.data.sort_values(keys, key=lambda column: places(column) if column.name == "method" else column)
    matrix = cells.pivot(index=keys, columns="baseline", values="text").fillna("")
    matrix = matrix.reindex(columns=list(BASELINES), fill_value="")
    matrix = cells[keys].loc[order.index].drop_duplicates().join(matrix.add_prefix("against "), on=keys)
    return markdown_table(matrix, set(table.forms))


def _cell(row) -> str:
    if not row.pairs:
        return "-"
    text = f"{shown(row.difference, '+.1f')} [{shown(row.low, '+.1f')}, {shown(row.high, '+.1f')}]"
    text = f"**{text}**" if row.low > 0 or row.high < 0 else text
    return f"{text} p {shown(row.p, '.3f')}, {row.wins}/{row.pairs}"


def missing_table(rows: pd.DataFrame) -> Table:
    """List the cells that a complete grid would have.

    See :func:`monai_kwtl.benchmark.plan.rows.missing_experiments`.
    """
    return Table("missing", missing_experiments(rows), {"budget": "g", "split": ".0f", "seed": ".0f"})

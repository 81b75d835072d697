"""Which cells of the grid are not there."""

from __future__ import annotations

from collections.abc import Iterable

from monai_kwtl.benchmark.rows import METHODS, WITHOUT_BUDGET, Row, Scope

__all__ = ["missing_cells"]


def missing_cells(rows: Iterable[Row]) -> list[tuple[Scope, str, float, tuple[int, int]]]:
    """Cells that a complete grid would have.

    A grid is complete when, within a scope, every method that any row has was run at every budget that any row has, on
    every (split, seed) that any row has; :data:`WITHOUT_BUDGET` counts at its own budgets only.

    Args:
        rows: as from :func:`read_rows`.

    Returns:
        (scope, method, budget, (split, seed)) of each missing cell, in the order of the rows.
    """
    by_scope: dict[Scope, list[Row]] = {}
    for row in rows:
        by_scope.setdefault(row.scope, []).append(row)
    missing = []
    for scope in sorted(by_scope, key=lambda scope: scope.order):
        found = by_scope[scope]
        pairs = sorted({row.pair for row in found})
        shared = {row.budget for row in found if row.method not in WITHOUT_BUDGET}
        there = {(row.method, row.budget, row.pair) for row in found}
        for method in METHODS:
            own = {row.budget for row in found if row.method == method}
            budgets = own if method in WITHOUT_BUDGET or not own else shared
            wanted = ((method, budget, pair) for budget in sorted(budgets) for pair in pairs)
            missing += [(scope, *cell) for cell in wanted if cell not in there]
    return missing

"""The paper's tables with our columns beside the paper's, and what the rows cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from monai_kwtl.benchmark.analysis.layout import Column, Table, shown
from monai_kwtl.benchmark.analysis.statistics import spread
from monai_kwtl.benchmark.plan.rows import METHODS, WITHOUT_BUDGET, Row, Scope

__all__ = [
    "Groups",
    "budget_table",
    "grouped",
    "paper_numbers",
    "pretext_table",
    "pseudo_label_table",
    "runs_of",
    "short_table",
    "time_table",
    "without_budget",
]

Groups = dict[tuple[Scope, str, float], list[Row]]

_KEYS = tuple(map(Column, ("target", "protocol", "schedule", "variant", "method")))
_FIGURES = (
    Column("runs"),
    Column("mean IoU %", ".1f"),
    Column("std", ".1f"),
    Column("paper %", ".1f"),
    Column("pooled IoU %", ".1f"),
    Column("Dice %", ".1f"),
    Column("windows", ".0f"),
    Column("unique pixels", ".0f"),
    Column("images", ".1f"),
    Column("objects", ".1f"),
    Column("foreground %", ".2f", False),
    Column("over-prediction", ".4f", False),
    Column("under-prediction", ".4f", False),
)


def paper_numbers() -> dict[str, Any]:
    """Return the paper's figures, mean IoU in %, as far as known here: tables 2 and 3 by shots, table 4."""
    return json.loads(resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))


def grouped(rows: Iterable[Row]) -> Groups:
    """Gather the runs (one for each split and seed) of every scope, method and budget, in the order of the rows."""
    groups: Groups = {}
    for row in rows:
        groups.setdefault((row.scope, row.method, row.budget), []).append(row)
    return groups


def runs_of(groups: Groups) -> dict[Scope, int]:
    """Count the (split, seed) that each scope has in any of its rows."""
    pairs: dict[Scope, set[tuple[int, int]]] = {}
    for (scope, _, _), rows in groups.items():
        pairs.setdefault(scope, set()).update(row.pair for row in rows)
    return {scope: len(found) for scope, found in pairs.items()}


def without_budget(groups: Groups) -> dict[tuple[Scope, str], list[Row]]:
    """Return the runs of methods that no budget matters to, each once, whichever budgets they are noted at.

    Returns:
        {(scope in shots, method): a row for each split and seed}.
    """
    found: dict[tuple[Scope, str], dict[tuple[int, int], Row]] = {}
    for (scope, method, _), rows in groups.items():
        if method in WITHOUT_BUDGET:
            runs = found.setdefault((scope._replace(budget_kind="shots"), method), {})
            for row in rows:
                runs.setdefault(row.pair, row)
    return {key: list(runs.values()) for key, runs in found.items()}


def _figures(rows: Sequence[Row], runs: int, paper: float | None) -> tuple[Any, ...]:
    """Return the means over the runs of what :data:`_FIGURES` names."""
    if not rows:
        return f"0 of {runs}" if runs else "0", None, None, paper, *[None] * (len(_FIGURES) - 4)

    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in rows]))

    iou = spread([100 * row.mean_iou for row in rows])
    shares = (100 * mean("pooled_iou"), 100 * mean("dice"))
    costs = (mean("windows"), mean("unique_pixels"), mean("images"), mean("objects"))
    rest = (100 * mean("foreground_share"), mean("over_prediction"), mean("under_prediction"))
    count = f"{len(rows)} of {runs}" if len(rows) < runs else str(len(rows))
    return count, iou.mean, iou.std, paper, *shares, *costs, *rest


def _paper_of(paper: Mapping[str, Any], scope: Scope, method: str) -> Mapping[str, float]:
    """Return the paper's table 2 for rows of its protocol; empty for all others."""
    same = scope.protocol == "random" and scope.budget_kind == "shots" and scope.variant == "base"
    return paper["table_2"].get(scope.target, {}).get(method, {}) if same else {}


def _base_scopes(groups: Groups, kind: str, paper: Mapping[str, Any]) -> list[Scope]:
    """Return scopes of the base variant, and for shots one for each target of the paper that was not run at all."""
    scopes = {scope for scope, _, _ in groups if scope.variant == "base" and scope.budget_kind == kind}
    if kind == "shots":
        run = {scope.target for scope in scopes}
        scopes |= {Scope(t, "random", "-", "base", "shots") for t in paper["table_2"] if t not in run}
    return sorted(scopes, key=lambda scope: scope.order)


def budget_table(groups: Groups, kind: str, paper: Mapping[str, Any]) -> Table:
    """Make table 2, a row for each method and budget, with what it cost.

    Args:
        groups: as from :func:`grouped`.
        kind: of budget, ``shots`` or ``pixels``; the paper knows shots only.
        paper: as from :func:`paper_numbers`.

    Returns:
        Rows of the base variant. Where the paper has a number and we have none, ours are missing.
    """
    runs, rows = runs_of(groups), []
    for scope in _base_scopes(groups, kind, paper):
        for method in METHODS:
            theirs = {float(budget): value for budget, value in _paper_of(paper, scope, method).items()}
            ours = {budget: found for (s, m, budget), found in groups.items() if (s, m) == (scope, method)}
            for budget in sorted({*ours, *theirs}):
                label = None if method in WITHOUT_BUDGET and not budget else budget
                figures = _figures(ours.get(budget, []), runs.get(scope, 0), theirs.get(budget))
                rows.append((*scope[:4], method, label, *figures))
    heading = "shots" if kind == "shots" else "images' worth"
    name = "table_2" if kind == "shots" else "equal_pixels"
    return Table(name, (*_KEYS, Column(heading, "g"), *_FIGURES), tuple(rows))


def short_table(groups: Groups, paper: Mapping[str, Any]) -> Table:
    """Make table 2 in short: a row a method, a column for each number of shots, the paper's rows below ours.

    Cells are mean ± std of the IoU in %; the number of runs follows where some are missing.
    """
    scopes = _base_scopes(groups, "shots", paper)
    known = {b for (s, m, b) in groups if s in scopes and m not in WITHOUT_BUDGET}
    known |= {float(b) for methods in paper["table_2"].values() for found in methods.values() for b in found}
    budgets, runs, same, rows = sorted(known), runs_of(groups), without_budget(groups), []
    for scope in scopes:
        for method in METHODS:
            found = {b: rows for (s, m, b), rows in groups.items() if (s, m) == (scope, method)}
            if (scope, method) in same:
                found = dict.fromkeys(budgets, same[scope, method])
            if found:
                rows.append((*scope[:3], method, *(_mean_std(found.get(b, []), runs[scope]) for b in budgets)))
        for method in METHODS:
            if theirs := _paper_of(paper, scope, method):
                values = (shown(theirs.get(f"{b:g}"), ".1f") for b in budgets)
                rows.append((scope.target, scope.protocol, "paper", f"{method}, as published", *values))
    shots = (Column(f"{b:g} shot{'' if b == 1 else 's'}") for b in budgets)
    return Table("short", (*_KEYS[:3], _KEYS[4], *shots), tuple(rows))


def _mean_std(rows: Sequence[Row], runs: int) -> str | None:
    if not rows:
        return None
    iou = spread([100 * row.mean_iou for row in rows])
    text = shown(iou.mean, ".1f") + ("" if math.isnan(iou.std) else f" ± {iou.std:.1f}")
    return text if len(rows) == runs else f"{text} ({len(rows)} of {runs} runs)"


def pseudo_label_table(groups: Groups, paper: Mapping[str, Any]) -> Table:
    """Make table 3: pseudo-labels of the equalised threshold (base) against those of K-means, for the paper's method.

    The paper states the mean of some targets, which is ours too only where all of them were run.
    """
    runs, rows = runs_of(groups), []
    known = {scope for scope, _, _ in groups if scope.budget_kind == "shots" and scope.variant in ("base", "kmeans")}
    with_kmeans = {s._replace(variant="base") for s in known if s.variant == "kmeans"}
    means: dict[tuple[str, str], dict[tuple[str, str, float], float]] = {}
    for base in sorted(with_kmeans, key=lambda scope: scope.order):
        for scope in (base, base._replace(variant="kmeans")):
            for (s, method, budget), found in groups.items():
                if (s, method) == (scope, "top_k_soft"):
                    figures = _figures(found, runs[scope], None)
                    rows.append((*scope[:4], method, budget, *figures))
                    key = (scope.target, scope.variant, budget)
                    means.setdefault((scope.protocol, scope.schedule), {})[key] = figures[1]
    targets = paper["table_3"]["targets"]
    for protocol, schedule in sorted(means) or [("random", "-")]:
        for variant in ("base", "kmeans"):
            for budget, theirs in paper["table_3"][variant].items():
                ours = [means.get((protocol, schedule), {}).get((t, variant, float(budget))) for t in targets]
                mean = None if None in ours else float(np.mean(ours))
                stated = theirs if protocol == "random" else None
                figures = (None, mean, None, stated, *[None] * (len(_FIGURES) - 4))
                key = (f"mean of {' and '.join(targets)}", protocol, schedule, variant, "top_k_soft")
                rows.append((*key, float(budget), *figures))
    return Table("table_3", (*_KEYS, Column("shots", "g"), *_FIGURES), tuple(rows))


def pretext_table(groups: Groups, paper: Mapping[str, Any]) -> Table:
    """Make table 4: the pretext network alone, before any window is labelled, and full supervision as the ceiling."""
    runs, theirs, rows = runs_of(groups), dict(paper["table_4"]), []
    for (scope, method), found in without_budget(groups).items():
        if scope.variant == "base":
            stated = theirs.get(scope.target) if (method, scope.protocol) == ("pretext_only", "random") else None
            rows.append((*scope[:4], method, *_figures(found, runs.get(scope, len(found)), stated)))
    run = {row[0] for row in rows if row[4] == "pretext_only" and row[1] == "random"}
    for target in theirs:
        if target not in run:
            scope = Scope(target, "random", "-", "base", "shots")
            rows.append((*scope[:4], "pretext_only", *_figures([], 0, theirs[target])))
    return Table("table_4", (*_KEYS, *_FIGURES), tuple(rows))


def time_table(times: Mapping[tuple[str, str, str], Sequence[tuple[float, float]]]) -> Table:
    """Average the seconds of choosing the windows and of training on them, as from :func:`~.rows.read_times`."""
    columns = (Column("select s", ".1f"), Column("train s", ".1f"), Column("cells", "d"))
    rows = []
    order = {method: place for place, method in enumerate(METHODS)}
    for target, schedule, method in sorted(
        times, key=lambda k: (Scope(k[0], "", k[1], "", "").order, order.get(k[2], 99))
    ):
        found = times[target, schedule, method]
        rows.append((target, schedule, method, *np.mean(found, axis=0).tolist(), len(found)))
    return Table("times", (_KEYS[0], _KEYS[2], _KEYS[4], *columns), tuple(rows))

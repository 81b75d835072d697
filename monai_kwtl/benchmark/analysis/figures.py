"""Curves of IoU against what was labelled, as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from monai_kwtl.benchmark.analysis.statistics import spread
from monai_kwtl.benchmark.analysis.tables import Groups, runs_of, without_budget
from monai_kwtl.benchmark.plan.rows import METHODS, WITHOUT_BUDGET, Row, Scope
from monai_kwtl.utils.atomic import replaced

__all__ = ["LOOKS", "draw_budget_curves", "draw_variant_curves"]


class _Look(NamedTuple):
    label: str
    color: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]


# the colours of Okabe and Ito, which stay apart for every kind of colour vision; the baselines are grey and dashed
LOOKS = {
    "top_k_soft": _Look("consistency, top k (paper)", "#D55E00", "o", "-"),
    "top_k_hard": _Look("consistency, top k, hard target", "#E69F00", "1", "-"),
    "coverage": _Look("consistency, coverage", "#0072B2", "D", "-"),
    "entropy": _Look("entropy", "#009E73", "^", "-"),
    "mc_dropout": _Look("MC-dropout", "#CC79A7", "v", "-"),
    "random": _Look("random", "#000000", "x", "--"),
    "random_stratified": _Look("random, stratified by image", "#555555", "P", "-."),
    "foreground_random": _Look("random, foreground-aware", "#888888", "*", ":"),
    "strided": _Look("strided", "#AAAAAA", "h", (0, (5, 1))),
    "top_k_kl": _Look("divergence, top k", "#A63603", "<", "--"),
    "top_k_jsd": _Look("Jensen-Shannon, top k", "#B8860B", ">", "--"),
    "power": _Look("divergence, power noise", "#F0C040", "p", "-."),
    "two_thirds": _Look("divergence, two thirds on foreground", "#66C2A5", "d", "-."),
    "balanced": _Look("balanced random", "#CC3311", "s", "-"),
    "balanced_2_rounds": _Look("balanced random, two rounds", "#EE7733", "$2$", "--"),
    "balanced_3_rounds": _Look("balanced random, three rounds", "#EE3377", "$3$", ":"),
    "herding": _Look("uncertainty herding", "#882255", "H", "-"),
    "herding_2_rounds": _Look("uncertainty herding, two rounds", "#AA4499", "8", "--"),
    "herding_3_rounds": _Look("uncertainty herding, three rounds", "#CC6677", "X", ":"),
    "random_then_coverage": _Look("random, then coverage by the tuned network", "#4477AA", "2", "--"),
    "random_then_power": _Look("random, then power noise by the tuned network", "#BBCC33", "3", ":"),
    "random_then_foreground": _Look("random, then foreground-aware by the tuned network", "#332288", "4", "--"),
    "typical": _Look("typical (k-means)", "#117733", ".", "-"),
    "k_centre": _Look("core-set (k-centre)", "#44AA99", "+", "-"),
}
_STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_PAPER = "#56B4E9"

Curve = Mapping[float, Sequence[Row]]


def _curve_of(groups: Groups, scope: Scope, method: str) -> dict[float, list[Row]]:
    return {budget: rows for (s, m, budget), rows in groups.items() if (s, m) == (scope, method)}


def _draw(axes: Axes, curve: Curve, x: str, look: _Look, nudge: float = 0.0, **style: Any) -> None:
    """Draw means over runs with their standard deviation as a bar."""
    points = []
    for budget in sorted(curve):
        iou = spread([100 * row.mean_iou for row in curve[budget]])
        at = budget if x == "budget" else float(np.mean([row.unique_pixels for row in curve[budget]]))
        if x == "budget" or at > 0:  # nothing labelled has no place on a logarithmic axis
            points.append((at + nudge, iou.mean, 0.0 if np.isnan(iou.std) else iou.std))
    if not points:
        return
    at, mean, std = zip(*sorted(points), strict=True)
    style = {"linestyle": look.dash, "marker": look.marker, "linewidth": 1.4, "markersize": 5} | style
    _, _, bars = axes.errorbar(at, mean, std, color=look.color, elinewidth=0.8, capsize=0, **style)
    for bar in bars:
        bar.set_alpha(0.45)


def _grid_of(scopes: Sequence[Scope], ylabel: str) -> tuple[Figure, dict[Scope, Axes]]:
    """Make a panel for each scope, two or three in a line."""
    columns = len(scopes) if len(scopes) <= 3 else 2 if len(scopes) == 4 else 3
    lines = -(-len(scopes) // columns)
    figure = Figure(figsize=(max(6.5, 4.2 * columns), 3.1 * lines + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {}
    for place, scope in enumerate(scopes):
        axes = panels[scope] = figure.add_subplot(lines, columns, place + 1)
        axes.set_title(f"{scope.target} ({scope.protocol} splits, {scope.schedule} schedule)", fontsize=9)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        if place % columns == 0:
            axes.set_ylabel(ylabel)
    return figure, panels


def _save(figure: Figure, handles: Sequence[Line2D], path: Path) -> None:
    columns = 3 if figure.get_figwidth() > 7 and max(len(str(handle.get_label())) for handle in handles) < 36 else 2
    style = {"frameon": False, "fontsize": 8.5, "handlelength": 3.2}
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, **style)
    with replaced(path) as unfinished:
        figure.savefig(unfinished, dpi=130, format="png", metadata={"Software": None})


def _in_thousands(value: float, _: int) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k"


def _pixel_axis(axes: Axes) -> None:
    axes.set_xlabel("unique labelled pixels (log scale)")
    if not axes.containers:
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [m * 10.0**e for e in range(2, 11) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axes.set_xticks(ticks[:: max(1, -(-len(ticks) // 6))])
    axes.xaxis.set_major_formatter(FuncFormatter(_in_thousands))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _handle(look: _Look, **style: Any) -> Line2D:
    style = {"linestyle": look.dash, "marker": look.marker, "markersize": 5, "linewidth": 1.4} | style
    return Line2D([], [], color=look.color, label=style.pop("label", look.label), **style)


def draw_budget_curves(
    groups: Groups, kind: str, x: str, path: str | Path, paper: Mapping[str, Any] | None = None
) -> bool:
    """Draw mean IoU of every method against the budget or against unique labelled pixels; bars are ± one std.

    Args:
        groups: as from :func:`monai_kwtl.benchmark.analysis.tables.grouped`; of the base variant.
        kind: of budget, ``shots`` or ``pixels``.
        x: ``budget`` or ``unique_pixels``, which is on a log scale.
        path: of the PNG; its bytes depend on the results and the version of matplotlib alone.
        paper: the paper's numbers, to draw beside ours against the shots.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    drawn = {
        (scope, method): _curve_of(groups, scope, method)
        for scope, method, _ in groups
        if scope.variant == "base" and scope.budget_kind == kind and method in LOOKS
    }
    if not drawn:
        return False
    scopes, ceilings = list(dict.fromkeys(scope for scope, _ in drawn)), without_budget(groups)
    handles = {method: _handle(LOOKS[method]) for method in METHODS if any(m == method for _, m in drawn)}
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid_of(scopes, "mean IoU, %")
        for scope, axes in panels.items():
            methods = [method for method in METHODS if (scope, method) in drawn]
            for place, method in enumerate(methods):
                nudge = 0.06 * (place - (len(methods) - 1) / 2) if x == "budget" else 0.0
                _draw(axes, drawn[scope, method], x, LOOKS[method], nudge)
            if rows := ceilings.get((scope._replace(budget_kind="shots"), "full")):
                style = {"color": "#999999", "linestyle": (0, (1, 1)), "linewidth": 1.2}
                axes.axhline(100 * float(np.mean([row.mean_iou for row in rows])), zorder=0, **style)
                handles["full"] = Line2D([], [], label="full supervision", **style)
            if x == "budget":
                axes.set_xticks(sorted({b for s, m, b in groups if s == scope and m not in WITHOUT_BUDGET}))
                axes.set_xlabel("shots" if kind == "shots" else "images' worth of unique pixels")
            else:
                _pixel_axis(axes)
            if paper and x == "budget" and scope.protocol == "random":
                for method, theirs in paper["table_2"].get(scope.target, {}).items():
                    style = {"linestyle": LOOKS[method].dash, "marker": LOOKS[method].marker, "markerfacecolor": "w"}
                    label = f"{LOOKS[method].label.removesuffix(' (paper)')}, as published"
                    axes.plot([float(b) for b in theirs], theirs.values(), color=_PAPER, linewidth=1.2, **style)
                    handles[f"paper {method}"] = Line2D([], [], color=_PAPER, linewidth=1.2, label=label, **style)
        _save(figure, list(handles.values()), Path(path))
    return True


def draw_variant_curves(groups: Groups, variants: Iterable[str], path: str | Path) -> bool:
    """Draw mean IoU against shots of variants (dashed, hollow) and of the base (solid), of the same methods.

    Args:
        groups: as from :func:`monai_kwtl.benchmark.analysis.tables.grouped`.
        variants: names of the ablations.
        path: of the PNG.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    wanted = [v for v in variants if any(s.variant == v and s.budget_kind == "shots" for s in runs_of(groups))]
    bases = list(
        dict.fromkeys(
            scope._replace(variant="base")
            for scope, method, _ in groups
            if scope.variant in wanted and scope.budget_kind == "shots" and method in LOOKS
        )
    )
    if not bases:
        return False
    dashes = ["--", ":", "-.", (0, (5, 1))]
    handles: dict[str, Line2D] = {}
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid_of(bases, "mean IoU, %")
        for base, axes in panels.items():
            for method, look in LOOKS.items():
                found = {v: _curve_of(groups, base._replace(variant=v), method) for v in wanted}
                if not any(found.values()):
                    continue
                if own := _curve_of(groups, base, method):
                    _draw(axes, own, "budget", look, linestyle="-")
                    handles[method] = _handle(look, linestyle="-")
                for place, (variant, curve) in enumerate(found.items()):
                    if curve:
                        style = {"linestyle": dashes[place % len(dashes)], "markerfacecolor": "w"}
                        _draw(axes, curve, "budget", look, 0.08 * (place + 1), **style)
                        label = f"{look.label}: {variant.replace('_', ' ')}"
                        handles[f"{method} {variant}"] = _handle(look, label=label, **style)
            shots = {b for s, m, b in groups if s.target == base.target and s[1:3] == base[1:3] and m in LOOKS}
            axes.set_xticks(sorted(shots))
            axes.set_xlabel("shots")
        _save(figure, list(handles.values()), Path(path))
    return True

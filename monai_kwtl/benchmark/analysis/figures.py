"""Curves of IoU against what was labelled, as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from monai_kwtl.benchmark.analysis.tables import without_budget
from monai_kwtl.benchmark.plan.methods import METHODS
from monai_kwtl.benchmark.plan.rows import SCOPE, WITHOUT_BUDGET
from monai_kwtl.utils.atomic import atomic_write

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


def _of(rows: pd.DataFrame, **values: str) -> pd.DataFrame:
    """Return the rows that have these values."""
    return rows[(rows[list(values)] == list(values.values())).all(axis=1)]


def _draw(axes: Axes, rows: pd.DataFrame, x: str, look: _Look, nudge: float = 0.0, **style: Any) -> None:
    """Draw means over the runs of each budget with their standard deviation as a bar."""
    groups = rows.groupby("budget")
    points = pd.DataFrame({"mean": 100 * groups["mean_iou"].mean(), "std": 100 * groups["mean_iou"].std().fillna(0)})
    points["at"] = points.index if x == "budget" else groups[x].mean()
    if x != "budget":
        points = points[points["at"] > 0]  # nothing labelled has no place on a logarithmic axis
    if points.empty:
        return
    points = points.sort_values("at")
    style = {"linestyle": look.dash, "marker": look.marker, "linewidth": 1.4, "markersize": 5} | style
    _, _, bars = axes.errorbar(
        points["at"] + nudge, points["mean"], points["std"], color=look.color, elinewidth=0.8, capsize=0, **style
    )
    for bar in bars:
        bar.set_alpha(0.45)


def _grid_of(scopes: pd.DataFrame, ylabel: str) -> tuple[Figure, list[tuple[dict[str, str], Axes]]]:
    """Make a panel for each scope, two or three in a line; with each of them comes what its rows have."""
    columns = len(scopes) if len(scopes) <= 3 else 2 if len(scopes) == 4 else 3
    lines = -(-len(scopes) // columns)
    figure = Figure(figsize=(max(6.5, 4.2 * columns), 3.1 * lines + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = []
    for place, scope in enumerate(scopes.to_dict("records")):
        axes = figure.add_subplot(lines, columns, place + 1)
        panels.append((scope, axes))
        axes.set_title("{target} ({protocol} splits, {schedule} schedule)".format(**scope), fontsize=9)
        axes.grid(True, color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        if place % columns == 0:
            axes.set_ylabel(ylabel)
    return figure, panels


def _save(figure: Figure, handles: Sequence[Line2D], path: Path) -> None:
    columns = 3 if figure.get_figwidth() > 7 and max(len(str(handle.get_label())) for handle in handles) < 36 else 2
    style = {"frameon": False, "fontsize": 8.5, "handlelength": 3.2}
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, **style)
    with atomic_write(path, None, durable=False) as unfinished:
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
    rows: pd.DataFrame, kind: str, x: str, path: str | Path, paper: Mapping[str, Any] | None = None
) -> bool:
    """Draw mean IoU of every method against the budget or against unique labelled pixels; bars are ± one std.

    Args:
        rows: as from :func:`monai_kwtl.benchmark.plan.rows.read_rows`; the base variant is drawn.
        kind: of budget, ``shots`` or ``pixels``.
        x: ``budget`` or ``unique_pixels``, which is on a log scale.
        path: of the PNG; its bytes depend on the results and the version of matplotlib alone.
        paper: the paper's numbers, to draw beside ours against the shots.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    base = _of(rows, variant="base", budget_kind=kind)
    drawn, ceilings = base[base["method"].isin(LOOKS)], without_budget(rows)
    if drawn.empty:
        return False
    handles = {method: _handle(LOOKS[method]) for method in METHODS if method in set(drawn["method"])}
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid_of(drawn[SCOPE].drop_duplicates(), "mean IoU, %")
        for scope, axes in panels:
            curves = dict(list(_of(drawn, **scope).groupby("method", sort=False)))
            for place, (method, curve) in enumerate(curves.items()):
                nudge = 0.06 * (place - (len(curves) - 1) / 2) if x == "budget" else 0.0
                _draw(axes, curve, x, LOOKS[method], nudge)
            full = _of(ceilings, **{**scope, "budget_kind": "shots", "method": "full"})
            if len(full):
                style = {"color": "#999999", "linestyle": (0, (1, 1)), "linewidth": 1.2}
                axes.axhline(100 * full["mean_iou"].mean(), zorder=0, **style)
                handles["full"] = Line2D([], [], label="full supervision", **style)
            if x == "budget":
                own = _of(base, **scope)
                axes.set_xticks(sorted(set(own.loc[~own["method"].isin(WITHOUT_BUDGET), "budget"])))
                axes.set_xlabel("shots" if kind == "shots" else "images' worth of unique pixels")
            else:
                _pixel_axis(axes)
            if paper and x == "budget" and scope["protocol"] == "random":
                for method, theirs in paper["table_2"].get(scope["target"], {}).items():
                    style = {"linestyle": LOOKS[method].dash, "marker": LOOKS[method].marker, "markerfacecolor": "w"}
                    label = f"{LOOKS[method].label.removesuffix(' (paper)')}, as published"
                    axes.plot([float(b) for b in theirs], theirs.values(), color=_PAPER, linewidth=1.2, **style)
                    handles[f"paper {method}"] = Line2D([], [], color=_PAPER, linewidth=1.2, label=label, **style)
        _save(figure, list(handles.values()), Path(path))
    return True


def draw_variant_curves(rows: pd.DataFrame, variants: Iterable[str], path: str | Path) -> bool:
    """Draw mean IoU against shots of variants (dashed, hollow) and of the base (solid), of the same methods.

    Args:
        rows: as from :func:`monai_kwtl.benchmark.plan.rows.read_rows`.
        variants: names of the ablations.
        path: of the PNG.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    shots = _of(rows, budget_kind="shots")
    shots = shots[shots["method"].isin(LOOKS)]
    wanted = [variant for variant in variants if variant in set(shots["variant"])]
    bases = shots[shots["variant"].isin(wanted)].assign(variant="base")[SCOPE].drop_duplicates()
    if bases.empty:
        return False
    dashes = ["--", ":", "-.", (0, (5, 1))]
    handles: dict[str, Line2D] = {}
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid_of(bases, "mean IoU, %")
        for base, axes in panels:
            for method, look in LOOKS.items():
                found = {v: _of(shots, **{**base, "variant": v, "method": method}) for v in wanted}
                if all(curve.empty for curve in found.values()):
                    continue
                own = _of(shots, **base, method=method)
                if len(own):
                    _draw(axes, own, "budget", look, linestyle="-")
                    handles[method] = _handle(look, linestyle="-")
                for place, (variant, curve) in enumerate(found.items()):
                    if len(curve):
                        style = {"linestyle": dashes[place % len(dashes)], "markerfacecolor": "w"}
                        _draw(axes, curve, "budget", look, 0.08 * (place + 1), **style)
                        label = f"{look.label}: {variant.replace('_', ' ')}"
                        handles[f"{method} {variant}"] = _handle(look, label=label, **style)
            here = _of(rows, **{name: base[name] for name in SCOPE[:3]})
            axes.set_xticks(sorted(set(here.loc[here["method"].isin(LOOKS), "budget"])))
            axes.set_xlabel("shots")
        _save(figure, list(handles.values()), Path(path))
    return True

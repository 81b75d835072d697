"""The paper's tables with our columns beside the paper's, and what the rows cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pandas as pd

from monai_kwtl.benchmark.analysis.layout import Table
from monai_kwtl.benchmark.plan.rows import KEYS, RUN, SCOPE, WITHOUT_BUDGET, in_order

__all__ = [
    "budget_table",
    "paper_numbers",
    "pretext_table",
    "pseudo_label_table",
    "short_table",
    "time_table",
    "without_budget",
]

_NAMES = ["target", "protocol", "schedule", "variant", "method"]
_MEANS = {  # columns of the rows, as the tables call their means
    "mean_iou": "mean IoU %",
    "pooled_iou": "pooled IoU %",
    "dice": "Dice %",
    "windows": "windows",
    "unique_pixels": "unique_pixels",
    "images": "images",
    "objects": "objects",
    "foreground_share": "foreground %",
    "over_prediction": "over-prediction",
    "under_prediction": "under-prediction",
}
_FIGURES = ["runs", "mean IoU %", "std", "paper %", *list(_MEANS.values())[1:]]
_HIDDEN = ("foreground %", "over-prediction", "under-prediction")
_FORMS = {
    **dict.fromkeys(("mean IoU %", "std", "paper %", "pooled IoU %", "Dice %", "images", "objects"), ".1f"),
    **dict.fromkeys(("windows", "unique_pixels"), ".0f"),
    **{"foreground %": ".2f", "over-prediction": ".4f", "under-prediction": ".4f"},
    **dict.fromkeys(("shots", "images' worth"), "g"),
}


def paper_numbers() -> dict[str, Any]:
    """Return what the paper states, mean IoU in %, as far as it is known here: tables 2 and 3 by shots, table 4."""
    return json.loads(resources.files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))


def without_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of the methods that no budget matters to, each once, as if their budgets were in shots."""
    found = rows[rows["method"].isin(WITHOUT_BUDGET)].assign(budget_kind="shots")
    return found.drop_duplicates([name for name in KEYS if name != "budget"])


def _means(found: pd.DataFrame, keys: list[str], rows: pd.DataFrame) -> pd.DataFrame:
    """Return means over the runs of each group, and of how many of the runs that ``rows`` has in the same scope."""
    shares = ["mean_iou", "pooled_iou", "dice", "foreground_share"]
    groups = found.assign(**{name: 100 * found[name] for name in shares}).groupby(keys, sort=False)
    means = groups[list(_MEANS)].mean().rename(columns=_MEANS)
    means["std"], means["found"] = groups["mean_iou"].std(), groups.size()
    return means.reset_index().merge(_runs(rows), how="left", on=SCOPE)


def _runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many (split, seed) each scope has in any of its rows."""
    return rows[[*SCOPE, *RUN]].drop_duplicates().groupby(SCOPE, as_index=False).size().rename(columns={"size": "all"})


def _counted(means: pd.DataFrame) -> pd.DataFrame:
    """Add how many runs were found, and of how many where some are missing."""
    pairs = means[["found", "all"]].fillna(0).astype(int).itertuples(index=False)
    return means.assign(runs=[f"{found} of {total}" if found < total else str(found) for found, total in pairs])


def _paper_rows(scopes: pd.DataFrame, table_2: Mapping[str, Any]) -> pd.DataFrame:
    """Return the paper's table 2 for the scopes of its protocol, and its targets that were not run at all."""
    numbers = [
        (target, method, float(budget), iou)
        for target, methods in table_2.items()
        for method, found in methods.items()
        for budget, iou in found.items()
    ]
    absent = [(target, "random", "-", "base", "shots") for target in table_2 if target not in set(scopes["target"])]
    scopes = pd.DataFrame([*scopes.itertuples(index=False), *absent], columns=SCOPE)
    theirs = pd.DataFrame(numbers, columns=["target", "method", "budget", "paper %"]).astype({"budget": float})
    return scopes[scopes["protocol"] == "random"].merge(theirs, on="target")


def budget_table(rows: pd.DataFrame, kind: str, paper: Mapping[str, Any]) -> Table:
    """Make table 2, a row for each method and budget, with what it cost.

    Args:
        rows: as from :func:`monai_kwtl.benchmark.plan.rows.read_rows`.
        kind: of budget, ``shots`` or ``pixels``; the paper knows shots only.
        paper: as from :func:`paper_numbers`.

    Returns:
        Rows of the base variant. Where the paper has a number and we have none, ours are missing.
    """
    name, heading = ("table_2", "shots") if kind == "shots" else ("equal_pixels", "images' worth")
    keys = [*SCOPE, "method", "budget"]
    base = rows[(rows["variant"] == "base") & (rows["budget_kind"] == kind)]
    ours = _means(base, keys, rows).drop(columns="all")
    theirs = _paper_rows(base[SCOPE].drop_duplicates(), paper["table_2"] if kind == "shots" else {})
    found = in_order(ours.merge(theirs, how="outer", on=keys), keys).merge(_runs(rows), how="left", on=SCOPE)
    none = found["method"].isin(WITHOUT_BUDGET) & (found["budget"] == 0)
    found = _counted(found).assign(**{heading: found["budget"].mask(none)})
    return Table(name, found[[*_NAMES, heading, *_FIGURES]], _FORMS, _HIDDEN)


def short_table(rows: pd.DataFrame, paper: Mapping[str, Any]) -> Table:
    """Make table 2 in short: a row for each method, a column for each number of shots, the paper's rows below ours.

    Cells are mean ± std of the IoU in %; the number of runs follows where some are missing.
    """
    base = rows[(rows["variant"] == "base") & (rows["budget_kind"] == "shots")]
    scopes, with_budget = base[SCOPE].drop_duplicates(), base[~base["method"].isin(WITHOUT_BUDGET)]
    theirs = _paper_rows(scopes, paper["table_2"])
    stated = {float(budget) for methods in paper["table_2"].values() for found in methods.values() for budget in found}
    budgets = pd.DataFrame({"budget": sorted({*with_budget["budget"], *stated})})
    at_all = without_budget(rows).merge(scopes).drop(columns="budget").merge(budgets, how="cross")
    ours = _counted(_means(pd.concat([with_budget, at_all]), [*SCOPE, "method", "budget"], rows))
    ours["text"] = [_short(*values) for values in ours[["mean IoU %", "std", "runs"]].itertuples(index=False)]
    theirs["text"] = [f"{value:.1f}" for value in theirs["paper %"]]
    names = [*SCOPE[:3], "published", "method"]
    columns = [*names, "budget", "text"]
    found = pd.concat([ours.assign(published=False)[columns], theirs.assign(published=True)[columns]])
    found = in_order(found.pivot(index=names, columns="budget", values="text").reset_index(), names)
    found["method"] = found["method"].where(~found["published"], found["method"] + ", as published")
    found["schedule"] = found["schedule"].mask(found["published"], "paper")
    headings = {budget: f"{budget:g} shot{'' if budget == 1 else 's'}" for budget in budgets["budget"]}
    return Table("short", found.reindex(columns=[*SCOPE[:3], "method", *headings]).rename(columns=headings))


def _short(mean: float, std: float, runs: str) -> str:
    return f"{mean:.1f}" + (f" ± {std:.1f}" if std == std else "") + (f" ({runs} runs)" if " of " in runs else "")


def pseudo_label_table(rows: pd.DataFrame, paper: Mapping[str, Any]) -> Table:
    """Make table 3: pseudo-labels of the equalised threshold (base) against those of K-means, for the paper's method.

    The paper states the mean of some targets, which is ours too only where all of them were run.
    """
    own = rows[(rows["method"] == "top_k_soft") & (rows["budget_kind"] == "shots")]
    with_kmeans = own.loc[own["variant"] == "kmeans", SCOPE[:3]].drop_duplicates()
    own = own[own["variant"].isin(("base", "kmeans"))].merge(with_kmeans)
    found = _counted(_means(own, [*SCOPE, "method", "budget"], rows)).rename(columns={"budget": "shots"})
    targets = paper["table_3"]["targets"]
    groups = found[found["target"].isin(targets)].groupby(["protocol", "schedule", "variant", "shots"])["mean IoU %"]
    ours = groups.mean()[groups.size() == len(targets)].to_dict()
    means = []
    for protocol, schedule in sorted(set(zip(found["protocol"], found["schedule"], strict=True))) or [("random", "-")]:
        for variant in ("base", "kmeans"):
            for budget, theirs in paper["table_3"][variant].items():
                key = {"protocol": protocol, "schedule": schedule, "variant": variant, "shots": float(budget)}
                key |= {"target": f"mean of {' and '.join(targets)}", "method": "top_k_soft"}
                mean = ours.get((protocol, schedule, variant, float(budget)))
                means.append(key | {"mean IoU %": mean, "paper %": theirs if protocol == "random" else None})
    columns = [*_NAMES, "shots", *_FIGURES]
    return Table("table_3", pd.DataFrame([*found.to_dict("records"), *means], columns=columns), _FORMS, _HIDDEN)


def pretext_table(rows: pd.DataFrame, paper: Mapping[str, Any]) -> Table:
    """Make table 4: the pretext network alone, before any window is labelled, and full supervision as the ceiling."""
    found = without_budget(rows[rows["variant"] == "base"])
    means = _counted(_means(found, [*SCOPE, "method"], rows))
    ours = (means["method"] == "pretext_only") & (means["protocol"] == "random")
    means["paper %"] = means["target"].map(paper["table_4"]).where(ours)
    run = set(means.loc[ours, "target"])
    absent = [
        {**dict(zip(_NAMES, (target, "random", "-", "base", "pretext_only"), strict=True)), "runs": "0", "paper %": iou}
        for target, iou in paper["table_4"].items()
        if target not in run
    ]
    columns = [*_NAMES, *_FIGURES]
    return Table("table_4", pd.DataFrame([*means.to_dict("records"), *absent], columns=columns), _FORMS, _HIDDEN)


def time_table(times: pd.DataFrame) -> Table:
    """Make the table of mean seconds of choosing windows and of training on them, of the base variant.

    Args:
        times: as from :func:`monai_kwtl.benchmark.plan.rows.read_times`.
    """
    keys = ["target", "schedule", "method"]
    groups = in_order(times[times["variant"] == "base"], keys).groupby(keys, sort=False)
    found = groups[["select_seconds", "train_seconds"]].mean().set_axis(["select s", "train s"], axis=1)
    found["cells"] = groups.size()
    return Table("times", found.reset_index(), {"select s": ".1f", "train s": ".1f", "cells": ".0f"})

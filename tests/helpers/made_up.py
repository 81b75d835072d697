"""Made-up results for tests of what is made out of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = (
    "target,protocol,split,seed,schedule,variant,method,budget_kind,budget,mean_iou,pooled_iou,dice,windows,"
    "unique_pixels,images,objects,foreground_share,over_prediction,under_prediction,device"
).split(",")


def experiment(**changes: Any) -> dict[str, Any]:
    """One row, with what is not given filled in."""
    base = {
        "target": "TNBC",
        "protocol": "random",
        "split": 0,
        "seed": 0,
        "schedule": "cpu",
        "variant": "base",
        "method": "top_k_soft",
        "budget_kind": "shots",
        "budget": 1,
        "mean_iou": 0.5,
        "pooled_iou": 0.55,
        "dice": 0.6,
        "windows": 100,
        "unique_pixels": 100000,
        "images": 3,
        "objects": 40,
        "foreground_share": 0.1,
        "over_prediction": 0.2,
        "under_prediction": 0.3,
        "device": "cpu",
    }
    assert changes.keys() <= base.keys()
    return base | changes


def write_csv(path: Path, experiments: Iterable[dict[str, Any]], columns: list[str] = COLUMNS) -> Path:
    """Write results.csv."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(experiments)
    return path


QUALITY = {
    "top_k_soft": 0.06,
    "top_k_hard": 0.05,
    "coverage": 0.08,
    "entropy": 0.03,
    "mc_dropout": 0.02,
    "random": 0.04,
    "random_stratified": 0.05,
    "foreground_random": 0.07,
    "strided": 0.045,
    "balanced": 0.06,
}
LEVEL = {"TNBC": 0.42, "ssTEM": 0.5, "B5": 0.85, "B39": 0.8}
COVERED = {"top_k_soft": 0.2, "top_k_hard": 0.22, "entropy": 0.25, "mc_dropout": 0.3}  # of the area of its windows


def grid(
    targets: Iterable[str] = LEVEL,
    splits: int = 5,
    methods: Iterable[str] = QUALITY,
    budgets: Iterable[float] = (1, 3, 5, 7, 10),
    variants: Iterable[str] = ("base",),
    kinds: Iterable[str] = ("shots", "pixels"),
    schedule: str = "cpu",
) -> list[dict[str, Any]]:
    """A complete grid of made-up results, the same every time."""
    rng = np.random.default_rng(7)
    experiments = []
    for target in targets:
        for variant in variants:
            for kind in kinds:
                for split in range(splits):
                    ease = rng.normal(0, 0.03)
                    common = {"target": target, "split": split, "seed": split, "variant": variant, "budget_kind": kind}
                    common["schedule"] = schedule
                    for method in methods:
                        for budget in budgets:
                            share = COVERED.get(method, 0.9) if kind == "shots" else 1.0
                            iou = LEVEL[target] + ease + QUALITY[method] * np.log2(1 + budget) / 3
                            iou += rng.normal(0, 0.01) - 0.02 * (variant != "base")
                            experiments.append(
                                experiment(
                                    **common,
                                    method=method,
                                    budget=budget,
                                    mean_iou=round(float(np.clip(iou, 0, 1)), 6),
                                    windows=100 * budget,
                                    unique_pixels=int(262144 * budget * share + rng.integers(1000)),
                                    images=int(rng.integers(1, 30)),
                                    objects=int(rng.integers(10, 300)),
                                )
                            )
                    if kind == "shots" and variant == "base":
                        experiments.append(
                            experiment(**common, method="full", budget=0, mean_iou=round(LEVEL[target] + 0.12, 6))
                        )
                        experiments.append(
                            experiment(
                                **common, method="pretext_only", budget=0, mean_iou=round(LEVEL[target] - 0.1, 6)
                            )
                        )
    return experiments

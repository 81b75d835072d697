"""An experiment: select, let the annotator label, tune, measure, and what it cost."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from monai_kwtl.benchmark.experiments.annotator import reveal_masks
from monai_kwtl.benchmark.experiments.bench import Bench
from monai_kwtl.benchmark.plan.case import Case
from monai_kwtl.benchmark.plan.methods import METHODS, VARIANTS
from monai_kwtl.benchmark.plan.rows import Key
from monai_kwtl.benchmark.plan.store import Store, digest
from monai_kwtl.metrics import Overlap, summarize
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Cost, Region, cost_of
from monai_kwtl.selection.select import cover, select_regions
from monai_kwtl.windows.scores import ImageScores

__all__ = ["labelling_cost", "part_of", "quality", "run_experiment", "select"]


def select(scores: Sequence[ImageScores], strategy: str, budget: Budget, seed: int) -> list[Region]:
    """Choose windows as ``select_regions`` does; a pixel budget is also used up by evenly spaced windows.

    ``strided`` takes as many windows as the budget holds side by side, but on a dense grid they overlap. For an equal
    number of distinct pixels the smallest number of evenly spaced windows is taken that is beyond the budget, and the
    last of them are left out or cut at their lower edge.

    Args:
        scores: of the pool.
        strategy: a name in ``STRATEGIES``.
        budget: how much to label.
        seed: of the random strategies.

    Returns:
        The regions, rank 1 first.
    """
    regions = select_regions(scores, strategy, budget, seed)
    total = sum(len(image.grid) for image in scores)
    if strategy != "strided" or budget.pixels is None:
        return regions
    while len(regions) < total and cost_of(regions).unique_pixels < budget.pixels:
        regions = select_regions(scores, strategy, Budget(windows=len(regions) + 1))
    return _cut(regions, budget.pixels)


def _cut(regions: list[Region], pixels: int) -> list[Region]:
    """Leave out regions from the last on, and cut one, until they have no more distinct pixels."""
    while cost_of(regions).unique_pixels > pixels:
        *regions, last = regions
        for height in range(last.height - 1, 0, -1):
            cut = [*regions, replace(last, height=height)]
            if cost_of(cut).unique_pixels <= pixels:
                return cut
    return regions


def labelling_cost(regions: Sequence[Region], support: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what labelling costs an annotator.

    Args:
        regions: that were labelled.
        support: the masks of them, as :func:`monai_kwtl.benchmark.experiments.annotator.reveal_masks` gives them.

    Returns:
        ``windows``; ``unique_pixels`` and ``images``; ``objects``: connected parts (with diagonals) of the foreground
        that the annotator sees, an object that is cut by unlabelled pixels counting once for each part; and
        ``foreground_share`` of the labelled pixels, in [0, 1].
    """
    cost = cost_of(regions)
    objects = sum(ndimage.label(entry["label"][0], structure=np.ones((3, 3)))[1] for entry in support)
    foreground = sum(int(entry["label"].sum()) for entry in support)
    return {
        "windows": cost.windows,
        "unique_pixels": cost.unique_pixels,
        "images": cost.images,
        "objects": int(objects),
        "foreground_share": foreground / cost.unique_pixels if cost.unique_pixels else 0.0,
    }


def quality(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """Measure how good the masks of the test images are.

    Args:
        overlaps: one for each image, at least one.

    Returns:
        ``mean_iou`` over images, ``pooled_iou``, ``dice`` (mean over images), and false positive and false negative
        pixels of all images over the pooled union: ``over_prediction`` and ``under_prediction``; all in [0, 1].
    """
    summary = summarize(list(overlaps))
    union = max(sum(found.union for found in overlaps), 1)
    return {
        "mean_iou": summary["mean_iou"],
        "pooled_iou": summary["pooled_iou"],
        "dice": summary["mean_dice"],
        "over_prediction": sum(found.false_positive for found in overlaps) / union,
        "under_prediction": sum(found.false_negative for found in overlaps) / union,
    }


def _whole_images(items: Sequence[Mapping[str, Any]]) -> list[Region]:
    return [
        Region(rank, item["name"], item["page"], item["sha256"], 0, 0, item["width"], item["height"], 0.0)
        for rank, item in enumerate(items, start=1)
    ]


def part_of(budget: Budget, number: int, rounds: int, spent: Cost, least: int = 1) -> Budget | None:
    """Return the budget of a round, so that all rounds together spend the budget evenly.

    Args:
        budget: of all rounds, in windows or pixels.
        number: of the round, from 1.
        rounds: how many there are.
        spent: what the rounds before have spent.
        least: windows or pixels of the smallest window, which a round has where so much is left.

    Returns:
        None where nothing is left for this round.
    """
    whole, used = (budget.pixels, spent.unique_pixels) if budget.windows is None else (budget.windows, spent.windows)
    left = min(max(round(whole * number / rounds) - used, least), whole - used)
    return None if left < least else Budget(pixels=left) if budget.windows is None else Budget(windows=left)


def _labelled(case: Case, bench: Bench, key: Key, regions: Sequence[Region]) -> list[dict[str, Any]]:
    """Return the simulated annotator's labels of regions, each with its importance where the variant wants that."""
    support = reveal_masks(regions, case.parts[0])
    return bench.weighed(support, key.variant) if case.weighs(key) and support else support


def _in_rounds(case: Case, bench: Bench, key: Key, scores: Sequence[ImageScores]) -> list[Region]:
    """Select in as many rounds as the method has; from the second on, the network tuned so far scores the pool."""
    method, budget, seed = METHODS[key.method], case.budget(key), case.derived_seed(key.method)
    least = 1 if budget.pixels is None else min(i.grid.size[0] * i.grid.size[1] for i in scores)
    first = part_of(budget, 1, method.rounds, cost_of([]), least) or budget
    # a method that begins at random begins as the random baseline does: their difference is that of the further rounds
    regions = select(scores, method.first or method.strategy, first, case.derived_seed(method.first or key.method))
    for number in range(2, method.rounds + 1):
        part = part_of(budget, number, method.rounds, cost_of(regions), least)
        if part is None or not any(cover(image, regions).free.any() for image in scores):
            break
        network = bench.train_support(_labelled(case, bench, key, regions), key.variant)
        network = bench.adapted(network, VARIANTS[key.variant].scoring(method, exact=False)["norm"])
        if method.measure is not None:
            scores = bench.score_with(network, case.score_settings(key.variant, key.method))
        if method.features:
            described = zip(scores, bench.describe_with(network, key.variant), strict=True)
            scores = [replace(image, features=features) for image, features in described]
        further = select([cover(image, regions) for image in scores], method.strategy, part, seed + number)
        regions += [replace(region, rank=len(regions) + region.rank) for region in further]
    return regions


_KEPT: OrderedDict[str, torch.nn.Module] = OrderedDict()
_MOST_KEPT = 32  # tuned networks, of 4 MB each


def _tuned(case: Case, bench: Bench, key: Key, support: Sequence[Mapping[str, Any]]) -> torch.nn.Module:
    """Return the network tuned on a support set; variants that only measure it otherwise find it in the memory."""
    name = digest(case.tuned_settings(key))
    if name not in _KEPT:
        _KEPT[name] = bench.train_support(support, key.variant)
        while len(_KEPT) > _MOST_KEPT:
            _KEPT.popitem(last=False)
    return copy.deepcopy(_KEPT[name])  # measuring fits its statistics in place


def run_experiment(case: Case, store: Store, key: Key) -> None:
    """Select, reveal, tune and measure; the result is kept in the store.

    Args:
        case: of the experiment.
        store: has the pretext network, and the scores that the method needs.
        key: of the experiment.
    """
    bench, method = Bench(case, store), METHODS[key.method]
    regions, seconds = _whole_images(case.pool) if key.method == "full" else [], 0.0
    if method.strategy is not None:
        scores, seconds = bench.scores(key.variant, key.method)
        start = time.perf_counter()
        regions = _in_rounds(case, bench, key, scores)
        seconds += time.perf_counter() - start
    support = _labelled(case, bench, key, regions)
    start = time.perf_counter()
    network = _tuned(case, bench, key, support)
    trained = time.perf_counter() - start
    overlaps = bench.measure(network, key.variant, support)
    result = quality(overlaps) | labelling_cost(regions, support)
    cuda = bench.device.type == "cuda"
    device = torch.cuda.get_device_name(bench.device) if cuda else bench.device.type
    times = {"select_seconds": round(seconds, 3), "train_seconds": round(trained, 3)}
    settings = case.experiment_settings(key)
    document = {
        "settings": settings,
        "selection": digest([r.key for r in regions]),
        "result": {**result, "device": device},
        "iou_of_test_images": [round(found.iou, 6) for found in overlaps],
        "times": times,
    }
    store.put_experiment(digest(settings), document)

"""Ways of tuning, rounds and strategies that compare windows, as experiments of a grid."""

from __future__ import annotations

import pytest
import torch

from monai_kwtl.benchmark.experiments import annotator, bench, experiment
from monai_kwtl.benchmark.experiments.bench import Bench
from monai_kwtl.benchmark.experiments.experiment import part_of
from monai_kwtl.benchmark.plan.config import make_config
from monai_kwtl.benchmark.plan.methods import METHODS, VARIANTS, Tuning
from monai_kwtl.benchmark.plan.store import Store
from monai_kwtl.benchmark.runs.jobs import experiments_of, jobs_of
from monai_kwtl.benchmark.runs.run import run_protocol
from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Cost

# those that choose among other windows have other ones
TUNINGS = [name for name, variant in VARIANTS.items() if variant.tuning != Tuning() and variant.window == 1]


def results_of(options):
    """Every experiment's result, by (variant, method)."""
    config = make_config(options)
    run_protocol(config, "grid")
    experiments = experiments_of(config)
    _, results = jobs_of(experiments)
    store = Store(config.output_dir + "/store")
    return {(key.variant, key.method): store.experiment(results[key]) for _, key in experiments}


def test_every_way_of_tuning_gives_a_result_from_the_same_windows(options):
    found = results_of({**options, "methods": ["random"], "variants": ["base", *TUNINGS]})
    assert len({result["selection"] for result in found.values()}) == 1
    base = found["base", "random"]["iou_of_test_images"]
    assert all(0 <= result["result"]["mean_iou"] <= 1 for result in found.values())
    other = {name: found[name, "random"]["iou_of_test_images"] != base for name in TUNINGS}
    assert sum(other.values()) >= len(TUNINGS) - 2, other  # a threshold may well come out as 0.5


def test_ways_of_measuring_share_the_tuned_network(options, monkeypatch):
    calls = []
    train = Bench.train_support
    monkeypatch.setattr(Bench, "train_support", lambda *args: calls.append(args[2]) or train(*args))
    variants = ["base", "flips", "threshold", "running_norm", "transductive_norm", "dice_bce", "dice_bce_flips"]
    found = results_of({**options, "methods": ["random"], "variants": variants})
    assert sorted(calls) == ["base", "dice_bce"]
    experiment._KEPT.clear()
    again = results_of(
        {**options, "methods": ["random"], "variants": ["flips"], "output_dir": options["output_dir"] + "2"}
    )
    assert again["flips", "random"]["iou_of_test_images"] == found["flips", "random"]["iou_of_test_images"]


@pytest.mark.parametrize(
    "name",
    [
        *(name for name, method in METHODS.items() if method.features and method.rounds == 1),
        "herding_2_rounds",
        "random_then_coverage",
    ],
)
def test_methods_that_compare_windows_run_and_repeat(options, name):
    first = results_of({**options, "methods": [name], "shots": [], "pixels": [2]})["base", name]
    again = results_of(
        {**options, "methods": [name], "shots": [], "pixels": [2], "output_dir": options["output_dir"] + "2"}
    )["base", name]
    assert first["selection"] == again["selection"]
    assert first["iou_of_test_images"] == again["iou_of_test_images"]
    assert 0 < first["result"]["unique_pixels"] <= 2 * 72 * 88


def test_rounds_share_the_budget_and_later_ones_see_another_network(options, monkeypatch):
    scored = []
    score_with = Bench.score_with
    monkeypatch.setattr(
        Bench,
        "score_with",
        lambda self, network, settings: scored.append(
            float(sum(p.double().sum() for p in network.state_dict().values() if torch.is_floating_point(p)))
        ) or score_with(self, network, settings),
    )  # fmt: skip
    found = results_of({**options, "methods": ["herding", "herding_3_rounds"], "shots": [], "pixels": [2]})
    assert len(set(scored)) == len(scored) == 3  # the pretext network once, two tuned ones
    one, three = (found["base", name]["result"] for name in ("herding", "herding_3_rounds"))
    assert abs(one["unique_pixels"] - three["unique_pixels"]) < 3 * 32 * 32


def test_a_method_that_begins_at_random_begins_with_the_windows_of_the_baseline(options, monkeypatch):
    chosen = []
    reveal = annotator.reveal_masks

    def noted(regions, pool):
        chosen.append({(r.image, r.page, r.x, r.y) for r in regions})
        return reveal(regions, pool)

    monkeypatch.setattr(experiment, "reveal_masks", noted)
    grid = {**options, "methods": ["random", "random_then_coverage"], "shots": [], "pixels": [1], "splits": 1}
    found = results_of(grid)
    half, random, ours = sorted(chosen, key=len)
    assert half < random and half < ours, "half is drawn, and the other half is not"
    assert random != ours
    pixels = [found["base", name]["result"]["unique_pixels"] for name in grid["methods"]]
    assert abs(pixels[0] - pixels[1]) < 32 * 32


def test_rounds_have_no_budgets_in_shots(options):
    config = make_config({**options, "methods": ["herding_2_rounds", "herding"], "shots": [1], "pixels": [1]})
    found = {(key.method, key.budget_kind) for _, key in experiments_of(config)}
    assert found == {("herding_2_rounds", "pixels"), ("herding", "pixels"), ("herding", "shots")}


def test_rounds_end_where_no_window_is_free(options):
    found = results_of({**options, "methods": ["herding_3_rounds"], "shots": [], "pixels": [6], "splits": 1})
    assert found["base", "herding_3_rounds"]["result"]["unique_pixels"] > 2 * 72 * 88


@pytest.mark.parametrize(
    ("variant", "rate", "falling"),
    [("base", 1, False), ("falling_rate", 1, True), ("dice_bce_falling_fast", 10, True)],
)
def test_a_variant_may_change_the_learning_rate(variant, rate, falling, options, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "fit", lambda network, crops, loss=None, **given: seen.append(given) or network)
    results_of({**options, "methods": ["random"], "variants": [variant], "splits": 1})
    assert seen[-1]["learning_rate"] == pytest.approx(rate * 1e-4)
    assert seen[-1]["falling_rate"] is falling


def test_smaller_windows_spend_the_same_pixels_on_more_places(options):
    grid = {**options, "methods": ["random", "coverage", "herding"], "variants": ["base", "small_windows"]}
    found = results_of({**grid, "shots": [], "pixels": [1], "splits": 1})
    for method in grid["methods"]:
        large, small = (found[variant, method]["result"] for variant in ("base", "small_windows"))
        assert small["windows"] >= 3 * large["windows"]
        assert abs(small["unique_pixels"] - large["unique_pixels"]) < 32 * 32


def test_crops_that_match_a_fraction_are_refused_for_a_grid_of_crops(options):
    with pytest.raises(KWTLError, match="variants: importance draws crops anew .* choose the schedule cpu"):
        make_config({**options, "schedule": "paper", "variants": ["importance"]})


def test_parts_of_a_budget_add_up_to_it():
    spent = Cost(0, 0, 0)
    for number in (1, 2, 3):
        part = part_of(Budget(windows=10), number, 3, spent)
        spent = Cost(spent.windows + part.windows, 1, 0)
    assert spent.windows == 10
    assert part_of(Budget(pixels=100), 1, 3, Cost(0, 0, 0), least=64) == Budget(pixels=64)
    assert part_of(Budget(pixels=100), 2, 3, Cost(1, 1, 64), least=64) is None
    assert part_of(Budget(pixels=100), 2, 2, Cost(1, 1, 40)) == Budget(pixels=60)
    assert part_of(Budget(windows=2), 3, 4, Cost(2, 1, 40)) is None

from __future__ import annotations

import csv
import io
import math
import statistics

import pandas as pd
import pytest
from made_up import COLUMNS, experiment, grid, write_csv

from monai_kwtl.benchmark.analysis.differences import (
    ablation_table,
    area_difference_table,
    area_table,
    both_table,
    comparison_matrix,
    difference_table,
    missing_table,
    verdict_table,
    window_table,
)
from monai_kwtl.benchmark.analysis.layout import Table, shown
from monai_kwtl.benchmark.analysis.tables import (
    budget_table,
    paper_numbers,
    pretext_table,
    pseudo_label_table,
    short_table,
    time_table,
)
from monai_kwtl.benchmark.plan.rows import read_rows, read_times

PAPER = paper_numbers()


@pytest.fixture
def rows_in(tmp_path):
    def make(experiments):
        return read_rows(write_csv(tmp_path / "r.csv", experiments))

    return make


def rows_of(table: Table, **wanted) -> list[dict[str, str]]:
    """The rows of the table's CSV that have these values."""
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def runs(ious: list[float], **common):
    return [experiment(split=n, seed=n, mean_iou=iou, **common) for n, iou in enumerate(ious)]


def test_missing_values_and_zeros_are_shown_as_such():
    assert [shown(v, ".1f") for v in (None, math.nan, -0.04, -1.25, 3.0)] == ["-", "-", "0.0", "-1.2", "3.0"]
    data = pd.DataFrame({"a": ["x|y", "z"], "b": [None, 1.26], "c": [3, 4]})
    table = Table("t", data, {"b": ".1f", "c": "d"}, hidden=("c",))
    assert table.csv() == "a,b,c\nx|y,,3\nz,1.3,4\n"
    assert table.markdown() == ["| a | b |", "| --- | ---: |", "| x\\|y | - |", "| z | 1.3 |"]
    assert table.markdown(["a"]) == ["| b |", "| ---: |", "| - |", "| 1.3 |"]


def test_table_2_by_hand(rows_in):
    ious = [0.40, 0.45, 0.53]
    experiments = runs(ious) + runs([0.3, 0.35, 0.4], method="random", unique_pixels=200000)
    experiments[1] = experiments[1] | {"unique_pixels": 130000, "images": 6, "objects": 70}
    (row,) = rows_of(budget_table(rows_in(experiments), "shots", PAPER), target="TNBC", method="top_k_soft", shots="1")
    assert row["runs"] == "3"
    assert (
        row["mean IoU %"] == f"{100 * statistics.mean(ious):.1f}"
        and row["std"] == f"{100 * statistics.stdev(ious):.1f}"
    )
    assert (row["paper %"], row["windows"], row["unique pixels"]) == ("47.1", "100", "110000")
    assert (row["images"], row["objects"], row["schedule"]) == ("4.0", "50.0", "cpu")


def test_what_the_paper_has_and_we_have_not_is_missing_not_made_up(rows_in):
    table = budget_table(rows_in(runs([0.4, 0.5])), "shots", PAPER)
    (ours,) = rows_of(table, target="TNBC", method="top_k_soft", shots="5")
    assert (ours["runs"], ours["mean IoU %"], ours["paper %"], ours["windows"]) == ("0 of 2", "", "47.7", "")
    (em,) = rows_of(table, target="EM", method="random", shots="10")
    assert (em["runs"], em["mean IoU %"], em["paper %"]) == ("0", "", "72.2")
    assert not rows_of(table, target="B39") and not rows_of(table, method="entropy")


def test_the_papers_numbers_stand_beside_its_own_protocol_only(rows_in):
    experiments = runs([0.4, 0.5], protocol="blocked") + runs([0.4], variant="kmeans")
    table = budget_table(rows_in(experiments), "shots", PAPER)
    assert {row["paper %"] for row in rows_of(table, protocol="blocked")} == {""}
    assert not rows_of(table, variant="kmeans")


def test_missing_runs_are_counted(rows_in):
    experiments = runs([0.4, 0.5, 0.6]) + runs([0.4, 0.5], method="random")
    (row,) = rows_of(budget_table(rows_in(experiments), "shots", PAPER), target="TNBC", method="random", shots="1")
    assert (row["runs"], row["mean IoU %"]) == ("2 of 3", "45.0")


def test_the_table_at_equal_pixels_holds_its_own_rows_only(rows_in):
    experiments = runs([0.4]) + runs([0.7], budget_kind="pixels", budget=2)
    (row,) = rows_of(budget_table(rows_in(experiments), "pixels", PAPER))
    assert (row["images' worth"], row["mean IoU %"], row["std"], row["paper %"]) == ("2", "70.0", "", "")


def test_the_short_table_has_the_paper_below_ours(rows_in):
    experiments = runs([0.4, 0.5]) + runs([0.42], budget=3) + runs([0.8, 0.8], method="full", budget=0)
    rows = rows_of(short_table(rows_in(experiments), PAPER), target="TNBC")
    assert [row["method"] for row in rows] == ["top_k_soft", "full", "top_k_soft, as published", "random, as published"]
    assert rows[0]["1 shot"] == "45.0 ± 7.1" and rows[0]["3 shots"] == "42.0 (1 of 2 runs)" and rows[0]["5 shots"] == ""
    assert rows[1]["10 shots"] == "80.0 ± 0.0" and rows[3]["7 shots"] == "45.7"


def test_table_3_averages_targets_only_where_all_were_run(rows_in):
    some = runs([0.5], target="ssTEM") + runs([0.46], target="ssTEM", variant="kmeans")
    mean = {"target": "mean of EM and ssTEM", "shots": "1"}
    table = pseudo_label_table(rows_in(some), PAPER)
    assert [row["mean IoU %"] for row in rows_of(table, **mean)] == ["", ""]
    assert [row["paper %"] for row in rows_of(table, **mean)] == ["56.7", "54.4"]
    both = some + runs([0.6], target="EM") + runs([0.5], target="EM", variant="kmeans")
    rows = rows_of(pseudo_label_table(rows_in(both), PAPER), **mean)
    assert [row["mean IoU %"] for row in rows] == ["55.0", "48.0"]


def test_table_4_has_the_pretext_network_beside_the_papers(rows_in):
    table = pretext_table(rows_in(runs([0.1, 0.2], method="pretext_only", budget=0)), PAPER)
    (row,) = rows_of(table, target="TNBC")
    assert (row["mean IoU %"], row["paper %"]) == ("15.0", "31.0")
    assert [(row["mean IoU %"], row["paper %"]) for row in rows_of(table, target="B39")] == [("", "92.0")]


def test_full_supervision_counts_each_run_once_at_whichever_budgets_it_is_noted(rows_in):
    full = {"method": "full"}
    experiments = runs([0.8, 0.9], **full, budget=1) + runs([0.8, 0.9], **full, budget=3)
    experiments += runs([0.8, 0.9], **full, budget_kind="pixels", budget=3)
    (row,) = rows_of(pretext_table(rows_in(experiments), PAPER), method="full")
    assert (row["runs"], row["mean IoU %"]) == ("2", "85.0")
    (row,) = rows_of(short_table(rows_in(experiments), PAPER), method="full")
    assert row["5 shots"] == "85.0 ± 7.1"


def test_differences_are_paired_and_in_points(rows_in):
    experiments = runs([0.40, 0.45, 0.50, 0.55, 0.60, 0.65]) + runs(
        [0.38, 0.44, 0.47, 0.51, 0.55, 0.59], method="random"
    )
    table = difference_table(rows_in(experiments))
    (row,) = rows_of(table, method="top_k_soft", baseline="random")
    assert (row["pairs"], row["wins"], row["difference"]) == ("6", "6", "+3.50")
    assert row["p"] == f"{2 / 64:.4f}" and 1 < float(row["low"]) < 3.5 < float(row["high"]) < 6
    (other,) = rows_of(table, method="random", baseline="foreground_random")
    assert (other["pairs"], other["difference"], other["p"]) == ("0", "", "")
    assert not rows_of(table, method="random", baseline="random")
    lines = comparison_matrix(table, ("method", "budget"))
    assert lines[0] == ("| method | budget | against random | against random_stratified | against foreground_random |")
    assert lines[2].startswith("| top_k_soft | 1 | **+3.5 [+") and lines[2].endswith("p 0.031, 6/6 | - | - |")
    assert lines[3] == "| random | 1 |  | - | - |"


def test_selection_and_tuning_are_compared_apart_and_together(rows_in):
    pixels = {"budget_kind": "pixels"}
    experiments = runs([0.40, 0.50], method="random", **pixels) + runs([0.41, 0.55], method="herding", **pixels)
    experiments += runs([0.45, 0.52], method="random", variant="recipe", **pixels)
    experiments += runs([0.50, 0.60], method="herding", variant="recipe", **pixels)
    experiments += runs([0.1, 0.2], method="herding", variant="kmeans", **pixels)  # no baseline was run with it
    rows = rows_in(experiments)
    selection = difference_table(rows)
    (base,) = rows_of(selection, variant="base", method="herding", baseline="random")
    (recipe,) = rows_of(selection, variant="recipe", method="herding", baseline="random")
    assert (base["difference"], recipe["difference"]) == ("+3.00", "+6.50")
    assert not rows_of(selection, variant="kmeans")
    both = both_table(rows)
    assert not rows_of(both, variant="base")
    (row,) = rows_of(both, variant="recipe", method="herding", baseline="random")
    (tuning,) = rows_of(both, variant="recipe", method="random", baseline="random")
    assert (row["difference"], tuning["difference"]) == ("+10.00", "+3.50")


def test_windows_of_another_size_are_compared_with_the_usual_ones_tuned_alike(rows_in):
    long = {"variant": "dice_bce_long", "budget_kind": "pixels"}
    small = long | {"variant": "small_windows_dice_bce_long"}
    experiments = runs([0.50, 0.60], **small, method="balanced") + runs([0.45, 0.55], **small, method="random")
    experiments += runs([0.40, 0.52], **long, method="random") + runs([0.1, 0.1], method="random", budget_kind="pixels")
    found = rows_of(window_table(rows_in(experiments)), baseline="random")
    assert {row["variant"] for row in found} == {small["variant"]}
    assert {row["method"]: row["difference"] for row in found} == {"balanced": "+9.00", "random": "+4.00"}


def test_verdicts_count_intervals(rows_in):
    ahead, even = [0.40, 0.45, 0.50], [0.38, 0.47, 0.50]
    experiments = runs(ahead) + runs([0.3, 0.35, 0.41], method="random")
    experiments += runs(ahead, budget=3) + runs(even, method="random", budget=3)
    table = verdict_table(difference_table(rows_in(experiments)))
    heading = "ahead / behind / open against random"
    assert [row[heading] for row in rows_of(table, method="top_k_soft")] == ["1 / 0 / 1"]
    assert [row[heading] for row in rows_of(table, method="random")] == [""]


def test_ablations_are_against_the_base_of_the_same_method(rows_in):
    experiments = (
        runs([0.5, 0.6]) + runs([0.45, 0.5], variant="kmeans") + runs([0.4], variant="exact", method="coverage")
    )
    table = ablation_table(rows_in(experiments))
    (row,) = rows_of(table, variant="kmeans")
    assert (row["base IoU %"], row["variant IoU %"], row["difference"]) == ("55.0", "47.5", "-7.50")
    assert (row["windows"], row["unique pixels"], row["images"], row["objects"]) == ("100", "100000", "3.0", "40.0")
    (row,) = rows_of(table, variant="exact")
    assert (row["base IoU %"], row["variant IoU %"], row["difference"], row["pairs"]) == ("", "40.0", "", "0")
    fewer = ablation_table(rows_in(runs([0.5, 0.7, 0.9]) + runs([0.6, 0.7], variant="kmeans")))
    (row,) = rows_of(fewer, variant="kmeans")
    assert (row["base IoU %"], row["variant IoU %"], row["pairs"]) == ("60.0", "65.0", "2")


def curve(method: str, points: dict[float, tuple[int, float]], split: int = 0):
    return [
        experiment(method=method, split=split, budget=budget, unique_pixels=pixels, mean_iou=iou)
        for budget, (pixels, iou) in points.items()
    ]


def test_areas_by_hand(rows_in):
    experiments = curve("top_k_soft", {1: (100, 0.2), 3: (200, 0.4), 5: (800, 0.6)})
    experiments += curve("random", {1: (400, 0.3), 3: (600, 0.3), 5: (1600, 0.3)})
    (row,) = rows_of(area_table(rows_in(experiments)), method="top_k_soft")
    # (0.3 * 100 + 0.5 * 600) / 700, and over log2 (0.3 * 1 + 0.5 * 2) / 3
    assert (row["area %"], row["area % (log pixels)"]) == ("47.14", "43.33")
    assert (row["runs"], row["from pixels"], row["to pixels"]) == ("1", "100", "800")
    # both cover 400 to 800: there the first goes from 0.4 + 0.2 / 3 to 0.6
    (row,) = rows_of(area_difference_table(rows_in(experiments)), method="top_k_soft", baseline="random", over="pixels")
    assert row["difference"] == f"{100 * ((0.4 + 0.2 / 3 + 0.6) / 2 - 0.3):+.2f}"
    assert (row["from pixels"], row["to pixels"]) == ("400", "800")


def test_a_run_without_one_of_the_budgets_has_no_area(rows_in):
    full = {1: (100, 0.2), 3: (200, 0.4)}
    experiments = curve("random", full) + curve("random", full, split=1) + curve("entropy", full)
    experiments += curve("entropy", {1: (100, 0.9)}, split=1)
    (row,) = rows_of(area_table(rows_in(experiments)), method="entropy")
    assert (row["runs"], row["area %"]) == ("1", "30.00")


def test_variants_have_areas_where_they_have_several_budgets(rows_in):
    experiments = [c | {"variant": "dice_bce"} for c in curve("random", {1: (100, 0.2), 3: (200, 0.4)})]
    experiments += [c | {"variant": "flips"} for c in curve("random", {1: (100, 0.2)})]
    found = rows_of(area_table(rows_in(experiments)))
    assert [(row["variant"], row["area %"]) for row in found] == [("dice_bce", "30.00")]


def test_curves_without_pixels_in_common_are_not_compared(rows_in):
    experiments = curve("top_k_soft", {1: (100, 0.2), 3: (200, 0.4)}) + curve("random", {1: (300, 0.3), 3: (600, 0.3)})
    (row,) = rows_of(area_difference_table(rows_in(experiments)), method="top_k_soft", baseline="random", over="pixels")
    assert (row["pairs"], row["difference"]) == ("0", "")


def test_nothing_labelled_has_no_place_on_a_logarithmic_axis(rows_in):
    experiments = curve("top_k_soft", {1: (0, 0.2), 3: (200, 0.4)})
    (row,) = rows_of(area_table(rows_in(experiments)), method="top_k_soft")
    assert (row["area %"], row["area % (log pixels)"]) == ("30.00", "")


def test_missing_experiments_are_listed(rows_in, tmp_path):
    experiments = grid(targets=("TNBC",), splits=2, methods=("random",), budgets=(1, 3), kinds=("shots",))
    del experiments[0]
    rows = read_rows(write_csv(tmp_path / "r.csv", experiments))
    (row,) = rows_of(missing_table(rows))
    assert (row["method"], row["budget"], row["split"], row["seed"]) == ("random", "1", "0", "0")


def test_times_of_the_base_are_averaged(tmp_path):
    experiments = [
        experiment(target="B5", method="full"),
        experiment(method="random"),
        experiment(method="random", split=1),
    ]
    seconds = [(0, 5), (1, 10), (2, 20), (9, 90)]
    times = [
        {**{name: made[name] for name in COLUMNS[:9]}, "select_seconds": select, "train_seconds": train}
        for made, (select, train) in zip([*experiments, experiment(variant="kmeans")], seconds, strict=True)
    ]
    path = write_csv(tmp_path / "t.csv", times, [*COLUMNS[:9], "select_seconds", "train_seconds"])
    assert time_table(read_times(path, path)).csv() == (
        "target,schedule,method,select s,train s,cells\nTNBC,cpu,random,1.5,15.0,2\nB5,cpu,full,0.0,5.0,1\n"
    )

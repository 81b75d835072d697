"""Costs and qualities of an experiment against counts by hand; budgets of equal pixels; what the annotator may see."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from monai_kwtl.benchmark.experiments.bench import Bench
from monai_kwtl.benchmark.experiments.experiment import labelling_cost, quality, select
from monai_kwtl.benchmark.plan.case import Case
from monai_kwtl.benchmark.plan.config import make_config
from monai_kwtl.benchmark.plan.schedules import SCHEDULES
from monai_kwtl.benchmark.plan.store import Store, grid_of
from monai_kwtl.benchmark.runs.jobs import experiments_of, jobs_of
from monai_kwtl.benchmark.runs.run import run_protocol
from monai_kwtl.metrics import Overlap
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Region, cost_of


def region(x, y, width, height, image="a.png"):
    return Region(1, image, None, "", x, y, width, height, 0.0)


def test_cost_counts_overlapping_pixels_once_and_the_objects_that_are_seen():
    label = np.zeros((1, 10, 12), dtype=np.uint8)
    label[0, 1:3, 1:3] = 1
    label[0, 3, 3] = 1  # touches the former by a corner: the same object
    label[0, 8, 8] = 1
    regions = [region(0, 0, 6, 6), region(3, 0, 6, 10), region(0, 0, 2, 2, "b.png")]
    support = [{"label": label}, {"label": np.zeros((1, 4, 4), dtype=np.uint8)}]
    pixels = 6 * 6 + 6 * 10 - 3 * 6 + 4
    assert labelling_cost(regions, support) == {
        "windows": 3, "unique_pixels": pixels, "images": 2, "objects": 2, "foreground_share": 6 / pixels,
    }  # fmt: skip


def test_nothing_labelled_costs_nothing():
    assert set(labelling_cost([], []).values()) == {0}


def test_quality_is_pooled_where_it_says_so():
    found = quality([Overlap(6, 2, 2, 100), Overlap(0, 10, 0, 100)])
    assert found["mean_iou"] == pytest.approx((0.6 + 0.0) / 2, abs=1e-4)
    assert found["pooled_iou"] == pytest.approx(6 / 20, abs=1e-4)
    assert found["dice"] == pytest.approx((12 / 16 + 0.0) / 2, abs=1e-4)
    assert (found["over_prediction"], found["under_prediction"]) == (12 / 20, 2 / 20)


@pytest.mark.parametrize("strategy", ["strided", "random", "stratified_random", "top_k"])
def test_a_pixel_budget_is_kept_and_nearly_used_up(strategy, rng):
    items = [{"name": f"{n}.png", "page": None, "sha256": "", "height": 200, "width": 240} for n in range(5)]
    scores = [grid_of(item, 64, 16) for item in items]
    for image in scores:
        image.window_scores[:] = rng.random(len(image.grid))
    budget = 200 * 240
    pixels = cost_of(select(scores, strategy, Budget(pixels=budget), seed=0)).unique_pixels
    assert 0.97 * budget <= pixels <= budget


def test_strided_windows_of_a_pixel_budget_touch_every_image():
    items = [{"name": f"{n}.png", "page": None, "sha256": "", "height": 200, "width": 240} for n in range(5)]
    regions = select([grid_of(item, 64, 16) for item in items], "strided", Budget(pixels=200 * 240), seed=0)
    assert {r.image for r in regions} == {item["name"] for item in items}


# --- whole experiments ------------------------------------------------------------------------------------------------


def run(options):
    """Run a grid; the store, and rows of results by method."""
    config = make_config(options)
    run_protocol(config, "grid")
    store = Store(config.output_dir + "/store")
    experiments = experiments_of(config)
    _, results = jobs_of(experiments)
    return experiments, {key.method: store.experiment(results[key]) for _, key in experiments}


def test_only_masks_of_selected_windows_matter_besides_those_of_the_test_images(options, data, tmp_path):
    experiments, clean = run({**options, "methods": ["top_k_soft", "coverage", "random"]})
    case, store = experiments[0][0], Store(tmp_path / "output" / "store")
    seen = {}
    for _, key in experiments:
        scores, _ = Bench(case, store).scores(key.variant, key.method)
        strategy = {"top_k_soft": "top_k"}.get(key.method, key.method)
        seen[key.method] = select(scores, strategy, case.budget(key), case.derived_seed(key.method))
    for method, regions in seen.items():
        poisoned = tmp_path / method
        shutil.copytree(data, poisoned / "data")
        for item in case.pool:
            path = poisoned / "data" / "ours" / "labels" / item["name"].split("/")[-1]
            mask = np.array(Image.open(path))
            outside = np.ones(mask.shape, dtype=bool)
            for r in regions:
                if r.image == item["name"]:
                    outside[r.y : r.y + r.height, r.x : r.x + r.width] = False
            mask[outside] = 255 - mask[outside]
            Image.fromarray(mask).save(path)
        changes = {"data_dir": str(poisoned / "data"), "output_dir": str(poisoned / "output"), "methods": [method]}
        _, again = run({**options, **changes})
        for part in ("selection", "result"):
            assert again[method][part] == clean[method][part], (method, part)


def test_flipped_masks_change_what_is_learned_but_no_selection(options, data, tmp_path):
    methods = ["top_k_soft", "foreground_random", "entropy"]
    _, clean = run({**options, "methods": methods})
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data" / "ours" / "labels").iterdir():
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    changes = {"data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "again"), "methods": methods}
    _, flipped = run({**options, **changes})
    for method in methods:
        before, after = clean[method], flipped[method]
        assert before["selection"] == after["selection"]
        assert before["result"]["foreground_share"] + after["result"]["foreground_share"] == pytest.approx(1)


def test_iou_of_an_experiment_is_that_of_a_plain_forward_pass(options, data, tmp_path):
    config = make_config({**options, "variants": ["running_norm"], "methods": ["pretext_only"]})
    run_protocol(config, "grid")
    (weights,) = (tmp_path / "output" / "store" / "pretext").glob("*.pt")
    network = FCRN()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    ious = []
    for item in Case(config, "ours", "random", 0, 0).parts[1]:
        name = item["name"].split("/")[-1]
        image, truth = (np.array(Image.open(data / "ours" / part / name)) for part in ("images", "labels"))
        with torch.no_grad():
            found = (
                torch.sigmoid(network(torch.tensor(image / 127.5 - 1, dtype=torch.float32)[None, None]))[0, 0] >= 0.5
            )
        both, either = (found.numpy() & (truth > 0)).sum(), (found.numpy() | (truth > 0)).sum()
        ious.append((both + 1e-4) / (either + 1e-4))
    header, row = (tmp_path / "output" / "grid" / "results.csv").read_text().splitlines()
    measured = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(measured["mean_iou"]) == pytest.approx(np.mean(ious), abs=2e-3)
    assert measured["windows"] == "0" and measured["budget"] == "0"


def test_full_supervision_labels_every_pixel_of_the_pool(options):
    _, found = run({**options, "methods": ["full"]})
    result = found["full"]["result"]
    assert (result["images"], result["unique_pixels"]) == (6, 6 * 72 * 88)


def test_the_papers_kind_of_schedule_runs_on_epochs_and_scores_window_by_window(options, tmp_path, monkeypatch):
    epochs = {"pretext_steps": None, "pretext_epochs": 1, "support_steps": None, "support_epochs": 1, "exact": True}
    monkeypatch.setitem(SCHEDULES, "tiny", replace(SCHEDULES["tiny"], **epochs))
    _, found = run({**options, "methods": ["top_k_soft"], "step": 20})
    settings = found["top_k_soft"]["settings"]
    assert (settings["support_steps"], settings["support_epochs"], settings["grid_step"]) == (None, 1, 20)
    assert found["top_k_soft"]["result"]["windows"] == 3

"""The select stage keeps scores as they come, refuses early what cannot be done, and writes what was selected."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from ignite.engine import Engine
from PIL import Image
from read_log import Log

from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers.selection_saver import SelectionSaver, check_request
from monai_kwtl.scoring.store import ScoreStore
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.select import checked_budget
from monai_kwtl.windows.grid import WindowGrid

WINDOW, STEP = 16, 9


def output_of(item, seed=0):
    """What the inferer gives for an image."""
    grid = WindowGrid(item["height"], item["width"], WINDOW, STEP)
    rng = np.random.default_rng([seed, int(item["sha256"][:8], 16)])
    score = rng.exponential(size=(item["height"], item["width"])).astype(np.float32)
    probability = rng.random(score.shape).astype(np.float32)
    blocks = grid.block_sums(score)
    foreground = grid.window_means(grid.block_sums(probability))
    found = {"grid": grid, "window_scores": grid.window_means(blocks), "foreground": foreground, "cells": blocks}
    return found | {"score": score, "probability": probability}


@pytest.fixture
def pool(tmp_path, rng):
    """Three images of other sizes, and what an evaluator's engine says when one has been scored."""
    (tmp_path / "pool").mkdir()
    for number, shape in enumerate([(40, 31), (25, 50), (16, 16)]):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "pool" / f"{number}.png")
    return load_pool(tmp_path / "pool")


@pytest.fixture
def store(tmp_path):
    return ScoreStore(tmp_path / "scores", {}, WINDOW, STEP)


def scored(store, pool):
    for item in pool:
        store.put(item, output_of(item))
    return store


def windows(pool):
    """Every window with its mean score by a loop over pixels, best first; {(image, x, y): score}."""
    found = {}
    for item in pool:
        output = output_of(item)
        height, width = output["grid"].size
        for y, x in zip(output["grid"].y.tolist(), output["grid"].x.tolist(), strict=True):
            values = [float(v) for row in output["score"][y : y + height, x : x + width] for v in row]
            found[item["name"], x, y] = sum(values) / len(values)
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


PLAIN = {"report": False, "tensorboard": False}


def test_scores_are_kept_as_they_come(pool, store, tmp_path):
    saver = SelectionSaver(pool, store, tmp_path / "out", budget_windows=2)
    assert saver.unscored == pool
    engine = Engine(lambda engine, item: {"pred": output_of(item)})
    saver.attach(engine)
    with pytest.raises(KWTLError, match="no scores, first 2.png; run the stage again"):
        engine.run(pool[:2])
    assert saver.unscored == pool[2:]
    for item in pool[:2]:
        assert np.array_equal(store.get(item).window_scores, output_of(item)["window_scores"])
    assert not (tmp_path / "out" / "selection.json").exists()


def test_the_selection_is_written_when_the_last_image_is_scored(pool, store, tmp_path):
    saver = SelectionSaver(pool, store, tmp_path / "out", budget_windows=2, **PLAIN)
    engine = Engine(lambda engine, item: {"pred": output_of(item)})
    saver.attach(engine)
    engine.run(pool)
    assert len(json.loads((tmp_path / "out" / "selection.json").read_text())["regions"]) == 2


def test_the_best_windows_are_written(pool, store, tmp_path, caplog):
    saver = SelectionSaver(
        pool, scored(store, pool), tmp_path / "out", budget_windows=5, created_with={"psi": 1.3}, seed=4, **PLAIN
    )
    with caplog.at_level(logging.INFO, logger="monai_kwtl"):
        regions = saver.save()
    best = list(windows(pool).items())[:5]
    assert [(r.image, r.x, r.y) for r in regions] == [place for place, _ in best]
    np.testing.assert_allclose([r.score for r in regions], [score for _, score in best], rtol=1e-6)
    document = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert [(r["image"], r["x"], r["y"]) for r in document["regions"]] == [place for place, _ in best]
    assert document["budget"] == {"windows": 5}
    assert document["created_with"] == {"psi": 1.3, "strategy": "top_k", "seed": 4}
    covered = {(name, y + down, x + right) for (name, x, y), _ in best for down in range(16) for right in range(16)}
    images = {name for (name, _, _), _ in best}
    assert document["cost"] == {"windows": 5, "images": len(images), "unique_pixels": len(covered)}
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = {(r["image"], int(r["x"]), int(r["y"])): float(r["score"]) for r in csv.DictReader(file)}
    assert rows == pytest.approx(windows(pool), rel=1e-6)
    for region in regions:
        (crop,) = (tmp_path / "out" / "regions").glob(f"{region.rank:03}_*.png")
        whole = np.array(Image.open(tmp_path / "pool" / region.image))
        assert np.array_equal(np.array(Image.open(crop)), whole[region.y : region.y + 16, region.x : region.x + 16])
    assert f"cost: 5 windows in {len(images)} of 3 images" in "\n".join(caplog.messages)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "selection.json", "selection.csv", "scores.csv", "geojson", "regions"
    }  # fmt: skip


def test_report_and_log_are_written_where_they_are_wanted(pool, store, tmp_path):
    SelectionSaver(pool, scored(store, pool), tmp_path / "out", budget_windows=2).save()
    text = (tmp_path / "out" / "report.html").read_text()
    assert "2 windows" in text and "top_k" in text
    assert np.array(Image.open(tmp_path / "out" / "what_to_label.png")).shape[1] > 100
    log = Log(tmp_path / "out" / "tensorboard")
    assert log.scalars()["cost/windows"] == 2.0 and len(log.tags("images")) == 2


def test_a_strategy_is_seeded(pool, store, tmp_path):
    scored(store, pool)
    chosen = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        saver = SelectionSaver(pool, store, tmp_path / name, budget_windows=6, strategy="random", seed=seed, **PLAIN)
        chosen[name] = [(r.image, r.x, r.y) for r in saver.save()]
    assert chosen["a"] == chosen["b"] != chosen["c"]


def test_without_a_budget_it_is_an_images_worth(pool, store, tmp_path):
    saver = SelectionSaver(pool, scored(store, pool), tmp_path / "out", **PLAIN)
    assert saver.budget == Budget(shots=1)
    area = (40 * 31 + 25 * 50 + 16 * 16) / 3
    assert len(saver.save()) == round(area / (16 * 16))


def test_a_fixed_grey_range_holds_for_the_crops(store, tmp_path):
    (tmp_path / "deep").mkdir()
    pixels = np.linspace(0, 1000, 20 * 30).reshape(20, 30).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep" / "a.png")
    pool = load_pool(tmp_path / "deep")
    SelectionSaver(pool, scored(store, pool), tmp_path / "out", budget_windows=1, rescale=(0, 2000), **PLAIN).save()
    (crop,) = (tmp_path / "out" / "regions").iterdir()
    region = json.loads((tmp_path / "out" / "selection.json").read_text())["regions"][0]
    expected = np.rint(pixels[region["y"] : region["y"] + 16, region["x"] : region["x"] + 16] * (255 / 2000))
    assert np.array_equal(np.array(Image.open(crop)), expected)


def test_a_selection_that_is_there_is_refused_at_once_and_replaced_when_told(pool, store, tmp_path):
    scored(store, pool)
    SelectionSaver(pool, store, tmp_path / "out", budget_windows=3).save()
    before = (tmp_path / "out" / "selection.json").read_bytes()
    with pytest.raises(KWTLError, match="selection.json already exists: choose another --output_dir"):
        SelectionSaver(pool, store, tmp_path / "out", budget_windows=1)
    assert (tmp_path / "out" / "selection.json").read_bytes() == before
    (tmp_path / "out" / "notes.txt").write_text("mine")
    SelectionSaver(pool, store, tmp_path / "out", budget_windows=1, overwrite=True, **PLAIN).save()
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.suffix in (".png", ".html", ".txt")} == {
        "notes.txt", *(path.name for path in (tmp_path / "out" / "regions").iterdir())
    }  # fmt: skip
    assert len(list((tmp_path / "out" / "regions").iterdir())) == 1
    assert not list((tmp_path / "out" / "tensorboard").iterdir())


def test_a_disk_that_fills_up_leaves_the_selection_before_with_its_report(pool, store, tmp_path, monkeypatch):
    scored(store, pool)
    SelectionSaver(pool, store, tmp_path / "out", budget_windows=3).save()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    saver = SelectionSaver(pool, store, tmp_path / "out", budget_windows=1, overwrite=True, **PLAIN)

    def full(*arguments, **options):
        raise KWTLError("the disk is full")

    monkeypatch.setattr("monai_kwtl.handlers.selection_saver.write_selection", full)
    with pytest.raises(KWTLError, match="the disk is full"):
        saver.save()
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_an_image_that_is_gone_is_named(pool, store, tmp_path):
    saver = SelectionSaver(pool, scored(store, pool), tmp_path / "out", budget_windows=3, **PLAIN)
    shutil.rmtree(tmp_path / "pool")
    with pytest.raises(KWTLError, match=r"\.png"):
        saver.save()
    assert not (tmp_path / "out" / "selection.json").exists()


# --- what is refused before anything is computed ----------------------------------------------------------------------

BAD = [
    ({"strategy": "topk"}, "unknown strategy 'topk'; use one of top_k, coverage, random"),
    ({"budget": 0}, "budget must be a number above 0"),
    ({"budget": -1}, "budget must be a number above 0"),
    ({"budget": "much"}, "budget must be a number above 0"),
    ({"budget": 4}, "budget is 4 images' worth, but the pool has only 3 images"),
    ({"budget_windows": 2.5}, "budget_windows must be a whole number"),
    ({"budget_windows": 10_000}, "budget_windows is 10000, but the pool has only"),
    ({"budget_pixels": 255}, "budget_pixels is 255, less than one window of 256 pixels"),
    ({"budget_pixels": 2747}, "but the pool has only 2746 pixels"),
    ({"budget": 1, "budget_windows": 3}, "give one of budget, budget_windows and budget_pixels, got 2"),
]
NONE = {"budget": None, "budget_windows": None, "budget_pixels": None}


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_requests_are_refused_before_anything_is_computed(pool, store, tmp_path, options, words):
    with pytest.raises(KWTLError, match=words):
        SelectionSaver(pool, store, tmp_path / "out", **options)
    inferer = SimpleNamespace(window=WINDOW, step=STEP, exact=False)
    with pytest.raises(KWTLError, match=words):
        check_request(pool, tmp_path / "out", False, inferer=inferer, **{"strategy": "top_k"} | NONE | options)
    assert not (tmp_path / "out").exists() and not store.folder.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, Budget(shots=1)), ({"budget": 0.5}, Budget(shots=0.5)), ({"budget_windows": 3}, Budget(windows=3)),
     ({"budget_pixels": 2746}, Budget(pixels=2746))],
)  # fmt: skip
def test_a_budget_that_the_pool_holds_is_returned(pool, options, expected):
    assert checked_budget(pool, WINDOW, STEP, "random", **NONE | options) == expected


def test_coverage_needs_maps(pool, tmp_path):
    request = {"strategy": "coverage", **NONE}
    exact = SimpleNamespace(window=WINDOW, step=STEP, exact=True)
    with pytest.raises(KWTLError, match="'coverage' needs score maps; exact scoring has none"):
        check_request(pool, tmp_path / "out", False, inferer=exact, **request)
    dense = SimpleNamespace(window=WINDOW, step=STEP, exact=False)
    assert check_request(pool, tmp_path / "out", False, inferer=dense, **request) is True


def test_an_output_that_cannot_be_used_is_refused_before_pretext_tuning(pool, tmp_path):
    inferer = SimpleNamespace(window=WINDOW, step=STEP, exact=False)
    request = {"strategy": "top_k", "inferer": inferer, **NONE}
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KWTLError, match="choose another --output_dir"):
        check_request(pool, tmp_path / "file", False, **request)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "selection.json").write_text("{}")
    with pytest.raises(KWTLError, match="already exists"):
        check_request(pool, tmp_path / "out", False, **request)
    assert check_request(pool, tmp_path / "out", True, **request) is True
    assert (tmp_path / "out" / "selection.json").read_text() == "{}"

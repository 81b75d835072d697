"""TensorBoard shows of a selection what is on disk of it: scores, regions with prediction and views, and the cost."""

from __future__ import annotations

import csv
import json
import os
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from read_log import Log
from stage_here import random_weights, run
from torch import nn

from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.report.tensorboard import draw_selection, panel
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.store import unpack
from monai_kwtl.scoring.view_maps import ViewMaps
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.selection.regions import Cost, Region
from monai_kwtl.synthetic import make_pool
from monai_kwtl.transforms import AutoContrast, Brightness
from monai_kwtl.utils.tensorboard import open_log
from monai_kwtl.windows.box import Box

GAP = 4


def tiles(picture, width, count):
    """Cut a panel into its pictures; what is between them is white."""
    assert picture.shape[1] == count * width + (count - 1) * GAP
    cut = []
    for number in range(count):
        left = number * (width + GAP)
        cut.append(picture[:, left : left + width])
        assert (picture[:, left + width : left + width + GAP] == 255).all()
    return cut


def outlined(grey, mask):
    """Draw, pixel by pixel, the foreground that has background above, below, left or right of it."""
    drawn = np.stack([grey] * 3, axis=2)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [mask[r, c] for r, c in beside if 0 <= r < height and 0 <= c < width]
            if mask[y, x] and not all(inside):
                drawn[y, x] = (255, 200, 0)
    return drawn


PALETTE = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3].astype(int)


def steps(picture):
    """From colours back to their numbers, 0 to 255."""
    return ((picture[..., None, :].astype(int) - PALETTE) ** 2).sum(-1).argmin(-1)


def assert_shows(picture, values, top):
    """One step of the colours is free: where a value lies between two of them, its last bit decides."""
    assert picture.shape == (*values.shape, 3)
    assert np.abs(steps(picture) - np.clip(values / top * 256, 0, 255).astype(int)).max() <= 1


def displayed(pixels):
    """The contrast of an image for looking at: its 0.1st percentile black, the 99.9th white, at most eight times."""
    low, high = np.percentile(pixels, [0.1, 99.9])
    return np.rint(np.clip((pixels - low) * min(255 / max(high - low, 1), 8), 0, 255)).astype(np.uint8)


def assert_close(picture, expected, levels=1):
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= levels


# --- what a real run shows --------------------------------------------------------------------------------------------

OPTIONS = {"pretext": "skip", "window": 40, "step": 15, "budget_windows": 10, "report": "false"}
NUMERICS = {"amp": "false", "device": "cpu"}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A selection, its log, and the masks that the same weights predict."""
    folder = tmp_path_factory.mktemp("board")
    make_pool(folder / "pool", "fluorescence", count=3, height=75, width=94, seed=1)
    options = NUMERICS | {"dataset_dir": folder / "pool", "ckpt": random_weights(folder / "model.pt", seed=2)}
    for stage, stage_options in (("select", OPTIONS), ("inference", {})):
        ended = run(stage, output_dir=folder / stage, **options, **stage_options)
        assert ended.status == 0, ended.err
    selection = json.loads((folder / "select" / "selection.json").read_text())
    return SimpleNamespace(folder=folder, options=options, log=Log(folder / "select" / "tensorboard"), **selection)


def tag_of(region):
    return f"{region['rank']:02} {region['image']} x={region['x']} y={region['y']}"


def cut(array, region):
    rows = slice(region["y"], region["y"] + region["height"])
    return array[..., rows, region["x"] : region["x"] + region["width"]]


def kept_map(chosen, name, image):
    """An array that the select stage has kept of an image."""
    (folder,) = (chosen.folder / "select" / "scores").iterdir()
    sha256 = next(r["image_sha256"] for r in chosen.regions if r["image"] == image)
    with open(folder / f"{sha256[:32]}.npz", "rb") as stream:
        return unpack(stream, (name,))[name]


def test_histograms_hold_the_scores_of_all_windows_and_of_those_selected(chosen):
    with open(chosen.folder / "select" / "scores.csv", newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert set(chosen.log.tags("histograms")) == {"score/all windows", "score/selected windows"}
    for tag, values in (("all", scores), ("selected", [region["score"] for region in chosen.regions])):
        histogram = chosen.log.histogram(f"score/{tag} windows")
        assert histogram.num == len(values) == sum(histogram.bucket)
        assert histogram.min == pytest.approx(min(values)) and histogram.max == pytest.approx(max(values))
        assert histogram.sum == pytest.approx(sum(values))


def test_scalars_are_the_cost(chosen):
    covered = {(r["image"], y, x) for r in chosen.regions for y in range(r["y"], r["y"] + r["height"])
               for x in range(r["x"], r["x"] + r["width"])}  # fmt: skip
    assert chosen.log.scalars() == {
        "cost/windows": 10,
        "cost/images": len({region["image"] for region in chosen.regions}),
        "cost/unique pixels": len(covered),
    }


def test_the_tags_say_rank_image_and_place(chosen):
    tags = chosen.log.tags("images")
    regions = [f"regions/{tag_of(region)}" for region in chosen.regions]
    views = [f"views/{tag_of(r)}: image, AutoContrast, Brightness, Sharpness" for r in chosen.regions if r["rank"] <= 8]
    assert sorted(tags) == regions + views, "sorted as TensorBoard does, the best come first"


def test_a_region_is_shown_with_its_predicted_outline_and_its_score_map(chosen):
    for region in chosen.regions:
        grey = displayed(np.array(Image.open(chosen.folder / "pool" / region["image"])))
        mask = np.array(Image.open(chosen.folder / "inference" / region["image"].split("/")[1])) > 0
        score = kept_map(chosen, "score", region["image"]).astype(float)
        image, outline, scores = tiles(chosen.log.picture(f"regions/{tag_of(region)}"), region["width"], 3)
        assert_close(image, np.stack([cut(grey, region)] * 3, axis=2))
        assert_close(outline, outlined(cut(grey, region), cut(mask, region)))
        assert_shows(scores, cut(score, region), np.quantile(score, 0.999))
    assert 0.1 < mask.mean() < 0.9


def test_the_views_of_a_region_add_up_to_its_score(chosen):
    for rank in (1, 2, 8):
        region = chosen.regions[rank - 1]
        picture = chosen.log.picture(f"views/{tag_of(region)}: image, AutoContrast, Brightness, Sharpness")
        image, *views = tiles(picture, region["width"], 4)
        assert_close(image, tiles(chosen.log.picture(f"regions/{tag_of(region)}"), region["width"], 3)[0], 0)
        # from colours back to numbers; what is brightest may have been clipped and has no say
        levels = np.stack([steps(view) for view in views])
        told = (levels < 255).all(0)
        total, score = levels.sum(0)[told], cut(kept_map(chosen, "score", region["image"]), region)[told].astype(float)
        assert told.mean() > 0.95 and len(np.unique(total)) > 20
        unit = (total * score).sum() / (total * total).sum()
        np.testing.assert_allclose(unit * total, score, atol=0.02 * score.max())


def test_a_selection_made_anew_takes_the_place_of_the_old_in_the_log(chosen, tmp_path):
    ended = run("select", output_dir=tmp_path, **chosen.options, **OPTIONS | {"report": "true"})
    assert ended.status == 0, ended.err
    first = Log(tmp_path / "tensorboard").tags("images")
    assert {"what_to_label.png", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    stage_options = OPTIONS | {"budget_windows": 2, "strategy": "coverage", "overwrite": "true"}
    ended = run("select", output_dir=tmp_path, **chosen.options, **stage_options)
    assert ended.status == 0, ended.err
    regions = json.loads((tmp_path / "selection.json").read_text())["regions"]
    log = Log(tmp_path / "tensorboard")
    assert log.tags("images") == [f"regions/{tag_of(r).removeprefix('0')}" for r in regions], "scored before: no views"
    assert len(first) == 18 and log.curve("cost/windows") == [(0, 2.0)]
    assert not {"what_to_label.png", "report.html"} & {path.name for path in tmp_path.iterdir()}
    ended = run("select", output_dir=tmp_path, **chosen.options, **stage_options | {"tensorboard": "false"})
    assert ended.status == 0 and not list((tmp_path / "tensorboard").iterdir())


# --- the drawing by itself --------------------------------------------------------------------------------------------


def test_a_panel_shows_what_it_is_given_side_by_side(rng):
    image = rng.integers(0, 256, (17, 23), dtype=np.uint8)
    probability = np.kron(rng.random((6, 8)), np.ones((3, 3)))[:17, :23]
    maps = [rng.random((17, 23)), rng.random((17, 23)) * 3]
    whole, outline, low, high = tiles(panel(image, probability, maps, top=2.0), 23, 4)
    assert_close(whole, np.stack([image] * 3, axis=2), 0)
    assert_close(outline, outlined(image, probability >= 0.5), 0)
    for found, values in ((low, maps[0]), (high, maps[1])):
        assert_shows(found, values, 2.0)
    (alone,) = tiles(panel(image, None, [], top=0.0), 23, 1)
    assert_close(alone, whole, 0)


def test_scores_of_nothing_but_zero_are_black():
    _, black = tiles(panel(np.zeros((5, 6), np.uint8), None, [np.zeros((5, 6))], top=0.0), 6, 2)
    assert_shows(black, np.zeros((5, 6)), 1.0)


def drawn(folder, regions, **options):
    """Draw regions of constant images; the log."""
    names = {(r.image, r.page) for r in regions}
    items = [{"name": name, "page": page} for name, page in names]
    reading = []
    given = {
        "regions": regions,
        "items": items,
        "window_scores": np.arange(50.0),
        "cost": Cost(len(regions), len(names), 999),
        "read": lambda item: reading.append(item["name"]) or np.full((1, 30, 40), 90, dtype=np.uint8),
        "probability": lambda item: None,
        "score": lambda item: None,
    }
    with open_log(folder, "select") as writer:
        draw_selection(writer, **given | options)
    return Log(folder), reading


def make_regions(count, name="a.png", page=None):
    return [Region(rank, name, page, "", rank % 20, 5, 16, 12, 1 / rank) for rank in range(1, count + 1)]


def test_without_maps_a_region_is_its_image(tmp_path):
    log, _ = drawn(tmp_path, make_regions(2))
    assert log.tags("images") == ["regions/1 a.png x=1 y=5", "regions/2 a.png x=2 y=5"]
    assert log.picture("regions/1 a.png x=1 y=5").shape == (12, 16, 3)


def test_large_regions_are_drawn_smaller(tmp_path, rng):
    image = rng.integers(0, 256, (400, 400), dtype=np.uint8)
    image.flat[:100], image.flat[-100:] = 0, 255
    predicted = np.kron(rng.random((20, 20)), np.ones((20, 20)))
    regions = [Region(1, "a.png", None, "", 30, 20, 301, 350, 0.5)]
    maps = {"read": lambda _: image[None], "probability": lambda _: predicted, "score": lambda _: predicted}
    shares = {"Inverted": predicted[20:370, 30:331]}
    log, _ = drawn(tmp_path, regions, **maps, per_view=lambda image, box: shares)
    whole, outline, score = tiles(log.picture("regions/1 a.png x=30 y=20"), 101, 3)
    small = (slice(20, 370, 3), slice(30, 331, 3))
    assert_close(whole, np.stack([displayed(image)[small]] * 3, axis=2))
    assert_close(outline, outlined(displayed(image)[small], predicted[small] >= 0.5))
    assert_shows(score, predicted[small], np.quantile(predicted, 0.999))
    _, view = tiles(log.picture("views/1 a.png x=30 y=20: image, Inverted"), 101, 2)
    assert_shows(view, predicted[small], np.quantile(shares["Inverted"], 0.999))


def test_the_best_are_drawn_and_each_image_is_read_once(tmp_path):
    asked = []

    def per_view(image, box):
        asked.append((image.shape, box))
        return {"Inverted": np.ones((12, 16))}

    regions = make_regions(105)
    regions[1::2] = [Region(r.rank, "b.png", None, "", r.x, r.y, r.width, r.height, r.score) for r in regions[1::2]]
    log, reading = drawn(tmp_path, regions, per_view=per_view, most=7, most_per_view=3)
    assert sorted(tag.split(" ")[0] for tag in log.tags("images") if tag.startswith("regions/")) == [
        f"regions/{rank:03}" for rank in range(1, 8)
    ]
    assert sorted(reading) == ["a.png", "b.png"]
    assert sorted(tag for tag in log.tags("images") if tag.startswith("views/")) == [
        f"views/{rank:03} {'ab'[(rank + 1) % 2]}.png x={rank} y=5: image, Inverted" for rank in (1, 2, 3)
    ]
    assert sorted(asked) == [((1, 30, 40), Box(rank, 5, 16, 12)) for rank in (1, 2, 3)]
    assert log.histogram("score/selected windows").num == 105


def test_a_measure_without_views_draws_none(tmp_path):
    log, _ = drawn(tmp_path, make_regions(1), per_view=lambda image, box: {})
    assert log.tags("images") == ["regions/1 a.png x=1 y=5"]


def test_pages_count_from_one_and_names_may_be_of_any_bytes(tmp_path):
    name = os.fsdecode(b"Zellen f\xfcr A.tif")
    log, _ = drawn(tmp_path, make_regions(1, name, page=0))
    assert log.tags("images") == ["regions/1 Zellen f\ufffdr A.tif page 1 x=1 y=5"]


# --- the maps of the views --------------------------------------------------------------------------------------------


class Ready:
    """An adapter whose network is ready."""

    def __init__(self, network):
        self.network, self.device = network, torch.device("cpu")

    def ready(self):
        return self.network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FCRN(spatial_dims=2, in_channels=1, out_channels=1, features=(4, 4, 8, 8)).eval()


@pytest.fixture
def image(rng):
    """Contrast that differs from place to place, so that it matters what is auto-contrasted."""
    ramp = np.add.outer(np.arange(131) // 2, np.arange(99))
    return (ramp + rng.integers(10, 90, (131, 99))).clip(0, 230).astype(np.uint8)[None]


BOX = Box(x=35, y=40, width=64, height=43)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"measure": "hard"}, {"weighted": True}, {"psi": 1.6}, {"views": "affine"}],
    ids=["soft", "hard", "weighted", "psi", "affine"],
)
def test_the_maps_add_up_to_the_score_of_the_region(network, image, settings, exact):
    scorer = ScoreMapInferer(**settings)
    maps = ViewMaps(WindowScoreInferer(scorer, exact=exact), Ready(network))(image, BOX)
    inputs = torch.from_numpy(image)[None]
    if exact:  # the region by itself
        expected = scorer(inputs[..., 40:83, 35:99], network)["score"][0, 0]
    else:  # cut out of the map of the image
        expected = scorer(inputs, network)["score"][0, 0, 40:83, 35:99]
    assert len(maps) == len(scorer.views)
    np.testing.assert_allclose(sum(maps.values()), expected, rtol=1e-3, atol=1e-5)


def test_the_maps_have_the_names_of_their_views(network, image):
    def names(views):
        return list(ViewMaps(WindowScoreInferer(ScoreMapInferer(views=views)), Ready(network))(image, BOX))

    assert names("intensity") == ["AutoContrast", "Brightness", "Sharpness"]
    assert names("affine") == ["rotation 30 degrees", "translation 30 %"]
    twice = [Brightness(1.3), AutoContrast(), Brightness(1.6), Brightness(0.5)]
    assert names(twice) == ["Brightness", "AutoContrast", "Brightness #2", "Brightness #3"]


@pytest.mark.parametrize(("measure", "count"), [("jsd", 3), ("entropy", 0), ("mc_dropout", 0)])
def test_only_a_measure_that_compares_views_has_maps(network, image, measure, count):
    maps = ViewMaps(WindowScoreInferer(ScoreMapInferer(measure=measure)), Ready(network))(image, BOX)
    assert len(maps) == count


def test_the_cross_entropy_is_that_of_its_definition():
    class Steep(nn.Module):
        def forward(self, x):
            return 2 * x

    pixels = np.arange(48, dtype=np.uint8).reshape(1, 6, 8) * 4
    scorer = ScoreMapInferer(views=[Brightness(1.3)])
    (found,) = ViewMaps(WindowScoreInferer(scorer), Ready(Steep()))(pixels, Box(2, 1, 6, 4)).values()

    def probability(grey):
        return 1 / (1 + np.exp(-2 * (grey / 255 - 0.5) / 0.5))

    t, p = probability(pixels[0, 1:5, 2:].astype(float)), probability(np.minimum(1.3 * pixels[0, 1:5, 2:], 255))
    np.testing.assert_allclose(found, -t * np.log(p) - (1 - t) * np.log(1 - p), rtol=1e-5)

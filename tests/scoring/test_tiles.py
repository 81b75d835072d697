"""An image scored tile by tile has the score map of the image scored whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from monai_kwtl.inferers.memory import tile_within
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.optimize import channels_last, fold_batch_norm
from monai_kwtl.readers.slides import ImageInMemory
from monai_kwtl.scoring import window_scores
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.tiles import can_be_tiled, predicted_tiles
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.transforms import AffineView, intensity_views
from monai_kwtl.transforms.functional import normalize

SIZES = [(300, 203), (97, 65), (64, 301), (8, 200), (1, 90), (5, 3)]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return channels_last(fold_batch_norm(FCRN(features=(4, 8, 8, 16))))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def grey(height, width, seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(height), np.arange(width)) // 4
    return torch.from_numpy(np.clip(ramp + rng.integers(20, 120, (height, width)), 3, 230).astype(np.uint8))[None, None]


def assembled(found, key, shape):
    """The map that tiles make up; each pixel must come once."""
    result, times = torch.full(shape, torch.nan), np.zeros(shape[2:], dtype=int)
    for tile in found:
        result[:, :, tile.rows, tile.columns] = key(tile)
        times[tile.rows, tile.columns] += 1
    assert (times == 1).all()
    return result


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("number", [1, 2])
@torch.no_grad()
def test_tiles_predict_what_the_whole_image_does(network, threads, height, width, number):
    threads(number)
    image = grey(height, width)
    views = intensity_views(1.3)
    limits = float(image.min()), float(image.max())
    local = [views[0].within(*limits), *views[1:]]
    tiles = list(predicted_tiles(ImageInMemory(image), network, TiledInferer(tile=72), local))
    assert len(tiles) == -(-height // 72) * -(-width // 72)
    whole = TiledInferer(tile=4096)
    expected = [whole(normalize(image), network)]
    expected += [whole(normalize(view(image[:, 0])[:, None]), network) for view in views]
    for number, logits in enumerate(expected):
        found = assembled(
            tiles, lambda tile, n=number: [tile.logits, *tile.view_logits][n][(..., *tile.within)], image.shape
        )
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
@torch.no_grad()
def test_an_image_of_one_tile_has_the_map_of_the_image(network, height, width):
    image, scorer = grey(height, width), ScoreMapInferer()
    found = WindowScoreInferer(scorer, 32, 9)(image, network)
    maps = scorer(image, network)
    # but for the last bit: the same logits, of which vector and scalar instructions compute other exponentials
    np.testing.assert_allclose(found["score"], maps["score"][0, 0].numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["probability"], torch.sigmoid(maps["logits"])[0, 0].numpy(), rtol=1e-6)


def whole_and_tiled(image, network, tile, measure="soft"):
    maps = []
    for side in (1 << 14, tile):
        scorer = ScoreMapInferer(measure=measure, inferer=TiledInferer(tile=side, amp=False))
        maps.append(WindowScoreInferer(scorer, 64, 20)(image, network))
    return maps


@pytest.mark.parametrize("tile", [515, 333])
def test_score_maps_have_the_same_bits_with_odd_tiles(tile):
    torch.manual_seed(0)
    whole, tiled = whole_and_tiled(grey(700, 1003), channels_last(fold_batch_norm(FCRN())), tile, measure="entropy")
    assert np.array_equal(whole["score"], tiled["score"])
    assert np.array_equal(whole["probability"], tiled["probability"])
    np.testing.assert_allclose(tiled["window_scores"], whole["window_scores"], rtol=1e-12)


@pytest.mark.slow
def test_score_maps_have_the_same_bits_with_odd_tiles_at_1500_by_2000():
    torch.manual_seed(0)
    whole, tiled = whole_and_tiled(grey(1500, 2000), channels_last(fold_batch_norm(FCRN())), 777)
    assert np.array_equal(whole["score"], tiled["score"])
    np.testing.assert_allclose(tiled["window_scores"], whole["window_scores"], rtol=1e-12)


def test_real_images_in_tiles(kwtl_data):
    torch.manual_seed(0)
    network = channels_last(fold_batch_norm(FCRN()))
    for path in (kwtl_data / "ssTEM/images/03.png", sorted((kwtl_data / "TNBC/images").iterdir())[7]):
        crop = np.array(Image.open(path).convert("L"))[11:414, 7:338]
        whole, tiled = whole_and_tiled(torch.from_numpy(crop)[None, None], network, 168)
        np.testing.assert_allclose(tiled["score"], whole["score"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(tiled["window_scores"], whole["window_scores"], rtol=1e-5)


def test_maps_of_very_large_images_are_summed_up_but_not_kept(network, monkeypatch):
    image, inferer = grey(70, 90), WindowScoreInferer(ScoreMapInferer(inferer=TiledInferer(tile=32)), 16, 5)
    kept = inferer(image, network)
    monkeypatch.setattr(window_scores, "LARGEST_MAP", 70 * 90 - 1)
    found = inferer(image, network)
    assert found["score"] is None and found["probability"] is None
    for name in ("window_scores", "foreground", "cells"):
        assert np.array_equal(found[name], kept[name])


def test_what_depends_on_the_whole_image_is_not_tiled():
    assert can_be_tiled(ScoreMapInferer()) and can_be_tiled(ScoreMapInferer("entropy", views="affine"))
    whole = [ScoreMapInferer(views="affine"), ScoreMapInferer("mc_dropout"), ScoreMapInferer(weighted=True)]
    whole += [ScoreMapInferer(views=[AffineView(30)]), ScoreMapInferer(views=[lambda x: x])]
    assert not any(map(can_be_tiled, whole))


@pytest.mark.parametrize(("kept", "usual"), [(True, 1024), (False, 384)])
def test_the_tile_grows_with_the_memory(monkeypatch, kept, usual):
    monkeypatch.setattr("monai_kwtl.inferers.memory.freed_memory_is_kept", lambda: kept)
    assert tile_within(None) == usual and tile_within(None, "cuda") == 1536
    sides = [tile_within(memory, "cuda") for memory in (0.8, 1, 1.2, 8)]
    assert sides == sorted(set(sides)) and sides[0] >= 256
    assert all(side % 16 == 0 for side in sides) and tile_within(0.8) == sides[0] < tile_within(8) == usual

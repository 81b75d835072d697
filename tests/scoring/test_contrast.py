"""Window scores whose auto-contrast is each window's own, from a few contrasts of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from stage_process import ROOT
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.batch_norm import estimate_batch_norm_statistics
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.readers.slides import ImageInMemory
from monai_kwtl.scoring.contrast import ContrastLevels, levels_between, window_ranges
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.windows.grid import WindowGrid

SIZES = [(61, 83), (40, 97), (7, 5), (24, 24)]


class Steep(nn.Module):
    """Looks at no pixel but the one; so windows by themselves and windows of an image differ in contrast only."""

    stride = 8

    def forward(self, x):
        return 3 * x


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(height), np.arange(width)) // 2
    return torch.from_numpy((30 + ramp + rng.integers(0, 90, (height, width))).astype(np.uint8))[None, None]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("measure", ["soft", "hard"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tile", [24, 512])
def test_with_every_level_scores_are_those_of_windows_by_themselves(height, width, measure, threads, tile):
    image = picture(height, width)
    views = ScoreMapInferer().views
    scorer = ScoreMapInferer(measure, views=[view for view in views if type(view).__name__ != "Sharpness"])
    scorer.inferer = TiledInferer(tile=tile)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = WindowScoreInferer(scorer, 24, 10, exact=True)(image, Steep())
        ours = WindowScoreInferer(scorer, 24, 10, contrast="window", spacing=1)(image, Steep())
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(ours["window_scores"], exact["window_scores"], rtol=1e-5)


def test_few_levels_come_close_and_the_map_stays_that_of_the_image():
    image, scorer = picture(90, 120), ScoreMapInferer()
    exact = WindowScoreInferer(scorer, 24, 10, exact=True)(image, Steep())["window_scores"]
    plain = WindowScoreInferer(scorer, 24, 10)(image, Steep())
    ours = WindowScoreInferer(scorer, 24, 10, contrast="window")(image, Steep())
    for name in ("cells", "score", "probability", "foreground"):
        assert np.array_equal(ours[name], plain[name])
    error, without = (np.abs(found["window_scores"] - exact).mean() for found in (ours, plain))
    assert error < without / 8
    assert spearmanr(ours["window_scores"], exact).statistic > 0.99


def test_a_constant_image_has_one_level():
    image = torch.full((1, 1, 40, 50), 77, dtype=torch.uint8)
    assert ContrastLevels(*window_ranges(ImageInMemory(image), WindowGrid(40, 50, 16, 5))).pairs == [(77.0, 77.0)]
    scores = [WindowScoreInferer(ScoreMapInferer(), 16, 5, contrast=c)(image, Steep()) for c in ("image", "window")]
    assert np.array_equal(scores[0]["window_scores"], scores[1]["window_scores"])


def test_weights_reproduce_each_range(rng):
    low, high = rng.integers(0, 90, 40).astype(float), rng.integers(120, 256, 40).astype(float)
    for spacing in (1, 7, 16, 500):
        levels = ContrastLevels(low, high, spacing)
        np.testing.assert_allclose(levels.weights.sum(0), 1)
        for values, end in ((low, 0), (high, 1)):
            np.testing.assert_allclose(levels.weights.T @ np.array(levels.pairs)[:, end], values)
    assert np.array_equal(levels_between(np.array([3.0, 5.0]), 16), [3, 5])
    assert np.array_equal(levels_between(np.array([3.0, 35.0]), 16), [3, 19, 35])


def test_a_level_is_needed_where_its_windows_are():
    grid = WindowGrid(32, 64, 16, 16)
    low = np.where(grid.x < 32, 0.0, 100.0)
    needed = ContrastLevels(low, np.full(len(grid), 255.0), 1000).needed(grid)
    assert needed(0, slice(0, 8), slice(0, 8)) and not needed(1, slice(0, 32), slice(0, 32))
    assert needed(1, slice(0, 32), slice(0, 33)) and not needed(0, slice(0, 32), slice(32, 64))


@pytest.mark.parametrize("scorer", [ScoreMapInferer("jsd"), ScoreMapInferer("entropy"), ScoreMapInferer(weighted=True)])
def test_what_cannot_be_had_is_refused(scorer):
    with pytest.raises(KWTLError, match="^contrast window needs measure soft or hard"):
        WindowScoreInferer(scorer, contrast="window")
    with pytest.raises(KWTLError, match="^contrast must be image or window, got 'local'"):
        WindowScoreInferer(scorer, contrast="local")


def test_real_windows_rank_as_by_themselves(kwtl_data):
    path = sorted((kwtl_data / "TNBC/images").iterdir())[0]
    image = torch.from_numpy(np.array(Image.open(path).convert("L"))[100:301, 60:303])[None, None]
    network = load_weights(FCRN(), ROOT / "bundles/kwtl/models/model.pt")
    estimate_batch_norm_statistics(network, [normalize(image)])
    network.eval()
    exact, plain, ours = (
        WindowScoreInferer(ScoreMapInferer(), 128, 28, **options)(image, network)["window_scores"]
        for options in ({"exact": True}, {}, {"contrast": "window"})
    )
    # windows this small feel the zero padding around each of them, which the dense ways do not have
    assert spearmanr(ours, exact).statistic > max(0.8, spearmanr(plain, exact).statistic)

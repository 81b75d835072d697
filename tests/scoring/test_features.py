"""Features of windows are means of the latent over them, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.fcrn import FCRN, pad_to_multiple
from monai_kwtl.scoring.features import window_features
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.windows.grid import WindowGrid


@pytest.fixture
def network():
    torch.manual_seed(3)
    return FCRN(features=(4, 6, 5, 7)).eval()


def grey(height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 1, height, width)).astype(np.uint8))


def latent_and_probability(network, image):
    """Of the whole padded image; the probability averaged over the pixels of each value of the latent."""
    padded = pad_to_multiple(normalize(image), network.stride)
    with torch.no_grad():
        latent, logits = network.features(padded), network(padded)
    height, width = latent.shape[2:]
    probability = torch.sigmoid(logits).reshape(height, 8, width, 8).mean((1, 3)).numpy().astype(np.float64)
    return latent[0].numpy().astype(np.float64), probability


def one_by_one(network, image, grid):
    """Each window by itself, on the values of the latent whose middle lies in it, or nearly so."""
    latent, probability = latent_and_probability(network, image)
    gaps = [(-size % 8) // 2 for size in image.shape[2:]]
    rows = []
    for y, x in zip(grid.y, grid.x, strict=True):
        (top, bottom), (left, right) = (
            (int((start + gap) / 8 + 0.5), int((start + gap + size) / 8 + 0.5))
            for start, gap, size in zip((y, x), gaps, grid.size, strict=True)
        )
        part = latent[:, top : max(bottom, top + 1), left : max(right, left + 1)]
        p = probability[top : max(bottom, top + 1), left : max(right, left + 1)]
        means = part.mean((1, 2)), (part * p).sum((1, 2)) / p.sum()
        rows.append(np.concatenate([mean / max(np.linalg.norm(mean), 1e-12) * np.sqrt(0.5) for mean in means]))
    return np.array(rows)


@pytest.mark.parametrize("size", [(64, 64), (61, 83), (40, 129), (9, 70)])
@pytest.mark.parametrize("tile", [16, 32, 512])
def test_features_are_those_of_each_window_by_itself(network, size, tile):
    image, grid = grey(*size), WindowGrid(*size, window=24, step=9)
    found = window_features(image, network, grid, TiledInferer(tile=tile, halo=48))
    assert found.dtype == np.float16 and found.shape == (len(grid), 14)
    np.testing.assert_allclose(found.astype(np.float64), one_by_one(network, image, grid), atol=2e-3)


def test_an_image_of_one_grey_value_has_finite_features(network):
    image = torch.zeros((1, 1, 30, 50), dtype=torch.uint8)
    found = window_features(image, network, WindowGrid(30, 50, 24, 9), TiledInferer())
    assert np.isfinite(found).all()
    np.testing.assert_allclose((found.astype(np.float64) ** 2).sum(1), 1.0, atol=5e-3)


def test_a_network_without_a_latent_is_refused(network):
    with pytest.raises(KWTLError, match="Conv2d has no latent to compare windows by; choose another --strategy"):
        window_features(grey(20, 20), torch.nn.Conv2d(1, 1, 3), WindowGrid(20, 20, 8, 4), TiledInferer())


def test_more_windows_than_memory_holds_are_refused(network, monkeypatch):
    monkeypatch.setattr("monai_kwtl.scoring.features._MOST_BYTES", 100)
    with pytest.raises(KWTLError, match="too many to compare; use a larger --step"):
        window_features(grey(40, 40), network, WindowGrid(40, 40, 8, 4), TiledInferer())


@pytest.mark.parametrize(
    ("measure", "how"),
    [("soft", {}), ("kl", {}), ("entropy", {}), ("soft", {"contrast": "window"}), ("soft", {"exact": True}),
     ("mc_dropout", {})],
)  # fmt: skip
def test_scoring_describes_windows_as_describing_alone_does_and_scores_no_other_way(network, measure, how):
    image = grey(61, 83)
    scorer = ScoreMapInferer(measure=measure, inferer=TiledInferer(tile=32, halo=48))
    both, alone = (WindowScoreInferer(scorer, 24, 9, features=w, **how)(image, network) for w in (True, False))
    plain = window_features(image, network, WindowGrid(61, 83, 24, 9), TiledInferer(tile=32, halo=48))
    np.testing.assert_array_equal(both["features"], plain)
    assert alone["features"] is None
    for name in ("window_scores", "foreground", "foreground_scores", "cells", "score", "probability"):
        np.testing.assert_array_equal(both[name], alone[name])


def test_scoring_that_describes_runs_the_network_no_more_often(network):
    calls = []
    network.encoder.register_forward_hook(lambda *_: calls.append(1))
    scorer = ScoreMapInferer(inferer=TiledInferer())
    for enabled in (False, True):
        WindowScoreInferer(scorer, 24, 9, features=enabled)(grey(61, 83), network)
    assert len(calls) == 2 * 4

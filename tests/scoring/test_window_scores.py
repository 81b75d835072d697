"""Window scores are those of a loop over windows and pixels, dense and exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.window_scores import WindowScoreInferer, prepare_image
from monai_kwtl.transforms import AutoContrast

SIZES = [(45, 70), (33, 31), (20, 90), (7, 5)]
WINDOW, STEP = 24, 10


class Steep(nn.Module):
    """A network whose logit is three times its input, so that all can be worked out by hand."""

    def forward(self, x):
        return 3 * x


def picture(rng, height, width):
    """Grey values that fill only a part of their range, another in each place: auto-contrast depends on where."""
    ramp = np.add.outer(np.arange(height), np.arange(width))
    return np.clip(ramp + rng.integers(20, 120, (height, width)), 0, 230).astype(np.uint8)


def probability(grey):
    return 1 / (1 + math.exp(-3 * (grey / 255 - 0.5) / 0.5))


def entropy(grey):
    p = probability(grey)
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def starts(length):
    """Multiples of the step, and one flush with the edge in place of what would stick out."""
    if length <= WINDOW:
        return [0]
    inside = [start for start in range(0, length, STEP) if start + WINDOW <= length]
    last = length - WINDOW
    if inside[-1] != last:
        inside = inside[:-1] if len(inside) > 1 and last - inside[-2] <= WINDOW else inside
        inside = [*inside, last]
    return inside


def windows(height, width):
    return [
        (slice(y, y + min(WINDOW, height)), slice(x, x + min(WINDOW, width)))
        for y in starts(height)
        for x in starts(width)
    ]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def batch(image):
    return torch.from_numpy(image)[None, None]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_dense_scores_are_means_over_the_pixels_of_each_window(rng, height, width):
    image = picture(rng, height, width)
    inferer = WindowScoreInferer(ScoreMapInferer(measure="entropy"), window=WINDOW, step=STEP)
    found = inferer(batch(image), Steep())
    grids = windows(height, width)
    assert list(found["grid"].y) == [rows.start for rows, _ in grids]
    assert list(found["grid"].x) == [columns.start for _, columns in grids]
    assert found["window_scores"].dtype == found["foreground"].dtype == np.float64
    expected = [mean(entropy(grey) for grey in image[where].ravel().tolist()) for where in grids]
    np.testing.assert_allclose(found["window_scores"], expected, rtol=1e-5)
    expected = [mean(probability(grey) for grey in image[where].ravel().tolist()) for where in grids]
    np.testing.assert_allclose(found["foreground"], expected, rtol=1e-5)
    assert found["score"].shape == found["probability"].shape == (height, width)
    assert found["score"].dtype == found["probability"].dtype == np.float32
    np.testing.assert_allclose(found["probability"], np.vectorize(probability)(image), rtol=1e-5)


def test_the_blocks_add_up_to_the_map(rng):
    found = WindowScoreInferer(ScoreMapInferer(measure="entropy"), WINDOW, STEP)(batch(picture(rng, 45, 70)), Steep())
    assert found["cells"].shape == (len(found["grid"].row_edges) - 1, len(found["grid"].column_edges) - 1)
    assert found["cells"].sum() == pytest.approx(found["score"].sum(dtype=np.float64), rel=1e-12)


def stretched(values):
    low, high = values.min(), values.max()
    return (values - low) / (high - low) * 255.0


def disagreement(image, view):
    """Binary cross-entropy of a view's probability against the image's, by their definition."""
    total = 0.0
    for grey, seen in zip(image.ravel().tolist(), view.ravel().tolist(), strict=True):
        t, p = probability(grey), probability(seen)
        total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    return total / image.size


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_exact_scores_see_each_window_by_itself(rng, batch_size):
    image = picture(rng, 45, 52).astype(np.float64)
    scorer = ScoreMapInferer(views=[AutoContrast()])
    exact = WindowScoreInferer(scorer, WINDOW, STEP, exact=True, batch_size=batch_size)(
        batch(image.astype(np.uint8)), Steep()
    )
    dense = WindowScoreInferer(scorer, WINDOW, STEP)(batch(image.astype(np.uint8)), Steep())
    grids = windows(45, 52)
    whole = stretched(image)
    np.testing.assert_allclose(dense["window_scores"], [disagreement(image[w], whole[w]) for w in grids], rtol=1e-4)
    np.testing.assert_allclose(
        exact["window_scores"], [disagreement(image[w], stretched(image[w])) for w in grids], rtol=1e-4
    )
    assert not np.allclose(exact["window_scores"], dense["window_scores"], rtol=0.01)
    assert exact["cells"] is None
    assert np.array_equal(exact["foreground"], dense["foreground"])
    assert np.array_equal(exact["score"], dense["score"]), "for pictures there is a map all the same"


def test_exact_scores_of_a_real_network_are_those_of_its_crops(rng):
    torch.manual_seed(0)
    network = FCRN(spatial_dims=2, in_channels=1, out_channels=1, features=(4, 4, 8, 8)).eval()
    image, scorer = batch(picture(rng, 40, 37)), ScoreMapInferer()
    found = WindowScoreInferer(scorer, WINDOW, STEP, exact=True, batch_size=3)(image, network)
    for (rows, columns), score in zip(windows(40, 37), found["window_scores"], strict=True):
        alone = scorer(image[:, :, rows, columns], network)["score"].double().mean().item()
        assert score == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_tensors_with_meta_data_give_the_same_plain_arrays(rng, exact):
    image = batch(picture(rng, 30, 41))
    inferer = WindowScoreInferer(ScoreMapInferer(), WINDOW, STEP, exact=exact)
    plain, meta = inferer(image, Steep()), inferer(MetaTensor(image), Steep())
    for name in ("window_scores", "foreground", "score", "probability"):
        assert type(meta[name]) is np.ndarray and np.array_equal(meta[name], plain[name])


def test_a_constant_image_scores_the_same_everywhere():
    image = torch.full((1, 1, 40, 50), 77, dtype=torch.uint8)
    scores = WindowScoreInferer(ScoreMapInferer(measure="entropy"), WINDOW, STEP)(image, Steep())["window_scores"]
    np.testing.assert_allclose(scores, entropy(77), rtol=1e-5)


@pytest.mark.parametrize("options", [{"window": 0}, {"step": 0}, {"window": 2.5}, {"step": -3}, {"window": True}])
def test_other_sizes_are_refused_before_any_work(options):
    with pytest.raises(KWTLError, match=f"{next(iter(options))} must be a whole number of pixels, at least 1"):
        WindowScoreInferer(ScoreMapInferer(), **options)


def test_an_item_becomes_a_batch_of_one_without_a_label(rng):
    image = torch.from_numpy(picture(rng, 5, 9))[None]
    made, label = prepare_image({"image": image, "name": "a.png"}, torch.device("cpu"), False, dtype=torch.float64)
    assert label is None
    assert made.shape == (1, 1, 5, 9) and made.dtype == torch.float64
    assert torch.equal(made[0], image.double())

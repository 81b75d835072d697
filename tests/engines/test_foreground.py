"""The fraction of foreground is counted on unlabelled images, the threshold chosen on known pixels of labelled ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from stage_here import random_weights
from stage_process import Death, run_stage_together
from stage_process import run as run_stage
from torch import nn

from monai_kwtl.benchmark.experiments.threshold import THRESHOLDS, decision_threshold
from monai_kwtl.data.pool import load_pool
from monai_kwtl.engines.foreground import foreground_fraction, fraction_for
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.synthetic import make_pool


class Steps(nn.Module):
    """A network that takes grey values for probabilities: logit(x / 255)."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.logit(((x + 1) / 2).clamp(1e-6, 1 - 1e-6)) + self.shift


def as_it_is(inputs, network):
    return network(inputs)


def by_hand(support):
    """Mean IoU at every threshold, pixel by pixel."""
    means = []
    for threshold in range(5, 100, 5):
        ious = []
        for entry in support:
            known = entry.get("known", np.ones(entry["label"].shape, dtype=bool))
            both = either = 0
            for x, t, k in zip(entry["image"].ravel(), entry["label"].ravel(), known.ravel(), strict=True):
                if k:
                    p = int(x) * 100 >= threshold * 255
                    both, either = both + (p and t > 0), either + (p or t > 0)
            ious.append((both + 1e-4) / (either + 1e-4))
        means.append(np.mean(ious))
    return means


def noisy(seed, height, width, level, known=False):
    """An image whose foreground has grey values around a level, and the background around a third of it."""
    rng = np.random.default_rng(seed)
    label = (rng.random((1, height, width)) < 0.3).astype(np.uint8)
    image = np.where(label, level, level / 3) + rng.normal(0, 25, label.shape)
    # no grey level falls on a threshold: 0.05 n * 255 is a whole number for n = 4, 8, 12, 16 only
    image = np.clip(image, 0, 255).astype(np.uint8)
    image += np.isin(image, (51, 102, 153, 204)).astype(np.uint8)
    return {"image": image, "label": label} | ({"known": rng.random(label.shape) < 0.4} if known else {})


@pytest.mark.parametrize("level", [60, 130, 250])
@pytest.mark.parametrize("known", [False, True])
def test_the_threshold_is_the_one_of_the_largest_mean_iou(level, known):
    support = [noisy(1, 23, 31, level, known), noisy(2, 40, 17, level + 5, known), noisy(3, 9, 9, level)]
    means = by_hand(support)
    best = 0.05 * (1 + int(np.argmax(means)))
    assert np.sort(means)[-1] > np.sort(means)[-2]
    assert decision_threshold(Steps(), support, as_it_is) == pytest.approx(best)


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken():
    label = np.eye(8, dtype=np.uint8)[None]
    for foreground, background, expected in ((250, 5, 0.5), (100, 5, 0.35), (250, 160, 0.65), (250, 129, 0.55)):
        image = np.where(label, foreground, background).astype(np.uint8)
        assert decision_threshold(Steps(), [{"image": image, "label": label}], as_it_is) == expected


def test_the_grid_is_from_5_to_95_percent():
    assert THRESHOLDS == tuple(round(0.05 * n, 2) for n in range(1, 20))


def test_choosing_a_threshold_leaves_the_network_in_its_mode_and_needs_labels():
    for mode in (True, False):
        network = Steps().train(mode)
        decision_threshold(network, [noisy(1, 20, 30, 200)])
        assert network.training is mode
    with pytest.raises(KWTLError, match="there are none"):
        decision_threshold(Steps(), [])


@pytest.fixture
def pool(tmp_path):
    """Three images of 20, 40 and 90 % bright pixels, of different sizes."""
    (tmp_path / "images").mkdir()
    for number, (fraction, size) in enumerate(((0.2, (40, 50)), (0.4, (80, 50)), (0.9, (40, 100)))):
        image = np.full(size, 20, dtype=np.uint8)
        image.ravel()[: round(fraction * image.size)] = 220
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    return load_pool(tmp_path)


def test_the_fraction_is_that_of_pixels_over_a_half_in_all_images(pool):
    assert foreground_fraction(Steps(), pool) == pytest.approx((0.2 * 2000 + 0.4 * 4000 + 0.9 * 4000) / 10000)


@pytest.mark.parametrize(("shift", "expected"), [(-20.0, 1 / 51), (20.0, 50 / 51)])
def test_a_network_that_finds_nothing_or_everything_still_gives_a_usable_fraction(pool, shift, expected):
    network = Steps()
    nn.init.constant_(network.shift, shift)
    assert foreground_fraction(network, pool) == pytest.approx(expected)


def test_the_fraction_of_a_stage_is_that_of_its_start_weights_whatever_the_network_has_learned(pool, tmp_path):
    torch.manual_seed(0)
    start = FCRN(features=(4, 8))
    torch.save(start.state_dict(), tmp_path / "start.pt")
    expected = foreground_fraction(start, pool)
    torch.manual_seed(1)
    learned = FCRN(features=(4, 8))
    before = {name: value.clone() for name, value in learned.state_dict().items()}
    for needed in (("pool", False), ("auto", "true")):
        assert fraction_for(*needed, learned, tmp_path / "start.pt", pool) == expected
    assert all(torch.equal(value, before[name]) for name, value in learned.state_dict().items())
    assert fraction_for("auto", "false", learned, "random", pool) is None
    with pytest.raises(KWTLError, match="--ckpt random has none"):
        fraction_for("pool", False, learned, "random", pool)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stage_that_uses_the_fraction_continues_with_it_to_the_same_weights(processes, tmp_path):
    make_pool(tmp_path / "cells", "fluorescence", count=5, height=65, width=90, seed=1)
    ckpt = random_weights(tmp_path / "start.pt")
    options = {"dataset_dir": tmp_path / "cells", "ckpt": ckpt, "steps": 6, "crop": 32, "batch_size": 2}
    options |= {"device": "cpu", "tensorboard": "false", "checkpoint_every": 2, "validate_every": 2}
    options |= {"loss": "dice_bce", "foreground_weight": "pool", "match_foreground": "true", "photometric": "true"}

    def train(name, death=None, **more):
        more |= {"output_dir": tmp_path / name}
        if processes == 1:
            return run_stage("train", tmp_path / "log", death, **options | more)
        return run_stage_together("train", tmp_path / "log", [death, None], **options | more)[0]

    whole = train("whole")
    assert whole.status == 0, whole.err
    assert "the start weights predict" in whole.out and "of their known pixels are foreground" in whole.out
    assert train("part", Death("after", 2)).status == -9
    resumed = train("part", resume="true")
    assert resumed.status == 0, resumed.err
    assert "continuing after step 4 of 6" in resumed.out or processes == 2
    one, other = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "part"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())

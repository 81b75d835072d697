"""IoU and Dice agree with brute-force counts and with MONAI's metrics, also where nothing is foreground."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, compute_iou

from monai_kwtl.metrics import EPSILON, Overlap, overlap, summarize

SHAPES = [(1, 1), (7, 13), (32, 5), (1, 29, 31)]


def pair(shape, seed, density=(0.3, 0.4)):
    rng = np.random.default_rng(seed)
    return tuple(rng.random(shape) < share for share in density)


def brute_force(prediction, label):
    """Count pixel by pixel in plain Python."""
    both = only_prediction = only_label = 0
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        both += p and t
        only_prediction += p and not t
        only_label += t and not p
    return int(both), int(only_prediction), int(only_label)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [(0.3, 0.4), (0.0, 0.5), (0.5, 0.0), (1.0, 1.0), (0.0, 0.0)])
def test_counts_and_ratios_are_those_of_a_loop_over_pixels(shape, density):
    prediction, label = pair(shape, 3, density)
    found = overlap(prediction, label)
    both, only_prediction, only_label = brute_force(prediction, label)
    assert (found.true_positive, found.false_positive, found.false_negative) == (both, only_prediction, only_label)
    assert found.pixels == label.size
    union = both + only_prediction + only_label
    assert found.iou == (both + 1e-4) / (union + 1e-4)
    assert found.dice == (2 * both + 1e-4) / (2 * both + only_prediction + only_label + 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_unknown_pixels_are_not_counted(shape):
    prediction, label = pair(shape, 5)
    known = np.random.default_rng(6).random(shape) < 0.6
    assert overlap(prediction, label, known) == overlap(prediction[known], label[known])
    assert overlap(prediction, label, known).pixels == np.count_nonzero(known)
    wild = np.where(known, label, ~label)  # whatever is there
    assert overlap(prediction, wild, known) == overlap(prediction, label, known)
    assert overlap(prediction, label, np.zeros(shape, bool)) == Overlap(0, 0, 0, 0)
    with pytest.raises(ValueError, match="known mask"):
        overlap(prediction, label, known[..., None])


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_that_of_monai_up_to_the_smoothing_term(seed):
    prediction, label = pair((37, 23), seed)
    masks = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, label)]
    expected = compute_iou(*masks, include_background=True, ignore_empty=False).item()
    assert overlap(prediction, label).iou == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_dice_is_that_of_monai_up_to_the_smoothing_term(seed):
    prediction, label = pair((37, 23), seed)
    masks = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, label)]
    expected = DiceMetric(include_background=True, ignore_empty=False)(*masks).item()
    assert overlap(prediction, label).dice == pytest.approx(expected, abs=1e-6)


def test_an_empty_prediction_of_an_empty_label_is_right():
    empty = np.zeros((6, 9), dtype=np.uint8)
    masks = [torch.from_numpy(empty)[None, None].float()] * 2
    assert overlap(empty, empty).iou == overlap(empty, empty).dice == 1.0
    assert compute_iou(*masks, include_background=True, ignore_empty=False).item() == 1.0


def test_any_foreground_predicted_for_an_empty_label_is_wrong():
    empty, one = np.zeros((6, 9)), np.zeros((6, 9))
    one[2, 3] = 1
    assert overlap(one, empty).iou == pytest.approx(0, abs=EPSILON)
    assert overlap(empty, one).dice == pytest.approx(0, abs=EPSILON)


def test_every_value_but_zero_is_foreground():
    prediction, label = np.array([[0, 7, 255, 1]]), np.array([[0.0, 0.5, 0.0, -1.0]])
    assert overlap(prediction, label) == Overlap(2, 1, 0, 4)


def test_masks_of_other_shapes_are_refused_even_where_they_would_broadcast():
    with pytest.raises(ValueError, match="prediction is .1, 5., the label .4, 5."):
        overlap(np.zeros((1, 5)), np.zeros((4, 5)))


def test_the_summary_averages_images_and_pools_pixels():
    pairs = [pair(shape, seed) for seed, shape in enumerate([(5, 9), (40, 30), (1, 3), (17, 17)])]
    summary = summarize([overlap(*masks) for masks in pairs])
    counts = [brute_force(*masks) for masks in pairs]
    ious = [(b + 1e-4) / (b + p + t + 1e-4) for b, p, t in counts]
    dices = [(2 * b + 1e-4) / (2 * b + p + t + 1e-4) for b, p, t in counts]
    both, union = sum(c[0] for c in counts), sum(sum(c) for c in counts)
    mean = sum(ious) / 4
    assert summary == {
        "images": 4,
        "mean_iou": pytest.approx(mean),
        "std_iou": pytest.approx((sum((iou - mean) ** 2 for iou in ious) / 4) ** 0.5),
        "pooled_iou": pytest.approx((both + 1e-4) / (union + 1e-4)),
        "mean_dice": pytest.approx(sum(dices) / 4),
        "pooled_dice": pytest.approx((2 * both + 1e-4) / (both + union + 1e-4)),
    }


def test_one_image_has_no_spread():
    summary = summarize([Overlap(3, 1, 0, 10)])
    assert summary["std_iou"] == 0.0
    assert summary["mean_iou"] == summary["pooled_iou"]


def test_adding_counts_is_counting_both_images_at_once():
    (p1, t1), (p2, t2) = pair((4, 6), 1), pair((4, 6), 2)
    together = overlap(np.concatenate([p1, p2]), np.concatenate([t1, t2]))
    assert overlap(p1, t1) + overlap(p2, t2) == together


def test_ratios_lie_between_zero_and_one_and_dice_is_never_below_iou():
    for counts in itertools.product([0, 1, 5, 10**9], repeat=3):
        found = Overlap(*counts, pixels=sum(counts))
        assert 0 <= found.iou <= found.dice <= 1

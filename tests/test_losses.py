"""The weighted loss equals torch's where torch's is defined, and stays finite where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss, MaskedDiceLoss
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import DiceBCE, ForegroundWeightedBCE, LossOverProcesses, loss_over_known, positive_weight


@pytest.fixture
def crops():
    """Logits and masks of four crops, non-square, with 3, 20, 50 and 90 % foreground."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((4, 1, 23, 37), generator=generator) * 3
    share = torch.tensor([0.03, 0.2, 0.5, 0.9]).reshape(4, 1, 1, 1)
    return logits, (torch.rand(logits.shape, generator=generator) < share).float()


def brute_force(logits, target, known, low=1 / 50, high=50.0):
    """The definition, pixel by pixel, in float64."""
    total, count = 0.0, 0
    for z_crop, t_crop, k_crop in zip(logits.double().numpy(), target.numpy(), known.numpy(), strict=True):
        foreground, background = int((t_crop[k_crop] == 1).sum()), int((t_crop[k_crop] == 0).sum())
        weight = min(max(background / foreground, low), high) if foreground else 1.0
        for z, t in zip(z_crop[k_crop], t_crop[k_crop], strict=True):
            total += weight * np.logaddexp(0, -z) if t else np.logaddexp(0, z)
            count += 1
    return total / count


def test_one_crop_equals_torch_with_its_positive_weight(crops):
    for logits, target in zip(*(part.split(1) for part in crops), strict=True):
        ratio = (target == 0).sum() / (target == 1).sum()
        expected = nn.BCEWithLogitsLoss(pos_weight=ratio)(logits, target)
        torch.testing.assert_close(ForegroundWeightedBCE()(logits, target), expected)


def test_equal_crops_give_the_mean_of_their_own_losses(crops):
    logits, target = crops
    loss = ForegroundWeightedBCE()
    each = [loss(z[None], t[None]) for z, t in zip(logits, target, strict=True)]
    torch.testing.assert_close(loss(logits, target), torch.stack(each).mean())


def test_weights_of_one_give_the_plain_mean(crops):
    plain = nn.BCEWithLogitsLoss()(*crops)
    torch.testing.assert_close(ForegroundWeightedBCE(weight_range=(1, 1))(*crops), plain)
    torch.testing.assert_close(ForegroundWeightedBCE(per="dataset", pos_weight=1.0)(*crops), plain)


def test_one_weight_for_the_data_set_is_used_as_it_is(crops):
    expected = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(70.0))(*crops)
    torch.testing.assert_close(ForegroundWeightedBCE(per="dataset", pos_weight=70.0)(*crops), expected)


@pytest.mark.parametrize(("foreground", "expected"), [(0, 1.0), (1, 50.0), (5000, 1.0), (9999, 0.02), (10000, 0.02)])
def test_weight_is_clamped_and_one_without_foreground(foreground, expected):
    target = torch.zeros(10000)
    target[:foreground] = 1
    assert positive_weight(target.reshape(1, 1, 100, 100)).item() == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_empty_and_full_crops_are_finite_with_finite_gradients(value, scale):
    logits = (torch.randn((2, 1, 9, 16), generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    loss = ForegroundWeightedBCE()(logits, torch.full_like(logits, value))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_an_empty_crop_is_plain_and_a_full_crop_has_the_smallest_weight():
    logits = torch.randn((1, 1, 9, 16), generator=torch.Generator().manual_seed(1))
    plain = nn.BCEWithLogitsLoss()
    empty, full = torch.zeros_like(logits), torch.ones_like(logits)
    torch.testing.assert_close(ForegroundWeightedBCE()(logits, empty), plain(logits, empty))
    torch.testing.assert_close(ForegroundWeightedBCE()(logits, full), plain(logits, full) / 50)


def test_unknown_pixels_count_neither_in_the_ratio_nor_in_the_mean(crops):
    logits, target = crops
    known = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    known[1] = False
    expected = brute_force(logits, target, known)
    assert ForegroundWeightedBCE()(logits, target, known).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [1.0, 3.5])
def test_a_loss_over_known_pixels_is_that_of_these_pixels_alone(crops, weight):
    logits, target = crops
    known = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    alone = [part[known].reshape(1, 1, -1) for part in (logits, target)]
    for loss in (ForegroundWeightedBCE(per="dataset", pos_weight=weight), DiceBCE(weight)):
        torch.testing.assert_close(loss(logits, target, known), loss(*alone))
        assert loss(logits, target, torch.ones_like(known)) == loss(logits, target)


# --- any loss ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_takes_a_mask_gets_the_known_pixels(crops):
    logits, target = crops
    known = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    ours = ForegroundWeightedBCE()
    assert loss_over_known(ours, logits, target, known) == ours(logits, target, known)
    logits = logits.clone().requires_grad_()
    loss_over_known(MaskedDiceLoss(sigmoid=True), logits, target, known).backward()
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).any()


@pytest.mark.parametrize(
    "loss",
    [DiceLoss(sigmoid=True), nn.BCEWithLogitsLoss(), lambda logits, target: logits.mean()],
    ids=["DiceLoss", "BCEWithLogitsLoss", "function"],
)
def test_another_loss_gets_batches_without_unknown_pixels_only(crops, loss):
    known = torch.ones_like(crops[1], dtype=torch.bool)
    assert loss_over_known(loss, *crops, known) == loss_over_known(loss, *crops) == loss(*crops)
    known[0, 0, 0, 0] = False
    with pytest.raises(KWTLError, match="takes no known pixels") as error:
        loss_over_known(loss, *crops, known)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [7.0, float("inf"), float("nan")])
def test_gradient_of_an_unknown_pixel_is_zero_even_where_the_target_is_wild(crops, value):
    logits, target = crops
    known = torch.ones_like(target, dtype=torch.bool)
    known[..., ::3] = False
    wild = target.masked_fill(~known, value)
    logits = logits.clone().requires_grad_()
    loss = ForegroundWeightedBCE()(logits, wild, known)
    loss.backward()
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()
    torch.testing.assert_close(loss, ForegroundWeightedBCE()(logits, target, known))


def test_a_batch_without_a_known_pixel_is_zero_and_still_trains(crops):
    logits, target = crops
    logits = logits.clone().requires_grad_()
    loss = ForegroundWeightedBCE()(logits, target, torch.zeros_like(target, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_the_gradient_is_that_of_torch(crops):
    gradients = []
    ratio = torch.stack([(t == 0).sum() / (t == 1).sum() for t in crops[1]]).reshape(4, 1, 1, 1)
    for loss in (ForegroundWeightedBCE(), nn.BCEWithLogitsLoss(pos_weight=ratio)):
        logits = crops[0].clone().requires_grad_()
        loss(logits, crops[1]).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_autocast_computes_in_float32(crops):
    logits, target = crops
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ForegroundWeightedBCE()(logits.bfloat16(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ForegroundWeightedBCE()(logits.bfloat16().float(), target))


def test_a_large_batch_keeps_its_precision():
    logits = torch.full((64, 1, 256, 256), 0.25)
    expected = np.log1p(np.exp(0.25))
    assert ForegroundWeightedBCE()(logits, torch.zeros_like(logits)).item() == pytest.approx(expected, rel=1e-6)


def test_masks_of_integers_and_bools_are_fine(crops):
    logits, target = crops
    expected = ForegroundWeightedBCE()(logits, target)
    for kind in (torch.bool, torch.uint8, torch.int64):
        assert ForegroundWeightedBCE()(logits, target.to(kind)) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 1, 1, 1), (2, 1, 3, 5), (3, 2, 4, 1), (1, 1, 2, 3, 4)]))
def test_any_shape_and_any_mask_equal_the_definition(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 5
    target = (torch.rand(shape, generator=generator) < torch.rand(1, generator=generator)).float()
    known = torch.rand(shape, generator=generator) < 0.7
    loss = ForegroundWeightedBCE()(logits, target, known).item()
    assert loss == pytest.approx(brute_force(logits, target, known) if known.any() else 0.0, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"per": "image"}, "per 'crop' or per 'dataset'"),
        ({"weight_range": (2, 1)}, "weight_range"),
        ({"weight_range": (0, 1)}, "weight_range"),
        ({"weight_range": (1,)}, "weight_range"),
        ({"per": "dataset"}, "pos_weight"),
        ({"pos_weight": 3.0}, "pos_weight"),
        ({"per": "dataset", "pos_weight": float("nan")}, "pos_weight"),
    ],
)
def test_bad_settings_are_refused_in_one_line(arguments, words):
    with pytest.raises(KWTLError, match=words) as error:
        ForegroundWeightedBCE(**arguments)
    assert "\n" not in str(error.value)


def test_shapes_that_differ_are_an_error(crops):
    logits, target = crops
    with pytest.raises(ValueError, match="target has shape"):
        ForegroundWeightedBCE()(logits, target[:, 0])
    with pytest.raises(ValueError, match="known has shape"):
        ForegroundWeightedBCE()(logits, target, target[:1].bool())


# --- with Dice --------------------------------------------------------------------------------------------------------


def dice_by_hand(logits, target, known, smooth=1e-5):
    """Soft Dice loss over the known pixels of all crops together, pixel by pixel, in float64."""
    both = either = 0.0
    for z, t, k in zip(*(part.double().numpy().ravel() for part in (logits, target, known)), strict=True):
        if k:
            p = 1 / (1 + np.exp(-z))
            both, either = both + p * t, either + p + t
    return 1 - (2 * both + smooth) / (either + smooth)


@pytest.mark.parametrize("weight", [None, 3.5])
def test_dice_bce_on_known_pixels_is_that_of_torch_plus_that_of_monai(crops, weight):
    bce = nn.BCEWithLogitsLoss(pos_weight=None if weight is None else torch.tensor(weight))
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    gradients = []
    for loss in (DiceBCE(weight), lambda z, t: bce(z, t) + dice(z, t)):
        logits = crops[0].clone().requires_grad_()
        value = loss(logits, crops[1])
        value.backward()
        gradients.append((value, logits.grad))
    torch.testing.assert_close(*gradients)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 1, 1, 1), (2, 1, 3, 5), (3, 2, 4, 1), (1, 1, 2, 3, 4)]))
def test_dice_bce_of_any_shape_and_mask_equals_the_definition(seed, shape):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 5
    target = (torch.rand(shape, generator=generator) < torch.rand(1, generator=generator)).float()
    known = torch.rand(shape, generator=generator) < 0.7
    dice = dice_by_hand(logits, target, known)
    found = {weight: DiceBCE(weight)(logits, target, known).item() for weight in (None, "crop")}
    if not known.any():
        assert found == {None: 0.0, "crop": 0.0}
        return
    assert found[None] == pytest.approx(brute_force(logits, target, known, 1, 1) + dice, rel=1e-4, abs=1e-6)
    assert found["crop"] == pytest.approx(brute_force(logits, target, known) + dice, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("value", [7.0, float("inf"), float("nan")])
def test_unknown_pixels_have_no_gradient_in_dice_bce_even_where_the_target_is_wild(crops, value):
    logits, target = crops
    known = torch.ones_like(target, dtype=torch.bool)
    known[..., ::3] = False
    logits = logits.clone().requires_grad_()
    loss = DiceBCE()(logits, target.masked_fill(~known, value), known)
    loss.backward()
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()
    assert loss == DiceBCE()(logits, target, known)


@pytest.mark.parametrize(("value", "known"), [(0.0, True), (1.0, True), (1.0, False)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_dice_bce_is_finite_on_unknown_empty_and_full_batches(value, known, scale):
    logits = (torch.randn((2, 1, 9, 16), generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    loss = DiceBCE()(logits, torch.full_like(logits, value), torch.full(logits.shape, known))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    if not known:
        assert loss == 0
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [ForegroundWeightedBCE(), DiceBCE(), DiceBCE("crop")], ids=["bce", "dice", "both"])
def test_sums_of_parts_of_a_batch_add_up_to_its_loss(crops, loss):
    logits, target = crops
    known = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    parts = sum(loss.sums(*part) for part in zip(logits.split(3), target.split(3), known.split(3), strict=True))
    torch.testing.assert_close(loss.of(parts), loss(logits, target, known))
    assert LossOverProcesses(loss)(logits, target, known) == loss(logits, target, known)  # of one process


@pytest.mark.parametrize(
    "settings", [{"pos_weight": 0}, {"pos_weight": "dataset"}, {"smooth": 0}, {"pos_weight": True}]
)
def test_bad_settings_of_dice_bce_are_refused_in_one_line(settings):
    with pytest.raises(KWTLError, match=next(iter(settings))):
        DiceBCE(**settings)


def test_shapes_that_differ_are_an_error_of_dice_bce(crops):
    with pytest.raises(ValueError, match="target has shape"):
        DiceBCE()(crops[0], crops[1][:, 0])

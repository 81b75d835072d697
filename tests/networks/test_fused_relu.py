"""Convolutions that rectify give the bits of a convolution and a ReLU."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_kwtl.networks import optimize
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.optimize import (
    FusedReluConvolution,
    HalvingMaxPool,
    channels_last,
    fold_batch_norm,
    fuse_rectifiers,
    quick_pooling,
)


def folded(**options):
    torch.manual_seed(0)
    return quick_pooling(channels_last(fold_batch_norm(FCRN(**options).eval())))


@pytest.mark.parametrize("size", [(200, 168), (133, 250)])
@pytest.mark.parametrize("amp", [False, True])
def test_logits_keep_their_bits(size, amp):
    plain = folded()
    fused = fuse_rectifiers(copy.deepcopy(plain))
    assert sum(isinstance(m, FusedReluConvolution) for m in fused.modules()) == 7
    assert not any(isinstance(m, nn.ReLU) for m in fused.modules())
    x = torch.randn(1, 1, *size)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        for _ in range(2):  # the second time with the weights that were kept
            assert torch.equal(fused(x), plain(x))


def test_small_images_keep_their_values():
    plain = folded(features=(3, 4, 5, 6))
    fused = fuse_rectifiers(copy.deepcopy(plain))
    with torch.inference_mode():
        for size in ((1, 9), (8, 8), (37, 61)):
            x = torch.randn(2, 1, *size)
            torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)


def test_without_onednn_the_layers_are_called(monkeypatch):
    monkeypatch.setattr(optimize, "_offered", lambda dtype: False)
    monkeypatch.setattr(optimize, "_fused", None)
    layer = nn.Conv2d(1, 3, 3)
    x = torch.randn(1, 1, 9, 8)
    with torch.no_grad():
        assert torch.equal(FusedReluConvolution(layer)(x), F.relu(layer(x)))


def test_gradients_pass():
    layer = nn.Conv2d(1, 3, 3)
    FusedReluConvolution(layer)(torch.randn(1, 1, 9, 8)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_double_precision_stays():
    layer = nn.Conv2d(1, 3, 3).double()
    with torch.no_grad():
        assert FusedReluConvolution(layer)(torch.randn(1, 1, 9, 8).double()).dtype == torch.float64


def test_only_convolutions_that_a_relu_follows_are_changed():
    mirrored = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    same = nn.Conv2d(1, 1, 3, padding="same")
    volume = nn.Conv3d(1, 1, 3)
    kept = [mirrored, nn.ReLU(), same, nn.ReLU(), volume, nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Sigmoid(), nn.ReLU()]
    assert list(fuse_rectifiers(nn.Sequential(nn.ReLU(), *kept)))[1:] == kept
    changed = fuse_rectifiers(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Identity(), HalvingMaxPool(), nn.ReLU()))
    kinds = [type(layer) for layer in changed]
    assert kinds == [FusedReluConvolution, nn.Identity, HalvingMaxPool, nn.Identity]

"""Quick pooling gives the bits of PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from torch import nn

from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.optimize import HalvingMaxPool, quick_pooling

SMALL = (4, 8, 8, 16)


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 5), (2, 2), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maxima_are_those_of_torch(size, dtype, layout):
    x = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0)).to(dtype=dtype, memory_format=layout)
    assert torch.equal(HalvingMaxPool()(x), F.max_pool2d(x, 2))


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 5), (2, 2), (64, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maxima_of_rectified_values_are_those_of_torch_whether_before_or_behind(size, dtype, layout):
    x = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0)).to(dtype=dtype, memory_format=layout)
    x[0, 0, 0, 0], x[1, 2, 1, 1] = float("inf"), 0.0
    pool = HalvingMaxPool(fused_relu=True)
    with torch.no_grad():
        assert torch.equal(F.relu(pool(x)), F.max_pool2d(F.relu(x), 2))
        found = pool(F.relu(x))
    assert torch.equal(found, F.max_pool2d(F.relu(x), 2))
    assert found.dtype == dtype
    if min(size) > 2:
        assert found.is_contiguous(memory_format=layout)


def test_a_network_that_gives_no_numbers_is_not_hidden_by_pooling():
    for value in (float("nan"), -float("nan")):
        with torch.no_grad():
            assert HalvingMaxPool(fused_relu=True)(torch.full((1, 1, 4, 4), value, dtype=torch.bfloat16)).isnan().all()


def test_gradients_pass_through():
    x = torch.randn(1, 2, 4, 6, dtype=torch.bfloat16, requires_grad=True)
    HalvingMaxPool(fused_relu=True)(x).float().sum().backward()
    assert x.grad.sum() == 2 * 2 * 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (37, 61), (1, 9)])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_logits_keep_their_bits(size, threads, amp, mode):
    torch.manual_seed(0)
    network = getattr(FCRN(features=SMALL), mode)()
    quick = quick_pooling(copy.deepcopy(network))
    assert sum(isinstance(m, HalvingMaxPool) for m in quick.modules()) == 3
    assert quick.state_dict().keys() == network.state_dict().keys()
    x = torch.randn(2, 1, *size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            if mode == "train" and min(size) < 16:  # one value has no variance
                x = torch.randn(2, 1, 16, 24)
            assert torch.equal(quick(x), network(x))
    finally:
        torch.set_num_threads(before)


def test_other_pooling_stays():
    others = [nn.MaxPool2d(3), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True)]
    others += [nn.MaxPool2d(2, return_indices=True), nn.AvgPool2d(2), nn.MaxPool3d(2)]
    kept = quick_pooling(nn.Sequential(nn.ReLU(), *others))
    assert list(kept)[1:] == others
    assert isinstance(quick_pooling(nn.Sequential(nn.MaxPool2d((2, 2), (2, 2))))[0], HalvingMaxPool)


def test_any_network_keeps_its_output():
    torch.manual_seed(0)
    network = BasicUNet(2, 1, 1, features=(4, 4, 8, 8, 8, 4)).eval()
    x = torch.randn(1, 1, 48, 32)
    with torch.no_grad():
        expected = network(x)
        assert torch.equal(quick_pooling(copy.deepcopy(network))(x), expected)
    volume = FCRN(spatial_dims=3, features=SMALL).eval()
    assert not any(isinstance(m, HalvingMaxPool) for m in quick_pooling(copy.deepcopy(volume)).modules())

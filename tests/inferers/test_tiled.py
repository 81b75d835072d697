"""An image predicted in tiles equals the image predicted whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.autocast import AutocastInferer, native_bfloat16
from monai_kwtl.networks.fcrn import FCRN

REACH = 23  # pixels; what a test below measures


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FCRN(features=(4, 8, 8, 16), out_channels=2).eval()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Recorder(nn.Module):
    """Passes on to a network and keeps the sizes that it was called with."""

    def __init__(self, network, stride=None):
        super().__init__()
        self.network, self.sizes = network, []
        if stride:
            self.stride = stride

    def forward(self, x, *args, **kwargs):
        self.sizes.append(tuple(x.shape[2:]))
        return self.network(x, *args, **kwargs)


@torch.no_grad()
def test_prediction_of_a_pixel_reaches_23_pixels():
    torch.manual_seed(0)
    network = FCRN(features=(4, 8, 8, 16)).double().eval()
    x = images(1, 1, 128, 128).double()
    reach = 0
    for place in range(64, 72):  # every place in a block of the stride
        low, high = 128, 0
        for change in (1e3, -1e3, 1.0, -1.0):
            changed = x.clone()
            changed[0, 0, place, 64] += change
            rows = torch.nonzero((network(changed) != network(x))[0, 0].any(1))[:, 0]
            low, high = min(low, int(rows.min())), max(high, int(rows.max()))
        reach = max(reach, place - low, high - place)
    assert reach == REACH


@pytest.mark.parametrize(
    ("height", "width", "tile", "number"),
    [(300, 203, 64, 1), (300, 203, 72, 2), (300, 203, 96, 1), (64, 301, 64, 2), (97, 65, 96, 1), (8, 200, 72, 1)],
)
@torch.no_grad()
def test_tiles_leave_no_trace(network, threads, height, width, tile, number):
    threads(number)
    x = images(1, 1, height, width)
    counted = Recorder(network, stride=8)
    tiled = TiledInferer(tile=tile, halo=24)(x, counted)
    assert tiled.shape == (1, 2, height, width)
    assert len(counted.sizes) == -(-height // tile) * -(-width // tile)
    assert max(max(size) for size in counted.sizes) <= tile + 64
    # the same products are summed, but oneDNN may choose another order for another size
    torch.testing.assert_close(tiled, network(x), rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_in_double_precision_tiles_differ_from_the_whole_by_rounding_only(network):
    torch.manual_seed(1)
    double = FCRN(features=(4, 8, 8, 16)).double().eval()
    x = images(2, 1, 201, 103).double()
    torch.testing.assert_close(TiledInferer(tile=72)(x, double), double(x), rtol=1e-13, atol=1e-14)


@torch.no_grad()
def test_the_margin_must_cover_the_reach():
    torch.manual_seed(0)
    network = FCRN(features=(4, 8, 8, 16)).double().eval()
    x = images(1, 1, 200, 144).double()
    whole = network(x)
    error = {halo: float((TiledInferer(tile=64, halo=halo)(x, network) - whole).abs().max()) for halo in (0, 16, 17)}
    assert error[0] > error[16] > 1e-6
    assert error[17] < 1e-13  # rounded up to 24, which is enough for 23


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((0, 201), (0, 103)), ((0, 20), (90, 103)), ((70, 131), (40, 41)), ((150, 201), (3, 70)), ((88, 96), (32, 64))],
)
@torch.no_grad()
def test_a_region_is_cut_out_of_the_whole_without_predicting_it(rows, columns):
    torch.manual_seed(1)
    network = FCRN(features=(4, 8, 8, 16)).double().eval()
    x, counted = images(2, 1, 201, 103).double(), Recorder(network, stride=8)
    part = TiledInferer(halo=24).region(x, counted, slice(*rows), slice(*columns))
    whole = network(x)[:, :, slice(*rows), slice(*columns)]
    assert part.shape == whole.shape
    torch.testing.assert_close(part, whole, rtol=1e-13, atol=1e-14)
    ((height, width),) = counted.sizes
    assert height <= min(208, rows[1] - rows[0] + 80) and width <= min(104, columns[1] - columns[0] + 80)
    tiled = TiledInferer(tile=72).region(x, network, slice(*rows), slice(*columns))
    torch.testing.assert_close(tiled, whole, rtol=1e-13, atol=1e-14)
    alone = TiledInferer()(x[:, :, slice(*rows), slice(*columns)], network)
    assert part.shape == (2, 1, 201, 103) or not torch.allclose(alone, whole, atol=1e-3), "its surroundings have a say"


@torch.no_grad()
def test_batches_and_channels():
    torch.manual_seed(0)
    network = FCRN(in_channels=3, out_channels=2, features=(4, 8, 8, 16)).eval()
    x = images(2, 3, 101, 150)
    together = TiledInferer(tile=64)(x, network)
    assert together.shape == (2, 2, 101, 150)
    for index in range(2):
        torch.testing.assert_close(TiledInferer(tile=64)(x[index : index + 1], network)[0], together[index])


@torch.no_grad()
def test_an_image_that_fits_is_seen_whole_and_padded_to_the_stride(network):
    for stride, sizes in ((8, (72, 64)), (16, (80, 64)), (None, (80, 64))):
        counted = Recorder(network)  # has no stride of its own: 16 is taken
        TiledInferer(tile=80, stride=stride)(images(1, 1, 65, 60), counted)
        assert counted.sizes == [sizes]


@torch.no_grad()
def test_arguments_are_passed_on_to_the_network():
    class Scale(nn.Module):
        stride = 1

        def forward(self, x, factor, shift=0.0):
            return x * factor + shift

    x = images(1, 1, 20, 30)
    for tile in (8, 64):
        torch.testing.assert_close(TiledInferer(tile=tile)(x, Scale(), 3.0, shift=1.0), x * 3 + 1)


@torch.no_grad()
def test_pixels_stay_in_place():
    class Identity(nn.Module):
        stride = 8

        def forward(self, x):
            return x

    for height, width in ((300, 203), (1, 1), (7, 400), (64, 64)):
        x = torch.from_numpy(np.arange(height * width, dtype=np.float32).reshape(1, 1, height, width))
        assert torch.equal(TiledInferer(tile=64)(x, Identity()), x)


@pytest.mark.parametrize(("tile", "halo", "stride"), [(0, 32, None), (-8, 32, None), (8, 32, 16), (64, -1, None)])
def test_impossible_tiles_are_refused(tile, halo, stride):
    with pytest.raises(KWTLError, match="tile must be|halo must be"):
        TiledInferer(tile=tile, halo=halo, stride=stride)


def test_native_bfloat16_is_a_truth_value():
    assert isinstance(native_bfloat16("cpu"), bool)
    assert isinstance(native_bfloat16(torch.device("cpu")), bool)
    assert native_bfloat16("meta") is False


@torch.no_grad()
def test_bfloat16_is_close_and_comes_back_as_float32(network):
    x = images(1, 1, 100, 140)
    whole = network(x)
    for tile in (64, 512):
        logits = TiledInferer(tile=tile, amp=True)(x, network)
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, whole)
        assert (logits - whole).abs().max() < 0.05 * whole.abs().max()


@torch.no_grad()
def test_autocast_off_is_the_plain_network(network):
    x = images(2, 1, 37, 61)
    assert torch.equal(AutocastInferer(amp=False)(x, network), network(x))
    auto = AutocastInferer()(x, network)
    assert auto.dtype == torch.float32
    assert torch.equal(auto, AutocastInferer(amp=native_bfloat16("cpu"))(x, network))


def test_autocast_lets_gradients_through(network):
    torch.manual_seed(0)
    trained = FCRN(features=(4, 8, 8, 16)).train()
    AutocastInferer(amp=True)(images(1, 1, 40, 48), trained).square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained.parameters())

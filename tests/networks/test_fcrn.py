"""FCRN has the paper's size, takes images of any size, exports without a difference, and can be replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from torch import nn

from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.fcrn import FCRN, crop_to_size, pad_to_multiple
from monai_kwtl.scoring.score_map import ScoreMapInferer

SIZES = [(1, 1), (1, 9), (7, 5), (8, 8), (37, 61), (255, 257)]
SMALL = (2, 3, 4, 5)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(seed=0, **kwargs):
    """A network in evaluation mode whose batch norm is far from the identity."""
    torch.manual_seed(seed)
    network = FCRN(**kwargs)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(layer.running_mean, -0.3, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    return network.eval()


@pytest.fixture(scope="module")
def full():
    return seeded()


def numpy_padding(height, width, multiple):
    """Padding before and after each axis, and the mode: reflection where both axes are long enough for it."""
    missing = [-size % multiple for size in (height, width)]
    pads = [(m // 2, m - m // 2) for m in missing]
    mode = "reflect" if all(after < size for (_, after), size in zip(pads, (height, width), strict=True)) else "edge"
    return pads, mode


def unpadded_forward(network, x):
    """The layers of the network one after the other, by torch's functions, without padding or cropping."""

    def convolve(layer, norm, x):
        transposed = isinstance(layer, nn.ConvTranspose2d)
        x = F.conv_transpose2d(x, layer.weight, stride=2) if transposed else F.conv2d(x, layer.weight, padding=1)
        return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))]
    head = weighted.pop()
    for index in range(0, len(weighted), 2):
        if index in (2, 4, 6):
            x = F.max_pool2d(x, 2)
        x = convolve(weighted[index], weighted[index + 1], x)
    return F.conv2d(x, head.weight, head.bias, padding=1)


def test_has_the_parameters_of_the_paper():
    network = FCRN()
    assert sum(p.numel() for p in network.parameters()) == 987_585
    # 3x3 encoder, 2x2 decoder, two affine numbers a normalised channel, 3x3 output convolution with its bias
    convolutions = 9 * (1 * 32 + 32 * 64 + 64 * 128 + 128 * 512) + 4 * (512 * 128 + 128 * 64 + 64 * 32)
    assert convolutions + 2 * (32 + 64 + 128 + 512 + 128 + 64 + 32) + 9 * 32 + 1 == 987_585


def test_convolutions_start_from_kaiming_normal_weights():
    torch.manual_seed(0)
    for module in FCRN().modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_equals_padding_by_numpy_and_cropping(full, height, width):
    x = images(1, 1, height, width)
    pads, mode = numpy_padding(height, width, 8)
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), *pads], mode=mode))
    (top, _), (left, _) = pads
    with torch.no_grad():
        expected = unpadded_forward(full, padded)[..., top : top + height, left : left + width]
        logits = full(x)
    assert logits.shape == (1, 1, height, width)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_latent_has_512_channels_at_an_eighth_of_the_size(full, height, width):
    with torch.no_grad():
        latent = full.features(images(2, 1, height, width))
    assert latent.shape == (2, 512, -(-height // 8), -(-width // 8))


@pytest.mark.parametrize("multiple", [1, 8, 16])
@pytest.mark.parametrize("shape", [(1, 3, 21), (2, 1, 5, 40), (1, 2, 9, 17, 33), (1, 1, 1, 1)])
def test_padding_then_cropping_gives_the_image_back(shape, multiple):
    x = images(*shape)
    padded = pad_to_multiple(x, multiple)
    assert all(size % multiple == 0 for size in padded.shape[2:])
    assert all(0 <= p - s < multiple for p, s in zip(padded.shape[2:], shape[2:], strict=True))
    assert torch.equal(crop_to_size(padded, x, multiple), x)


def test_a_size_that_needs_no_padding_is_not_copied():
    x = images(1, 1, 16, 24)
    assert pad_to_multiple(x, 8) is x


def test_dropout_acts_on_the_input_of_the_output_convolution_and_on_nothing_else():
    network = seeded(features=SMALL, dropout=0.5)
    seen = {}
    network.decoder.register_forward_hook(lambda _m, _i, out: seen.update(decoded=out.clone()))
    network.head.register_forward_pre_hook(lambda _m, inputs: seen.update(given=inputs[0].clone()))
    network.dropout.train()
    torch.manual_seed(3)
    with torch.no_grad():
        network(images(1, 1, 64, 64))
    kept = seen["given"] != 0
    torch.testing.assert_close(seen["given"][kept], seen["decoded"][kept] * 2)
    positive = seen["decoded"] > 0
    assert 0.45 < kept[positive].float().mean() < 0.55
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_dropout_is_off_in_evaluation_mode():
    x = images(1, 1, 19, 23)
    with torch.no_grad():
        assert torch.equal(seeded(features=SMALL, dropout=0.5)(x), seeded(features=SMALL)(x))


def test_torchscript_gives_the_same_numbers_at_any_size(full):
    scripted = torch.jit.script(full)
    for height, width in SIZES:
        x = images(1, 1, height, width, seed=1)
        with torch.no_grad():
            torch.testing.assert_close(scripted(x), full(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # a trace holds for the size that it was made with
def test_a_trace_gives_the_same_numbers(full):
    with torch.no_grad():
        traced = torch.jit.trace(full, images(1, 1, 37, 61))
        x = images(1, 1, 37, 61, seed=1)
        torch.testing.assert_close(traced(x), full(x), rtol=1e-5, atol=1e-5)


def test_torch_export_gives_the_same_numbers(full):
    with torch.no_grad():
        program = torch.export.export(full, (images(1, 1, 37, 61),))
        x = images(1, 1, 37, 61, seed=1)
        torch.testing.assert_close(program.module()(x), full(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(9, 16, 11), (1, 8, 3)])
def test_volumes(size):
    network = seeded(spatial_dims=3, features=SMALL)
    with torch.no_grad():
        assert network(images(2, 1, *size)).shape == (2, 1, *size)
        assert network.features(images(2, 1, *size)).shape == (2, 5, *(-(-s // 8) for s in size))


@pytest.mark.parametrize("norm", ["instance", ("instance", {"affine": True}), ("group", {"num_groups": 1})])
def test_other_norms_do_not_look_at_the_rest_of_the_batch(norm):
    torch.manual_seed(0)
    network = FCRN(features=SMALL, norm=norm).train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    x = images(2, 1, 24, 40)
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(x[:1]), network(x[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_channels_in_and_out_and_another_depth():
    network = seeded(in_channels=3, out_channels=2, features=(2, 4, 6))
    assert network.stride == 4
    with torch.no_grad():
        assert network(images(2, 3, 13, 30)).shape == (2, 2, 13, 30)
        assert network.features(images(2, 3, 13, 30)).shape == (2, 6, 4, 8)


def test_one_feature_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        FCRN(features=(8,))


def test_gradients_reach_every_parameter_at_an_odd_size():
    network = FCRN(features=SMALL).train()
    network(images(2, 1, 21, 35)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_basic_unet_of_monai_takes_its_place():
    torch.manual_seed(0)
    network = BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=(4, 4, 8, 8, 8, 4)).eval()
    grey = (images(1, 1, 45, 70) * 127.5 + 127.5).round()
    with torch.no_grad():
        tiled = TiledInferer(tile=32)(grey / 127.5 - 1, network)
        maps = ScoreMapInferer(inferer=TiledInferer())(grey, network)
    assert tiled.shape == maps["logits"].shape == maps["score"].shape == (1, 1, 45, 70)
    # the default tile holds the whole image: what is left is one forward pass of the image padded to 16
    padded = np.pad(grey.numpy(), [(0, 0), (0, 0), (1, 2), (5, 5)], mode="reflect") / 127.5 - 1
    with torch.no_grad():
        expected = network(torch.from_numpy(padded.astype(np.float32)))[..., 1:46, 5:75]
    torch.testing.assert_close(maps["logits"], expected, rtol=1e-4, atol=1e-5)
    assert maps["score"].min() >= 0 and maps["score"].max() > 0

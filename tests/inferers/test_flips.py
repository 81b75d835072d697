"""The mean over flips and turns equals its definition, follows the image when that is turned, and is always finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from stage_here import random_weights, run
from torch import nn

from monai_kwtl.inferers.flips import FlippedInferer
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.fcrn import FCRN


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FCRN(features=(4, 6, 8), out_channels=2).eval()


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def as_it_is(inputs, network):
    return network(inputs)


def by_hand(image, network):
    """Mean probability over the eight positions, with NumPy, in float64, one image at a time."""
    total = 0
    for turned_over in (False, True):
        for turns in range(4):
            x = image.numpy()
            x = np.rot90(x.transpose(0, 1, 3, 2) if turned_over else x, turns, (2, 3))
            z = network(torch.from_numpy(x.copy())).double().numpy()
            p = np.rot90(1 / (1 + np.exp(-z)), -turns, (2, 3))
            total = total + (p.transpose(0, 1, 3, 2) if turned_over else p)
    return total / 8


@pytest.mark.parametrize(("height", "width"), [(48, 48), (41, 67), (1, 33), (5, 3)])
@torch.no_grad()
def test_the_probability_is_the_mean_over_all_positions(network, height, width):
    x = images(2, 1, height, width)
    found = FlippedInferer(as_it_is)(x, network)
    assert (found.shape, found.dtype) == ((2, 2, height, width), torch.float32)
    np.testing.assert_allclose(found.sigmoid().numpy(), by_hand(x, network), atol=2e-6)


@torch.no_grad()
def test_turning_the_image_turns_the_result(network):
    x = images(1, 1, 43, 58)
    inferer = FlippedInferer(TiledInferer(tile=32))
    expected = inferer(x, network)
    for turns in range(4):
        for turned_over in (False, True):
            turn = lambda y, t=turns, o=turned_over: torch.rot90(y.transpose(2, 3) if o else y, t, (2, 3))  # noqa: E731
            torch.testing.assert_close(inferer(turn(x), network), turn(expected), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(network(x.flip(3)), network(x).flip(3), atol=1e-3)  # which the network itself does not


class Slope(nn.Module):
    """A network that is very sure, and whose opinion depends on the column."""

    def forward(self, x):
        return torch.linspace(-1e4, 1e4, x.shape[3]).expand_as(x)


def test_logits_of_a_very_sure_network_are_finite_and_have_the_right_sign():
    x = images(1, 1, 9, 14)
    found = FlippedInferer(as_it_is)(x, Slope())
    assert torch.isfinite(found).all()
    # one position and its opposite cancel
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-3, rtol=0)
    for level in (-1e4, 1e4):
        sure = FlippedInferer(lambda y, _, level=level: torch.full_like(y, level))(x, Slope())
        torch.testing.assert_close(sure, torch.full_like(x, level))


def test_further_arguments_reach_the_network(network):
    seen = []

    def inferer(inputs, network, *args, **kwargs):
        seen.append((tuple(inputs.shape), args, kwargs))
        return inputs

    FlippedInferer(inferer)(images(1, 1, 4, 6), network, 3, more=True)
    assert {shape for shape, _, _ in seen} == {(1, 1, 4, 6), (1, 1, 6, 4)}
    assert [rest for _, *rest in seen] == [[(3,), {"more": True}]] * 8


@torch.no_grad()
def test_the_stage_writes_masks_of_the_mean_where_that_is_asked_for(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (41, 67), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    ckpt = random_weights(tmp_path / "weights.pt", seed=3)
    network = FCRN(spatial_dims=2, in_channels=1, out_channels=1).eval()
    network.load_state_dict(torch.load(ckpt, weights_only=True))
    mean = by_hand(torch.from_numpy(pixels)[None, None].float() / 127.5 - 1, network)[0, 0]
    options = {"dataset_dir": tmp_path, "output_dir": tmp_path / "masks", "ckpt": ckpt, "adapt_norm": "false"}
    ended = run("inference", **options, device="cpu", amp="false", flips="true", probability=float(np.median(mean)))
    assert (ended.status, ended.err) == (0, "")
    mask = np.asarray(Image.open(tmp_path / "masks" / "a.png")) == 255
    wrong = mask != (mean >= np.median(mean))
    assert np.abs(mean[wrong] - np.median(mean)).max(initial=0.0) < 1e-5
    assert 0.4 < mask.mean() < 0.6

"""Networks are run in tiles only where their own output says that a tile is predicted as in the whole image."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers import tiled
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.inferers.tiling import HALOS, exact_halo
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.readers.slides import ImageInMemory
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.tiles import scored_tiles

SMALL = (4, 4, 8, 8)


@torch.no_grad()
def settled(network):
    """With the statistics of some images, as after a training: else the far, in deep layers, means next to nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    for _ in range(6):
        network.train()(torch.rand(2, 1, 64, 64) * 2 - 1)
    return network.eval()


def unet(norm):
    torch.manual_seed(0)
    features = (4, 4, 8, 8, 8, 4)
    return settled(BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=features, norm=norm))


def fcrn(norm):
    torch.manual_seed(0)
    return settled(FCRN(features=SMALL, norm=norm))


class WholeImage(nn.Module):
    """Adds the mean of all that it sees: no normalisation by name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.layer(x) + x.mean((2, 3), keepdim=True)


def test_the_margin_is_as_wide_as_the_network_reaches():
    assert exact_halo(fcrn("batch"), 8, "cpu") == HALOS[0] == 24
    assert exact_halo(unet("batch"), 16, "cpu") in HALOS[1:]


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 2})])
@pytest.mark.parametrize("make", [unet, fcrn])
def test_what_normalises_over_what_it_sees_has_no_margin(make, norm):
    assert exact_halo(make(norm), 16, "cpu") is None


def test_the_output_decides_and_not_the_name():
    torch.manual_seed(0)
    assert exact_halo(WholeImage().eval(), 16, "cpu") is None
    frozen = fcrn("instance")  # instance norm by name, but with statistics of its own
    for module in frozen.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.track_running_stats = True
            module.running_mean, module.running_var = torch.zeros(module.num_features), torch.ones(module.num_features)
    assert exact_halo(frozen, 8, "cpu") == 24


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("make", [fcrn, unet])
@torch.no_grad()
def test_tiles_give_the_prediction_of_the_whole_image_whatever_the_network(make, norm):
    network = make(norm)
    x = torch.rand(1, 1, 304, 240, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x[..., :100] += 0.5
    whole = network(x)
    for tile in (64, 128):
        torch.testing.assert_close(TiledInferer(tile=tile)(x, network), whole, rtol=1e-4, atol=1e-4)
    part = TiledInferer(tile=64).region(x, network, slice(100, 150), slice(20, 90))
    torch.testing.assert_close(part, whole[..., 100:150, 20:90], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_scores_of_a_network_with_instance_norm_are_those_of_the_whole_image():
    network = fcrn("instance")
    grey = torch.randint(0, 256, (1, 1, 160, 128), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    found = []
    for tile in (32, 1024):
        scorer = ScoreMapInferer(measure="entropy", inferer=TiledInferer(tile=tile))
        (only,) = scored_tiles(scorer, ImageInMemory(grey), network)
        found.append(torch.from_numpy(only.score))
    torch.testing.assert_close(*found)


def test_an_image_too_large_for_the_whole_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(tiled, "LARGEST_WHOLE", 10_000)
    x = torch.zeros(1, 1, 160, 128)
    with torch.no_grad(), pytest.raises(KWTLError, match="BasicUNet predicts a part .* 160 x 128 pixels are too many"):
        TiledInferer(tile=64)(x, unet("instance"))
    assert TiledInferer(tile=64)(x, unet("batch")).shape == x.shape
    assert TiledInferer(tile=160)(x, unet("instance")).shape == x.shape, "it fits into one tile"

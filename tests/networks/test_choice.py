"""Which network weights belong to is read from the note beside them, and only what is on the list is built."""

from __future__ import annotations

import json

import pytest
import torch
from monai.networks.nets import BasicUNet

from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.choice import grey_range, load_network, make_network, network_for, network_note, read_network
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.utils.hashing import file_sha256

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "features": [4, 4, 8, 8, 8, 4], "norm": "batch"}


def unet():
    torch.manual_seed(0)
    return make_network("monai.networks.nets.BasicUNet", **UNET)


def saved(path, model, rescale=None, **note):
    torch.save(model.state_dict(), path)
    content = {"network": network_note(model, rescale), "sha256": file_sha256(path), **note}
    path.with_suffix(".json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("make", [unet, lambda: FCRN(features=(4, 8, 8), norm=("instance", {"affine": True}))])
def test_a_network_comes_back_from_its_weights_and_their_note(make, tmp_path):
    network = make().eval()
    loaded = load_network(saved(tmp_path / "model.pt", network)).eval()
    assert type(loaded) is type(network)
    x = torch.rand(1, 1, 64, 96)
    assert torch.equal(loaded(x), network(x))


def test_without_a_note_it_is_the_network_that_is_given(tmp_path):
    small = FCRN(features=(4, 8, 8))
    torch.save(small.state_dict(), tmp_path / "model.pt")
    assert load_network(tmp_path / "model.pt", FCRN(features=(4, 8, 8))).stride == 4
    with pytest.raises(KWTLError, match="belongs to another network"):
        load_network(tmp_path / "model.pt")


def test_the_note_goes_before_what_is_given(tmp_path):
    path = saved(tmp_path / "model.pt", unet())
    assert isinstance(network_for(path, FCRN()), BasicUNet)


def test_a_note_on_other_weights_says_nothing(tmp_path):
    path = saved(tmp_path / "model.pt", unet(), sha256="0" * 64)
    assert read_network(path) is None
    path.with_suffix(".json").write_text("{")
    assert read_network(path) is None


def test_the_grey_range_of_the_training_is_that_of_later_stages(tmp_path):
    path = saved(tmp_path / "model.pt", FCRN(features=(4, 8)), rescale=(100, 4095))
    assert grey_range(None, path) == [100.0, 4095.0]
    assert grey_range([0, 255], path) == [0, 255]
    assert grey_range(None, None) is None


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"_target_": "os.system", "command": "true"}, "no network is called 'os.system'"),
        ({"_target_": "monai.networks.nets.torchvision_fc.models"}, "no network is called"),
        ({"_target_": "monai.networks.nets.basic_unet"}, "no network is called"),
        ({"_target_": "$__import__('os')"}, "no network is called"),
        ({"_target_": "monai_kwtl.networks.fcrn.FCRN", "features": "$[1]"}, "a value, not an expression"),
        ({"_target_": "monai_kwtl.networks.fcrn.FCRN", "norm": ["@x", {}]}, "a value, not an expression"),
        ({"_target_": "monai_kwtl.networks.fcrn.FCRN", "norm": ["batch", {"_target_": "os.system"}]}, "is a value"),
        ("FCRN", "network must hold a definition"),
    ],
)
def test_a_note_builds_nothing_that_is_not_on_the_list(definition, words, tmp_path):
    network = FCRN(features=(4, 8))
    note = {"definition": definition, "in_channels": 1, "rescale": None}
    path = saved(tmp_path / "model.pt", network, network=note)
    with pytest.raises(KWTLError, match=words):
        load_network(path)


def test_weights_of_somebody_else_are_not_fetched():
    with pytest.raises(KWTLError, match="would fetch weights"):
        make_network("monai.networks.nets.EfficientNetBN", model_name="efficientnet-b0", pretrained=True)


def test_a_network_of_other_channels_is_refused(tmp_path):
    path = saved(tmp_path / "model.pt", make_network("monai.networks.nets.BasicUNet", **{**UNET, "out_channels": 3}))
    with pytest.raises(KWTLError, match="does not make one map of logits"):
        load_network(path)


def test_a_network_made_otherwise_says_nothing_of_itself():
    assert network_note(BasicUNet(**UNET)) is None

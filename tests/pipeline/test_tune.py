"""Tuning from Python gives the weights that the stages of the bundle leave, to the bit."""

from __future__ import annotations

import pytest
import torch
from stage_here import command, random_weights, run
from stage_process import CONFIGS

from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.pipeline.tuning import pretext, tune
from monai_kwtl.project.selection_file import dump_selection
from monai_kwtl.project.support_set import read_support
from monai_kwtl.selection.regions import Region, cost_of
from monai_kwtl.synthetic import make_pool

OPTIONS = {"steps": 5, "crop": 24, "batch_size": 2, "amp": False, "seed": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A labelled pool, a selection of regions of it, and start weights."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pool(folder / "cells", "fluorescence", count=6, height=65, width=90, seed=1)
    regions = [
        Region(number, item["name"], item["page"], item["sha256"], 3 * number, 2 * number, 40, 32, 0.0)
        for number, item in enumerate(load_pool(folder / "cells"), start=1)
    ]
    cost = cost_of(regions).as_dict()
    text = dump_selection(regions, budget={"windows": len(regions)}, cost=cost, created_with={})
    (folder / "selection.json").write_text(text)
    random_weights(folder / "start.pt")
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(place):
    return load_weights(FCRN(spatial_dims=2, in_channels=1, out_channels=1), place / "start.pt")


def assert_left(folder, network, place):
    """The weights in a folder are those of a network, and others than it began with."""
    left, begun = torch.load(folder / "model.pt", weights_only=True), start(place).state_dict()
    assert [name for name, value in network.state_dict().items() if not torch.equal(value, left[name])] == []
    assert not torch.equal(left["encoder.0.weight"], begun["encoder.0.weight"])


def options(place, folder, **more):
    shared = {"dataset_dir": place / "cells", "ckpt": place / "start.pt", "output_dir": folder, "device": "cpu"}
    return {**shared, "tensorboard": "false", "project": "false", **OPTIONS, **more}


@pytest.mark.parametrize(
    "stage_options",
    [
        {"validate_every": 2},
        {"held_out": 0, "match_foreground": True, "photometric": True, "foreground_weight": "pool"},
        {"held_out": 0, "loss": "weighted", "learning_rate": 1e-4, "falling_rate": False, "adapt_norm": False},
        {"schedule": "paper", "epochs": 1, "step": 40, "learning_rate": 1e-4, "falling_rate": False, "held_out": 0},
    ],
    ids=["held out", "as the pool", "as the paper", "grid"],
)
@pytest.mark.parametrize("masks", ["images", "regions"])
def test_the_train_stage_and_tune_give_the_same_weights(masks, stage_options, place, tmp_path):
    of_regions = {"labels": place / "cells" / "labels", "selection": place / "selection.json"}
    given = of_regions if masks == "regions" else {}
    ended = run("train", **options(place, tmp_path / "out", **given, **stage_options))
    assert ended.status == 0, ended.err
    pool = load_pool(place / "cells")
    network, state = start(place), torch.get_rng_state()
    tuned = tune(network, read_support(pool, **given), pool=pool, **OPTIONS | stage_options)
    assert torch.equal(torch.get_rng_state(), state), "global random numbers are left alone"
    assert not tuned.training
    assert_left(tmp_path / "out", tuned, place)


def test_the_semi_supervised_stage_and_tune_give_the_same_weights(place, tmp_path):
    files = str([str(CONFIGS / name) for name in ("train.json", "semi_supervised_train.json")])
    stage_options = {"validate_every": 2, "decay": 0.5, "most_images": 4}
    ended = command("--config_file", files, **options(place, tmp_path / "out", **stage_options))
    assert ended.status == 0, ended.err
    pool = load_pool(place / "cells")
    tuned = tune(start(place), read_support(pool), pool=pool, semi_supervised=True, **OPTIONS | stage_options)
    assert_left(tmp_path / "out", tuned, place)


def test_the_pretext_stage_and_pretext_give_the_same_weights(place, tmp_path):
    stage_options = {name: value for name, value in options(place, tmp_path / "out").items() if name != "project"}
    ended = run("pretext", **stage_options, fraction=0.2, polarity="bright", most_images=4)
    assert ended.status == 0, ended.err
    own = {"fraction": 0.2, "polarity": "bright", "most_images": 4}
    assert_left(tmp_path / "out", pretext(start(place), load_pool(place / "cells"), **OPTIONS, **own), place)


@pytest.mark.parametrize(
    "stage_options", [{"semi_supervised": True}, {"match_foreground": True}, {"foreground_weight": "pool"}]
)
def test_a_pool_that_is_needed_and_missing_is_said(stage_options):
    with pytest.raises(KWTLError, match="need the images of the pool"):
        tune(FCRN(features=(4, 6)), [], **stage_options)

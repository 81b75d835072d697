"""The teacher is the running mean of the student, and what it is sure of is learned, with the weight that is said."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from stage_here import random_weights
from stage_process import CONFIGS, Death, run
from torch import nn
from torch.utils.data import DataLoader

from monai_kwtl.data.crops import CropDataset, prepare_crops
from monai_kwtl.data.pool import load_pool
from monai_kwtl.data.pseudo_labels import unlabelled_images
from monai_kwtl.engines import mean_teacher
from monai_kwtl.engines.mean_teacher import MeanTeacherTrainer, OwnStatistics, consistency_weight, make_teacher
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import DiceBCE, ForegroundWeightedBCE
from monai_kwtl.metrics import overlap
from monai_kwtl.networks.batch_norm import batch_norm_layers, estimate_batch_norm_statistics
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.pipeline.tuning import fit
from monai_kwtl.project.support_set import read_support
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.utils.distributed import Ranks


def cells(seed, height=48, width=60):
    """An image with some bright squares on a darker, noisy ground, and where they are."""
    rng = np.random.default_rng(seed)
    label = np.zeros((1, height, width), dtype=np.uint8)
    for y, x in zip(rng.integers(0, height - 10, 6), rng.integers(0, width - 10, 6), strict=True):
        label[0, y : y + 10, x : x + 10] = 1
    image = np.clip(70 + 60 * label + rng.normal(0, 20, label.shape), 0, 255).astype(np.uint8)
    return {"name": f"{seed}.png", "image": image, "label": label}


def small_network(seed=0):
    torch.manual_seed(seed)
    return FCRN(features=(4, 6))


def crops(*seeds, steps=6, **more):
    return CropDataset([cells(seed) for seed in seeds], steps=steps, size=24, batch_size=3, **more)


def trainer_of(network, steps=6, **more):
    settings = {
        "device": "cpu",
        "max_epochs": 1,
        "epoch_length": steps,
        "train_data_loader": DataLoader(crops(1, steps=steps), batch_size=None),
        "network": network,
        "optimizer": torch.optim.Adam(network.parameters(), lr=1e-2),
        "loss_function": ForegroundWeightedBCE(),
        "unlabelled": crops(2, 3, seed=1),
        "warm_up": 0,
    }
    return MeanTeacherTrainer(**settings | more)


# --- teacher and weight -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99, 1.0])
def test_the_teacher_is_the_running_mean_of_the_students_weights_from_the_start_on(decay):
    network = small_network()
    mean = {name: p.detach().double().clone() for name, p in network.named_parameters()}
    trainer = trainer_of(network, teacher=make_teacher(network, decay))

    def note():
        for name, parameter in network.named_parameters():
            mean[name] = decay * mean[name] + (1 - decay) * parameter.detach().double()

    trainer.add_event_handler("ITERATION_COMPLETED", note)
    trainer.run()
    moved = 0.0
    for name, parameter in trainer.teacher.module.named_parameters():
        torch.testing.assert_close(parameter.double(), mean[name], rtol=1e-5, atol=1e-6)
        moved += (parameter - dict(network.named_parameters())[name]).abs().sum().item()
    assert (moved == 0) == (decay == 0)


def test_statistics_of_the_teacher_are_those_of_the_student():
    network = small_network()
    trainer = trainer_of(network)
    trainer.run()
    pairs = list(zip(trainer.teacher.module.buffers(), network.buffers(), strict=True))
    assert len(pairs) > 3
    assert all(torch.equal(a, b) for a, b in pairs)
    assert batch_norm_layers(network)[0].num_batches_tracked == 12  # two kinds of crops in six steps


@pytest.mark.parametrize("decay", [-0.1, 1.1, "slow", True])
def test_other_decays_are_refused(decay):
    with pytest.raises(KWTLError, match="decay"):
        make_teacher(nn.Conv2d(1, 1, 1), decay)


def test_the_weight_is_zero_in_the_warm_up_and_rises_to_one():
    assert [consistency_weight(step, 10, 4) for step in range(4)] == [0, 0, 0, 0]
    rising = [consistency_weight(step, 10, 4) for step in range(4, 10)]
    assert rising == [pytest.approx(math.exp(-5 * (1 - t / 6) ** 2)) for t in range(1, 7)]
    assert rising[-1] == 1
    assert consistency_weight(0, 1) == consistency_weight(7, 5) == 1
    assert consistency_weight(3, 4, 4) == 0


# --- a step -----------------------------------------------------------------------------------------------------------


def outputs_of(trainer):
    found = []
    trainer.add_event_handler("ITERATION_COMPLETED", lambda engine: found.append(dict(engine.state.output)))
    trainer.run()
    return found


class Sure(nn.Module):
    """A teacher that is sure of bright pixels and of dark ones."""

    def forward(self, x):
        return torch.where(x > 0.2, 4.0, torch.where(x < -0.5, -4.0, 0.1)).to(x)

    def update_parameters(self, network):
        pass


class Both(nn.Module):
    """A student without batch normalisation, which keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.layer, self.shown = nn.Conv2d(1, 1, 3, padding=1), []

    def forward(self, x):
        self.shown.append(x.detach().clone())
        return self.layer(x)


def test_the_loss_is_that_of_labelled_crops_and_with_its_weight_that_of_sure_unlabelled_pixels(monkeypatch):
    # without strong views and boxes, all of it can be computed by hand
    monkeypatch.setattr(mean_teacher, "strong_view", lambda crop, rng: 255 - crop)
    monkeypatch.setattr(mean_teacher, "cut_mix", lambda images, targets, known, rng: (images, targets, known))
    torch.manual_seed(0)
    network = Both()
    support, pool = crops(1), crops(2, 3, seed=1)
    still = torch.optim.SGD([torch.zeros(1)])  # the student does not move
    trainer = trainer_of(network, teacher=Sure(), warm_up=2, unlabelled=pool, optimizer=still)
    for step, found in enumerate(outputs_of(trainer)):
        image, label = prepare_crops(support.crop_batch(step))
        supervised = ForegroundWeightedBCE()(network.layer(image), label)
        assert found["supervised"] == pytest.approx(supervised.item(), rel=1e-5)
        weight = 0.0 if step < 2 else math.exp(-5 * (1 - (step - 1) / 4) ** 2)
        assert found["weight"] == pytest.approx(weight)
        weak = pool.crop_batch(step)["image"]
        losses = []
        for x, z in zip(weak.flatten().tolist(), network.layer(-weak).flatten().double().tolist(), strict=True):
            if x > 0.2 or x < -0.5:
                losses.append(np.logaddexp(0, -z) if x > 0.2 else np.logaddexp(0, z))
        if step >= 2:
            assert found["consistency"] == pytest.approx(sum(losses) / weak.numel(), rel=1e-4)
            assert found["confident"] == pytest.approx(len(losses) / weak.numel())
        assert found["loss"].item() == pytest.approx(supervised.item() + weight * found["consistency"], rel=1e-5)
    assert len(network.shown) == 2 + 2 * 4


def test_unlabelled_crops_are_changed_and_mixed_and_of_padding_nothing_is_asked():
    torch.manual_seed(0)
    network = Both()
    narrow = {"image": np.full((1, 9, 60), 200, dtype=np.uint8), "label": np.zeros((1, 9, 60), dtype=np.uint8)}
    pool = CropDataset([narrow], steps=6, size=24, batch_size=3)
    (found, *_) = outputs_of(trainer_of(network, teacher=Sure(), unlabelled=pool))
    assert found["confident"] == pytest.approx(9 / 24, abs=0.2)  # boxes move what is known
    assert network.shown[0].shape == network.shown[1].shape == (3, 1, 24, 24)
    assert not torch.equal(network.shown[1], pool.crop_batch(0)["image"])


def test_in_the_warm_up_it_is_plain_training():
    results = []
    for trainer in (trainer_of(small_network(), warm_up=6), None):
        network = small_network() if trainer is None else trainer.network
        if trainer is not None:
            trainer.run()
        else:
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
            for batch in crops(1):
                optimizer.zero_grad()
                image, label = prepare_crops(batch)
                ForegroundWeightedBCE()(network.train()(image), label).backward()
                optimizer.step()
        results.append(list(network.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_teacher_uses_the_statistics_of_the_crops_and_no_dropout():
    network = FCRN(features=(4, 6), dropout=0.5)
    trainer = trainer_of(network)
    weak = crops(2, 3, seed=1).crop_batch(0)["image"]
    for layer in batch_norm_layers(trainer.teacher):
        layer.running_mean.fill_(99.0)
    first, second = trainer._taught(weak), trainer._taught(weak)
    assert torch.equal(first, second)
    assert not trainer.teacher.training
    copy = make_teacher(network).module
    for layer in batch_norm_layers(copy):
        layer.train()
    torch.testing.assert_close(first, copy(weak).sigmoid())


def test_another_loss_of_sure_pixels_can_be_given():
    found = outputs_of(trainer_of(small_network(), teacher=Sure(), consistency_loss=DiceBCE()))
    other = outputs_of(trainer_of(small_network(), teacher=Sure()))
    assert found[0]["consistency"] > other[0]["consistency"]


# --- the same again ---------------------------------------------------------------------------------------------------


def tuned(seed=0, steps=6, **more):
    network = small_network()
    settings = {"learning_rate": 1e-2, "weight_decay": 0.0, "warm_up": 1, "seed": seed, "decay": 0.5}
    return fit(network, crops(1, steps=steps), unlabelled=crops(2, 3, seed=1), amp=False, **settings | more)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_same_seed_gives_the_same_weights_whatever_else_was_drawn():
    one = tuned()
    torch.manual_seed(99)
    np.random.default_rng(1).random()
    assert same(one, tuned())
    assert not same(one, tuned(seed=1))
    assert not same(one, tuned(warm_up=6))
    assert not one.training
    assert all(parameter.requires_grad for parameter in one.parameters())


def test_bfloat16_is_close_to_float32():
    trained, other = (
        fit(small_network(), crops(1, steps=3), unlabelled=crops(2, seed=1), amp=amp, learning_rate=1e-3, decay=0.5)
        for amp in (True, False)
    )
    assert all(p.dtype == torch.float32 for p in trained.parameters())
    for a, b in zip(trained.parameters(), other.parameters(), strict=True):
        assert (a - b).abs().max() < 0.02


def test_a_stage_that_is_interrupted_goes_on_to_the_same_weights():
    def start():
        network = small_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        return network, optimizer, make_teacher(network, 0.5)

    def go(parts, first, stop):
        network, optimizer, teacher = parts
        data = DataLoader(crops(1, start_step=first), batch_size=None)
        trainer = trainer_of(network, optimizer=optimizer, teacher=teacher, train_data_loader=data)
        trainer.state.iteration, trainer.state.epoch = first, 0
        trainer.load_state_dict({"iteration": first, "epoch_length": 6, "max_epochs": 1})
        trainer.add_event_handler("ITERATION_COMPLETED", lambda e: e.state.iteration == stop and e.terminate())
        trainer.run()

    whole, part, resumed = start(), start(), start()
    go(whole, 0, 6)
    go(part, 0, 4)
    for new, old in zip(resumed, part, strict=True):
        new.load_state_dict(old.state_dict())
    go(resumed, 4, 6)
    assert same(whole[2], resumed[2])
    assert same(whole[0], resumed[0])


# --- what it is good for ----------------------------------------------------------------------------------------------


def test_it_learns_cells_of_the_pool_from_one_labelled_image():
    network = small_network()
    support = CropDataset([cells(1)], steps=60, size=32, batch_size=4)
    unlabelled = [cells(number) | {"label": np.zeros((1, 48, 60))} for number in (2, 3, 4)]
    pool = CropDataset(unlabelled, steps=60, size=32, batch_size=4)
    teacher = fit(network, support, DiceBCE(), unlabelled=pool, amp=False, learning_rate=1e-2, decay=0.9)
    assert teacher is not network
    estimate_batch_norm_statistics(teacher, [normalize(torch.from_numpy(cells(n)["image"])[None]) for n in (2, 3, 4)])
    ious = []
    for number in (2, 3, 4):
        with torch.no_grad():
            mask = teacher(normalize(torch.from_numpy(cells(number)["image"])[None])) >= 0
        ious.append(overlap(mask[0].numpy(), cells(number)["label"]).iou)
    assert np.mean(ious) > 0.7


def test_unlabelled_images_are_read_without_their_labels(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(cells(number)[name[:-1]][0]).save(tmp_path / name / f"{number}.png")
    pool = load_pool(tmp_path)
    found = unlabelled_images(pool, most=3)
    assert [entry["name"] for entry in found] == [pool[n]["name"] for n in (0, 2, 4)]
    for entry, number in zip(found, (0, 2, 4), strict=True):
        assert np.array_equal(entry["image"], cells(number)["image"])
        assert not entry["label"].any()
    assert CropDataset(found, size=24).crop_batch(0)["known"].all()


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six images, four of them labelled, and start weights."""
    folder = tmp_path_factory.mktemp("semi")
    for name in ("images", "labels"):
        (folder / "pool" / name).mkdir(parents=True)
        for number in range(6 if name == "images" else 5):
            Image.fromarray(cells(number)[name[:-1]][0] * (255 if name == "labels" else 1)).save(
                folder / "pool" / name / f"{number}.png"
            )
    random_weights(folder / "start.pt")
    return folder


STAGE = ["train.json", "semi_supervised_train.json"]


def stage(place, folder, *fault, **more):
    options = {"dataset_dir": place / "pool", "ckpt": place / "start.pt", "output_dir": folder, "steps": 6, "crop": 32}
    options |= {"batch_size": 2, "device": "cpu", "amp": "false", "tensorboard": "false", "checkpoint_every": 2}
    options |= {"warm_up": 1, "decay": 0.5, "held_out": 0, "validate_every": 3, "learning_rate": 1e-3}
    return run(STAGE, place / "log", *fault, **options | more)


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.parametrize(
    ("preset", "how"), [("paper", {}), ("kwtl", {"loss": DiceBCE(), "falling_rate": True})], ids=["paper", "kwtl"]
)
def test_the_stage_gives_the_weights_of_the_function(preset, how, place, tmp_path, one_thread):
    ended = stage(place, tmp_path, adapt_norm="false", preset=preset)
    assert ended.status == 0, ended.err
    pool = load_pool(place / "pool")
    network = load_weights(FCRN(spatial_dims=2, in_channels=1, out_channels=1), place / "start.pt")
    support = CropDataset(read_support(pool), steps=6, size=32, batch_size=2)
    crops = CropDataset(unlabelled_images(pool), steps=6, size=32, batch_size=2, seed=[0, 1])
    network = network.to(memory_format=torch.channels_last)
    how |= {"learning_rate": 1e-3, "decay": 0.5, "warm_up": 1}
    expected = fit(network, support, unlabelled=crops, amp=False, **how)
    found = weights(tmp_path)
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_the_warm_up_is_a_fifth_of_the_steps_unless_told(place, tmp_path):
    assert stage(place, tmp_path / "told", steps=5, warm_up=1).status == 0
    ended = run(STAGE, place / "log", dataset_dir=place / "pool", ckpt=place / "start.pt", steps=5, crop=32,
                output_dir=tmp_path / "default", batch_size=2, device="cpu", amp="false", tensorboard="false",
                decay=0.5, held_out=0, learning_rate=1e-3)  # fmt: skip
    assert ended.status == 0, ended.err
    one, other = weights(tmp_path / "told"), weights(tmp_path / "default")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_option_of_the_stage_is_explained():
    config = json.loads((CONFIGS / STAGE[1]).read_text())
    options = [name for name, value in config.items() if "::" not in name and name not in ("+_desc_", "teacher")]
    assert sorted(options) == sorted(set(config["+_desc_"]) - {"semi_supervised"})


def test_the_stage_continues_to_the_same_weights_and_chooses_the_best_teacher(place, tmp_path):
    assert stage(place, tmp_path / "whole", held_out=0.2).status == 0
    assert stage(place, tmp_path / "part", Death("after", 2), held_out=0.2).status == -9
    assert (tmp_path / "part" / "checkpoint.pt").is_file()
    assert stage(place, tmp_path / "part", held_out=0.2, resume="true").status == 0
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    note = json.loads((tmp_path / "part" / "model.json").read_text())
    assert note["best_step"] in (3, 6)
    assert note["semi_supervised"] == {"decay": 0.5, "warm_up": 1, "most_images": 200}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("decay", 2, "decay must be a number from 0 to 1, got 2."),
        ("warm_up", -1, "warm_up must be a whole number, at least 0, got -1."),
        ("most_images", 0, "most_images must be a whole number, at least 1, got 0."),
    ],
)
def test_bad_options_of_the_stage_get_one_line(place, tmp_path, option, value, words):
    ended = stage(place, tmp_path, **{option: value})
    assert (ended.status, ended.error) == (1, f"error: {words}")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warm_up": -1}, "warm_up must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"amp": True}, "knows no amp; for bfloat16 give an AutocastInferer"),
        ({"accumulation_steps": 2}, "knows no accumulation_steps"),
    ],
)
def test_bad_settings_of_the_trainer_are_refused(change, words):
    with pytest.raises(KWTLError, match=words):
        trainer_of(small_network(), **change)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(mean_teacher, "ranks", lambda: Ranks(0, 2))
    with pytest.raises(KWTLError, match="in one process"):
        trainer_of(small_network())


def test_a_loss_that_is_no_number_is_said():
    with pytest.raises(KWTLError, match="the loss is nan"):
        tuned(learning_rate=1e30)


def test_a_teacher_is_validated_by_the_statistics_of_the_image():
    network = FCRN(features=(4, 6)).train()
    with torch.no_grad():
        network(torch.randn(2, 1, 16, 16) * 3 + 2)  # running statistics of something else
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.randn(1, 1, 20, 26)
    found = OwnStatistics(network.eval())(image)
    reference = copy.deepcopy(network).train()
    torch.testing.assert_close(found, reference(image))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not torch.allclose(found, network(image))

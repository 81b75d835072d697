"""The support set: what is read of masks, what is held out, and that unknown pixels have no say in anything."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from PIL import Image
from stage_process import run
from torch import nn

from monai_kwtl.data.crops import CropDataset
from monai_kwtl.data.loading import support_hash
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers.validation import (
    BestWeights,
    HeldOutValidation,
    KnownOverlap,
    prepare_validation,
    validation_items,
)
from monai_kwtl.losses import loss_function
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.selection_file import dump_selection
from monai_kwtl.project.support_set import hold_out, read_support
from monai_kwtl.selection.regions import Region
from monai_kwtl.synthetic import make_pool

BOXES = [(0, 0, 40, 33), (30, 20, 35, 40), (10, 15, 32, 32)]  # x, y, width, height; the first two overlap


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("support")
    make_pool(folder / "pool", "fluorescence", count=3, height=65, width=90, seed=3)
    torch.manual_seed(0)
    torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), folder / "start.pt")
    return folder


@pytest.fixture(scope="module")
def pool(folder):
    return load_pool(folder / "pool")


@pytest.fixture(scope="module")
def selection(folder, pool):
    """Two regions of the first image, one of the last."""
    items = [pool[0], pool[0], pool[2]]
    regions = [
        Region(rank, item["name"], None, item["sha256"], *box, score=1.0 / rank)
        for rank, (item, box) in enumerate(zip(items, BOXES, strict=True), start=1)
    ]
    cost = {"windows": 3, "images": 2, "unique_pixels": 1}
    path = folder / "selection.json"
    path.write_text(dump_selection(regions, budget={"windows": 3}, cost=cost, created_with={}))
    return path, regions


def truth(folder, item):
    return np.array(Image.open(folder / "pool" / "labels" / item["name"].split("/")[1]))


def save(path, mask):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(mask).save(path)


def region_masks(folder, pool, regions, where):
    """Write the masks that an annotator would draw of the regions."""
    by_name = {item["name"]: item for item in pool}
    for region, name in zip(regions, region_file_names(regions), strict=True):
        whole = truth(folder, by_name[region.image])
        save(where / name, whole[region.y : region.y + region.height, region.x : region.x + region.width])
    return where


def inside(shape, *boxes):
    mask = np.zeros(shape, dtype=bool)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = True
    return mask


def test_whole_image_masks_are_known_everywhere(folder, pool):
    support = read_support(pool)
    assert [entry["name"] for entry in support] == [item["name"] for item in pool]
    for entry, item in zip(support, pool, strict=True):
        assert "known" not in entry
        assert np.array_equal(entry["label"][0], truth(folder, item) // 255)
        picture = np.array(Image.open(folder / "pool" / item["name"]))
        assert np.array_equal(entry["image"][0], picture)


def test_images_without_a_mask_are_left_out_and_counted(folder, pool, tmp_path, caplog):
    save(tmp_path / "fluorescence_01.png", truth(folder, pool[1]))
    with caplog.at_level(logging.INFO, logger="monai_kwtl"):
        support = read_support(load_pool(folder / "pool", tmp_path), tmp_path)
    assert [entry["name"] for entry in support] == ["images/fluorescence_01.png"]
    assert "2 of 3 images have no label and are left out" in caplog.messages


def test_masks_of_regions_are_known_there_only(folder, pool, selection, tmp_path):
    path, regions = selection
    first, last = read_support(pool, region_masks(folder, pool, regions, tmp_path), path)
    for entry, item, boxes in ((first, pool[0], BOXES[:2]), (last, pool[2], BOXES[2:])):
        known = inside((65, 90), *boxes)
        assert np.array_equal(entry["known"][0], known)
        assert np.array_equal(entry["label"][0], truth(folder, item) // 255 * known)
        assert [(r.x, r.y, r.width, r.height) for r in entry["regions"]] == boxes


def test_regions_without_a_mask_yet_stay_unknown(folder, pool, selection, tmp_path, caplog):
    path, regions = selection
    region_masks(folder, pool, regions, tmp_path)
    (tmp_path / region_file_names(regions)[2]).unlink()
    (entry,) = read_support(pool, tmp_path, path)
    assert entry["name"] == pool[0]["name"]
    assert any("1 of 3 regions have no mask" in message for message in caplog.messages)


@pytest.mark.parametrize("kind", ["whole", "regions"])
def test_masks_of_other_values_are_foreground_and_said_once(kind, folder, pool, selection, tmp_path, caplog):
    path, regions = selection
    if kind == "regions":
        region_masks(folder, pool, regions, tmp_path)
    else:
        for item in pool:
            save(tmp_path / f"{item['name'].split('/')[1]}", truth(folder, item))
    expected = read_support(load_pool(folder / "pool", None if kind == "regions" else tmp_path), tmp_path,
                            path if kind == "regions" else None)  # fmt: skip
    for number, mask in enumerate(sorted(tmp_path.iterdir())):
        pixels = np.array(Image.open(mask)) // 255
        Image.fromarray(pixels * (number + 1)).save(mask)  # 0/1 and numbers of instances
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="monai_kwtl"):
        found = read_support(load_pool(folder / "pool", None if kind == "regions" else tmp_path), tmp_path,
                             path if kind == "regions" else None)  # fmt: skip
    assert sum("all but 0 is taken for foreground" in message for message in caplog.messages) == 1
    assert support_hash(found) == support_hash(expected)
    for entry in found:
        assert set(np.unique(entry["label"])) == {0, 1}
        assert kind == "whole" or not entry["label"][~entry["known"]].any()


def test_masks_without_any_foreground_are_refused(folder, pool, tmp_path):
    for item in pool:
        save(tmp_path / item["name"].split("/")[1], np.zeros((65, 90), dtype=np.uint8))
    with pytest.raises(KWTLError, match="no mask has any foreground"):
        read_support(load_pool(folder / "pool", tmp_path), tmp_path)


def test_a_selection_needs_the_folder_of_its_masks(pool, selection):
    with pytest.raises(KWTLError, match="--selection needs --labels"):
        read_support(pool, None, selection[0])


def train(support, steps=6):
    """Train a small network; the weights afterwards."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = FCRN(spatial_dims=2, in_channels=1, out_channels=1, features=(2, 3, 4, 5))
    dataset = CropDataset(support, steps=steps, size=24, batch_size=3)
    loss, optimizer = loss_function("dataset", dataset), torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(steps):
        batch = dataset[step]
        optimizer.zero_grad()
        loss(network(batch["image"]), batch["label"], batch["known"]).backward()
        optimizer.step()
    return network.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def scrawled(folder, pool, selection, tmp_path):
    """Whole-image masks right inside the regions, and noise outside."""
    rng = np.random.default_rng(0)
    for item, boxes in ((pool[0], BOXES[:2]), (pool[1], []), (pool[2], BOXES[2:])):
        known = inside((65, 90), *boxes)
        noise = rng.integers(0, 256, (65, 90), dtype=np.uint8)
        save(tmp_path / "scrawled" / item["name"].split("/")[1], np.where(known, truth(folder, item), noise))
    return tmp_path / "scrawled"


def test_pixels_outside_the_regions_have_no_say_in_the_weights(folder, pool, selection, scrawled, tmp_path):
    path, regions = selection
    clean = read_support(pool, region_masks(folder, pool, regions, tmp_path / "masks"), path)
    dirty = read_support(pool, scrawled, path)
    assert support_hash(clean) == support_hash(dirty)
    weights = train(clean)
    assert same(train(dirty), weights)
    for entry in dirty:  # even if a label were there
        entry["label"][~entry["known"]] = 1
    assert same(train(dirty), weights)
    inner = np.argwhere(clean[0]["known"] & (clean[0]["label"] > 0))[0]
    clean[0]["label"][tuple(inner)] ^= 1  # while those inside have
    assert not same(train(clean), weights)


def test_pixels_outside_the_regions_have_no_say_in_the_weights_of_the_stage(
    folder, pool, selection, scrawled, tmp_path
):
    path, regions = selection
    found = []
    for labels in (region_masks(folder, pool, regions, tmp_path / "masks"), scrawled):
        options = {"dataset_dir": folder / "pool", "labels": labels, "selection": path, "ckpt": folder / "start.pt"}
        options |= {"steps": 4, "crop": 32, "batch_size": 2, "tensorboard": "false", "device": "cpu"}
        ended = run("train", tmp_path / "log", output_dir=tmp_path / f"out_{len(found)}", **options)
        assert ended.status == 0, ended.err
        assert "support set: 2 images, 3614 labelled pixels" in ended.out
        found.append(torch.load(tmp_path / f"out_{len(found)}" / "model.pt", weights_only=True))
    assert same(*found)


def entries(count, foreground=None):
    """Labelled images, of which some have foreground."""
    return [
        {
            "name": f"{number}.png",
            "page": None,
            "sha256": f"{number:064}",
            "image": np.zeros((1, 8, 9), dtype=np.uint8),
            "label": np.full((1, 8, 9), foreground is None or number in foreground, dtype=np.uint8),
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("count", range(1, 5))
def test_of_few_images_none_is_held_out(count):
    assert hold_out(entries(count), 0.5).held_out == []


@pytest.mark.parametrize(
    ("count", "fraction", "aside"), [(5, 0.2, 1), (5, 0.01, 1), (10, 0.2, 2), (20, 0.5, 10), (7, 0, 0)]
)
def test_the_fraction_of_the_images_is_held_out(count, fraction, aside):
    support = entries(count)
    parts = hold_out(support, fraction, seed=3)
    assert len(parts.held_out) == aside
    assert len(parts.train) == count - aside
    assert sorted(e["name"] for e in parts.train + parts.held_out) == sorted(e["name"] for e in support)
    assert [e["name"] for e in hold_out(support, fraction, seed=3).held_out] == [e["name"] for e in parts.held_out]


def test_the_seed_draws_what_is_held_out():
    support = entries(30)
    drawn = {tuple(e["name"] for e in hold_out(support, 0.2, seed).held_out) for seed in range(8)}
    assert len(drawn) == 8
    held = [e["name"] for seed in range(300) for e in hold_out(entries(10), 0.2, seed).held_out]
    counts = [held.count(f"{number}.png") for number in range(10)]
    assert min(counts) > 30, "every image has the same chance"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("foreground", [{0, 1}, {2, 5}, {7, 8}])
def test_both_parts_have_foreground(seed, foreground):
    parts = hold_out(entries(9, foreground), 0.3, seed)
    assert len(parts.held_out) == 3
    assert any(e["label"].any() for e in parts.held_out)
    assert any(e["label"].any() for e in parts.train)


def test_a_single_image_with_foreground_is_trained_on():
    assert hold_out(entries(9, {4}), 0.3).held_out == []


@pytest.mark.parametrize("fraction", [-0.1, 0.51, 1, True, float("nan"), "0.2", None])
def test_other_fractions_are_refused(fraction):
    with pytest.raises(KWTLError, match="held_out must be between 0 and 0.5, got"):
        hold_out(entries(9), fraction)


def test_the_hash_sees_images_labels_and_what_is_known():
    def changed(**change):
        support = entries(2)
        support[1] |= change
        return support_hash(support)

    label = np.ones((1, 8, 9), dtype=np.uint8)
    label[0, 7, 8] = 0
    known = label.astype(bool)
    hashes = [changed(), changed(sha256="f" * 64), changed(name="b.png"), changed(page=1), changed(label=label)]
    hashes += [changed(known=known), changed(known=~known), support_hash(entries(2)[::-1])]
    assert len(set(hashes)) == len(hashes)
    assert changed() == support_hash(entries(2))


def test_the_hash_takes_names_of_any_bytes():
    names = [os.fsdecode(name) for name in (b"f\xfcr.png", b"f\xf6r.png")]
    assert len({support_hash([entries(1)[0] | {"name": name}]) for name in names}) == 2


def test_the_weight_is_that_of_crops_of_the_data_set_or_a_number():
    dataset = SimpleNamespace(positive_weight=lambda: 7.0)
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    base = float(np.log(2))
    assert loss_function("crop", dataset)(logits, target).item() == pytest.approx(base * (3 + 3) / 4)
    assert loss_function("dataset", dataset)(logits, target).item() == pytest.approx(base * (7 + 3) / 4)
    assert loss_function(2.5, dataset)(logits, target).item() == pytest.approx(base * (2.5 + 3) / 4)
    assert loss_function(1, dataset)(logits, target).item() == pytest.approx(base)


def test_the_weight_of_the_pool_is_its_background_over_its_foreground():
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    base = float(np.log(2))
    assert loss_function("pool", None, fraction=0.2)(logits, target).item() == pytest.approx(base * (4 + 3) / 4)
    assert loss_function("none", None)(logits, target).item() == pytest.approx(base)
    assert loss_function("auto", None)(logits, target).item() == pytest.approx(base * (3 + 3) / 4)


@pytest.mark.parametrize(
    ("weight", "factor"), [("auto", 1), ("none", 1), ("crop", 3), ("dataset", 7), ("pool", 4), (2.5, 2.5)]
)
def test_dice_comes_on_top_of_the_weighted_cross_entropy(weight, factor):
    dataset = SimpleNamespace(positive_weight=lambda: 7.0)
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    expected = np.log(2) * (factor + 3) / 4 + 1 - 2 * 0.5 / (4 * 0.5 + 1)
    found = loss_function(weight, dataset, "dice_bce", fraction=0.2)(logits, target).item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["weighted", "dice_bce"])
@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), True, "image", None, [1], "pool"])
def test_other_weights_are_refused(weight, loss):
    words = "foreground_weight must be auto, crop, dataset, pool, none or a number above 0, got"
    with pytest.raises(KWTLError, match=words):
        loss_function(weight, SimpleNamespace(positive_weight=lambda: 7.0), loss)


def test_other_losses_are_refused():
    with pytest.raises(KWTLError, match="loss must be weighted or dice_bce, got 'focal'"):
        loss_function("crop", None, "focal")


class Guess(nn.Module):
    """A network whose logits are those that it is told."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.zeros_like(x) + self.bias


def evaluator(network, items):
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=torch.utils.data.DataLoader(items, batch_size=None),
        network=network,
        prepare_batch=prepare_validation,
        decollate=False,
        val_handlers=[KnownOverlap()],
    )


def test_held_out_images_are_network_input():
    entry = entries(1)[0] | {"image": np.array([[[0, 255, 51]]], dtype=np.uint8), "label": np.ones((1, 1, 3), np.uint8)}
    (item,) = validation_items([entry])
    assert item["known"].all()
    image, label = prepare_validation(item, torch.device("cpu"), False)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.tensor([[[[-1.0, 1.0, -0.6]]]]))
    assert label.shape == (1, 1, 1, 3)


def test_the_held_out_iou_counts_known_pixels_only():
    label = np.array([[[1, 0, 1, 1], [0, 0, 1, 0]]], dtype=np.uint8)
    known = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]]], dtype=bool)
    entry = entries(1)[0] | {"image": np.zeros((1, 2, 4), np.uint8), "label": label}
    found = []
    for items in (validation_items([entry]), validation_items([entry | {"known": known}])):
        engine = evaluator(Guess(), items)  # logits of 0 are foreground: probability 0.5
        engine.run()
        found.append(engine.state.metrics["mean_iou"])
    assert found == [pytest.approx(4 / 8, abs=1e-4), pytest.approx(2 / 4, abs=1e-4)]


def looking(ious):
    """A trainer, which sets the weight of a network to the step, and a validator that finds these IoUs after steps."""
    network = Guess()
    found = iter(ious)
    validator = Engine(lambda engine, _: engine.state.metrics.update(mean_iou=next(found)))
    trainer = Engine(lambda engine, _: network.bias.data.fill_(float(engine.state.iteration)))
    best = BestWeights(network, validator)
    best.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: validator.run([0]))
    return network, trainer, best


def test_the_best_weights_are_a_copy_and_come_back():
    network, trainer, best = looking([0.2, 0.6, 0.6, 0.5])
    trainer.run(range(4))
    assert network.bias.item() == 2.0
    assert trainer.state.metrics == {"best_step": 2, "held_out_iou": 0.6}
    other, trainer, resumed = looking([0.1, 0.5])
    resumed.load_state_dict(best.state_dict())
    trainer.run(range(2))
    assert (other.bias.item(), trainer.state.metrics["best_step"]) == (2.0, 2)


@pytest.mark.parametrize(("interval", "looks"), [(3, [3, 6, 8]), (4, [4, 8]), (100, [8]), (1, list(range(1, 9)))])
def test_held_out_images_are_looked_at_every_so_many_steps_and_at_the_last(interval, looks):
    network = Guess().train()
    label = np.ones((1, 4, 4), dtype=np.uint8)
    items = validation_items([entries(1)[0] | {"image": np.zeros((1, 4, 4), np.uint8), "label": label}])
    validator, seen = evaluator(network, items), []
    best = BestWeights(network, validator)

    def step(engine, _):
        assert network.training
        network.bias.data.fill_(1.0 if engine.state.iteration in (looks[0], 5) else -1.0)

    engine = Engine(step)
    engine.state.max_epochs, engine.state.epoch_length = 1, 8
    HeldOutValidation(interval, validator).attach(engine)
    best.attach(engine)
    validator.add_event_handler(Events.COMPLETED, lambda: seen.append(engine.state.iteration))
    engine.run([None] * 8)
    assert seen == looks
    assert engine.state.metrics == {"best_step": looks[0], "held_out_iou": 1.0}
    assert network.bias.item() == 1.0


def test_without_held_out_images_the_last_weights_stay():
    network = Guess()
    validator = evaluator(network, [])
    engine = Engine(lambda engine, _: network.bias.data.fill_(float(engine.state.iteration)))
    engine.state.max_epochs, engine.state.epoch_length = 1, 3
    HeldOutValidation(1, validator).attach(engine)
    BestWeights(network, validator).attach(engine)
    engine.run([None] * 3)
    assert network.bias.item() == 3.0 and engine.state.metrics == {}


@pytest.mark.parametrize("interval", [0, -5, 1.5, "never", True])
def test_other_intervals_are_refused(interval):
    with pytest.raises(KWTLError, match="validate_every must be a whole number, at least 1, got"):
        HeldOutValidation(interval, evaluator(Guess(), []))


def test_pages_of_a_stack_have_their_masks_in_a_stack(tmp_path, rng):
    stack, masks = rng.integers(0, 255, (3, 40, 56), dtype=np.uint8), rng.random((3, 40, 56)) < 0.3
    for path, pixels in ((tmp_path / "images" / "s.tif", stack), (tmp_path / "masks" / "s.tif", masks * np.uint8(255))):
        path.parent.mkdir()
        tifffile.imwrite(path, pixels, photometric="minisblack")
    items = load_pool(tmp_path)
    region = Region(1, "images/s.tif", 1, items[1]["sha256"], 10, 5, 30, 20, 0.0)
    cost = {"windows": 1, "images": 1, "unique_pixels": 600}
    selection = tmp_path / "selection.json"
    selection.write_text(dump_selection([region], budget={"windows": 1}, cost=cost, created_with={}))
    (entry,) = read_support(items, tmp_path / "masks", selection)
    assert entry["page"] == 1 and entry["known"].sum() == 600
    assert np.array_equal(entry["label"][0, 5:25, 10:40], masks[1, 5:25, 10:40])

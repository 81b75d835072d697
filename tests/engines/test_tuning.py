"""What the training stages share: curves in TensorBoard, weights with a note, the paper's schedule, and NaN stops."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from PIL import Image
from read_log import Log
from stage_here import random_weights, run
from stage_process import CONFIGS
from tensorboard.summary.writer import event_file_writer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from monai_kwtl.data.crops import CropDataset, GridCropDataset, crop_dataset
from monai_kwtl.data.pool import load_pool, pool_hash
from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers.checkpoint import fingerprint
from monai_kwtl.handlers.training_log import TrainingSummary, TuningLog, linear_decay, results_of
from monai_kwtl.handlers.weights_saver import WeightsSaver
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.project.support_set import hold_out, read_support
from monai_kwtl.synthetic import make_pool

QUICK = {"device": "cpu", "amp": "false", "crop": 24}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two labelled pools, one of six images, and start weights."""
    folder = tmp_path_factory.mktemp("tuning")
    make_pool(folder / "cells", "fluorescence", count=6, height=65, width=90, seed=1)
    make_pool(folder / "nuclei", "brightfield", count=3, height=80, width=64, seed=2)
    random_weights(folder / "start.pt")
    return folder


@pytest.fixture(autouse=True)
def level(caplog):
    caplog.set_level(logging.INFO, logger="monai_kwtl")


def network_of(path):
    network = FCRN(spatial_dims=2, in_channels=1, out_channels=1)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


# --- stages in TensorBoard --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(place):
    """A train stage that looks at its held-out image after steps 2, 4, 6 and 7."""
    folder = place / "train"
    options = {"dataset_dir": place / "cells", "ckpt": place / "start.pt", "steps": 7, "batch_size": 3}
    options |= {"validate_every": 2, "adapt_norm": "false", "learning_rate": 0.003}
    ended = run("train", output_dir=folder, **QUICK | options)
    assert ended.status == 0, ended.err
    return SimpleNamespace(folder=folder, log=Log(folder / "tensorboard"), out=ended.out)


def test_train_draws_the_loss_of_every_step(trained):
    curve = trained.log.curve("loss/train")
    assert [step for step, _ in curve] == list(range(1, 8))
    assert all(0 < loss < 10 for _, loss in curve)
    first, last = (f"{value:.4f}" for value in (curve[0][1], curve[-1][1]))  # a tenth of seven steps is one
    lines = [" ".join(line.split()) for line in trained.out.splitlines()]
    assert f"loss, first tenth {first}" in lines and f"loss, last tenth {last}" in lines and "steps 7" in lines


def test_train_draws_the_held_out_iou_and_keeps_the_best_weights(trained, place):
    curve = trained.log.curve("IoU/held out")
    assert [step for step, _ in curve] == [2, 4, 6, 7]
    best = max(curve, key=lambda point: (point[1], -point[0]))
    note = json.loads((trained.folder / "model.json").read_text())
    assert (note["best_step"], note["held_out_iou"]) == (best[0], pytest.approx(best[1], rel=1e-6))
    (entry,) = hold_out(read_support(load_pool(place / "cells")), 0.2, 0).held_out
    grey = torch.from_numpy(np.array(Image.open(place / "cells" / entry["name"]), dtype=np.float32))
    truth = np.array(Image.open(place / "cells" / "labels" / entry["name"].split("/")[1])) > 0
    with torch.no_grad():
        predicted = network_of(trained.folder / "model.pt")((grey[None, None] / 255 - 0.5) / 0.5)[0, 0].numpy() >= 0
    both = union = 0
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        both, union = both + (p and t), union + (p or t)
    assert best[1] == pytest.approx((both + 1e-4) / (union + 1e-4), abs=2e-3)
    assert len({iou for _, iou in curve}) > 2 and union > 50


@pytest.fixture(scope="module")
def meta_trained(place):
    folder = place / "meta"
    options = {"sources": f"[{place / 'cells'}, {place / 'nuclei'}]", "meta_epochs": 3, "inner_steps": 2, "crops": 2}
    ended = run("meta_train", output_dir=folder, **QUICK | options)
    assert ended.status == 0, ended.err
    return SimpleNamespace(folder=folder, log=Log(folder / "tensorboard"), out=ended.out)


def test_meta_train_draws_curves_of_every_source(meta_trained):
    log, tasks = meta_trained.log, ("cells", "nuclei")
    kinds = ("loss", "loss_first", "loss_last", "iou")
    assert set(log.tags("scalars")) == {"loss/train", *(f"{kind}/{task}" for kind in kinds for task in tasks)}
    curves = {tag: dict(log.curve(tag)) for tag in log.tags("scalars")}
    assert all(list(curve) == [1, 2, 3] for curve in curves.values())
    for epoch in (1, 2, 3):
        losses = [curves[f"loss/{task}"][epoch] for task in tasks]
        assert curves["loss/train"][epoch] == pytest.approx(sum(losses) / 2, rel=1e-5)
        for task in tasks:  # of two inner steps
            ends = curves[f"loss_first/{task}"][epoch], curves[f"loss_last/{task}"][epoch]
            assert curves[f"loss/{task}"][epoch] == pytest.approx(sum(ends) / 2, rel=1e-5)
            assert 0 <= curves[f"iou/{task}"][epoch] <= 1
    note = json.loads((meta_trained.folder / "model.json").read_text())
    for task in tasks:
        assert note[f"iou/{task}"] == pytest.approx(curves[f"iou/{task}"][3], rel=1e-6)
        assert f"iou/{task}" in meta_trained.out
    assert note["steps"] == 3 and np.isfinite(list(curves["loss/train"].values())).all()


# --- a loss that is no number -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["pretext", "train", "meta_train"])
def test_a_loss_that_is_no_number_stops_a_stage_and_leaves_no_weights(stage, place, tmp_path):
    options = QUICK | {"tensorboard": "false"}
    if stage == "meta_train":
        options |= {
            "sources": f"[{place / 'cells'}, {place / 'nuclei'}]",
            "meta_epochs": 3,
            "inner_steps": 3,
            "crops": 2,
        }
        options |= {"inner_learning_rate": 1e30}
    else:
        options |= {"dataset_dir": place / "cells", "ckpt": place / "start.pt", "steps": 9, "batch_size": 2}
        options |= {"learning_rate": 1e30, "held_out": 0} if stage == "train" else {"learning_rate": 1e30}
    ended = run(stage, output_dir=tmp_path / "out", **options)
    assert ended.status == 1
    assert "Traceback" not in ended.err and ended.error.startswith("error: ")
    assert "finite" in ended.error or "the loss is nan at step" in ended.error or "the loss is inf" in ended.error
    assert "learning rate" in ended.error or "--learning_rate" in ended.error
    assert not list((tmp_path / "out").glob("model.*")) and not (tmp_path / "out" / "tensorboard").exists()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf"), torch.tensor(float("nan"))])
def test_the_sentence_names_the_step_and_what_to_do(loss):
    losses = [0.5, 0.25, loss]
    engine = Engine(lambda engine, index: {"loss": losses[index]})
    engine.logger.disabled = True
    log = TuningLog()
    log.attach(engine)
    with pytest.raises(KWTLError, match=r"loss is -?(nan|inf) at step 3: nothing was saved.*smaller --learning_rate"):
        engine.run([0, 1, 2])
    assert log.losses == [0.5, 0.25]


# --- the log ----------------------------------------------------------------------------------------------------------


def train(folder, losses, state=None, metrics=None, **options):
    """Run an engine that has these losses, after those of a state; the log."""
    log = TuningLog(folder, **options)
    if state is not None:
        log.load_state_dict(state)

    def step(engine, loss):
        engine.state.metrics |= metrics or {}
        return {"loss": torch.tensor(loss, requires_grad=True)}

    engine = Engine(step)
    log.attach(engine)
    engine.state.max_epochs, engine.state.epoch_length = 1, len(log.losses) + len(losses)
    engine.state.iteration = len(log.losses)
    engine.run(losses)
    return log


TENSORBOARD = "tensorboard"  # the folder below that of a stage


def test_a_resumed_curve_has_every_step_once(tmp_path, monkeypatch):
    # event files are read in the order of their names, which begin with the second in which they were opened
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=count(1_700_000_000).__next__))
    first = train(tmp_path, [9.0, 8.0, 7.0, 6.0])
    state = first.state_dict()
    train(tmp_path, [5.0, 4.0, 3.0], state)  # was killed: its steps come again
    resumed = train(tmp_path, [5.5, 4.5], state)
    assert resumed.losses == [9.0, 8.0, 7.0, 6.0, 5.5, 4.5]
    assert Log(tmp_path / TENSORBOARD).curve("loss/train") == list(enumerate(resumed.losses, start=1))


def test_a_training_begun_anew_has_a_curve_of_its_own_and_leaves_what_others_drew(tmp_path):
    train(tmp_path, [9.0, 8.0, 7.0])
    other = tmp_path / TENSORBOARD / "events.out.tfevents.1.host.1.0"
    other.write_bytes(b"")
    train(tmp_path, [1.0, 2.0])
    assert Log(tmp_path / TENSORBOARD).curve("loss/train") == [(1, 1.0), (2, 2.0)]
    assert other.exists()


def test_a_checkpoint_means_that_its_steps_are_in_the_log(tmp_path):
    log = TuningLog(tmp_path)
    engine = Engine(lambda engine, loss: {"loss": loss})
    log.attach(engine)
    seen = []

    def checkpoint(engine):
        log.state_dict()
        seen.append([step for step, _ in Log(tmp_path / TENSORBOARD).curve("loss/train")])

    engine.add_event_handler(Events.ITERATION_COMPLETED, checkpoint)
    engine.run([3.0, 2.0])
    assert seen == [[1], [1, 2]]


def test_only_metrics_of_tasks_are_drawn_and_only_results_are_told(tmp_path):
    metrics = {"loss": 1.0, "iou": 0.4, "iou/a": 0.3, "loss/a": 2.0}
    train(tmp_path, [0.5], metrics=metrics)
    drawn = {"loss/train": 0.5, "iou/a": pytest.approx(0.3), "loss/a": 2.0}
    assert Log(tmp_path / TENSORBOARD).scalars() == drawn
    engine = Engine(lambda engine, _: None)
    engine.state.metrics = {**metrics, "best_step": 3, "held_out_iou": 0.2}
    assert results_of(engine) == {"iou": 0.4, "iou/a": 0.3, "best_step": 3, "held_out_iou": 0.2}


def test_what_a_validator_finds_is_drawn_at_the_step_of_its_trainer(tmp_path):
    validator = Engine(lambda engine, _: engine.state.metrics.update(mean_iou=engine.state.batch))
    log = TuningLog(tmp_path, validator=validator)
    trainer = Engine(lambda engine, loss: {"loss": loss})
    log.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda e: validator.run([e.state.batch / 8]))
    trainer.run([4.0, 3.0, 2.0, 1.0])
    assert Log(tmp_path / TENSORBOARD).curve("IoU/held out") == [(2, 0.375), (4, 0.125)]


def test_points_may_be_drawn_now_and_then(tmp_path):
    log = train(tmp_path, [5.0, 4.0, 3.0, 2.0, 1.0], every=2, tag="loss/other")
    assert Log(tmp_path / TENSORBOARD).curve("loss/other") == [(2, 4.0), (4, 2.0)]
    assert len(log.losses) == 5


def test_means_are_of_the_first_and_the_last_tenth():
    log = train(None, [float(value) for value in range(40)])
    assert (log.mean(True), log.mean(False)) == (1.5, 37.5)
    assert (log.mean(True, fraction=0.5), log.mean(False, fraction=1.0)) == (9.5, 19.5)
    assert train(None, [7.0, 3.0]).mean(True) == 7.0
    assert np.isnan(TuningLog().mean(True))


def test_a_log_that_is_never_used_leaves_no_file(tmp_path):
    TuningLog(tmp_path)
    train(tmp_path, [1.0], tensorboard="false")  # as monai.bundle run leaves it
    assert list(tmp_path.iterdir()) == []


# --- schedules --------------------------------------------------------------------------------------------------------


def data(*shapes):
    return [{"image": np.zeros((1, *s), np.uint8), "label": np.ones((1, *s), np.uint8)} for s in shapes]


def grid(length, crop, step):
    """Crops along an axis, counted one by one: those on the step's grid, the last flush with the edge."""
    places, start = {max(0, length - crop)}, 0
    while start + crop <= length:
        places.add(start)
        start += step
    inner = sorted(places)
    # the flush one takes the place of the one before where the two cover nothing more than it alone
    if len(inner) > 2 and inner[-1] % step and inner[-1] - inner[-3] <= crop:
        del inner[-2]
    return len(inner)


@pytest.mark.parametrize(("crop", "step", "batch"), [(32, 16, 5), (32, 40, 64), (20, 7, 8), (48, 30, 1)])
def test_the_papers_schedule_counts_epochs_over_a_grid(crop, step, batch):
    shapes = [(65, 90), (48, 48), (70, 51)]
    dataset = crop_dataset("paper", data(*shapes), 999, 3, crop, step, batch, 0)
    assert type(dataset) is GridCropDataset
    crops = sum(grid(height, crop, step) * grid(width, crop, step) for height, width in shapes)
    assert len(dataset.places) == crops
    assert dataset.steps == 3 * -(-crops // batch)
    sizes = [len(dataset[step]["image"]) for step in range(dataset.steps)]
    assert sum(sizes) == 3 * crops and max(sizes) <= batch


def test_the_papers_schedule_of_a_stage(place, tmp_path):
    options = {
        "dataset_dir": place / "nuclei",
        "ckpt": place / "start.pt",
        "schedule": "paper",
        "epochs": 2,
        "step": 40,
    }
    ended = run("train", output_dir=tmp_path, **QUICK | options | {"crop": 40, "batch_size": 5})
    assert ended.status == 0, ended.err
    crops = 3 * grid(80, 40, 40) * grid(64, 40, 40)
    assert json.loads((tmp_path / "model.json").read_text())["steps"] == 2 * -(-crops // 5) == 6
    assert len(Log(tmp_path / "tensorboard").curve("loss/train")) == 6


@pytest.mark.parametrize(("stage", "epochs"), [("pretext", 100), ("train", 20)])
def test_the_papers_numbers_are_the_defaults_of_its_schedule(stage, epochs):
    config = ConfigParser.load_config_file(str(CONFIGS / f"{stage}.json"))
    config["schedule"] = "paper"
    parser = ConfigParser(config)
    found = {key: parser.get_parsed_content(key) for key in ("crop", "batch_size", "epochs", "step", "learning_rate")}
    assert found == {"crop": 256, "batch_size": 64, "epochs": epochs, "step": 30, "learning_rate": 1e-4}
    assert parser.get_parsed_content("weight_decay") == 5e-4


def test_steps_are_a_budget_of_random_crops():
    dataset = crop_dataset("steps", data((65, 90)), 9, 100, 32, 16, 3, 5)
    expected = CropDataset(data((65, 90)), steps=9, size=32, batch_size=3, seed=5)
    assert type(dataset) is CropDataset and len(dataset) == 9
    assert all(torch.equal(dataset[0][key], expected[0][key]) for key in dataset[0])


def test_photometric_changes_and_a_fraction_of_foreground_are_passed_on():
    for schedule in ("steps", "paper"):
        dataset = crop_dataset(schedule, data((65, 90)), 9, 100, 32, 16, 3, 5, photometric=True)
        assert dataset.photometric is True
        assert dataset.sampler is None
    matched = {"match_foreground": True, "fraction": 0.4}
    assert crop_dataset("steps", data((65, 90)), 9, 100, 32, 16, 3, 5, **matched).sampler is not None
    told = {"photometric": "false", "match_foreground": "false", "fraction": 0.4}  # as monai.bundle run leaves it
    dataset = crop_dataset("steps", data((65, 90)), 9, 100, 32, 16, 3, 5, **told)
    assert dataset.photometric is False and dataset.sampler is None
    with pytest.raises(KWTLError, match="the paper's schedule has a grid"):
        crop_dataset("paper", data((65, 90)), 9, 100, 32, 16, 3, 5, **matched)


def test_another_schedule_is_refused():
    with pytest.raises(KWTLError, match="unknown schedule 'epochs'; use steps or paper"):
        crop_dataset("epochs", data((65, 90)), 9, 100, 32, 16, 3, 5)


# --- hashes, output, weights ------------------------------------------------------------------------------------------


def test_the_hash_of_a_pool_sees_images_and_pages_only():
    items = [{"name": "a", "sha256": "1", "page": None}, {"name": "b", "sha256": "2", "page": 1}]
    renamed = [items[1] | {"name": "c"}, items[0] | {"name": "b", "label": "b.png"}]
    assert pool_hash(items) == pool_hash(renamed)
    others = [items[:1], [*items, items[0]], [items[0], items[1] | {"page": 2}], [items[0], items[1] | {"sha256": "3"}]]
    assert len({pool_hash(items), *map(pool_hash, others)}) == 5


@pytest.fixture
def small():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 1, 1))
    return network.to(memory_format=torch.channels_last)


def test_weights_are_a_plain_state_dict_with_a_note(small, tmp_path):
    saver = WeightsSaver(tmp_path / "out" / "model.pt", small, created_with={"seed": 3, "crop": 256})
    saver.save({"steps": 9, "crop": 24})
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert state.keys() == small.state_dict().keys()
    for name, value in state.items():
        assert value.is_contiguous() and torch.equal(value, small.state_dict()[name])
    sha256 = hashlib.sha256((tmp_path / "out" / "model.pt").read_bytes()).hexdigest()
    note = json.loads((tmp_path / "out" / "model.json").read_text())
    assert note == {"seed": 3, "crop": 24, "steps": 9, "sha256": sha256}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt", "model.json"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(small, tmp_path, value):
    small[3].bias.data[0] = value
    with pytest.raises(KWTLError, match="trained weights are not finite, first in '3.bias': they were not saved"):
        WeightsSaver(tmp_path / "model.pt", small).save()
    assert not list(tmp_path.iterdir())


def test_batch_norm_statistics_are_those_of_the_images(small, tmp_path, rng):
    (tmp_path / "pool").mkdir()
    grey = [rng.integers(low, 256, (40, 64), dtype=np.uint8) for low in (0, 100, 200)]
    for number, pixels in enumerate(grey):
        Image.fromarray(pixels).save(tmp_path / "pool" / f"{number}.png")
    WeightsSaver(tmp_path / "model.pt", small, load_pool(tmp_path / "pool")).save()
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    means, variances = [], []
    for pixels in grey:
        inputs = torch.from_numpy((pixels / 255 - 0.5) / 0.5).float()[None, None]
        values = small[0](inputs).detach()[0].flatten(1)
        means.append(values.mean(1))
        variances.append(values.var(1))
    torch.testing.assert_close(state["1.running_mean"], torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["1.running_var"], torch.stack(variances).mean(0), rtol=1e-3, atol=1e-5)
    WeightsSaver(tmp_path / "again.pt", small, None).save()
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert torch.equal(again["1.running_mean"], state["1.running_mean"]), "without images they stay"


# --- completing a stage -----------------------------------------------------------------------------------------------


def test_a_completed_training_is_saved_with_its_results_and_told(small, tmp_path, caplog):
    def step(engine, _):
        engine.state.metrics |= {"best_step": 4, "held_out_iou": 0.51, "loss": 3.0}
        return {"loss": float(engine.state.iteration)}

    trainer, log, settings = Engine(step), TuningLog(), {"seed": 3, "crop": 24}
    path = tmp_path / "model.pt"
    for handler in (log, WeightsSaver(path, small, created_with=settings), TrainingSummary(log, path)):
        handler.attach(trainer)
    trainer.run(range(6))
    note = json.loads((tmp_path / "model.json").read_text())
    assert note == {
        **settings,
        "fingerprint": fingerprint(settings),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "steps": 6,
        "best_step": 4,
        "held_out_iou": 0.51,
    }
    lines = [" ".join(message.split()) for message in caplog.messages]
    assert lines == [
        "steps 6",
        "loss, first tenth 1.0000",
        "loss, last tenth 6.0000",
        "best step 4",
        "held out iou 0.5100",
        f"weights {path}",
    ]


@pytest.mark.parametrize(("falling", "expected"), [(True, [0.5, 0.4, 0.3, 0.2, 0.1]), ("false", [0.5] * 5)])
@pytest.mark.parametrize("done", [0, 2])
def test_the_learning_rate_falls_in_a_straight_line_also_after_an_interruption(falling, expected, done):
    def go(first, states=None):
        optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.5)
        scheduler = LambdaLR(optimizer, partial(linear_decay, steps=5, falling=falling))
        for part, state in zip((optimizer, scheduler), states or (), strict=False):
            part.load_state_dict(state)
        rates = []
        for _ in range(first, 5 if states or not done else done):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return rates, (optimizer.state_dict(), scheduler.state_dict())

    rates, states = go(0)
    if done:
        rates += go(done, states)[0]
    assert rates == [0.5 * max(1.0 - step / 5, 0.0) if falling is True else 0.5 for step in range(5)]
    assert rates == pytest.approx(expected)

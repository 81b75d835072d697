"""Stages in several processes give what one process gives, write once, go on after a kill, and fail with one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from stage_process import ROOT, Death, run, run_stage_together, run_together, stage_arguments
from torch import nn
from torch.utils.data import DataLoader

from monai_kwtl.data.crops import CropDataset, GridCropDataset
from monai_kwtl.engines.tuning_trainer import TuningTrainer
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import DiceBCE, ForegroundWeightedBCE, LossOverProcesses
from monai_kwtl.networks import device, parallel
from monai_kwtl.networks.batch_norm import batch_norm_layers
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.synthetic import make_pool
from monai_kwtl.utils import distributed

COMMON = {"device": "cpu", "tensorboard": "false", "amp": "false"}
TUNING = COMMON | {"crop": 32, "batch_size": 3, "steps": 6, "checkpoint_every": 2}
META = COMMON | {"crop": 32, "crops": 1, "inner_steps": 2, "meta_epochs": 4, "checkpoint_every": 2}
SELECT = COMMON | {"window": 48, "step": 20, "report": "false"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with three pools and start weights, with batch norm and without."""
    folder = tmp_path_factory.mktemp("distributed")
    make_pool(folder / "cells", "fluorescence", count=5, height=65, width=90, seed=1)
    make_pool(folder / "nuclei", "brightfield", count=3, height=80, width=64, seed=2)
    make_pool(folder / "stack", "em", count=2, height=64, width=70, seed=3)
    torch.manual_seed(0)
    torch.save(FCRN().state_dict(), folder / "batch.pt")
    torch.save(FCRN(norm="instance").state_dict(), folder / "instance.pt")
    return folder


def stage_options(stage, place):
    """Options that make a stage take a second."""
    if stage == "meta_train":
        return META | {"sources": f"[{place / 'cells'}, {place / 'nuclei'}, {place / 'stack'}]"}
    common = {"dataset_dir": place / "cells", "ckpt": place / "batch.pt"}
    if stage == "select":
        return SELECT | common | {"pretext": "skip", "project": "false"}
    return TUNING | common | ({"validate_every": 2} if stage == "train" else {})


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def note(folder):
    """What a stage says about its weights, besides what cannot be the same."""
    content = json.loads((folder / "model.json").read_text())
    return {key: value for key, value in content.items() if key not in ("processes", "fingerprint", "sha256")}


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def succeeded(ended):
    assert [end.status for end in ended] == [0] * len(ended), [end.err for end in ended]
    return ended


def the_one_error(ended):
    """The only line with which several processes tell of a failure."""
    said = [line for end in ended for line in end.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, [end.err for end in ended]
    assert not any("Traceback" in end.err + end.out for end in ended), [end.err for end in ended]
    assert all(end.status for end in ended)
    return said[0]


class Watch:
    """Notes every file or folder that the process changes below a folder."""

    def __init__(self, folder, notes):
        self.folder, self.notes = str(folder), str(notes)

    def install(self):
        changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def hook(event, arguments):
            if event in changes or (event == "open" and isinstance(arguments[2], int) and arguments[2] & writing):
                path = str(arguments[0])
                if path.startswith(self.folder) and path != self.notes:
                    with open(self.notes, "a") as stream:
                        stream.write(f"{event} {path}\n")

        sys.addaudithook(hook)


def run_watched(stage, folder, **options):
    """Run a stage in two processes, of which only the first one may write and speak; return what that one said."""
    out, notes = options["output_dir"], [folder / "first.txt", folder / "second.txt"]
    faults = [Watch(out, path) for path in notes]
    ended = succeeded(run_stage_together(stage, folder / "logs", faults, **options))
    assert ended[0].out and not ended[1].out
    assert f"open {out}" in notes[0].read_text()
    written = notes[1].read_text().splitlines() if notes[1].exists() else []
    if stage == "select":  # each process keeps the scores of its images, so that they are not lost when it is killed
        assert written
        written = [line for line in written if f"{out}/scores" not in line and line != f"os.mkdir {out}"]
    assert not written
    # events.out.tfevents.<time>.<host>.<process id>.<number>[.<stage>]
    logs = [re.search(r"\.(\d+)\.\d+(\.[a-z_]+)?$", path.name) for path in out.rglob("events.out.tfevents.*")]
    assert len({found[1] for found in logs}) == 1
    return ended[0].out


# --- the result of one process ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def meta_trained(place):
    """Weights of meta-training in one process."""
    ended = run("meta_train", place / "log", output_dir=place / "meta", **stage_options("meta_train", place))
    assert ended.status == 0, ended.err
    return weights(place / "meta")


def test_meta_training_gives_the_weights_of_one_process(place, meta_trained, tmp_path):
    options = stage_options("meta_train", place) | {"tensorboard": "true", "output_dir": tmp_path / "out"}
    run_watched("meta_train", tmp_path, **options)
    assert_close(meta_trained, weights(tmp_path / "out"), 1e-6)
    start = torch.load(place / "batch.pt", weights_only=True)
    assert (meta_trained["head.weight"] - start["head.weight"]).abs().max() > 1e-3  # it has moved at all


def test_selection_gives_the_bytes_of_one_process(place, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = stage_options("select", place) | {"pretext": "always", "pretext_steps": 3, "budget": 2}
    options |= {"report": "true", "tensorboard": "true"}
    assert run("select", tmp_path / "log", output_dir=one, **options).status == 0
    said = run_watched("select", tmp_path, output_dir=two, **options | {"project": "true"})
    for name in ("selection.json", "selection.csv", "scores.csv", "what_to_label.png", "pretext/model.pt"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert len(json.loads((place / "cells" / "project.json").read_text())["rounds"]) == 1
    assert "pretext tuning: 3 in" in said
    assert "scoring images: 3 in" in said  # of 5; the other process had 2
    # one image is left to score, then none
    sorted((two / "scores").rglob("*.npz"))[0].unlink()
    options |= {"overwrite": "true", "report": "false", "tensorboard": "false"}
    for scored in (True, False):
        ended = succeeded(run_stage_together("select", tmp_path / "logs", output_dir=two, **options))
        assert ("scoring images: 1 in" in ended[0].out) is ("scoring images" in ended[0].out) is scored
        assert "are of these images and settings: used again" in ended[0].out
        assert (one / "selection.json").read_bytes() == (two / "selection.json").read_bytes()


@pytest.fixture(scope="module")
def chosen(place):
    """A selection of small regions, outside of which masks count for nothing."""
    options = stage_options("select", place) | {"window": 24, "budget_windows": 4, "strategy": "random"}
    ended = run("select", place / "log", output_dir=place / "chosen", **options)
    assert ended.status == 0, ended.err
    return {"selection": place / "chosen" / "selection.json", "labels": place / "cells" / "labels"}


@pytest.mark.parametrize("stage", ["pretext", "train"])
def test_tuning_without_batch_norm_gives_the_weights_of_one_process(stage, place, chosen, tmp_path):
    # parts of 2 crops and 1, with different numbers of known pixels
    options = stage_options(stage, place) | {"network_def#norm": "instance", "ckpt": place / "instance.pt"}
    options |= {"learning_rate": 1e-4}  # what is left of rounding, Adam makes as large as that
    options |= chosen if stage == "train" else {}
    one, two = tmp_path / "one", tmp_path / "two"
    ended = run(stage, tmp_path / "log", output_dir=one, **options)
    assert ended.status == 0, ended.err
    said = [ended.out, run_watched(stage, tmp_path, output_dir=two, **options | {"tensorboard": "true"})]
    assert_close(weights(one), weights(two), 1e-5)
    start = torch.load(place / "instance.pt", weights_only=True)
    assert (weights(one)["head.weight"] - start["head.weight"]).abs().max() > 1e-4
    assert note(one) == note(two)
    losses = [[line for line in words.splitlines() if line.startswith("loss")] for words in said]
    assert losses[0] == losses[1] and len(losses[0]) == 2


# --- parts of it, in two processes ------------------------------------------------------------------------------------


def small_batch():
    """Three crops, of which the last is nearly unknown."""
    rng = torch.Generator().manual_seed(4)
    target = (torch.rand(3, 1, 16, 16, generator=rng) < 0.2).float()
    known = torch.ones_like(target, dtype=torch.bool)
    known[2, :, 1:] = False
    return torch.randn(3, 1, 16, 16, generator=rng), target, known


def small_network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))


def small_support():
    """An image of which two patches are known, one of them small."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 40, 50), dtype=np.uint8)
    known = np.zeros(image.shape, dtype=bool)
    known[:, 3:33, 5:25] = known[:, 34:37, 40:44] = True
    return [{"image": image, "label": image > 200, "known": known}]


def small_crops(steps=4):
    return CropDataset(small_support(), steps=steps, size=16, batch_size=5)


def small_grid():
    return GridCropDataset(small_support(), epochs=4, size=16, step=3, batch_size=4)


def one_of_two(folder):
    """What each of two processes does and saves."""
    distributed.connect()
    distributed.start("cpu", 60)
    rank = distributed.ranks().rank
    saved = {"ranks": tuple(distributed.ranks()), "main": distributed.is_main_process()}
    saved["share"] = distributed.scatter([10 * rank + i for i in range(5 - rank)])
    saved["told"] = distributed.on_main_process(lambda: ("by", rank, tuple(distributed.ranks())))
    with distributed.alone():
        saved["alone"] = tuple(distributed.ranks())
        saved["whole batch"] = len(small_crops()[0]["image"])
    saved["part of a batch"] = len(small_crops()[0]["image"])
    try:
        distributed.on_main_process(lambda: 1 / 0)
    except (ZeroDivisionError, KWTLError) as error:
        saved["failure"] = type(error).__name__

    network = parallel.data_parallel(small_network())
    images, target, known = (part[rank::2] for part in small_batch())
    loss = LossOverProcesses(ForegroundWeightedBCE())(network(images), target, known)
    loss.backward()
    saved["loss"] = loss.item()
    saved["gradients"] = {name: p.grad for name, p in parallel.unwrap(network).named_parameters()}
    network = parallel.data_parallel(small_network())
    loss = LossOverProcesses(DiceBCE())(network(images), target, known)
    loss.backward()
    saved["dice"] = loss.item(), {name: p.grad for name, p in parallel.unwrap(network).named_parameters()}

    torch.manual_seed(rank)  # the weights of the first process count
    network = parallel.data_parallel(FCRN(features=(4, 6)))
    trainer = TuningTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader(small_crops(), batch_size=None),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-3),
        loss_function=LossOverProcesses(ForegroundWeightedBCE()),
    )
    trainer.run()
    saved["weights"] = {name: p.detach() for name, p in parallel.unwrap(network).named_parameters()}
    torch.save(saved, Path(folder, f"{rank}.pt"))
    distributed.stop()


def tuned_in_double(arguments):
    """Tune on a schedule in double precision, on however many processes there are; the first one saves the weights."""
    schedule, path = arguments
    if distributed.started_together() > 1:
        distributed.connect()
        distributed.start("cpu", 60)
    torch.Tensor.float = torch.Tensor.double  # what the loss computes in
    data = small_crops(steps=30) if schedule == "steps" else small_grid()
    torch.manual_seed(0)
    network = FCRN(features=(6, 8, 10), norm="instance").double()
    network = network if distributed.ranks().count == 1 else parallel.data_parallel(network)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=5e-4)
    loss_function = LossOverProcesses(ForegroundWeightedBCE())
    for step in range(data.steps):
        batch = data[step]
        optimizer.zero_grad()
        loss_function(network(batch["image"].double()), batch["label"], batch["known"]).backward()
        optimizer.step()
    if distributed.is_main_process():
        torch.save(parallel.unwrap(network).state_dict(), path)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes have saved."""
    folder = tmp_path_factory.mktemp("two")
    succeeded(run_together(one_of_two, folder, folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_work_is_shared_out_by_the_first_process(two):
    assert [saved["ranks"] for saved in two] == [(0, 2), (1, 2)]
    assert [saved["main"] for saved in two] == [True, False]
    assert [saved["share"] for saved in two] == [[0, 2, 4], [1, 3]]
    assert [saved["part of a batch"] for saved in two] == [3, 2]


def test_what_the_first_process_does_alone_all_know(two):
    assert [saved["told"] for saved in two] == [("by", 0, (0, 1))] * 2
    assert [saved["alone"] for saved in two] == [(0, 1)] * 2
    assert [saved["whole batch"] for saved in two] == [5, 5]
    assert [saved["failure"] for saved in two] == ["ZeroDivisionError", "FailedElsewhereError"]


def test_the_loss_and_its_gradient_are_those_of_the_whole_batch(two):
    network, (images, target, known) = small_network(), small_batch()
    weight = []
    for crop, counts in zip(target, known, strict=True):
        foreground = (crop[counts] == 1).sum()
        weight.append(((crop[counts] == 0).sum() / foreground).clamp(1 / 50, 50) if foreground else torch.tensor(1.0))
    weight = torch.stack(weight)[:, None, None, None].expand_as(target)[known]
    loss = nn.BCEWithLogitsLoss(pos_weight=weight)(network(images)[known], target[known])
    loss.backward()
    for saved in two:
        assert saved["loss"] == pytest.approx(loss.item(), rel=1e-6)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(saved["gradients"][name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_dice_and_its_gradient_are_those_of_the_whole_batch(two):
    network, (images, target, known) = small_network(), small_batch()
    logits, marked = network(images)[known], target[known]
    p = logits.sigmoid()
    loss = nn.BCEWithLogitsLoss()(logits, marked) + 1 - (2 * (p * marked).sum() + 1e-5) / ((p + marked).sum() + 1e-5)
    loss.backward()
    for value, gradients in (saved["dice"] for saved in two):
        assert value == pytest.approx(loss.item(), rel=1e-6)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["steps", "paper"])
def test_but_for_rounding_three_processes_give_the_weights_of_one(schedule, tmp_path):
    # Adam makes full steps of rounding errors, so that float32 would drift apart in so many steps
    for count in (1, 3):
        path = str(tmp_path / f"{count}.pt")
        succeeded(run_together(tuned_in_double, (schedule, path), tmp_path, (None,) * count))
    one, three = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 3))
    assert_close(one, three, 1e-10)


def test_with_batch_norm_the_processes_agree_exactly(two):
    for name, value in two[0]["weights"].items():
        assert torch.equal(value, two[1]["weights"][name]), name
    torch.manual_seed(0)
    start = FCRN(features=(4, 6)).state_dict()
    assert all((value - start[name]).abs().max() > 1e-4 for name, value in two[0]["weights"].items())


def test_a_synchronised_network_is_one_for_a_single_process_again():
    torch.manual_seed(0)
    plain = FCRN(features=(4, 6)).train()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(FCRN(features=(4, 6))).train()
    synchronised.load_state_dict(plain.state_dict())
    network = parallel.unsynchronized(synchronised)
    assert len(batch_norm_layers(network)) == 3
    images = torch.rand(2, 1, 12, 15)
    assert torch.equal(network(images), plain(images))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in network.state_dict().items())


def test_one_process_is_alone(tmp_path):
    assert distributed.ranks() == (0, 1)
    assert distributed.scatter("abc") == ["a", "b", "c"]
    assert distributed.on_main_process(lambda: 5) == 5
    distributed.barrier()
    distributed.stop()
    batch = small_batch()
    assert torch.equal(LossOverProcesses(ForegroundWeightedBCE())(*batch), ForegroundWeightedBCE()(*batch))


# --- kill and resume --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [pytest.param("pretext", marks=pytest.mark.slow), "train"])
def test_a_stage_killed_in_several_processes_continues_to_the_same_weights(stage, place, tmp_path):
    options = stage_options(stage, place)
    succeeded(run_stage_together(stage, tmp_path / "logs", output_dir=tmp_path / "whole", **options))
    options |= {"output_dir": tmp_path / "out", "resume": "true"}
    faults = [Death("after", 2 if stage == "pretext" else 1), None]
    ended = run_stage_together(stage, tmp_path / "logs", faults, **options)
    assert [end.status for end in ended] == [-9, 1]
    assert ended[1].error.startswith("error: another process of this run has ended")
    assert "Traceback" not in ended[1].err
    single = run(stage, tmp_path / "log", **options)
    assert single.status == 1 and "was made with other settings" in single.error
    ended = succeeded(run_stage_together(stage, tmp_path / "logs", **options))
    assert "continuing after step 2 of 6" in ended[0].out
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "out"), 0)


def test_meta_training_killed_in_two_processes_continues_in_one(place, meta_trained, tmp_path):
    options = stage_options("meta_train", place) | {"output_dir": tmp_path / "out", "resume": "true"}
    ended = run_stage_together("meta_train", tmp_path / "logs", [Death("after", 1), None], **options)
    assert [end.status for end in ended] == [-9, 1]
    ended = run("meta_train", tmp_path / "log", **options)
    assert ended.status == 0 and "continuing after step 2 of 4" in ended.out
    assert_close(meta_trained, weights(tmp_path / "out"), 1e-6)


# --- failures ---------------------------------------------------------------------------------------------------------


@dataclass
class FailsAt:
    """Makes the crops of a step an error, or the end of the process."""

    step: int
    error: type[BaseException] | None = None

    def install(self):
        cut = CropDataset.crop_batch

        def crop_batch(data, step, *arguments):
            if step == self.step:
                if self.error is None:
                    os.kill(os.getpid(), 9)
                raise self.error("these crops are broken; fix them.")
            return cut(data, step, *arguments)

        CropDataset.crop_batch = crop_batch


@pytest.mark.parametrize(("stage", "rank"), [("train", 1), ("meta_train", 0)])
def test_an_error_in_one_process_ends_all_with_one_line(stage, rank, place, tmp_path):
    faults = [None, None]
    faults[rank] = FailsAt(1, KWTLError)
    ended = run_stage_together(
        stage, tmp_path / "logs", faults, output_dir=tmp_path / "out", **stage_options(stage, place)
    )
    assert the_one_error(ended) == "error: these crops are broken; fix them."
    assert stage == "meta_train" or "these crops" in ended[rank].err
    assert not (tmp_path / "out" / "model.pt").exists()


def test_a_bug_in_one_process_is_shown_with_its_traceback_once(place, tmp_path):
    faults = [None, FailsAt(1, ZeroDivisionError)]
    ended = run_stage_together(
        "train", tmp_path / "logs", faults, output_dir=tmp_path / "out", **stage_options("train", place)
    )
    assert [end.status for end in ended] == [1, 1]
    assert "ZeroDivisionError" in ended[1].err and "Traceback" in ended[1].err
    assert "Traceback" not in ended[0].err and "error" not in ended[0].err


def test_a_process_that_is_killed_ends_the_others_with_one_line(place, tmp_path):
    options = stage_options("train", place) | {"output_dir": tmp_path / "out"}
    ended = run_stage_together("train", tmp_path / "logs", [None, FailsAt(1)], **options)
    assert the_one_error(ended).startswith("error: another process of this run has ended or does not answer")
    assert [end.status for end in ended] == [1, -9]


def test_a_loss_that_is_not_finite_in_one_process_stops_all(place, tmp_path):
    options = stage_options("train", place) | {"output_dir": tmp_path / "out", "learning_rate": 1e20}
    ended = run_stage_together("train", tmp_path / "logs", **options)
    assert "the loss is nan at step" in the_one_error(ended)
    assert [end.status for end in ended] == [1, 1]


@pytest.mark.parametrize(
    ("stage", "changed", "words"),
    [
        ("train", {"batch_size": 1}, "batch_size"),  # at least one crop for each process
        ("select", {"pretext": "always", "fraction": 7}, "fraction"),
    ],
)
def test_bad_input_is_one_line_of_all_processes(stage, changed, words, place, tmp_path):
    options = stage_options(stage, place) | {"output_dir": tmp_path / "out"} | changed
    assert words in the_one_error(run_stage_together(stage, tmp_path / "logs", **options))


@pytest.mark.parametrize("timeout", [0, -1, True, "long", float("nan"), float("inf")])
def test_a_timeout_must_be_seconds(timeout):
    with pytest.raises(KWTLError, match="timeout must be a number of seconds above 0, got"):
        distributed.start("cpu", timeout)


def test_several_processes_without_the_overlay_and_the_overlay_without_several_are_refused(place, tmp_path):
    options = stage_options("train", place) | {"output_dir": tmp_path / "out"}
    ended = run_stage_together("train", tmp_path / "logs", overlay=False, **options)
    assert "this was started as 2 processes, but the configuration is for one" in the_one_error(ended)
    ended = run(["train.json", "multi_gpu_train.json"], tmp_path / "log", **options)
    assert ended.status == 1 and "start it with torchrun" in ended.error
    assert not (tmp_path / "out").exists()


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "MASTER_ADDR": "", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.choose_device("auto") == torch.device("cuda:1")
    assert device.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(KWTLError, match="'cuda:0' is one GPU, but there are several processes; use cuda"):
        device.choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(KWTLError, match=r"more processes than GPUs \(1\)"):
        device.choose_device("auto")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert device.choose_device("auto") == torch.device("cuda")


# --- torchrun itself --------------------------------------------------------------------------------------------------


def torchrun_command(stage, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [
        *command,
        "-m",
        "monai.bundle",
        "run",
        *stage_arguments([f"{stage}.json", f"multi_gpu_{stage}.json"], **options),
    ]


ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def torchrun(stage, **options):
    command, environment = torchrun_command(stage, **options), os.environ | ALONE
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_torchrun_gives_what_one_process_gives_and_says_an_error_once(place, tmp_path):
    options = stage_options("select", place)
    assert run("select", tmp_path / "log", output_dir=tmp_path / "one", **options).status == 0
    ended = torchrun("select", output_dir=tmp_path / "two", **options)
    assert ended.returncode == 0, ended.stderr
    one, other = ((tmp_path / name / "selection.json").read_bytes() for name in ("one", "two"))
    assert one == other
    assert ended.stdout.count("selection: ") == 1
    ended = torchrun("select", output_dir=tmp_path / "two", **options)
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "selection.json already exists" in said[0]


@pytest.mark.slow  # its short twin is test_a_process_that_is_told_to_end_says_why
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_with_a_killed_process_shows_one_line_of_ours(rank, place, tmp_path):
    options = stage_options("train", place) | {"output_dir": tmp_path / "out", "steps": 100_000, "tensorboard": "false"}
    with (tmp_path / "err").open("w") as stderr:
        run = subprocess.Popen(
            torchrun_command("train", **options), cwd=ROOT, env=os.environ | ALONE, stdout=stderr, stderr=stderr
        )
        try:
            for _ in range(1200):
                if (tmp_path / "out" / "checkpoint.pt").exists():
                    break
                time.sleep(0.1)
            for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
                if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
                    os.kill(int(child), 9)
            assert run.wait(120) == 1
        finally:
            run.kill()
            run.wait()
    said = [line for line in (tmp_path / "err").read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith("error: another process of this run has ended"), said


def test_a_process_that_is_told_to_end_says_why():
    script = (
        "import os, signal, time\nfrom monai_kwtl.bundle import failures\nfrom monai_kwtl.utils import distributed\n"
        "distributed.rendezvous = lambda *_, **__: iter([(distributed.dist.HashStore(), 0, 2)])\n"
        "failures.install_error_hook()\ndistributed.connect()\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)\n"
    )
    together = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command, environment = [sys.executable, "-c", script], os.environ | ALONE | together
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: another process of this run has ended") and ended.stderr.count("\n") == 1

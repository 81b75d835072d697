"""Checkpoints are whole or not there, read without running code, and continue a training to the same weights."""

from __future__ import annotations

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from monai_kwtl.checkpoints import StageCheckpoint, save_atomically
from monai_kwtl.errors import KWTLError

SETTINGS = {"stage": "train", "seed": 0, "learning_rate": 1e-2}
STEPS = 12


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(path, **options):
    """A network with dropout-free layers of every kind of state, its optimiser, and a checkpoint of both."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=5e-4)
    objects = {"network": network, "optimizer": optimizer}
    checkpoint = StageCheckpoint(path, objects, **{"settings": SETTINGS, "every": 4, **options})

    def step(engine, _):
        generator = torch.Generator().manual_seed(engine.state.iteration)  # the batch is a function of the step
        optimizer.zero_grad()
        loss = network(torch.randn(2, 1, 9, 7, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    engine = Engine(step)
    checkpoint.attach(engine)
    return network, checkpoint, engine


def train(checkpoint, engine, until=STEPS):
    engine.state.max_epochs, engine.state.epoch_length = 1, STEPS
    engine.state.iteration, engine.state.epoch = checkpoint.iteration, 0
    engine.add_event_handler("ITERATION_COMPLETED", lambda e: e.terminate() if e.state.iteration == until else None)
    engine.run([None] * (STEPS - checkpoint.iteration))


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stopped", [3, 4, 5, 8, 11, 12])
def test_a_stopped_training_continues_to_the_same_weights(tmp_path, stopped):
    whole, checkpoint, engine = make(tmp_path / "whole.pt")
    train(checkpoint, engine)
    _, checkpoint, engine = make(tmp_path / "c.pt")
    train(checkpoint, engine, until=stopped)
    network, checkpoint, engine = make(tmp_path / "c.pt", resume=True)
    assert checkpoint.iteration == stopped // 4 * 4
    if checkpoint.iteration < STEPS:
        train(checkpoint, engine)
    same(network.state_dict(), whole.state_dict())


def test_without_resume_a_checkpoint_is_not_looked_at(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"whatever")
    _, checkpoint, _ = make(tmp_path / "c.pt")
    assert checkpoint.iteration == 0


def test_resuming_where_there_is_no_checkpoint_begins_anew(tmp_path):
    assert make(tmp_path / "c.pt", resume=True)[1].iteration == 0


@pytest.fixture(scope="module")
def bytes_of_a_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "c.pt"
    make(path)[1].save(4)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_checkpoint_is_never_loaded(tmp_path, share, bytes_of_a_checkpoint, caplog):
    path = tmp_path / "c.pt"
    path.write_bytes(bytes_of_a_checkpoint[: int(share * len(bytes_of_a_checkpoint))])
    network, checkpoint, _ = make(path, resume=True)
    assert checkpoint.iteration == 0
    same(network.state_dict(), make(tmp_path / "other.pt")[0].state_dict())
    assert caplog.messages == [f"{path} is not a whole checkpoint; the stage begins anew"]


def test_a_checkpoint_with_broken_bytes_never_gives_other_weights(tmp_path, bytes_of_a_checkpoint):
    path = tmp_path / "c.pt"
    path.write_bytes(bytes_of_a_checkpoint)
    whole = make(path, resume=True)[0].state_dict()
    rng = np.random.default_rng(0)
    anew = 0
    for _ in range(200):
        broken = np.frombuffer(bytes_of_a_checkpoint, dtype=np.uint8).copy()
        start, length = int(rng.integers(broken.size - 16)), int(rng.choice([1, 4, 16]))
        broken[start : start + length] ^= rng.integers(1, 256, length, dtype=np.uint8)
        path.write_bytes(broken.tobytes())
        network, checkpoint, _ = make(path, resume=True)
        anew += checkpoint.iteration == 0
        if checkpoint.iteration:  # the bytes were padding, which holds nothing
            assert checkpoint.iteration == 4
            same(network.state_dict(), whole)
    assert anew > 50


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "c.pt"
    torch.save({"fingerprint": Payload()}, path)
    assert make(path, resume=True)[1].iteration == 0
    path.write_bytes(pickle.dumps(Payload()))
    assert make(path, resume=True)[1].iteration == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, [], {"fingerprint": "other"}, torch.zeros(3)])
def test_a_whole_file_that_is_another_thing_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(KWTLError, match="made with other settings"):
        make(tmp_path / "c.pt", resume=True)
    assert make(tmp_path / "c.pt", resume=True, overwrite=True)[1].iteration == 0


def test_other_settings_are_refused_in_one_line(tmp_path):
    make(tmp_path / "c.pt")[1].save(4)
    with pytest.raises(KWTLError, match="with other settings, images or weights: .*--resume false --over") as caught:
        make(tmp_path / "c.pt", resume=True, settings={**SETTINGS, "seed": 1})
    assert "\n" not in str(caught.value)
    assert (tmp_path / "c.pt").is_file()


def test_other_settings_may_be_overwritten_and_begin_anew(tmp_path):
    make(tmp_path / "c.pt")[1].save(4)
    network, checkpoint, _ = make(tmp_path / "c.pt", resume=True, overwrite=True, settings={"seed": 1})
    assert checkpoint.iteration == 0
    same(network.state_dict(), make(tmp_path / "other.pt")[0].state_dict())


def test_the_order_of_settings_does_not_matter(tmp_path):
    make(tmp_path / "c.pt")[1].save(4)
    assert make(tmp_path / "c.pt", resume=True, settings=dict(reversed(SETTINGS.items())))[1].iteration == 4


def finish(tmp_path, fingerprint):
    (tmp_path / "model.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "model.json").write_text(json.dumps({"fingerprint": fingerprint, "sha256": digest}))
    return tmp_path / "model.pt"


def test_a_finished_stage_is_known_by_the_note_beside_its_weights(tmp_path):
    checkpoint = make(tmp_path / "c.pt", resume=True)[1]
    assert not checkpoint.finished(tmp_path / "model.pt")
    weights = finish(tmp_path, checkpoint.fingerprint)
    assert checkpoint.finished(weights)
    assert not make(tmp_path / "c.pt")[1].finished(weights), "without resume the stage runs again"


def test_weights_of_other_settings_are_refused_or_made_anew(tmp_path):
    weights = finish(tmp_path, "other")
    with pytest.raises(KWTLError, match="model.pt was made with other settings"):
        make(tmp_path / "c.pt", resume=True)[1].finished(weights)
    assert not make(tmp_path / "c.pt", resume=True, overwrite=True)[1].finished(weights)


@pytest.mark.parametrize("note", ["", "[]", "{}", "null", '{"fingerprint": 3}'])
def test_weights_without_a_usable_note_are_not_taken_for_finished(tmp_path, note):
    weights = finish(tmp_path, "other")
    (tmp_path / "model.json").write_text(note)
    with pytest.raises(KWTLError, match="other settings"):
        make(tmp_path / "c.pt", resume=True)[1].finished(weights)


def test_another_process_than_the_first_writes_and_removes_nothing(tmp_path):
    make(tmp_path / "c.pt", writes=False)[1].save(4)
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "c.pt")[1].save(4)
    make(tmp_path / "c.pt", writes=False)[1].remove()
    assert (tmp_path / "c.pt").is_file()
    make(tmp_path / "c.pt")[1].remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("every", [0, -1, 2.5, "often"])
def test_checkpoints_come_every_whole_number_of_steps(tmp_path, every):
    with pytest.raises(KWTLError, match="checkpoint_every must be a whole number, at least 1"):
        make(tmp_path / "c.pt", every=every)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_half(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_atomically({"a": 1}, path)
    before = path.read_bytes()

    def full(state, stream):
        stream.write(b"half of it")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(KWTLError, match="cannot write .*c.pt"):
        save_atomically({"a": 2}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KWTLError, match="cannot write .*file"):
        save_atomically({}, tmp_path / "file" / "c.pt")


def test_files_left_by_killed_processes_go_with_the_checkpoint(tmp_path):
    checkpoint = make(tmp_path / "c.pt")[1]
    checkpoint.save(4)
    for name in (".c.pt.99999.unfinished", ".other.pt.99999.unfinished"):
        (tmp_path / name).write_bytes(b"half")
    checkpoint.remove()
    assert [p.name for p in tmp_path.iterdir()] == [".other.pt.99999.unfinished"]


def test_a_note_of_other_weights_says_nothing_of_these(tmp_path):
    checkpoint = make(tmp_path / "c.pt", resume=True, overwrite=True)[1]
    weights = finish(tmp_path, checkpoint.fingerprint)
    weights.write_bytes(b"other weights")
    assert not checkpoint.finished(weights)

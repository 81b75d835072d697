"""Checkpoints are whole or not there, read without running code, and continue a training to the same weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers import checkpoint as checkpoint_module
from monai_kwtl.handlers.checkpoint import StageCheckpoint
from monai_kwtl.networks.weights import save_atomically

SETTINGS = {"stage": "train", "seed": 0, "learning_rate": 1e-2}
STEPS = 12


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make(folder, **options):
    """A network with every kind of state, a checkpoint of it and its optimiser, and the engine that trains it."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=5e-4)
    objects = {"network": network, "optimizer": optimizer}
    checkpoint = StageCheckpoint(folder, objects, **{"settings": SETTINGS, "every": 4, **options})

    def step(engine, _):
        generator = torch.Generator().manual_seed(engine.state.iteration)  # the batch is a function of the step
        optimizer.zero_grad()
        loss = network(torch.randn(2, 1, 9, 7, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        engine.state.metrics["loss"] = loss.item()

    engine = Engine(step)
    engine.logger.disabled = True
    checkpoint.attach(engine)
    return network, checkpoint, engine


class KilledError(Exception):
    """Ends a training as a kill would: no handler is told."""


def train(engine, until=STEPS):
    """Train up to a step, as if the process were killed after it, or to the end."""

    def kill(engine):
        if engine.state.iteration == until < STEPS:
            raise KilledError

    engine.add_event_handler("ITERATION_COMPLETED", kill)
    with contextlib.suppress(KilledError):
        engine.run([None] * STEPS, max_epochs=1, epoch_length=STEPS)


def begin(folder, **options):
    """Network and iteration with which a training begins, or would go on where ``resume`` is true."""
    network, _, engine = make(folder, **options)
    engine.add_event_handler("STARTED", lambda: engine.terminate(skip_completed=True))
    engine.run([None] * STEPS, max_epochs=1, epoch_length=STEPS)
    return network, engine.state.iteration


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stopped", [3, 4, 5, 8, 11])
def test_a_stopped_training_continues_to_the_same_weights(tmp_path, stopped):
    whole, _, engine = make(tmp_path / "whole")
    train(engine)
    metrics = dict(engine.state.metrics)
    train(make(tmp_path)[2], until=stopped)
    assert begin(tmp_path, resume=True)[1] == stopped // 4 * 4
    network, _, engine = make(tmp_path, resume=True)
    train(engine)
    same(network.state_dict(), whole.state_dict())
    assert engine.state.metrics == metrics
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_training_killed_behind_its_last_step_only_completes(tmp_path):
    whole, _, engine = make(tmp_path, every=5)

    def kill():
        raise KilledError

    engine.add_event_handler("EPOCH_COMPLETED", kill)
    train(engine)
    network, _, engine = make(tmp_path, resume=True)
    completed = []
    engine.add_event_handler("ITERATION_STARTED", lambda: pytest.fail("nothing is left to be trained"))
    engine.add_event_handler("COMPLETED", lambda e: completed.append((e.state.iteration, *e.state.metrics)))
    train(engine)
    assert completed == [(STEPS, "loss")]
    same(network.state_dict(), whole.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_told_where_to_go_on(tmp_path):
    class Data(torch.utils.data.Dataset):
        start_step = 0

        def __len__(self):
            return STEPS - self.start_step

        def __getitem__(self, index):
            return self.start_step + index

    seen = []
    for until, resume in ((6, False), (STEPS, True)):
        engine = make(tmp_path, resume=resume)[2]
        engine.add_event_handler("ITERATION_COMPLETED", lambda e: seen.append((e.state.iteration, e.state.batch)))
        loader = torch.utils.data.DataLoader(Data(), batch_size=None)
        engine.add_event_handler("ITERATION_COMPLETED", lambda e, u=until: e.state.iteration == u < STEPS and 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            engine.run(loader, max_epochs=1, epoch_length=STEPS)
    assert seen == [(step, step - 1) for step in (*range(1, 7), *range(5, STEPS + 1))]


def test_without_resume_a_checkpoint_is_not_looked_at(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"whatever")
    assert begin(tmp_path, overwrite=True)[1] == 0


def test_resuming_where_there_is_no_checkpoint_begins_anew(tmp_path):
    assert begin(tmp_path, resume=True)[1] == 0


@pytest.fixture(scope="module")
def bytes_of_a_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    train(make(folder)[2], until=4)
    return (folder / "checkpoint.pt").read_bytes()


@pytest.fixture
def saved(tmp_path, bytes_of_a_checkpoint):
    """The path of a checkpoint after four steps."""
    (tmp_path / "checkpoint.pt").write_bytes(bytes_of_a_checkpoint)
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_checkpoint_is_never_loaded(tmp_path, fraction, bytes_of_a_checkpoint, caplog):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(bytes_of_a_checkpoint[: int(fraction * len(bytes_of_a_checkpoint))])
    network, iteration = begin(tmp_path, resume=True)
    assert iteration == 0
    same(network.state_dict(), make(tmp_path / "other")[0].state_dict())
    assert caplog.messages == [f"{path} is not a whole checkpoint; the stage begins anew"]


def test_a_checkpoint_with_broken_bytes_never_gives_other_weights(saved, bytes_of_a_checkpoint):
    whole = begin(saved.parent, resume=True)[0].state_dict()
    rng = np.random.default_rng(0)
    anew = 0
    for _ in range(200):
        broken = np.frombuffer(bytes_of_a_checkpoint, dtype=np.uint8).copy()
        start, length = int(rng.integers(broken.size - 16)), int(rng.choice([1, 4, 16]))
        broken[start : start + length] ^= rng.integers(1, 256, length, dtype=np.uint8)
        saved.write_bytes(broken.tobytes())
        network, iteration = begin(saved.parent, resume=True)
        anew += iteration == 0
        if iteration:  # the bytes were padding, which holds nothing
            assert iteration == 4
            same(network.state_dict(), whole)
    assert anew > 50


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "checkpoint.pt"
    torch.save({"fingerprint": Payload()}, path)
    assert begin(tmp_path, resume=True)[1] == 0
    path.write_bytes(pickle.dumps(Payload()))
    assert begin(tmp_path, resume=True)[1] == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, [], {"fingerprint": "other"}, torch.zeros(3)])
def test_a_whole_file_that_is_another_thing_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(KWTLError, match="made with other settings"):
        begin(tmp_path, resume=True)
    assert begin(tmp_path, resume=True, overwrite=True)[1] == 0


def test_other_settings_are_refused_in_one_line(saved):
    with pytest.raises(KWTLError, match="with other settings, images or weights: .*--resume false --over") as caught:
        begin(saved.parent, resume=True, settings={**SETTINGS, "seed": 1})
    assert "\n" not in str(caught.value)
    assert saved.is_file()


def test_a_checkpoint_of_other_objects_is_refused(saved):
    checkpoint = StageCheckpoint(saved.parent, {"network": torch.nn.Linear(1, 1)}, SETTINGS, resume=True)
    with pytest.raises(KWTLError, match="made with other settings"):
        checkpoint.finished()


def test_other_settings_may_be_overwritten_and_begin_anew(saved, tmp_path):
    network, iteration = begin(saved.parent, resume=True, overwrite=True, settings={"seed": 1})
    assert iteration == 0
    same(network.state_dict(), make(tmp_path / "other")[0].state_dict())


def test_the_order_of_settings_does_not_matter(saved):
    assert begin(saved.parent, resume=True, settings=dict(reversed(SETTINGS.items())))[1] == 4


# --- the output -------------------------------------------------------------------------------------------------------


def test_the_output_of_a_stage_is_made_and_probed(tmp_path):
    make(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.pt", "model.pt already exists: choose another --output_dir or add --overwrite true"),
        ("checkpoint.pt", "checkpoint.pt is of an interrupted run: go on with --resume true"),
    ],
)
def test_what_is_there_is_kept_unless_told(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"weights")
    for spelled in (False, "false"):  # as monai.bundle run leaves it
        with pytest.raises(KWTLError, match=words):
            make(tmp_path, overwrite=spelled, resume=spelled)
    for told in ({"overwrite": True}, {"resume": "true"}, {"skip": True}):
        make(tmp_path, **told)
    assert (tmp_path / name).read_bytes() == b"weights"


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(KWTLError, match=f"cannot write to {folder} .*; choose another --output_dir"):
            make(folder, overwrite=True)


def finish(tmp_path, fingerprint):
    (tmp_path / "model.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "model.json").write_text(json.dumps({"fingerprint": fingerprint, "sha256": digest}))
    return tmp_path / "model.pt"


def test_a_finished_stage_is_known_by_the_note_beside_its_weights(tmp_path):
    checkpoint = make(tmp_path, resume=True)[1]
    assert not checkpoint.finished()
    finish(tmp_path, checkpoint.fingerprint)
    assert checkpoint.finished()
    assert not make(tmp_path, overwrite=True)[1].finished(), "without resume the stage runs again"


@pytest.mark.parametrize("options", [{"resume": True}, {"skip": True}])
def test_a_finished_stage_and_one_to_skip_train_and_complete_nothing(tmp_path, options, caplog):
    caplog.set_level("INFO", logger="monai_kwtl")
    _, checkpoint, engine = make(tmp_path, **options)
    weights = finish(tmp_path, checkpoint.fingerprint)
    for event in ("ITERATION_STARTED", "COMPLETED"):
        engine.add_event_handler(event, lambda: pytest.fail("nothing is to be done"))
    train(engine)
    assert caplog.messages == ([f"{weights} is finished: nothing to do"] if "resume" in options else [])
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "model.json"}


def test_weights_of_other_settings_are_refused_or_made_anew(tmp_path):
    finish(tmp_path, "other")
    with pytest.raises(KWTLError, match="model.pt was made with other settings"):
        make(tmp_path, resume=True)[1].finished()
    assert not make(tmp_path, resume=True, overwrite=True)[1].finished()


@pytest.mark.parametrize("note", ["", "[]", "{}", "null", '{"fingerprint": 3}'])
def test_weights_without_a_usable_note_are_not_taken_for_finished(tmp_path, note):
    finish(tmp_path, "other")
    (tmp_path / "model.json").write_text(note)
    with pytest.raises(KWTLError, match="other settings"):
        make(tmp_path, resume=True)[1].finished()


def test_another_process_than_the_first_writes_and_removes_nothing(saved, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "is_main_process", lambda: False)
    before = saved.read_bytes()
    train(make(saved.parent)[2])
    assert saved.read_bytes() == before
    assert not (make(saved.parent / "other")[1].path.parent).exists()


@pytest.mark.parametrize("every", [0, -1, 2.5, "often"])
def test_checkpoints_come_every_whole_number_of_steps(tmp_path, every):
    with pytest.raises(KWTLError, match="checkpoint_every must be a whole number, at least 1"):
        make(tmp_path, every=every)


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
    engine = make(tmp_path)[2]
    for name in (".checkpoint.pt.99999.unfinished", ".model.pt.77.unfinished", ".other.pt.99999.unfinished"):
        (tmp_path / name).write_bytes(b"half")
    train(engine)
    assert [p.name for p in tmp_path.iterdir()] == [".other.pt.99999.unfinished"]


def test_a_note_of_other_weights_says_nothing_of_these(tmp_path):
    checkpoint = make(tmp_path, resume=True, overwrite=True)[1]
    finish(tmp_path, checkpoint.fingerprint).write_bytes(b"other weights")
    assert not checkpoint.finished()

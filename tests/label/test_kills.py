"""Processes killed at any moment: no acknowledged label is lost, none covers more than was labelled."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from label_studies import needs_monailabel, write_app, write_studies
from PIL import Image

from monai_kwtl.label.state.database import SIDECAR_NAME, Sidecar
from monai_kwtl.utils.hashing import file_sha256
from monai_kwtl.windows.box import Box

pytestmark = [
    needs_monailabel,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Killed(BaseException):
    """The death of the process, as far as anything in it can tell."""


class Labels:
    """What was acknowledged: for each image its mask, and where it is known."""

    def __init__(self, items: list[dict]) -> None:
        self.masks = {Path(i["name"]).stem: np.zeros((i["height"], i["width"]), dtype=bool) for i in items}
        self.known: dict[str, set[Box]] = {identity: set() for identity in self.masks}

    def with_one(self, identity: str, box: Box, mask: np.ndarray) -> tuple[np.ndarray, set[Box]]:
        merged = self.masks[identity].copy()
        merged[box.y : box.y + box.height, box.x : box.x + box.width] = mask
        return merged, self.known[identity] | {box}

    def add(self, identity: str, box: Box, mask: np.ndarray) -> None:
        self.masks[identity], self.known[identity] = self.with_one(identity, box, mask)


def lies_there(studies: Path, identity: str) -> np.ndarray | None:
    found = list((studies / "labels" / "final").glob(f"{identity}.*"))
    assert len(found) <= 1
    return np.asarray(Image.open(found[0])) > 0 if found else None


def check(studies: Path, labels: Labels, sent: tuple | None, caplog) -> None:
    """Start again: what was acknowledged is there, what was sent last is there wholly or not at all."""
    from kill_workers import parts

    from monai_kwtl.label.tasks.train import labelled_regions

    caplog.clear()
    images, sidecar, store = parts(studies)
    said = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) <= 1, [record.getMessage() for record in said]
    by_key = {(item["sha256"], item["page"]): Path(item["name"]).stem for item in images.items()}
    known: dict[str, set[Box]] = {identity: set() for identity in labels.masks}
    for key, boxes in sidecar.known().items():
        known[by_key[key]] = set(boxes)
    for identity, mask in labels.masks.items():
        there = lies_there(studies, identity)
        states = [(mask, labels.known[identity])]
        if sent is not None and sent[0] == identity:
            states.append(labels.with_one(*sent))
        found = np.zeros_like(mask) if there is None else there
        matching = [state for state in states if np.array_equal(state[0], found) and state[1] == known[identity]]
        assert matching, f"{identity}: neither what was acknowledged nor that and what was sent last"
        labels.masks[identity], labels.known[identity] = matching[0]
        assert (there is None) == (not known[identity])
    if any(known.values()):
        trained_on = {
            (Path(r.image).stem, Box(r.x, r.y, r.width, r.height)) for r in labelled_regions(store, images, sidecar)
        }
        assert trained_on == {(identity, box) for identity, boxes in known.items() for box in boxes}
    for folder in ("labels", "label_versions"):
        for path in (studies / folder).rglob("*"):
            assert path.is_dir() or path.stat().st_size, f"{path} is empty"
            assert not path.name.endswith(".unfinished")
    assert not (studies / "set_aside").exists()
    json.loads((studies / "datastore_v2.json").read_text())


# --- simulated: at every step -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def dies_at(step: int, monkeypatch):
    """Die before or after the so manieth rename, sync, deletion or transaction."""
    steps = []

    def dying(function):
        def called(*arguments, **named):
            for _ in range(2):  # before it and after it
                steps.append(function.__name__)
                if len(steps) == step:
                    raise Killed
                if len(steps) % 2:
                    result = function(*arguments, **named)
            return result

        return called

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(Sidecar, "commit_label", dying(Sidecar.commit_label))
        yield steps


def test_an_upload_that_dies_at_any_step_is_there_wholly_or_not_at_all(tmp_path, monkeypatch, caplog):
    from kill_workers import drawn, parts, upload

    write_studies(tmp_path / "before", {"a.png": (70, 90), "b.tif": (80, 65)})
    images, _, store = parts(tmp_path / "before")
    items, rng = images.items(), np.random.default_rng(0)
    uploads = [drawn(items, rng) for _ in range(7)]
    for one in uploads[:6]:  # of both images, so that there are former versions
        upload(store, tmp_path, *one)
    died = 0
    for step in range(1, 200):
        studies = tmp_path / f"studies{step}"
        shutil.copytree(tmp_path / "before", studies)
        labels = Labels(items)
        for one in uploads[:6]:
            labels.add(*one)
        store = parts(studies)[2]
        with dies_at(step, monkeypatch) as steps:
            try:
                upload(store, tmp_path, *uploads[6])
            except Killed:
                died += 1
            else:
                labels.add(*uploads[6])
        check(studies, labels, uploads[6], caplog)
        if len(steps) < step:
            break
        shutil.rmtree(studies)
    assert died == step - 1 > 10


def test_a_removal_that_dies_at_any_step_never_leaves_a_mask_that_counts_as_complete(tmp_path, monkeypatch, caplog):
    from kill_workers import drawn, parts, upload

    write_studies(tmp_path / "before", {"a.png": (70, 90)})
    images, _, store = parts(tmp_path / "before")
    one = drawn(images.items(), np.random.default_rng(0))
    upload(store, tmp_path, *one)
    for step in range(1, 200):
        studies = tmp_path / f"studies{step}"
        shutil.copytree(tmp_path / "before", studies)
        store = parts(studies)[2]
        with dies_at(step, monkeypatch) as steps, contextlib.suppress(Killed):
            store.remove_label("a", "final")
        _, sidecar, _ = parts(studies)
        known = [set(boxes) for boxes in sidecar.known().values()]
        assert not (studies / "set_aside").exists()
        there = lies_there(studies, "a")
        assert (known == [{one[1]}] and there is not None) or (known == [] and there is None)
        if len(steps) < step:
            assert there is None
            break
    assert step > 3


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    """Studies with one region of image ``a`` labelled; gives the folder, the region and its mask."""
    from kill_workers import parts, upload

    studies = tmp_path / "studies"
    truth = write_studies(studies, {"a.png": (70, 90), "b.png": (60, 50)})
    box = Box(10, 5, 40, 30)
    part = np.zeros((30, 40), dtype=bool)
    part[5:20, 5:20] = True
    upload(parts(studies)[2], tmp_path, "a", box, part)
    return studies, box, part, truth


def known(studies: Path) -> list[list[Box]]:
    return list(Sidecar(studies / SIDECAR_NAME).known().values())


def test_a_mask_put_there_by_hand_is_complete_and_one_changed_by_hand_keeps_its_regions(labelled, caplog):
    from kill_workers import parts

    studies, box, part, truth = labelled
    Image.fromarray(truth["b"]).save(studies / "labels/final/b.png")
    changed = np.zeros((70, 90), dtype=bool)
    changed[8:12, 20:30] = True
    Image.fromarray(changed).save(studies / "labels/final/a.png")
    parts(studies)
    assert sorted(known(studies)) == [[Box(0, 0, 50, 60)], [box]]
    assert np.array_equal(lies_there(studies, "a"), changed)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "1 changed by hand" in record.getMessage() and "1 put there by hand, complete" in record.getMessage()
    assert len(list((studies / "label_versions/final/a").iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n half of it"])
def test_a_file_that_is_broken_is_set_aside_and_the_label_put_back(labelled, content, caplog):
    from kill_workers import parts

    studies, box, part, _ = labelled
    before = (studies / "labels/final/a.png").read_bytes()
    (studies / "labels/final/a.png").write_bytes(content)
    parts(studies)
    assert (studies / "labels/final/a.png").read_bytes() == before and known(studies) == [[box]]
    assert (studies / "set_aside/final/a.png").read_bytes() == content
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


def test_a_label_that_is_deleted_by_hand_is_forgotten_and_its_versions_stay(labelled):
    from kill_workers import parts

    studies, *_ = labelled
    (studies / "labels/final/a.png").unlink()
    parts(studies)
    assert known(studies) == [] and lies_there(studies, "a") is None
    assert len(list((studies / "label_versions/final/a").iterdir())) == 1


def test_without_the_database_labels_are_known_where_they_were_and_never_everywhere(labelled):
    from kill_workers import parts

    studies, box, part, _ = labelled
    for path in studies.glob(f"{SIDECAR_NAME}*"):
        path.unlink()
    parts(studies)
    assert known(studies) == [[box]]


def test_a_mask_of_an_upload_that_an_older_version_never_finished_is_set_aside(labelled):
    from kill_workers import parts

    studies, *_ = labelled
    for path in studies.glob(f"{SIDECAR_NAME}*"):
        path.unlink()
    document = json.loads((studies / "datastore_v2.json").read_text())
    info = document["objects"]["a"]["labels"]["final"]["info"]
    del info["kwtl"]
    assert info["region"]  # what the client had sent
    (studies / "datastore_v2.json").write_text(json.dumps(document))
    parts(studies)
    assert known(studies) == [] and lies_there(studies, "a") is None
    assert (studies / "set_aside/final/a.png").is_file()


def test_a_broken_file_of_monai_labels_is_set_aside_and_made_again(labelled, caplog):
    from kill_workers import parts

    studies, box, part, _ = labelled
    (studies / "datastore_v2.json").write_text("")
    store = parts(studies)[2]
    assert store.list_images() == ["a", "b"] and known(studies) == [[box]]
    assert (studies / "set_aside/datastore_v2.json").is_file()


def test_three_former_versions_of_a_label_are_kept(labelled):
    from kill_workers import parts, png, upload

    studies, box, *_ = labelled
    store = parts(studies)[2]
    masks = [np.random.default_rng(n).random((30, 40)) < 0.4 for n in range(6)]
    for mask in masks:
        upload(store, studies.parent, "a", box, mask)
    kept = sorted((studies / "label_versions/final/a").iterdir())
    assert len(kept) == 4
    for path, mask in zip(kept, masks[2:], strict=True):
        assert np.array_equal(np.asarray(Image.open(path))[5:35, 10:50] > 0, mask)
    assert kept[-1].read_bytes() == (studies / "labels/final/a.png").read_bytes() != png(masks[-1])


# --- real -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes():
    """Processes that have loaded everything, and computed nothing, to fork from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monai_kwtl.label.tasks.train"])
    return context


def kill_within(processes, seconds: float, worker, *arguments) -> list:
    """Start a process, kill it within so many seconds of its first word, and return all that it said."""
    near, far = processes.Pipe(duplex=False)
    process = processes.Process(target=worker, args=(*arguments, far))
    process.start()
    far.close()
    words = []
    with contextlib.suppress(EOFError):
        words.append(near.recv())
        deadline = time.monotonic() + seconds
        while near.poll(max(0.0, deadline - time.monotonic())):
            words.append(near.recv())
            if time.monotonic() > deadline:
                break
        os.kill(process.pid, signal.SIGKILL)
        while True:
            words.append(near.recv())
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, "it died of itself"
    near.close()
    return words


def kill_uploads(processes, tmp_path: Path, caplog, times: int) -> None:
    import kill_workers

    studies = tmp_path / "studies"
    write_studies(studies, {"a.png": (70, 90), "b.tif": (80, 65)})
    labels, rng = Labels(kill_workers.parts(studies)[0].items()), np.random.default_rng(1)
    acknowledged = 0
    for number in range(times):
        seconds = float(rng.uniform(0, 0.3))
        words = kill_within(processes, seconds, kill_workers.uploads, studies, tmp_path, number)
        for word, *one in words:
            if word == "acknowledged":
                labels.add(*one)
                acknowledged += 1
        last = words[-1]
        check(studies, labels, tuple(last[1:]) if last[0] == "sent" else None, caplog)
    print(f"{times} kills of uploads, {acknowledged} acknowledged")
    assert acknowledged


def test_uploads_that_are_killed_lose_nothing(processes, tmp_path, caplog):
    kill_uploads(processes, tmp_path, caplog, 8)


@pytest.mark.slow  # its short twin is the one above
def test_uploads_that_are_killed_eighty_times_lose_nothing(processes, tmp_path, caplog):
    kill_uploads(processes, tmp_path, caplog, 80)


@pytest.mark.slow  # its short twins are those of simulated kills
@pytest.mark.parametrize(("what", "times"), [("scorings", 10), ("trainings", 10)])
def test_scorings_and_trainings_that_are_killed_leave_labels_and_weights(
    processes, tmp_path, weights, caplog, what, times
):
    import kill_workers

    from monai_kwtl.label.state.weights import ModelFolder

    studies = tmp_path / "studies"
    truth = write_studies(studies, {"a.png": (70, 90), "b.tif": (80, 100)})
    app_dir = write_app(tmp_path / "app", studies, weights, steps=40, window=32, step=16)
    images, sidecar, store = kill_workers.parts(studies)
    labels = Labels(images.items())
    for identity, box in (("a", Box(0, 0, 64, 64)), ("b", Box(20, 10, 64, 64))):
        part = truth[identity][box.y : box.y + 64, box.x : box.x + 64]
        kill_workers.upload(store, tmp_path, identity, box, part)
        labels.add(identity, box, part)
    rng = np.random.default_rng(2)
    for _ in range(times):
        kill_within(processes, float(rng.uniform(0, 4)), getattr(kill_workers, what), studies, app_dir, 0)
        check(studies, labels, None, caplog)
        models = ModelFolder(app_dir)
        models.tidy()
        models.network()  # whole, whichever they are
        assert not list(app_dir.rglob("*.unfinished"))


@pytest.fixture
def trainer(tmp_path, weights):
    """A trainer over labelled studies that keeps a checkpoint of every step, its store, and the folder of its app."""
    import kill_workers

    from monai_kwtl.label.settings import read_settings
    from monai_kwtl.label.state.weights import ModelFolder
    from monai_kwtl.label.tasks.train import KWTLTrain

    def make(name: str):
        studies = tmp_path / name / "studies"
        truth = write_studies(studies, {"a.png": (70, 90), "b.tif": (80, 100)})
        app_dir = write_app(tmp_path / name / "app", studies, weights, steps=4)
        path = app_dir / "configs" / "train.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint_every": 1}))
        images, sidecar, store = kill_workers.parts(studies)
        for identity, mask in truth.items():
            kill_workers.upload(store, tmp_path, identity, Box(0, 0, 64, 64), mask[:64, :64])
        models = ModelFolder(app_dir)
        return KWTLTrain(read_settings(app_dir), images, sidecar, models, [], app_dir), store, models

    return make


def test_an_interrupted_training_is_known_and_goes_on_to_the_weights_of_an_uninterrupted_one(trainer, monkeypatch):
    from fastapi import HTTPException

    from monai_kwtl.handlers.checkpoint import StageCheckpoint

    train, store, models = trainer("whole")
    train({"rescore": False, "seed": 5}, store)
    assert models.interrupted() is None and "interrupted" not in train.stats()
    with pytest.raises(HTTPException, match="nothing to resume"):
        train({"resume": True}, store)

    begun, store, others = trainer("interrupted")
    before = others.sha256()
    save = StageCheckpoint.__call__

    def dying(self, engine):
        save(self, engine)
        if engine.state.iteration == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StageCheckpoint, "__call__", dying)
        with pytest.raises(Killed):
            begun({"rescore": False, "seed": 5}, store)
    assert others.sha256() == before
    assert others.interrupted()[0].name == "0001" and begun.stats()["interrupted"] == "0001"
    first_steps = []
    with monkeypatch.context() as patch:

        def counting(self, engine):
            first_steps.append(engine.state.iteration)
            save(self, engine)

        patch.setattr(StageCheckpoint, "__call__", counting)
        begun({"resume": True}, store)
    assert first_steps[0] == 3
    assert others.interrupted() is None and "interrupted" not in begun.stats()
    assert file_sha256(others.current) == file_sha256(models.current) != before


def test_a_training_that_another_process_runs_is_not_taken_for_an_interrupted_one(trainer):
    _, _, models = trainer("running")
    folder = models.next_training({"steps": 3})
    assert models.interrupted() == (folder, {"steps": 3})
    with models.training(folder):
        assert models.interrupted() is None
    assert models.interrupted() is None

"""Full disks, quotas, folders that cannot be written: a clear line, nothing half-written, nothing of the user's lost.

A small file system in memory is a disk that is full, where this user may mount one; a limit on the size of files does
elsewhere.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_disks import FileLimit, file_limit, mounted
from stage_here import random_weights
from stage_process import Ended, Stage

from monai_kwtl.bundle.failures import install_error_hook
from monai_kwtl.cli.main import main
from monai_kwtl.errors import KWTLError
from monai_kwtl.project.selection_file import read_selection
from monai_kwtl.synthetic import make_pool
from monai_kwtl.utils.atomic import atomic_write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits as on Linux")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_pool(folder / "pool", "fluorescence", count=3, height=96, width=128, seed=3)
    random_weights(folder / "model.pt")
    return folder


def stage_options(stage: str, place: Path) -> dict:
    common = {"dataset_dir": place / "pool" / "images", "ckpt": place / "model.pt", "device": "cpu"}
    if stage == "select":
        return {**common, "pretext": "skip", "window": 32, "step": 16, "budget_windows": 5}
    if stage == "inference":
        return common
    common |= {"steps": 6, "crop": 32, "batch_size": 2, "checkpoint_every": 3}
    return {**common, "dataset_dir": place / "pool", "held_out": 0} if stage == "train" else common


def assert_one_clear_line(ended: Ended) -> None:
    """The stage failed with a line that says what is wrong and what to do; nothing else of an error is there."""
    assert ended.status == 1, (ended.status, ended.err)
    assert "Traceback" not in ended.err + ended.out, ended.err
    assert ended.error.startswith("error: "), ended.err
    assert "No space left on device" in ended.error or "File too large" in ended.error
    assert "output_dir" in ended.error and "enforce fail" not in ended.error
    assert ended.err.count("error: ") == 1


def assert_everything_is_whole(folder: Path) -> None:
    """No file in a folder is half-written, and none has a temporary name."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert "unfinished" not in path.name and not path.name.endswith(".tmp"), path
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                assert all(arrays[name].size for name in arrays.files)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        else:  # TensorBoard's logs grow as they are written
            assert "tfevents" in path.name, path
    assert not list(folder.rglob("*unfinished*"))


# bytes that hold a part of what each stage writes
TOO_SMALL = {"select": 60_000, "inference": 4096, "train": 4_300_000, "pretext": 20_000}


@pytest.mark.parametrize(("stage", "size"), TOO_SMALL.items())
def test_a_full_disk_is_a_line_and_leaves_nothing_half_written(tmp_path: Path, place: Path, stage: str, size: int):
    with mounted(tmp_path / "disk", size) as disk:
        (disk / "mine.txt").write_bytes(b"mine")
        ended = Stage(stage, tmp_path / "log", output_dir=disk / "out", **stage_options(stage, place)).wait()
        assert_one_clear_line(ended)
        assert (disk / "mine.txt").read_bytes() == b"mine"
        if (disk / "out").exists():
            assert_everything_is_whole(disk / "out")
        assert not (disk / "out" / "selection.json").exists() and not (disk / "out" / "model.pt").exists()


def test_a_selection_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, place: Path):
    options = {**stage_options("select", place), "output_dir": tmp_path / "out", "tensorboard": "false"}
    assert Stage("select", tmp_path / "log", **options).wait().status == 0
    kept = {
        path.relative_to(tmp_path): path.read_bytes()
        for part in ("selection.json", "selection.csv", "scores.csv", "report.html", "regions/*", "geojson/*")
        for path in (tmp_path / "out").glob(part)
    }
    assert len(kept) >= 10
    again = {**options, "overwrite": "true", "budget_windows": 7, "report": "false"}
    # the scores are there, scores.csv is larger
    ended = Stage("select", tmp_path / "log", FileLimit(2000), **again).wait()
    assert_one_clear_line(ended)
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert len(read_selection(tmp_path / "out")["regions"]) == 5


@pytest.mark.parametrize("stage", ["inference", "train"])
def test_a_folder_that_cannot_be_written_is_a_line(tmp_path: Path, place: Path, stage: str):
    with mounted(tmp_path / "disk", 8_000_000) as disk:
        shutil.copytree(place / "pool", disk / "pool")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        pool = disk / "pool" if stage == "train" else disk / "pool" / "images"
        options = {**stage_options(stage, place), "dataset_dir": pool}
        ended = Stage(stage, tmp_path / "log", output_dir=disk / "out", **options).wait()
        assert ended.status == 1 and ended.error.startswith("error: ") and "Traceback" not in ended.err, ended.err
        assert "Read-only file system" in ended.error and "--output_dir" in ended.error
        if stage == "inference":  # images are only read
            ended = Stage(stage, tmp_path / "log", output_dir=tmp_path / "out", **options).wait()
            assert ended.status == 0, ended.err


# ---- the command line


def test_a_model_that_does_not_fit_is_a_line_and_the_former_stays(tmp_path: Path, place: Path):
    output = tmp_path / "cell.zip"
    given = ["export-model", str(place / "model.pt"), "--output", str(output)]
    with file_limit(1_000_000), pytest.raises(KWTLError, match="cannot write .*cell.zip .File too large.*--output"):
        main(given)
    assert not list(tmp_path.iterdir())
    output.write_bytes(b"former")
    with file_limit(1_000_000), pytest.raises(KWTLError, match="cannot write"):
        main([*given, "--force"])
    assert output.read_bytes() == b"former" and list(tmp_path.iterdir()) == [output]


def test_a_model_on_a_full_disk_and_in_a_folder_that_cannot_be_written(tmp_path: Path, place: Path):
    with mounted(tmp_path / "disk", 3_000_000) as disk:
        given = ["export-model", str(place / "model.pt"), "--output", str(disk / "cell.zip")]
        with pytest.raises(KWTLError, match="cannot write .*cell.zip .No space left on device"):
            main(given)
        assert not list(disk.iterdir())
        subprocess.run(["mount", "-o", "remount,ro,size=30000000", str(disk)], check=True)
        with pytest.raises(KWTLError, match="cannot write .*cell.zip .Read-only file system"):
            main(given)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert main(given) == 0 and zipfile.ZipFile(disk / "cell.zip").testzip() is None


# ---- the parts


def test_a_file_is_atomic_write_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as unfinished:
        unfinished.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_write(path) as unfinished:
        unfinished.write_text("two")
        raise ZeroDivisionError
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KWTLError, match=r"cannot write .*a.txt \(No such file or directory\): go away"):
        with atomic_write(tmp_path / "no" / "a.txt", "go away") as unfinished:
            unfinished.write_text("three")


def test_threads_keep_their_exceptions_but_for_tensorboard(monkeypatch):
    said = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: said.append(arguments.exc_type))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    install_error_hook()
    install_error_hook()

    class _AsyncWriterThread(threading.Thread):  # as TensorBoard's is called
        pass

    def fail(error):
        raise error

    for kind, error in (
        (threading.Thread, OSError(28, "No space left on device")),
        (_AsyncWriterThread, OSError(28, "No space left on device")),
        (_AsyncWriterThread, ValueError("a bug")),
    ):
        thread = kind(target=fail, args=(error,))
        thread.start()
        thread.join()
    assert said == [OSError, ValueError]

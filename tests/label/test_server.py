"""A real server on loopback, started as a user starts it, and what a user asks of it on the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from label_studies import SETTINGS, needs_monailabel, write_studies
from PIL import Image

from monai_kwtl.cli.main import main
from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.client.client import LabelServer
from monai_kwtl.label.state.database import SIDECAR_NAME, Sidecar
from monai_kwtl.label.state.studies import image_id
from monai_kwtl.project.selection_file import read_selection

pytestmark = needs_monailabel

KWTL = [sys.executable, "-c", "from monai_kwtl.cli.main import main; raise SystemExit(main())", "label"]


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def kwtl(*arguments: object, cwd: Path) -> Ended:
    """Run ``kwtl label`` with these arguments in this process, which has loaded everything already."""
    out, err, hook = io.StringIO(), io.StringIO(), sys.excepthook
    status, before = 1, Path.cwd()
    os.chdir(cwd)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["label", *map(str, arguments)])
        except KWTLError:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.excepthook = hook
            os.chdir(before)
    return Ended(status, out.getvalue(), err.getvalue())


def pixels(path: Path) -> np.ndarray:
    """Grey values, (H, W)."""
    return read_image({"image": str(path), "page": None})[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory, weights) -> Path:
    """Where images and an app are, ready to start."""
    folder = tmp_path_factory.mktemp("server")
    write_studies(folder / "my_images")
    done = kwtl("start", "--studies", "my_images", "--model", weights, "--app", "app", "--prepare-only", cwd=folder)
    assert done.returncode == 0, done.stderr
    path = folder / "app" / "kwtl.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SETTINGS | {"score_at_start": True}))
    return folder


@pytest.fixture(scope="module")
def server(place):
    """A running server: its address and its process."""
    port = free_port()
    log = (place / "server.log").open("w")
    process = subprocess.Popen(
        [*KWTL, "start", "--studies", "my_images", "--app", "app", "--port", str(port)],
        cwd=place, stdout=log, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (place / "server.log").read_text()
            try:
                LabelServer(url, timeout=5).get("/info/")
                break
            except KWTLError:
                time.sleep(0.1)
        yield url, process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def wait_for(server: LabelServer, task: str) -> dict:
    """Wait until a task in the background is done."""
    for _ in range(600):
        try:
            state = json.loads(server.get(f"/{task}/"))
        except KWTLError:  # none yet
            state = {"status": "none"}
        if state["status"] not in ("none", "SUBMITTED", "RUNNING"):
            return state
        time.sleep(0.2)
    raise TimeoutError(task)


@pytest.mark.slow  # its short twin is test_app.py
def test_the_cycle_of_a_user_on_the_command_line(place, server):
    url, process = server
    api = LabelServer(url)
    assert wait_for(api, "scoring")["status"] == "DONE"  # by itself, in a process of its own
    assert api.post("/scoring/kwtl", run_sync="true")["executed"] == 0

    done = kwtl("next", "-n", 3, "--server", url, "--output", "what", "--client", "alice", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "ranking: fresh" in done.stdout
    regions = read_selection(place / "what")["regions"]
    pictures = sorted((place / "what" / "regions").iterdir())
    assert len(regions) == len(pictures) == 3
    assert all(pixels(path).shape == (64, 64) for path in pictures)
    assert pixels(place / "what" / "what_to_label.png").shape[1] > 500
    for region, path in zip(regions, pictures, strict=True):  # the picture shows the very pixels of the box
        image = pixels(place / "my_images" / region.image)
        box = image[region.y : region.y + region.height, region.x : region.x + region.width]
        assert np.array_equal(pixels(path), box)
    again = kwtl("next", "--server", url, "--output", "what", cwd=place)
    assert again.returncode == 1 and "already exists" in again.stderr

    (place / "masks").mkdir()
    for path in pictures[:2]:
        mask = pixels(path) < 100
        Image.fromarray(mask.astype(np.uint8) * 255).save(place / "masks" / path.name)
    done = kwtl("put", "what", "masks", "--server", url, "--client", "alice", "--confirm", "empty", "full", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "sent 2 regions" in done.stdout and pictures[2].name in done.stdout

    task = api.post("/train/kwtl", {"steps": 2})
    assert task["status"] in ("SUBMITTED", "RUNNING")
    before = json.loads(api.get("/model/info/kwtl"))["checksum"]
    assert wait_for(api, "train")["status"] == "DONE"
    assert json.loads(api.get("/model/info/kwtl"))["checksum"] != before
    assert api.post("/activelearning/kwtl", {"client_id": "bob", "mode": "region"})["status"] == "fresh"

    done = kwtl("doctor", "--server", url, "--studies", "my_images", "--app", "app", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything works" in done.stdout

    taken = kwtl("start", "--studies", "my_images", "--app", "app", "--port", url.rpartition(":")[2], cwd=place)
    assert taken.returncode == 1 and "cannot listen" in taken.stderr and "Traceback" not in taken.stderr


@pytest.mark.parametrize("requests", [3, pytest.param(25, marks=pytest.mark.slow)])  # of each, beside a training
def test_eight_annotators_at_once_lose_no_label(place, server, requests, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))
    from label_bench import annotate_together

    url, _ = server
    truth = write_studies(place / "the_same_images")
    api = LabelServer(url)
    Image.fromarray(truth["img2"]).save(place / "whole.png")
    api.put_label("img2", place / "whole.png", {})
    for path in ("/train/kwtl", "/scoring/entropy"):
        with contextlib.suppress(KWTLError):  # one of another test may still run
            api.post(path, {"steps": 20} if "train" in path else {})
    met = annotate_together(url, truth, 8, requests)
    print(f"{len(met.seconds)} calls, median {1000 * statistics.median(met.seconds):.0f} ms")
    assert met.wrong == [] and len(met.seconds) == 8 * requests and met.labelled
    known = Sidecar(place / "my_images" / SIDECAR_NAME).known()
    names = {(item["sha256"], item["page"]): image_id(item["name"]) for item in load_pool(place / "the_same_images")}
    boxes = {(names[key], tuple(box)) for key, there in known.items() for box in there}
    for identity, box in met.labelled:
        whole = (0, 0, truth[identity].shape[1], truth[identity].shape[0])
        assert (identity, box) in boxes or (identity, whole) in boxes
        x, y, width, height = box
        inside = slice(y, y + height), slice(x, x + width)
        assert np.array_equal(
            pixels(place / "my_images/labels/final" / f"{identity}.png")[inside] > 0, truth[identity][inside]
        )


def test_a_name_that_leads_here_from_another_site_is_not_answered(server):
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /info/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert b" 400 " in connection.recv(100)


def test_starting_again_keeps_what_was_trained(place):
    weights = place / "app" / "model" / "kwtl.pt"
    before = weights.read_bytes()
    settings = (place / "app" / "kwtl.json").read_bytes()
    done = kwtl("start", "--studies", "my_images", "--app", "app", "--prepare-only", cwd=place)
    assert done.returncode == 0 and weights.read_bytes() == before
    assert (place / "app" / "kwtl.json").read_bytes() == settings

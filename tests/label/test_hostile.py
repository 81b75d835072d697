"""Requests of bad intentions: no code of theirs runs, none is answered with 5xx, none leaves anything behind."""

from __future__ import annotations

import gc
import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from hostile_requests import CALLS, TRAINING, evaluated, hostile_requests
from label_studies import needs_monailabel
from PIL import Image

from monai_kwtl.inferers.memory import give_back_freed_memory
from monai_kwtl.label.state.weights import ModelFolder

pytestmark = needs_monailabel


@pytest.fixture
def labelled(client, truth, monkeypatch):
    """A client of an app with a label, so that a training gets as far as it can; nothing runs in the background."""
    import monailabel.utils.async_tasks.task as tasks

    monkeypatch.setattr(tasks, "run_background_task", lambda request, method: {"id": "1", "request": request})
    stream = io.BytesIO()
    Image.fromarray(truth["img0"].astype(np.uint8) * 255).save(stream, format="PNG")
    answer = client.put("/datastore/label?image=img0&tag=final", files={"label": ("m.png", stream.getvalue())})
    assert answer.status_code == 200, answer.text
    return client


def attack(client, requests, made: Path) -> list[str]:
    """Send requests; returns what went wrong."""
    wrong = []
    for request in requests:
        answer = client.request(request.method, request.path, **request.arguments)
        if answer.status_code >= 500:
            wrong.append(f"{answer.status_code} for {request}: {answer.text[:200]}")
        elif answer.status_code >= 400 and request.method != "HEAD" and not isinstance(answer.json()["detail"], str):
            wrong.append(f"no sentence for {request}: {answer.text[:200]}")
        if made.exists():
            made.unlink()
            wrong.append(f"code of {request} was run")
    return wrong


def check_attack(client, studies, tmp_path, part: slice) -> int:
    made = tmp_path / "made"
    requests = list(hostile_requests(made, (studies / "img1.png").read_bytes()))[part]
    stored = (studies / "labels/final/img0.png").read_bytes()
    assert attack(client, requests, made) == []
    assert (studies / "labels/final/img0.png").read_bytes() == stored
    assert ModelFolder(client.app_dir).current.is_file()
    assert [path for path in (client.app_dir / "tmp").rglob("*") if path.is_file()] == []
    assert client.get("/info/").status_code == 200
    return len(requests)


def test_a_choice_of_hostile_requests_is_refused_and_leaves_nothing(labelled, studies, tmp_path):
    assert check_attack(labelled, studies, tmp_path, slice(0, None, 40)) > 25


def memory_in_use() -> int:
    """Bytes that the process holds once the allocator has given back what is free, of whichever thread."""
    gc.collect()
    give_back_freed_memory()
    return psutil.Process().memory_info().rss


@pytest.mark.slow
def test_a_thousand_hostile_requests_are_refused_and_leave_nothing(labelled, studies, tmp_path):
    check_attack(labelled, studies, tmp_path, slice(0, None, 3))  # so that all is loaded that will be
    before = memory_in_use()
    assert check_attack(labelled, studies, tmp_path, slice(0, None)) > 1000
    assert memory_in_use() < 1.2 * before


def test_every_call_of_the_application_is_among_the_hostile_ones():
    from monai_kwtl.label.server import app

    attacked = {(call.method, call.path.replace("/kwtl", "/{}")) for call in CALLS}
    offered = set()
    for route in app.routes:
        for method in getattr(route, "methods", None) or ():
            path = "/".join("{}" if "{" in part else part for part in route.path.split("/"))
            offered.add((method, path))
    theirs = {("GET", "/"), ("GET", "/favicon.ico"), ("POST", "/reload")}  # without any parameter
    theirs |= {
        (method, path) for method in ("GET", "HEAD") for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect")
    }
    same = {("PUT", "/datastore/"), ("DELETE", "/datastore/")}  # former names of calls of /datastore/image
    assert offered - attacked <= theirs | same


@pytest.mark.parametrize("option", [name for name in TRAINING if name not in ("from_last", "rescore")])
def test_no_option_of_a_training_is_code(labelled, tmp_path, option):
    made = tmp_path / "made"
    for value in evaluated(made):
        answer = labelled.post("/train/kwtl?run_sync=true", json={"steps": 1, option: value})
        assert answer.status_code == 400 and option in answer.json()["detail"], answer.text
        assert labelled.post("/train/kwtl", json={option: value}).status_code == 400  # nor is it queued
    assert not made.exists()


def test_a_request_cannot_add_to_the_search_path_of_a_task_nor_change_its_model(labelled):
    for name in ("bundle_path", "imports", "train::trainer::max_epochs"):
        assert labelled.post("/train/kwtl", json={name: "/tmp"}).status_code == 400
    queued = labelled.post("/scoring/kwtl", json={"bundle_path": "/tmp", "method": "entropy", "gpus": ["0"]}).json()
    assert queued["request"] == {"method": "kwtl"}
    queued = labelled.post("/batch/infer/kwtl", json={"bundle_path": "/tmp", "model": "x", "images": ["/etc"]}).json()
    assert "bundle_path" not in queued["request"] and queued["request"]["model"] == "kwtl"
    assert queued["request"]["images"] == "all"


# --- files that are read ----------------------------------------------------------------------------------------------


def test_settings_that_are_code_are_refused(tmp_path):
    from monai_kwtl.errors import KWTLError
    from monai_kwtl.label.settings import LabelSettings, read_settings

    made = tmp_path / "made"
    for name in LabelSettings().__dict__:
        for value in evaluated(made):
            (tmp_path / "kwtl.json").write_text(json.dumps({name: value}))
            with pytest.raises(KWTLError, match=name):
                read_settings(tmp_path)
            (tmp_path / "kwtl.json").unlink()
            if isinstance(value, str):
                with pytest.raises(KWTLError, match=name):
                    read_settings(tmp_path, {name: value})
    assert not made.exists()


def test_notes_beside_weights_are_not_code(labelled, tmp_path):
    made = tmp_path / "made"
    models = ModelFolder(labelled.app_dir)
    for weights in (models.current, models.start):
        note = json.loads(weights.with_suffix(".json").read_text())
        for value in evaluated(made):
            weights.with_suffix(".json").write_text(json.dumps(dict.fromkeys(note, value)))
            assert labelled.get("/info/").status_code == 200
            assert labelled.post("/scoring/kwtl?run_sync=true", json={}).status_code == 200
        assert labelled.post("/train/kwtl?run_sync=true", json={"steps": 1, "from_last": True}).status_code == 200
    assert not made.exists()


# --- who may call -----------------------------------------------------------------------------------------------------

CHANGES = [
    ("POST", "/train/kwtl"), ("POST", "/scoring/kwtl"), ("POST", "/activelearning/kwtl"),
    ("POST", "/infer/kwtl?image=img0"),
    ("POST", "/reload"), ("PUT", "/datastore/label?image=img0"), ("DELETE", "/datastore/image?id=img0"),
    ("DELETE", "/train/"), ("PUT", "/datastore/image/info?image=img0"), ("GET", "/datastore/dataset"),
]  # fmt: skip
ELSEWHERE = [
    {"Origin": "http://elsewhere.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://testserver:81"}, {"Origin": "http://testserver.evil.example"},
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_pages_of_other_sites_change_nothing(labelled, studies, method, path):
    before = sorted(str(path) for path in studies.rglob("*") if "sqlite" not in path.name)
    for headers in ELSEWHERE:
        simple = {"files": {"label": ("m.png", b"x")}} if method in ("POST", "PUT") else {}
        answer = labelled.request(method, path, headers=headers, **simple)
        assert answer.status_code == 403 and "web site" in answer.json()["detail"]
        assert "access-control-allow-origin" not in answer.headers
    assert sorted(str(path) for path in studies.rglob("*") if "sqlite" not in path.name) == before
    assert labelled.options(path, headers={"Origin": "http://elsewhere.example"}).status_code == 403


def test_pages_of_the_server_and_links_to_it_are_let_in(labelled):
    own = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    assert labelled.put("/datastore/image/info?image=img0", data={"info": "{}"}, headers=own).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert labelled.get("/info/", headers=link).status_code == 200
    assert labelled.post("/train/kwtl", json={}, headers=link).status_code == 403


def behind_gate(client_address="127.0.0.1", **options):
    """A client of an application that only says yes, behind a gate."""
    from fastapi.testclient import TestClient
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from monai_kwtl.label.gate import Gate

    async def yes(request):
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Route("/", yes, methods=["GET", "POST"])])
    return TestClient(Gate(app, **options), client=(client_address, 5))


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.2", "2001:db8::1", "::ffff:10.0.0.7", "somewhere"])
def test_without_a_token_only_this_machine_is_answered(address):
    assert behind_gate(address).get("/").status_code == 403
    for local in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        assert behind_gate(local).get("/").status_code == 200
    assert behind_gate().get("/", headers={"Host": "evil.example"}).status_code == 400


def test_with_a_token_whoever_sends_it_is_answered():
    client = behind_gate("10.0.0.7", token="a" * 20)
    right = {"Authorization": f"Bearer {'a' * 20}"}
    assert client.get("/", headers=right).status_code == 200
    assert client.get("/", headers={**right, "Host": "lab.example:8000"}).status_code == 200
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {'a' * 19}",
        f"bearer {'a' * 20}",
        f"Basic {'a' * 20}",
        "a" * 20,
        "Bearer é",
    ]
    for value in wrong:
        answer = client.get("/", headers={"Authorization": value.encode("latin-1")})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert client.get(f"/?token={'a' * 20}").status_code == 401
    assert client.post("/", headers={**right, "Origin": "http://elsewhere.example"}).status_code == 403


def test_what_is_too_large_is_refused_whether_it_says_so_or_not():
    client = behind_gate(upload_mib=2)
    form = {"Content-Type": "multipart/form-data; boundary=x"}

    def stream(size):
        yield from (b"x" * 65536 for _ in range(size // 65536))

    for limit, headers in ((1 << 20, {}), (2 << 20, form)):
        for body in (b"x" * limit, stream(limit)):
            assert client.post("/", content=body, headers=headers).text == str(limit)
        for body in (b"x" * (limit + 1), stream(limit + 65536)):
            assert client.post("/", content=body, headers=headers).status_code == 413
    assert client.post("/", content=b"x", headers={"Content-Length": "1" * 40}).status_code == 413
    assert client.post("/", content=b"x", headers={"Content-Length": "one"}).status_code == 400


# --- what is left behind, and what waits ------------------------------------------------------------------------------


def test_files_of_refused_and_of_answered_calls_are_gone(labelled, studies):
    picture = (studies / "img1.png").read_bytes()
    for identity, file in (("img1", ("m.png", b"x")), ("nowhere", ("m.png", picture)), ("img1", ("m.exe", picture))):
        assert labelled.put(f"/datastore/label?image={identity}", files={"label": file}).status_code >= 400
    assert labelled.put("/datastore/image?image=img0", files={"file": ("a.png", picture)}).status_code == 409
    assert labelled.post("/infer/kwtl", files={"file": ("a.png", b"x")}).status_code == 400
    for output in ("image", "json", "all"):
        assert labelled.post(f"/infer/kwtl?output={output}", files={"file": ("a.png", picture)}).status_code == 200
    assert labelled.get("/datastore/dataset").status_code == 200
    assert [path for path in (labelled.app_dir / "tmp").rglob("*") if path.is_file()] == []


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path):
    from monai_kwtl.label.uploads import temporary_folder

    ended = next(number for number in range(300_000, 400_000) if not psutil.pid_exists(number))
    for number in (ended, os.getppid()):
        (tmp_path / "tmp" / str(number)).mkdir(parents=True)
        (tmp_path / "tmp" / str(number) / "tmpx.png").write_bytes(b"x")
    (tmp_path / "tmp" / "mine.txt").write_text("a user's")
    with temporary_folder(tmp_path) as folder:
        assert sorted(os.listdir(tmp_path / "tmp")) == sorted([str(os.getppid()), str(os.getpid()), "mine.txt"])
        (folder / "tmpy.png").write_bytes(b"x")
    assert sorted(os.listdir(tmp_path / "tmp")) == sorted([str(os.getppid()), "mine.txt"])


def test_short_calls_are_answered_while_long_ones_compute(labelled, monkeypatch):
    assert labelled.post("/scoring/kwtl?run_sync=true", json={}).status_code == 200
    from monailabel.interfaces.utils.app import app_instance

    app, goes_on = app_instance(), threading.Event()
    begun = {name: threading.Event() for name in ("scoring", "infer")}

    def slow(name):
        def work(request, datastore=None):
            begun[name].set()
            assert goes_on.wait(60)
            return {"label": None, "params": {}, "waited": name}

        return work

    answers = {}

    def call(name, path):
        answers[name] = labelled.post(path, **({"json": {}} if name != "infer" else {}))

    for name in begun:
        monkeypatch.setattr(app, name, slow(name))
    long = {
        "scoring": "/scoring/kwtl?run_sync=true",
        "second": "/scoring/kwtl?run_sync=true",
        "infer": "/infer/kwtl?image=img0&output=json",
    }
    threads = [threading.Thread(target=call, args=entry) for entry in long.items()]
    for thread in threads:
        thread.start()
    try:
        assert all(event.wait(60) for event in begun.values())
        assert labelled.get("/info/").status_code == 200
        assert labelled.get("/datastore/?output=all").status_code == 200
        assert labelled.post("/activelearning/kwtl", json={"client_id": "a"}).json()["status"] == "fresh"
        assert labelled.post("/train/kwtl", json={}).json()["id"] == "1"  # queued
        assert not answers
    finally:
        goes_on.set()
        for thread in threads:
            thread.join(60)
    assert answers["scoring"].json()["waited"] == "scoring" and answers["infer"].status_code == 200


def test_many_clients_at_once_get_different_regions_and_lose_no_label(labelled, studies, truth):
    labelled.post("/scoring/kwtl?run_sync=true", json={})
    given, wrong = [], []

    def annotate(name):
        for _ in range(3):
            answer = labelled.post("/activelearning/kwtl", json={"client_id": name, "mode": "region"})
            if answer.status_code == 404:  # nothing is left
                return
            entry = answer.json()
            x, y, width, height = entry["bbox"]
            stream = io.BytesIO()
            crop = truth[entry["id"]][y : y + height, x : x + width]
            Image.fromarray(crop.astype(np.uint8) * 255).save(stream, format="PNG")
            files, data = {"label": ("m.png", stream.getvalue())}, {"params": json.dumps({"region": entry["bbox"]})}
            query = {"image": entry["id"], "tag": "final"}
            put = labelled.put("/datastore/label", params=query, files=files, data=data)
            given.append((entry["id"], tuple(entry["bbox"])))
            if put.status_code != 200:
                wrong.append(put.text)

    threads = [threading.Thread(target=annotate, args=(f"client {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not wrong and len(given) > 6 and len(set(given)) == len(given)
    for identity, (x, y, width, height) in given:
        path = next((studies / "labels/final").glob(f"{identity}.*"))
        mask = np.asarray(Image.open(path)) > 0
        assert np.array_equal(mask[y : y + height, x : x + width], truth[identity][y : y + height, x : x + width])

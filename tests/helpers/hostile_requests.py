"""About a thousand requests that no client with good intentions makes: calls, times their parameters, times values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CALLS", "Call", "Hostile", "evaluated", "hostile_requests"]


@dataclass(frozen=True)
class Call:
    """A call with parameters that make sense; ``files`` holds the names of its files, ``forms`` its JSON fields."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    forms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: tuple[str, ...] = ()


SYNC = {"run_sync": "true"}
TRAINING = {
    "steps": 1, "learning_rate": 0.001, "crop": 32, "batch_size": 1, "held_out": 0, "seed": 0, "amp": False,
    "foreground_weight": "auto", "validate_every": 5, "from_last": False, "rescore": False,
}  # fmt: skip
SEGMENTING = {
    "page": None, "result_extension": ".png", "threshold": 0.5, "location": [0, 0], "size": [9, 9], "polygons": True,
    "save_label": False, "label_tag": "original", "image": "img0",
}  # fmt: skip
LABEL = {"region": [0, 0, 20, 10], "regions": None, "client_id": "eve", "page": None, "whole_image": None}

CALLS = [
    Call("GET", "/info/"),
    Call("GET", "/logs/", {"lines": "5", "html": "false", "text": "true", "refresh": "0"}),
    Call("GET", "/logs/gpu"),
    Call("GET", "/proxy/dicom/wado/x"),
    Call("POST", "/proxy/dicom/x", body={}),
    Call("GET", "/ohif/x"),
    Call("GET", "/session/x"),
    Call("PUT", "/session/", files=("files",)),
    Call("GET", "/model/kwtl"),
    Call("GET", "/model/info/kwtl"),
    Call("PUT", "/model/kwtl", files=("file",)),
    Call("DELETE", "/model/kwtl"),
    Call("GET", "/datastore/", {"output": "all"}),
    Call("GET", "/datastore/dataset", {"limit_cases": "1"}),
    Call("GET", "/datastore/image", {"image": "img0"}),
    Call("HEAD", "/datastore/image", {"image": "img0", "check_sum": "SHA256:0"}),
    Call("GET", "/datastore/image/info", {"image": "img0"}),
    Call("GET", "/datastore/label", {"label": "img0", "tag": "final"}),
    Call("HEAD", "/datastore/label", {"image": "img0", "tag": "final"}),
    Call("GET", "/datastore/label/info", {"label": "img0", "tag": "final"}),
    Call("PUT", "/datastore/image", {"image": "new"}, forms={"params": {"a": 1}}, files=("file",)),
    Call("PUT", "/datastore/label", {"image": "img0", "tag": "hostile"}, forms={"params": LABEL}, files=("label",)),
    Call("PUT", "/datastore/image/info", {"image": "img0"}, forms={"info": {"a": 1}}),
    Call("PUT", "/datastore/label/info", {"label": "img0", "tag": "final"}, forms={"info": {"a": 1}}),
    Call("PUT", "/datastore/updatelabelinfo", {"label": "img0", "tag": "final"}, forms={"params": {"a": 1}}),
    Call("DELETE", "/datastore/image", {"id": "nowhere"}),
    Call("DELETE", "/datastore/label", {"id": "nowhere", "tag": "final"}),
    Call("POST", "/activelearning/kwtl", body={
        "client_id": "eve", "n": 1, "image": "img0", "page": None, "patch_size": [20, 20], "mode": "region", "seed": 0,
    }),
    Call("POST", "/scoring/kwtl", SYNC, body={"max_samples": 1, "method": "kwtl"}),
    Call("POST", "/scoring/", SYNC, body={}),
    Call("GET", "/scoring/", {"all": "true", "check_if_running": "true"}),
    Call("DELETE", "/scoring/"),
    Call("POST", "/train/kwtl", SYNC, body=TRAINING),
    Call("POST", "/train/", SYNC, body={"steps": 1}),
    Call("GET", "/train/"),
    Call("DELETE", "/train/"),
    Call("POST", "/infer/kwtl", {"image": "img0", "output": "json"}, forms={"params": SEGMENTING}),
    Call("POST", "/infer/kwtl", {"output": "image"}, forms={"params": {"threshold": 0.5}}, files=("file", "label")),
    Call("POST", "/infer/wsi/kwtl", {"image": "img0", "output": "asap"}, body={
        "level": 0, "location": [0, 0], "size": [20, 20], "tile_size": [9, 9], "min_poly_area": 1, "params": {},
    }),
    Call("POST", "/infer/wsi_v2/kwtl", {"image": "img0", "output": "asap"}, forms={
        "wsi": {"location": [0, 0], "size": [20, 20], "level": 0, "params": {"threshold": 0.5}},
    }),
    Call("POST", "/batch/infer/kwtl", {"run_sync": "true", "images": "unlabeled"}, body={
        "max_workers": 1, "max_batch_size": 1, "label_tag": "original", "threshold": 0.5,
    }),
    Call("GET", "/batch/infer"),
    Call("DELETE", "/batch/infer"),
]  # fmt: skip

TEXTS = [
    "",
    " ",
    "nowhere",
    "../../etc/passwd",
    "/etc/passwd",
    "a\x00b",
    "Ж" * 300,
    "x" * 4000,
    "-1",
    "1e999",
    "10" * 40,
    "nan",
]
VALUES = [
    True, -1, 0, 10**30, 1e308, "", "text", "x" * 5000, "a\x00b", "\ud800", [], {}, [[]], [1, 2, 3, 4, 5], {"a": {}},
    [None, None], [-1, -1], [1e9, 1e9],
]  # fmt: skip
BODIES = [
    b"", b"{", b"[]", b"null", b"true", b"5", b"NaN", b'"text"', b"\xff\xfe\x00", b"[" * 50_000, b'{"a":' * 5_000,
    b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}", b'{"n": ' + b"9" * 10_000 + b"}", b'{"a": NaN}', b'{"a": "\\ud800"}',
    b'{"a": 1, "a": 2}', b" " * (2 << 20),
]  # fmt: skip
FILES = [
    ("a.png", b""), ("a.png", b"no picture"), ("a", b"x"), ("", b"x"), ("../../a.png", b"x"), ("a\x00.png", b"x"),
    (f"a.{'x' * 300}", b"x"), ("$a.png", b"x"), ("a.geojson", b"{"), ("a.geojson", b"[" * 50_000), ("a.xml", b"<a"),
    ("a.json", b"NaN"), ("a.tif", b"II*\x00" + b"\xff" * 40), ("a.nii.gz", b"\x1f\x8b"), ("a.svs", b"x"),
]  # fmt: skip


def evaluated(made: Path) -> list[Any]:
    """Values that make a file where a config parser evaluates them, or read one."""
    call = f"__import__('pathlib').Path({str(made)!r}).touch()"
    component = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(made)]}}
    return [
        f"${call}", f" ${call}", "@imports", "@network_def::spatial_dims", "%configs/train.json::steps",
        f"$import os; {call}",
        component, {**component, "_mode_": "default"}, {"_requires_": f"${call}"}, {"_disabled_": f"${call}"},
        [f"${call}"], {"a": [{"b": f"${call}"}]}, {f"${call}": 1}, {"imports": [f"${call}"]},
    ]  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    """A request as ``httpx`` takes it."""

    method: str
    path: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {str(self.arguments)[:300]}"


def _form(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def _request(
    call: Call, query: Mapping[str, str], body: Any, forms: Mapping[str, Any], files: Mapping[str, Any]
) -> Hostile:
    arguments: dict[str, Any] = {"params": dict(query)}
    if isinstance(body, bytes):
        arguments |= {"content": body, "headers": {"Content-Type": "application/json"}}
    elif body is not None:
        arguments |= {"content": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}
    if forms:
        arguments["data"] = _form(forms)
    if files:
        arguments["files"] = dict(files)
    return Hostile(call.method, call.path, arguments)


def hostile_requests(made: Path, picture: bytes) -> Iterator[Hostile]:
    """Every call as it is meant, then with one parameter after the other replaced by what it should not be.

    Args:
        made: a file that evaluated values would make.
        picture: content of an image file.
    """
    codes = evaluated(made)
    for call in CALLS:
        files = {name: ("x.png", picture) for name in call.files}
        as_meant = (call.query, call.body, call.forms, files)
        yield _request(call, *as_meant)
        for method in ("PATCH", "OPTIONS", "TRACE"):
            yield Hostile(method, call.path, {})
        texts = [*TEXTS, *(code for code in codes if isinstance(code, str))]
        for name in call.query:
            for text in texts:
                yield _request(call, {**call.query, name: text}, *as_meant[1:])
            yield _request(call, {n: v for n, v in call.query.items() if n != name}, *as_meant[1:])
        if call.path.count("/") > 1 and not call.path.endswith("/"):
            head = call.path.rpartition("/")[0]
            for text in ("nowhere", "%24x", "%40imports", "%25x", "..%2F..%2Fx", "%2e%2e", "%00", "%ff", "x" * 3000):
                yield Hostile(call.method, f"{head}/{text}", _request(call, *as_meant).arguments)
        if call.body is not None:
            for name in call.body:
                for value in [*VALUES, *codes]:
                    yield _request(call, call.query, {**call.body, name: value}, call.forms, files)
            for body in [*BODIES, *({"other": code} for code in codes)]:
                yield _request(call, call.query, body, call.forms, files)
        for form, fields in call.forms.items():
            for name in fields:
                for value in [*VALUES, *codes]:
                    yield _request(call, call.query, call.body, {**call.forms, form: {**fields, name: value}}, files)
            for body in BODIES[:-1]:
                text = body.decode("latin-1")
                yield _request(call, call.query, call.body, {**call.forms, form: text}, files)
        for name in call.files:
            for file in FILES:
                yield _request(call, call.query, call.body, call.forms, {**files, name: file})
            yield _request(call, call.query, call.body, call.forms, {n: f for n, f in files.items() if n != name})

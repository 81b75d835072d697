"""A client of a label server: what to label next as files, and the labels back."""

from __future__ import annotations

import json
import logging
import urllib.parse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import requests

from monai_kwtl.data.folders import base_name
from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pool import scan_images
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.state.labels import MASK_SUFFIXES
from monai_kwtl.label.state.outlines import OUTLINE_SUFFIXES
from monai_kwtl.label.state.studies import image_id
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.selection_file import read_selection
from monai_kwtl.project.selection_folder import write_selection
from monai_kwtl.report import overview_picture
from monai_kwtl.selection.regions import Region, cost_of

__all__ = ["LabelServer", "next_regions", "put_labels"]

logger = logging.getLogger("monai_kwtl")


class LabelServer:
    """A running server.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        timeout: seconds to wait for an answer; trainings take long.
        token: of the server, where it wants one.
    """

    def __init__(self, url: str, timeout: float = 3600.0, token: str | None = None) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise KWTLError(f"the address of a server is like http://127.0.0.1:8000, got {url!r}.")
        self.url, self.timeout, self.token = url.rstrip("/"), timeout, token

    def _signed(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def call(self, method: str, path: str, query: Mapping[str, Any] | None = None, **content: Any) -> bytes:
        """Send one request; return the body of the answer.

        Args:
            method: of HTTP.
            path: after the address of the server.
            query: after the question mark.
            content: ``json``, ``data`` and ``files``, as :func:`requests.request` has them.

        Raises:
            KWTLError: when the server does not answer, or refuses; with its sentence.
        """
        url, signed = f"{self.url}{path}", self._signed  # always signed by us: without, requests looks into .netrc
        try:
            answer = requests.request(method, url, params=query, auth=signed, timeout=self.timeout, **content)
        except requests.RequestException as error:
            raise KWTLError(
                f"no server answers at {self.url} ({type(error).__name__}): start one with 'kwtl label start'."
            ) from error
        if not answer.ok:
            try:
                text = str(answer.json()["detail"])
            except (ValueError, KeyError, TypeError):
                text = answer.text[:200] or answer.reason
            raise KWTLError(f"the server answered {answer.status_code}: {text}")
        return answer.content

    def post(self, path: str, params: Mapping[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """Send JSON by POST, return the JSON of the answer."""
        return json.loads(self.call("POST", path, query, json=dict(params or {})))

    def get(self, path: str, **query: Any) -> bytes:
        """Return the JSON of the answer to a GET."""
        return self.call("GET", path, query)

    def put_label(self, identity: str, path: Path, params: Mapping[str, Any], tag: str = "final") -> dict[str, Any]:
        """Send a label of an image."""
        query, fields = {"image": identity, "tag": tag}, {"params": json.dumps(dict(params))}
        files = {"label": (f"label{path.suffix}", path.read_bytes())}
        return json.loads(self.call("PUT", "/datastore/label", query, data=fields, files=files))

    def infer(self, identity: str, params: Mapping[str, Any] | None = None, model: str = "kwtl") -> bytes:
        """Get the predicted mask of an image, as a file."""
        query, fields = {"image": identity, "output": "image"}, {"params": json.dumps(dict(params or {}))}
        return self.call("POST", f"/infer/{model}", query, data=fields)

    def image_names(self) -> dict[str, str]:
        """Return {id: file name} of all images."""
        objects = json.loads(self.get("/datastore/", output="all"))["objects"]
        return {identity: identity + entry["image"]["ext"] for identity, entry in objects.items()}


def next_regions(
    server: LabelServer, count: int, strategy: str, client: str, folder: Path
) -> tuple[list[Region], dict[str, Any]]:
    """Ask what to label next, and write a picture of each region and all that annotators need.

    Args:
        server: to ask.
        count: of regions.
        strategy: ``kwtl``, ``random``, ``entropy`` or ``mc_dropout``.
        client: whose regions these will be.
        folder: for the files; must not hold a selection.

    Returns:
        The regions, and the server's answer.

    Raises:
        KWTLError: when the server refuses, or the folder cannot be written.
    """
    params = {"client_id": client, "n": count, "mode": "region"}
    answer = server.post(f"/activelearning/{urllib.parse.quote(strategy, safe='')}", params)
    names = server.image_names()
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    items = []
    for identity in dict.fromkeys(entry["id"] for entry in answer["batch"]):
        path = images / Path(names[identity]).name
        path.write_bytes(server.get("/datastore/image", image=identity))
        items += scan_images([{"image": str(path), "name": path.name, "page": None}])
    by_key = {(image_id(item["name"]), item["page"]): item for item in items}
    regions = []
    for rank, entry in enumerate(answer["batch"], start=1):
        item = by_key[entry["id"], entry.get("page")]
        score = float(entry["score"] or 0.0)
        regions.append(Region(rank, item["name"], item["page"], item["sha256"], *entry["bbox"], score))
    cost, read = cost_of(regions).as_dict(), partial(read_image)
    rows = [(*r.key, r.score) for r in regions]
    overview_picture(folder / "what_to_label.png", regions=regions, items=items, read=read, cost=cost)
    made = {"strategy": strategy, "status": answer["status"], "client": client}
    budget = {"windows": count}
    write_selection(
        folder, regions, budget=budget, cost=cost, created_with=made, items=items, windows=rows, read=read
    )  # fmt: skip
    return regions, answer


def put_labels(
    server: LabelServer, selection: Path, labels: Path, client: str, confirm: Sequence[str] = ()
) -> tuple[int, list[str]]:
    """Send the labels of regions that :func:`next_regions` gave.

    Taken are masks named like the picture of a region; files named like an image, masks or outlines of all its regions;
    and COCO files, with those of any number of images.

    Args:
        server: to send to.
        selection: folder with ``selection.json``.
        labels: folder of masks and outlines.
        client: whose regions they are.
        confirm: what is right about masks that look like none, see :data:`monai_kwtl.label.state.labels.CONFIRM`.

    Returns:
        How many regions were sent, and the names of those of which there is no label yet.

    Raises:
        KWTLError: when a file cannot be used, or there is none.
    """
    regions: list[Region] = list(read_selection(selection)["regions"])
    if not labels.is_dir():
        raise KWTLError(f"{labels} is no folder: give the one that holds the masks.")
    files = {path.name: path for path in sorted(labels.iterdir()) if path.is_file() and not path.name.startswith(".")}
    by_stem = {base_name(name): path for name, path in files.items() if path.suffix.lower() in MASK_SUFFIXES}
    outlines = {base_name(n): path for n, path in files.items() if path.suffix.lower() in OUTLINE_SUFFIXES}
    left: dict[str, list[tuple[str, Region]]] = {}
    said: dict[str, Any] = {"client_id": client, **({"confirm": list(confirm)} if confirm else {})}
    sent = 0
    for name, region in zip(region_file_names(regions), regions, strict=True):
        page = {} if region.page is None else {"page": region.page}
        box = list(region.box)
        if base_name(name) in by_stem:
            params = {"region": box, **said, **page}
            server.put_label(image_id(region.image), by_stem[base_name(name)], params)
            sent += 1
        else:
            left.setdefault(region.image, []).append((name, region))
    coco = {base_name(str(n)): path for path in outlines.values() for n in _coco_names(path)}
    missing: list[str] = []
    for image, members in left.items():
        stem = base_name(image)
        path = by_stem.get(stem) or outlines.get(stem) or coco.get(stem)
        pages = {region.page for _, region in members}
        if path is None:
            missing += [name for name, _ in members]
            continue
        for page in pages:
            mine = [r for _, r in members if r.page == page]
            params = {"regions": [list(r.box) for r in mine], **said}
            server.put_label(image_id(image), path, params if page is None else {**params, "page": page})
            sent += len(mine)
    if not sent:
        raise KWTLError(f"{labels} has no mask of these regions: name masks like the pictures, such as {missing[0]}.")
    return sent, missing


def _coco_names(path: Path) -> list[str]:
    if path.suffix.lower() != ".json":
        return []
    try:
        return [image["file_name"] for image in json.loads(path.read_text(encoding="utf-8-sig"))["images"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []

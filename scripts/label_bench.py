"""Measures the label server: start, memory, and the time of score, next and infer, beside MONAI Label's own scoring.

With ``--annotators`` it lets that many label at once instead, beside a training and a scoring.

    .venv-label/bin/python scripts/label_bench.py ssTEM --images 20
    .venv-label/bin/python scripts/label_bench.py ssTEM --images 12 --annotators 8 --requests 200
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from label_client import ROOT, data_set, running_server, set_settings
from PIL import Image

from monai_kwtl.bundle.failures import install_error_hook
from monai_kwtl.data.folders import find_images
from monai_kwtl.data.loading import read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.client.client import LabelServer
from monai_kwtl.label.state.studies import image_id
from monai_kwtl.utils.text import format_table


def memory(process: int) -> float:
    """Return the resident memory of a process and its children, in MiB."""
    root = psutil.Process(process)
    return sum(one.memory_info().rss for one in [root, *root.children(recursive=True)]) / 2**20


def seconds(call, times: int = 1) -> float:
    """Return the median seconds of a call."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


class Together(NamedTuple):
    """What several annotators met: seconds of each call, what went wrong, and what was acknowledged."""

    seconds: list[float]
    wrong: list[str]
    labelled: list[tuple[str, tuple[int, int, int, int]]]


def annotate_together(url: str, truth: Mapping[str, np.ndarray], annotators: int, requests: int) -> Together:
    """Let several annotators label at once, each by turns asking for a region, its segmentation, and sending its mask.

    Args:
        url: of the server.
        truth: {id: true mask} of its images.
        annotators: how many.
        requests: of each.
    """
    met = Together([], [], [])

    def one(name: str) -> None:
        server, rng = LabelServer(url, timeout=600), np.random.default_rng(list(name.encode()))
        with tempfile.TemporaryDirectory() as folder:
            for number in range(requests):
                call = ("next", "infer", "put")[number % 3]
                begun = time.perf_counter()
                try:
                    if call == "next":
                        # where nothing is left to give out, some region is labelled again
                        identity = sorted(truth)[rng.integers(len(truth))]
                        height, width = (length // 2 for length in truth[identity].shape)
                        entry: Any = {"id": identity, "bbox": [*map(int, rng.integers((width, height))), width, height]}
                        entry = server.post("/activelearning/random", {"client_id": name, "mode": "region"})
                    elif call == "infer":
                        server.infer(entry["id"])
                    else:
                        x, y, width, height = entry["bbox"]
                        path = Path(folder) / "mask.png"
                        Image.fromarray(truth[entry["id"]][y : y + height, x : x + width]).save(path)
                        params = {"region": entry["bbox"], "client_id": name, "confirm": ["empty", "full"]}
                        server.put_label(entry["id"], path, params)
                        met.labelled.append((entry["id"], (x, y, width, height)))
                except KWTLError as error:
                    if "answered 404" not in str(error):
                        met.wrong.append(f"{call}: {error}")
                met.seconds.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=one, args=(f"annotator {number}",)) for number in range(annotators)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return met


def measure_together(server: LabelServer, items: list[dict[str, Any]], annotators: int, requests: int) -> None:
    """Let annotators label beside a training and a scoring, and print how it went."""
    truth = {image_id(item["name"]): read_label(item)[0] > 0 for item in items}
    first = next(iter(truth))
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(truth[first]).save(Path(folder) / "mask.png")
        server.put_label(first, Path(folder) / "mask.png", {"confirm": ["empty", "full"]})
    server.post("/train/kwtl", {"steps": 200})
    server.post("/scoring/kwtl")
    met = annotate_together(server.url, truth, annotators, requests)
    rows = [
        ("calls", str(len(met.seconds))),
        ("median, ms", f"{1000 * statistics.median(met.seconds):.0f}"),
        ("longest, s", f"{max(met.seconds):.1f}"),
        ("labels acknowledged", str(len(met.labelled))),
        ("calls that went wrong", str(len(met.wrong))),
    ]
    print("\n".join(format_table(("", ""), rows)[1:]))
    print("\n".join(met.wrong[:10]))


def main() -> None:
    """Measure, and print the table."""
    install_error_hook()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="name of a data set below KWTL_DATA, such as ssTEM, or a folder of images")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=10, help="calls of next and infer; their median is reported")
    parser.add_argument("--model", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--annotators", type=int, default=0, help="let so many label at once instead")
    parser.add_argument("--requests", type=int, default=200, help="of each of them")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    data = data_set(options.target)
    output = (options.output or ROOT / "output" / "label_bench" / data.name).resolve()
    shutil.rmtree(output / "images", ignore_errors=True)
    shutil.rmtree(output / "app", ignore_errors=True)
    (output / "images").mkdir(parents=True)
    items = find_images(data)[: options.images]
    for item in items:
        shutil.copyfile(item["image"], output / "images" / Path(item["image"]).name)
    set_settings(output / "app", window=options.window, score_at_start=False, epistemic=True)
    rows: list[tuple[str, str]] = []
    arguments = ["--model", str(options.model), "--pretext", "skip"]
    log = output / "server.log"
    with running_server(output / "images", output / "app", log, arguments) as (_, _, first):
        rows.append(("first start, with making the app's weights, s", f"{first:.1f}"))
    if options.annotators:
        with running_server(output / "images", output / "app", log, []) as (server, _, _):
            measure_together(server, items, options.annotators, options.requests)
        return
    with running_server(output / "images", output / "app", log, []) as (server, process, start):
        rows.append(("start, s", f"{start:.1f}"))
        rows.append(("memory after the start, MiB", f"{memory(process.pid):.0f}"))
        post = lambda path, params=None, **query: server.post(path, params, **query)  # noqa: E731
        identity = image_id(items[0]["name"])
        for method in ("kwtl", "epistemic"):
            rows.append((f"score {len(items)} images by {method}, s",
                         f"{seconds(lambda m=method: post(f'/scoring/{m}', run_sync='true')):.1f}"))  # fmt: skip
            rows.append((f"score again by {method}, s",
                         f"{seconds(lambda m=method: post(f'/scoring/{m}', run_sync='true')):.2f}"))  # fmt: skip
        for name, method, params in (
            ("next image by kwtl", "kwtl", {}),
            ("next image by epistemic", "epistemic", {}),
            ("next 8 regions by kwtl", "kwtl", {"mode": "region", "n": 8}),
            ("next patch by kwtl", "kwtl", {"image": identity}),
        ):
            # all of one client, who gets its own again where everything is given out
            call = lambda m=method, p=params: post(f"/activelearning/{m}", {"client_id": "bench", **p})  # noqa: E731
            rows.append((f"{name}, ms", f"{1000 * seconds(call, options.repeat):.0f}"))
        rows.append(("infer one image, ms", f"{1000 * seconds(lambda: server.infer(identity), options.repeat):.0f}"))
        rows.append(("memory at the end, MiB", f"{memory(process.pid):.0f}"))
    print("\n".join(format_table(("", ""), rows)[1:]))
    (output / "bench.json").write_text(json.dumps(dict(rows), indent=2) + "\n")
    print(f"written to {output / 'bench.json'}")


if __name__ == "__main__":
    main()

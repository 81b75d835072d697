"""Measures the label server: start, memory, and the time of score, next and infer, beside MONAI Label's own scoring.

.venv-label/bin/python scripts/label_bench.py ssTEM --images 20
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import psutil
from label_client import ROOT, data_set, running_server, set_settings

from monai_kwtl.bundle import one_line_errors
from monai_kwtl.data import find_images
from monai_kwtl.label.studies import image_id
from monai_kwtl.summary import format_table


def memory(process: int) -> float:
    """Resident memory of a process and its children, in MiB."""
    root = psutil.Process(process)
    return sum(one.memory_info().rss for one in [root, *root.children(recursive=True)]) / 2**20


def seconds(call, times: int = 1) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def main() -> None:
    """Measure, and print the table."""
    one_line_errors()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="name of a data set below KWTL_DATA, such as ssTEM, or a folder of images")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=10, help="calls of next and infer; their median is reported")
    parser.add_argument("--model", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    parser.add_argument("--window", type=int, default=256)
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

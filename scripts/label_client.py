"""Plays an annotator against the label server, with true masks as oracle: IoU by round, for kwtl and other strategies.

Each round asks for regions over REST, takes the server's own segmentation of each image, corrects it inside the region
to the true mask, sends that, lets the server train and score again, and measures the segmentation of held-out images.

    .venv-label/bin/python scripts/label_client.py ssTEM --rounds 5 --regions 8 --strategies kwtl random
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from monai_kwtl.bundle.failures import install_error_hook
from monai_kwtl.bundle.paths import find_bundle
from monai_kwtl.data.loading import read_label
from monai_kwtl.data.pool import load_pool
from monai_kwtl.data.splits import split_pool_test
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.client.app_folder import make_app
from monai_kwtl.label.client.client import LabelServer
from monai_kwtl.label.state.studies import image_id
from monai_kwtl.metrics import overlap, summarize
from monai_kwtl.utils.sampling import evenly_spaced
from monai_kwtl.utils.text import format_table

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("strategy", "round", "regions", "pixels", "foreground", "mean_iou", "ask_s", "train_s")


def data_set(target: str) -> Path:
    """Return a folder, or else the data set of that name below ``KWTL_DATA``."""
    if Path(target).is_dir():
        return Path(target)
    return Path(os.environ.get("KWTL_DATA", ROOT.parent / "shared" / "data")) / target


def free_port() -> int:
    """Return a port of the loopback address that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_server(studies: Path, app: Path, log: Path, arguments: list[str], wait: float = 600.0):
    """Start a server with ``kwtl label start``; gives its client, its process and the seconds until it answered."""
    port = free_port()
    command = [sys.executable, "-c", "from monai_kwtl.cli.main import main; raise SystemExit(main())", "label", "start"]
    command += ["--studies", str(studies), "--app", str(app), "--port", str(port), *arguments]
    begun = time.perf_counter()
    with log.open("a") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        try:
            server = LabelServer(f"http://127.0.0.1:{port}")
            probe = LabelServer(server.url, timeout=5)
            while True:
                if process.poll() is not None or time.perf_counter() - begun > wait:
                    raise KWTLError(f"the server did not start; {log} says why.")
                try:
                    probe.get("/info/")
                    break
                except KWTLError:
                    time.sleep(0.05)
            yield server, process, time.perf_counter() - begun
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def set_settings(app: Path, **settings: object) -> None:
    """Make an app, and change its settings."""
    make_app(app, find_bundle(str(ROOT / "bundles" / "kwtl")))
    path = app / "kwtl.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings, indent=4) + "\n")


def as_mask(content: bytes) -> np.ndarray:
    """Decode a PNG to bool (H, W)."""
    return np.asarray(Image.open(io.BytesIO(content))) > 0


def measure(server: LabelServer, test: list[dict]) -> float:
    """Return the mean IoU of held-out images, sent with the request, so that the server never sees them otherwise."""
    overlaps = []
    for item in test:
        files = {"file": (f"held_out{Path(item['image']).suffix}", Path(item["image"]).read_bytes())}
        predicted = as_mask(server.call("POST", "/infer/kwtl", {"output": "image"}, files=files))
        overlaps.append(overlap(predicted, read_label(item)[0] > 0))
    return summarize(overlaps)["mean_iou"]


def annotate(server: LabelServer, batch: list[dict], truth: dict[str, np.ndarray], client: str) -> tuple[int, int]:
    """Correct the segmentation inside each region and send it; returns the pixels, and those of them foreground."""
    pixels = foreground = 0
    for entry in batch:
        x, y, width, height = entry["bbox"]
        inside = slice(y, y + height), slice(x, x + width)
        mask = as_mask(server.infer(entry["id"]))
        mask[inside] = truth[entry["id"]][inside]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{entry['id']}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
            server.put_label(
                entry["id"], path, {"region": entry["bbox"], "client_id": client, "confirm": ["empty", "full"]}
            )
        pixels += width * height
        foreground += int(truth[entry["id"]][inside].sum())
    return pixels, foreground


def play(strategy: str, options: argparse.Namespace, pool: list[dict], test: list[dict], output: Path) -> list[dict]:
    """Run all rounds of one strategy, on a server and a copy of the images of its own."""
    studies, app = output / strategy / "images", output / strategy / "app"
    shutil.rmtree(output / strategy, ignore_errors=True)
    studies.mkdir(parents=True)
    for item in pool:
        shutil.copyfile(item["image"], studies / Path(item["image"]).name)
    truth = {image_id(item["name"]): read_label(item)[0] > 0 for item in pool}
    set_settings(
        app, window=options.window, step=options.step, steps=options.steps, crop=options.crop, seed=options.seed,
        batch_size=options.batch_size, score_at_start=False,
    )  # fmt: skip
    arguments = ["--pretext", options.pretext]
    if options.model:
        arguments += ["--model", str(options.model)]
    rows, regions, pixels, foreground = [], 0, 0, 0
    with running_server(studies, app, output / f"{strategy}.log", arguments) as (server, _, _):
        scored = strategy if strategy != "random" else "kwtl"
        iou = measure(server, test)
        rows.append(dict(zip(COLUMNS, (strategy, 0, 0, 0, 0, iou, 0.0, 0.0), strict=True)))
        for number in range(1, options.rounds + 1):
            if strategy != "random":
                server.post(f"/scoring/{scored}", run_sync="true")
            begun = time.perf_counter()
            # another seed each round, so that random choice does not follow one permutation
            request = {"client_id": "oracle", "n": options.regions, "mode": "region", "seed": options.seed + number}
            answer = server.post(f"/activelearning/{strategy}", request)
            if answer["status"] != "fresh":
                raise KWTLError(f"round {number} of {strategy} is ranked by {answer['status']} scores.")
            asked = time.perf_counter() - begun
            new = annotate(server, answer["batch"], truth, "oracle")
            regions, pixels, foreground = regions + len(answer["batch"]), pixels + new[0], foreground + new[1]
            begun = time.perf_counter()
            server.post("/train/kwtl", {"steps": options.steps, "rescore": strategy != "random"}, run_sync="true")
            trained = time.perf_counter() - begun
            iou = measure(server, test)
            values = (strategy, number, regions, pixels, foreground, iou, asked, trained)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            print(f"{strategy}, round {number}: {regions} regions, IoU {100 * iou:.1f} %", flush=True)
    return rows


def write_results(rows: list[dict], output: Path, title: str) -> None:
    """Write the table as CSV, the curves as PNG, one beside the other."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with (output / "rounds.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for strategy in strategies:
        mine = [row for row in rows if row["strategy"] == strategy]
        iou = [100 * row["mean_iou"] for row in mine]
        left.plot([row["round"] for row in mine], iou, marker="o", label=strategy)
        right.plot([row["foreground"] / 1000 for row in mine], iou, marker="o", label=strategy)
    left.set(xlabel="round", ylabel="IoU of held-out images, mean, %", title=title)
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="cell pixels outlined, thousands", title="by what was outlined")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output / "rounds.png", dpi=150)
    plt.close(figure)


def main() -> None:
    """Run the rounds of every strategy and say where the curve is."""
    install_error_hook()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="name of a data set below KWTL_DATA, such as ssTEM, or a folder with labels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--regions", type=int, default=8, help="of each round")
    parser.add_argument("--strategies", nargs="+", default=["kwtl", "random"])
    parser.add_argument("--images", type=int, default=None, help="use so many images at most, evenly spread")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--step", type=int, default=30)
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--model", type=Path, default=None, help="weights to begin with; default: the bundle's own")
    parser.add_argument(
        "--pretext", default="auto", help="as in kwtl label start; a path saves tuning for each strategy"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    data = data_set(options.target)
    output = (options.output or ROOT / "output" / "label_client" / data.name).resolve()
    output.mkdir(parents=True, exist_ok=True)
    items = [item for item in load_pool(data) if item.get("label")]
    if options.images:
        items = evenly_spaced(items, options.images)
    pool, test = split_pool_test(items, test_fraction=0.2, seed=options.seed)
    rows = []
    for strategy in options.strategies:
        rows += play(strategy, options, pool, test, output)
        write_results(rows, output, f"{data.name}: {len(pool)} images to label, {len(test)} held out")
    table = [
        (r["strategy"], str(r["round"]), str(r["regions"]), str(r["pixels"]), f"{100 * r['mean_iou']:.1f}")
        for r in rows
    ]
    print("\n".join(format_table(("strategy", "round", "regions", "pixels", "mean IoU %"), table)))
    print(f"curves: {output / 'rounds.png'}, {output / 'rounds.csv'}")


if __name__ == "__main__":
    main()

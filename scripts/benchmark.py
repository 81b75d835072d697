#!/usr/bin/env python
"""Speed and agreement, measured side by side in one run: ``scripts/benchmark.py select`` and others."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import spearmanr

from monai_kwtl.adaptation import BatchNormAdapter
from monai_kwtl.bundle import load_weights, one_line_errors, versions
from monai_kwtl.data import load_pool, read_image
from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers import TiledInferer
from monai_kwtl.networks import FCRN
from monai_kwtl.normalization import fold_batch_norm
from monai_kwtl.scoring import ScoreMapInferer
from monai_kwtl.summary import format_seconds, format_table
from monai_kwtl.window_inferer import WindowScoreInferer
from monai_kwtl.windows import WindowGrid

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return {"processor": name, "cores": os.cpu_count() or 1, "threads": torch.get_num_threads(), **versions()}


def multiplication_rate(seconds: float = 1.0) -> float:
    """Float32 matrix multiplication rate of this machine, in floating point operations per second."""
    size = 1024
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    best, begun = np.inf, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def operations(network: torch.nn.Module, height: int, width: int) -> int:
    """Floating point operations of the convolutions of one forward pass, a multiplication and an addition as two."""
    total = 0

    def count(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        weights = module.weight.numel()
        transposed = isinstance(module, torch.nn.ConvTranspose2d)
        places = inputs[0][0, 0].numel() if transposed else output[0, 0].numel()
        total += 2 * weights * places * output.shape[0]

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            network(torch.zeros(1, 1, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def timed(work: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Median wall time over repeats, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def window_loop(image: np.ndarray, grid: WindowGrid, network: torch.nn.Module, psi: float, batch: int) -> np.ndarray:
    """Score window by window with Pillow's views: what the dense path replaces. Shares no code with the package."""
    height, width = grid.size
    scores = []
    places = [(int(y), int(x)) for y, x in zip(grid.y, grid.x, strict=True)]
    views = (
        lambda crop: crop,
        ImageOps.autocontrast,
        lambda crop: ImageEnhance.Brightness(crop).enhance(psi),
        lambda crop: ImageEnhance.Sharpness(crop).enhance(psi),
    )
    with torch.no_grad():
        for start in range(0, len(places), batch):
            crops = [Image.fromarray(image[0, y : y + height, x : x + width]) for y, x in places[start : start + batch]]
            logits = []
            for view in views:
                pixels = np.stack([np.asarray(view(crop), dtype=np.float32) for crop in crops])
                logits.append(network(torch.from_numpy((pixels / 255.0 - 0.5) / 0.5)[:, None]))
            target = torch.sigmoid(logits[0])
            maps = [
                torch.nn.functional.binary_cross_entropy_with_logits(seen, target, reduction="none")
                for seen in logits[1:]
            ]
            scores.append(torch.stack(maps).sum(0).double().mean(dim=(1, 2, 3)).numpy())
    return np.concatenate(scores)


def benchmark_select(options: argparse.Namespace) -> dict:
    """Dense selection against the per-window loop: same network, images, cores."""
    items = load_pool(options.dataset_dir)[: options.images]
    network = load_weights(FCRN(), options.ckpt).eval()
    BatchNormAdapter(network, items).ready()
    folded = fold_batch_norm(network).to(memory_format=torch.channels_last)
    scorer = ScoreMapInferer(psi=options.psi, inferer=TiledInferer())
    dense = WindowScoreInferer(scorer, window=options.window, step=options.step)
    images = [read_image(item) for item in items]
    grids = [WindowGrid(*image.shape[1:], options.window, options.step) for image in images]

    def run_dense() -> list[np.ndarray]:
        return [dense(torch.from_numpy(image)[None], folded)["window_scores"] for image in images]

    run_dense()  # the first call pays for oneDNN's preparations
    dense_time, dense_scores = timed(run_dense, options.repeats)
    loop_time, loop_scores = timed(
        lambda: [window_loop(i, g, network, options.psi, 16) for i, g in zip(images, grids, strict=True)],
        1 if options.loop_once else options.repeats,
    )
    ours, theirs = np.concatenate(dense_scores), np.concatenate(loop_scores)
    top = min(100, len(ours))
    shared = len(set(np.argsort(-ours)[:top]) & set(np.argsort(-theirs)[:top]))
    floor = sum(4 * operations(network, *image.shape[1:]) for image in images) / multiplication_rate()
    return {
        "images": len(images),
        "windows": len(ours),
        "window loop (s)": round(loop_time, 2),
        "dense (s)": round(dense_time, 3),
        "ratio": round(loop_time / dense_time, 1),
        "rank correlation": round(float(spearmanr(ours, theirs).statistic), 5),
        "rank correlation, worst image": round(
            min(float(spearmanr(a, b).statistic) for a, b in zip(dense_scores, loop_scores, strict=True)), 5
        ),
        f"top {top} shared": shared,
        "arithmetic floor (s)": round(floor, 3),
        "dense over floor": round(dense_time / floor, 2),
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    data = Path(os.environ.get("KWTL_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch; default: as torch chooses")
    parser.add_argument("--output", type=Path, default=None, help="also write the figures to this JSON file")
    commands = parser.add_subparsers(dest="command", required=True)
    select = commands.add_parser("select", help="dense scores against the per-window loop")
    select.add_argument("--dataset_dir", type=Path, default=data / "ssTEM")
    select.add_argument("--images", type=int, default=1)
    select.add_argument("--window", type=int, default=256)
    select.add_argument("--step", type=int, default=30)
    select.add_argument("--psi", type=float, default=1.3)
    select.add_argument("--ckpt", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    select.add_argument("--repeats", type=int, default=3)
    select.add_argument("--loop_once", action="store_true", help="time the slow loop only once")
    select.set_defaults(work=benchmark_select)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run one benchmark and print its table."""
    one_line_errors()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.threads is not None:
        if options.threads < 1:
            raise KWTLError(f"--threads must be at least 1, got {options.threads}.")
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    about = machine()
    figures = options.work(options)
    print("\n".join(format_table(("", ""), [(k, str(v)) for k, v in {**about, **figures}.items()])))
    print(f"measured in {format_seconds(time.perf_counter() - start)}")
    if options.output is not None:
        options.output.write_text(json.dumps({"machine": about, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Speed and agreement, measured side by side (``select``, ``train``), and the paper's ``protocol``."""

from __future__ import annotations

# ruff: noqa: E402 - it must be said before PyTorch is imported how its threads wait
from monai_kwtl.threads import wait_asleep

wait_asleep()

import argparse
import dataclasses
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from benchmark_cost import add_command as add_cost
from benchmark_stages import add_commands
from ignite.engine import Events
from monai.bundle import ConfigParser
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import spearmanr

from monai_kwtl.adaptation import BatchNormAdapter
from monai_kwtl.allocator import keep_freed_memory
from monai_kwtl.benchmark import diagnosis, page
from monai_kwtl.benchmark.config import Config, read_config
from monai_kwtl.benchmark.run import run_protocol
from monai_kwtl.bundle import load_weights, one_line_errors, versions
from monai_kwtl.data import load_pool, read_image
from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers import TiledInferer, native_bfloat16
from monai_kwtl.networks import FCRN
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


def multiplication_rate(dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> float:
    """Matrix multiplication rate of this machine, in floating point operations per second."""
    size = 2048
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    a @ b
    best, begun = np.inf, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def convolution_rate(dtype: torch.dtype = torch.float32, seconds: float = 1.0) -> float:
    """Rate of 3x3 convolutions of 128 channels, channels last, in floating point operations per second."""
    layer = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.randn(1, 128, 256, 256).to(dtype=dtype, memory_format=torch.channels_last)
    best, begun = np.inf, time.perf_counter()
    with torch.inference_mode():
        layer(x)
        while time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - start)
    return 2.0 * layer.weight.numel() * 256 * 256 / best


def floor_dtype() -> torch.dtype:
    """The arithmetic of this machine's floor: bfloat16 where the processor has it."""
    return torch.bfloat16 if native_bfloat16("cpu") else torch.float32


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
    items = load_pool(options.dataset_dir)
    items = items[:: max(1, len(items) // options.images)][: options.images]
    network = load_weights(FCRN(), options.ckpt).eval()
    adapter = BatchNormAdapter(network, items)
    fitting, folded = timed(adapter.ready, 1)
    images = [read_image(item) for item in items]
    grids = [WindowGrid(*image.shape[1:], options.window, options.step) for image in images]
    amp = native_bfloat16("cpu")
    figures = {
        "images": len(images),
        "windows": sum(map(len, grids)),
        "fitting the statistics (s)": round(fitting, 2),
    }
    loop_time, loop_scores = timed(
        lambda: [window_loop(i, g, network, options.psi, 16) for i, g in zip(images, grids, strict=True)],
        1 if options.loop_once else options.repeats,
    )
    figures["window loop (s)"] = round(loop_time, 2)
    floor = sum(4 * operations(network, *image.shape[1:]) for image in images) / convolution_rate(floor_dtype())
    figures[f"arithmetic floor, {str(floor_dtype()).removeprefix('torch.')} (s)"] = round(floor, 3)
    for contrast in options.contrast:
        scorer = ScoreMapInferer(psi=options.psi, inferer=TiledInferer(amp=amp))
        dense = WindowScoreInferer(scorer, window=options.window, step=options.step, contrast=contrast)

        def run_dense(dense: WindowScoreInferer = dense) -> list[np.ndarray]:
            return [dense(torch.from_numpy(image)[None], folded)["window_scores"] for image in images]

        run_dense()  # the first call pays for oneDNN's preparations
        seconds, scores = timed(run_dense, options.repeats)
        ours, theirs = np.concatenate(scores), np.concatenate(loop_scores)
        top = min(100, len(ours))
        shared = len(set(np.argsort(-ours)[:top]) & set(np.argsort(-theirs)[:top]))
        worst = min(float(spearmanr(a, b).statistic) for a, b in zip(scores, loop_scores, strict=True))
        found = {
            "dense (s)": round(seconds, 3),
            "ratio": round(loop_time / seconds, 1),
            "rank correlation": round(float(spearmanr(ours, theirs).statistic), 5),
            "rank correlation, worst image": round(worst, 5),
            f"top {top} shared": shared,
            "dense over floor": round(seconds / floor, 2),
        }
        figures |= {f"contrast {contrast}: {name}": value for name, value in found.items()}
    return figures


def benchmark_layers(options: argparse.Namespace) -> dict:
    """Each layer of the network as it scores, over the arithmetic floor of its convolution."""
    network = BatchNormAdapter(load_weights(FCRN(), options.ckpt).eval(), [], adapt=False).ready()
    keep_freed_memory()
    rate, dtype = convolution_rate(floor_dtype()), floor_dtype()
    x: torch.Tensor = torch.randn(1, 1, options.side, options.side)
    figures: dict[str, object] = {}
    sums = {"convolutions": 0.0, "pooling": 0.0, "floor": 0.0}
    layers = [m for m in (*network.encoder, *network.decoder, network.head) if not isinstance(m, torch.nn.Identity)]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
        for number, layer in enumerate(layers, start=1):
            layer(x)
            seconds, y = timed(lambda layer=layer, x=x: layer(x), options.repeats)
            weights = sum(p.numel() for p in layer.parameters() if p.dim() == 4)
            # a transposed convolution uses each weight once for each pixel that goes in, another one that comes out
            floor = 2.0 * weights * min(x[0, 0].numel(), y[0, 0].numel()) / rate
            name = f"{number}. {x.shape[1]} to {y.shape[1]} channels, side {x.shape[2]} to {y.shape[2]}"
            figures[f"{name} (ms)"] = round(1e3 * seconds, 2)
            if weights:
                figures[f"{name}, over floor"] = round(seconds / floor, 2)
            sums["convolutions" if weights else "pooling"] += seconds
            sums["floor"] += floor
            x = y
    figures |= {f"all, {name} (ms)": round(1e3 * seconds, 2) for name, seconds in sums.items()}
    figures["convolutions over floor"] = round(sums["convolutions"] / sums["floor"], 2)
    figures["whole pass over floor"] = round((sums["convolutions"] + sums["pooling"]) / sums["floor"], 2)
    return figures


def plain_loop(images: list[np.ndarray], masks: list[np.ndarray], ckpt: Path, crop: int, batch: int) -> Iterator[None]:
    """Tune on random crops as a plain script would, in float32; an element is a step. Of the package, only FCRN."""
    network = load_weights(FCRN(), ckpt).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=5e-4)
    rng = np.random.default_rng(0)
    while True:
        crops = []
        for number in rng.integers(len(images), size=batch):
            height, width = images[number].shape
            y, x = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
            part = (slice(y, y + crop), slice(x, x + crop))
            crops.append((images[number][part], masks[number][part]))
        pixels, label = (
            torch.from_numpy(np.stack(planes)[:, None].astype(np.float32)) for planes in zip(*crops, strict=True)
        )
        share = label.mean().clamp(0.02, 0.98)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            network(pixels / 127.5 - 1.0), label, pos_weight=(1 - share) / share
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def time_trainer(options: argparse.Namespace) -> tuple[float, float, list]:
    """Seconds of a step of the trainer of train.json, of cutting its crops, and the data."""
    with tempfile.TemporaryDirectory() as output:
        parser = ConfigParser()
        parser.read_config(ROOT / "bundles" / "kwtl" / "configs" / "train.json")
        settings = {
            "dataset_dir": str(options.dataset_dir),
            "ckpt": str(options.ckpt),
            "output_dir": output,
            "project": False,
            "held_out": 0,
            "steps": options.steps + options.warm_up,
            "crop": options.crop,
            "batch_size": options.batch_size,
        }
        for name, value in settings.items():
            parser[name] = value
        parser.parse(True)
        data = parser.get_parsed_content("parts").train
        trainer = parser.get_parsed_content("train::trainer")
        dataset = parser.get_parsed_content("train::dataset")
        times: list[float] = []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: times.append(time.perf_counter()))
        trainer.run()
    ours = (times[-1] - times[options.warm_up - 1]) / options.steps
    cutting, _ = timed(lambda: [dataset.crop_batch(step) for step in range(10)], 3)
    return ours, cutting / 10, data


def time_plain_loop(options: argparse.Namespace, data: list) -> float:
    """Seconds of a step of the plain loop on the same data."""
    images, masks = ([np.asarray(item[key])[0] for item in data] for key in ("image", "label"))
    loop = plain_loop(images, masks, options.ckpt, options.crop, options.batch_size)
    for _ in range(options.warm_up):
        next(loop)
    return timed(lambda: [next(loop) for _ in range(options.steps)], 1)[0] / options.steps


def benchmark_train(options: argparse.Namespace) -> dict:
    """The trainer of train.json, with its log, its checkpoints and its crops, against a plain loop and the floor."""
    found = []
    for _ in range(options.repeats):  # in turns, so that a slow minute falls on both
        ours, cutting, data = time_trainer(options)
        found.append((ours, cutting, time_plain_loop(options, data)))
    ours, cutting, plain = (statistics.median(column) for column in zip(*found, strict=True))
    # one forward pass, and two of its size backwards: to the weights and to the layer below
    work = 3 * options.batch_size * operations(FCRN(), options.crop, options.crop)
    dtype = torch.bfloat16 if native_bfloat16("cpu") else torch.float32
    floor = work / multiplication_rate(dtype)
    return {
        "crops": f"{options.batch_size} of {options.crop} x {options.crop}",
        "steps timed": f"{options.repeats} times {options.steps}",
        "trainer (crops/s)": round(options.batch_size / ours, 1),
        "plain loop, float32 (crops/s)": round(options.batch_size / plain, 1),
        "ratio": round(plain / ours, 2),
        f"arithmetic floor, {str(dtype).removeprefix('torch.')} (crops/s)": round(options.batch_size / floor, 1),
        "trainer over floor": round(ours / floor, 2),
        "share of cutting crops": f"{100 * cutting / ours:.1f} %",
    }


def benchmark_protocol(options: argparse.Namespace) -> dict:
    """The grid of a configuration: target x split x seed x method x budget."""
    progress = logging.StreamHandler(sys.stdout)
    progress.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("monai_kwtl.benchmark")
    log.addHandler(progress)
    log.setLevel(logging.INFO)
    given = {knob.name: getattr(options, knob.name) for knob in dataclasses.fields(Config)}
    given = {name: _value(text) for name, text in given.items() if text is not None}
    about = machine()
    del about["threads"]
    return run_protocol(read_config(options.config, given), options.config.stem, {"machine": about})


def _value(text: str) -> object:
    """A knob's value: JSON, a word, or several of either between commas."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [_value(part) for part in text.split(",")] if "," in text else text.strip()


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
    select.add_argument("--contrast", nargs="+", choices=("image", "window"), default=["image", "window"])
    select.add_argument("--psi", type=float, default=1.3)
    select.add_argument("--ckpt", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    select.add_argument("--repeats", type=int, default=5)
    select.add_argument("--loop_once", action="store_true", help="time the slow loop only once")
    select.set_defaults(work=benchmark_select)
    layers = commands.add_parser("layers", help="each layer of a forward pass over the arithmetic floor")
    layers.add_argument("--side", type=int, default=1024)
    layers.add_argument("--ckpt", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    layers.add_argument("--repeats", type=int, default=15)
    layers.set_defaults(work=benchmark_layers)
    train = commands.add_parser("train", help="training steps against a plain loop and the arithmetic floor")
    train.add_argument("--dataset_dir", type=Path, default=data / "ssTEM")
    train.add_argument("--crop", type=int, default=128)
    train.add_argument("--batch_size", type=int, default=8)
    train.add_argument("--steps", type=int, default=50)
    train.add_argument("--warm_up", type=int, default=5)
    train.add_argument("--repeats", type=int, default=5)
    train.add_argument("--ckpt", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    train.set_defaults(work=benchmark_train)
    results = commands.add_parser("page", help="tables and figures out of the results of a grid")
    page.add_arguments(results)
    results.set_defaults(work=page.run)
    why = commands.add_parser("diagnose", help="what the windows of each method show, and how the tuned network errs")
    diagnosis.add_arguments(why)
    why.set_defaults(work=diagnosis.run)
    add_commands(commands, data)
    add_cost(commands)
    protocol = commands.add_parser("protocol", help="the paper's protocol: mean IoU of every method at every budget")
    protocol.add_argument("--config", type=Path, required=True, help="such as configs/benchmark/cpu_sstem.json")
    for knob in dataclasses.fields(Config):
        default = "none" if knob.default is None else json.dumps(knob.default)
        shown = f"{knob.metadata['doc']} (default: {default})".replace("%", "%%")
        protocol.add_argument(f"--{knob.name}", metavar="VALUE", help=shown)
    protocol.set_defaults(work=benchmark_protocol)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run one benchmark and print its table."""
    one_line_errors()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.threads is not None:
        if options.threads < 1:
            raise KWTLError(f"--threads must be at least 1, got {options.threads}.")
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as stages do
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

"""Speed of selecting and training beside plain loops, measured side by side."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import spearmanr
from speed_rates import ROOT, convolution_rate, floor_dtype, multiplication_rate, operations, timed

from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pool import load_pool
from monai_kwtl.handlers.batch_norm import BatchNormAdapter
from monai_kwtl.inferers.memory import keep_freed_memory
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.autocast import native_bfloat16
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.windows.grid import WindowGrid


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
    """Time dense selection against the per-window loop: same network, images, cores."""
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
    """Time each layer of the network as it scores, over the arithmetic floor of its convolution."""
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
        fraction = label.mean().clamp(0.02, 0.98)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            network(pixels / 127.5 - 1.0), label, pos_weight=(1 - fraction) / fraction
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def time_trainer(options: argparse.Namespace) -> tuple[float, float, list]:
    """Return the seconds of a step of train.json's trainer, of cutting its crops, and the data."""
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
    """Return the seconds of a step of the plain loop on the same data."""
    images, masks = ([np.asarray(item[key])[0] for item in data] for key in ("image", "label"))
    loop = plain_loop(images, masks, options.ckpt, options.crop, options.batch_size)
    for _ in range(options.warm_up):
        next(loop)
    return timed(lambda: [next(loop) for _ in range(options.steps)], 1)[0] / options.steps


def benchmark_train(options: argparse.Namespace) -> dict:
    """Time the trainer of train.json, with its log, checkpoints and crops, against a plain loop and the floor."""
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

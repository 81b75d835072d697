"""How the cost of scoring grows with pixels, windows, views and images, each varied alone, and a line through each."""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from scipy.stats import linregress

from monai_kwtl.errors import check_whole_number
from monai_kwtl.handlers.batch_norm import BatchNormAdapter
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.autocast import native_bfloat16
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.transforms import intensity_views
from monai_kwtl.windows.grid import WindowGrid

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("varied", "value", "repeats", "seconds", "fitted_seconds")


class Line(NamedTuple):
    """A straight line through medians: seconds = start + slope * value."""

    start: float
    slope: float
    determination: float


class Series(NamedTuple):
    """The medians of what was varied alone."""

    varied: str
    values: list[float]
    seconds: list[float]
    line: Line


def fit(values: list[float], seconds: list[float]) -> Line:
    """Fit the line of least squares, and return how much of the variance it explains."""
    found = linregress(values, seconds)
    return Line(float(found.intercept), float(found.slope), float(found.rvalue**2))


def interleaved(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median seconds of each work: all done once, then all again, so that a slow minute falls on all."""
    for work in works:
        work()  # the first call pays for preparations
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, found in zip(works, times, strict=True):
            begun = time.perf_counter()
            work()
            found.append(time.perf_counter() - begun)
    return [statistics.median(found) for found in times]


def _image(side: int) -> torch.Tensor:
    from speed_rates import _texture

    return torch.from_numpy(_texture(np.random.default_rng(side), side, side))[None, None]


def _jobs(options: argparse.Namespace, network: torch.nn.Module) -> dict[str, tuple[list[float], list]]:
    """For each of what is varied: its values, and the works that take the time."""
    usual = intensity_views(1.3)

    def scoring(side: int, step: int, views: int, images: int) -> Callable[[], object]:
        scorer = ScoreMapInferer(views=usual[:views], inferer=TiledInferer(amp=native_bfloat16("cpu")))
        inferer = WindowScoreInferer(scorer, window=options.window, step=step)
        image = _image(side)
        return lambda: [inferer(image, network) for _ in range(images)]

    side, step, views = options.side, options.step, len(usual)
    counts = [len(WindowGrid(side, side, options.window, each)) for each in options.steps]
    return {
        "pixels": ([each * each for each in options.sides], [scoring(s, step, views, 1) for s in options.sides]),
        "windows": (counts, [scoring(side, each, views, 1) for each in options.steps]),
        "views": (list(range(1, views + 1)), [scoring(side, step, each, 1) for each in range(1, views + 1)]),
        "images": (options.counts, [scoring(side, step, views, each) for each in options.counts]),
    }


def write_table(path: Path, found: list[Series], repeats: int) -> None:
    """Write a row for each median."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for varied, values, seconds, line in found:
            for value, median in zip(values, seconds, strict=True):
                writer.writerow((varied, value, repeats, f"{median:.5f}", f"{line.start + line.slope * value:.5f}"))


def draw(path: Path, found: list[Series]) -> None:
    """Draw the medians of each series and its line."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.2), layout="constrained")
    for axis, (varied, values, seconds, line) in zip(np.atleast_1d(axes), found, strict=True):
        shown = np.asarray(values) / (1e6 if varied == "pixels" else 1)
        ends = np.array([min(values), max(values)])
        axis.plot(ends / (1e6 if varied == "pixels" else 1), line.start + line.slope * ends, color="#5b636d", lw=1)
        axis.plot(shown, seconds, "o", color="#7201a8", ms=5)
        axis.set_xlabel("megapixels" if varied == "pixels" else varied)
        axis.set_title(f"$R^2$ = {line.determination:.3f}", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(axes)[0].set_ylabel("seconds, median")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def benchmark_cost(options: argparse.Namespace) -> dict:
    """Time the scoring of made-up images: seconds over pixels, windows, views and images."""
    check_whole_number("repeats", options.repeats, 1)
    network = BatchNormAdapter(load_weights(FCRN(), options.ckpt).eval(), [], adapt=False).ready()
    found = []
    for varied, (values, works) in _jobs(options, network).items():
        seconds = interleaved(works, options.repeats)
        found.append(Series(varied, values, seconds, fit(values, seconds)))
    options.folder.mkdir(parents=True, exist_ok=True)
    write_table(options.folder / "cost.csv", found, options.repeats)
    draw(options.folder / "cost.png", found)
    figures: dict[str, object] = {"repeats": options.repeats}
    for series in found:
        unit, scale = ("megapixel", 1e6) if series.varied == "pixels" else (series.varied.removesuffix("s"), 1)
        figures[f"a further {unit} (s)"] = float(f"{series.line.slope * scale:.3g}")
        figures[f"{series.varied}: no matter how many (s)"] = float(f"{series.line.start:.3g}")
        figures[f"{series.varied}: R squared"] = round(series.line.determination, 4)
    return figures


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add this benchmark to the command line of ``benchmark.py``."""
    cost = commands.add_parser("cost", help="how the cost of scoring grows with pixels, windows, views and images")
    cost.add_argument("--sides", type=int, nargs="+", default=[256, 384, 512, 640, 768, 896, 1024], help="for pixels")
    cost.add_argument("--steps", type=int, nargs="+", default=[120, 60, 30, 20, 15, 10], help="for windows")
    cost.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 6, 8], help="for images")
    cost.add_argument("--side", type=int, default=512, help="of the image, where something else is varied")
    cost.add_argument("--step", type=int, default=30)
    cost.add_argument("--window", type=int, default=256)
    cost.add_argument("--repeats", type=int, default=5)
    cost.add_argument("--ckpt", type=Path, default=ROOT / "bundles" / "kwtl" / "models" / "model.pt")
    cost.add_argument("--folder", type=Path, default=ROOT / "docs", help="for cost.csv and cost.png")
    cost.set_defaults(work=benchmark_cost)

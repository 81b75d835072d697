"""Benchmarks of the whole select stage, each run in a process of its own: time, memory, streaming, agreement."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from speed_rates import _texture

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.greedy import ranked
from monai_kwtl.selection.select import select_windows
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "bundles" / "kwtl" / "configs"

_CHILD = """
import json, re, runpy, sys, time
begun = time.perf_counter()
import monai.bundle, monai_kwtl.handlers.selection_saver, monai_kwtl.project.next_round, monai_kwtl.bundle.pretext
imported = time.perf_counter()
report, *arguments = sys.argv[1:]
sys.argv = ["-m", "run", *arguments]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
facts = {"imports": imported - begun, "stage": time.perf_counter() - imported}
facts["peak"] = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
open(report, "w").write(json.dumps(facts))
"""


def run_stage(
    folder: Path,
    threads: int | None = None,
    processes: int = 1,
    stage: str = "select",
    variables: Mapping[str, str | None] | None = None,
    **stage_options: object,
) -> dict:
    """Run a stage in a process of its own.

    Args:
        folder: where notes on the run go; made if absent.
        threads: of each process; None: as PyTorch chooses.
        processes: how many share the stage.
        stage: name of its config.
        variables: of the environment; those of value None are taken away.
        stage_options: of the stage.

    Returns:
        its seconds, its peak in GiB, and its lines with the time of each.
    """
    files = [str(CONFIGS / f"{stage}.json")] + ([str(CONFIGS / f"multi_gpu_{stage}.json")] if processes > 1 else [])
    usual = {"pretext": "skip", "project": "false"} if stage == "select" else {}
    settings = {**usual, "overwrite": "true", **stage_options}
    arguments = ["--config_file", files[0] if len(files) == 1 else str(files)]
    arguments += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= variables or {}
    environment = {name: value for name, value in environment.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    report, child = folder / "facts.json", folder / "child.py"
    child.write_text(_CHILD)
    start = [sys.executable, str(child), str(report)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        start = [sys.executable, *launcher, str(child), str(report)]
    begun = time.perf_counter()
    lines: list[tuple[float, str]] = []
    with subprocess.Popen(
        start + arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append((time.perf_counter() - begun, line.rstrip()))
    if process.returncode:
        raise KWTLError("the stage failed: " + "\n".join(line for _, line in lines[-5:]))
    return {**json.loads(report.read_text()), "wall": time.perf_counter() - begun, "lines": lines}


def _medians(found: list[dict]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in found) for name in ("imports", "stage", "wall", "peak")}


def _linked(dataset_dir: Path, images: int | None, folder: Path) -> Path:
    """Make a folder of links to the first images of a data set; None: to all."""
    source = dataset_dir / "images" if (dataset_dir / "images").is_dir() else dataset_dir
    folder.mkdir(parents=True)
    for path in sorted(source.iterdir())[:images]:
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _pool(folder: Path, count: int, side: int = 256) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(_texture(rng, side, side)).save(folder / f"{number:05}.png", compress_level=1)
    return folder


def benchmark_stage(options: argparse.Namespace) -> dict:
    """Time the whole stage over the arithmetic floor, then again on the same pool and model with other options."""
    from speed_rates import convolution_rate, floor_dtype, operations

    from monai_kwtl.data.pool import load_pool
    from monai_kwtl.networks.fcrn import FCRN

    with tempfile.TemporaryDirectory() as folder:
        pool = _linked(options.dataset_dir, options.images, Path(folder) / "pool")
        items = load_pool(pool)
        shared = {"dataset_dir": pool, "step": options.step}
        out = [Path(folder) / f"out{repeat}" for repeat in range(options.repeats)]
        first = [run_stage(place, output_dir=place / "select", **shared) for place in out]
        wishes = {"budget 2": {"budget": 2}, "coverage": {"strategy": "coverage"}, "same": {}}
        wishes["coverage, no report"] = {"strategy": "coverage", "report": "false", "tensorboard": "false"}
        again = {
            wish: _medians([run_stage(place, output_dir=place / "select", **shared, **stage_options) for place in out])
            for wish, stage_options in wishes.items()
        }
    work = {(item["height"], item["width"]) for item in items}
    each = {size: operations(FCRN(), *size) for size in work}
    floor = sum(4 * each[item["height"], item["width"]] for item in items) / convolution_rate(floor_dtype())
    fresh = _medians(first)
    return {
        "images": len(items),
        "arithmetic floor, convolutions (s)": round(floor, 2),
        "imports (s)": round(fresh["imports"], 2),
        "stage (s)": round(fresh["stage"], 2),
        "stage over floor": round(fresh["stage"] / floor, 2),
        "stage, peak (GiB)": round(fresh["peak"], 2),
        **{f"again, {wish} (s)": round(found["stage"], 2) for wish, found in again.items()},
        **{f"first over again, {wish}": round(fresh["stage"] / found["stage"], 1) for wish, found in again.items()},
    }


def benchmark_memory(options: argparse.Namespace) -> dict:
    """Measure the memory peak of two pools of small images, and of one slide."""
    figures: dict[str, object] = {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for count in options.pools:
            place = Path(folder) / str(count)
            found = run_stage(place, dataset_dir=_pool(place / "pool", count), output_dir=place / "out")
            figures[f"{count} images, peak (GiB)"] = round(found["peak"], 3)
        side, tile = options.side, 512
        slide = Path(folder) / "slide"
        slide.mkdir()

        def tiles() -> Iterator[np.ndarray]:
            for _ in range((-(-side // tile)) ** 2):
                yield _texture(rng, tile, tile)

        how = {"tile": (tile, tile), "compression": "zlib", "photometric": "minisblack"}
        tifffile.imwrite(slide / "slide.tif", tiles(), shape=(side, side), dtype=np.uint8, bigtiff=True, **how)
        stage_options = {"measure": options.measure, "budget_windows": 20}
        if options.max_memory is not None:
            stage_options["max_memory"] = options.max_memory
        found = run_stage(Path(folder) / "of", dataset_dir=slide, output_dir=Path(folder) / "out", **stage_options)
        figures[f"slide of {side} x {side}, peak (GiB)"] = round(found["peak"], 3)
        figures["slide (s)"] = round(found["stage"], 1)
    return figures


def benchmark_stream(options: argparse.Namespace) -> dict:
    """Time many small images: their rate, and how right the time left was after a twentieth of them."""
    said = re.compile(r"scoring images: (\d+) of (\d+), about (.+) left")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        stage_options = {"dataset_dir": _pool(place / "pool", options.count), "output_dir": place / "out"}
        found = run_stage(place / "of", report="false", tensorboard="false", **stage_options)
    told = [(when, said.search(line)) for when, line in found["lines"]]
    end = next((when for when, line in found["lines"] if re.search(r"scoring images: \d+ in", line)), found["wall"])
    early = next(((when, m) for when, m in told if m and int(m[1]) >= 0.05 * int(m[2])), None)
    figures = {"images": options.count, "stage (s)": round(found["stage"], 1), "peak (GiB)": round(found["peak"], 3)}
    figures["images a second"] = round(options.count / found["stage"], 1)
    if early:
        when, match = early
        numbers = [float(n) for n in re.findall(r"[\d.]+", match[3])]
        units = {"s": 1, "min": 60, "h": 3600}
        left = sum(n * units[u] for n, u in zip(numbers, re.findall(r"min|h|s", match[3]), strict=True))
        figures |= {"after": f"{match[1]} of {match[2]}", "time left, said (s)": left}
        figures |= {"time left, was (s)": round(end - when, 1), "said over was": round(left / (end - when), 3)}
    return figures


def benchmark_coverage(options: argparse.Namespace) -> dict:
    """Time coverage of many windows in one image, in a few, and in one each."""
    rng, figures = np.random.default_rng(0), {}
    for images in (1, 100, 10_000):
        side = 256 + 30 * (max(1, round((options.windows / images) ** 0.5)) - 1)
        pool = []
        for number in range(images):
            grid = WindowGrid(side, side, 256, 30)
            blocks = grid.block_areas() * rng.random((len(grid.row_edges) - 1, len(grid.column_edges) - 1))
            pool.append(ImageScores(f"{number:05}", None, "", grid, grid.window_means(blocks), blocks))
        area = sum(image.grid.height * image.grid.width for image in pool)
        for name, budget in {"100": Budget(windows=100), "half the pixels": Budget(pixels=area // 2)}.items():
            begun = time.perf_counter()
            select_windows(pool, "coverage", budget)
            what = f"{sum(len(image.grid) for image in pool)} windows of {images} images, {name} (s)"
            figures[what] = round(time.perf_counter() - begun, 2)
    return figures


def benchmark_processes(options: argparse.Namespace) -> dict:
    """Time two processes of one thread against one process of one thread, started by torchrun both."""
    ratios, figures, same = [], [], True
    with tempfile.TemporaryDirectory() as folder:
        pool = _linked(options.dataset_dir, options.images, Path(folder) / "pool")
        for repeat in range(options.repeats):
            found, bytes_ = [], []
            for processes in (1, 2):
                place = Path(folder) / f"{repeat}-{processes}"
                stage_options = {"dataset_dir": pool, "output_dir": place / "out"}
                found.append(run_stage(place, threads=1, processes=processes, **stage_options))
                bytes_.append((place / "out" / "selection.json").read_bytes())
            same = same and bytes_[0] == bytes_[1]
            ratios.append(found[0]["stage"] / found[1]["stage"])
            figures.append([run["stage"] for run in found])
    one, two = (round(statistics.median(column), 2) for column in zip(*figures, strict=True))
    return {
        "one process (s)": one,
        "two processes (s)": two,
        "ratio": round(statistics.median(ratios), 2),
        "same selection.json": same,
    }


@contextmanager
def _busy_loop() -> Iterator[None]:
    """Keep one core busy from another process."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def benchmark_spinning(options: argparse.Namespace) -> dict:
    """Time pretext tuning with several threads, alone and beside a busy process, by the way its threads wait."""
    plain: dict[str, str | None] = dict.fromkeys(WAITING)
    ways = {"nothing set": plain} | {given: plain | dict([given.split("=", 1)]) for given in options.settings}
    loads = {"alone": nullcontext, "beside a busy loop": _busy_loop}
    seconds: dict[tuple[str, str], list[float]] = {(load, way): [] for load in loads for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pool = _linked(options.dataset_dir, options.images, place / "pool")
        stage_options = {
            "dataset_dir": pool,
            "output_dir": place / "out",
            "steps": options.steps,
            "tensorboard": "false",
        }
        for _ in range(options.repeats):  # in turns, so that a slow minute falls on all
            for (load, way), found in seconds.items():
                with loads[load]():
                    run = run_stage(
                        place / "of", options.stage_threads, 1, "pretext", variables=ways[way], **stage_options
                    )
                found.append(run["stage"])
    medians = {key: statistics.median(found) for key, found in seconds.items()}
    figures: dict[str, object] = {"images, steps, threads": (options.images, options.steps, options.stage_threads)}
    for load in loads:
        figures |= {f"{load}, {way} (s)": round(medians[load, way], 1) for way in ways}
        for way in options.settings:
            figures[f"{load}, nothing set over {way}"] = round(medians[load, "nothing set"] / medians[load, way], 2)
    for way in ways:
        figures[f"{way}, beside a busy loop over alone"] = round(
            medians["beside a busy loop", way] / medians["alone", way], 2
        )
    return figures


def _variable(text: str) -> str:
    """Check that an argument has the form NAME=VALUE."""
    name, _, value = text.partition("=")
    if name not in WAITING or not value:
        raise argparse.ArgumentTypeError(f"give NAME=VALUE, NAME one of {', '.join(WAITING)}")
    return text


_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
INSTRUCTION_SETS = {  # what the environment asks for; the machine's own comes first
    "own": {},
    "AVX512_CORE_BF16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ATen avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "AVX2, ATen avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def _selected(folder: Path, variables: Mapping[str, str], strategies: Sequence[str], **stage_options: object) -> dict:
    """Select by each strategy under some variables: what computed, the scores, and the regions by strategy."""
    out, regions = folder / "out", {}
    off = {"report": "false", "tensorboard": "false"}
    for strategy in strategies:  # all but the first find the scores kept
        limits = dict.fromkeys(_LIMITS) | variables
        run_stage(folder, threads=1, variables=limits, output_dir=out, strategy=strategy, **off, **stage_options)
        document = json.loads((out / "selection.json").read_text())
        regions[strategy] = [(r["image"], r["x"], r["y"]) for r in document["regions"]]
    with open(out / "scores.csv", newline="") as file:
        scores = np.array([float(row["score"]) for row in csv.DictReader(file)])
    return {"by": document["created_with"]["computed_by"], "scores": scores, "regions": regions}


def benchmark_instruction_sets(options: argparse.Namespace) -> dict:
    """Time the same selections under each instruction set, against those of the machine's own."""
    figures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for pool in options.pools:
            name, images, budget = pool.split(":")
            folder = Path(temporary, name)
            stage_options = {"dataset_dir": _linked(options.data / name, int(images), folder / "images")}
            stage_options |= {"budget": budget, "amp": options.amp}
            found = {
                label: _selected(folder / str(number), INSTRUCTION_SETS[label], options.strategies, **stage_options)
                for number, label in enumerate(["own", *options.sets])
            }
            own = found["own"]
            top = set(ranked(own["scores"])[:20].tolist())
            for label, other in found.items():
                differ = np.abs(other["scores"] - own["scores"]).max() / np.ptp(own["scores"])
                shared = len(top & set(ranked(other["scores"])[:20].tolist()))
                same = [
                    f"{strategy} {len(set(regions) & set(own['regions'][strategy]))} of {len(regions)}"
                    + ("" if regions == own["regions"][strategy] else ", ranked otherwise")
                    for strategy, regions in other["regions"].items()
                ]
                by = f"{other['by']['instruction_set']}, {other['by']['dtype']}"
                figures[f"{name}, {images} images, {label} ({by})"] = (
                    f"scores within {100 * differ:.2g} % of their range; top 20: {shared} shared; regions: "
                    + "; ".join(same)
                )
    return figures


def add_commands(commands: argparse._SubParsersAction, data: Path) -> None:
    """Add these benchmarks to the command line of ``benchmark.py``."""
    stage = commands.add_parser("stage", help="the whole stage over the arithmetic floor, and run again")
    stage.add_argument("--dataset_dir", type=Path, default=data / "ssTEM")
    stage.add_argument("--images", type=int, default=20)
    stage.add_argument("--step", type=int, default=30)
    stage.add_argument("--repeats", type=int, default=5)
    stage.set_defaults(work=benchmark_stage)
    memory = commands.add_parser("memory", help="peak of two pools and of a slide")
    memory.add_argument("--pools", type=int, nargs="+", default=[50, 500])
    memory.add_argument("--side", type=int, default=20_000)
    memory.add_argument("--measure", default="soft")
    memory.add_argument("--max_memory", type=float, default=None)
    memory.set_defaults(work=benchmark_memory)
    stream = commands.add_parser("stream", help="many small images")
    stream.add_argument("--count", type=int, default=10_000)
    stream.set_defaults(work=benchmark_stream)
    coverage = commands.add_parser("coverage", help="greedy coverage of many windows")
    coverage.add_argument("--windows", type=int, default=100_000)
    coverage.set_defaults(work=benchmark_coverage)
    processes = commands.add_parser("processes", help="two processes against one, of one thread each")
    processes.add_argument("--dataset_dir", type=Path, default=data / "ssTEM")
    processes.add_argument("--images", type=int, default=20)
    processes.add_argument("--repeats", type=int, default=5)
    processes.set_defaults(work=benchmark_processes)
    spinning = commands.add_parser("spinning", help="pretext beside a busy process, as threads wait in several ways")
    spinning.add_argument("--dataset_dir", type=Path, default=data / "TNBC")
    spinning.add_argument("--images", type=int, default=16)
    spinning.add_argument("--steps", type=int, default=100)
    spinning.add_argument("--stage_threads", type=int, default=2)
    spinning.add_argument("--repeats", type=int, default=1)
    ways = ["OMP_WAIT_POLICY=PASSIVE"]
    spinning.add_argument("--settings", type=_variable, nargs="+", default=ways, metavar="NAME=VALUE")
    spinning.set_defaults(work=benchmark_spinning)
    sets = commands.add_parser("instruction_sets", help="selections under each instruction set of the processor")
    sets.add_argument("--data", type=Path, default=data, help="folder of the data sets")
    sets.add_argument("--pools", nargs="+", default=["TNBC:8:2", "ssTEM:3:1"], help="data set:images:budget")
    sets.add_argument("--strategies", nargs="+", default=["balanced", "top_k", "coverage"])
    others = [label for label in INSTRUCTION_SETS if label != "own"]
    sets.add_argument("--sets", nargs="+", choices=others, default=others, help="compared with the machine's own")
    sets.add_argument("--amp", default="auto", choices=("auto", "true", "false"), help="as of the stage")
    sets.set_defaults(work=benchmark_instruction_sets)

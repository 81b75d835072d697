#!/usr/bin/env python
"""Speed and agreement, measured side by side (``select``, ``train``), and the paper's ``protocol``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path

import torch
from speed import benchmark_layers, benchmark_select, benchmark_train
from speed_cost import add_command as add_cost
from speed_rates import ROOT, machine
from speed_stages import add_commands

from monai_kwtl.benchmark.analysis import diagnosis, page
from monai_kwtl.benchmark.plan.config import Config, read_config
from monai_kwtl.benchmark.runs.run import run_protocol
from monai_kwtl.bundle.failures import install_error_hook
from monai_kwtl.cli.threads import wait_asleep
from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.memory import keep_freed_memory
from monai_kwtl.utils.text import format_seconds, format_table

wait_asleep()


def benchmark_protocol(options: argparse.Namespace) -> dict:
    """Run the grid of a configuration: target x split x seed x method x budget."""
    progress = logging.StreamHandler(sys.stdout)
    progress.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("monai_kwtl.benchmark")
    log.addHandler(progress)
    log.setLevel(logging.INFO)
    given = {option.name: getattr(options, option.name) for option in dataclasses.fields(Config)}
    given = {name: _value(text) for name, text in given.items() if text is not None}
    about = machine()
    del about["threads"]
    return run_protocol(read_config(options.config, given), options.config.stem, {"machine": about})


def _value(text: str) -> object:
    """Parse an option's value: JSON, a word, or several of either between commas."""
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
    for option in dataclasses.fields(Config):
        default = "none" if option.default is None else json.dumps(option.default)
        shown = f"{option.metadata['doc']} (default: {default})".replace("%", "%%")
        protocol.add_argument(f"--{option.name}", metavar="VALUE", help=shown)
    protocol.set_defaults(work=benchmark_protocol)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run one benchmark and print its table."""
    install_error_hook()
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

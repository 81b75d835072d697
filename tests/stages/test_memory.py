"""Selecting takes no more memory for more images, and reads a slide in parts, with the same selection."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from stage_here import run
from stage_process import ROOT, stage_arguments

from monai_kwtl.data import loading
from monai_kwtl.data import pool as pool_module
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.readers import slides

FEATURES = (4, 4, 8, 8)
PEAK = """
import re, runpy, sys
sys.argv = ["-m", "run", *sys.argv[1:]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.fixture
def stage_options(tmp_path):
    torch.manual_seed(0)
    torch.save(FCRN(features=FEATURES).state_dict(), tmp_path / "weights.pt")
    shared = {"ckpt": tmp_path / "weights.pt", "pretext": "skip", "project": "false", "device": "cpu"}
    return shared | {"network_def#features": list(FEATURES), "amp": "false", "tensorboard": "false"}


def peak(folder: Path, pool: Path, **stage_options: object) -> float:
    """Largest resident size of a selection in a process of its own, in MiB."""
    # not ru_maxrss, which begins at what the process took that started this one
    arguments = stage_arguments(["select.json"], dataset_dir=pool, output_dir=folder, **stage_options)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PEAK, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return int(re.search(r"peak (\d+)", ended.stdout)[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say how large a process was")
def test_memory_does_not_grow_with_the_pool(tmp_path, rng, stage_options):
    peaks = []
    for count in (50, 500):
        pool = tmp_path / f"pool{count}"
        pool.mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (24, 24), dtype=np.uint8).repeat(10, 0).repeat(11, 1)
            Image.fromarray(pixels).save(pool / f"{number:03}.png")
        peaks.append(peak(tmp_path / f"out{count}", pool, step=64, **stage_options))
    # 450 images of 240 x 264 are 27 MiB as they are read, and 217 MiB with their two maps
    assert peaks[1] - peaks[0] < 24, peaks


@pytest.mark.parametrize("options", [{}, {"contrast": "window"}, {"strategy": "coverage"}, {"num_workers": 1}])
def test_a_slide_has_the_selection_of_the_image_in_memory(tmp_path, rng, stage_options, monkeypatch, options):
    pool = tmp_path / "pool"
    pool.mkdir()
    for name, shape in (("large", (301, 260)), ("colour", (203, 310, 3)), ("small", (70, 90))):
        pixels = np.kron(rng.integers(30, 220, (38, 39)), np.ones((8, 8)))[: shape[0], : shape[1]]
        pixels = (pixels[..., None] if len(shape) == 3 else pixels) + rng.integers(-20, 20, shape)
        photometric = "rgb" if len(shape) == 3 else "minisblack"
        options_of_file = {"tile": (64, 64), "compression": "zlib", "photometric": photometric}
        tifffile.imwrite(pool / f"{name}.tif", pixels.astype(np.uint8), **options_of_file)
    stage_options |= {"window": 64, "step": 20, "budget_windows": 4, "dataset_dir": pool, "report": "false"} | options
    ended = run("select", output_dir=tmp_path / "whole", **stage_options)
    assert ended.status == 0, ended.err
    monkeypatch.setattr(pool_module, "DECODE_LIMIT", 90 * 70)
    monkeypatch.setattr(loading, "DECODE_LIMIT", 90 * 70)
    monkeypatch.setattr("monai_kwtl.data.pool_batches.DECODE_LIMIT", 90 * 70)
    monkeypatch.setattr(slides.Slide, "_pixels", None)  # never all of it
    ended = run("select", output_dir=tmp_path / "parts", tile=96, **stage_options)
    assert ended.status == 0, ended.err
    found = [json.loads((tmp_path / name / "selection.json").read_text())["regions"] for name in ("whole", "parts")]
    assert len(found[0]) == 4
    for whole, part in zip(*found, strict=True):
        assert part.pop("score") == pytest.approx(whole.pop("score"), rel=1e-5)
        assert part == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_byte_of_the_selection(tmp_path, rng, stage_options, workers):
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(5):
        pixels = rng.integers(0, 256, (61 + number, 90), dtype=np.uint8)
        Image.fromarray(pixels).save(pool / f"{number}.png")
    stage_options |= {"window": 32, "step": 10, "budget_windows": 4, "dataset_dir": pool, "report": "false"}
    for count in (0, workers):
        ended = run("select", output_dir=tmp_path / f"out{count}", num_workers=count, **stage_options)
        assert ended.status == 0, ended.err
    one, other = ((tmp_path / f"out{count}/selection.json").read_bytes() for count in (0, workers))
    assert one == other

"""Small labelled data sets, so that a whole grid takes a second or two."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_kwtl.benchmark.experiments import experiment
from monai_kwtl.benchmark.plan.config import Config, make_config

SHAPE = (72, 88)


def write_data_set(folder: Path, count: int, bright: bool, seed: int) -> None:
    """Noisy images with discs, and their masks; names are numbers."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for number in range(count):
        mask = np.zeros(SHAPE, dtype=bool)
        for y, x, radius in zip(rng.uniform(0, 72, 5), rng.uniform(0, 88, 5), rng.uniform(4, 9, 5), strict=True):
            mask |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        grey = 120 + (60 if bright else -60) * mask + rng.normal(0, 15, SHAPE)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "labels" / f"{number}.png")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Three data sets: dark discs in ``ours``, with which tests work, and two others to meta-train on."""
    folder = tmp_path_factory.mktemp("data")
    write_data_set(folder / "ours", 8, bright=False, seed=1)
    write_data_set(folder / "bright", 3, bright=True, seed=2)
    write_data_set(folder / "dark", 3, bright=False, seed=3)
    return folder


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """No tuned network of another test in the memory."""
    monkeypatch.setattr(experiment, "_KEPT", OrderedDict())


@pytest.fixture
def options(data, tmp_path) -> dict:
    """Options of a grid of a few seconds."""
    return {
        "targets": ["ours"],
        "data_dir": str(data),
        "output_dir": str(tmp_path / "output"),
        "splits": 1,
        "methods": ["top_k_soft", "random", "pretext_only"],
        "shots": [1],
        "schedule": "tiny",
        "window": 32,
        "step": 8,
        "windows_per_shot": 3,
        "runner": "loop",
        "cores": 1,
        "device": "cpu",
        "amp": False,
    }


@pytest.fixture
def config(options) -> Config:
    """The same, checked."""
    return make_config(options)

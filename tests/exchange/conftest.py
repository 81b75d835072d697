"""A small pool with a selection, and a folder of its true masks, for all formats."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from monai_kwtl.data.pool import load_pool
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.selection_file import dump_selection
from monai_kwtl.selection.regions import Region, cost_of
from monai_kwtl.synthetic import make_pool

BOXES = [(0, 0, 40, 33), (5, 20, 31, 45), (50, 15, 40, 50)]  # x, y, width, height; the first two overlap, on one image
IMAGES = [0, 0, 2]


@pytest.fixture(scope="session")
def trip(tmp_path_factory):
    """folder, pool, regions, names of their crops, selection (path), truth: whole masks by image name."""
    folder = tmp_path_factory.mktemp("trip")
    make_pool(folder / "pool", "fluorescence", count=3, height=65, width=90, seed=3)
    pool = load_pool(folder / "pool", with_labels=False)
    regions = [
        Region(rank, pool[image]["name"], None, pool[image]["sha256"], *box, score=2.0**-rank)
        for rank, (image, box) in enumerate(zip(IMAGES, BOXES, strict=True), start=1)
    ]
    truth = {
        item["name"]: np.array(Image.open(folder / "pool" / "labels" / item["name"].split("/")[1])) > 0 for item in pool
    }
    (folder / "select").mkdir()
    selection = folder / "select" / "selection.json"
    cost = cost_of(regions).as_dict()
    selection.write_text(dump_selection(regions, budget={"windows": 3}, cost=cost, created_with={}))
    (folder / "select" / "regions").mkdir()
    names = region_file_names(regions)
    for region, name in zip(regions, names, strict=True):
        Image.fromarray(np.array(Image.open(folder / "pool" / region.image))[inside(region)]).save(
            folder / "select" / "regions" / name
        )
    return SimpleNamespace(
        folder=folder,
        pool=pool,
        regions=regions,
        names=names,
        selection=selection,
        truth=truth,
        dataset=folder / "pool",
    )


def inside(region):
    return slice(region.y, region.y + region.height), slice(region.x, region.x + region.width)


@pytest.fixture
def true_mask(trip):
    """Gives the true mask of a region, bool."""
    return lambda region: trip.truth[region.image][inside(region)]


@pytest.fixture(scope="session")
def hand_in():
    """For each tool what makes finished annotations of the predictions of an export, as its user would."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "round_trip_table.py"
    spec = importlib.util.spec_from_file_location("round_trip_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.HAND_IN

"""Round trip of real masks through each annotation format: true masks out as predictions, handed in, read back."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from monai_kwtl.data.loading import read_label
from monai_kwtl.data.pool import load_pool
from monai_kwtl.exchange.handout import TOOLS, export_regions, import_regions
from monai_kwtl.exchange.polygons import number_objects
from monai_kwtl.project.mask_index import read_record
from monai_kwtl.project.selection_file import dump_selection
from monai_kwtl.selection.regions import Region, cost_of
from monai_kwtl.utils.text import format_table


def random_selection(items: Sequence[dict], count: int, size: int, seed: int = 0) -> list[Region]:
    """Draw regions at random places of a pool."""
    rng = np.random.default_rng(seed)
    regions = []
    for rank in range(1, count + 1):
        item = items[int(rng.integers(len(items)))]
        height, width = min(size, item["height"]), min(size, item["width"])
        y, x = (
            int(rng.integers(0, full - part + 1)) for full, part in ((item["height"], height), (item["width"], width))
        )
        regions.append(Region(rank, item["name"], item["page"], item["sha256"], x, y, width, height, 1.0 / rank))
    return regions


def _copy(work: Path, start: str, finished: str) -> None:
    for path in (work / start).iterdir():
        shutil.copy(path, work / finished / path.name)


def _hand_in_qupath(work: Path) -> None:
    for path in work.glob("geojson/*.geojson"):
        document = json.loads(path.read_text())
        for feature in document["features"]:
            if feature["properties"]["classification"]["name"] == "unfinished":
                feature["properties"]["classification"]["name"] = "finished"
        path.write_text(json.dumps(document))


def _hand_in_cvat(work: Path) -> None:
    path = work / "annotations" / "instances_default.json"
    document = json.loads(path.read_text())
    marks = {category["id"]: category["name"] for category in document["categories"]}
    finished = next(number for number, name in marks.items() if name == "finished")
    for entry in document["annotations"]:
        if marks[entry["category_id"]] == "unfinished":
            entry["category_id"] = finished
    path.write_text(json.dumps(document))


def _hand_in_labelstudio(work: Path) -> None:
    tasks = json.loads((work / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        results = task.pop("predictions")[0]["result"]
        task["annotations"] = [{"id": number, "result": results, "was_cancelled": False}]
    (work / "project-1-at-2026.json").write_text(json.dumps(tasks))


HAND_IN = {
    "cvat": _hand_in_cvat,
    "labelstudio": _hand_in_labelstudio,
    "png": lambda work: _copy(work, "start", "masks"),
    "napari": lambda work: _copy(work, "start", "labels"),
    "qupath": _hand_in_qupath,
}


def round_trip(dataset: Path, tool: str, count: int, size: int, folder: Path) -> tuple[int, int, int, float, float]:
    """Send true masks of random regions out and in again.

    Returns:
        Regions, objects out, objects in, smallest Dice of a region, Dice of all pixels.
    """
    items = load_pool(dataset)
    regions = random_selection(items, count, size)
    cost = cost_of(regions).as_dict()
    folder.mkdir(parents=True, exist_ok=True)
    selection = folder / "selection.json"
    selection.write_text(dump_selection(regions, budget={"windows": count}, cost=cost, created_with={}))
    truth = folder / "truth"
    truth.mkdir()
    names = {region.image for region in regions}
    wholes = {}
    for item in items:
        if item["name"] in names:
            wholes[item["name"], item["page"]] = read_label(item)[0]
            name = f"{Path(item['name']).stem}.png"
            Image.fromarray(wholes[item["name"], item["page"]] * 255).save(truth / name)
    work = folder / "work"
    export_regions(selection, tool, work, dataset, predictions=truth)
    HAND_IN[tool](work)
    import_regions(work, tool, folder / "masks")
    before = after = 0
    inter = total = 0
    worst = 1.0
    for record in read_record(folder / "masks"):
        r = record.region
        true = wholes[r.image, r.page][r.y : r.y + r.height, r.x : r.x + r.width] > 0
        back = np.asarray(Image.open(folder / "masks" / record.mask)) > 0
        before, after = before + number_objects(true).max(), after + number_objects(back).max()
        both, sizes = int((true & back).sum()), int(true.sum() + back.sum())
        inter, total = inter + both, total + sizes
        worst = min(worst, 2 * both / sizes if sizes else 1.0)
    return len(read_record(folder / "masks")), int(before), int(after), worst, 2 * inter / max(total, 1)


def main() -> None:
    """Print a table, a row for each data set and tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    data = Path(os.environ.get("KWTL_DATA", "../shared/data"))
    parser.add_argument("--datasets", type=Path, nargs="+", default=[data / "ssTEM", data / "TNBC"])
    parser.add_argument("--regions", type=int, default=12)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    rows = []
    for dataset in options.datasets:
        for tool in TOOLS:
            with tempfile.TemporaryDirectory() as folder:
                found = round_trip(dataset, tool, options.regions, options.size, Path(folder))
            rows.append((dataset.name, tool, *found[:3], f"{found[3]:.4f}", f"{found[4]:.4f}"))
    print("\n".join(format_table(("data", "tool", "regions", "objects out", "objects in", "worst Dice", "Dice"), rows)))


if __name__ == "__main__":
    main()

"""Masks that are missing, do not fit or are odd; selections that are broken or of other images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bad_input.cases import WITH_LABELS, Case, case, file_at, in_order
from monai_kwtl.benchmark.experiments.annotator import write_region_masks
from monai_kwtl.data.pool import load_pool
from monai_kwtl.project.selection_file import dump_selection
from monai_kwtl.selection.regions import Region, cost_of


def _labels(folder: Path) -> list[Path]:
    return sorted((folder / "my_images" / "labels").iterdir())


def _each_mask(change: Callable[[np.ndarray], np.ndarray], only: slice = slice(None)) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for path in _labels(folder)[only]:
            Image.fromarray(change(np.asarray(Image.open(path)))).save(path)

    return prepare


def _numbered_cells(mask: np.ndarray) -> np.ndarray:
    return np.where(mask > 0, np.where(np.arange(mask.shape[1]) < 30, 300, 600), 0).astype(np.uint16)


def _rename(folder: Path) -> None:
    for number, path in enumerate(_labels(folder)):
        path.rename(path.with_name(f"drawing {number}.png"))


def _no_labels(folder: Path) -> None:
    shutil.rmtree(folder / "my_images" / "labels")


def _copy_as_bmp(kind: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(folder / "my_images" / kind / "a.png", folder / "my_images" / kind / "a.bmp")


def _remove_but_second(folder: Path) -> None:
    for path in _labels(folder)[::2]:
        path.unlink()


MASKS = [
    case(
        "train",
        "no labels",
        _no_labels,
        names="--labels",
    ),
    case(("evaluate", "meta_train"), "no labels", _no_labels, names="my_images"),
    case(("train", "evaluate"), labels="drawings"),
    case(
        "select",
        names="drawings",
        labels="drawings",
    ),
    case(("train", "evaluate"), labels="my_images/images"),
    case(WITH_LABELS, "masks with names of their own", _rename, names="drawing 0.png"),
    case(WITH_LABELS, "two masks of one image", _copy_as_bmp("labels"), names="my_images/labels/a.bmp"),
    case(WITH_LABELS, "two images with one base name", _copy_as_bmp("images"), names="images/a.bmp"),
    case(
        ("select", "inference"),
        "two images with one base name, where no masks are looked for",
        _copy_as_bmp("images"),
        names="images: 4 in",
        status=0,
    ),
    case(
        WITH_LABELS,
        "a mask of another size",
        _each_mask(lambda mask: mask[:40, :50], slice(1, 2)),
        names="my_images/labels/b.png",
    ),
    case(WITH_LABELS, "a mask that is a text file", file_at("my_images/labels/a.png"), names="my_images/labels/a.png"),
    case(
        WITH_LABELS,
        "masks of 0 and 1",
        _each_mask(lambda mask: mask // 255),
        names="a.png",
        status=0,
    ),
    case(
        WITH_LABELS,
        "masks with a number for each cell",
        _each_mask(_numbered_cells),
        names="a.png",
        status=0,
    ),
    case(
        WITH_LABELS,
        "masks of some images only",
        _remove_but_second,
        names="2 of 3 images",
        status=0,
    ),
    case(
        "train",
        "no foreground in any mask",
        _each_mask(np.zeros_like),
        names="foreground",
    ),
    case(
        "evaluate",
        "no foreground in any mask",
        _each_mask(np.zeros_like),
        names="foreground",
        status=0,
    ),
    case("meta_train", "no foreground in any mask", _each_mask(np.zeros_like), names="my_images"),
]


def _select(folder: Path) -> None:
    """Write selection.json, one region an image, and draw the true masks of the regions into drawings."""
    items = load_pool(folder / "my_images")
    regions = [
        Region(rank, item["name"], None, item["sha256"], 8 * rank, 4, 32, 40, 1.0 / rank)
        for rank, item in enumerate(items, start=1)
    ]
    text = dump_selection(regions, budget={"windows": 3}, cost=cost_of(regions).as_dict(), created_with={})
    (folder / "selection.json").write_text(text)
    write_region_masks(folder / "selection.json", items, folder / "drawings")


def _edited(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / "selection.json").read_text())
        change(document)
        (folder / "selection.json").write_text(json.dumps(document))

    return edit


def _region(number: int, **values: Any) -> Callable[[Path], None]:
    return _edited(lambda document: document["regions"][number].update(values))


def _drawings(folder: Path) -> list[Path]:
    return sorted((folder / "drawings").iterdir())


def _remove_drawings(first: int) -> Callable[[Path], None]:
    return lambda folder: [path.unlink() for path in _drawings(folder)[first:]]


def _draw_nothing(height: int, width: int) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for path in _drawings(folder):
            Image.fromarray(np.zeros((height, width), dtype=np.uint8)).save(path)

    return prepare


def _invert_an_image(folder: Path) -> None:
    path = folder / "my_images" / "images" / "a.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def _regions_case(given: str, *steps: Callable[[Path], Any], names: str, status: int = 1, **options: Any) -> Case:
    options = {"selection": "selection.json", "labels": "drawings"} | options
    return case("train", given, in_order(_select, *steps), names, status, **options)


REGIONS = [
    _regions_case("a region outside its image", _region(0, x=900), names="images/a.png"),
    _regions_case("a selection of other images", _region(0, image="images/other.png"), names="images/other.png"),
    _regions_case("an image that has changed since", _invert_an_image, names="images/a.png"),
    _regions_case("masks of another size than their regions", _draw_nothing(8, 9), names="drawings/001_a_x8_y4.png"),
    _regions_case("no mask of any region", _remove_drawings(0), names="001_a_x8_y4.png"),
    _regions_case(
        "masks of some regions only",
        _remove_drawings(1),
        names="drawings",
        status=0,
    ),
    _regions_case(
        "no foreground in any region",
        _draw_nothing(40, 32),
        names="foreground",
    ),
    _regions_case("the folder of the masks does not exist", names="elsewhere", labels="elsewhere"),
    _regions_case(
        "a selection without labels",
        names="--labels",
        labels=None,
    ),
    _regions_case("the selection does not exist", names="elsewhere.json", selection="elsewhere.json"),
    _regions_case("a selection that is no JSON", file_at("selection.json"), names="selection.json"),
    _regions_case(
        "a selection of another format",
        _edited(lambda document: document.update(format="kwtl-selection/9")),
        names="selection.json",
    ),
    _regions_case(
        "a selection without one of its fields", _edited(lambda document: document.pop("cost")), names="selection.json"
    ),
    _regions_case("a region with a field of another type", _region(1, x="left"), names="selection.json"),
    _regions_case("a region that leads out of the data set", _region(0, image="../a.png"), names="selection.json"),
    _regions_case(
        "a selection without regions",
        _edited(lambda document: document.update(regions=[])),
        names="selection",
    ),
]

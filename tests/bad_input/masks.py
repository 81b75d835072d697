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
from monai_kwtl.data import load_pool
from monai_kwtl.oracle import write_region_masks
from monai_kwtl.selection import Region, cost_of
from monai_kwtl.selection_file import dump_selection


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


_ALL_BUT_0 = "all but 0 is taken for foreground"
_PUT = "put masks of the same base names into its labels/ folder, or name their folder with --labels"

MASKS = [
    case("train", f"no image of the data set has a label: {_PUT}", "no labels", _no_labels),
    case(("evaluate", "meta_train"), f"no image of my_images has a label: {_PUT}", "no labels", _no_labels),
    case(
        ("train", "evaluate"),
        "there is no folder drawings: give the folder of the masks with --labels.",
        labels="drawings",
    ),
    case(
        "select",
        "drawings: no folder of masks (No such file or directory); give the folder that holds them",
        labels="drawings",
    ),
    case(
        ("train", "evaluate"),
        "my_images/images holds the images themselves: give the folder of their masks with --labels.",
        labels="my_images/images",
    ),
    case(
        WITH_LABELS,
        "no mask in my_images/labels has the base name of an image (drawing 0.png is there, a.png or the like was "
        "looked for): rename the masks like the images, or give another folder with --labels.",
        "masks with names of their own",
        _rename,
    ),
    case(
        WITH_LABELS,
        "my_images/labels/a.bmp and a.png are both masks of images/a.png: remove one.",
        "two masks of one image",
        _copy_as_bmp("labels"),
    ),
    case(
        WITH_LABELS,
        "images/a.bmp and images/a.png have the same base name, so that masks cannot be told apart: rename one.",
        "two images with one base name",
        _copy_as_bmp("images"),
    ),
    case(
        ("select", "inference"),
        "images: 4 in",
        "two images with one base name, where no masks are looked for",
        _copy_as_bmp("images"),
        status=0,
    ),
    case(
        WITH_LABELS,
        "the mask my_images/labels/b.png is 50 wide and 40 high, its image images/b.png is 60 wide and 48 high: save "
        "the mask in the size of the image.",
        "a mask of another size",
        _each_mask(lambda mask: mask[:40, :50], slice(1, 2)),
    ),
    case(
        WITH_LABELS,
        "cannot read the mask my_images/labels/a.png: it is no image.",
        "a mask that is a text file",
        file_at("my_images/labels/a.png"),
    ),
    case(
        WITH_LABELS,
        f"masks hold other values than 0 and 255 (0, 1 in a.png): {_ALL_BUT_0}",
        "masks of 0 and 1",
        _each_mask(lambda mask: mask // 255),
        status=0,
    ),
    case(
        WITH_LABELS,
        f"masks hold other values than 0 and 255 (0, 300, 600 in a.png): {_ALL_BUT_0}",
        "masks with a number for each cell",
        _each_mask(_numbered_cells),
        status=0,
    ),
    case(
        WITH_LABELS,
        "2 of 3 images have no label and are left out",
        "masks of some images only",
        _remove_but_second,
        status=0,
    ),
    case(
        "train",
        "no mask has any foreground: outline some cells, or check that the masks were exported right.",
        "no foreground in any mask",
        _each_mask(np.zeros_like),
    ),
    case(
        "evaluate",
        "no label has any foreground: check that the masks were exported right",
        "no foreground in any mask",
        _each_mask(np.zeros_like),
        status=0,
    ),
    case(
        "meta_train",
        "no mask of my_images has any foreground; leave this source out, or mend its masks.",
        "no foreground in any mask",
        _each_mask(np.zeros_like),
    ),
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


def _regions_case(says: str, given: str, *steps: Callable[[Path], Any], status: int = 1, **knobs: Any) -> Case:
    knobs = {"selection": "selection.json", "labels": "drawings"} | knobs
    return case("train", says, given, in_order(_select, *steps), status, **knobs)


_AGAIN = "write the file again with select.json"

REGIONS = [
    _regions_case(
        "the region of rank 1 (x 900, y 4, 32 wide, 40 high) leaves 'images/a.png', which is 60 wide and 48 high: "
        "select again on these images",
        "a region outside its image",
        _region(0, x=900),
    ),
    _regions_case(
        "the selection names 'images/other.png', which is not in the data set: give the folder it was made on",
        "a selection of other images",
        _region(0, image="images/other.png"),
    ),
    _regions_case(
        "'images/a.png' has changed since it was selected: put the former file back or select again",
        "an image that has changed since",
        _invert_an_image,
    ),
    _regions_case(
        "drawings/001_a_x8_y4.png is 9 wide and 8 high, but the region of rank 1 is 32 wide and 40 high: save the mask "
        "in the size of its picture",
        "masks of another size than their regions",
        _draw_nothing(8, 9),
    ),
    _regions_case(
        "drawings: no mask has a name that was looked for; save masks as 001_a_x8_y4.png or 002_b_x16_y4.png or a.png "
        "or so on",
        "no mask of any region",
        _remove_drawings(0),
    ),
    _regions_case(
        "2 of 3 regions have no mask in drawings yet; they stay unknown",
        "masks of some regions only",
        _remove_drawings(1),
        status=0,
    ),
    _regions_case(
        "no mask has any foreground: outline some cells, or check that the masks were exported right.",
        "no foreground in any region",
        _draw_nothing(40, 32),
    ),
    _regions_case(
        "elsewhere: no folder of masks (No such file or directory); give the folder that holds them",
        "the folder of the masks does not exist",
        labels="elsewhere",
    ),
    _regions_case(
        "--selection needs --labels: the folder with the masks of its regions.",
        "a selection without labels",
        labels=None,
    ),
    _regions_case(
        "elsewhere.json: cannot be read (No such file or directory); give the selection.json of a finished run",
        "the selection does not exist",
        selection="elsewhere.json",
    ),
    _regions_case(
        "selection.json: line 1, column 1: Expecting value; mend the JSON",
        "a selection that is no JSON",
        file_at("selection.json"),
    ),
    _regions_case(
        f"selection.json: format must be 'kwtl-selection/1', not 'kwtl-selection/9'; {_AGAIN}",
        "a selection of another format",
        _edited(lambda document: document.update(format="kwtl-selection/9")),
    ),
    _regions_case(
        f"selection.json: cost is missing; {_AGAIN}",
        "a selection without one of its fields",
        _edited(lambda document: document.pop("cost")),
    ),
    _regions_case(
        f"selection.json: regions[1].x must be a whole number, not 'left'; {_AGAIN}",
        "a region with a field of another type",
        _region(1, x="left"),
    ),
    _regions_case(
        f"selection.json: regions[0].image must be a path inside the data set, without '..', not '../a.png'; {_AGAIN}",
        "a region that leads out of the data set",
        _region(0, image="../a.png"),
    ),
    _regions_case(
        "the selection has no region: there is nothing to learn from; select again",
        "a selection without regions",
        _edited(lambda document: document.update(regions=[])),
    ),
]

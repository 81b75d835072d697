"""Regions on disk: a selection with its tables, outlines and crops out to annotators, and their masks back in."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.file_names import region_file_names, safe_stems
from monai_kwtl.project.selection_file import FORMAT, SELECTION_NAME, dump_selection, round_number
from monai_kwtl.selection.regions import Region

__all__ = ["check_output", "feature_collection", "write_selection"]

REGION_COLUMNS = ("rank", "image", "page", "x", "y", "width", "height", "score")
WINDOW_COLUMNS = ("image", "page", "x", "y", "width", "height", "score")
CLASSIFICATION = {"name": "KWTL region", "color": [0, 158, 115]}

_UNFINISHED = ".selection.unfinished"
_PARTS = ("regions", "geojson")
_OUR_CROPS = re.compile(r"\d{3,}_.+_x\d+_y\d+\.png")


def check_output(folder: str | Path, overwrite: bool = False, parts: Sequence[str] = ()) -> None:
    """Find out before a long run whether its selection can be written.

    Args:
        folder: the output folder; made if absent.
        overwrite: whether a selection that is already there may be replaced.
        parts: further folders in it, besides those of a selection, that will be written to.

    Raises:
        KWTLError: one line, when a selection is there and must stay, or when nothing can be written to the folder.
    """
    folder = Path(folder)
    try:
        if (folder / SELECTION_NAME).exists() and not overwrite:
            raise KWTLError(
                f"{folder / SELECTION_NAME} already exists: choose another --output_dir or add --overwrite true"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for part in (*_PARTS, *parts):
            if (folder / part).exists() and not (folder / part).is_dir():
                raise _cannot_write(folder / part, "a file is in the way")
    except OSError as error:
        raise _cannot_write(folder, error.strerror or str(error)) from error


def write_selection(
    folder: str | Path,
    regions: Sequence[Region],
    *,
    budget: Mapping[str, Any],
    cost: Mapping[str, Any],
    created_with: Mapping[str, Any],
    items: Iterable[Mapping[str, Any]],
    windows: Iterable[Sequence[Any]],
    read: Callable[[Mapping[str, Any]], np.ndarray],
    overwrite: bool = False,
) -> Path:
    """Write a selection and all that annotators need of it.

    Written are ``selection.json``, ``selection.csv``, ``scores.csv``, ``geojson/<image stem>.geojson`` and the crops
    ``regions/<rank>_<image stem>_x<x>_y<y>.png``. Everything is first written to a hidden folder beside, then moved;
    ``selection.json`` is moved last, so where it is, the rest is complete. The bytes depend on the arguments only:
    no times, no absolute paths.

    Args:
        folder: the output folder; made if absent.
        regions: the selected regions, in any order.
        budget: what was asked for, as ``selection.json`` shall say it.
        cost: {"windows", "images", "unique_pixels"}.
        created_with: versions, model hash, seed, settings; absolute paths in it are cut to their last part.
        items: the pool, dicts with at least "name", "page", "height" and "width".
        windows: every scored window, rows of (image, page, x, y, width, height, score); may be a generator.
        read: gives the pixels of an item, uint8, shape (1, H, W).
        overwrite: replace the former selection: its files go, other files in the folder stay.

    Returns:
        The path of ``selection.json``.

    Raises:
        KWTLError: when a selection is there and must stay, when the folder cannot be written (or the disk is full:
            the former selection is then still whole), or when a region is not inside an image of ``items``.
    """
    folder = Path(folder)
    check_output(folder, overwrite)
    regions = sorted(regions, key=lambda region: region.rank)
    unfinished = folder / _UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        for part in _PARTS:
            (unfinished / part).mkdir(parents=True)
        text = dump_selection(regions, budget=budget, cost=cost, created_with=created_with)
        (unfinished / SELECTION_NAME).write_text(text, encoding="ascii", newline="\n")
        _write_table(unfinished / "selection.csv", REGION_COLUMNS, (region_row(region) for region in regions))
        _write_table(unfinished / "scores.csv", WINDOW_COLUMNS, windows)
        _write_outlines(unfinished / "geojson", regions)
        _write_crops(unfinished / "regions", regions, items, read)
        _replace(folder, unfinished)
    except OSError as error:
        raise _cannot_write(folder, error.strerror or str(error)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder / SELECTION_NAME


def region_row(region: Region) -> list[Any]:
    """Return a region as the values of ``REGION_COLUMNS``."""
    return [getattr(region, column) for column in REGION_COLUMNS]


def feature_collection(regions: Iterable[Region]) -> dict[str, Any]:
    """Return the regions of one image as GeoJSON for QuPath: pixel units, origin top left, x right, y down.

    A page of a multi-page file becomes QuPath's z plane. The annotations are locked, so that outlining cells inside
    does not move them.

    Args:
        regions: of one image file.

    Returns:
        A FeatureCollection of closed rectangles through the pixel edges.
    """
    features = []
    for region in regions:
        left, top, right, bottom = region.box.corners
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
        if region.page is not None:
            geometry["plane"] = {"c": -1, "z": region.page, "t": 0}
        properties = {
            "objectType": "annotation",
            "name": f"rank {region.rank}",
            "classification": CLASSIFICATION,
            "isLocked": True,
            "measurements": {"rank": region.rank, "score": round_number(region.score)},
        }
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "kwtl": FORMAT, "features": features}


def _write_outlines(folder: Path, regions: Iterable[Region]) -> None:
    by_image: dict[str, list[Region]] = defaultdict(list)
    for region in regions:
        by_image[region.image].append(region)
    stems = safe_stems(by_image)
    for name, members in by_image.items():
        text = json.dumps(feature_collection(members), allow_nan=False) + "\n"
        (folder / f"{stems[name]}.geojson").write_text(text, encoding="ascii", newline="\n")


def _write_crops(folder: Path, regions: list[Region], items: Iterable[Mapping], read: Callable) -> None:
    by_key = {(item["name"], item.get("page")): item for item in items}
    wanted: dict[tuple, list[tuple[Region, str]]] = defaultdict(list)
    for region, name in zip(regions, region_file_names(regions), strict=True):
        wanted[region.image, region.page].append((region, name))
    for key, members in wanted.items():  # each image is read once
        if key not in by_key:
            raise KWTLError(f"the image {key[0]!r} of rank {members[0][0].rank} is not in the pool: score it again")
        try:
            pixels = np.asarray(read(by_key[key]))
        except OSError as error:  # not to be taken for a folder that cannot be written
            raise KWTLError(f"the image {key[0]!r} cannot be read any more ({error}): is it still there?") from error
        for region, name in members:
            crop = pixels[(..., *region.box.slices)]
            if crop.shape[1:] != (region.height, region.width):
                size = f"{pixels.shape[1]} rows x {pixels.shape[2]} columns"
                raise KWTLError(f"the region of rank {region.rank} leaves {region.image!r} ({size}): score it again")
            Image.fromarray(np.ascontiguousarray(crop[0])).save(folder / name)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    # surrogateescape: names that are not UTF-8 keep their bytes
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows((*row[:-1], round_number(row[-1])) for row in rows)


def _replace(folder: Path, unfinished: Path) -> None:
    (folder / SELECTION_NAME).unlink(missing_ok=True)  # from here until the last line there is no selection
    for stale in _former_files(folder):
        stale.unlink(missing_ok=True)
    for part in _PARTS:
        (folder / part).mkdir(exist_ok=True)
        for path in sorted((unfinished / part).iterdir()):
            os.replace(path, folder / part / path.name)
    for name in ("selection.csv", "scores.csv", SELECTION_NAME):
        os.replace(unfinished / name, folder / name)


def _former_files(folder: Path) -> list[Path]:
    """List crops and outlines of a former selection; recognised by what we write, so that other files stay."""
    crops = [path for path in folder.glob("regions/*.png") if _OUR_CROPS.fullmatch(path.name)]
    return crops + [path for path in folder.glob("geojson/*.geojson") if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return f'"kwtl": "{FORMAT}"'.encode() in file.read(100)


def _cannot_write(path: Path, reason: str) -> KWTLError:
    return KWTLError(f"{path} cannot be written ({reason}): choose another --output_dir")

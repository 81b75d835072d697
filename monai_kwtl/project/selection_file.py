"""The text of selection.json: how a selection is written, and how one that comes from outside is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import read_document

__all__ = ["FORMAT", "SELECTION_NAME", "dump_selection", "portable", "read_selection", "region_of", "region_to_dict"]

FORMAT = "kwtl-selection/1"
SELECTION_NAME = "selection.json"
FIX = "write the file again with select.json"
SCHEMA = Path(__file__).with_name("selection.schema.json")


def round_number(value: float) -> float:
    """Round to nine significant digits: beyond float32's precision, below the noise of summation order."""
    return float(f"{float(value):.9g}")


def portable(value: Any) -> Any:
    """Return plain JSON data that does not depend on the machine: sorted keys, rounded floats, no absolute paths.

    Args:
        value: nested mappings, sequences, NumPy or Python scalars, paths, strings, None.

    Returns:
        The same as dict, list, bool, int, float, str and None. An absolute path becomes its last part.

    Raises:
        TypeError: for anything that has no JSON form.
        ValueError: for NaN and infinity.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be written to {SELECTION_NAME}")
        return round_number(value)
    if isinstance(value, str | Path):
        text = str(value)
        if PureWindowsPath(text).is_absolute():
            return PureWindowsPath(text).name
        return PurePosixPath(text).name if PurePosixPath(text).is_absolute() else text
    if isinstance(value, Mapping):
        return {str(key): portable(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, np.ndarray):
        return portable(value.tolist())
    if isinstance(value, Iterable):
        return [portable(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def region_to_dict(region: Region) -> dict[str, Any]:
    """Return one entry of "regions", fields in the order of the format; "page" only for pages of a multi-page file."""
    page = {} if region.page is None else {"page": int(region.page)}
    return {
        "rank": int(region.rank),
        "image": region.image,
        **page,
        "image_sha256": region.image_sha256,
        "x": int(region.x),
        "y": int(region.y),
        "width": int(region.width),
        "height": int(region.height),
        "score": round_number(region.score),
    }


def dump_selection(regions: Iterable[Region], *, budget: Mapping, cost: Mapping, created_with: Mapping) -> str:
    """Return the text of selection.json; the same arguments give the same bytes on every machine.

    Args:
        regions: the selected regions; written by rising rank.
        budget: what was asked for.
        cost: what it takes: windows, images, unique_pixels.
        created_with: versions, model hash, seed and settings.

    Returns:
        ASCII JSON, indented by two, with a newline at the end.
    """
    document = {
        "format": FORMAT,
        "created_with": portable(created_with),
        "budget": portable(budget),
        "cost": portable(cost),
        "regions": [region_to_dict(region) for region in sorted(regions, key=lambda region: region.rank)],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def region_of(entry: Mapping[str, Any]) -> Region:
    """Return the region of an entry of "regions" that fits its schema."""
    return Region(
        rank=entry["rank"],
        image=entry["image"],
        page=entry.get("page"),
        image_sha256=entry["image_sha256"],
        x=entry["x"],
        y=entry["y"],
        width=entry["width"],
        height=entry["height"],
        score=float(entry["score"]),
    )


def read_selection(path: str | Path) -> dict[str, Any]:
    """Read and check a selection file; nothing in it is trusted.

    Args:
        path: a selection.json, or the folder that holds one.

    Returns:
        {"format", "created_with", "budget", "cost", "regions"}, the regions as :class:`Region`, by rising rank.

    Raises:
        KWTLError: one line with file, line or field, when it is not a valid selection: broken JSON, another format,
            a missing field, a wrong type or range, ranks other than 1..n, a region or rank given twice, two
            different hashes of one image, or an image name that leads out of the data set.
    """
    path = Path(path)
    path = path / SELECTION_NAME if path.is_dir() else path
    document = read_document(path, SELECTION_NAME, FIX, SCHEMA)
    regions = [region_of(entry) for entry in document["regions"]]
    if wrong := _wrong_together(regions):
        raise KWTLError(f"{path}: {wrong}; {FIX}")
    result = {key: document[key] for key in ("format", "created_with", "budget", "cost")}
    return {**result, "regions": sorted(regions, key=lambda region: region.rank)}


def _wrong_together(regions: list[Region]) -> str | None:
    """Say what is wrong with regions that are right one by one."""
    ranks: dict[int, int] = {}
    boxes: dict[tuple, int] = {}
    hashes: dict[str, str] = {}
    for index, region in enumerate(regions):
        if ranks.setdefault(region.rank, index) != index:
            return f"regions[{index}].rank {region.rank} is also that of regions[{ranks[region.rank]}]"
        if region.rank > len(regions):
            return f"regions[{index}].rank is {region.rank}, but the ranks must run from 1 to {len(regions)}"
        if boxes.setdefault(region.key, index) != index:
            return f"regions[{index}] is the same region as regions[{boxes[region.key]}]"
        if hashes.setdefault(region.image, region.image_sha256) != region.image_sha256:
            return f"regions[{index}].image_sha256 differs from that of an earlier region of the same image"
    return None

"""The text of selection.json: how a selection is written, and how one that comes from outside is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import Checker, read_document, short

__all__ = ["FORMAT", "SELECTION_NAME", "dump_selection", "portable", "read_region", "read_selection", "region_to_dict"]

FORMAT = "kwtl-selection/1"
SELECTION_NAME = "selection.json"
MEND = "write the file again with select.json"


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


def read_region(check: Checker, entry: Any, where: str) -> Region:
    """Read one entry of "regions" and check it.

    Args:
        check: of the file.
        entry: what stands there.
        where: the field, with a dot behind it, for messages.

    Raises:
        KWTLError: one line with file and field, for whatever is not as the format says.
    """
    if not isinstance(entry, dict):
        raise check.fail(f"{where.rstrip('.')} must be an object, not {short(entry)}")
    return Region(
        rank=check.whole(entry, "rank", where, 1),
        image=check.image_name(entry, where),
        page=check.whole(entry, "page", where, 0) if "page" in entry else None,
        image_sha256=check.sha256(entry, "image_sha256", where),
        x=check.whole(entry, "x", where, 0),
        y=check.whole(entry, "y", where, 0),
        width=check.whole(entry, "width", where, 1),
        height=check.whole(entry, "height", where, 1),
        score=check.number(entry, "score", where),
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
    document, check = read_document(path, SELECTION_NAME, MEND, FORMAT)
    result = {key: check.get(document, key, dict, "") for key in ("created_with", "budget", "cost")}
    for key in ("windows", "images", "unique_pixels"):
        if check.get(result["cost"], key, int, "cost.") < 0:
            raise check.fail(f"cost.{key} must not be negative")
    entries = check.get(document, "regions", list, "")
    regions = [read_region(check, entry, f"regions[{index}].") for index, entry in enumerate(entries)]
    _check_together(regions, check)
    return {"format": FORMAT, **result, "regions": sorted(regions, key=lambda region: region.rank)}


def _check_together(regions: list[Region], check: Checker) -> None:
    ranks: dict[int, int] = {}
    boxes: dict[tuple, int] = {}
    hashes: dict[str, str] = {}
    for index, region in enumerate(regions):
        if ranks.setdefault(region.rank, index) != index:
            raise check.fail(f"regions[{index}].rank {region.rank} is also that of regions[{ranks[region.rank]}]")
        if region.rank > len(regions):
            raise check.fail(f"regions[{index}].rank is {region.rank}, but the ranks must run from 1 to {len(regions)}")
        if boxes.setdefault(region.key, index) != index:
            raise check.fail(f"regions[{index}] is the same region as regions[{boxes[region.key]}]")
        if hashes.setdefault(region.image, region.image_sha256) != region.image_sha256:
            raise check.fail(f"regions[{index}].image_sha256 differs from that of an earlier region of the same image")

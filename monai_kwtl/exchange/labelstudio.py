"""Label Studio's JSON: crops as tasks, predictions as brush masks, submitted annotations back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image
from shapely import affinity

from monai_kwtl.exchange.annotation import IGNORED, Annotation, Handout, files_below, inner_name
from monai_kwtl.exchange.polygons import Canvas, ring_arrays
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import Checker, parse_json, short

__all__ = ["decode_brush", "encode_brush", "read_labelstudio", "write_labelstudio"]

WORD = 8  # bits of a value
LENGTHS = (3, 4, 8, 16)  # bits that the length of a run may be written in
CHANNELS = 4  # red, green, blue, alpha; alpha is the mask

FIX = "export the project again as JSON"
NOT_OURS = ("selection.json", "export.json")
CONFIG = """<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <BrushLabels name="brush" toName="image">
    <Label value="cell" background="#d55e00"/>
  </BrushLabels>
  <PolygonLabels name="polygon" toName="image" opacity="0.4">
    <Label value="cell" background="#0072b2"/>
  </PolygonLabels>
</View>
"""
SHAPES = ("brush", "brushlabels", "polygon", "polygonlabels", "rectangle", "rectanglelabels")


def write_labelstudio(folder: Path, handout: Handout) -> None:
    """Write ``tasks.json``, a task for each crop with the picture in it, and ``label_config.xml``."""
    tasks = []
    for index, (region, name, crop) in enumerate(zip(handout.regions, handout.names, handout.crops, strict=True)):
        data = {"image": _data_uri(crop), "region": Path(name).stem, "rank": region.rank, "source": region.image}
        task: dict[str, Any] = {"data": data}
        if handout.predictions is not None:
            labels = handout.predictions[index]
            cells = [_brush(labels == number, index, number) for number in range(1, int(labels.max(initial=0)) + 1)]
            task["predictions"] = [{"model_version": "kwtl", "result": cells}]
        tasks.append(task)
    text = json.dumps(tasks, allow_nan=False) + "\n"
    (folder / "tasks.json").write_text(text, encoding="ascii", newline="\n")
    (folder / "label_config.xml").write_text(CONFIG, encoding="ascii", newline="\n")


def _data_uri(crop: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _brush(mask: np.ndarray, index: int, number: int) -> dict[str, Any]:
    return {
        "id": f"region{index + 1}cell{number}",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["cell"]},
    }


def read_labelstudio(folder: Path, regions: Sequence[Region], names: Sequence[str]) -> list[Annotation]:
    """Read every JSON export below a folder.

    A region is finished where its task has an annotation that was submitted, also an empty one; skipped ones are not,
    and predictions do not count. Brush masks, polygons and rectangles are read, of all labels but those that begin with
    "ignore".

    Args:
        folder: of the files.
        regions: of the selection.
        names: of their crops.

    Raises:
        KWTLError: one line with file and field, for what is no such export, or does not fit the regions.
    """
    by_stem = {Path(name).stem.casefold(): region for name, region in zip(names, regions, strict=True)}
    found: list[Annotation] = []
    for path in files_below(folder, (".json",)):
        if path.name in NOT_OURS:
            continue
        tasks, check = parse_json(path, "Label Studio export"), Checker(path, FIX)
        if not isinstance(tasks, list):
            raise check.fail(f"must hold a list of tasks, not {short(tasks)}")
        for index, task in enumerate(tasks):
            found += _read_task(path, check, task, f"[{index}].", by_stem)
    return found


def _read_task(path: Path, check: Checker, task: Any, where: str, by_stem: Mapping[str, Region]) -> list[Annotation]:
    if not isinstance(task, dict):
        raise check.fail(f"{where[:-1]} must be an object, not {short(task)}")
    data = check.get(task, "data", dict, where)
    region = by_stem.get(inner_name(check.get(data, "region", str, f"{where}data."), path).casefold())
    if region is None or "annotations" not in task:
        return []
    found = []
    for index, entry in enumerate(check.get(task, "annotations", list, where)):
        inner = f"{where}annotations[{index}]."
        if not isinstance(entry, dict):
            raise check.fail(f"{inner[:-1]} must be an object, not {short(entry)}")
        canvas, objects = Canvas(region.height, region.width), 0
        for number, result in enumerate(check.get(entry, "result", list, inner)):
            try:
                objects += _paint(canvas, result)
            except ValueError as error:
                raise check.fail(f"{inner}result[{number}]: {error}") from error
        source = f"{path} annotation {short(entry.get('id', index))}"
        submitted = entry.get("was_cancelled") is not True
        found.append(Annotation(region.rank, canvas.mask, objects, submitted, source, _time(entry, path)))
    return found


def _time(entry: Mapping[str, Any], path: Path) -> float:
    for key in ("updated_at", "created_at"):
        text = entry.get(key)
        try:
            # Python 3.10 does not know the Z
            time = datetime.fromisoformat(text.replace("Z", "+00:00"))
            return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
        except (AttributeError, ValueError, OverflowError):
            continue
    return path.stat().st_mtime


def _paint(canvas: Canvas, result: Any) -> bool:
    """Paint what one result outlines; returns whether that has any pixel."""
    if not isinstance(result, dict):
        raise ValueError(f"must be an object, not {short(result)}")
    kind, value = result.get("type"), result.get("value")
    if kind not in SHAPES:
        return False  # choices, texts and relations say nothing of pixels
    if not isinstance(value, dict):
        raise ValueError(f"value must be an object, not {short(value)}")
    names = value.get(kind)
    if isinstance(names, list) and names and str(names[0]).casefold().startswith(IGNORED):
        return False
    size = result.get("original_height"), result.get("original_width")
    height, width = canvas.mask.shape
    if size != (height, width) or result.get("image_rotation") not in (0, None):
        raise ValueError("is of an image of another size, or turned")
    if kind.startswith("brush"):
        if value.get("format") != "rle":
            raise ValueError("a brush mask must be in the format rle")
        cell = decode_brush(value.get("rle"), (height, width))
        canvas.mask |= cell
        return bool(cell.any())
    if kind.startswith("polygon"):
        points = value.get("points")
    else:
        try:
            left, top, across, down = (float(value[key]) for key in ("x", "y", "width", "height"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError("a rectangle must have numbers x, y, width and height") from error
        points = [[left, top], [left + across, top], [left + across, top + down], [left, top + down]]
    (ring,) = ring_arrays([points])
    ring = ring * (width / 100.0, height / 100.0)
    turn = value.get("rotation", 0)
    if turn:
        if not isinstance(turn, (int, float)) or not abs(turn) <= 360 or kind.startswith("polygon"):
            raise ValueError(f"rotation must be degrees of a rectangle, not {short(turn)}")
        ring = shapely.get_coordinates(affinity.rotate(shapely.MultiPoint(ring), turn, origin=tuple(ring[0])))
    return canvas.paint([[ring]])


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask.

    The stream, highest bit first: how many values there are (32 bits); bits of a value, less one (5); four bit lengths
    of run lengths, less one (4 each). Then blocks: 1 for a run of one value, 0 for values one by one; which of the four
    bit lengths follows (2); the length of the block, less one; the value or the values. Values are those of an RGBA
    picture, row by row.

    Args:
        mask: bool (H, W).

    Returns:
        Bytes, as numbers from 0 to 255.
    """
    values = np.repeat(np.asarray(mask, dtype=bool).ravel(), CHANNELS)
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges])
    bits = [f"{values.size:032b}{WORD - 1:05b}", *(f"{length - 1:04b}" for length in LENGTHS)]
    longest = 1 << LENGTHS[-1]
    for start, stop in zip(starts.tolist(), [*edges.tolist(), values.size], strict=True):
        value = 255 if values[start] else 0
        for begin in range(start, stop, longest):
            count = min(stop - begin, longest) - 1
            which = next(n for n, length in enumerate(LENGTHS) if count < 1 << length)
            bits.append(f"1{which:02b}{count:0{LENGTHS[which]}b}{value:0{WORD}b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


class _Bits:
    """Reads numbers from a stream of bits."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place, self.end = data, 0, 8 * len(data)

    def read(self, count: int) -> int:
        stop = self.place + count
        if stop > self.end:
            raise ValueError("the brush mask ends too early")
        chunk = int.from_bytes(self.data[self.place >> 3 : (stop + 7) >> 3], "big")
        self.place = stop
        return (chunk >> (-stop % 8)) & ((1 << count) - 1)


def decode_brush(encoded: Any, shape: tuple[int, int]) -> np.ndarray:
    """Decode a mask.

    Args:
        encoded: as :func:`encode_brush` gives it.
        shape: rows and columns.

    Returns:
        bool (H, W): whether alpha is above 0.

    Raises:
        ValueError: one line, for anything else, or a mask of another size. Nothing larger than the mask is made.
    """
    try:
        bits = _Bits(bytes(encoded) if isinstance(encoded, list) else bytes([256]))
    except (TypeError, ValueError) as error:
        raise ValueError("a brush mask must be a list of numbers from 0 to 255") from error
    size = bits.read(32)
    if size != CHANNELS * shape[0] * shape[1]:
        raise ValueError(f"the brush mask is not of {shape[0]} x {shape[1]} pixels")
    word = bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    values = np.zeros(size, dtype=bool)
    place = 0
    while place < size:
        run = bits.read(1)
        stop = place + bits.read(lengths[bits.read(2)]) + 1
        if stop > size:
            raise ValueError("the brush mask holds more than its size")
        if run:
            values[place:stop] = bits.read(word) > 0
        else:
            values[place:stop] = [bits.read(word) > 0 for _ in range(stop - place)]
        place = stop
    return values.reshape(*shape, CHANNELS)[..., -1]

"""COCO instances as CVAT imports and exports them: crops as images, cells as polygons or run lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from PIL import Image

from monai_kwtl.exchange.annotation import (
    FINISHED,
    IGNORED,
    REGION_CLASSES,
    UNFINISHED,
    Annotation,
    Handout,
    files_below,
    inner_name,
)
from monai_kwtl.exchange.polygons import Canvas, mask_polygons, ring_arrays
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import Checker, parse_json, short

__all__ = [
    "CocoImage",
    "decode_counts",
    "encode_counts",
    "paint_image",
    "read_cvat",
    "read_images",
    "rings_of",
    "unpack_counts",
    "write_cvat",
]

CATEGORIES = ("cell", FINISHED, UNFINISHED)
LABELS_NAME = "cvat_labels.json"
NOT_COCO = ("selection.json", "export.json", LABELS_NAME)
FIX = "export the annotations again as COCO 1.0"


def encode_counts(mask: np.ndarray) -> list[int]:
    """Encode a mask as COCO's run lengths: down the columns, background first.

    Args:
        mask: bool (H, W).

    Returns:
        Lengths of runs, background and foreground in turn; the first is 0 where the first pixel is foreground.
    """
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def decode_counts(counts: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Decode run lengths to a mask.

    Args:
        counts: as :func:`encode_counts` gives them.
        shape: rows and columns.

    Returns:
        bool (H, W).

    Raises:
        ValueError: one line, unless they are whole numbers, not negative, that sum up to the size of the mask. Nothing
            larger than the mask is made to find out.
    """
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise ValueError("run lengths must be whole numbers from 0")
    if sum(counts) != shape[0] * shape[1]:
        raise ValueError(f"run lengths do not sum up to {shape[0]} x {shape[1]} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, np.array(counts, dtype=np.int64)).reshape(shape, order="F")


def unpack_counts(text: str) -> list[int]:
    """Decode run lengths from COCO's compressed form, a text.

    Each number is in pieces of five bits, lowest first, 48 added to make it a character; the sixth bit says that
    another piece follows, the highest bit of the last piece is the sign. From the fourth number on, what stands there
    is the difference to the number two places before.

    Raises:
        ValueError: one line, for characters that do not occur in it, numbers beyond 60 bits, or an end within one.
    """
    counts: list[int] = []
    value, bits = 0, 0
    for character in text:
        piece = ord(character) - 48
        if not 0 <= piece < 64 or bits > 55:
            raise ValueError("compressed run lengths hold something that is none")
        value |= (piece & 31) << bits
        bits += 5
        if piece & 32:
            continue
        if piece & 16:
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, bits = 0, 0
    if bits:
        raise ValueError("compressed run lengths end within a number")
    return counts


def write_cvat(folder: Path, handout: Handout) -> None:
    """Write ``images/<crop>.png``, ``annotations/instances_default.json`` and ``cvat_labels.json``.

    With predictions each image also has a rectangle of the label ``unfinished``, so that nothing counts before it was
    looked at.
    """
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index, (region, name, crop) in enumerate(zip(handout.regions, handout.names, handout.crops, strict=True)):
        Image.fromarray(crop).save(folder / "images" / name)
        images.append({"id": index + 1, "file_name": name, "width": region.width, "height": region.height})
        if handout.predictions is None:
            continue
        box = [0, 0, region.width, region.height]
        marks = [{"segmentation": [], "bbox": box, "area": region.width * region.height, "category_id": 3}]
        cells = _cells(handout.predictions[index])
        for entry in [*marks, *cells]:
            annotations.append({"iscrowd": 0, **entry, "id": len(annotations) + 1, "image_id": index + 1})
    document = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"description": "KWTL regions", "version": "1"},
        "categories": [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(CATEGORIES, start=1)],
        "images": images,
        "annotations": annotations,
    }
    text = json.dumps(document, allow_nan=False) + "\n"
    (folder / "annotations" / "instances_default.json").write_text(text, encoding="ascii", newline="\n")
    labels = [{"name": name, "attributes": []} for name in CATEGORIES]
    (folder / LABELS_NAME).write_text(json.dumps(labels, indent=2) + "\n", encoding="ascii", newline="\n")


def _cells(labels: np.ndarray) -> list[dict[str, Any]]:
    """Return the cells of a mask as COCO annotations; those with holes as run lengths, as polygons have none."""
    cells = []
    for number, polygon in enumerate(mask_polygons(labels), start=1):
        left, top, right, bottom = polygon.bounds
        entry = {"bbox": [left, top, right - left, bottom - top], "area": polygon.area, "category_id": 1}
        if polygon.geom_type == "Polygon" and not polygon.interiors:
            ring = shapely.get_coordinates(polygon.exterior)[:-1]
            cells.append({**entry, "segmentation": [ring.ravel().tolist()]})
        else:
            size = list(labels.shape)
            counts = encode_counts(labels == number)
            cells.append({**entry, "segmentation": {"size": size, "counts": counts}, "iscrowd": 1})
    return cells


def read_cvat(folder: Path, regions: Sequence[Region], names: Sequence[str]) -> list[Annotation]:
    """Read every COCO file below a folder.

    A region is finished where its image has an annotation of the label ``finished``, or has one of a cell and none of
    the label ``unfinished``. Annotations of all other labels are cells, but those of labels that begin with "ignore".

    Args:
        folder: of the files, unpacked.
        regions: of the selection.
        names: of their crops.

    Raises:
        KWTLError: one line with file and field, for what is no COCO, or does not fit the regions.
    """
    by_stem = {Path(name).stem.casefold(): region for name, region in zip(names, regions, strict=True)}
    found: list[Annotation] = []
    for path in files_below(folder, (".json",)):
        if path.name not in NOT_COCO:
            found += _read_file(path, by_stem)
    return found


class CocoImage(NamedTuple):
    """An image of a COCO file.

    Args:
        where: it stands in the file, for messages.
        file_name: as it is in the file.
        size: height and width, as far as the file says them.
        entries: of each annotation where it stands, its label in small letters, and the annotation.
    """

    where: str
    file_name: str
    size: tuple[int | None, int | None]
    entries: list[tuple[str, str, Mapping[str, Any]]]


def read_images(document: Any, check: Checker) -> list[CocoImage]:
    """Read the images of a COCO document and their annotations, but those of labels that begin with "ignore".

    Args:
        document: what the file holds. Without categories, and for annotations without one, the label is empty.
        check: makes the errors.

    Raises:
        KWTLError: one line with file and field, for what is no COCO.
    """
    if not isinstance(document, dict):
        raise check.fail(f"must hold an object, not {short(document)}")
    kinds: dict[int, str] = {}
    for index, entry in enumerate(check.get(document, "categories", list, "") if "categories" in document else []):
        where = f"categories[{index}]."
        kinds[_id(check, entry, "id", where)] = check.get(entry, "name", str, where).strip().casefold()
    by_id: dict[int, CocoImage] = {}
    for index, entry in enumerate(check.get(document, "images", list, "")):
        where = f"images[{index}]."
        number = _id(check, entry, "id", where)
        if number in by_id:
            raise check.fail(f"{where}id {number} is that of another image")
        name = check.get(entry, "file_name", str, where)
        height, width = (check.whole(entry, key, where, 1) if key in entry else None for key in ("height", "width"))
        by_id[number] = CocoImage(where, name, (height, width), [])
    for index, entry in enumerate(check.get(document, "annotations", list, "")):
        where = f"annotations[{index}]."
        image = _id(check, entry, "image_id", where)
        category = _id(check, entry, "category_id", where) if "category_id" in entry else None
        if image not in by_id or (kinds and category is not None and category not in kinds):
            raise check.fail(f"{where[:-1]} is of an image or a category that is not there")
        kind = kinds.get(category, "")
        if not kind.startswith(IGNORED):
            by_id[image].entries.append((where[:-1], kind, entry))
    return list(by_id.values())


def paint_image(
    canvas: Canvas, image: CocoImage, what: str, check: Checker
) -> tuple[int, list[tuple[str, Mapping[str, Any]]]]:
    """Paint the cells of an image.

    Args:
        canvas: of its size.
        image: of :func:`read_images`.
        what: the image is to us, for messages.
        check: makes the errors.

    Returns:
        How many cells have any pixel; and label and annotation of what marks a region.

    Raises:
        KWTLError: one line with file and field, when the image is of another size, an annotation cannot be read, or
            there is too much to paint.
    """
    height, width = canvas.mask.shape
    if image.size[0] not in (None, height) or image.size[1] not in (None, width):
        raise check.fail(
            f"{image.where} {short(image.file_name)} is {image.size[1]} wide and {image.size[0]} high, but {what} is "
            f"{width} wide and {height} high"
        )
    objects, marks = 0, []
    for where, kind, entry in image.entries:
        if kind in REGION_CLASSES:
            marks.append((kind, entry))
            continue
        try:
            objects += _paint_cell(canvas, entry)
        except ValueError as error:
            raise check.fail(f"{where}: {error}") from error
    return objects, marks


def _read_file(path: Path, by_stem: Mapping[str, Region]) -> list[Annotation]:
    check, found = Checker(path, FIX), {}
    for image in read_images(parse_json(path, "COCO file"), check):
        region = by_stem.get(Path(inner_name(image.file_name, path)).stem.casefold())
        if region is None:
            continue
        if region.rank in found:
            raise check.fail(f"two images are the crop of rank {region.rank}")
        canvas = Canvas(region.height, region.width)
        objects, marks = paint_image(canvas, image, f"the region of rank {region.rank}", check)
        finished = _finished({kind for kind, _ in marks}, objects)
        found[region.rank] = Annotation(region.rank, canvas.mask, objects, finished, str(path), path.stat().st_mtime)
    return list(found.values())


def _id(check: Checker, entry: Any, key: str, where: str) -> int:
    if not isinstance(entry, dict):
        raise check.fail(f"{where[:-1]} must be an object, not {short(entry)}")
    return check.get(entry, key, int, where)


def _finished(marks: set[str], objects: int) -> bool:
    return FINISHED in marks or (UNFINISHED not in marks and objects > 0)


def _paint_cell(canvas: Canvas, entry: Mapping[str, Any]) -> bool:
    """Paint the ``segmentation`` of an annotation, polygons or run lengths, else its ``bbox``."""
    shape = entry.get("segmentation")
    if isinstance(shape, dict):
        cell = _decode(shape, canvas.mask.shape)
        canvas.mask |= cell
        return bool(cell.any())
    return canvas.paint([[ring] for ring in rings_of(entry)])


def rings_of(entry: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the outlines of an annotation: its polygons, else its ``bbox``, float64 (N, 2); none of run lengths.

    Raises:
        ValueError: one line, for what is neither.
    """
    shape = entry.get("segmentation")
    if isinstance(shape, dict):
        return []
    if not isinstance(shape, list):
        raise ValueError(f"segmentation must be polygons or run lengths, not {short(shape)}")
    return ring_arrays([_points(flat) for flat in shape] or [_rectangle(entry.get("bbox"))])


def _points(flat: Any) -> np.ndarray:
    try:
        numbers = np.asarray(flat, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("a polygon must be a list of numbers") from error
    if numbers.ndim != 1 or numbers.size % 2:
        raise ValueError("a polygon must be a list of numbers x, y, x, y, ...")
    return numbers.reshape(-1, 2)


def _rectangle(box: Any) -> list[tuple[float, float]]:
    numbers = _points(box if isinstance(box, list) and len(box) == 4 else None)
    (x, y), (width, height) = numbers
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def _decode(shape: Mapping[str, Any], expected: tuple[int, ...]) -> np.ndarray:
    if shape.get("size") != list(expected):
        raise ValueError(f"run lengths are of size {short(shape.get('size'))}, the image is of {list(expected)}")
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = unpack_counts(counts)
    if not isinstance(counts, list):
        raise ValueError(f"counts must be a list or a text, not {short(counts)}")
    return decode_counts(counts, (expected[0], expected[1]))

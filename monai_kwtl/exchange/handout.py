"""The folder that goes to the annotator: written for one tool, and read back into masks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import Annotation, Handout, resolve
from monai_kwtl.exchange.coco import read_cvat, write_cvat
from monai_kwtl.exchange.geojson import read_qupath, write_qupath
from monai_kwtl.exchange.labelstudio import read_labelstudio, write_labelstudio
from monai_kwtl.exchange.masks import write_masks
from monai_kwtl.exchange.png import read_napari, read_png, write_napari, write_png
from monai_kwtl.exchange.predictions import predict_regions
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.region_masks import check_images
from monai_kwtl.project.selection_file import SELECTION_NAME, read_selection
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import read_pixels
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["Imported", "TOOLS", "export_regions", "import_regions"]

EXPORT_NAME = "export.json"
FORMAT = "kwtl-export/1"


class Tool(NamedTuple):
    """Writer and reader of an annotation tool, and what its user does."""

    write: Callable[[Path, Handout], None]
    read: Callable[[Path, Sequence[Region], Sequence[str]], list[Annotation]]
    needs_crops: bool
    what_to_do: str


TOOLS: dict[str, Tool] = {
    "qupath": Tool(
        write_qupath,
        read_qupath,
        False,
        "Open each image in QuPath, drag its file from geojson/ onto it, outline every cell in the rectangles. Set the "
        "class of a rectangle to 'finished' when it is done, or to 'unfinished' to have it left out. Export all "
        "objects as GeoJSON (FeatureCollection) into this folder.",
    ),
    "cvat": Tool(
        write_cvat,
        read_cvat,
        True,
        "Make a CVAT task with the labels of cvat_labels.json (Raw) and the files of images/, upload "
        "annotations/instances_default.json as COCO 1.0, and outline every cell. Draw anything with the label "
        "'finished' on a region without cells; delete the rectangle 'unfinished' of one that is done. Export as COCO "
        "1.0 and unpack the zip file into this folder.",
    ),
    "labelstudio": Tool(
        write_labelstudio,
        read_labelstudio,
        True,
        "Make a Label Studio project with the labelling interface of label_config.xml, import tasks.json, outline "
        "every cell and submit; a task that is submitted is finished, a skipped one is not. Export as JSON into this "
        "folder.",
    ),
    "png": Tool(
        write_png,
        read_png,
        True,
        "Paint every cell of images/NAME.png and save the mask as masks/NAME.png, 0 background, anything else cell. "
        "With start/NAME.png, correct that. A region without a mask in masks/ is not finished.",
    ),
    "napari": Tool(
        write_napari,
        read_napari,
        True,
        "Open images/NAME.tif and start/NAME.tif (as labels) in napari, give every cell a number, and save the labels "
        "layer as labels/NAME.tif. A region without a file in labels/ is not finished.",
    ),
}


def export_regions(
    selection: str | os.PathLike,
    tool: str,
    output: str | os.PathLike,
    dataset_dir: str | os.PathLike | None = None,
    predictions: str | os.PathLike | None = None,
) -> int:
    """Write a folder for the annotator, complete or not at all.

    Args:
        selection: path of ``selection.json``, or its folder; crops are taken from ``regions/`` beside it, where they
            are and no ``dataset_dir`` is given.
        tool: a name in :data:`TOOLS`.
        output: the folder; must not be there, or be empty.
        dataset_dir: folder of the images.
        predictions: weights of a network, or a folder of masks, to draw outlines beforehand; needs ``dataset_dir``.

    Returns:
        The number of regions.

    Raises:
        KWTLError: when something is missing, does not fit, or the folder is taken.
    """
    if tool not in TOOLS:
        raise KWTLError(f"--to must be one of {', '.join(TOOLS)}, got {tool!r}.")
    path = Path(selection)
    path = path / SELECTION_NAME if path.is_dir() else path
    document = read_selection(path)
    rescale = document["created_with"].get("rescale")
    regions = document["regions"]
    if not regions:
        raise KWTLError(f"{path} holds no regions: there is nothing to hand out")
    output = Path(output)
    _check_free(output)
    if predictions is not None and dataset_dir is None:
        raise KWTLError("--predictions needs --dataset_dir: the folder of the images")
    items = None if dataset_dir is None else load_pool(dataset_dir, with_labels=False)
    if items is not None:
        check_images(regions, items)
    names = region_file_names(regions)
    handout = Handout(
        regions=regions,
        names=names,
        crops=_crops(path.parent, regions, names, items, rescale) if TOOLS[tool].needs_crops else [],
        predictions=None if predictions is None else predict_regions(predictions, regions, items or [], rescale),
    )
    note = {"format": FORMAT, "tool": tool, "dataset_dir": None if dataset_dir is None else str(dataset_dir)}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", suffix=".unfinished") as name:
            unfinished = Path(name, "export")
            unfinished.mkdir()
            TOOLS[tool].write(unfinished, handout)
            shutil.copyfile(path, unfinished / SELECTION_NAME)
            (unfinished / EXPORT_NAME).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            (unfinished / "what_to_do.txt").write_text(TOOLS[tool].what_to_do + "\n", encoding="utf-8")
            if output.exists():
                output.rmdir()
            os.replace(unfinished, output)
    except OSError as error:
        raise KWTLError(f"{output} cannot be written ({error.strerror or error}): choose another --output") from error
    return len(regions)


def _check_free(output: Path) -> None:
    try:
        taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except OSError as error:
        raise KWTLError(f"cannot look into {output} ({error.strerror}): choose another --output") from error
    if taken:
        raise KWTLError(f"{output} already holds something: choose another --output, so that no annotation is lost")


def _crops(
    folder: Path, regions: Sequence[Region], names: Sequence[str], items: Sequence[Mapping] | None, rescale: Any
) -> list[np.ndarray]:
    if items is not None:
        by_key = {(item["name"], item["page"]): item for item in items}
        images: dict[tuple, np.ndarray] = {}
        crops = []
        for r in regions:
            key = r.image, r.page
            if key not in images:
                images[key] = read_image(by_key[key], rescale)[0]
            crops.append(images[key][r.box.slices])
        return crops
    crops = []
    for region, name in zip(regions, names, strict=True):
        path = folder / "regions" / name
        try:
            crop = read_pixels(path)
        except UnreadableError as error:
            raise KWTLError(f"cannot read the crop {path} ({error}): give the images with --dataset_dir") from error
        if crop.shape != (region.height, region.width) or crop.dtype != np.uint8:
            raise KWTLError(f"{path} is not the crop of rank {region.rank}: give the images with --dataset_dir")
        crops.append(crop)
    return crops


class Imported(NamedTuple):
    """Result of an import.

    Args:
        regions: of the selection.
        finished: ranks of those that have a mask now.
        unfinished: ranks of those that were annotated, but are not finished.
        written: how many masks are new or changed.
        replaced: how many masks were moved to ``replaced/``.
        objects: outlined in all finished regions together, as far as the format tells.
        notes: sentences on conflicts.
        selection_sha256: of the selection.
        dataset_dir: that the export was told of.
    """

    regions: list[Region]
    finished: list[int]
    unfinished: list[int]
    written: int
    replaced: int
    objects: int
    notes: list[str]
    selection_sha256: str
    dataset_dir: str | None


def import_regions(
    work: str | os.PathLike,
    tool: str,
    output: str | os.PathLike,
    conflict: str = "newest",
    force: bool = False,
) -> Imported:
    """Read what the annotator made of an exported folder, and write a mask for each finished region.

    Args:
        work: the exported folder, with the annotations in it.
        tool: a name in :data:`TOOLS`; may be another than it was exported for, if files of that tool are there.
        output: folder of the masks, and of ``regions.json``, which says what they are of.
        conflict: as in :func:`~monai_kwtl.exchange.annotation.resolve`.
        force: whether masks that are there already and differ may be replaced; they are kept in ``replaced/``.

    Raises:
        KWTLError: when something cannot be read or does not fit, no region is finished, or masks are there that must
            stay; nothing is written then.
    """
    if tool not in TOOLS:
        raise KWTLError(f"--from must be one of {', '.join(TOOLS)}, got {tool!r}.")
    folder = Path(work)
    if not (folder / SELECTION_NAME).is_file():
        raise KWTLError(f"{folder} is no exported folder ({SELECTION_NAME} is missing): give that of kwtl export")
    regions = read_selection(folder)["regions"]
    digest = file_sha256(folder / SELECTION_NAME)
    annotations = TOOLS[tool].read(folder, regions, region_file_names(regions))
    chosen, notes = resolve(annotations, conflict)
    unfinished = sorted({annotation.rank for annotation in annotations} - chosen.keys())
    if not chosen:
        raise KWTLError(f"no region in {folder} is finished: {TOOLS[tool].what_to_do}")
    written, replaced = write_masks(output, regions, chosen, digest, tool, force)
    objects = sum(annotation.objects for annotation in chosen.values())
    dataset = _dataset_of(folder)
    return Imported(regions, sorted(chosen), unfinished, written, replaced, objects, notes, digest, dataset)


def _dataset_of(folder: Path) -> str | None:
    """Return the folder of images that the export noted, where it still says so."""
    try:
        note = json.loads((folder / EXPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    dataset = note.get("dataset_dir") if isinstance(note, dict) else None
    return dataset if isinstance(dataset, str) and os.path.isdir(dataset) else None

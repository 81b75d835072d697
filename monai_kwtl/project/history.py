"""Rounds of labelling: what each stage notes of them in ``project.json``, and the curve that they make."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_kwtl.data.loading import read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.project.mask_index import MaskRecord, has_record, read_record
from monai_kwtl.project.project_file import (
    Round,
    expected_selections,
    forget_selection,
    now,
    read_project,
    relative,
    remember_selection,
    selection_sha256,
    update_project,
)
from monai_kwtl.project.selection_file import read_selection, region_to_dict
from monai_kwtl.utils.distributed import is_main_process
from monai_kwtl.utils.hashing import file_sha256

__all__ = [
    "TrainingNote",
    "curve",
    "curve_of",
    "expect_selection",
    "mask_results",
    "note_masks",
    "note_missed",
    "note_selection",
    "note_training",
]

logger = logging.getLogger("monai_kwtl")


def expect_selection(dataset: str | os.PathLike, selection: str | os.PathLike) -> None:
    """Remember a selection before it is written, so that it is noted even where its process dies.

    Args:
        dataset: folder of the images.
        selection: path of the ``selection.json``.
    """
    if is_main_process():
        remember_selection(dataset, selection)


def note_selection(dataset: str | os.PathLike, selection: str | os.PathLike) -> None:
    """Note a selection as a round; one that was written anew before any mask came replaces its former self.

    Args:
        dataset: folder of the images.
        selection: path of the ``selection.json``.
    """
    if not is_main_process():
        return
    document = read_selection(selection)
    entry = {
        "path": relative(selection, dataset),
        "sha256": file_sha256(selection),
        "time": now(),
        "strategy": str(document["created_with"].get("strategy", "")),
        **{key: document["cost"][key] for key in ("windows", "images", "unique_pixels")},
        "regions": [region_to_dict(region) for region in document["regions"]],
    }

    def change(rounds: list[Round]) -> list[Round] | None:
        if any(each["selection"]["sha256"] == entry["sha256"] for each in rounds):
            return None  # the same once more
        kept = [each for each in rounds if each["masks"] or each["selection"]["path"] != entry["path"]]
        return [*kept, {"selection": entry, "masks": None, "model": None}]

    if update_project(dataset, change):
        forget_selection(dataset, selection)


def note_missed(dataset: str | os.PathLike) -> None:
    """Note selections whose process died after it had written them and before it could note them.

    Args:
        dataset: folder of the images.
    """
    if not is_main_process():
        return
    for path, before in expected_selections(dataset).items():
        selection = Path(dataset, path)
        if selection_sha256(selection) not in (None, before):
            try:
                note_selection(dataset, selection)
            except KWTLError as error:
                logger.warning(f"a selection that was interrupted is not noted: {error}")
            else:
                logger.info(f"{os.path.relpath(selection)} was written, but not noted: it is a round now")


def mask_results(folder: str | os.PathLike, records: Iterable[MaskRecord]) -> dict[str, Any]:
    """Return the number of masks of a round, their pixels, and their fraction of foreground."""
    records = list(records)
    masks = [read_label({"label": str(Path(folder, record.mask))}) for record in records]
    pixels = sum(mask.size for mask in masks)
    foreground = sum(int(np.count_nonzero(mask)) for mask in masks)
    source = ", ".join(sorted({record.source for record in records}))
    return {"source": source, "regions": len(records), "pixels": pixels, "foreground": foreground / max(pixels, 1)}


def note_masks(dataset: str | os.PathLike, labels: str | os.PathLike) -> bool:
    """Note the masks of a folder in the rounds that their regions come from.

    Args:
        dataset: folder of the images.
        labels: folder of the masks, with the note of ``kwtl import``.

    Returns:
        Whether ``project.json`` says so now.
    """
    note_missed(dataset)
    by_selection: dict[str, list[MaskRecord]] = {}
    for record in read_record(labels):
        if Path(labels, record.mask).is_file():
            by_selection.setdefault(record.selection_sha256, []).append(record)
    results = {sha256: mask_results(labels, records) for sha256, records in by_selection.items()}

    def change(rounds: list[Round]) -> list[Round] | None:
        changed = False
        for entry in rounds:
            found = results.get(entry["selection"]["sha256"])
            if found is not None:
                found = {"path": relative(labels, dataset), **found}
                former = {key: value for key, value in (entry["masks"] or {}).items() if key != "time"}
                if former != found:
                    entry["masks"], changed = {**found, "time": now()}, True
        return rounds if changed else None

    return update_project(dataset, change)


def note_training(
    dataset: str | os.PathLike | None,
    weights: str | os.PathLike,
    labels: str | os.PathLike | None,
    selection: str | os.PathLike | None,
    parts: tuple[Sequence, Sequence],
) -> None:
    """Note a model in the last round that its masks belong to; of whole images, none does.

    Args:
        dataset: folder of the images; None notes nothing.
        weights: path of the model; its note beside it tells the IoU on what was held out.
        labels: folder of the masks.
        selection: path of the ``selection.json`` that was trained with, or None.
        parts: of the support set: trained on, held out.
    """
    if dataset is None or labels is None or not is_main_process():
        return
    if selection is not None:
        used = {file_sha256(Path(selection) / "selection.json" if Path(selection).is_dir() else selection)}
    elif has_record(labels):
        used = {record.selection_sha256 for record in read_record(labels)}
        note_masks(dataset, labels)
    else:
        return
    try:
        note = json.loads(Path(weights).with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        note = {}
    iou = note.get("held_out_iou")
    model = {
        "path": relative(weights, dataset),
        "sha256": file_sha256(weights),
        "time": now(),
        "labelled_images": len(parts[0]) + len(parts[1]),
        "held_out_images": len(parts[1]),
        "held_out_iou": iou if isinstance(iou, float) and 0 <= iou <= 1 else None,
    }
    entries = [entry for part in parts for entry in part]
    known = sum(int(np.count_nonzero(entry["known"])) if "known" in entry else entry["label"].size for entry in entries)
    filled = sum(int(np.count_nonzero(entry["label"])) for entry in entries)

    def change(rounds: list[Round]) -> list[Round] | None:
        mine = [entry for entry in rounds if entry["selection"]["sha256"] in used]
        if not mine or (mine[-1]["model"] or {}).get("sha256") == model["sha256"]:
            return None
        mine[-1]["model"] = model
        if selection is not None:  # masks that were not imported
            regions = sum(len(entry.get("regions", ())) for entry in entries)
            results = {"regions": regions, "pixels": known, "foreground": filled / max(known, 1)}
            mine[-1]["masks"] = {"path": relative(labels, dataset), "time": now(), "source": "", **results}
        return rounds

    update_project(dataset, change)


class TrainingNote:
    """Note a model in ``project.json`` when its training is completed; attach it after what writes the weights.

    Args:
        dataset: as of :func:`note_training`.
        weights: as of :func:`note_training`.
        labels: as of :func:`note_training`.
        selection: as of :func:`note_training`.
        parts: as of :func:`note_training`.
    """

    def __init__(
        self,
        dataset: str | os.PathLike | None,
        weights: str | os.PathLike,
        labels: str | os.PathLike | None,
        selection: str | os.PathLike | None,
        parts: tuple[Sequence, Sequence],
    ) -> None:
        self.arguments = dataset, weights, labels, selection, parts

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self) -> None:
        """Note the model."""
        note_training(*self.arguments)


def curve_of(dataset: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the :func:`curve` of a folder's project; empty where the project cannot be read."""
    try:
        return curve(read_project(dataset))
    except KWTLError as error:
        logger.warning(f"the report shows no rounds: {error}")
        return []


def curve(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Return the learning curve of the rounds: labelled regions and pixels up to each, and the held-out IoU or None."""
    points, regions, pixels = [], 0, 0
    for entry in rounds:
        masks, model = entry["masks"] or {}, entry["model"] or {}
        regions, pixels = regions + masks.get("regions", 0), pixels + masks.get("pixels", 0)
        points.append({"round": entry["round"], "regions": regions, "pixels": pixels, "iou": model.get("held_out_iou")})
    return points

"""The next round of labelling: what a selection leaves out, and which model scores it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kwtl.data.pool import pool_hash
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.project.file_names import WEIGHTS_NAME
from monai_kwtl.project.history import note_missed
from monai_kwtl.project.mask_index import has_record, read_record
from monai_kwtl.project.project_file import read_project, regions_of, relative
from monai_kwtl.project.region_masks import MaskFolder, check_images
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.hashing import file_sha256

__all__ = [
    "excluded_regions",
    "own_weights",
    "predicting_weights",
    "project_folder",
    "scoring_weights",
    "stage_of_round",
    "starting_weights",
]

logger = logging.getLogger("monai_kwtl")


def excluded_regions(
    items: Sequence[Mapping[str, Any]],
    labels: str | os.PathLike | None,
    dataset: str | os.PathLike | None = None,
    rewritten: str | os.PathLike | None = None,
) -> list[Region]:
    """Return the regions that a selection leaves out: labelled, or assigned in an earlier round.

    Only the names of masks and the note of ``kwtl import`` are looked at, never a pixel of a mask.

    Args:
        items: the pool.
        labels: folder of the masks, of regions as ``kwtl import`` writes them, or of whole images, by name. None: this
            is a first round, and nothing is left out.
        dataset: folder whose ``project.json`` tells what was assigned; None: nothing was.
        rewritten: path of the ``selection.json`` that is about to be written; of a former one there, nothing counts as
            assigned before a mask of it has come.

    Returns:
        Regions of images of the pool.

    Raises:
        KWTLError: when ``labels`` holds no masks of this pool, or ``project.json`` cannot be read.
    """
    if dataset is not None:
        note_missed(dataset)
    if labels is None:
        return []
    keys = {(item["name"], item["page"]): item for item in items}
    if has_record(labels):
        labelled = [record.region for record in read_record(labels)]
        labelled = [region for region in labelled if (region.image, region.page) in keys]
        check_images(labelled, items)
    else:
        masks = MaskFolder(Path(labels), list(items))
        whole = [item for item in items if masks.names_image(item)]
        labelled = [Region(0, i["name"], i["page"], i["sha256"], 0, 0, i["width"], i["height"], 0.0) for i in whole]
    if not labelled:
        raise KWTLError(f"{labels} holds no masks of these images: give the folder that kwtl import wrote")
    done = {region.key for region in labelled}
    rounds = [] if dataset is None else read_project(dataset)
    if dataset is not None and rewritten is not None:
        path = relative(rewritten, dataset)
        rounds = [entry for entry in rounds if entry["masks"] or entry["selection"]["path"] != path]
    assigned = {region.key: region for entry in rounds for region in regions_of(entry)}
    open_regions = [
        region
        for box, region in assigned.items()
        if box not in done and keys.get(box[:2], {}).get("sha256") == region.image_sha256
    ]
    waiting = f", {len(open_regions)} assigned and not labelled yet" if open_regions else ""
    logger.info(f"left out: {len(labelled)} labelled regions{waiting}, and all windows that overlap them")
    return labelled + open_regions


def own_weights(bundle_root: str | os.PathLike) -> str:
    """Return the path of the weights that a bundle ships."""
    return os.path.join(bundle_root, "models", WEIGHTS_NAME)


def scoring_weights(
    labels: str | os.PathLike | None,
    dataset: str | os.PathLike | None,
    own: str,
    ckpt: str | os.PathLike | None = None,
) -> str:
    """Return the weights that score a selection: in a further round those of the last training that are still there.

    Args:
        labels: None: this is a first round.
        dataset: folder whose ``project.json`` tells of the trainings; None: of none.
        own: weights to take otherwise.
        ckpt: taken instead of all these where it is given.
    """
    if ckpt is not None:
        return str(ckpt)
    return own if labels is None else _last_model(dataset, own, "scores")


def predicting_weights(dataset: str | os.PathLike | None, own: str, ckpt: str | os.PathLike | None = None) -> str:
    """Return the weights that segment images: of the last training on masks of these images that are still there.

    Args:
        dataset: folder whose ``project.json`` tells of the trainings; None: of none.
        own: weights to take where there are none.
        ckpt: taken instead of all these where it is given.
    """
    if ckpt is not None:
        return str(ckpt)
    try:
        return _last_model(dataset, own, "predicts")
    except KWTLError as error:
        logger.warning(f"the weights of the bundle predict, because what was trained is not known: {error}")
        return own


def _last_model(dataset: str | os.PathLike | None, own: str, does: str) -> str:
    if dataset is None:
        return own
    for entry in reversed(read_project(dataset)):
        model = entry["model"]
        if model is None:
            continue
        path = Path(dataset, model["path"])
        if path.is_file() and file_sha256(path) == model["sha256"]:
            logger.info(f"the model of round {entry['round']} {does}: {os.path.relpath(path)}")
            return str(path)
        logger.warning(f"the model of round {entry['round']} is not in {path} any more")
    return own


def project_folder(dataset: str | os.PathLike, project: bool) -> str | os.PathLike | None:
    """Return the folder whose ``project.json`` tells of the rounds: that of the images, or None without a project."""
    return dataset if as_bool(project, "project") else None


def stage_of_round(
    stage: str, dataset: str | os.PathLike | None, labels: str | os.PathLike | None, noted: bool = True
) -> str:
    """Name the folder of a training, so that each round keeps its model: ``train``, then ``train_2``, ``train_3``, ...

    Args:
        stage: name of the stage.
        dataset: folder whose ``project.json`` tells of the rounds; None: of none.
        labels: folder of the masks; which round they are of is known where ``kwtl import`` wrote them.
        noted: whether the rounds count.
    """
    if not as_bool(noted, "project") or dataset is None or labels is None or not has_record(labels):
        return stage
    note_missed(dataset)
    used = {record.selection_sha256 for record in read_record(labels)}
    last = max((entry["round"] for entry in read_project(dataset) if entry["selection"]["sha256"] in used), default=1)
    return stage if last == 1 else f"{stage}_{last}"


def starting_weights(
    items: Sequence[Mapping[str, Any]],
    dataset: str | os.PathLike | None,
    output: str | os.PathLike,
    selection: str | os.PathLike | None,
    own: str,
) -> str:
    """Return the start weights of training: those that pretext tuning left for these images, where it did.

    They are looked for beside the selection that the masks are of (``pretext/model.pt``), beside the selections of
    ``project.json``, first to last, and beside the output folder. Weights of another pool are passed over.

    Args:
        items: the pool.
        dataset: folder whose ``project.json`` tells of the selections; None: of none.
        output: folder of the training.
        selection: path of a ``selection.json``, or its folder, or None.
        own: weights to take where there are none.
    """
    folders = [] if selection is None else [Path(selection) if Path(selection).is_dir() else Path(selection).parent]
    if dataset is not None:
        folders += [Path(dataset, entry["selection"]["path"]).parent for entry in read_project(dataset)]
    pool = pool_hash(items)
    for path in (folder / "pretext" / WEIGHTS_NAME for folder in [*folders, Path(output).parent]):
        try:
            note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if path.is_file() and isinstance(note, dict) and note.get("pool") == pool:
            logger.info(f"training begins with the weights of pretext tuning, {os.path.relpath(path)}")
            return str(path)
    return own

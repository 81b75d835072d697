"""Regions assigned and annotations handed in, and the choice where two annotated one region."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.selection_folder import CLASSIFICATION
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import short

__all__ = ["CONFLICTS", "Annotation", "Handout", "files_below", "inner_name", "resolve"]

CONFLICTS = ("newest", "union", "error")
FINISHED, UNFINISHED = "finished", "unfinished"  # classes or labels that mark a region
REGION_CLASSES = (CLASSIFICATION["name"].casefold(), FINISHED, UNFINISHED)  # what is of them is no cell
IGNORED = "ignore"  # what classes and labels of what is left out begin with
LARGEST_TREE = 100_000  # files looked at below a work folder


@dataclass(frozen=True)
class Handout:
    """Regions for an annotator, with their names, crops and predictions.

    Args:
        regions: of a selection, by rank.
        names: file name of each region's crop.
        crops: grey values of each region, uint8 (height, width).
        predictions: numbered objects of each region, int32 (height, width); None: nothing is drawn beforehand.
    """

    regions: Sequence[Region]
    names: Sequence[str]
    crops: Sequence[np.ndarray]
    predictions: Sequence[np.ndarray] | None


@dataclass(frozen=True)
class Annotation:
    """One annotation of one region.

    Args:
        rank: of the region.
        mask: bool (height, width).
        objects: how many were drawn, as far as the format tells.
        finished: whether it counts: all cells of the region are outlined.
        source: where it was found, for messages.
        time: when it was made, in seconds.
    """

    rank: int
    mask: np.ndarray
    objects: int
    finished: bool
    source: str
    time: float


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files below a folder by name, without hidden ones; links to folders are not followed.

    Raises:
        KWTLError: when the folder cannot be read, or holds more than any export.
    """
    found: list[Path] = []
    queue, seen = [folder], 0
    try:
        while queue:
            for path in sorted(queue.pop().iterdir()):
                seen += 1
                if path.name.startswith("."):
                    continue
                if path.is_dir() and not path.is_symlink():
                    queue.append(path)
                elif path.is_file() and path.name.lower().endswith(suffixes):
                    found.append(path)
            if seen > LARGEST_TREE:
                raise KWTLError(f"{folder} holds more than {LARGEST_TREE} files: give the folder of one export")
    except OSError as error:
        raise KWTLError(f"cannot look into {folder} ({error.strerror}): give the folder of an export") from error
    return sorted(found)


def inner_name(name: Any, path: Path) -> str:
    """Return the last part of a file name that a file tells, if it does not lead anywhere else.

    Raises:
        KWTLError: for a name that is absolute, holds "..", or is no text.
    """
    parts = re.split(r"[/\\]", name) if isinstance(name, str) else [""]
    if parts[0] == "" or ".." in parts or PureWindowsPath(name).drive or re.search(r"[\x00-\x1f\x7f]", name):
        raise KWTLError(f"{path}: the file name {short(name)} leads out of the folder; it is refused")
    return parts[-1]


def resolve(annotations: Iterable[Annotation], conflict: str) -> tuple[dict[int, Annotation], list[str]]:
    """Choose one annotation for each region, among those that are finished.

    Args:
        annotations: in any order.
        conflict: what is done where two finished ones of a region differ: ``newest`` takes the one made last (of two
            made at the same time the one that comes last by the name of its file), ``union`` takes what is outlined in
            either, ``error`` stops.

    Returns:
        {rank: annotation}, and a sentence for each conflict.

    Raises:
        KWTLError: for an unknown rule, or for a conflict where the rule is ``error``.
    """
    if conflict not in CONFLICTS:
        raise KWTLError(f"conflict must be one of {', '.join(CONFLICTS)}, got {conflict!r}.")
    by_rank: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in annotations:
        if annotation.finished:
            by_rank[annotation.rank].append(annotation)
    chosen: dict[int, Annotation] = {}
    notes = []
    for rank, found in sorted(by_rank.items()):
        found.sort(key=lambda annotation: (annotation.time, annotation.source))
        last = found[-1]
        if any(not np.array_equal(annotation.mask, last.mask) for annotation in found):
            sources = " and ".join(dict.fromkeys(annotation.source for annotation in found))
            if conflict == "error":
                raise KWTLError(
                    f"rank {rank} has {len(found)} annotations that differ, in {sources}: remove one, or say "
                    "--conflict newest or union"
                )
            if conflict == "union":
                mask = np.logical_or.reduce([annotation.mask for annotation in found])
                last = Annotation(rank, mask, max(a.objects for a in found), True, sources, last.time)
            taken = "what either outlines" if conflict == "union" else f"the newest, {last.source},"
            notes.append(f"rank {rank} has {len(found)} annotations that differ, in {sources}: {taken} is taken")
        chosen[rank] = last
    return chosen, notes

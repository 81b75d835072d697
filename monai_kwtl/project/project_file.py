"""``project.json`` beside the images: the rounds of selecting, labelling and training, and how good each was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.selection_file import read_region
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import Checker, read_document, short, write_text

__all__ = [
    "PROJECT_NAME",
    "check_noted",
    "expected_selections",
    "forget_selection",
    "now",
    "read_project",
    "regions_of",
    "relative",
    "remember_selection",
    "selection_sha256",
    "update_project",
]

logger = logging.getLogger("monai_kwtl")

PROJECT_NAME = "project.json"
EXPECTED_NAME = ".project.json.expected"  # selections that are being made; what is left of a killed one is noted later
FORMAT = "kwtl-project/1"
MEND = "mend it, or move it away to begin anew"
PATIENCE = 10.0  # seconds to wait for another process that writes

Round = dict[str, Any]


def now() -> str:
    """Return the time as the file holds it: UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def relative(path: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return a path relative to the folder of the images, as the file holds it, so that both may be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return Path(path).resolve().as_posix()


def read_project(folder: str | os.PathLike) -> list[Round]:
    """Read the rounds of a folder of images.

    Args:
        folder: with ``project.json`` in it, or without.

    Returns:
        The rounds as they are in the file, first to last: "round" counts from 1; "selection", "masks" and "model" are
        objects, or None where the round has not come so far; the fields are in ``project.schema.json``.

    Raises:
        KWTLError: one line with file and field, when it is not of that form.
    """
    path = Path(folder, PROJECT_NAME)
    if not path.exists():
        return []
    document, check = read_document(path, PROJECT_NAME, MEND, FORMAT)
    rounds = check.get(document, "rounds", list, "")
    for index, entry in enumerate(rounds):
        _check_round(check, entry, index)
    return rounds


def _check_round(check: Checker, entry: Any, index: int) -> None:
    where = f"rounds[{index}]."
    if not isinstance(entry, dict):
        raise check.fail(f"rounds[{index}] must be an object, not {short(entry)}")
    if check.whole(entry, "round", where, 1) != index + 1:
        raise check.fail(f"{where}round must be {index + 1}, not {short(entry['round'])}")
    selection = check.get(entry, "selection", dict, where)
    inner = f"{where}selection."
    _check_file(check, selection, inner)
    check.get(selection, "strategy", str, inner)
    for key in ("windows", "images", "unique_pixels"):
        if check.get(selection, key, int, inner) < 0:
            raise check.fail(f"{inner}{key} must not be negative")
    for number, region in enumerate(check.get(selection, "regions", list, inner)):
        read_region(check, region, f"{inner}regions[{number}].")
    masks = _optional(check, entry, "masks", where)
    if masks is not None:
        inner = f"{where}masks."
        for key in ("path", "time", "source"):
            check.get(masks, key, str, inner)
        for key in ("regions", "pixels"):
            if check.get(masks, key, int, inner) < 0:
                raise check.fail(f"{inner}{key} must not be negative")
        _share(check, masks, "foreground", inner)
    model = _optional(check, entry, "model", where)
    if model is not None:
        inner = f"{where}model."
        _check_file(check, model, inner)
        check.whole(model, "labelled_images", inner, 0)
        check.whole(model, "held_out_images", inner, 0)
        if "held_out_iou" not in model or model["held_out_iou"] is not None:
            _share(check, model, "held_out_iou", inner)


def _check_file(check: Checker, entry: Mapping, where: str) -> None:
    check.get(entry, "path", str, where)
    check.get(entry, "time", str, where)
    check.sha256(entry, "sha256", where)


def _optional(check: Checker, entry: Mapping, key: str, where: str) -> dict | None:
    if key in entry and entry[key] is None:
        return None
    return check.get(entry, key, dict, where)


def _share(check: Checker, entry: Mapping, key: str, where: str) -> None:
    if not 0 <= check.number(entry, key, where) <= 1:
        raise check.fail(f"{where}{key} must be from 0 to 1, not {short(entry[key])}")


def regions_of(entry: Round) -> list[Region]:
    """Return the regions that a round handed out."""
    check = Checker(PROJECT_NAME, MEND)
    return [read_region(check, region, "regions.") for region in entry["selection"]["regions"]]


def update_project(folder: str | os.PathLike, change: Callable[[list[Round]], Sequence[Round] | None]) -> bool:
    """Change the rounds of a folder of images; of several processes one after the other.

    The file is a note for people and for the next round, so nothing else fails for it: where it cannot be written, or
    what is there cannot be read, that is said in one line and the file stays as it is.

    Args:
        folder: of the images.
        change: from the rounds that are there to those that shall be; None: nothing changes.

    Returns:
        Whether the file says now what it should.
    """
    path = Path(folder, PROJECT_NAME)
    try:
        if not _may_write(Path(folder)):
            raise OSError("the folder is read-only")
        with FileLock(path.with_name(f".{PROJECT_NAME}.lock"), timeout=PATIENCE):
            rounds = change(read_project(folder))
            if rounds is not None:
                numbered = [{**entry, "round": number} for number, entry in enumerate(rounds, start=1)]
                write_text(path, json.dumps({"format": FORMAT, "rounds": numbered}, indent=1, allow_nan=False) + "\n")
    except Timeout:
        logger.warning(f"{path} is being written by another process: this round is not noted there")
        return False
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        logger.info(f"{path} cannot be written ({reason}): this round is not noted there")
        return False
    except KWTLError as error:
        logger.warning(f"this round is not noted: {error}")
        return False
    return True


def check_noted(folder: str | os.PathLike) -> bool:
    """Say in one line, before a long run, that it will not be noted where the folder of the images is read-only.

    Args:
        folder: of the images.

    Returns:
        Whether it can be written to.
    """
    if _may_write(Path(folder)):
        return True
    path = Path(folder, PROJECT_NAME)
    logger.info(f"{path} cannot be written (the folder is read-only): this round will not be noted there")
    return False


def _may_write(folder: Path) -> bool:
    """Return True if a folder is meant to be written to; the superuser could in any case."""
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def selection_sha256(path: str | os.PathLike) -> str | None:
    """Return the SHA-256 of a ``selection.json``, hexadecimal; None where there is none that can be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def expected_selections(folder: str | os.PathLike) -> dict[str, str | None]:
    """Return {path as the file holds it: SHA-256 of what was there before} of selections that are being made, or were.

    Args:
        folder: of the images.
    """
    try:
        entries = json.loads(Path(folder, EXPECTED_NAME).read_text(encoding="utf-8"))
        return {str(path): None if before is None else str(before) for path, before in entries.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _update_expected(folder: Path, change: Callable[[dict[str, str | None]], None]) -> None:
    """Change which selections are expected; a folder that cannot be written to is left as it is."""
    path = folder / EXPECTED_NAME
    if not _may_write(folder):
        return
    try:
        with FileLock(folder / f".{PROJECT_NAME}.lock", timeout=PATIENCE):
            entries = expected_selections(folder)
            change(entries)
            if entries:
                write_text(path, json.dumps(entries) + "\n")
            else:
                path.unlink(missing_ok=True)
    except (OSError, NotImplementedError, Timeout) as error:
        logger.info(f"{path} cannot be written ({error})")


def remember_selection(folder: str | os.PathLike, selection: str | os.PathLike) -> None:
    """Remember that a selection is being made, so that it is noted also where its process dies before it has.

    Args:
        folder: of the images.
        selection: path of the ``selection.json``.
    """
    before = selection_sha256(selection)
    _update_expected(Path(folder), lambda entries: entries.update({relative(selection, folder): before}))


def forget_selection(folder: str | os.PathLike, selection: str | os.PathLike) -> None:
    """Expect a selection no longer: it is noted."""
    path = relative(selection, folder)
    if path in expected_selections(folder):
        _update_expected(Path(folder), lambda entries: entries.pop(path, None))

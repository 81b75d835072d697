"""``project.json`` beside the images: the rounds of selecting, labelling and training, and how good each was."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.selection_file import region_of
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.atomic import write_text
from monai_kwtl.utils.hashing import file_sha256
from monai_kwtl.utils.json_documents import read_document

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
FIX = "fix it, or move it away to begin anew"
SCHEMA = Path(__file__).with_name("project.schema.json")
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
    rounds: list[Round] = read_document(path, PROJECT_NAME, FIX, SCHEMA)["rounds"]
    for index, entry in enumerate(rounds):
        if entry["round"] != index + 1:
            raise KWTLError(f"{path}: rounds[{index}].round must be {index + 1}, not {entry['round']}; {FIX}")
    return rounds


def regions_of(entry: Round) -> list[Region]:
    """Return the regions that a round assigned."""
    return [region_of(region) for region in entry["selection"]["regions"]]


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
                text = json.dumps({"format": FORMAT, "rounds": numbered}, indent=1, allow_nan=False) + "\n"
                write_text(path, text, hint=None)
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
        return file_sha256(path)
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
                write_text(path, json.dumps(entries) + "\n", hint=None)
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

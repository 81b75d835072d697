"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from monai_kwtl.errors import KWTLError

__all__ = ["atomic_write", "remove_leftovers", "remove_unfinished", "sync_folder", "write_text"]

_ENDING = ".unfinished"


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike, hint: str | None = "make room, or choose another --output_dir", *, durable: bool = True
) -> Iterator[Path]:
    """Write a file beside its final name, and rename it when the body is through: readers see the old file or the new.

    Args:
        path: of the file.
        hint: what the user can do where it cannot be written; None where the caller says so itself.
        durable: the content is on the disk before the file gets its name, and the name before this returns, so that
            neither the death of the process nor that of the machine leaves less than the old file or the new.

    Yields:
        The path to write to, in the same folder; it is gone afterwards, also when the body raises.

    Raises:
        KWTLError: when it cannot be written, as on a full disk; what was at ``path`` is untouched.
        OSError: instead of it, where there is no hint.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{_ENDING}")
    try:
        yield unfinished
        if durable:
            with open(unfinished, "rb+") as stream:
                os.fsync(stream.fileno())  # some disks say only now that they are full
        os.replace(unfinished, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        if hint is None:
            raise
        raise KWTLError(f"cannot write {path} ({error.strerror or error}): {hint}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_text(
    path: str | os.PathLike, text: str, hint: str | None = "make room, or choose another --output_dir"
) -> None:
    """Write a text file by :func:`atomic_write`, in UTF-8, with the line ends that the text has.

    Args:
        path: of the file.
        text: its content.
        hint: as of :func:`atomic_write`, which raises the same.
    """
    with atomic_write(path, hint) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="")


def sync_folder(folder: Path) -> None:
    """Put the names of a folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: str | os.PathLike) -> int:
    """Remove what processes that were killed while writing left in a folder; of those that live, nothing.

    Returns:
        How many files were removed.
    """
    removed = 0
    for left in Path(folder).glob(f".*{_ENDING}"):
        process = left.name.split(".")[-3]  # of names as atomic_write makes them
        if process.isdecimal() and not _lives(int(process)):
            with contextlib.suppress(OSError):
                left.unlink()
                removed += 1
    return removed


def _lives(process: int) -> bool:
    """Return True if a process of this number lives; where that cannot be asked without harm, it is taken to."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def remove_unfinished(path: str | os.PathLike) -> None:
    """Remove what processes that were killed while saving to ``path`` left beside it."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)

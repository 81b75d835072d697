"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from monai_kwtl.errors import KWTLError

__all__ = ["replaced", "written_whole"]


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file beside its final name, and rename it when the body is through: readers see the old file or the new.

    Args:
        path: of the file.

    Yields:
        The path to write to, in the same folder; it is gone afterwards, also when the body raises.

    Raises:
        OSError: when it cannot be written; what was at ``path`` is untouched.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def written_whole(path: str | os.PathLike, hint: str = "make room, or choose another --output_dir") -> Iterator[Path]:
    """:func:`replaced` for results of a stage: the file is on the disk before it gets its name, and errors are a line.

    Args:
        path: of the file.
        hint: what the user can do where it cannot be written.

    Yields:
        The path to write to, in the same folder; it is gone afterwards, also when the body raises.

    Raises:
        KWTLError: when it cannot be written, as on a full disk; what was at ``path`` is untouched.
    """
    try:
        with replaced(path) as unfinished:
            yield unfinished
            with open(unfinished, "rb+") as stream:
                os.fsync(stream.fileno())  # some disks say only now that they are full
    except OSError as error:
        raise KWTLError(f"cannot write {path} ({error.strerror or error}): {hint}") from error

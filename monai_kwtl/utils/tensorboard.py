"""TensorBoard logs that a stage begins anew or goes on with, without touching those of other stages in the folder."""

from __future__ import annotations

import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

__all__ = ["open_log", "remove_log"]


def remove_log(folder: str | os.PathLike, stage: str) -> None:
    """Remove what a stage has logged with :func:`open_log`.

    Args:
        folder: of the event files.
        stage: whose; all other files stay.
    """
    for former in Path(folder).glob(f"events.out.tfevents.*.{stage}"):
        former.unlink(missing_ok=True)


def open_log(folder: str | os.PathLike, stage: str, after: int = 0) -> SummaryWriter:
    """Open a log in place of what a stage has logged in a folder before.

    TensorBoard shows all event files of a folder as one: beside the old ones, a selection made anew would show regions
    of both, and a training two curves in one.

    Args:
        folder: of the event files; made if absent.
        stage: becomes the end of the file's name, by which it is known later.
        after: go on with the log of a stage that is resumed after so many steps; what it has of later ones is dropped.

    Returns:
        The writer.
    """
    if not after:
        remove_log(folder, stage)
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None, filename_suffix=f".{stage}")

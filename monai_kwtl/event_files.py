"""TensorBoard logs that a stage begins anew, without touching those of other stages in the same folder."""

from __future__ import annotations

import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

__all__ = ["fresh_writer", "remove_events"]


def remove_events(folder: str | os.PathLike, stage: str) -> None:
    """Remove what :func:`fresh_writer` has written for a stage.

    Args:
        folder: of the event files.
        stage: whose; all other files stay.
    """
    for former in Path(folder).glob(f"events.out.tfevents.*.{stage}"):
        former.unlink(missing_ok=True)


def fresh_writer(folder: str | os.PathLike, stage: str) -> SummaryWriter:
    """Open a log in place of what a stage has logged in a folder before.

    TensorBoard shows all event files of a folder as one: beside the old ones, a selection made anew would show regions
    of both, and a training two curves in one.

    Args:
        folder: of the event files; made if absent.
        stage: becomes the end of the file's name, by which it is known later.

    Returns:
        The writer.
    """
    remove_events(folder, stage)
    return SummaryWriter(str(folder), filename_suffix=f".{stage}")

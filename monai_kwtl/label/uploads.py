"""Temporary files of the label server: in a folder of their own, gone with their call, or at the next start."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil

__all__ = ["TidyUp", "remove_after_call", "temporary_folder"]

_made: ContextVar[list[str] | None] = ContextVar("_made", default=None)


def remove_after_call(path: str | os.PathLike) -> None:
    """Have a file removed when the call that is being answered has ended, however it ends."""
    made = _made.get()
    if made is not None:
        made.append(str(path))


class TidyUp:
    """ASGI middleware that removes what :func:`remove_after_call` was told of, also when the client has gone.

    Args:
        app: that is behind it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the call on, then remove its files."""
        before = _made.set([])
        try:
            await self.app(scope, receive, send)
        finally:
            for path in _made.get() or []:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            _made.reset(before)


@contextlib.contextmanager
def temporary_folder(app_dir: str | os.PathLike) -> Iterator[Path]:
    """Let this process make its temporary files in ``tmp/<its number>`` of the app's folder, removed at the end.

    What a killed server has left there is removed first.

    Args:
        app_dir: folder of the app.
    """
    folder = Path(app_dir) / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if left.name.isdecimal() and (int(left.name) == os.getpid() or not psutil.pid_exists(int(left.name))):
            shutil.rmtree(left, ignore_errors=True)
    mine = folder.resolve() / str(os.getpid())
    mine.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(mine)
    try:
        yield mine
    finally:
        tempfile.tempdir = before
        shutil.rmtree(mine, ignore_errors=True)

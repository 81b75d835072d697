"""The folder of images that is labelled: what is in it, by MONAI Label's ids, looked at again only where it changed."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from monai_kwtl.data.folders import find_images
from monai_kwtl.data.pool import scan_file
from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.decoding import quiet
from monai_kwtl.readers.image_files import SUFFIXES

__all__ = ["Studies", "image_id", "split_suffix"]

logger = logging.getLogger("monai_kwtl")


def split_suffix(name: str) -> tuple[str, str]:
    """Split a file name into stem and image suffix; ``a.b.PNG`` gives ``a.b`` and ``.PNG``."""
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default=os.path.splitext(name)[1])
    return (name[: -len(suffix)], name[-len(suffix) :]) if suffix else (name, "")


def image_id(name: str) -> str:
    """Return MONAI Label's id of an image: its file name without suffix."""
    return split_suffix(os.path.basename(name))[0]


class Studies:
    """The images of a folder.

    Args:
        folder: flat, or with ``images/`` below it.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        # {path: (time and size when it was looked into, its items, what of it cannot be read)}
        self._scanned: dict[str, tuple[tuple[int, int], list[dict[str, Any]], list[str]]] = {}
        self._unreadable: list[str] = []

    @property
    def image_dir(self) -> Path:
        """Folder of the images themselves."""
        inner = self.folder / "images"
        return inner if inner.is_dir() else self.folder

    def items(self) -> list[dict[str, Any]]:
        """Return the readable images, an item a page; files are read again only where their size or time changed.

        What cannot be read, or shares its id with another image, is left out, and named in :attr:`unreadable`.

        Raises:
            KWTLError: when no image can be read.
        """
        states: dict[str, tuple[int, int]] = {}
        files = {}
        # masks that lie there already say nothing of what was labelled here
        for item in find_images(self.folder, with_labels=False):
            try:
                state = os.stat(item["image"])
                states[item["image"]] = state.st_mtime_ns, state.st_size
            except OSError:  # a link that leads nowhere, or a file that has just gone
                states[item["image"]] = 0, -1
            files[item["image"]] = item
        new = [path for path, state in states.items() if self._scanned.get(path, (None,))[0] != state]
        if new:
            with quiet, ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
                found = list(threads.map(scan_file, [files[path] for path in new]))
            for path, (items, broken, _) in zip(new, found, strict=True):
                self._scanned[path] = states[path], items, broken
        names = defaultdict(list)
        for path, item in files.items():
            if self._scanned[path][1]:
                names[image_id(item["name"])].append(item["name"])
        shared = {identity: both for identity, both in names.items() if len(both) > 1}
        unreadable = [reason for path in files for reason in self._scanned[path][2]]
        unreadable += [f"{both[1]} (it has the same id {one!r} as {both[0]})" for one, both in shared.items()]
        self._say(unreadable)
        result = [item for path in files for item in self._scanned[path][1] if image_id(item["name"]) not in shared]
        if not result:
            what = f"none of the {len(files)} images can be used: {', '.join(unreadable[:20])}"
            raise KWTLError(f"{what}; give other files, rename those that share an id, or save them anew as PNG.")
        return result

    @property
    def unreadable(self) -> list[str]:
        """Images that :meth:`items` left out when it was asked last, each with the reason."""
        return list(self._unreadable)

    def _say(self, unreadable: list[str]) -> None:
        new = [reason for reason in unreadable if reason not in self._unreadable]
        self._unreadable = unreadable
        if new:
            more = f", and {len(new) - 20} more" if len(new) > 20 else ""
            logger.warning(f"left out until they change: {', '.join(new[:20])}{more}")

    def pages(self, identity: str) -> list[dict[str, Any]]:
        """Return the items of one image, one for a file of one page; empty where there is no such readable image."""
        try:
            return [item for item in self.items() if image_id(item["name"]) == identity]
        except KWTLError:
            return []

"""The folder of images that is labelled: what is in it, by MONAI Label's ids, looked at again only where it changed."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from monai_kwtl.data import scan_images
from monai_kwtl.errors import KWTLError
from monai_kwtl.folders import find_images
from monai_kwtl.readers import SUFFIXES

__all__ = ["Studies", "image_id", "split_suffix"]


def split_suffix(name: str) -> tuple[str, str]:
    """File name without its image suffix, and the suffix; ``a.b.PNG`` gives ``a.b`` and ``.PNG``."""
    suffix = max((s for s in SUFFIXES if name.lower().endswith(s)), key=len, default=os.path.splitext(name)[1])
    return (name[: -len(suffix)], name[-len(suffix) :]) if suffix else (name, "")


def image_id(name: str) -> str:
    """MONAI Label's id of an image: its file name without suffix."""
    return split_suffix(os.path.basename(name))[0]


class Studies:
    """The images of a folder.

    Args:
        folder: flat, or with ``images/`` below it.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._scanned: dict[tuple, list[dict[str, Any]]] = {}

    @property
    def image_dir(self) -> Path:
        """Where the images themselves lie."""
        inner = self.folder / "images"
        return inner if inner.is_dir() else self.folder

    def items(self) -> list[dict[str, Any]]:
        """The readable images, one item a page; files are read again only where their size or time changed.

        Raises:
            KWTLError: when there is no image, or two share an id.
        """
        files = []
        for item in find_images(self.folder):
            item.pop("label", None)  # masks that lie there already say nothing of what was labelled here
            state = os.stat(item["image"])
            files.append(((item["image"], state.st_mtime_ns, state.st_size), item))
        new = [(key, item) for key, item in files if key not in self._scanned]
        if new:
            found = defaultdict(list)
            for item in scan_images([item for _, item in new]):
                found[item["image"]].append(item)
            self._scanned |= {key: found[item["image"]] for key, item in new}
        items = [page for key, _ in files for page in self._scanned[key]]
        names: dict[str, str] = {}
        for item in items:
            if names.setdefault(image_id(item["name"]), item["name"]) != item["name"]:
                both = f"{names[image_id(item['name'])]} and {item['name']}"
                raise KWTLError(f"{both} have the same id {image_id(item['name'])!r}: rename one of them.")
        return items

    def pages(self, identity: str) -> list[dict[str, Any]]:
        """The items of one image, one for a file of one page; empty where there is no such image."""
        return [item for item in self.items() if image_id(item["name"]) == identity]

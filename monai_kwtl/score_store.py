"""Scores kept on disk, so that a second run on the same images, weights and settings need not compute them again."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monai_kwtl.strategies import ImageScores
from monai_kwtl.windows import WindowGrid

__all__ = ["ScoreStore"]

_LARGEST_PICTURE = 1 << 26  # pixels; the maps of larger images are not kept


class ScoreStore:
    """Window scores and 8-bit maps of images, one file an image, keyed by image, weights and settings.

    The key is the SHA-256 of the image file and its page, in a folder named after the SHA-256 of everything that the
    scores depend on. A file that is missing, half-written or of another shape counts as not there. Files are written
    beside and renamed, so several processes may share a store.

    Args:
        folder: where the stores of all settings live; made when something is put.
        settings: everything that the scores depend on besides the image, as JSON data.
        window: rows and columns of a window.
        step: pixels between windows.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any], window: int, step: int) -> None:
        text = json.dumps({**settings, "window": window, "step": step}, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.window, self.step = window, step

    def path(self, item: Mapping[str, Any]) -> Path:
        """File of an item of the pool (a dict with ``sha256`` and ``page``)."""
        page = "" if item["page"] is None else f"-{item['page']}"
        return self.folder / f"{item['sha256'][:32]}{page}.npz"

    def put(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Keep the output of :class:`~monai_kwtl.window_inferer.WindowScoreInferer` for an item."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: output[name] for name in ("window_scores", "foreground", "cells") if output[name] is not None}
        if output["score"].size <= _LARGEST_PICTURE:
            top = float(output["score"].max()) or 1.0
            arrays["score"] = np.rint(output["score"] * (255.0 / top)).astype(np.uint8)
            arrays["score_top"] = np.float64(top)
            arrays["probability"] = np.rint(output["probability"] * 255.0).astype(np.uint8)
        path = self.path(item)
        unfinished = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        try:
            with open(unfinished, "wb") as stream:
                np.savez_compressed(stream, **arrays)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _load(self, item: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
        try:
            # opened here, because np.load leaves the file open where it is broken
            with open(self.path(item), "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names if name in arrays.files}
        # RuntimeError: zipfile's word for a member that a flipped bit declares encrypted or of an unknown method
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            return None

    def get(self, item: Mapping[str, Any]) -> ImageScores | None:
        """Return the scores of an item, or None where they have to be computed."""
        grid = WindowGrid(item["height"], item["width"], self.window, self.step)
        arrays = self._load(item, ("window_scores", "foreground", "cells"))
        if arrays is None or not {"window_scores", "foreground"} <= arrays.keys():
            return None
        if arrays["window_scores"].shape != (len(grid),) or arrays["foreground"].shape != (len(grid),):
            return None
        cells = arrays.get("cells")
        if cells is not None and cells.shape != (len(grid.row_edges) - 1, len(grid.column_edges) - 1):
            return None
        return ImageScores(
            name=item["name"],
            page=item["page"],
            sha256=item["sha256"],
            grid=grid,
            window_scores=arrays["window_scores"],
            cells=cells,
            foreground=arrays["foreground"],
        )

    def probability(self, item: Mapping[str, Any]) -> np.ndarray | None:
        """Return the foreground probability of an item, float32 (H, W) in steps of 1/255; None if not kept."""
        arrays = self._load(item, ("probability",)) or {}
        return arrays["probability"].astype(np.float32) / 255.0 if "probability" in arrays else None

    def score(self, item: Mapping[str, Any]) -> np.ndarray | None:
        """Return the score map of an item, float32 (H, W) in steps of 1/255 of its largest value; None if not kept."""
        arrays = self._load(item, ("score", "score_top")) or {}
        if not {"score", "score_top"} <= arrays.keys():
            return None
        return arrays["score"].astype(np.float32) * np.float32(arrays["score_top"] / 255.0)

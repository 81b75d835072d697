"""Scores kept on disk, so that a second run on the same images, weights and settings need not compute them again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

from monai_kwtl.utils.atomic import atomic_write
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

__all__ = [
    "SCORES",
    "ScoreStore",
    "pack_maps",
    "pack_scores",
    "settings_hash",
    "to_bytes",
    "unpack",
    "unpack_map",
    "unpack_scores",
]

SCORES = ("window_scores", "foreground", "cells", "foreground_scores", "features")
_ARITHMETIC = 3  # one more whenever the same settings give other scores, or more of them
_LARGEST_PICTURE = 1 << 25  # pixels; the maps of larger images are not kept


def settings_hash(settings: Mapping[str, Any], window: int, step: int) -> str:
    """Return a hash, 16 hexadecimal digits, of all that scores depend on besides the image."""
    text = json.dumps({**settings, "window": window, "step": step, "arithmetic": _ARITHMETIC}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pack_scores(output: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a window scorer's output that are stored, without its maps."""
    return {name: output[name] for name in SCORES if output.get(name) is not None}


def pack_maps(output: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the maps of an output in 256 steps; nothing for very large images."""
    if output["score"] is None or output["score"].size > _LARGEST_PICTURE:
        return {}
    top = float(output["score"].max()) or 1.0
    return {
        "score": np.rint(output["score"] * (255.0 / top)).astype(np.uint8),
        "score_top": np.float64(top),
        "probability": np.rint(output["probability"] * 255.0).astype(np.uint8),
    }


def unpack(stream: BinaryIO, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Read those of the named arrays that a packed file holds; None where it is broken."""
    try:
        with np.load(stream, allow_pickle=False) as arrays:
            return {name: _loose(arrays[name]) for name in names if name in arrays.files}
    # RuntimeError: zipfile's word for a member that a flipped bit declares encrypted or of an unknown method, and that
    # of the decoder
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def unpack_scores(
    item: Mapping[str, Any], grid: WindowGrid, arrays: Mapping[str, np.ndarray] | None
) -> ImageScores | None:
    """Return the scores of an item from arrays of :func:`pack_scores`; None where they do not belong to the grid."""
    if arrays is None or not {"window_scores", "foreground"} <= arrays.keys():
        return None
    if arrays["window_scores"].shape != (len(grid),) or arrays["foreground"].shape != (len(grid),):
        return None
    blocks = arrays.get("cells")
    if blocks is not None and blocks.shape != (len(grid.row_edges) - 1, len(grid.column_edges) - 1):
        return None
    foreground_scores, features = arrays.get("foreground_scores"), arrays.get("features")
    if foreground_scores is not None and foreground_scores.shape != (len(grid),):
        return None
    if features is not None and (features.ndim != 2 or len(features) != len(grid)):
        return None
    return ImageScores(
        name=item["name"],
        page=item["page"],
        sha256=item["sha256"],
        grid=grid,
        window_scores=arrays["window_scores"],
        blocks=blocks,
        foreground=arrays["foreground"],
        foreground_scores=foreground_scores,
        features=features,
    )


def unpack_map(arrays: Mapping[str, np.ndarray] | None) -> np.ndarray | None:
    """Score map out of the arrays of :func:`pack_maps`, float32 (H, W) in steps of 1/255 of its largest value."""
    if arrays is None or not {"score", "score_top"} <= arrays.keys():
        return None
    return arrays["score"].astype(np.float32) * np.float32(arrays["score_top"] / 255.0)


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Encode arrays for :func:`unpack`: a ``.npz`` file, in which maps are ``.npy`` files by Zstandard.

    Deflating the maps of an image took a twelfth of the time of scoring it, for files that were hardly smaller.
    """
    stream = io.BytesIO()
    np.savez(stream, **{name: _tight(array) for name, array in arrays.items()})
    return stream.getvalue()


def _is_map(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 2


def _tight(array: np.ndarray) -> np.ndarray:
    if not _is_map(array):
        return array
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return np.frombuffer(imagecodecs.zstd_encode(stream.getvalue(), level=1), dtype=np.uint8)


def _loose(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 1:
        return array
    return np.load(io.BytesIO(imagecodecs.zstd_decode(array.tobytes())), allow_pickle=False)


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
        features: whether scores without features of the windows count as not there.
    """

    def __init__(
        self, folder: str | os.PathLike, settings: Mapping[str, Any], window: int, step: int, features: bool = False
    ) -> None:
        self.folder = Path(folder) / settings_hash(settings, window, step)
        self.window, self.step, self.features = window, step, features

    def path(self, item: Mapping[str, Any]) -> Path:
        """Return the file of an item of the pool (a dict with ``sha256`` and ``page``)."""
        page = "" if item["page"] is None else f"-{item['page']}"
        return self.folder / f"{item['sha256'][:32]}{page}.npz"

    def put(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Keep the output of :class:`~monai_kwtl.scoring.window_scores.WindowScoreInferer` for an item."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path(item), None, durable=False) as unfinished:
            unfinished.write_bytes(to_bytes({**pack_scores(output), **pack_maps(output)}))

    def _load(self, item: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
        try:
            # opened here, because np.load leaves the file open where it is broken
            with open(self.path(item), "rb") as stream:
                return unpack(stream, names)
        except OSError:
            return None

    def get(self, item: Mapping[str, Any]) -> ImageScores | None:
        """Return the scores of an item, or None where they have to be computed."""
        grid = WindowGrid(item["height"], item["width"], self.window, self.step)
        names = SCORES if self.features else tuple(name for name in SCORES if name != "features")
        scores = unpack_scores(item, grid, self._load(item, names))
        return None if scores is not None and self.features and scores.features is None else scores

    def probability(self, item: Mapping[str, Any]) -> np.ndarray | None:
        """Return the foreground probability of an item, float32 (H, W) in steps of 1/255; None if not kept."""
        arrays = self._load(item, ("probability",)) or {}
        return arrays["probability"].astype(np.float32) / 255.0 if "probability" in arrays else None

    def score(self, item: Mapping[str, Any]) -> np.ndarray | None:
        """Return the score map of an item, float32 (H, W) in steps of 1/255 of its largest value; None if not kept."""
        return unpack_map(self._load(item, ("score", "score_top")))

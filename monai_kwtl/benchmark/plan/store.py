"""Store of finished work: files named by a hash of all that they depend on, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_kwtl.networks.weights import save_atomically
from monai_kwtl.utils.atomic import atomic_write, write_text
from monai_kwtl.utils.hashing import file_sha256
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

__all__ = ["Store", "derived_seed", "digest", "folder_hash", "grid_of"]

_ARRAYS = ("window_scores", "foreground", "cells", "foreground_scores")
_HINT = "make room, or choose another output_dir"


def digest(settings: Any) -> str:
    """Return the SHA-256, hexadecimal, of JSON data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def derived_seed(*parts: Any) -> int:
    """Return a seed in [0, 2**31) that is a function of JSON data, the same in every process."""
    return int(digest(parts)[:8], 16) >> 1


@lru_cache(maxsize=64)
def folder_hash(folder: str | os.PathLike) -> str:
    """Return the SHA-256 over names and bytes of a folder's files; that of nothing where there is no such folder."""
    total = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.is_file():
            total.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
            total.update(bytes.fromhex(file_sha256(path)))
    return total.hexdigest()


class Store:
    """A folder of finished results, shared by all processes and all benchmarks of an output folder.

    Args:
        folder: made when something is first kept.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def path(self, kind: str, key: str) -> Path:
        """Return the path of the result of a kind of job with a key, there or not."""
        suffix = {"cell": ".json", "scores": ".npz", "features": ".npz"}.get(kind, ".pt")
        return self.folder / kind / f"{key[:32]}{suffix}"

    def has(self, kind: str, key: str) -> bool:
        """Return True if it is finished."""
        return self.path(kind, key).exists()

    def _new(self, kind: str, key: str) -> Path:
        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put_weights(self, kind: str, key: str, state: Mapping[str, torch.Tensor]) -> None:
        """Keep the weights of a network."""
        save_atomically(
            {name: value.detach().cpu().contiguous() for name, value in state.items()}, self._new(kind, key)
        )

    def put_experiment(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep the result of an experiment, JSON data."""
        write_text(self._new("cell", key), json.dumps(result, indent=1, sort_keys=True) + "\n", _HINT)

    def experiment(self, key: str) -> dict[str, Any]:
        """Return the result of a finished experiment."""
        return json.loads(self.path("cell", key).read_text(encoding="utf-8"))

    def put_scores(self, key: str, pool: list[ImageScores], seconds: float) -> None:
        """Keep the scores of a pool, and how long they took."""
        arrays: dict[str, np.ndarray] = {"seconds": np.float64(seconds)}
        for number, scores in enumerate(pool):
            for name in _ARRAYS:
                if (values := getattr(scores, "blocks" if name == "cells" else name)) is not None:
                    arrays[f"{name}_{number}"] = values
        self._put_arrays("scores", key, arrays)

    def _put_arrays(self, kind: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        content = io.BytesIO()
        np.savez(content, **arrays)
        with atomic_write(self._new(kind, key), _HINT) as unfinished:
            unfinished.write_bytes(content.getvalue())

    def put_features(self, key: str, features: list[np.ndarray], seconds: float) -> None:
        """Keep the features of the windows of each image, and how long they took."""
        arrays = {f"features_{number}": part for number, part in enumerate(features)}
        self._put_arrays("features", key, {"seconds": np.float64(seconds), **arrays})

    def with_features(self, key: str, pool: list[ImageScores]) -> tuple[list[ImageScores], float]:
        """Return a pool, in the order of its description, with the features of its windows; and their seconds."""
        with np.load(self.path("features", key)) as arrays:
            described = [replace(image, features=arrays[f"features_{n}"]) for n, image in enumerate(pool)]
            return described, float(arrays["seconds"])

    def scores(self, key: str, grids: list[ImageScores]) -> tuple[list[ImageScores], float]:
        """Return the scores of a pool and the seconds they took.

        Args:
            key: of the scores.
            grids: the images of the pool in the order in which they were scored, with any scores.
        """
        with np.load(self.path("scores", key)) as arrays:
            pool = [
                ImageScores(
                    image.name, image.page, image.sha256, image.grid,
                    *(arrays[f"{name}_{n}"] if f"{name}_{n}" in arrays else None
                      for name in ("window_scores", "cells", "foreground")),
                    foreground_scores=arrays.get(f"foreground_scores_{n}"),
                )
                for n, image in enumerate(grids)
            ]  # fmt: skip
            return pool, float(arrays["seconds"])


def grid_of(item: Mapping[str, Any], window: int, step: int) -> ImageScores:
    """Return an image with its windows, all of score 0."""
    grid = WindowGrid(item["height"], item["width"], window, step)
    return ImageScores(item["name"], item["page"], item["sha256"], grid, np.zeros(len(grid)))

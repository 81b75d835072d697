"""Source data sets for meta-training: labelled images of other cells, from folders or simulated."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monai_kwtl.data.crops import CropDataset
from monai_kwtl.data.loading import describe_label_values, read_image, read_label, support_hash
from monai_kwtl.data.pool import labelled, load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.synthetic import DOMAINS, make_pool
from monai_kwtl.utils.distributed import on_main_process
from monai_kwtl.utils.sampling import evenly_spaced

__all__ = ["load_sources", "simulated_sources", "source_crops", "source_folders", "sources_hash"]

logger = logging.getLogger("monai_kwtl")


def simulated_sources(folder: str | os.PathLike, count: int = 12, seed: int = 0, looks: int = 1) -> list[Path]:
    """Make labelled pools of every simulated domain, on first use.

    Args:
        folder: in which each pool gets a folder.
        count: images of a pool.
        seed: of the first look of each domain.
        looks: pools of each domain, with different cells and microscopes.

    Returns:
        The folders.
    """
    folders = []
    for look in range(looks):
        for kind in DOMAINS:
            path = Path(folder) / f"{kind}_{seed + look}"
            make_pool(path, kind, count=count, height=512, width=640, seed=seed + look)
            folders.append(path)
    return folders


def source_folders(sources: Any, output: str | os.PathLike) -> list[Path]:
    """Return the folders of the sources that a user gave, or those of simulated ones where nothing was given.

    Args:
        sources: one path, several in a list or in a text such as ``[a, ../b]``, or None. (Of words in brackets the
            command line makes a list, but of paths with a slash a text.)
        output: where simulated sources are made.

    Raises:
        KWTLError: when the list is empty, or a folder is named twice.
    """
    if sources is None:
        return on_main_process(partial(simulated_sources, Path(output) / "sources"))
    if isinstance(sources, str) and re.fullmatch(r"\s*\[.*\]\s*", sources, flags=re.DOTALL):
        sources = [entry.strip().strip("'\"") for entry in sources.strip()[1:-1].split(",")]
    given = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    folders = [Path(str(entry)) for entry in given if str(entry).strip()]
    if not folders:
        raise KWTLError('no source is given; name folders of labelled images: --sources "[dirA, dirB]".')
    twice = [folder for folder in folders if [f.resolve() for f in folders].count(folder.resolve()) > 1]
    if twice:
        raise KWTLError(f"the source {twice[0]} is named twice; name each folder once.")
    return folders


def load_sources(
    folders: Sequence[str | os.PathLike], rescale: Sequence[float] | None = None, most: int = 100
) -> dict[str, list[dict[str, Any]]]:
    """Read labelled images of each source into memory.

    Args:
        folders: of the sources, each with ``images`` and ``labels``.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        most: at most so many images of a source, evenly spaced over it.

    Returns:
        For each source, named after its folder, dicts of ``name``, ``page``, ``sha256``, ``image`` and ``label``.

    Raises:
        KWTLError: when a source has no labels, or none with foreground.
    """
    loaded: dict[str, list[dict[str, Any]]] = {}
    for folder in map(Path, folders):
        items = evenly_spaced(labelled(load_pool(folder, option="--sources"), folder), most)
        note = describe_label_values(items)
        if note:
            logger.info(f"{folder}: {note}")
        data = [
            {key: item[key] for key in ("name", "page", "sha256")}
            | {"image": read_image(item, rescale), "label": read_label(item)}
            for item in items
        ]
        if not any(entry["label"].any() for entry in data):
            raise KWTLError(f"no mask of {folder} has any foreground; leave this source out, or fix its masks.")
        name = folder.resolve().name
        while name in loaded:
            name += "'"
        loaded[name] = data
    if len(loaded) == 1:
        logger.info("with one source meta-training is plain training; give several, of different cells")
    counts = ", ".join(f"{name} ({len(data)})" for name, data in loaded.items())
    logger.info(f"sources (images): {counts}")
    return loaded


def sources_hash(sources: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Return each source's name, in their order, and SHA-256 over its images and masks."""
    return [(name, support_hash(data)) for name, data in sources.items()]


def source_crops(
    sources: dict[str, list[dict[str, Any]]], crop: int = 256, crops: int = 5, seed: int = 0
) -> dict[str, CropDataset]:
    """Make the crops of each source's inner loops, a function of seed, source and meta-epoch.

    Several processes share the sources, not the crops of a source.

    Args:
        sources: as from :func:`load_sources`.
        crop: side of a crop, in pixels.
        crops: crops of an inner loop.
        seed: of the draws.
    """
    return {
        name: CropDataset(data, steps=1, size=crop, batch_size=crops, seed=[seed, task], rank=0, world_size=1)
        for task, (name, data) in enumerate(sources.items())
    }

"""Folders that a stage reads and writes."""

from __future__ import annotations

import os
from functools import partial
from importlib import resources
from itertools import count
from pathlib import Path
from typing import NamedTuple

from monai_kwtl.bundle.options import command_line
from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.image_files import SUFFIXES, has_suffix
from monai_kwtl.synthetic import make_demo_pool
from monai_kwtl.utils.distributed import on_main_process

__all__ = ["bundle_root", "find_bundle", "stage_paths"]


def find_bundle(given: str | os.PathLike | None = None) -> Path:
    """Return the folder of the bundle: as given, else that of the clone, else that which was installed.

    The current folder is not asked: configs are programs, and what lies beside somebody's images need not be ours.

    Raises:
        KWTLError: where there is none.
    """
    package = Path(str(resources.files("monai_kwtl")))
    candidates = [package.parent / "bundles" / "kwtl", package / "bundles" / "kwtl"] if given is None else [Path(given)]
    for folder in candidates:
        if (folder / "configs" / "metadata.json").is_file():
            return folder
    raise KWTLError(f"there is no bundle in {candidates[-1]}: give its folder, which holds configs/, with --bundle.")


def bundle_root() -> str:
    """Return the folder of the bundle for a config: that of the command line's, else the current one, else ours.

    A ``StageWorkflow`` knows its own, and does not ask.
    """
    files = (command_line() or {}).get("config_file")
    if files:
        return str(Path(files if isinstance(files, str) else files[0]).parent.parent)
    return "." if os.path.isfile("configs/metadata.json") else str(find_bundle())


class StagePaths(NamedTuple):
    """Input and output folders of a stage."""

    dataset: Path
    output: Path


def stage_paths(dataset_dir: str | None, output_dir: str | None, stage: str, further: bool = False) -> StagePaths:
    """Return the data set and the output folder of a stage.

    Args:
        dataset_dir: folder of images; None stands for the simulated demo pool, which is made on first use.
        output_dir: folder for results; None is ``output/<name of the data set>/<stage>``.
        stage: name of the stage.
        further: whether this is a further round of the stage: without an ``output_dir`` its folder is the first of
            ``<stage>_2``, ``<stage>_3``, ... that holds no selection yet.

    Raises:
        KWTLError: when results would be written among the images, and be taken for images by the next run.
    """
    if dataset_dir is None:
        output = Path("output/demo", stage) if output_dir is None else Path(str(output_dir))
        pool = output.parent / "pool" if output_dir is None else output / "pool"
        on_main_process(partial(make_demo_pool, pool))
        return StagePaths(pool, output)
    dataset = Path(str(dataset_dir))
    name = dataset.resolve().name or "images"
    output = Path("output", name, stage) if output_dir is None else Path(str(output_dir))
    if further and output_dir is None:
        folders = (output.with_name(f"{stage}_{number}") for number in count(2))
        output = next(folder for folder in folders if not (folder / "selection.json").exists())
    images = dataset / "images" if (dataset / "images").is_dir() else dataset
    if output.is_dir() and images.is_dir() and output.samefile(images) and _holds_images(images):
        raise KWTLError(f"{output} is the folder of the images themselves; choose another --output_dir.")
    return StagePaths(dataset, output)


def _holds_images(folder: Path) -> bool:
    return any(has_suffix(path, SUFFIXES) for path in folder.iterdir())

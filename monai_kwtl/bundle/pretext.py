"""Pretext tuning before a selection, where there is none yet for these images."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from monai_kwtl.bundle.foreign import harmless
from monai_kwtl.bundle.workflow import StageWorkflow
from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.distributed import on_main_process

__all__ = ["auto_pretext"]

logger = logging.getLogger("monai_kwtl")


def auto_pretext(
    choice: str,
    ckpt: str | os.PathLike,
    root: str | os.PathLike,
    dataset: str | os.PathLike,
    output: Path,
    **options: Any,
) -> str:
    """Return the weights that score a pool: tuned on its pseudo-labels, as they are, or those of a path.

    Of several processes the first one tunes, alone, so that the weights are the same however many there are.

    Args:
        choice: ``always`` runs the pretext stage into ``output/pretext``, unless it has left weights there for these
            images, settings and start weights; ``auto`` does so where ``ckpt`` is the bundle's own, and takes other
            weights as they are; ``skip`` takes ``ckpt`` as it is; anything else is the path of weights.
        ckpt: start weights.
        root: folder of the bundle, which has ``configs/pretext.json``.
        dataset: folder of images.
        output: output folder of the calling stage.
        options: of the pretext stage.

    Returns:
        A path.

    Raises:
        KWTLError: when the path does not exist, or the pretext stage cannot run.
    """
    own = Path(root) / "models" / "model.pt"
    if choice == "auto":
        shipped = own.is_file() and Path(ckpt).is_file() and os.path.samefile(ckpt, own)
        choice = "always" if shipped else "skip"
    if choice == "skip":
        return str(ckpt)
    if choice != "always":
        if not Path(str(choice)).is_file():
            raise KWTLError(f"pretext is auto, always, skip or the path of weights; there is no file {choice!r}.")
        return str(choice)
    return on_main_process(partial(_tune, ckpt, root, dataset, output / "pretext", **options))


def _tune(
    ckpt: str | os.PathLike, root: str | os.PathLike, dataset: str | os.PathLike, folder: Path, **options: Any
) -> str:
    """Run the pretext stage into a folder, where that is not done yet, and return the path of the weights."""
    workflow = StageWorkflow(
        Path(root, "configs", "pretext.json"),
        **harmless(dataset_dir=Path(dataset), output_dir=folder, ckpt=Path(ckpt), **options),
        resume=True,
        overwrite=True,
    )
    workflow.initialize()
    weights = folder / "model.pt"
    # asked before the run, which reads all images first
    if workflow.parser.get_parsed_content("checkpoint").finished():
        logger.info(f"the pretext weights in {weights} are of these images and settings: used again")
    else:
        workflow.run()
    return str(weights)

"""Predicted masks on disk: one PNG an image, of its height and width, 0 background and 255 foreground."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.project.file_names import mask_file_names
from monai_kwtl.project.region_masks import write_mask
from monai_kwtl.utils.atomic import atomic_write

__all__ = ["MaskSaver"]

logger = logging.getLogger("monai_kwtl")


class MaskSaver:
    """Write the mask of each image as soon as an evaluator has predicted it.

    MONAI's ``SaveImage`` transposes PNGs unless images were read transposed, and knows no pages.

    Args:
        items: all that will be predicted; gives the file names.
        output_dir: folder of the masks; made if absent.
        overwrite: whether masks that are already there may be replaced.

    Raises:
        KWTLError: at once when a mask is there and must stay, or the folder cannot be written.
    """

    def __init__(
        self, items: Sequence[Mapping[str, Any]], output_dir: str | os.PathLike, overwrite: bool = False
    ) -> None:
        self.names = mask_file_names(items)
        self.output_dir = Path(output_dir)
        there = [name for name in self.names.values() if (self.output_dir / name).exists()]
        if there and not as_bool(overwrite, "overwrite"):
            raise KWTLError(
                f"{self.output_dir} already holds masks such as {there[0]}: choose another --output_dir "
                "or add --overwrite true"
            )
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KWTLError(f"cannot write to {output_dir} ({error.strerror}); choose another --output_dir") from error
        self.foreground: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds the masks under ``pred``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._summarise)

    def __call__(self, engine: Engine) -> None:
        """Write the mask of the image just done."""
        item = engine.state.batch
        mask = torch.as_tensor(engine.state.output["pred"]).reshape(item["image"].shape[-2:]) > 0
        self.foreground.append(mask.float().mean().item())
        self.write(item, mask.cpu().numpy())

    def write(self, item: Mapping[str, Any], mask: np.ndarray) -> Path:
        """Write one mask beside its final name, then rename it.

        Args:
            item: with ``name`` and ``page``.
            mask: bool (H, W).

        Returns:
            The path of the PNG.
        """
        path = self.output_dir / self.names[(item["name"], item["page"])]
        with atomic_write(path) as unfinished:
            write_mask(unfinished, mask)
        return path

    def _summarise(self, engine: Engine) -> None:
        fraction = 100.0 * float(np.mean(self.foreground)) if self.foreground else 0.0
        logger.info(f"masks: {len(self.foreground)} in {self.output_dir}, on average {fraction:.1f} % foreground")

"""Pictures of pseudo-labels, for a user to judge them by."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image, ImageDraw, ImageFont

from monai_kwtl.data.loading import read_image
from monai_kwtl.errors import as_bool
from monai_kwtl.report.console import image_title
from monai_kwtl.report.pictures import for_display, shrink
from monai_kwtl.transforms import PseudoLabel
from monai_kwtl.utils.atomic import atomic_write
from monai_kwtl.utils.distributed import is_main_process
from monai_kwtl.utils.sampling import evenly_spaced
from monai_kwtl.utils.tensorboard import open_log

logger = logging.getLogger("monai_kwtl")


__all__ = ["PseudoLabelPreview", "preview_sheet", "show_preview"]


def preview_sheet(
    items: Sequence[Mapping[str, Any]],
    pseudo_label: PseudoLabel,
    rescale: Sequence[float] | None = None,
    most: int = 4,
    side: int = 320,
) -> np.ndarray:
    """Draw how pseudo-labels come about (figure 2 of the paper): a row an image, a column a step.

    Args:
        items: the pool.
        pseudo_label: whose ``stages`` are drawn.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        most: at most so many images, evenly spaced over the pool.
        side: longest side of a picture, in pixels.

    Returns:
        uint8 grey values, (rows, columns).
    """
    rows, names = [], []
    for item in evenly_spaced(items, most):
        image = read_image(item, rescale)
        stages = {"image": for_display(image)}
        for name, picture in pseudo_label.stages(image).items():
            plane = np.asarray(picture)[0]
            stages[name] = (plane * 255 if plane.max(initial=0) <= 1 else plane).astype(np.uint8)
        names = list(stages)
        rows.append((image_title(item["name"], item["page"]), [shrink(picture, side) for picture in stages.values()]))
    gap, head = 8, 26
    widths = [max(row[column].shape[1] for _, row in rows) for column in range(len(names))]
    height = head + sum(max(p.shape[0] for p in row) + head for _, row in rows)
    sheet = Image.new("L", (sum(widths) + gap * (len(widths) + 1), height + gap), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    lefts = np.cumsum([gap, *(width + gap for width in widths)])
    for left, name in zip(lefts, names, strict=False):
        draw.text((int(left), 4), name, font=font, fill=0)
    top = head
    for name, row in rows:
        for left, picture in zip(lefts, row, strict=False):
            sheet.paste(Image.fromarray(picture), (int(left), top))
        top += max(p.shape[0] for p in row)
        draw.text((gap, top + 3), name, font=font, fill=90)
        top += head
    return np.asarray(sheet)


def show_preview(sheet: np.ndarray, output_dir: str | os.PathLike, tensorboard: bool = True) -> Path:
    """Write the sheet of pseudo-labels as ``pseudo_labels.png``, and to TensorBoard; the first process does.

    Returns:
        The path of the PNG.
    """
    path = Path(output_dir) / "pseudo_labels.png"
    if not is_main_process():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        Image.fromarray(sheet).save(unfinished, format="PNG")
    if tensorboard:
        with open_log(Path(output_dir) / "tensorboard", "preview") as writer:
            writer.add_image("pseudo-labels", sheet, dataformats="HW")
    logger.info(f"pseudo-labels are drawn in {path}")
    return path


class PseudoLabelPreview:
    """Show what a pretext stage trains on, as it starts: :func:`preview_sheet` and :func:`show_preview`.

    Args:
        items: as of :func:`preview_sheet`.
        pseudo_label: as of :func:`preview_sheet`.
        folder: of the stage.
        rescale: as of :func:`preview_sheet`.
        tensorboard: as of :func:`show_preview`.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        pseudo_label: PseudoLabel,
        folder: str | os.PathLike,
        rescale: Sequence[float] | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.items, self.pseudo_label, self.rescale = items, pseudo_label, rescale
        self.folder, self.tensorboard = folder, as_bool(tensorboard, "tensorboard")

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Draw and write the sheet."""
        show_preview(preview_sheet(self.items, self.pseudo_label, self.rescale), self.folder, self.tensorboard)

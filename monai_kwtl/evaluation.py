"""Evaluation of masks against labels: a table per image, a summary, and pictures of the errors."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from monai_kwtl.data import describe_label_values
from monai_kwtl.errors import KWTLError
from monai_kwtl.masks import mask_file_names
from monai_kwtl.metrics import Overlap, overlap, summarize
from monai_kwtl.summary import format_table

__all__ = ["EvaluationSaver", "error_overlay", "labelled"]

logger = logging.getLogger("monai_kwtl")

SUMMARY_NAME = "evaluation.json"
COLUMNS = ("image", "page", "iou", "dice", "true_positive", "false_positive", "false_negative", "pixels")
WHITE, RED, GREEN = (255, 255, 255), (220, 50, 47), (60, 180, 75)


def labelled(items: Sequence[Mapping[str, Any]], where: str | os.PathLike) -> list[Mapping[str, Any]]:
    """Return the items that have a label; says how many have none.

    Raises:
        KWTLError: when none has.
    """
    found = [item for item in items if item.get("label")]
    if not found:
        raise KWTLError(
            f"no image of {where} has a label: put masks of the same base names into its labels/ folder, "
            "or name their folder with --labels"
        )
    if len(found) < len(items):
        logger.info(f"{len(items) - len(found)} of {len(items)} images have no label and are left out")
    return found


def error_overlay(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Draw where a prediction is right and wrong (figure 1 of the paper).

    Args:
        prediction: non-zero is foreground, shape (H, W).
        label: same shape.

    Returns:
        uint8 RGB (H, W, 3): white true positive, red false positive, green false negative, black true negative.
    """
    prediction, label = np.asarray(prediction) != 0, np.asarray(label) != 0
    picture = np.zeros((*label.shape, 3), dtype=np.uint8)
    picture[prediction & label] = WHITE
    picture[prediction & ~label] = RED
    picture[~prediction & label] = GREEN
    return picture


class EvaluationSaver:
    """Compare each predicted mask with its label as it comes; write tables and pictures when all are done.

    Written are ``evaluation.csv`` (a row an image), ``evaluation.json`` (the summary and what it was made with, last),
    ``errors/<image stem>.png`` and, for TensorBoard, scalars and the worst images.

    Args:
        items: the test set; every item has a label.
        output_dir: where everything is written.
        created_with: what the summary shall say about its making.
        overwrite: replace an evaluation that is already there.
        overlays: whether to write the pictures of the errors.
        tensorboard: whether to write a TensorBoard log below ``output_dir/tensorboard``.

    Raises:
        KWTLError: at once when an evaluation is there and must stay, or the folder cannot be written.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: str | os.PathLike,
        created_with: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        overlays: bool = True,
        tensorboard: bool = True,
    ) -> None:
        self.items, self.output_dir = list(items), Path(output_dir)
        self.created_with = dict(created_with or {})
        self.overlays, self.tensorboard = overlays, tensorboard
        if (self.output_dir / SUMMARY_NAME).exists() and not overwrite:
            raise KWTLError(
                f"{self.output_dir / SUMMARY_NAME} already exists: choose another --output_dir or add --overwrite true"
            )
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / "errors").mkdir(exist_ok=True)
        except OSError as error:
            raise KWTLError(f"cannot write to {output_dir} ({error.strerror}); choose another --output_dir") from error
        self.names = mask_file_names(self.items)
        self.overlap: dict[tuple[str, int | None], Overlap] = {}
        self.summary: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds the masks under ``pred``."""
        engine.add_event_handler(Events.STARTED, lambda _: self.overlap.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _picture(self, item: Mapping[str, Any]) -> Path:
        return self.output_dir / "errors" / self.names[(item["name"], item["page"])]

    def __call__(self, engine: Engine) -> None:
        """Compare the mask just predicted with its label."""
        item = engine.state.batch
        label = np.asarray(torch.as_tensor(item["label"]))[0]
        prediction = torch.as_tensor(engine.state.output["pred"]).reshape(label.shape).cpu().numpy()
        self.overlap[(item["name"], item["page"])] = overlap(prediction, label)
        if self.overlays:
            Image.fromarray(error_overlay(prediction, label)).save(self._picture(item))

    def _write(self, name: str, text: str) -> None:
        unfinished = self.output_dir / f".{name}.{os.getpid()}.unfinished"
        unfinished.write_text(text, encoding="utf-8", newline="")
        os.replace(unfinished, self.output_dir / name)

    def _finish(self, engine: Engine) -> None:
        if not self.overlap:
            return
        self.summary = engine.state.metrics = summarize(list(self.overlap.values()))
        ordered = sorted(self.overlap.items(), key=lambda entry: (entry[1].iou, entry[0][0], entry[0][1] or 0))
        rows = [
            (n, "" if p is None else p, f"{o.iou:.6f}", f"{o.dice:.6f}")
            + (o.true_positive, o.false_positive, o.false_negative, o.pixels)
            for (n, p), o in sorted(self.overlap.items(), key=lambda entry: (entry[0][0], entry[0][1] or 0))
        ]
        lines: list[str] = []
        writer = csv.writer(_Lines(lines), lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        self._write("evaluation.csv", "".join(lines))
        document = {"created_with": self.created_with, "summary": self.summary}
        self._write(SUMMARY_NAME, json.dumps(document, indent=2, sort_keys=True, default=str) + "\n")
        if self.tensorboard:
            self._draw(ordered)
        notes = [note] if (note := describe_label_values(self.items)) else []
        if not any(found.true_positive or found.false_negative for found in self.overlap.values()):
            notes.append("no label has any foreground: check that the masks were exported right")
        table = [("mean IoU", f"{100 * self.summary['mean_iou']:.1f} %  (std {100 * self.summary['std_iou']:.1f})")]
        table += [
            (name, f"{100 * self.summary[key]:.1f} %")
            for name, key in (("pooled IoU", "pooled_iou"), ("mean Dice", "mean_dice"), ("pooled Dice", "pooled_dice"))
        ]
        (worst_name, _), worst = ordered[0]
        for line in (
            *notes,
            f"evaluated {len(rows)} images",
            *format_table(("measure", "value"), table),
            f"lowest IoU: {100 * worst.iou:.1f} % in {worst_name}",
            f"tables and error pictures: {self.output_dir}",
        ):
            logger.info(line)

    def _draw(self, ordered: list[tuple[tuple[str, int | None], Overlap]], most: int = 12) -> None:
        with SummaryWriter(str(self.output_dir / "tensorboard")) as writer:
            for name, value in self.summary.items():
                writer.add_scalar(f"evaluation/{name.replace('_', ' ')}", value)
            writer.add_histogram("evaluation/IoU per image", np.array([found.iou for _, found in ordered]))
            by_key = {(item["name"], item["page"]): item for item in self.items}
            for (name, page), found in ordered[:most] if self.overlays else []:
                picture = np.asarray(Image.open(self._picture(by_key[(name, page)])))
                shown = name if page is None else f"{name} page {page + 1}"
                writer.add_image(f"errors/IoU {100 * found.iou:04.1f} {shown}", picture, dataformats="HWC")


class _Lines:
    """A list of strings that csv can write to."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append

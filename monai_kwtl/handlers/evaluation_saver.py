"""Evaluation of masks against labels: a table per image, a summary, and pictures of the errors."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from PIL import Image

from monai_kwtl.data.loading import describe_label_values
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.metrics import Overlap, overlap, summarize
from monai_kwtl.project.file_names import mask_file_names
from monai_kwtl.report.console import image_title
from monai_kwtl.utils.atomic import atomic_write
from monai_kwtl.utils.tensorboard import open_log, remove_log
from monai_kwtl.utils.text import format_table

__all__ = ["EvaluationSaver", "error_overlay"]

logger = logging.getLogger("monai_kwtl")

SUMMARY_NAME, TABLE_NAME = "evaluation.json", "evaluation.csv"
COLUMNS = ("image", "page", "iou", "dice", "true_positive", "false_positive", "false_negative", "pixels")
WHITE, RED, GREEN = (255, 255, 255), (220, 50, 47), (60, 180, 75)


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
    ``errors/<image stem>.png`` and, for TensorBoard, scalars and the worst images. All of a former evaluation goes when
    the new one is complete, and not before.

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
        self._unfinished = self.output_dir / ".errors.unfinished"
        self.created_with = dict(created_with or {})
        self.overlays = as_bool(overlays, "overlays")
        self.tensorboard = as_bool(tensorboard, "tensorboard")
        if (self.output_dir / SUMMARY_NAME).exists() and not as_bool(overwrite, "overwrite"):
            raise KWTLError(
                f"{self.output_dir / SUMMARY_NAME} already exists: choose another --output_dir or add --overwrite true"
            )
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / "errors").mkdir(exist_ok=True)
            self._begin()
        except OSError as error:
            raise KWTLError(f"cannot write to {output_dir} ({error.strerror}); choose another --output_dir") from error
        self.names = mask_file_names(self.items)
        self.summary: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds the masks under ``pred``."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _begin(self) -> None:
        self.overlap: dict[tuple[str, int | None], Overlap] = {}
        shutil.rmtree(self._unfinished, ignore_errors=True)  # of a run that was killed
        self._unfinished.mkdir()

    def __call__(self, engine: Engine) -> None:
        """Compare the mask just predicted with its label."""
        item = engine.state.batch
        label = np.asarray(torch.as_tensor(item["label"]))[0]
        prediction = torch.as_tensor(engine.state.output["pred"]).reshape(label.shape).cpu().numpy()
        self.overlap[(item["name"], item["page"])] = overlap(prediction, label)
        if self.overlays:
            path = self._unfinished / self.names[(item["name"], item["page"])]
            Image.fromarray(error_overlay(prediction, label)).save(path)

    def _replace_pictures(self) -> None:
        """Put the pictures where they belong; those of a former evaluation, which its table names, go."""
        folder = self.output_dir / "errors"
        try:
            with open(self.output_dir / TABLE_NAME, encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = list(csv.DictReader(file))
            former = [{"name": row["image"], "page": int(row["page"]) if row["page"] else None} for row in rows]
        except (OSError, KeyError, TypeError, ValueError, csv.Error):
            former = []
        for name in mask_file_names(former).values():
            (folder / name).unlink(missing_ok=True)
        for path in self._unfinished.iterdir():
            os.replace(path, folder / path.name)
        self._unfinished.rmdir()

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.output_dir / name) as unfinished:
            # names that are not UTF-8 keep their bytes
            unfinished.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")

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
        self._replace_pictures()
        self._write(TABLE_NAME, "".join(lines))
        remove_log(self.output_dir / "tensorboard", "evaluate")
        if self.tensorboard:
            self._draw(ordered)
        document = {"created_with": self.created_with, "summary": self.summary}
        self._write(SUMMARY_NAME, json.dumps(document, indent=2, sort_keys=True, default=str) + "\n")
        notes = [note] if (note := describe_label_values(self.items)) else []
        if not any(found.true_positive or found.false_negative for found in self.overlap.values()):
            notes.append("no label has any foreground: check that the masks were exported right")
        table = [("mean IoU", f"{100 * self.summary['mean_iou']:.1f} %  (std {100 * self.summary['std_iou']:.1f})")]
        table += [
            (name, f"{100 * self.summary[key]:.1f} %")
            for name, key in (("pooled IoU", "pooled_iou"), ("mean Dice", "mean_dice"), ("pooled Dice", "pooled_dice"))
        ]
        worst_key, worst = ordered[0]
        for line in (
            *notes,
            f"evaluated {len(rows)} images",
            *format_table(("measure", "value"), table),
            f"lowest IoU: {100 * worst.iou:.1f} % in {image_title(*worst_key)}",
            f"tables and error pictures: {self.output_dir}",
        ):
            logger.info(line)

    def _draw(self, ordered: list[tuple[tuple[str, int | None], Overlap]], most: int = 12) -> None:
        with open_log(self.output_dir / "tensorboard", "evaluate") as writer:
            for name, value in self.summary.items():
                writer.add_scalar(f"evaluation/{name.replace('_', ' ')}", value)
            writer.add_histogram("evaluation/IoU per image", np.array([found.iou for _, found in ordered]))
            for key, found in ordered[:most] if self.overlays else []:
                picture = np.asarray(Image.open(self.output_dir / "errors" / self.names[key]))
                tag = f"errors/IoU {100 * found.iou:04.1f} {image_title(*key)}"
                writer.add_image(tag, picture, dataformats="HWC")


class _Lines:
    """A list of strings that csv can write to."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append

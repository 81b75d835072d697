"""What the training stages share: their data in memory, their log, the weights they leave, and how they continue."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from monai_kwtl.adaptation import pool_batches
from monai_kwtl.bundle import file_sha256, not_finite
from monai_kwtl.checkpoints import WEIGHTS_NAME, fingerprint, save_atomically
from monai_kwtl.crops import CropDataset, GridCropDataset
from monai_kwtl.distributed import is_main_process
from monai_kwtl.errors import KWTLError, true_or_false
from monai_kwtl.event_files import open_log
from monai_kwtl.network_choice import network_note
from monai_kwtl.normalization import estimate_batch_norm_statistics
from monai_kwtl.parallel import unsynchronized
from monai_kwtl.summary import format_table
from monai_kwtl.whole_files import written_whole

__all__ = [
    "WEIGHTS_NAME",
    "TrainingSummary",
    "TuningLog",
    "WeightsSaver",
    "crop_dataset",
    "linear_decay",
    "pool_hash",
    "results_of",
]

logger = logging.getLogger("monai_kwtl")


def pool_hash(items: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the hashes of a pool's images and pages, whatever their order or names."""
    keys = sorted((item["sha256"], item["page"] or 0) for item in items)
    return hashlib.sha256(repr(keys).encode()).hexdigest()


def crop_dataset(
    schedule: str,
    data: Sequence[Mapping[str, Any]],
    steps: int,
    epochs: int,
    crop: int,
    step: int,
    batch_size: int,
    seed: int | Sequence[int],
    photometric: bool = False,
    match_foreground: bool = False,
    share: float | None = None,
) -> CropDataset:
    """Make the crops of a schedule: ``steps``, a budget of random crops, or ``paper``, epochs over a grid.

    Args:
        schedule: ``steps`` or ``paper``.
        data: as in :class:`monai_kwtl.crops.CropDataset`.
        steps: number of batches of the schedule ``steps``.
        epochs: of the schedule ``paper``.
        crop: side of a crop, in pixels.
        step: pixels between crops of the grid.
        batch_size: crops of a batch, over all processes together.
        seed: as in :class:`monai_kwtl.crops.CropDataset`.
        photometric: as in :class:`monai_kwtl.crops.CropDataset`.
        match_foreground: draw crops so that a ``share`` of their known pixels is foreground; a grid has its places.
        share: in (0, 1); None where it is not needed.

    Raises:
        KWTLError: for an unknown schedule, ``match_foreground`` for a grid, or numbers that the data sets refuse.
    """
    photometric = true_or_false(photometric, "photometric")
    matched = true_or_false(match_foreground, "match_foreground")
    shared = {"size": crop, "batch_size": batch_size, "seed": seed, "photometric": photometric}
    if schedule == "steps":
        crops = CropDataset(data, steps=steps, **shared, foreground=share if matched else None)
        if crops.bank is not None:
            logger.info(f"crops are drawn so that {100 * crops.bank.share:.1f} % of their known pixels are foreground")
        return crops
    if schedule == "paper" and matched:
        raise KWTLError("match_foreground draws crops anew in each step, and the paper's schedule has a grid; use one.")
    if schedule == "paper":
        return GridCropDataset(data, epochs=epochs, step=step, **shared)
    raise KWTLError(f"unknown schedule {schedule!r}; use steps or paper.")


def linear_decay(step: int, steps: int, falling: bool = True) -> float:
    """Return the factor of the learning rate of a step, for ``torch.optim.lr_scheduler.LambdaLR``.

    With a constant rate the last few crops decide which way the network leans; with one that falls in a straight line
    to nearly 0 the mean IoU of trainings that differ by their seed alone scatters less. (``PolynomialLR`` multiplies
    its rates one by another, and differs in their last bits.)

    Args:
        step: from 0.
        steps: in all.
        falling: False leaves the rate as it is.
    """
    return max(1.0 - step / steps, 0.0) if true_or_false(falling, "falling_rate") else 1.0


class TuningLog:
    """Keep a trainer's losses, draw them into TensorBoard, and stop with a sentence where one is no number any more.

    MONAI's ``TensorBoardStatsHandler`` begins its file when it is made and not when there is something to draw, and
    knows nothing of trainings that are resumed; Ignite's ``TerminateOnNan`` ends a training as if it were complete.

    Args:
        folder: of the stage; the log goes to ``tensorboard`` below it. None writes none.
        tensorboard: False writes none either.
        validator: an evaluator whose ``mean_iou`` is drawn as well, as ``IoU/held out``.
        tag: of the curve.
        every: iterations between points of the curve.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        tensorboard: bool = True,
        validator: Engine | None = None,
        tag: str = "loss/train",
        every: int = 1,
    ) -> None:
        drawn = folder is not None and true_or_false(tensorboard, "tensorboard")
        self.log_dir = Path(folder) / "tensorboard" if drawn else None
        self.writer: SummaryWriter | None = None
        self.validator, self.tag, self.every = validator, tag, every
        self.losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer whose output holds ``loss``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._flush)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._draw_validation, engine)

    def _flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def _draw_validation(self, validator: Engine, trainer: Engine) -> None:
        if self.writer is not None:
            self.writer.add_scalar("IoU/held out", validator.state.metrics["mean_iou"], trainer.state.iteration)

    def __call__(self, engine: Engine) -> None:
        """Take note of the loss of the step just done."""
        loss = float(torch.as_tensor(engine.state.output["loss"]).detach())
        if not math.isfinite(loss):
            self._flush()  # the way there tells what went wrong
            raise KWTLError(
                f"the loss is {loss} at step {engine.state.iteration}: nothing was saved of it; "
                "use a smaller --learning_rate, or look for broken images or masks"
            )
        if self.log_dir is not None and self.writer is None and is_main_process():
            self.writer = open_log(self.log_dir, "training", after=len(self.losses))
        self.losses.append(loss)
        if self.writer is not None and engine.state.iteration % self.every == 0:
            self.writer.add_scalar(self.tag, loss, engine.state.iteration)
            for name, value in engine.state.metrics.items():  # those of the tasks of meta-training
                if "/" in name:
                    self.writer.add_scalar(name, value, engine.state.iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses, for a checkpoint; TensorBoard has those up to here then."""
        self._flush()
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the losses from a checkpoint."""
        self.losses = list(state["losses"])

    def mean(self, first: bool, share: float = 0.1) -> float:
        """Return the mean loss over the first or last part of the steps; NaN where there were none."""
        count = max(1, int(len(self.losses) * share))
        part = self.losses[:count] if first else self.losses[-count:]
        return float(np.mean(part)) if part else float("nan")


def results_of(engine: Engine) -> dict[str, float | int]:
    """Return those metrics of a trainer that say how good its result is, for the note on it and the closing table."""
    kinds = ("best_step", "held_out_iou", "iou")
    return {name: value for name, value in engine.state.metrics.items() if name.split("/")[0] in kinds}


class TrainingSummary:
    """Log a table of what came out, when a training is completed; attach it after what writes the weights.

    Args:
        log: has the losses.
        weights: where the weights are.
    """

    def __init__(self, log: TuningLog, weights: str | os.PathLike) -> None:
        self.log, self.weights = log, weights

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Log the table."""
        rows = [
            ("steps", str(engine.state.iteration)),
            ("loss, first tenth", f"{self.log.mean(True):.4f}"),
            ("loss, last tenth", f"{self.log.mean(False):.4f}"),
        ]
        rows += [
            (name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
            for name, value in results_of(engine).items()
        ]
        rows.append(("weights", str(self.weights)))
        for line in format_table(("", ""), rows)[1:]:
            logger.info(line)


class WeightsSaver:
    """Write the weights that a stage leaves, with batch-norm statistics of the pool, and a note on their making.

    Args:
        path: of the weights, a plain state dict; the note stands beside it as ``.json``.
        network: whose weights are written.
        items: images that the batch-norm statistics are fitted to before; None leaves them.
        created_with: what the note shall say.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the network lives.
        adapt_norm: False leaves the batch-norm statistics.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        items: Sequence[Mapping[str, Any]] | None = None,
        created_with: Mapping[str, Any] | None = None,
        rescale: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        adapt_norm: bool = True,
    ) -> None:
        self.path, self.network = Path(path), network
        self.items = items if true_or_false(adapt_norm, "adapt_norm") else None
        self.created_with, self.rescale, self.device = dict(created_with or {}), rescale, device

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save, when the training is completed, and note its steps, its results and the fingerprint of its settings."""
        facts = {"fingerprint": fingerprint(self.created_with), "steps": engine.state.iteration, **results_of(engine)}
        self.save(facts)

    def save(self, facts: Mapping[str, Any] | None = None) -> None:
        """Fit the statistics, write weights and note; of several processes the first one does.

        Args:
            facts: results to add to the note.

        Raises:
            KWTLError: when the weights or the statistics are not finite; nothing is written then.
        """
        if not is_main_process():
            return
        network = unsynchronized(self.network)
        if self.items:
            estimate_batch_norm_statistics(network, pool_batches(self.items, rescale=self.rescale, device=self.device))
        state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        if broken := not_finite(state):
            raise KWTLError(
                f"the trained weights are not finite, first in {broken[0]!r}: they were not saved; begin anew with "
                "--overwrite true and a smaller learning rate"
            )
        save_atomically(state, self.path)
        described = network_note(network, self.rescale)
        note = {**self.created_with, **(facts or {}), "network": described, "sha256": file_sha256(self.path)}
        with written_whole(self.path.with_suffix(".json")) as unfinished:
            unfinished.write_text(json.dumps(note, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")

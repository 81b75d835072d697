"""Loss and learning rate of a training in TensorBoard, and a rate that falls."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.tensorboard import SummaryWriter

from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.utils.distributed import is_main_process
from monai_kwtl.utils.tensorboard import open_log
from monai_kwtl.utils.text import format_table

logger = logging.getLogger("monai_kwtl")


__all__ = ["TrainingSummary", "TuningLog", "linear_decay", "results_of"]


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
    return max(1.0 - step / steps, 0.0) if as_bool(falling, "falling_rate") else 1.0


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
        drawn = folder is not None and as_bool(tensorboard, "tensorboard")
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

    def mean(self, first: bool, fraction: float = 0.1) -> float:
        """Return the mean loss over the first or last part of the steps; NaN where there were none."""
        count = max(1, int(len(self.losses) * fraction))
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

"""What the training stages share: their data in memory, their log, the weights they leave, and how they continue."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from monai_kwtl.adaptation import pool_batches
from monai_kwtl.bundle import file_sha256, not_finite
from monai_kwtl.checkpoints import StageCheckpoint, remove_unfinished, save_atomically
from monai_kwtl.crops import CropDataset, GridCropDataset
from monai_kwtl.distributed import is_main_process, on_main_process, ranks
from monai_kwtl.errors import KWTLError
from monai_kwtl.event_files import open_log
from monai_kwtl.normalization import estimate_batch_norm_statistics
from monai_kwtl.parallel import unsynchronized
from monai_kwtl.summary import format_table
from monai_kwtl.whole_files import written_whole

__all__ = ["FallingRate", "TuningLog", "WeightsSaver", "check_stage_output", "crop_dataset", "pool_hash", "run_stage"]

logger = logging.getLogger("monai_kwtl")

WEIGHTS_NAME, CHECKPOINT_NAME = "model.pt", "checkpoint.pt"


def pool_hash(items: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the hashes of a pool's images and pages, whatever their order or names."""
    keys = sorted((item["sha256"], item["page"] or 0) for item in items)
    return hashlib.sha256(repr(keys).encode()).hexdigest()


def crop_dataset(
    schedule: str,
    data: Sequence[Mapping[str, Any]],
    steps: int,
    epochs: int,
    start_step: int,
    crop: int,
    step: int,
    batch_size: int,
    seed: int,
    photometric: bool = False,
    foreground: float | None = None,
) -> CropDataset:
    """Make the crops of a schedule: ``steps``, a budget of random crops, or ``paper``, epochs over a grid.

    ``photometric`` and ``foreground`` are those of :class:`monai_kwtl.crops.CropDataset`; a grid has its places.

    Raises:
        KWTLError: for an unknown schedule, a share of foreground for a grid, or numbers that the data sets refuse.
    """
    shared = {"start_step": start_step, "size": crop, "batch_size": batch_size, "seed": seed}
    if schedule == "steps":
        crops = CropDataset(data, steps=steps, **shared, photometric=photometric, foreground=foreground)
        if crops.bank is not None:
            logger.info(f"crops are drawn so that {100 * crops.bank.share:.1f} % of their known pixels are foreground")
        return crops
    if schedule == "paper" and foreground is not None:
        raise KWTLError("match_foreground draws crops anew in each step, and the paper's schedule has a grid; use one.")
    if schedule == "paper":
        return GridCropDataset(data, epochs=epochs, step=step, **shared, photometric=photometric)
    raise KWTLError(f"unknown schedule {schedule!r}; use steps or paper.")


class FallingRate:
    """Let the learning rate fall in a straight line to nearly 0 at the last step.

    With a constant rate the last few crops decide which way the network leans; so the mean IoU of trainings that differ
    by their seed alone scatters less. Step k of n, from 0, has the rate ``r (1 - k / n)``. It depends on the number of
    the step alone, so that a training that is resumed goes on where it was.

    Args:
        optimizer: of the trainer.
        rate: r; not read off the optimizer, which that of a resumed training has from its checkpoint.
        steps: n, in all.
        wanted: False leaves the rate as it is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rate: float, steps: int, wanted: bool = True) -> None:
        self.optimizer, self.rate, self.steps, self.wanted = optimizer, rate, steps, wanted

    def attach(self, engine: Engine) -> None:
        """Register with a trainer of one epoch."""
        if self.wanted:
            engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the rate of the step that begins."""
        left = max(1.0 - (engine.state.iteration - 1) / self.steps, 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * left


def check_stage_output(output_dir: str | os.PathLike, overwrite: bool, resume: bool) -> Path:
    """Find out before a training whether its weights can be written; of several processes the first one does.

    Args:
        output_dir: made if absent.
        overwrite: whether weights that are already there may be replaced.
        resume: a finished stage that is resumed has nothing to do, and keeps its weights.

    Returns:
        The path that the weights will have.

    Raises:
        KWTLError: when weights or the checkpoint of an interrupted run are there and must stay, or the folder cannot
            be written.
    """
    path = Path(output_dir) / WEIGHTS_NAME
    if not is_main_process():
        return path
    if path.exists() and not overwrite and not resume:
        raise KWTLError(f"{path} already exists: choose another --output_dir or add --overwrite true")
    if (unfinished := path.with_name(CHECKPOINT_NAME)).exists() and not overwrite and not resume:
        raise KWTLError(
            f"{unfinished} is of an interrupted run: go on with --resume true, or begin anew with --overwrite true"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise KWTLError(f"cannot write to {output_dir} ({error.strerror}); choose another --output_dir") from error
    return path


class TuningLog:
    """Log a trainer's loss to TensorBoard and stop with a sentence where it is no number any more.

    Args:
        log_dir: of TensorBoard; None writes none. The writer is opened when the training starts.
        tag: of the curve.
        every: iterations between points of the curve.
    """

    def __init__(self, log_dir: str | os.PathLike | None, tag: str = "loss/train", every: int = 1) -> None:
        self.log_dir = log_dir
        self.writer: SummaryWriter | None = None
        self.tag, self.every = tag, every
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer whose output holds ``loss``."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._flush)

    def _open(self) -> None:
        if self.log_dir is not None and self.writer is None and is_main_process():
            self.writer = open_log(self.log_dir, "training", after=len(self.losses))

    def _flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def __call__(self, engine: Engine) -> None:
        """Take note of the loss of the step just done."""
        loss = float(torch.as_tensor(engine.state.output["loss"]).detach())
        if not math.isfinite(loss):
            self._flush()  # the way there tells what went wrong
            raise KWTLError(
                f"the loss is {loss} at step {engine.state.iteration}: nothing was saved of it; "
                "use a smaller --learning_rate, or look for broken images or masks"
            )
        self.losses.append(loss)
        if self.writer is not None and engine.state.iteration % self.every == 0:
            self.writer.add_scalar(self.tag, loss, engine.state.iteration)
            for name, value in engine.state.metrics.items():  # those of the tasks of meta-training
                if "/" in name:
                    self.writer.add_scalar(name, value, engine.state.iteration)
        self.metrics = {name: float(value) for name, value in engine.state.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: so that a resumed stage tells of all its steps, and TensorBoard has those up to here."""
        self._flush()
        return {"losses": list(self.losses), "metrics": dict(self.metrics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.losses, self.metrics = list(state["losses"]), dict(state["metrics"])

    def facts(self) -> dict[str, float]:
        """The last metrics of the trainer, for the closing table."""
        return {name: value for name, value in self.metrics.items() if name.startswith("iou")}

    def mean(self, first: bool, share: float = 0.1) -> float:
        """Mean loss over the first or last part of the steps; NaN where there were none."""
        count = max(1, int(len(self.losses) * share))
        part = self.losses[:count] if first else self.losses[-count:]
        return float(np.mean(part)) if part else float("nan")


class WeightsSaver:
    """Write the weights that a stage leaves, with batch-norm statistics of the pool, and a note on their making.

    Args:
        path: of the weights, a plain state dict; the note stands beside it as ``.json``.
        network: whose weights are written.
        items: images that the batch-norm statistics are fitted to before; None leaves them.
        created_with: what the note shall say.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the network lives.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        items: Sequence[Mapping[str, Any]] | None = None,
        created_with: Mapping[str, Any] | None = None,
        rescale: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.path, self.network, self.items = Path(path), network, items
        self.created_with, self.rescale, self.device = dict(created_with or {}), rescale, device

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
        note = {**self.created_with, **(facts or {}), "sha256": file_sha256(self.path)}
        with written_whole(self.path.with_suffix(".json")) as unfinished:
            unfinished.write_text(json.dumps(note, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def run_stage(
    trainer: Engine,
    checkpoint: StageCheckpoint,
    saver: WeightsSaver,
    log: TuningLog,
    steps: int,
    facts: Callable[[], Mapping[str, Any]] | None = None,
    skip: bool = False,
) -> None:
    """Train from where the checkpoint stands to the last step, write the weights, say what came out.

    Args:
        trainer: with one epoch of ``steps`` iterations.
        checkpoint: is removed when the weights are written.
        saver: writes the weights.
        log: has the losses.
        steps: number of training steps in all.
        facts: gives further results for the note and the table, after the training.
        skip: do nothing, for stages that only show what they would train on.
    """
    if skip:
        return
    # all processes have read the checkpoint before the first one changes it
    finished, iteration = on_main_process(lambda: (checkpoint.finished(saver.path), checkpoint.iteration))
    if iteration != checkpoint.iteration:
        raise KWTLError(
            f"process {ranks().rank} sees another state of {checkpoint.path} than the first one: --output_dir must be "
            "a folder that all of them share."
        )
    if finished:
        logger.info(f"{saver.path} is finished: nothing to do")
        return
    if checkpoint.iteration:
        logger.info(f"continuing after step {checkpoint.iteration} of {steps}")
    if checkpoint.iteration < steps:
        trainer.state.iteration = checkpoint.iteration
        trainer.state.epoch = checkpoint.iteration // trainer.state.epoch_length
        trainer.run()
        checkpoint.save(steps)  # so that a stage killed while it writes its weights needs no training again
    results = dict(facts() if facts is not None else {})
    saver.save({"fingerprint": checkpoint.fingerprint, "steps": steps, **results})
    checkpoint.remove()
    if not is_main_process():
        return
    remove_unfinished(saver.path)
    rows = [
        ("steps", str(steps)),
        ("loss, first tenth", f"{log.mean(True):.4f}"),
        ("loss, last tenth", f"{log.mean(False):.4f}"),
    ]
    rows += [
        (name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
        for name, value in results.items()
    ]
    rows.append(("weights", str(saver.path)))
    for line in format_table(("", ""), rows)[1:]:
        logger.info(line)

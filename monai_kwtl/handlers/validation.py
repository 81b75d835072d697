"""Held-out masks while a network is tuned: their overlap, and the best weights by it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler
from torch import nn

from monai_kwtl.errors import check_whole_number
from monai_kwtl.metrics import overlap, summarize
from monai_kwtl.networks.parallel import unwrap
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.utils.distributed import is_main_process

__all__ = ["BestWeights", "HeldOutValidation", "KnownOverlap", "prepare_validation", "validation_items"]


def validation_items(held_out: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make tensors of held-out images: ``image``, grey values, ``label`` and ``known``, each (1, H, W)."""
    return [
        {
            "image": torch.from_numpy(entry["image"]),
            "label": torch.from_numpy(entry["label"]),
            "known": torch.from_numpy(entry.get("known", np.ones(entry["label"].shape, dtype=bool))),
        }
        for entry in held_out
    ]


def prepare_validation(
    item: Mapping[str, Any], device: torch.device, non_blocking: bool, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of one, network input and label, (1, 1, H, W), of a held-out image."""
    to = {"device": device, "non_blocking": non_blocking, **kwargs}
    return normalize(item["image"][None].to(**to)), item["label"][None].to(**to)


class KnownOverlap:
    """Mean IoU over held-out images, counted on their known pixels, as ``engine.state.metrics["mean_iou"]``."""

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds logits under ``pred``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.overlaps = []

    def __call__(self, engine: Engine) -> None:
        """Count the image just predicted."""
        known = engine.state.batch["known"].numpy()
        prediction = (engine.state.output["pred"][0] >= 0).cpu().numpy()
        self.overlaps.append(overlap(prediction, engine.state.batch["label"].numpy(), known))

    def _finish(self, engine: Engine) -> None:
        if self.overlaps:
            engine.state.metrics["mean_iou"] = summarize(self.overlaps)["mean_iou"]


class BestWeights:
    """Keep the weights of the step whose validation was the best, and put them back when the training is completed.

    It is part of a checkpoint. The trainer's metrics then have ``best_step`` and ``held_out_iou``. Where the validator
    never runs, the weights stay as they are.

    Args:
        network: whose weights are kept.
        validator: an evaluator that a ``ValidationHandler`` runs.
        metric: of the validator; the highest is the best.
    """

    def __init__(self, network: nn.Module, validator: Engine, metric: str = "mean_iou") -> None:
        self.network, self.validator, self.metric = network, validator, metric
        self.iou, self.step = -1.0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, and with the validator for that trainer."""
        self.validator.add_event_handler(Events.COMPLETED, self._look, engine)
        engine.add_event_handler(Events.COMPLETED, self)

    def _look(self, validator: Engine, trainer: Engine) -> None:
        if validator.state.metrics[self.metric] > self.iou:
            self.iou, self.step = validator.state.metrics[self.metric], trainer.state.iteration
            self.weights = copy.deepcopy(unwrap(self.network).state_dict())

    def __call__(self, engine: Engine) -> None:
        """Put the best weights back into the network, where any were kept."""
        if self.weights:
            unwrap(self.network).load_state_dict(self.weights)
            engine.state.metrics.update(best_step=self.step, held_out_iou=self.iou)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"iou": self.iou, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take everything from a checkpoint."""
        self.iou, self.step, self.weights = state["iou"], state["step"], dict(state["weights"])


class HeldOutValidation(ValidationHandler):
    """Validate every so many steps and after the last; without held-out images do nothing.

    Of several processes the first one validates: its validator must have a network that does not wait for the others.

    Args:
        interval: steps between validations.
        validator: an evaluator.

    Raises:
        KWTLError: when the interval is not a whole number, at least 1.
    """

    def __init__(self, interval: int, validator: Evaluator) -> None:
        check_whole_number("validate_every", interval, 1)
        super().__init__(interval=interval, validator=validator, epoch_level=False)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer of one epoch."""
        if len(self.validator.data_loader) and is_main_process():
            super().attach(engine)
            last = engine.state.epoch_length
            if last % self.interval:
                engine.add_event_handler(Events.ITERATION_COMPLETED(once=last), self)

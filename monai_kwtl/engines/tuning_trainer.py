"""Tuning on crops of which some pixels may be unknown, as a MONAI trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.engines import SupervisedTrainer

from monai_kwtl.data.crops import prepare_crops
from monai_kwtl.losses import loss_over_known

__all__ = ["TuningTrainer"]


class TuningTrainer(SupervisedTrainer):
    """Train on batches that say which pixels of their labels are known.

    MONAI's trainer gives a loss the logits and the labels; this one gives it the ``known`` of the batch as well, see
    :func:`monai_kwtl.losses.loss_over_known`. A batch without ``known`` is known everywhere.

    Args:
        loss_function: from logits, labels and known pixels to a scalar.
        kwargs: of ``monai.engines.SupervisedTrainer``; ``prepare_batch`` is :func:`monai_kwtl.data.crops.prepare_crops`
            and ``decollate`` False where they are not given.

    Raises:
        KWTLError: while running, when a batch has unknown pixels and the loss does not take them.
    """

    def __init__(self, *, loss_function: Callable[..., torch.Tensor], **kwargs: Any) -> None:
        defaults = {"prepare_batch": prepare_crops, "decollate": False}
        super().__init__(loss_function=self._loss_over_known, **defaults | kwargs)
        self.loss_of_known = loss_function

    def _loss_over_known(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of the present batch."""
        known = self.state.batch.get("known")
        if known is not None:
            known = known.to(labels.device, non_blocking=self.non_blocking)
        return loss_over_known(self.loss_of_known, logits, labels, known)

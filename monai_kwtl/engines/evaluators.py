"""The MONAI evaluator that the stages run."""

from __future__ import annotations

from ignite.engine import Events
from monai.engines import SupervisedEvaluator

__all__ = ["PoolEvaluator"]


class PoolEvaluator(SupervisedEvaluator):
    """A ``SupervisedEvaluator`` that also ends well where no image is left to do, as where all scores are kept."""

    def run(self, global_epoch: int = 1) -> None:
        """Run over the data, or fire ``COMPLETED`` alone where there is none."""
        if len(self.data_loader):
            super().run(global_epoch)
        else:
            self.fire_event(Events.COMPLETED)

"""Read TensorBoard logs back as TensorBoard itself does."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class Log:
    """What a folder of event files holds; whatever was written twice counts once, the last time.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
        self._events.Reload()

    def tags(self, kind: str) -> list[str]:
        """Tags of ``scalars``, ``images`` or ``histograms``, in the order in which they were written."""
        return list(self._events.Tags()[kind])

    def curve(self, tag: str) -> list[tuple[int, float]]:
        """Step and value of each point of a scalar."""
        return [(event.step, event.value) for event in self._events.Scalars(tag)]

    def scalars(self) -> dict[str, float]:
        """The last value of every scalar."""
        return {tag: self.curve(tag)[-1][1] for tag in self.tags("scalars")}

    def picture(self, tag: str) -> np.ndarray:
        """An image, uint8 (H, W, 3); grey ones are written so as well."""
        (event,) = self._events.Images(tag)
        return np.array(Image.open(io.BytesIO(event.encoded_image_string)))

    def histogram(self, tag: str):
        """A histogram, with ``num``, ``min``, ``max``, ``sum``, ``bucket_limit`` and ``bucket``."""
        (event,) = self._events.Histograms(tag)
        return event.histogram_value

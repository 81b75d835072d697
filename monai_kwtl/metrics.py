"""Overlap of masks: intersection over union and Dice of the foreground, per image and pooled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["EPSILON", "Overlap", "overlap", "summarize"]

EPSILON = 1e-4  # keeps an image without foreground defined: IoU 1 where the prediction is empty as well


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of one image: true positives, false positives, false negatives, all pixels."""

    true_positive: int
    false_positive: int
    false_negative: int
    pixels: int

    @property
    def union(self) -> int:
        """Pixels that are foreground in the prediction or in the label."""
        return self.true_positive + self.false_positive + self.false_negative

    @property
    def iou(self) -> float:
        """Intersection over union, ``(i + 1e-4) / (u + 1e-4)``, in [0, 1]."""
        return (self.true_positive + EPSILON) / (self.union + EPSILON)

    @property
    def dice(self) -> float:
        """Dice coefficient, ``(2 i + 1e-4) / (a + b + 1e-4)``, in [0, 1]."""
        both = self.union + self.true_positive
        return (2 * self.true_positive + EPSILON) / (both + EPSILON)

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.true_positive + other.true_positive,
            self.false_positive + other.false_positive,
            self.false_negative + other.false_negative,
            self.pixels + other.pixels,
        )


def overlap(prediction: np.ndarray, label: np.ndarray, known: np.ndarray | None = None) -> Overlap:
    """Count how a predicted mask and a label agree.

    Args:
        prediction: any shape; non-zero is foreground.
        label: same shape; non-zero is foreground.
        known: bool, same shape: pixels that count; None counts all.

    Returns:
        The counts.

    Raises:
        ValueError: when the shapes differ.
    """
    prediction, label = np.asarray(prediction) != 0, np.asarray(label) != 0
    if prediction.shape != label.shape:
        raise ValueError(f"the prediction is {prediction.shape}, the label {label.shape}.")
    if known is not None:
        known = np.asarray(known).astype(bool)
        if known.shape != label.shape:
            raise ValueError(f"the known mask is {known.shape}, the label {label.shape}.")
        prediction, label = prediction[known], label[known]
    both = int(np.count_nonzero(prediction & label))
    return Overlap(
        true_positive=both,
        false_positive=int(np.count_nonzero(prediction)) - both,
        false_negative=int(np.count_nonzero(label)) - both,
        pixels=int(label.size),
    )


def summarize(overlaps: list[Overlap]) -> dict[str, float]:
    """Summarise a test set.

    Args:
        overlaps: one for each image, at least one.

    Returns:
        ``images``; ``mean_iou`` and ``std_iou`` (population) over images, the figure of the paper; ``pooled_iou`` of
        all pixels together; ``mean_dice`` and ``pooled_dice``.
    """
    pooled = sum(overlaps[1:], start=overlaps[0])
    ious = np.array([o.iou for o in overlaps])
    return {
        "images": len(overlaps),
        "mean_iou": float(ious.mean()),
        "std_iou": float(ious.std()),
        "pooled_iou": pooled.iou,
        "mean_dice": float(np.mean([o.dice for o in overlaps])),
        "pooled_dice": pooled.dice,
    }

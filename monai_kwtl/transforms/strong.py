"""Targets and views for a student of unlabelled crops: sure answers of its teacher, on changed and mixed crops."""

from __future__ import annotations

import numpy as np
import torch

from monai_kwtl.transforms import AutoContrast, Brightness, Sharpness

__all__ = ["BOX", "PSI", "cut_mix", "pseudo_target", "strong_view"]

PSI = (0.5, 1.9)  # factors of brightness and sharpness
BOX = (0.1, 0.5)  # part of a crop's area that comes from another one


def pseudo_target(
    probability: torch.Tensor, foreground: float = 0.9, background: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn predictions into labels where they are sure.

    Args:
        probability: of foreground, in [0, 1], any shape.
        foreground: a pixel is foreground where its probability is at least this.
        background: a pixel is background where the probability of that, ``1 - p``, is at least this.

    Returns:
        The labels, float32, 0 or 1, and where they are sure, bool; both of the same shape.
    """
    is_foreground = probability >= foreground
    return is_foreground.float(), is_foreground | (probability <= 1.0 - background)


def strong_view(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change the grey values of a crop strongly: one, two or all of the paper's views, one after the other.

    Those are auto-contrast, brightness and sharpness, in this order, each of the seven choices equally likely; the
    factors of brightness and sharpness are drawn by themselves, uniformly from ``PSI``.

    Args:
        image: grey values in [0, 255], shape (1, H, W).
        rng: of the crop.

    Returns:
        float32 in [0, 255], same shape.
    """
    chosen = int(rng.integers(1, 8))
    brightness, sharpness = rng.uniform(*PSI, size=2).tolist()
    for bit, view in enumerate((AutoContrast(), Brightness(brightness), Sharpness(sharpness))):
        if chosen >> bit & 1:
            image = view(image)
    return torch.as_tensor(image, dtype=torch.float32)


def cut_mix(
    images: torch.Tensor, targets: torch.Tensor, known: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put a box of another crop of the batch into each crop, and into its target (CutMix; Yun et al. 2019).

    The other crop is the one so many places further on, the same number for all, never a crop itself. The box has the
    shape of the crop, a part of its area drawn uniformly from ``BOX``, and lies anywhere inside.

    Args:
        images: shape (N, C, H, W).
        targets: shape (N, c, H, W).
        known: where the targets are known, bool, of their shape.
        rng: of the batch.

    Returns:
        All three mixed, new tensors; a batch of one crop is as it was.
    """
    before = images, targets, known
    mixed = images.clone(), targets.clone(), known.clone()
    count, (height, width) = len(images), images.shape[2:]
    if count > 1:
        further = int(rng.integers(1, count))
        for index in range(count):
            side = float(rng.uniform(*BOX)) ** 0.5
            rows, columns = max(round(height * side), 1), max(round(width * side), 1)
            y, x = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            for new, old in zip(mixed, before, strict=True):
                box = (..., slice(y, y + rows), slice(x, x + columns))
                new[index][box] = old[(index + further) % count][box]
    return mixed

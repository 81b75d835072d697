"""Grey values as a network takes them."""

from __future__ import annotations

import torch

__all__ = ["normalize"]


def normalize(image: torch.Tensor) -> torch.Tensor:
    """Map grey values in [0, 255] to network input in [-1, 1]: ``(x / 255 - 0.5) / 0.5``, float32."""
    return image.to(torch.float32).mul(2.0 / 255.0).sub_(1.0)

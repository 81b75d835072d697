"""The decision threshold of a tuned network, chosen on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.metrics import overlap, summarize
from monai_kwtl.transforms.functional import normalize

__all__ = ["THRESHOLDS", "decision_threshold"]

THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(1, 20))  # probabilities, 0.05 to 0.95


@torch.no_grad()
def decision_threshold(
    network: nn.Module,
    support: Iterable[Mapping[str, Any]],
    inferer: Callable[[torch.Tensor, nn.Module], torch.Tensor] | None = None,
) -> float:
    """Choose from which probability on a pixel is foreground: where the mean IoU over the support images is largest.

    The IoU of an image, ``(i + 1e-4) / (u + 1e-4)``, is counted on its known pixels at full resolution.

    Args:
        network: gives logits, as it will be run, with its statistics fitted; it is evaluated and left in its mode.
        support: dicts of ``image``, grey values uint8 (1, H, W), ``label``, (1, H, W), 0 or 1, and
            optionally ``known``, bool (1, H, W).
        inferer: how the network is run; None: in tiles, as the stages do.

    Returns:
        One of ``THRESHOLDS``: 0.05, 0.10, ... 0.95; of several that are equally good the one nearest to 0.5, and of
        two equally near the lower one.

    Raises:
        KWTLError: when the support set is empty.
    """
    inferer = TiledInferer() if inferer is None else inferer
    device = next(network.parameters()).device
    mode = network.training
    network.eval()
    found: list[list] = [[] for _ in THRESHOLDS]
    for entry in support:
        inputs = normalize(torch.from_numpy(np.asarray(entry["image"]))[None].to(device))
        probability = torch.sigmoid(inferer(inputs, network).float())[0].cpu().numpy()
        for overlaps, threshold in zip(found, THRESHOLDS, strict=True):
            overlaps.append(overlap(probability >= threshold, entry["label"], entry.get("known")))
    network.train(mode)
    if not found[0]:
        raise KWTLError("a threshold is chosen on labelled images, and there are none; use 0.5.")
    ious = [summarize(overlaps)["mean_iou"] for overlaps in found]
    best = [threshold for threshold, iou in zip(THRESHOLDS, ious, strict=True) if iou == max(ious)]
    return min(best, key=lambda threshold: (round(abs(threshold - 0.5), 2), threshold))

"""Contributions of each view to the score of a region."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import nn

from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.scoring.measures import CONSISTENCY_MEASURES, view_disagreements
from monai_kwtl.scoring.window_scores import LARGEST_MAP, WindowScoreInferer
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.windows.box import Box

__all__ = ["ViewMaps"]


class ReadyNetwork(Protocol):
    """Has a network that is ready to score, such as the handler that fits its batch norm."""

    device: torch.device

    def ready(self) -> nn.Module:
        """Return the network."""


class ViewMaps:
    """Score map of each view of a region, for pictures: the maps of ``soft``, ``hard`` and ``kl`` add up to the score.

    Args:
        inferer: whose views are drawn; a measure without views gives nothing.
        adapter: has the network that scores.
    """

    def __init__(self, inferer: WindowScoreInferer, adapter: ReadyNetwork) -> None:
        self.scorer, self.exact, self.adapter = inferer.scorer, inferer.exact, adapter

    @torch.no_grad()
    def __call__(self, image: np.ndarray, box: Box) -> dict[str, np.ndarray]:
        """Return {name of the view: its binary cross-entropy with the image's prediction, (h, w)}; none of a slide.

        Args:
            image: uint8 (1, H, W).
            box: the region.
        """
        if self.scorer.measure not in CONSISTENCY_MEASURES or image.size > LARGEST_MAP:
            return {}
        network, device = self.adapter.ready(), self.adapter.device
        batch, where = torch.from_numpy(np.ascontiguousarray(image))[None].to(device), box.slices
        if self.exact:
            batch, where = batch[(..., *where)], (slice(None), slice(None))
        inferer = self.scorer.inferer
        moving = any(hasattr(view, "invert") for view in self.scorer.views)
        if self.exact or moving or self.scorer.weighted or not isinstance(inferer, TiledInferer):
            logits = inferer(normalize(batch), network).float()
            seen = self.scorer.view_logits(batch, network, logits)
        else:  # of the other pixels of an image a region needs those around it only
            images = [batch, *(torch.as_tensor(view(batch[:, 0]))[:, None] for view in self.scorer.views)]
            logits, *seen = (inferer.region(normalize(image), network, *where).float() for image in images)
            where = (slice(None), slice(None))
        target = "soft" if self.scorer.measure == "jsd" else self.scorer.measure
        maps = view_disagreements(logits, seen, target=target, weighted=self.scorer.weighted)
        named: dict[str, np.ndarray] = {}
        for view, values in zip(self.scorer.views, maps, strict=True):
            name = getattr(view, "name", type(view).__name__)
            number = 1 + sum(other.split(" #")[0] == name for other in named)
            named[name if number == 1 else f"{name} #{number}"] = values[0, 0][where].cpu().numpy()
        return named

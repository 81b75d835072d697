"""From an image to the scores of its windows, densely by an integral image or exactly window by window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.scoring import ScoreMapInferer
from monai_kwtl.windows import WindowGrid, exact_window_scores

__all__ = ["WindowScoreInferer", "prepare_image"]


def prepare_image(item: Mapping[str, Any], device: torch.device, non_blocking: bool, **kwargs: Any) -> tuple:
    """Make a batch of one for a MONAI evaluator from one item of a data set, which has no label.

    Args:
        item: with ``image``, grey values of shape (1, H, W).
        device: where the batch shall live.
        non_blocking: whether the copy may overlap computing.
        kwargs: passed on to ``Tensor.to``.

    Returns:
        Images of shape (1, 1, H, W), and None.
    """
    return item["image"][None].to(device, non_blocking=non_blocking, **kwargs), None


class WindowScoreInferer(Inferer):
    """Score the windows of one image, for use as the inferer of a MONAI evaluator.

    Args:
        scorer: makes the score map.
        window: rows and columns of a window, in pixels.
        step: pixels between windows.
        exact: score each window by itself instead of averaging the map of the image; slow.
        batch_size: windows scored at once when exact.

    Raises:
        KWTLError: when window or step is not a positive whole number.
    """

    def __init__(
        self, scorer: ScoreMapInferer, window: int = 256, step: int = 30, exact: bool = False, batch_size: int = 16
    ) -> None:
        super().__init__()
        WindowGrid(1, 1, window, step)  # refuses bad sizes before any work
        self.scorer, self.window, self.step = scorer, window, step
        self.exact, self.batch_size = exact, batch_size

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Score the windows of an image.

        Args:
            inputs: grey values in [0, 255], shape (1, 1, H, W).
            network: from network input to logits, in evaluation mode.
            args: not used.
            kwargs: not used.

        Returns:
            ``grid``; ``window_scores`` and ``foreground`` (mean probability of foreground), float64 (len(grid),);
            ``cells``, the sums of the score map over the grid's cells, None when exact; ``score`` and
            ``probability``, the maps, float32 arrays (H, W).
        """
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        grid = WindowGrid(*image.shape[-2:], window=self.window, step=self.step)
        maps = self.scorer(image, network)
        score = maps["score"][0, 0].cpu().numpy()
        probability = torch.sigmoid(maps["logits"])[0, 0].cpu().numpy()
        cells = None if self.exact else grid.cell_sums(score)
        if self.exact:
            one_by_one = lambda crops: self.scorer(crops, network)["score"]  # noqa: E731
            window_scores = exact_window_scores(image[0], grid, one_by_one, self.batch_size)
        else:
            window_scores = grid.window_means(cells)
        return {
            "grid": grid,
            "window_scores": window_scores,
            "foreground": grid.window_means(grid.cell_sums(probability)),
            "cells": cells,
            "score": score,
            "probability": probability,
        }

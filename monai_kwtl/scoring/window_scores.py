"""Scores of an image's windows, densely by an integral image or exactly window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.readers.slides import ImageInMemory, Slide
from monai_kwtl.scoring.contrast import ContrastLevels, window_ranges
from monai_kwtl.scoring.features import WindowMeans, window_features
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.tiles import ScoredTile, can_be_tiled, scored_tiles
from monai_kwtl.windows.blocks import BlockReduction
from monai_kwtl.windows.grid import WindowGrid

__all__ = ["LARGEST_MAP", "WindowScoreInferer", "exact_window_scores", "prepare_image"]

LARGEST_MAP = 1 << 25  # pixels; of larger images the maps are summed up, but not kept


def prepare_image(item: Mapping[str, Any], device: torch.device, non_blocking: bool, **kwargs: Any) -> tuple:
    """Make a batch of one for a MONAI evaluator from one item of a data set, which has no label.

    Args:
        item: with ``image``, grey values of shape (1, H, W), or a slide, which passes as it is.
        device: where the batch shall live.
        non_blocking: whether the copy may overlap computing.
        kwargs: passed on to ``Tensor.to``.

    Returns:
        Images of shape (1, 1, H, W), and None.
    """
    image = item["image"]
    batch = image if isinstance(image, Slide) else image[None]
    return batch.to(device, non_blocking=non_blocking, **kwargs), None


class WindowScoreInferer(Inferer):
    """Score the windows of one image, for use as the inferer of a MONAI evaluator.

    Args:
        scorer: makes the score map.
        window: rows and columns of a window, in pixels.
        step: pixels between windows.
        exact: score each window by itself instead of averaging the map of the image; slow.
        batch_size: windows scored at once when exact.
        contrast: ``"image"``: auto-contrast stretches what the whole image holds; ``"window"``: what each window holds,
            as the authors' code does, interpolated between a few contrasts (see
            :class:`~monai_kwtl.scoring.ContrastLevels`). The map and its blocks are those of ``"image"`` either way.
        spacing: of those contrasts, in grey levels.
        features: whether windows are also described by the network's latent, which some strategies need.

    Raises:
        KWTLError: when window or step is not a positive whole number, or ``contrast`` is unknown or cannot be had
            with the measure and the views.
    """

    def __init__(
        self,
        scorer: ScoreMapInferer,
        window: int = 256,
        step: int = 30,
        exact: bool = False,
        batch_size: int = 16,
        contrast: str = "image",
        spacing: float = 16.0,
        features: bool = False,
    ) -> None:
        super().__init__()
        WindowGrid(1, 1, window, step)  # refuses bad sizes before any work
        self.scorer, self.window, self.step = scorer, window, step
        self.exact, self.contrast = as_bool(exact, "exact"), contrast
        self.batch_size, self.spacing, self.features = batch_size, spacing, features
        if contrast not in ("image", "window"):
            raise KWTLError(f"contrast must be image or window, got {contrast!r}.")
        self.by_window = contrast == "window" and not self.exact
        stretched = [view for view in scorer.views if hasattr(view, "within")]
        if self.by_window and not (scorer.measure in ("soft", "hard") and stretched and can_be_tiled(scorer)):
            raise KWTLError(
                "contrast window needs measure soft or hard, the intensity views and no weights; use --contrast image."
            )

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Score the windows of an image.

        Args:
            inputs: grey values in [0, 255], shape (1, 1, H, W); or a :class:`~monai_kwtl.readers.slides.Slide`.
            network: from network input to logits, in evaluation mode.
            args: not used.
            kwargs: not used.

        Returns:
            ``grid``; ``window_scores`` and ``foreground`` (mean probability of foreground), float64 (len(grid),);
            ``cells``, the sums of the score map over the grid's blocks, and ``foreground_scores``, the mean of score
            times probability, float64 (len(grid),), both None when exact; ``features``, None unless they are asked
            for; ``score`` and
            ``probability``, the maps, float32 arrays (H, W), None where they would be larger than ``LARGEST_MAP``.
        """
        tensor = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        image = ImageInMemory(tensor) if isinstance(tensor, torch.Tensor) else tensor
        grid = WindowGrid(image.height, image.width, window=self.window, step=self.step)
        described = features = None
        if self.features and can_be_tiled(self.scorer):  # what scores the image describes it, too
            described = WindowMeans(image.height, image.width, network, grid, self.scorer.inferer)
        elif self.features:
            features = window_features(image, network, grid, self.scorer.inferer)
        score, foreground, on_foreground = BlockReduction(grid), BlockReduction(grid), BlockReduction(grid)
        maps = None
        if image.height * image.width <= LARGEST_MAP:
            maps = [np.empty((image.height, image.width), dtype=np.float32) for _ in range(2)]
        levels = ContrastLevels(*window_ranges(image, grid), self.spacing) if self.by_window else None
        at_level = [BlockReduction(grid) for _ in levels.pairs] if levels is not None else []
        for tile in self._tiles(image, network, grid, levels, described):
            where = tile.rows, tile.columns
            score.add(*where, tile.score)
            foreground.add(*where, tile.probability)
            on_foreground.add(*where, tile.score * tile.probability)
            if maps is not None:
                maps[0][where], maps[1][where] = tile.score, tile.probability
            for reduction, values in zip(at_level, tile.at_level, strict=True):
                if values is not None:
                    reduction.add(*where, values)
        if self.exact:
            whole = image.whole()[0]
            one_by_one = lambda crops: self.scorer(crops, network)["score"]  # noqa: E731
            window_scores = exact_window_scores(whole, grid, one_by_one, self.batch_size)
        elif levels is not None:
            means = np.stack([grid.window_means(reduction.blocks) for reduction in at_level])
            window_scores = (levels.weights * means).sum(0)
        else:
            window_scores = grid.window_means(score.blocks)
        return {
            "grid": grid,
            "window_scores": window_scores,
            "foreground": grid.window_means(foreground.blocks),
            "foreground_scores": None if self.exact else grid.window_means(on_foreground.blocks),
            "features": features if described is None else described.rows(),
            "cells": None if self.exact else score.blocks,
            "score": None if maps is None else maps[0],
            "probability": None if maps is None else maps[1],
        }

    def _tiles(
        self,
        image: ImageInMemory | Slide,
        network: nn.Module,
        grid: WindowGrid,
        levels: ContrastLevels | None,
        described: WindowMeans | None,
    ) -> Iterator[ScoredTile]:
        if can_be_tiled(self.scorer):
            needed = None if levels is None else levels.needed(grid)
            pairs = [] if levels is None else levels.pairs
            describe = None if described is None else described.add
            yield from scored_tiles(self.scorer, image, network, pairs, needed, describe)
        else:
            maps = self.scorer(image.whole(), network)
            score, logits = maps["score"][0, 0], maps["logits"][0, 0]
            rows, columns = slice(0, image.height), slice(0, image.width)
            yield ScoredTile(rows, columns, score.cpu().numpy(), torch.sigmoid(logits).cpu().numpy(), [])


def exact_window_scores(
    image: torch.Tensor, grid: WindowGrid, score: Callable[[torch.Tensor], torch.Tensor], batch_size: int = 16
) -> np.ndarray:
    """Score every window by itself, as the authors' released code does: cut out, viewed and forwarded alone.

    Unlike a window mean of the image's map, each window is auto-contrasted by itself and ends in zero padding. It
    repeats the arithmetic of overlapping windows and is slower by about their number over a pixel.

    Args:
        image: grey values in [0, 255], shape (1, H, W).
        grid: the windows.
        score: from windows, shape (n, 1, h, w), to their maps, same shape.
        batch_size: windows scored at once.

    Returns:
        Mean of its own map of each window, float64, shape (len(grid),).
    """
    height, width = grid.size
    means = []
    places = list(zip(grid.y.tolist(), grid.x.tolist(), strict=True))
    for start in range(0, len(places), batch_size):
        crops = [image[:, y : y + height, x : x + width] for y, x in places[start : start + batch_size]]
        means.append(score(torch.stack(crops)).double().mean(dim=(1, 2, 3)).cpu().numpy())
    return np.concatenate(means)

"""The score map of an image as an inferer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.scoring.measures import MEASURES, consistency_map, entropy_map, mc_dropout_map
from monai_kwtl.transforms import affine_views, intensity_views
from monai_kwtl.transforms.functional import normalize

__all__ = ["ScoreMapInferer"]


class ScoreMapInferer(Inferer):
    """Turn grey images into score maps, for use as the inferer of a MONAI evaluator.

    Args:
        measure: ``soft``, ``hard``, ``kl`` or ``jsd`` consistency between image and views; or ``entropy`` or
            ``mc_dropout``, which need no views.
        views: ``intensity`` (auto-contrast, brightness, sharpness) or ``affine`` (rotation and translation, the paper's
            ablation), or any sequence of callables from (C, H, W) grey values to the same.
        psi: factor of brightness and sharpness.
        weighted: whether foreground counts with the weight of Eq. 4.
        passes: forward passes of MC-dropout.
        seed: of MC-dropout.
        inferer: how the network is run over an image.

    Raises:
        KWTLError: for an unknown measure or kind of view.
    """

    def __init__(
        self,
        measure: str = "soft",
        views: str | Sequence[Callable] = "intensity",
        psi: float = 1.3,
        weighted: bool = False,
        passes: int = 10,
        seed: int = 0,
        inferer: Inferer | None = None,
    ) -> None:
        super().__init__()
        if measure not in MEASURES:
            raise KWTLError(f"unknown measure {measure!r}; use one of {', '.join(MEASURES)}.")
        named = isinstance(views, str) and views in ("intensity", "affine")
        if not named and (isinstance(views, str) or not isinstance(views, Sequence) or not all(map(callable, views))):
            raise KWTLError(f"unknown views {views!r}; use intensity or affine.")
        if not isinstance(views, str):
            self.views: Sequence[Callable] = views
        else:
            self.views = intensity_views(psi) if views == "intensity" else affine_views()
        self.kind_of_views, self.psi = views if isinstance(views, str) else "other", psi
        self.measure, self.weighted, self.passes, self.seed = measure, as_bool(weighted, "weighted"), passes, seed
        self.inferer = TiledInferer() if inferer is None else inferer

    def view_logits(self, image: torch.Tensor, network: nn.Module, logits: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of every view, mapped back onto the image; where a view shows nothing, ``logits``."""
        results = []
        for view in self.views:
            seen = torch.as_tensor(view(image[:, 0]))[:, None]
            result = self.inferer(normalize(seen), network).float()
            if hasattr(view, "invert"):
                shown = view.valid_mask(image.shape[2:]).to(result.device)
                result = torch.where(shown, torch.as_tensor(view.invert(result[:, 0]))[:, None], logits)
            results.append(result)
        return results

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Score images.

        Args:
            inputs: grey values in [0, 255], any real type, shape (N, 1, H, W).
            network: from network input to logits, in evaluation mode.
            args: not used.
            kwargs: not used.

        Returns:
            ``score``, float32 (N, 1, H, W), >= 0, and ``logits``, float32 (N, 1, H, W), of the images themselves.
        """
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        logits = self.inferer(normalize(image), network).float()
        if self.measure == "entropy":
            score = entropy_map(logits)
        elif self.measure == "mc_dropout":
            predict = lambda x: self.inferer(x, network)  # noqa: E731
            score = mc_dropout_map(predict, network, normalize(image), passes=self.passes, seed=self.seed)
        else:
            views = self.view_logits(image, network, logits)
            score = consistency_map(logits, views, measure=self.measure, weighted=self.weighted)
        return {"score": score, "logits": logits}

"""Test-time augmentation: the mean prediction over the eight flips and quarter turns of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.errors import as_bool

__all__ = ["FlippedInferer", "flipped"]


def flipped(inferer: Inferer, flips: bool | str = True) -> Inferer:
    """Return a :class:`FlippedInferer` over ``inferer`` where ``flips`` is true, else ``inferer`` itself."""
    return FlippedInferer(inferer) if as_bool(flips, "flips") else inferer


class FlippedInferer(Inferer):
    """Predict an image in all eight positions of the square and average the probabilities.

    The result are the logits of the mean probability, ``log(mean p / (1 - mean p))``, turned back onto the image. They
    are computed as ``logsumexp log sigmoid(z_i) - logsumexp log sigmoid(-z_i)``, and so are finite wherever the logits
    z_i are, also where a probability rounds to 0 or 1. Up to rounding, turning the image turns the result, whatever
    the network. It takes eight times as long. (MONAI's ``TestTimeAugmentation`` draws random transforms instead, and
    takes one image in a dict.)

    Args:
        inferer: how the network is run on each, such as ``monai_kwtl.inferers.tiled.TiledInferer``.
    """

    def __init__(self, inferer: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the logits of ``inputs``.

        Args:
            inputs: network input, shape (N, C, H, W); H and W may differ.
            network: from (N, C, h, w) to logits (N, out, h, w), for either orientation.
            args: passed on to the network.
            kwargs: passed on to the network.

        Returns:
            Logits of the mean probability of each output by itself, shape (N, out, H, W).
        """
        foreground = background = None
        for position in range(8):
            turns, flip = divmod(position, 2)
            seen = torch.rot90(inputs.flip(-1) if flip else inputs, turns, (-2, -1)).contiguous()
            logits = torch.rot90(self.inferer(seen, network, *args, **kwargs), -turns, (-2, -1))
            logits = (logits.flip(-1) if flip else logits).float()
            if foreground is None or background is None:
                foreground, background = F.logsigmoid(logits), F.logsigmoid(-logits)
            else:
                foreground = torch.logaddexp(foreground, F.logsigmoid(logits))
                background = torch.logaddexp(background, F.logsigmoid(-logits))
        return (foreground - background).to(inputs.dtype)

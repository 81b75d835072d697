"""Per-pixel score maps: how much a network's prediction of an image wavers (consistency, entropy, MC-dropout)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from monai_kwtl.errors import KWTLError

__all__ = [
    "CONSISTENCY_MEASURES",
    "MEASURES",
    "bernoulli_entropy",
    "consistency_map",
    "entropy_map",
    "foreground_weight",
    "mc_dropout_map",
    "view_disagreements",
]

CONSISTENCY_MEASURES = ("soft", "hard", "kl", "jsd")
MEASURES = (*CONSISTENCY_MEASURES, "entropy", "mc_dropout")


def bernoulli_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy, in nats, of a Bernoulli variable of given logits: ``softplus(z) - z * sigmoid(z)``."""
    # the same for z and -z; below 0 both terms are positive, and nothing cancels for a confident prediction
    negative = -logits.abs()
    return F.softplus(negative) - negative * torch.sigmoid(negative)


def foreground_weight(target: torch.Tensor, limit: float = 50.0) -> torch.Tensor:
    """Return the positive weight of Eq. 4: background over foreground of each target, clamped to [1/limit, limit].

    Args:
        target: probabilities or a mask in [0, 1], shape (N, C, *spatial); a pixel from 0.5 on is foreground.
        limit: largest weight, and the inverse of the smallest.

    Returns:
        Weights, shape (N, 1, ..., 1); 1 where a map has no foreground.
    """
    foreground = (target >= 0.5).flatten(1).float().mean(1)
    ratio = ((1.0 - foreground) / foreground.clamp_min(1e-12)).clamp(1.0 / limit, limit)
    ratio = torch.where(foreground > 0, ratio, torch.ones_like(ratio))
    return ratio.reshape(-1, *[1] * (target.dim() - 1))


def view_disagreements(
    logits: torch.Tensor, view_logits: Sequence[torch.Tensor], target: str = "soft", weighted: bool = False
) -> list[torch.Tensor]:
    """Compute the binary cross-entropy between the prediction of an image and that of each view, from logits.

    ``BCE(t, z_A) = w t softplus(-z_A) + (1 - t) softplus(z_A)`` with ``t = sigmoid(z)`` (``soft``) or ``t = [z >= 0]``
    (``hard``, as the authors' released code does), and ``w`` from :func:`foreground_weight` or 1. ``kl`` is ``soft``
    less the entropy of t, the Kullback-Leibler divergence; it has no weight.

    Args:
        logits: of the image itself, shape (N, 1, *spatial).
        view_logits: of each view, same shape.
        target: ``"soft"``, ``"hard"`` or ``"kl"``.
        weighted: whether foreground counts with the weight of Eq. 4.

    Returns:
        One map per view, same shape, >= 0.
    """
    logits = logits.float()
    expected = (logits >= 0).float() if target == "hard" else torch.sigmoid(logits)
    weight = foreground_weight(expected) if weighted and target != "kl" else None
    maps = [
        F.binary_cross_entropy_with_logits(view.float(), expected, reduction="none", pos_weight=weight)
        for view in view_logits
    ]
    if target != "kl":
        return maps
    entropy = bernoulli_entropy(logits)
    return [(values - entropy).clamp_min_(0.0) for values in maps]  # of nearly equal numbers; below 0 by rounding only


def consistency_map(
    logits: torch.Tensor, view_logits: Sequence[torch.Tensor], measure: str = "soft", weighted: bool = False
) -> torch.Tensor:
    """Score each pixel by how much the views' predictions differ from the image's (Eq. 3 of the paper).

    Args:
        logits: of the image itself, shape (N, 1, *spatial).
        view_logits: of each view, same shape.
        measure: ``"soft"`` or ``"hard"``: sum over the views of :func:`view_disagreements`; ``"kl"``: ``soft`` less
            the entropy of the image's own prediction once a view, which leaves the Kullback-Leibler divergences
            ``KL(p || p_A)``; ``"jsd"``: generalised Jensen-Shannon divergence of image and views,
            ``H(mean p) - mean H(p)``. Both are 0 where all agree, however unsure the prediction.
        weighted: whether foreground counts with the weight of Eq. 4 (``soft`` and ``hard`` only).

    Returns:
        Map of the same shape, float32, >= 0.
    """
    if measure in ("soft", "hard", "kl"):
        disagreements = view_disagreements(logits, view_logits, target=measure, weighted=weighted)
        return torch.stack(disagreements).sum(0)
    if measure != "jsd":
        raise KWTLError(f"a consistency measure is {', '.join(CONSISTENCY_MEASURES)}; got {measure!r}.")
    stacked = torch.stack([logits, *view_logits]).float()
    mean = torch.sigmoid(stacked).mean(0)
    entropy_of_mean = torch.special.entr(mean) + torch.special.entr(1.0 - mean)
    return (entropy_of_mean - bernoulli_entropy(stacked).mean(0)).clamp_min_(0.0)


def entropy_map(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy, in nats, of the foreground probability at each pixel; same shape, in [0, ln 2]."""
    return bernoulli_entropy(logits.float())


@contextmanager
def _dropout_before_last_convolution(network: nn.Module, rate: float, generator: torch.Generator) -> Iterator[None]:
    convolutions = [m for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    if not convolutions:
        raise KWTLError("MC-dropout needs a network with a convolution.")

    def drop(_module: nn.Module, inputs: tuple) -> tuple:
        features = inputs[0]
        keep = torch.rand(features.shape, generator=generator, device=generator.device) >= rate
        return (features * keep.to(features) / (1.0 - rate), *inputs[1:])

    handle = convolutions[-1].register_forward_pre_hook(drop)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def mc_dropout_map(
    predict: Callable[[torch.Tensor], torch.Tensor],
    network: nn.Module,
    inputs: torch.Tensor,
    passes: int = 10,
    rate: float = 0.5,
    seed: int = 0,
) -> torch.Tensor:
    """Compute the entropy of the mean over passes with dropout before the last convolution (Gal and Ghahramani 2016).

    Args:
        predict: from network input to logits; it must call ``network``.
        network: whose last convolution, in module order, gets the dropout. It may be in evaluation mode and is
            left as it was.
        inputs: network input, shape (N, C, *spatial).
        passes: number of forward passes.
        rate: probability of dropping a value, in [0, 1).
        seed: of the dropped values: the same seed and input give the same map.

    Returns:
        Map, shape of the logits, in [0, ln 2].
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    mean: torch.Tensor | None = None
    with _dropout_before_last_convolution(network, rate, generator):
        for _ in range(passes):
            probability = torch.sigmoid(predict(inputs).float())
            mean = probability if mean is None else mean + probability
    if mean is None:
        raise KWTLError(f"MC-dropout needs at least one pass, got {passes}.")
    mean = mean / passes
    return torch.special.entr(mean) + torch.special.entr(1.0 - mean)

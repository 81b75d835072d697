"""Training losses over known pixels: cross-entropy, weighted by how rare foreground is, and Dice."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from monai_kwtl.errors import KWTLError, check_number
from monai_kwtl.utils.distributed import ranks

__all__ = [
    "DiceBCE",
    "ForegroundWeightedBCE",
    "LossOverProcesses",
    "loss_function",
    "loss_over_known",
    "positive_weight",
]

LOSSES = ("weighted", "dice_bce")

DEFAULT_RANGE = (1.0 / 50.0, 50.0)


def positive_weight(
    target: torch.Tensor, known: torch.Tensor | None = None, weight_range: Sequence[float] = DEFAULT_RANGE
) -> torch.Tensor:
    """Return the foreground weight: known background pixels over known foreground pixels of each crop, clamped.

    A crop without known foreground has weight 1; a crop that is all foreground has the ratio 0, and so the lower end
    of the range.

    Args:
        target: mask or probabilities in [0, 1], shape (N, C, *spatial); a pixel from 0.5 on is foreground.
        known: bool, same shape: pixels that count; None counts all.
        weight_range: smallest and largest weight.

    Returns:
        Weights, float32, shape (N, 1, ..., 1).
    """
    foreground = target >= 0.5
    background = ~foreground
    if known is not None:
        foreground, background = foreground & known, background & known
    axes = tuple(range(1, target.dim()))
    positives, negatives = foreground.sum(axes, keepdim=True), background.sum(axes, keepdim=True)
    ratio = (negatives / positives.clamp_min(1)).clamp(*weight_range)
    return torch.where(positives > 0, ratio, 1.0)


def _known_target(
    input: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target, float32 with 0 where it is unknown, and where it is known, bool."""
    for name, other in (("target", target), ("known", known)):
        if other is not None and other.shape != input.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, the logits {tuple(input.shape)}.")
    counted = torch.ones_like(target, dtype=torch.bool) if known is None else known.bool()
    return torch.where(counted, target.float(), 0.0), counted


def loss_over_known(
    loss_function: Callable[..., torch.Tensor],
    logits: torch.Tensor,
    target: torch.Tensor,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of a batch, of which some pixels may be unknown.

    A loss that takes a third argument gets ``known`` there: those of this module, and MONAI's ``MaskedDiceLoss`` and
    ``MaskedLoss``. Any other loss would learn from unknown pixels, so it only gets batches that have none.

    Args:
        loss_function: from logits, target and, if it can, ``known``.
        logits: shape (N, C, *spatial).
        target: mask or probabilities in [0, 1], same shape.
        known: bool, same shape: pixels that count; None counts all.

    Raises:
        KWTLError: when the loss does not take known pixels, and not all are known.
    """
    call = loss_function.forward if isinstance(loss_function, nn.Module) else loss_function
    try:
        inspect.signature(call).bind(logits, target, known)
    except (TypeError, ValueError):  # no room for it, or a signature that cannot be read
        if known is not None and not known.all():
            name = getattr(loss_function, "__name__", type(loss_function).__name__)
            raise KWTLError(
                f"the loss {name} takes no known pixels, and would learn from pixels that nobody annotated; "
                "use dice_bce, weighted, or a loss that takes a mask, such as MaskedDiceLoss of MONAI"
            ) from None
        return loss_function(logits, target)
    return loss_function(logits, target, known)


class ForegroundWeightedBCE(nn.Module):
    """Binary cross-entropy on logits with a weight on the foreground, that of Eq. 4 of the paper.

    The loss of a pixel is ``w t softplus(-z) + (1 - t) softplus(z)``, where ``w`` is :func:`positive_weight` of its
    crop (``per="crop"``) or one number for the whole data set. The result is the mean over the known pixels of the
    batch, each counting once whatever its crop: with every pixel known it is
    ``torch.nn.BCEWithLogitsLoss(pos_weight=w)``. It is computed in float32 whatever the type of the logits, and is
    finite on crops that are empty, full or unknown; a batch without a known pixel gives 0, with zero gradients.

    Args:
        weight_range: smallest and largest weight of a crop.
        per: ``"crop"``, or ``"dataset"``, which needs ``pos_weight``.
        pos_weight: the weight for ``per="dataset"``, such as ``CropDataset.positive_weight()``; used as it is.

    Raises:
        KWTLError: for an unknown ``per``, a range that is not positive and increasing, or a missing weight.
    """

    def __init__(
        self, weight_range: Sequence[float] = DEFAULT_RANGE, per: str = "crop", pos_weight: float | None = None
    ) -> None:
        super().__init__()
        if per not in ("crop", "dataset"):
            raise KWTLError(f"the loss is weighted per 'crop' or per 'dataset', not {per!r}.")
        if len(weight_range) != 2 or not 0 < weight_range[0] <= weight_range[1] < math.inf:
            raise KWTLError(f"weight_range must be two positive numbers, the smaller first, got {weight_range!r}.")
        if (per == "dataset") != (pos_weight is not None):
            raise KWTLError("give pos_weight with per='dataset', and only then.")
        if pos_weight is not None and not 0 < pos_weight < math.inf:
            raise KWTLError(f"pos_weight must be a positive number, got {pos_weight!r}.")
        self.weight_range = tuple(float(limit) for limit in weight_range)
        self.pos_weight = pos_weight

    def forward(self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss.

        Args:
            input: logits, shape (N, C, *spatial).
            target: mask or probabilities in [0, 1], same shape.
            known: bool, same shape: pixels that count; None counts all.

        Returns:
            A scalar, float32.

        Raises:
            ValueError: when the shapes differ.
        """
        total, count = self.total(input, target, known)
        return total / count.clamp_min(1)

    def total(
        self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the loss over the known pixels, and their number; arguments as of :meth:`forward`."""
        target, counted = _known_target(input, target, known)
        weight = self.pos_weight
        if weight is None:
            weight = positive_weight(target, counted, self.weight_range)
        else:
            weight = torch.tensor(weight, dtype=torch.float32, device=input.device)
        # float32 by hand: autocast leaves arithmetic on bfloat16 logits in bfloat16 where no operation asks for more
        loss = F.binary_cross_entropy_with_logits(input.float(), target, pos_weight=weight, reduction="none")
        return torch.where(counted, loss, 0.0).sum(), counted.sum()

    def sums(self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Return what parts of a batch add up: float64, (2,), as of :meth:`total`; arguments as of :meth:`forward`."""
        return torch.stack([part.double() for part in self.total(input, target, known)])

    @staticmethod
    def of(sums: torch.Tensor) -> torch.Tensor:
        """Return the loss of :meth:`sums`, float32."""
        return (sums[0] / sums[1].clamp_min(1)).float()


class DiceBCE(nn.Module):
    """Binary cross-entropy on logits plus soft Dice loss, both over the known pixels of the whole batch together.

    The result is ``mean BCE + 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e)`` with ``p = sigmoid(z)``. With every pixel
    known and one channel it is ``torch.nn.BCEWithLogitsLoss(pos_weight)`` plus ``monai.losses.DiceLoss(sigmoid=True,
    batch=True, smooth_nr=e, smooth_dr=e)``; neither gives the sums that processes with parts of a batch must add up.
    Dice is taken over the batch, not over each crop, because a crop without foreground has no Dice to speak of. A
    batch without a known pixel gives 0, with zero gradients.

    Args:
        pos_weight: of the foreground in the cross-entropy: None is 1; a number; or ``"crop"``, as
            :class:`ForegroundWeightedBCE` weights each crop.
        smooth: e, above 0.

    Raises:
        KWTLError: for another weight, or a ``smooth`` that is not above 0.
    """

    def __init__(self, pos_weight: float | str | None = None, smooth: float = 1e-5) -> None:
        super().__init__()
        per_crop = isinstance(pos_weight, str) and pos_weight == "crop"
        weight = 1.0 if pos_weight is None else pos_weight
        self.smooth = check_number("smooth", smooth, 0, above=True)
        self.bce = (
            ForegroundWeightedBCE()
            if per_crop
            else ForegroundWeightedBCE(per="dataset", pos_weight=check_number("pos_weight", weight, 0, above=True))
        )

    def forward(self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss; arguments and errors as of :class:`ForegroundWeightedBCE`."""
        return self.of(self.sums(input, target, known))

    def sums(self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Return what parts of a batch add up: BCE, known pixels, ``sum(p t)``, ``sum(p) + sum(t)``; float64, (4,)."""
        marked, counted = _known_target(input, target, known)
        probability = torch.where(counted, input.float().sigmoid(), 0.0)
        total, count = self.bce.total(input, target, known)
        both, either = (probability * marked).sum(), probability.sum() + marked.sum()
        return torch.stack([part.double() for part in (total, count, both, either)])

    def of(self, sums: torch.Tensor) -> torch.Tensor:
        """Return the loss of :meth:`sums`, float32."""
        total, count, both, either = sums
        dice = (2 * both + self.smooth) / (either + self.smooth)
        return (total / count.clamp_min(1) + 1 - dice).float()


class LossOverProcesses(nn.Module):
    """The loss of a batch of which each process has a part, for training with ``DistributedDataParallel``.

    That averages the gradients of the processes. The mean of their mean losses is not the mean over the batch where
    their parts have different numbers of known pixels, and even less is the mean of their Dice losses that of the
    batch. So the sums that the loss is made of are added up over the processes, and the gradient here is that with
    regard to the sums of this process, times the number of processes, whose average is the gradient of the batch. The
    value is the loss of the whole batch, the same in every process.

    Args:
        loss: gives the sums over the pixels of this process, and the loss of sums.
    """

    def __init__(self, loss: ForegroundWeightedBCE | DiceBCE) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, input: torch.Tensor, target: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss; arguments and errors as of :class:`ForegroundWeightedBCE`. Every process must call it."""
        processes = ranks().count
        if processes == 1:
            return self.loss(input, target, known)
        own = self.loss.sums(input, target, known)
        of_all = own.detach().clone()
        dist.all_reduce(of_all)
        return self.loss.of(of_all + (own - own.detach()) * processes)


def loss_function(
    foreground_weight: str | float, dataset: Any, loss: str = "weighted", fraction: float | None = None
) -> ForegroundWeightedBCE | DiceBCE:
    """Make the loss of a training stage.

    Args:
        foreground_weight: of the cross-entropy. ``crop``; ``dataset``; ``pool``, background over foreground as the pool
            is predicted to have them; ``none``, which is 1; or a number. ``auto`` is ``crop`` for ``weighted``, and
            ``none`` for ``dice_bce``, whose Dice part makes up for rare foreground by itself.
        dataset: a :class:`monai_kwtl.data.crops.CropDataset`, which knows the weight of the whole data set.
        loss: ``weighted``, cross-entropy alone, or ``dice_bce``, with a Dice loss.
        fraction: predicted fraction of foreground of the pool, in (0, 1), for ``pool``.

    Raises:
        KWTLError: for anything else.
    """
    if loss not in LOSSES:
        raise KWTLError(f"loss must be {' or '.join(LOSSES)}, got {loss!r}.")
    weight: Any = foreground_weight
    if weight == "auto":
        weight = "crop" if loss == "weighted" else "none"
    if weight == "crop":
        return ForegroundWeightedBCE() if loss == "weighted" else DiceBCE(pos_weight="crop")
    if weight == "dataset":
        weight = dataset.positive_weight()
    elif weight == "none":
        weight = 1.0
    elif weight == "pool" and fraction is not None:
        weight = (1 - fraction) / fraction
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise KWTLError(
            f"foreground_weight must be auto, crop, dataset, pool, none or a number above 0, got {foreground_weight!r}."
        )
    weight = float(weight)
    return ForegroundWeightedBCE(per="dataset", pos_weight=weight) if loss == "weighted" else DiceBCE(weight)

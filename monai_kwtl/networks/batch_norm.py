"""Re-estimation of batch-norm statistics on unlabelled images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_kwtl.networks.autocast import AutocastInferer
from monai_kwtl.networks.optimize import channels_last, quick_pooling

__all__ = [
    "batch_norm_layers",
    "batch_norm_statistics",
    "estimate_batch_norm_statistics",
    "set_batch_norm_statistics",
    "use_batch_statistics",
]


def batch_norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch-norm layers of ``network`` that keep running statistics, in module order."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


class _Measured(Exception):  # noqa: N818 - no error
    """All statistics of a batch are known: the last layer need not normalise it, nor those behind it run."""


def _measure_and_stop(layer: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.batch_norm_update_stats(inputs[0], layer.running_mean, layer.running_var, layer.momentum)
    raise _Measured


@torch.no_grad()
def batch_norm_statistics(
    network: nn.Module, images: Iterable[torch.Tensor], amp: bool | None = False
) -> list[np.ndarray]:
    """Measure the statistics of every batch-norm layer's input, batch by batch, each normalised by its own.

    Of the batches none knows of another, so they may be shared out to several processes.

    Args:
        network: any network; it is not changed, a copy with its channels last is run.
        images: batches of network input, shape (N, C, *spatial), on the device of the network.
        amp: whether to run under bfloat16 autocast; None: where the device multiplies bfloat16 natively. Means differ
            by up to 0.5 % of a standard deviation then, variances by 1 %, as they do in a forward pass in bfloat16.

    Returns:
        A row for each batch, float64: mean and (unbiased) variance of each channel, layer after layer.
    """
    copied = quick_pooling(channels_last(copy.deepcopy(network).eval()))
    layers = batch_norm_layers(copied)
    rows: list[np.ndarray] = []
    for layer in layers:
        layer.train()
        layer.momentum = 1.0  # what is kept is of the last batch alone
    called: list[_BatchNorm] = []
    watching = [layer.register_forward_pre_hook(lambda layer, _inputs: called.append(layer)) for layer in layers]
    for batch in images if layers else ():
        for layer in layers:
            layer.reset_running_stats()
        with suppress(_Measured):
            AutocastInferer(amp)(batch, copied)
        if watching:
            for watch in watching:
                watch.remove()
            watching = []
            if len(called) == len(set(called)) == len(layers):  # the rest of the network shows nothing new
                called[-1].register_forward_pre_hook(_measure_and_stop)
        rows.append(torch.cat([v for m in layers for v in (m.running_mean, m.running_var)]).double().cpu().numpy())
    return rows


@torch.no_grad()
def set_batch_norm_statistics(network: nn.Module, rows: Sequence[np.ndarray]) -> None:
    """Make the running statistics of every batch-norm layer the plain average of those of several batches.

    Args:
        network: changed in place, but for weights, training flags and momenta; without rows it stays as it is.
        rows: of every batch, as :func:`batch_norm_statistics` gives them, in an order of their own: the average is
            the same to the bit in whatever process a row was measured.
    """
    if not rows:
        return
    mean = torch.from_numpy(np.mean(np.stack(rows), axis=0))
    buffers = [buffer for m in batch_norm_layers(network) for buffer in (m.running_mean, m.running_var)]
    for buffer, values in zip(buffers, mean.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values)
    for layer in batch_norm_layers(network):
        layer.num_batches_tracked.fill_(len(rows))


def estimate_batch_norm_statistics(network: nn.Module, images: Iterable[torch.Tensor], amp: bool | None = False) -> int:
    """Replace the running statistics of every batch-norm layer by their plain average over ``images``.

    Each layer's running mean and variance become the unweighted mean, over the batches given, of the batch's own
    mean and (unbiased) variance. Nothing else changes: neither weights nor each module's training flag nor momentum.
    Without a batch-norm layer or without images the network stays as it is.

    Networks trained on a mixture of sources carry statistics of the mixture, which fit no single source; these two
    numbers per channel are enough to lose a segmentation.

    Args:
        network: any network; it is changed in place.
        images: batches of network input, shape (N, C, *spatial), on the device of the network.
        amp: bfloat16 autocast, as in :func:`batch_norm_statistics`.

    Returns:
        The number of batches seen.
    """
    rows = batch_norm_statistics(network, images, amp)
    set_batch_norm_statistics(network, rows)
    return len(rows)


def use_batch_statistics(network: nn.Module) -> nn.Module:
    """Return a copy for inference whose batch-norm layers use the statistics of each batch they see (transductive)."""
    changed = copy.deepcopy(network).eval()
    for layer in batch_norm_layers(changed):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return changed

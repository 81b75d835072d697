"""Re-estimation of batch-norm statistics on unlabelled images."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["batch_norm_layers", "estimate_batch_norm_statistics", "fold_batch_norm", "use_batch_statistics"]


def batch_norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch-norm layers of ``network`` that keep running statistics, in module order."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def estimate_batch_norm_statistics(network: nn.Module, images: Iterable[torch.Tensor]) -> int:
    """Replace the running statistics of every batch-norm layer by their plain average over ``images``.

    Each layer's running mean and variance become the unweighted mean, over the batches given, of the batch's own
    mean and (unbiased) variance. Nothing else changes: neither weights nor each module's training flag nor momentum.
    Without a batch-norm layer or without images the network stays as it is.

    Networks trained on a mixture of sources carry statistics of the mixture, which fit no single source; these two
    numbers per channel are enough to lose a segmentation.

    Args:
        network: any network; it is changed in place.
        images: batches of network input, shape (N, C, *spatial), on the device of the network.

    Returns:
        The number of batches seen.
    """
    layers = batch_norm_layers(network)
    if not layers:
        return 0
    training = {module: module.training for module in network.modules()}
    saved = [(m.momentum, m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone()) for m in layers]
    batches = 0
    complete = False
    try:
        network.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # torch's name for the cumulative average
        for batch in images:
            network(batch)
            batches += 1
        complete = batches > 0
    finally:
        for layer, (momentum, mean, var, tracked) in zip(layers, saved, strict=True):
            layer.momentum = momentum
            if not complete:
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(var)
                layer.num_batches_tracked.copy_(tracked)
        for module, flag in training.items():
            module.training = flag
    return batches


def use_batch_statistics(network: nn.Module) -> nn.Module:
    """Return a copy for inference whose batch-norm layers use the statistics of each batch they see (transductive)."""
    changed = copy.deepcopy(network).eval()
    for layer in batch_norm_layers(changed):
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return changed


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return a copy for inference whose batch-norm layers are folded into the convolutions before them.

    Only layers that directly follow a (transposed) convolution inside an ``nn.Sequential`` are folded; others stay.
    The logits agree to rounding; a forward pass of FCRN takes about a quarter less time.

    Args:
        network: is not changed.

    Returns:
        A copy in evaluation mode that must not be trained.
    """
    folded = copy.deepcopy(network).eval()
    for sequence in [m for m in folded.modules() if isinstance(m, nn.Sequential)]:
        layers = list(sequence)
        for index, (layer, norm) in enumerate(zip(layers, layers[1:], strict=False)):
            convolution = isinstance(layer, nn.modules.conv._ConvNd)
            if convolution and isinstance(norm, _BatchNorm) and norm.track_running_stats:
                transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
                sequence[index] = fuse_conv_bn_eval(layer, norm, transpose=transposed)
                sequence[index + 1] = nn.Identity()
    return folded

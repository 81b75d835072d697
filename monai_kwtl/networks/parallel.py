"""Networks that several processes train together, each on a part of every batch."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["data_parallel", "unsynchronized", "unwrap"]


def data_parallel(network: nn.Module) -> nn.Module:
    """Wrap a network for training in several processes, each of which sees a part of every batch.

    On CUDA, batch-norm layers take their statistics from the whole batch. PyTorch has no such layers for the CPU: there
    each process normalises its own part, and the running statistics are those of the first process.

    Args:
        network: on the device of this process.

    Returns:
        A ``DistributedDataParallel``: gradients are averaged over the processes, so use it with
        ``monai_kwtl.losses.LossOverProcesses``.
    """
    device = next(network.parameters()).device
    if device.type != "cuda":
        return nn.parallel.DistributedDataParallel(network)
    return nn.parallel.DistributedDataParallel(
        nn.SyncBatchNorm.convert_sync_batchnorm(network), device_ids=[device.index]
    )


def unwrap(network: Any) -> Any:
    """Return the network inside a ``DistributedDataParallel``; anything else as it is."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def unsynchronized(network: nn.Module) -> nn.Module:
    """Make a network of :func:`data_parallel` usable by one process without the others, after the training.

    Args:
        network: its batch-norm layers are changed in place where they take statistics from all processes.

    Returns:
        The network inside; its weights and statistics are the same.
    """
    network = unwrap(network)
    for layer in network.modules():
        if isinstance(layer, nn.SyncBatchNorm):
            layer.__class__ = _LocalBatchNorm
    return network


class _LocalBatchNorm(nn.SyncBatchNorm):
    """Statistics of what this process sees; the forward pass of the base class waits for the other processes."""

    forward = nn.modules.batchnorm._BatchNorm.forward

"""Max pooling as fast as the memory allows, for networks that are only run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["HalvingMaxPool", "quick_pooling"]


class HalvingMaxPool(nn.Module):
    """2x2 max pooling with stride 2; PyTorch's own also finds out where each maximum was, at over twice the cost.

    Numbers in bfloat16 that are not negative are in the order of their bits, read as whole numbers, which the processor
    compares without widening them first.

    Args:
        rectified: whether a ReLU comes before or at once behind: then it does not matter which of several negative
            values is taken.
    """

    def __init__(self, rectified: bool = False) -> None:
        super().__init__()
        self.rectified = rectified

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the maxima, from (N, C, H, W) to (N, C, H // 2, W // 2)."""
        if x.shape[2] % 2 or x.shape[3] % 2:
            return F.max_pool2d(x, 2)
        if self.rectified and x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled():
            bits = x.view(torch.int16)
            largest = torch.maximum(bits[:, :, ::2, ::2], bits[:, :, ::2, 1::2])
            for column in (0, 1):
                torch.maximum(largest, bits[:, :, 1::2, column::2], out=largest)
            return largest.view(torch.bfloat16)
        rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])


def _is_halving(layer: nn.Module) -> bool:
    plain = isinstance(layer, nn.MaxPool2d) and not (layer.return_indices or layer.ceil_mode)
    pairs = [(value, value) if isinstance(value, int) else tuple(value) for value in _geometry(layer)] if plain else []
    return pairs == [(2, 2), (2, 2), (0, 0), (1, 1)]


def _geometry(layer: nn.MaxPool2d) -> tuple:
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation


def quick_pooling(network: nn.Module) -> nn.Module:
    """Replace 2x2 max pooling in place, and move it before the ReLU in front of it, which has a quarter to do then.

    Both give the same values to the bit: the maximum of rectified values is the rectified maximum.

    Args:
        network: a copy for running; its layers in ``nn.Sequential`` change places; those with parameters stay.

    Returns:
        The same network.
    """
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        layers = list(sequence)
        for index, layer in enumerate(layers):
            if _is_halving(layer):
                rectified = index > 0 and isinstance(layers[index - 1], nn.ReLU)
                sequence[index] = HalvingMaxPool(rectified)
                if rectified:
                    sequence[index - 1], sequence[index] = sequence[index], layers[index - 1]
    return network

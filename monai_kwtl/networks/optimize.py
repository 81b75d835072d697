"""Convolutions that rectify what they write, for networks that are only run, on CPUs."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from monai_kwtl.pooling import HalvingMaxPool

__all__ = ["RectifiedConvolution", "fuse_rectifiers"]


class RectifiedConvolution(nn.Module):
    """A (transposed) convolution and the ReLU behind it in one call of oneDNN, which saves a pass over the memory.

    The values are those of both to the bit: rounding to bfloat16 and rectifying may change places. Weights are kept in
    the type that is computed in, where autocast would convert them at each call. Where oneDNN does not offer it, on
    other devices and where gradients are wanted, the layer is called, then ReLU.

    Args:
        layer: the convolution, of two dimensions; its weights must not change any more.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.layer = layer
        self._kept: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rectified convolution of ``x``, shape (N, C, H, W)."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.device.type != "cpu" or torch.is_grad_enabled() or not _offered(dtype):
            return F.relu(self.layer(x))
        return _fused(self.layer, x.to(dtype), *self._weights(dtype))

    def _weights(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        if dtype not in self._kept:
            weight, bias = self.layer.weight.detach(), self.layer.bias
            weight = weight.to(dtype, memory_format=torch.channels_last)
            self._kept[dtype] = weight, None if bias is None else bias.detach().to(dtype)
        return self._kept[dtype]


def _fused(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if isinstance(layer, nn.ConvTranspose2d):
        where = (layer.padding, layer.output_padding, layer.stride, layer.dilation, layer.groups)
        return torch.ops.mkldnn._convolution_transpose_pointwise(x, weight, bias, *where, "relu", [], "")
    where = (layer.padding, layer.stride, layer.dilation, layer.groups)
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *where, "relu", [], "")


@lru_cache(maxsize=8)
def _offered(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have both calls, found out by trying: they are not public."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).to(dtype)
    try:
        for layer in (nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ConvTranspose2d(1, 2, 2, stride=2, bias=False)):
            layer.to(dtype).requires_grad_(False)
            if not torch.allclose(_fused(layer, x, layer.weight, None), F.relu(layer(x)), rtol=0.02, atol=0.02):
                return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def _simple(layer: nn.Module) -> bool:
    plain = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.padding_mode == "zeros"
    return plain and not isinstance(layer.padding, str)


def fuse_rectifiers(network: nn.Module) -> nn.Module:
    """Make one layer of each convolution and the ReLU that follows it, at once or behind 2x2 max pooling.

    Args:
        network: a copy for inference, its batch norm folded; layers in ``nn.Sequential`` are replaced in place.

    Returns:
        The same network.
    """
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        layers = list(sequence)
        for index, layer in enumerate(layers):
            if not isinstance(layer, nn.ReLU):
                continue
            before = index - 1
            while before >= 0 and isinstance(layers[before], nn.Identity | HalvingMaxPool):
                before -= 1
            if before >= 0 and _simple(layers[before]):
                sequence[before], sequence[index] = RectifiedConvolution(layers[before]), nn.Identity()
    return network

"""The fully convolutional regression network (FCRN) that KWTL segments with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_norm_layer
from torch import nn

__all__ = ["FCRN", "crop_to_size", "pad_to_multiple"]


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad every spatial axis on both sides to a multiple of a number, by reflection.

    Where an axis is too short to be reflected, all axes are padded with their edge instead.

    Args:
        x: shape (N, C, *spatial).
        multiple: what each spatial size shall be a multiple of.

    Returns:
        The padded tensor, or ``x`` itself where nothing is missing.
    """
    pads: list[int] = []
    short = False
    for axis in range(x.dim() - 1, 1, -1):  # last axis first, as torch.nn.functional.pad wants it
        size = x.size(axis)
        missing = (multiple - size % multiple) % multiple
        pads.append(missing // 2)
        pads.append(missing - missing // 2)
        short = short or missing - missing // 2 >= size
    if sum(pads) == 0:
        return x
    return F.pad(x, pads, mode="replicate" if short else "reflect")


def crop_to_size(padded: torch.Tensor, like: torch.Tensor, multiple: int) -> torch.Tensor:
    """Undo :func:`pad_to_multiple`.

    Args:
        padded: shape (N, any channels, *padded spatial).
        like: the tensor before padding, whose spatial shape is wanted.
        multiple: as given to :func:`pad_to_multiple`.

    Returns:
        A view of shape (N, any channels, *spatial).
    """
    for axis in range(2, like.dim()):
        size = like.size(axis)
        padded = padded.narrow(axis, ((multiple - size % multiple) % multiple) // 2, size)
    return padded


class FCRN(nn.Module):
    """Fully convolutional network of Xie et al. (FCRN-A), with a segmentation head that returns logits.

    Three blocks of 3x3 convolution, normalisation and ReLU, each followed by 2x2 max pooling, lead to a latent of
    ``features[-1]`` channels at 1/8 of the resolution (for four features); transposed 2x2 convolutions with stride 2
    bring it back, and a 3x3 convolution makes the logits. Convolutions followed by a normalisation have no bias.

    Images of any size are padded by reflection to a multiple of :attr:`stride` and the logits cropped back; a side
    too short to be reflected is padded with its edge.

    Args:
        spatial_dims: number of spatial dimensions, 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the logits.
        features: channels of each block; the last is the latent. The stride is ``2 ** (len(features) - 1)``.
        norm: feature normalisation, as MONAI names it: a type such as ``"batch"``, or a type with its arguments.
        dropout: probability with which a channel value is dropped before the output convolution.

    Reference:
        W. Xie, J. A. Noble, A. Zisserman, "Microscopy cell counting and detection with fully convolutional
        regression networks", Computer Methods in Biomechanics and Biomedical Engineering 6(3), 2018.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        features: Sequence[int] = (32, 64, 128, 512),
        norm: str | tuple = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(features) < 2:
            raise ValueError(f"features needs at least two entries, got {tuple(features)}.")
        self.stride = 2 ** (len(features) - 1)
        self.definition = {  # what is noted beside its weights
            "_target_": "monai_kwtl.networks.fcrn.FCRN",
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "features": list(features),
            "norm": norm,
            "dropout": dropout,
        }
        conv, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        pool = Pool[Pool.MAX, spatial_dims]

        def block(layer: nn.Module, channels: int) -> list[nn.Module]:
            return [layer, get_norm_layer(norm, spatial_dims, channels), nn.ReLU(inplace=True)]

        down: list[nn.Module] = []
        channels = in_channels
        for index, width in enumerate(features):
            if index:
                down.append(pool(kernel_size=2))
            down += block(conv(channels, width, kernel_size=3, padding=1, bias=False), width)
            channels = width
        up: list[nn.Module] = []
        for width in reversed(features[:-1]):
            up += block(transposed(channels, width, kernel_size=2, stride=2, bias=False), width)
            channels = width
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up)
        self.dropout = nn.Dropout(dropout)
        self.head = conv(channels, out_channels, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, (conv, transposed)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latent of ``x``.

        Args:
            x: images, shape (N, in_channels, *spatial), normalised to [-1, 1].

        Returns:
            The latent, shape (N, features[-1], *ceil(spatial / stride)).
        """
        return self.encoder(pad_to_multiple(x, self.stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``x``.

        Args:
            x: images, shape (N, in_channels, *spatial), normalised to [-1, 1].

        Returns:
            Logits, shape (N, out_channels, *spatial).
        """
        logits = self.head(self.dropout(self.decoder(self.features(x))))
        return crop_to_size(logits, x, self.stride)

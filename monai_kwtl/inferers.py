"""Full-resolution prediction of images of any size, in tiles that fit into memory and leave no seam."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.errors import KWTLError, check_whole_number
from monai_kwtl.networks import crop_to_size, pad_to_multiple

__all__ = ["AutocastInferer", "TiledInferer", "native_bfloat16"]


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 natively, and so faster than float32.

    That is CUDA from compute capability 8, and CPUs with AVX512-BF16 or AMX; elsewhere bfloat16 is emulated.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class TiledInferer(Inferer):
    """Predict an image whole where it fits, else in tiles whose result equals that of the whole image.

    The image is padded by reflection to a multiple of the network's stride. Tiles start at multiples of the stride
    and are forwarded with a margin (``halo``) of real image around them, which is cut off afterwards: with a margin
    no smaller than the reach of the network, no pixel of the result knows that there were tiles. MONAI's sliding
    window blends overlapping tiles instead, and so depends on where they lie.

    Args:
        tile: largest side, in pixels, of what the network sees at once without its margin; rounded down to a multiple
            of the stride. Memory grows with its square: about 0.6 GiB per batch item for FCRN at 1536.
        halo: margin in pixels, rounded up to a multiple of the stride. FCRN's prediction of a pixel reaches 23 px.
        stride: what image sides must be a multiple of; None asks the network (``network.stride``), else 16.
        amp: whether the network runs under bfloat16 autocast; ``None``: where the device multiplies bfloat16 natively
            (see :func:`native_bfloat16`). The logits are float32 again.

    Raises:
        KWTLError: when the tile is smaller than the stride, or a number is not whole.
    """

    def __init__(self, tile: int = 1536, halo: int = 32, stride: int | None = None, amp: bool | None = False) -> None:
        super().__init__()
        check_whole_number("tile", tile, stride or 1)
        check_whole_number("halo", halo, 0)
        self.tile, self.halo, self.stride, self.amp = tile, halo, stride, amp

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the logits of ``inputs``.

        Args:
            inputs: network input, shape (N, C, H, W).
            network: from (N, C, h, w) to (N, out, h, w).
            args: passed on to the network.
            kwargs: passed on to the network.

        Returns:
            Logits, shape (N, out, H, W).
        """
        stride = self.stride or int(getattr(network, "stride", 16))
        padded = pad_to_multiple(inputs, stride)
        tile = max(self.tile // stride, 1) * stride
        amp = native_bfloat16(inputs.device) if self.amp is None else self.amp
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=amp):
            if max(padded.shape[2:]) <= tile:
                logits = network(padded, *args, **kwargs)
            else:
                logits = self._tiled(padded, network, tile, -(-self.halo // stride) * stride, *args, **kwargs)
        return crop_to_size(logits, inputs, stride).to(inputs.dtype)

    def region(self, inputs: torch.Tensor, network: nn.Module, rows: slice, columns: slice) -> torch.Tensor:
        """Return the logits of a part of ``inputs``: those of the whole, for the price of the part and a margin.

        Args:
            inputs: network input, shape (N, C, H, W).
            network: from (N, C, h, w) to (N, out, h, w).
            rows: of the part, with a start and a stop in [0, H].
            columns: of the part, in [0, W].

        Returns:
            Logits, shape (N, out, rows, columns).
        """
        stride = self.stride or int(getattr(network, "stride", 16))
        padded = pad_to_multiple(inputs, stride)
        inner, outer = [], []
        for part, size in zip((rows, columns), inputs.shape[2:], strict=True):
            before = -size % stride // 2  # as pad_to_multiple has it
            start, stop = part.start + before, part.stop + before
            first = max(0, start - self.halo) // stride * stride
            outer.append(slice(first, -(-(stop + self.halo) // stride) * stride))
            inner.append(slice(start - first, stop - first))
        return self(padded[:, :, outer[0], outer[1]], network)[:, :, inner[0], inner[1]]

    @staticmethod
    def _tiled(
        padded: torch.Tensor, network: nn.Module, tile: int, halo: int, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        height, width = padded.shape[2:]
        result: torch.Tensor | None = None
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                bottom, right = min(top + tile, height), min(left + tile, width)
                y, x = max(top - halo, 0), max(left - halo, 0)
                part = padded[:, :, y : min(bottom + halo, height), x : min(right + halo, width)]
                logits = network(part, *args, **kwargs)
                if result is None:
                    result = logits.new_empty((logits.shape[0], logits.shape[1], height, width))
                result[:, :, top:bottom, left:right] = logits[:, :, top - y : bottom - y, left - x : right - x]
        if result is None:  # cannot be: an image has at least one tile
            raise KWTLError("the image is empty.")
        return result


class AutocastInferer(Inferer):
    """Run a network under bfloat16 autocast where that is faster; for training, on any device.

    MONAI's engines know autocast on CUDA only.

    Args:
        amp: whether to use autocast; None: where the device multiplies bfloat16 natively.
    """

    def __init__(self, amp: bool | None = None) -> None:
        super().__init__()
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the network's output, in the type of ``inputs``."""
        amp = native_bfloat16(inputs.device) if self.amp is None else self.amp
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=amp):
            return network(inputs, *args, **kwargs).to(inputs.dtype)

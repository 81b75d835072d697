"""Full-resolution prediction of images of any size, in tiles that fit into memory and leave no seam."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from torch import nn

from monai_kwtl.errors import KWTLError, check_whole_number
from monai_kwtl.inferers.memory import _usual_tile
from monai_kwtl.inferers.tiling import exact_halo
from monai_kwtl.networks.autocast import autocast_choice, native_bfloat16
from monai_kwtl.networks.fcrn import crop_to_size, pad_to_multiple
from monai_kwtl.networks.processors import instruction_set

__all__ = ["LARGEST_WHOLE", "Tile", "TiledInferer", "stride_of"]

LARGEST_WHOLE = 1 << 23  # pixels of an image that a network which cannot be tiled is run on


def stride_of(network: nn.Module, stride: int | None = None) -> int:
    """Return the multiple that image sides must be: ``stride`` if given, else the network's own, else 16."""
    return stride or int(getattr(network, "stride", 16))


class Tile(NamedTuple):
    """A part of an image, each a pair of row and column slices: of the image kept and seen, of what is seen kept."""

    kept: tuple[slice, slice]
    seen: tuple[slice, slice]
    within: tuple[slice, slice]


class TiledInferer(Inferer):
    """Predict an image whole where it fits, else in tiles whose result equals that of the whole image.

    The image is padded by reflection to a multiple of the network's stride. Tiles start at multiples of the stride
    and are forwarded with a margin (``halo``) of real image around them, which is cut off afterwards: with a margin
    no smaller than the reach of the network, no pixel of the result knows that there were tiles. MONAI's sliding
    window blends overlapping tiles instead, and so depends on where they lie.

    A network whose prediction of a part is not that of the whole, whatever the margin, is run on whole images, up to
    ``LARGEST_WHOLE`` pixels.

    Args:
        tile: largest side, in pixels, of what the network sees at once without its margin; rounded down to a multiple
            of the stride. None: 384 on CPUs, whose caches hold the layers of such a tile, but 1024 where freed memory
            is kept (:mod:`monai_kwtl.inferers.memory`), and 1536 elsewhere. Memory grows with its square: about 0.6 GiB
            per batch item for FCRN at 1536.
        halo: margin in pixels, rounded up to a multiple of the stride; None: found by
            :func:`monai_kwtl.inferers.tiling.exact_halo`, 24 for FCRN.
        stride: what image sides must be a multiple of; None asks the network (``network.stride``), else 16.
        amp: whether the network runs under bfloat16 autocast; None or ``"auto"``: where the device multiplies bfloat16
            natively (see :func:`native_bfloat16`). The logits are float32 again.

    Raises:
        KWTLError: when the tile is smaller than the stride, or a number is not whole.
    """

    def __init__(
        self,
        tile: int | None = None,
        halo: int | None = None,
        stride: int | None = None,
        amp: bool | str | None = False,
    ) -> None:
        super().__init__()
        if tile is not None:
            check_whole_number("tile", tile, stride or 1)
        if halo is not None:
            check_whole_number("halo", halo, 0)
        self.tile, self.halo, self.stride, self.amp = tile, halo, stride, autocast_choice(amp)

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
        stride = stride_of(network, self.stride)
        padded = pad_to_multiple(inputs, stride)
        result: torch.Tensor | None = None
        for tile in self.tiles(*padded.shape[2:], network, padded.device):
            logits = self.forward(padded[(..., *tile.seen)], network, *args, **kwargs)[(..., *tile.within)]
            if logits.shape[2:] == padded.shape[2:]:
                result = logits
                break
            if result is None:
                result = logits.new_empty((*logits.shape[:2], *padded.shape[2:]))
            result[(..., *tile.kept)] = logits
        if result is None:  # cannot be: an image has at least one tile
            raise KWTLError("the image is empty.")
        return crop_to_size(result, inputs, stride).to(inputs.dtype)

    def forward(self, padded: torch.Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the network once, in the arithmetic of this inferer; the logits may be bfloat16."""
        with torch.autocast(padded.device.type, dtype=torch.bfloat16, enabled=self.uses_amp(padded.device)):
            return network(padded, *args, **kwargs)

    def uses_amp(self, device: torch.device | str) -> bool:
        """Return True if the network runs under bfloat16 autocast on a device."""
        return native_bfloat16(device) if self.amp is None else self.amp

    def arithmetic(self, device: torch.device | str) -> dict[str, str | int]:
        """Return what the last bits of a result depend on besides the network and the image, for notes and for keys.

        Args:
            device: that computes.

        Returns:
            ``dtype``, ``float32`` or ``bfloat16``; ``instruction_set``, as
            :func:`monai_kwtl.networks.processors.instruction_set` has it; ``tile``, in pixels.
        """
        return {
            "dtype": "bfloat16" if self.uses_amp(device) else "float32",
            "instruction_set": instruction_set(device),
            "tile": self._tile(device),
        }

    def _tile(self, device: torch.device | str) -> int:
        return _usual_tile(device) if self.tile is None else self.tile

    def halo_of(self, network: nn.Module, device: torch.device | str) -> int | None:
        """Return the margin around a tile, a multiple of the stride; None where no margin makes tiles exact."""
        stride = stride_of(network, self.stride)
        halo = exact_halo(network, stride, device) if self.halo is None else self.halo
        return None if halo is None else -(-halo // stride) * stride

    def tiles(self, height: int, width: int, network: nn.Module, device: torch.device | str = "cpu") -> Iterator[Tile]:
        """Cut a padded image into as few tiles as possible, all of one size but for the last of a row and a column.

        Of even size, because a narrow rest would be mostly margin, and for narrow images oneDNN adds up in another
        order.

        Args:
            height: rows, a multiple of the network's stride.
            width: columns, likewise.
            network: that will see them.
            device: that computes.

        Yields:
            The tiles, row by row.

        Raises:
            KWTLError: where the network cannot be run in tiles, and the image is too large for it as a whole.
        """
        stride = stride_of(network, self.stride)
        largest = max(self._tile(device) // stride, 1) * stride
        halo: int | None = 0
        if height > largest or width > largest:
            halo = self.halo_of(network, device)
        if halo is None:
            if height * width > LARGEST_WHOLE:
                raise KWTLError(
                    f"{type(network).__name__} predicts a part of an image otherwise than the whole, as networks with "
                    f"instance or group normalisation do, and {height} x {width} pixels are too many for the whole; "
                    "use smaller images, or a network with batch normalisation."
                )
            largest, halo = max(height, width), 0
        sizes = [-(-length // -(-length // largest) // stride) * stride for length in (height, width)]
        for top in range(0, height, sizes[0]):
            for left in range(0, width, sizes[1]):
                kept, seen, within = [], [], []
                for start, size, length in ((top, sizes[0], height), (left, sizes[1], width)):
                    stop = min(start + size, length)
                    first = max(start - halo, 0)
                    kept.append(slice(start, stop))
                    seen.append(slice(first, min(stop + halo, length)))
                    within.append(slice(start - first, stop - first))
                yield Tile(tuple(kept), tuple(seen), tuple(within))

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
        stride, halo = stride_of(network, self.stride), self.halo_of(network, inputs.device)
        if halo is None:
            return self(inputs, network)[:, :, rows, columns]
        padded = pad_to_multiple(inputs, stride)
        inner, outer = [], []
        for part, size in zip((rows, columns), inputs.shape[2:], strict=True):
            before = -size % stride // 2  # as pad_to_multiple has it
            start, stop = part.start + before, part.stop + before
            first = max(0, start - halo) // stride * stride
            outer.append(slice(first, -(-(stop + halo) // stride) * stride))
            inner.append(slice(start - first, stop - first))
        return self(padded[:, :, outer[0], outer[1]], network)[:, :, inner[0], inner[1]]

"""Test of a network's output that says whether it may run in tiles: a part of an image against the whole."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["HALOS", "exact_halo"]

HALOS = (24, 48, 96, 192)  # pixels; FCRN reaches 23
# of how far the logits spread, and of the largest: float32 adds up in another order where the image is larger
_TOLERANCE, _ROUNDING = 1e-4, 1e-6
_CONTEXT = 32  # pixels of image around the margin, of another brightness

_found: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def exact_halo(network: Callable[[torch.Tensor], torch.Tensor], stride: int, device: torch.device | str) -> int | None:
    """Return the margin with which a network predicts a tile as it does the whole image.

    The middle of a random image is predicted twice: as part of the image, and as a tile with its margin alone. What
    lies beyond the margin is brighter, so that a normalisation that looks at all of what the network sees (instance,
    group or layer norm) gives another prediction, as a margin does that is narrower than the network reaches.

    Args:
        network: in evaluation mode, from network input (1, 1, H, W) to logits; is left as it is.
        stride: what image sides must be a multiple of.
        device: where it lives.

    Returns:
        The first of :data:`HALOS` that suffices, None where none does. It is looked for once for each network.
    """
    try:
        if network in _found:
            return _found[network]
    except TypeError:  # a callable that cannot be kept
        return _search(network, stride, device)
    _found[network] = found = _search(network, stride, device)
    return found


def _search(network: Callable, stride: int, device: torch.device | str) -> int | None:
    for halo in HALOS:
        try:
            if _is_exact(network, stride, device, halo):
                return halo
        except (RuntimeError, TypeError, ValueError):  # sizes that it does not take
            return None
    return None


def _input_of(network: Callable) -> tuple[int, torch.dtype]:
    """Return the channels and type of a network's input, by its first convolution."""
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    weight = next((each for each in parameters if each.dim() == 4), None)
    return (1, torch.float32) if weight is None else (weight.shape[1], weight.dtype)


def _is_exact(network: Callable, stride: int, device: torch.device | str, halo: int) -> bool:
    channels, dtype = _input_of(network)
    inner, margin, context = (-(-pixels // stride) * stride for pixels in (32, halo, _CONTEXT))
    side = inner + 2 * (margin + context)
    image = torch.rand((1, channels, side, side), generator=torch.Generator().manual_seed(0)) - 0.5
    tile = image[..., context : side - context, context : side - context].clone()
    image += 0.5
    image[..., context : side - context, context : side - context] = tile
    # TF32 rounds by more than what is looked for
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        whole, part = (network(each.to(device, dtype)).float() for each in (image, tile))
    middle = slice(margin, margin + inner)
    part, whole = part[..., middle, middle], whole[..., context:, context:][..., middle, middle]
    allowed = _TOLERANCE * (whole - whole.mean()).abs().max() + _ROUNDING * whole.abs().max()
    return bool((part - whole).abs().max() <= allowed)

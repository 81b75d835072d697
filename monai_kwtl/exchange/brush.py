"""Label Studio's run lengths of brush masks: a stream of bits, in which numbers are as long as they need to be."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["decode_brush", "encode_brush"]

WORD = 8  # bits of a value
LENGTHS = (3, 4, 8, 16)  # bits that the length of a run may be written in
CHANNELS = 4  # red, green, blue, alpha; alpha is the mask


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask.

    The stream, highest bit first: how many values there are (32 bits); bits of a value, less one (5); four bit lengths
    of run lengths, less one (4 each). Then blocks: 1 for a run of one value, 0 for values one by one; which of the four
    bit lengths follows (2); the length of the block, less one; the value or the values. Values are those of an RGBA
    picture, row by row.

    Args:
        mask: bool (H, W).

    Returns:
        Bytes, as numbers from 0 to 255.
    """
    values = np.repeat(np.asarray(mask, dtype=bool).ravel(), CHANNELS)
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges])
    bits = [f"{values.size:032b}{WORD - 1:05b}", *(f"{length - 1:04b}" for length in LENGTHS)]
    longest = 1 << LENGTHS[-1]
    for start, stop in zip(starts.tolist(), [*edges.tolist(), values.size], strict=True):
        value = 255 if values[start] else 0
        for begin in range(start, stop, longest):
            count = min(stop - begin, longest) - 1
            which = next(n for n, length in enumerate(LENGTHS) if count < 1 << length)
            bits.append(f"1{which:02b}{count:0{LENGTHS[which]}b}{value:0{WORD}b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


class _Bits:
    """Reads numbers from a stream of bits."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place, self.end = data, 0, 8 * len(data)

    def read(self, count: int) -> int:
        stop = self.place + count
        if stop > self.end:
            raise ValueError("the brush mask ends too early")
        chunk = int.from_bytes(self.data[self.place >> 3 : (stop + 7) >> 3], "big")
        self.place = stop
        return (chunk >> (-stop % 8)) & ((1 << count) - 1)


def decode_brush(encoded: Any, shape: tuple[int, int]) -> np.ndarray:
    """Decode a mask.

    Args:
        encoded: as :func:`encode_brush` gives it.
        shape: rows and columns.

    Returns:
        bool (H, W): whether alpha is above 0.

    Raises:
        ValueError: one line, for anything else, or a mask of another size. Nothing larger than the mask is made.
    """
    try:
        bits = _Bits(bytes(encoded) if isinstance(encoded, list) else bytes([256]))
    except (TypeError, ValueError) as error:
        raise ValueError("a brush mask must be a list of numbers from 0 to 255") from error
    size = bits.read(32)
    if size != CHANNELS * shape[0] * shape[1]:
        raise ValueError(f"the brush mask is not of {shape[0]} x {shape[1]} pixels")
    word = bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    values = np.zeros(size, dtype=bool)
    place = 0
    while place < size:
        run = bits.read(1)
        stop = place + bits.read(lengths[bits.read(2)]) + 1
        if stop > size:
            raise ValueError("the brush mask holds more than its size")
        if run:
            values[place:stop] = bits.read(word) > 0
        else:
            values[place:stop] = [bits.read(word) > 0 for _ in range(stop - place)]
        place = stop
    return values.reshape(*shape, CHANNELS)[..., -1]

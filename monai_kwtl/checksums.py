"""The checksum of TensorBoard's event files, many bytes at a time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["masked_crc32c"]

_LANES = 1024  # parts of the data that are summed up side by side
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


def _moved(shift: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Sums with zero bytes behind them: ``shift`` holds what becomes of each of the 32 bits."""
    bits = (sums[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    return np.bitwise_xor.reduce(np.where(bits, shift, np.uint32(0)), axis=1)


def _crc32c(data: bytes) -> int:
    start = np.frombuffer(data, np.uint8)
    length = max(1, -(-start.size // _LANES))
    lanes = np.zeros(_LANES * length, np.uint8)  # zeros in front change nothing
    lanes[lanes.size - start.size :] = start
    lanes[lanes.size - start.size :][:4] ^= 0xFF
    # beside the lanes run the single bits followed by zeros: they say what a lane behind another does to its sum
    columns = np.zeros((length, _LANES + 32), np.uint32)
    columns[:, :_LANES] = lanes.reshape(_LANES, length).T
    sums = np.zeros(_LANES + 32, np.uint32)
    sums[_LANES:] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    table = _table()
    for column in columns:
        sums = table[(sums ^ column) & 0xFF] ^ (sums >> 8)
    sums, shift = sums[:_LANES], sums[_LANES:]
    while sums.size > 1:
        sums, shift = _moved(shift, sums[::2]) ^ sums[1::2], _moved(shift, shift)
    return int(sums[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """The masked CRC-32C of a record, as TFRecord files have it.

    A sum is linear: the data are cut into parts, whose sums are found side by side and then moved into their places.

    Args:
        data: at least four bytes; from some thousand on this is faster than byte by byte.

    Returns:
        An unsigned number of 32 bits.
    """
    crc = _crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

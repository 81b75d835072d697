"""TensorBoard logs that a stage begins anew or goes on with, without touching those of other stages in the folder."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

__all__ = ["masked_crc32c", "open_log", "remove_log"]

_LANES = 1024  # parts of the data that are summed up side by side
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed

_LONG = 4096  # bytes of a record; shorter ones are summed up quickly in any case


try:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as byte_by_byte
    from tensorboard.summary.writer import record_writer
except ImportError:  # they are no public names: without them a log takes longer
    record_writer = None


def _sum_of(data: bytes) -> int:
    return masked_crc32c(data) if len(data) > _LONG else byte_by_byte(data)


def remove_log(folder: str | os.PathLike, stage: str) -> None:
    """Remove what a stage has logged with :func:`open_log`.

    Args:
        folder: of the event files.
        stage: whose; all other files stay.
    """
    for former in Path(folder).glob(f"events.out.tfevents.*.{stage}"):
        former.unlink(missing_ok=True)


def open_log(folder: str | os.PathLike, stage: str, after: int = 0) -> SummaryWriter:
    """Open a log in place of what a stage has logged in a folder before.

    TensorBoard shows all event files of a folder as one: beside the old ones, a selection made anew would show regions
    of both, and a training two curves in one.

    Args:
        folder: of the event files; made if absent.
        stage: becomes the end of the file's name, by which it is known later.
        after: go on with the log of a stage that is resumed after so many steps; what it has of later ones is dropped.

    Returns:
        The writer.
    """
    if hasattr(record_writer, "masked_crc32c"):
        record_writer.masked_crc32c = _sum_of  # its own takes 0.1 s a megabyte, as long as all else that draws pictures
    if not after:
        remove_log(folder, stage)
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None, filename_suffix=f".{stage}")


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


def _moved(shift: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return sums with zero bytes behind them: ``shift`` holds what becomes of each of the 32 bits."""
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
    """Return the masked CRC-32C of a record, as TFRecord files have it.

    A sum is linear: the data are cut into parts, whose sums are found side by side and then moved into their places.

    Args:
        data: at least four bytes; from some thousand on this is faster than byte by byte.

    Returns:
        An unsigned number of 32 bits.
    """
    crc = _crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

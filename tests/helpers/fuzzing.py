"""Seeded damage to files, and a worker process that reads them under a time limit and a memory limit."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from stage_process import WARM

PATIENCE = 10.0  # seconds that a file may take
MEMORY = 3 << 30  # bytes that a file may take on top of what the worker has already

ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 100_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damage(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Damage a file in one to four places, mostly near its start, where the header is."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        size = max(len(data), 1)
        place = int(rng.integers(min(size, 256) if rng.random() < 0.6 else size))
        length = int(rng.integers(1, 33))
        kind = rng.integers(8)
        if kind == 0:
            data[place : place + 1] = bytes([(data[place] if data else 0) ^ 1 << int(rng.integers(8))])
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        elif kind == 2:  # a number of the header becomes an odd one, in either byte order
            form = str(rng.choice(["<H", ">H", "<I", ">I"]))
            number = int(rng.choice(ODD_NUMBERS)) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
            data[place : place + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            del data[place : place + length]
        elif kind == 5:
            data[place:place] = rng.bytes(length)
        elif kind == 6:
            data[place:place] = data[place : place + 8 * length]
        else:  # the rest of another file
            other = others[int(rng.integers(len(others)))]
            data[place:] = other[int(rng.integers(max(len(other), 1))) :]
    return bytes(data)


def fix_png(content: bytes) -> bytes:
    """Make the check sums of a PNG right again, so that damage gets past them."""
    data, place = bytearray(content), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def fingerprint(folder: Path) -> dict[str, str]:
    """Hash and time of everything in a folder."""
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mtime_ns} "
        + (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder")
        for path in sorted(folder.rglob("*"))
    }


def _serve(read: Callable[[str], str], connection: Connection, log: str) -> None:
    for stream in (1, 2):  # also what C libraries say
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    connection.send("ready")
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("right", read(path)))
        except BaseException as error:
            kind = "refused" if type(error).__name__ == "KWTLError" else "wrong"
            text = str(error) if kind == "refused" else "".join(traceback.format_exception(error))
            connection.send((kind, text))


class Reader:
    """Calls a function of a path in a process of its own, which is replaced where it dies or hangs.

    Args:
        read: takes a path, returns a word; raises ``KWTLError`` for what it refuses.
        log: file for what the process writes to stdout and stderr.
    """

    def __init__(self, read: Callable[[str], str], log: Path) -> None:
        self._read, self.log = read, log
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*WARM, "test_fuzz"])
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._read, there, str(self.log)), daemon=True)
        self._process.start()
        there.close()
        assert self._here.poll(120) and self._here.recv() == "ready", self.log.read_text()

    def __call__(self, path: Path) -> tuple[str, str]:
        """Read a file.

        Returns:
            ("right", word), ("refused", line), or what must not be: ("wrong", traceback), ("dead", status),
            ("hangs", seconds).
        """
        self._here.send(str(path))
        try:
            if self._here.poll(PATIENCE):
                return self._here.recv()
            result = "hangs", f"more than {PATIENCE:g} s"
        except (EOFError, ConnectionError):
            self._process.join()
            result = "dead", f"status {self._process.exitcode}"
        self.close()
        self._start()
        return result

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._here.close()

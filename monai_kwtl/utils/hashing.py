"""Hashes of files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from monai_kwtl.errors import KWTLError

__all__ = ["file_sha256"]


def _existing_checkpoint(path: str | os.PathLike) -> Path:
    if not Path(path).is_file():
        raise KWTLError(f"there is no checkpoint at {path}; give the path of a .pt file with --ckpt.")
    return Path(path)


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a checkpoint's bytes, hexadecimal.

    Raises:
        KWTLError: when there is no such file.
    """
    path = _existing_checkpoint(path)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

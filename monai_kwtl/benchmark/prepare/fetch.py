"""Files fetched from the network or taken from the disk, whole and with the right checksum."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from monai_kwtl.benchmark.prepare.recipes import Checksum
from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.json_documents import short

__all__ = ["check_file", "fetch", "is_url", "read_checksum"]

TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}


def read_checksum(text: str) -> Checksum:
    """Parse ``sha256:<64 hexadecimal digits>``, or md5, sha1, sha512, as a checksum.

    Raises:
        KWTLError: for anything else.
    """
    algorithm, _, digest = text.strip().lower().partition(":")
    if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS.get(algorithm, 1)}}}", digest) or algorithm not in _DIGITS:
        forms = ", ".join(f"{name}:<{digits} hexadecimal digits>" for name, digits in _DIGITS.items())
        raise KWTLError(f"{short(text)} is no checksum: give one of {forms}.")
    return Checksum(algorithm, digest)


def is_url(source: str) -> bool:
    """Return True if a source is fetched from the network; everything else is a path."""
    return urllib.parse.urlsplit(source).scheme.lower() in ("http", "https")


def check_file(path: Path, checksum: Checksum | None, source: str) -> str:
    """Hash a file, and refuse it where it is another than it should be.

    Args:
        path: of the file.
        checksum: what it must hash to; None accepts any file.
        source: what the file is called in messages.

    Returns:
        ``sha256:...`` or whatever the checksum is of.

    Raises:
        KWTLError: when the checksum differs, or the file cannot be read.
    """
    algorithm = checksum.algorithm if checksum else "sha256"
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise KWTLError(f"{source}: cannot be read ({error.strerror}); give another file with --source") from error
    if checksum and digest.hexdigest() != checksum.digest:
        raise KWTLError(
            f"{source}: its {algorithm} is {digest.hexdigest()}, not {checksum.digest}; fetch it again, or, if you "
            f"trust this file, give it with --source and its own --checksum"
        )
    return f"{algorithm}:{digest.hexdigest()}"


def fetch(url: str, path: Path, limit: int, say: Callable[[str], None] = lambda _: None) -> None:
    """Download a file.

    Args:
        url: http or https.
        path: to write to; it is there afterwards only where all came.
        limit: bytes at most.
        say: is told the size once it is known.

    Raises:
        KWTLError: one line, when it cannot be fetched, or is longer than the limit or shorter than announced.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "monai-kwtl prepare_data"})
    retry = "try again, or fetch it by hand and give it with --source"
    size = 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, path.open("wb") as stream:
            announced = answer.headers.get("Content-Length", "")
            whole = int(announced) if announced.isdigit() else None
            say(f"{url}: {whole / 1e6:.1f} MB" if whole is not None else url)
            while block := answer.read(_BLOCK):
                size += len(block)
                if size > limit:
                    raise KWTLError(f"{url}: more than {limit >> 20} MiB came, which is no such file; {retry}")
                stream.write(block)
            if whole is not None and size != whole:
                raise KWTLError(f"{url}: only {size} of {whole} bytes came; {retry}")
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            raise KWTLError(f"{url}: the server answers {error.code} {error.reason}; {retry}") from error
        if isinstance(error, (OSError, http.client.HTTPException, ValueError)) and not isinstance(error, KWTLError):
            if isinstance(error, OSError) and (error.filename == os.fspath(path) or error.errno == errno.ENOSPC):
                raise  # of the disk, not of the network
            reason = getattr(error, "reason", None) or error
            raise KWTLError(f"{url}: cannot be fetched ({' '.join(str(reason).split())}); {retry}") from error
        raise

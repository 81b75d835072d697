"""ZIP and TAR archives read member by member, after all of their names and sizes have been checked."""

from __future__ import annotations

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.json_documents import short

__all__ = ["Member", "open_archive"]

_FIX = "fetch it again from its publisher"
_MANY = 200_000  # members; the largest of the paper's archives has 19 200
_LARGEST = 1 << 28  # bytes of one member that is read; it is held in memory
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # of ZIP: a compression that is not known
    OSError,
    ValueError,
    RuntimeError,
)


class Member(NamedTuple):
    """A file in an archive: its path there, its size in bytes, and what reads it."""

    path: str
    size: int
    read: Callable[[], bytes]


def _check_name(name: str) -> None:
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise KWTLError(f"it holds the absolute path {short(name)}")
    if ".." in parts:
        raise KWTLError(f"it holds {short(name)}, which leads out of it")
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise KWTLError(f"it holds a name with control characters, {short(name)}")


def _check_amount(members: int, total: int, limit: int) -> None:
    if total > limit:
        raise KWTLError(f"it would unpack to more than {limit >> 20} MiB")
    if members > _MANY:
        raise KWTLError(f"it holds more than {_MANY} files")


def _of_zip(archive: zipfile.ZipFile, limit: int) -> list[Member]:
    infos = archive.infolist()
    _check_amount(len(infos), sum(info.file_size for info in infos), limit)
    members = []

    def read(info: zipfile.ZipInfo) -> bytes:
        with archive.open(info) as stream:
            content = stream.read(info.file_size)  # unlike read(), makes no more than that of one that lies
        if len(content) != info.file_size:
            raise zipfile.BadZipFile("unexpected end of data")
        return content

    for info in infos:
        _check_name(info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise KWTLError(f"it holds {short(info.filename)}, which is no plain file")
        if info.flag_bits & 1:
            raise KWTLError(f"it holds {short(info.filename)}, which is encrypted")
        if not info.is_dir():
            members.append(Member(info.filename, info.file_size, partial(read, info)))
    return members


def _of_tar(archive: tarfile.TarFile, limit: int) -> list[Member]:
    members, total, count, end = [], 0, 0, 0

    def read(info: tarfile.TarInfo) -> bytes:
        stream = archive.extractfile(info)
        content = stream.read() if stream else b""
        if len(content) != info.size:
            raise tarfile.ReadError("unexpected end of data")
        return content

    for info in archive:  # headers only, and checked before what they announce is unpacked
        count, total = count + 1, total + info.size
        _check_amount(count, total, limit)
        _check_name(info.name)
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise KWTLError(f"it holds {short(info.name)}, which is no plain file")
        if info.isreg():
            members.append(Member(info.name, info.size, partial(read, info)))
        end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    archive.fileobj.seek(end)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # which ends every tar
        raise tarfile.ReadError("unexpected end of data")
    return members


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, zlib.error, lzma.LZMAError, OSError):
        return True  # compressed and cut off within its first block


@contextmanager
def _in_one_line(called: str) -> Iterator[None]:
    """Say what is wrong with the archive in one line, with its name."""
    try:
        yield
    except KWTLError as error:
        raise KWTLError(f"{called}: {error}; {_FIX}") from error
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise KWTLError(f"{called}: it is broken or cut off ({reason}); {_FIX}") from error


@contextmanager
def open_archive(path: Path, limit: int, called: str) -> Iterator[list[Member]]:
    """Open a ZIP or TAR archive (also gzip, bzip2 or xz) whose members are harmless, every one of them.

    Nothing is unpacked to the disk, so no name in an archive can become a path here; archives that try are refused all
    the same, since they are not what a publisher made.

    Args:
        path: of the archive.
        limit: bytes that its members may have in all, by what they declare; reading gives no more than declared.
        called: what the archive is called in messages.

    Yields:
        Its files in their order there.

    Raises:
        KWTLError: one line, also when a member is read: when it is no archive, broken or cut off, holds an absolute
            path, a path with ``..``, a link or a device, or more than the limit.
    """

    def guarded(member: Member) -> bytes:
        with _in_one_line(called):
            if member.size > _LARGEST:
                raise KWTLError(f"{short(member.path)} in it has more than {_LARGEST >> 20} MiB")
            return member.read()

    with ExitStack() as stack:
        with _in_one_line(called):
            if zipfile.is_zipfile(path):
                members = _of_zip(stack.enter_context(zipfile.ZipFile(path)), limit)
            elif _is_tar(path):
                members = _of_tar(stack.enter_context(tarfile.open(path)), limit)
            else:
                raise KWTLError("it is no ZIP or TAR archive, or cut off")
        yield [member._replace(read=partial(guarded, member)) for member in members]

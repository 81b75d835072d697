"""JSON files that come from outside: parsed and checked field by field, with one-line errors."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path, PureWindowsPath
from typing import Any

from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.atomic import replaced

__all__ = ["Checker", "LARGEST", "parse_json", "read_document", "short", "write_text"]

LARGEST = 2**31 - 1  # no image has more rows or columns; keeps x + width inside 64 bits for every reader
LARGEST_FILE = 1 << 28  # bytes; parsed, JSON takes about ten times as much memory

_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}


def short(value: Any) -> str:
    """Return a value as a message shows it, in 60 characters at most."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > 200:  # repr of thousands of digits raises
        return "a very large number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the field {short(key)} appears twice")
        result[key] = value
    return result


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")


def parse_json(path: str | Path, what: str = "JSON file") -> Any:
    """Parse a JSON file strictly: UTF-8, no field twice, no NaN or infinity.

    Args:
        path: of the file.
        what: it should be, for messages.

    Raises:
        KWTLError: one line with file, line and column, when it cannot be read, is no JSON, or is beyond 256 MiB.
    """
    path = Path(path)
    try:
        content = bytearray()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                content += block
                if len(content) > LARGEST_FILE:
                    raise KWTLError(f"{path}: more than {LARGEST_FILE >> 20} MiB; is it a {what}?")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KWTLError(f"{path}: not a text file (byte {error.start}); give a {what}") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise KWTLError(f"{path}: cannot be read ({reason}); give the {what} of a finished run") from error
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constants)
    except json.JSONDecodeError as error:
        raise KWTLError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; mend the JSON") from error
    except RecursionError as error:
        raise KWTLError(f"{path}: nested too deeply for a {what}") from error
    except ValueError as error:
        raise KWTLError(f"{path}: {str(error).splitlines()[0]}; mend the JSON") from error


class Checker:
    """Raises the one-line errors of a file, each with the file and the field.

    Args:
        path: of the file.
        mend: what the user can do about it.
    """

    def __init__(self, path: str | Path, mend: str) -> None:
        self.path, self.mend = Path(path), mend

    def fail(self, message: str) -> KWTLError:
        """Return the error to raise."""
        return KWTLError(f"{self.path}: {message}; {self.mend}")

    def get(self, mapping: Any, key: str, kind: type | tuple, where: str) -> Any:
        """Return the value of a field that must be there and of a kind."""
        if not isinstance(mapping, dict):
            raise self.fail(f"{where.rstrip('.')} must be an object, not {short(mapping)}")
        if key not in mapping:
            raise self.fail(f"{where}{key} is missing")
        value = mapping[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(f"{where}{key} must be {_WORDS.get(kind, 'a number')}, not {short(value)}")
        return value

    def whole(self, mapping: Any, key: str, where: str, low: int) -> int:
        """Return a whole number from ``low`` to what a 32 bit integer holds."""
        value = self.get(mapping, key, int, where)
        if not low <= value <= LARGEST:
            raise self.fail(f"{where}{key} must be from {low} to {LARGEST}, not {short(value)}")
        return value

    def number(self, mapping: Any, key: str, where: str) -> float:
        """Return a finite number."""
        value = self.get(mapping, key, (int, float), where)
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        if not finite:
            raise self.fail(f"{where}{key} must be a finite number, not {short(value)}")
        return float(value)

    def sha256(self, mapping: Any, key: str, where: str) -> str:
        """Return a SHA-256: 64 hexadecimal digits."""
        value = self.get(mapping, key, str, where)
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            raise self.fail(f"{where}{key} must be 64 hexadecimal digits, not {short(value)}")
        return value

    def image_name(self, mapping: Any, where: str, key: str = "image") -> str:
        """Return a path that stays inside the folder that it is relative to."""
        name = self.get(mapping, key, str, where)
        parts = re.split(r"[/\\]", name)
        harmless = all(part not in ("", ".", "..") for part in parts) and not PureWindowsPath(name).drive
        if not harmless or re.search(r"[\x00-\x1f\x7f]", name):
            raise self.fail(f"{where}{key} must be a path inside the data set, without '..', not {short(name)}")
        return name


def read_document(path: str | Path, what: str, mend: str, form: str) -> tuple[dict[str, Any], Checker]:
    """Parse a JSON file of ours, an object whose ``format`` says what it is.

    Args:
        path: of the file.
        what: it should be, for messages.
        mend: what the user can do about errors in it.
        form: what its ``format`` must be.

    Returns:
        The object, and the checker for the rest of its fields.

    Raises:
        KWTLError: one line, as :func:`parse_json` does, and for anything else than such an object.
    """
    document, check = parse_json(path, what), Checker(path, mend)
    if not isinstance(document, dict):
        raise check.fail(f"must hold an object, not {short(document)}")
    found = check.get(document, "format", str, "")
    if found != form:
        raise check.fail(f"format must be {form!r}, not {short(found)}")
    return document, check


def write_text(path: str | Path, text: str) -> None:
    """Write a text file beside its final name, then rename it, so that it is never half there.

    Raises:
        OSError: when it cannot be written; what was there before stays.
    """
    with replaced(path, durable=True) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")

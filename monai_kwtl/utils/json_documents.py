"""JSON files that come from outside: parsed and checked against a JSON Schema, with one-line errors."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from monai_kwtl.errors import KWTLError

__all__ = ["Checker", "LARGEST", "parse_json", "read_document", "short"]

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
        raise KWTLError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}; fix the JSON") from error
    except RecursionError as error:
        raise KWTLError(f"{path}: nested too deeply for a {what}") from error
    except ValueError as error:
        raise KWTLError(f"{path}: {str(error).splitlines()[0]}; fix the JSON") from error


class Checker:
    """Raises the one-line errors of a file, each with the file and the field.

    Args:
        path: of the file.
        fix: what the user can do about it.
    """

    def __init__(self, path: str | Path, fix: str) -> None:
        self.path, self.fix = Path(path), fix

    def fail(self, message: str) -> KWTLError:
        """Return the error to raise."""
        return KWTLError(f"{self.path}: {message}; {self.fix}")

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


def _is_whole(_checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(_checker: Any, value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


# stricter than JSON Schema: 1.0 is no whole number, and what a float cannot hold is no number
_Strict = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_whole, "number": _is_finite}),
)


@cache
def _validator(schema: Path) -> Validator:
    """Return the check of a schema, which may refer to others of its folder by their file names."""
    known = []
    for path in schema.parent.glob("*.schema.json"):
        contents = parse_json(path, "JSON schema")
        del contents["$schema"]  # by which jsonschema would go on with the usual check
        known.append((path.name, DRAFT202012.create_resource(contents)))
    return _Strict({"$ref": schema.name}, registry=Registry().with_resources(known).crawl())


def _in_a_line(error: ValidationError) -> str:
    """Say which field is not as its schema says, and what it should be."""
    where, name, wanted = error.json_path[1:].lstrip("."), error.validator, error.validator_value
    if name == "required":
        missing = next(each for each in wanted if each not in error.instance)
        return f"{where}.{missing} is missing".lstrip(".")
    words = {"type": "of type ", "const": "", "enum": "", "minimum": "at least ", "maximum": "at most "}
    if name in words:
        must = words[name] + (" or ".join(wanted) if isinstance(wanted, list) else str(wanted))
    else:
        must = error.schema.get("title", f"of {name} {wanted}")
    return f"{where or 'the file'} must be {must}, not {short(error.instance)}"


def read_document(path: str | Path, what: str, fix: str, schema: Path) -> dict[str, Any]:
    """Read a JSON file of ours, and check it against its schema.

    Args:
        path: of the file.
        what: it should be, for messages.
        fix: what the user can do about errors in it.
        schema: path of its JSON Schema, which may refer to others beside it.

    Returns:
        The document.

    Raises:
        KWTLError: one line, as :func:`parse_json` does, and with the field for what the schema does not allow.
    """
    document = parse_json(path, what)
    try:
        errors = list(_validator(schema).iter_errors(document))
    except RecursionError as error:
        raise KWTLError(f"{path}: nested too deeply for a {what}; {fix}") from error
    if errors:
        # another format explains all the rest
        worst = next((each for each in errors if each.validator == "const"), best_match(errors))
        raise KWTLError(f"{path}: {_in_a_line(worst)}; {fix}")
    return document

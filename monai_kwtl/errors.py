"""The one exception for bad input, which says what to do about it, and checks that raise it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["KWTLError", "as_bool", "check_number", "check_whole_number"]

_SPELLED = {"true": True, "false": False, "1": True, "0": False}


class KWTLError(ValueError):
    """Bad input from the user.

    Its message is one line: what is wrong, where, and what to do. Bundle runs print just that line and exit
    with status 1; in Python it is an ordinary ``ValueError``.
    """


def check_whole_number(name: str, value: Any, low: int) -> int:
    """Return ``value`` where it is a whole number (of Python or NumPy), at least ``low``.

    Raises:
        KWTLError: for anything else; text, truth values and 2.0 are no whole numbers.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise KWTLError(f"{name} must be a whole number, at least {low}, got {value!r}.")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float = math.inf, above: bool = False) -> float:
    """Return ``value`` as a float where it is a finite number from ``low`` (or above it) to ``high``.

    Raises:
        KWTLError: for anything else; text, truth values and NaN are no numbers.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and -math.inf < value < math.inf
    if not number or not low <= value <= high or (above and value == low):
        limits = f"above {low:g}" if above else f"from {low:g} on" if high == math.inf else f"from {low:g} to {high:g}"
        raise KWTLError(f"{name} must be a number {limits}, got {value!r}.")
    return float(value)


def as_bool(value: Any, name: str) -> bool:
    """Return an option as a truth value: ``monai.bundle run`` leaves ``true`` and ``false`` of a command line as text.

    Raises:
        KWTLError: for anything but true and false, their spellings in other cases, 0 and 1.
    """
    if str(value).lower() not in _SPELLED:
        raise KWTLError(f"{name} must be true or false, got {value!r}.")
    return _SPELLED[str(value).lower()]

"""The one exception that means: the input is wrong, and here is what to do about it."""

from __future__ import annotations

from numbers import Integral
from typing import Any

__all__ = ["KWTLError", "check_whole_number"]


class KWTLError(ValueError):
    """Bad input from the user.

    Its message is one line: what is wrong, where, and what to do. Bundle runs print just that line and exit
    with status 1; in Python it is an ordinary ``ValueError``.
    """


def check_whole_number(name: str, value: Any, low: int) -> None:
    """Raise a :class:`KWTLError` unless ``value`` is a whole number (of Python or NumPy), at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise KWTLError(f"{name} must be a whole number, at least {low}, got {value!r}.")

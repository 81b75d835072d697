"""The one exception that means: the input is wrong, and here is what to do about it."""

from __future__ import annotations

__all__ = ["KWTLError"]


class KWTLError(ValueError):
    """Bad input from the user.

    Its message is one line: what is wrong, where, and what to do. Bundle runs print just that line and exit
    with status 1; in Python it is an ordinary ``ValueError``.
    """

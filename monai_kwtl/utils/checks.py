"""Results of installation checks, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Check", "NOTE", "OK", "WRONG", "print_checks"]

OK, NOTE, WRONG = "ok", "note", "WRONG"
Check = tuple[str, str, str]


def print_checks(checks: Sequence[Check]) -> int:
    """Print a line for each check; returns 1 where something is wrong, else 0."""
    width = max(len(name) for _, name, _ in checks)
    for verdict, name, detail in checks:
        print(f"{verdict:<6}{name:<{width + 2}}{detail}")
    wrong = sum(verdict == WRONG for verdict, _, _ in checks)
    print(f"{wrong} to fix, see above" if wrong else "everything works")
    return int(wrong > 0)

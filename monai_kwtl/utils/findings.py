"""Results of installation checks, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Finding", "NOTE", "OK", "WRONG", "print_findings"]

OK, NOTE, WRONG = "ok", "note", "WRONG"
Finding = tuple[str, str, str]


def print_findings(findings: Sequence[Finding]) -> int:
    """Print a line for each finding; returns 1 where something is wrong, else 0."""
    width = max(len(name) for _, name, _ in findings)
    for verdict, name, detail in findings:
        print(f"{verdict:<6}{name:<{width + 2}}{detail}")
    wrong = sum(verdict == WRONG for verdict, _, _ in findings)
    print(f"{wrong} to fix, see above" if wrong else "everything works")
    return int(wrong > 0)

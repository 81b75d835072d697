"""The way that the threads of an operation wait for one another."""

from __future__ import annotations

import os

__all__ = ["wait_asleep"]


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, in this process and in those that it starts, unless the user chose.

    By default they spin, which costs nothing on an idle machine, and several times the work where another process wants
    the same cores. OpenMP reads the setting when it is loaded, so call this before PyTorch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

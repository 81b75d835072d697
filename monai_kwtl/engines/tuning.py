"""Functions shared by the training stages: where they write, and how they continue."""

from __future__ import annotations

import logging

__all__ = []

logger = logging.getLogger("monai_kwtl")

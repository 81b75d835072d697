"""What the training stages share: where they write, and how they continue."""

from __future__ import annotations

import logging

__all__ = []

logger = logging.getLogger("monai_kwtl")

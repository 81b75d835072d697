"""Knowing what to label: which regions of unlabelled microscopy images an expert should outline first."""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_HOMES = {"StageWorkflow": "monai_kwtl.workflow"}


def __getattr__(name: str) -> ModuleType | type:
    """Import what the package holds when it is first named, so that ``import monai_kwtl`` alone is quick."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"monai_kwtl.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"monai_kwtl.{name}":
                raise
    raise AttributeError(f"module 'monai_kwtl' has no attribute {name!r}")

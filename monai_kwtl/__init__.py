"""Knowing what to label: which regions of unlabelled microscopy images an expert should outline first."""

from __future__ import annotations

__version__ = "0.1.0"

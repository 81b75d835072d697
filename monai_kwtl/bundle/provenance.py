"""Provenance of a result: versions, and the settings of its scores."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_kwtl import __version__

__all__ = ["score_settings", "versions"]


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    return {"monai_kwtl": __version__} | {n: importlib.metadata.version(n) for n in ("monai", "torch", "numpy")}


def score_settings(
    settings: Mapping[str, Any], pool: Sequence[Mapping[str, Any]], device: torch.device, seed: int
) -> dict[str, Any]:
    """Return everything that the scores of an image depend on besides the image itself, as JSON data.

    Args:
        settings: options, the hash of the weights, and what computes.
        pool: its hashes count where the statistics of the network are fitted to it.
        device: what computes.
        seed: counts for MC-dropout only.
    """
    fitted = sorted((item["sha256"], item["page"] or 0) for item in pool) if settings["adapt_norm"] else []
    return {
        **settings,
        "versions": versions(),
        "device": device.type,
        "seed": seed if settings["measure"] == "mc_dropout" else None,
        "fitted_to": hashlib.sha256(repr(fitted).encode()).hexdigest(),
    }

"""Presets: which settings a stage has where none is given, KWTL's own or the paper's."""

from __future__ import annotations

from typing import Any

from monai_kwtl.errors import KWTLError

__all__ = ["PRESETS", "preset_value"]

# docs/results says what each was chosen by
PRESETS: dict[str, dict[str, Any]] = {
    "kwtl": {"strategy": "herding", "measure": "kl", "loss": "dice_bce", "falling_rate": True},
    "paper": {"strategy": "top_k", "measure": "soft", "loss": "weighted", "falling_rate": False},
}


def preset_value(preset: Any, setting: str) -> Any:
    """Return what a setting is where it is not given.

    Args:
        preset: ``kwtl``: what did best in this project's benchmark; ``paper``: as in Dawoud et al. 2023.
        setting: a name in :data:`PRESETS`: ``strategy``, ``measure``, ``loss`` or ``falling_rate``.

    Raises:
        KWTLError: for another preset.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise KWTLError(f"preset must be {' or '.join(PRESETS)}, got {preset!r}.")
    return PRESETS[preset][setting]

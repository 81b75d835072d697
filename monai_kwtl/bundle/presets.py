"""Presets: which settings a stage has where none is given, KWTL's own or the paper's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.choice import has_latent
from monai_kwtl.selection.strategies import FEATURE_STRATEGIES
from monai_kwtl.windows.grid import WindowGrid

__all__ = ["PRESETS", "choose_strategy", "default_strategy", "preset_value"]

logger = logging.getLogger("monai_kwtl")

# docs/results says what each was chosen by
PRESETS: dict[str, dict[str, Any]] = {
    "kwtl": {"strategy": "balanced", "loss": "dice_bce", "learning_rate": 1e-3, "falling_rate": True},
    "paper": {"strategy": "top_k", "loss": "weighted", "learning_rate": 1e-4, "falling_rate": False},
}

# features take 2 KiB a window for good, and about 16 KiB a window of one image while they are summed up
MOST_WINDOWS = 200_000
MOST_OF_AN_IMAGE = 20_000


def preset_value(preset: Any, setting: str, schedule: str = "steps") -> Any:
    """Return what a setting is where it is not given.

    Args:
        preset: ``kwtl``: what did best in this project's benchmark; ``paper``: as in Dawoud et al. 2023.
        setting: a name in :data:`PRESETS`: ``strategy``, ``loss``, ``learning_rate`` or ``falling_rate``.
        schedule: ``paper`` has the paper's value whatever the preset.

    Raises:
        KWTLError: for another preset.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise KWTLError(f"preset must be {' or '.join(PRESETS)}, got {preset!r}.")
    return PRESETS["paper" if schedule == "paper" else preset][setting]


def default_strategy(preset: Any, items: Sequence[Mapping[str, Any]], window: int, step: int) -> str:
    """Return the strategy of a preset; one that compares windows only where they are few enough for the memory.

    Otherwise it is ``stratified_random``, and that is said.

    Args:
        preset: as in :func:`preset_value`.
        items: of the pool, with ``height`` and ``width``.
        window: side of a window, in pixels.
        step: distance between windows, in pixels.

    Raises:
        KWTLError: for another preset, and, where windows are compared, a window or step that makes no sense.
    """
    strategy = preset_value(preset, "strategy")
    if strategy not in FEATURE_STRATEGIES:
        return strategy
    counts = [len(WindowGrid(item["height"], item["width"], window, step)) for item in items]
    if sum(counts) > MOST_WINDOWS or max(counts, default=0) > MOST_OF_AN_IMAGE:
        logger.info(
            "strategy: stratified_random, as %d windows are too many to compare; a larger --step makes them fewer",
            sum(counts),
        )
        return "stratified_random"
    return strategy


def choose_strategy(
    strategy: str | None,
    preset: Any,
    items: Sequence[Mapping[str, Any]],
    window: int,
    step: int,
    network: Any = None,
) -> str:
    """Return the strategy of a selection: as given, else :func:`default_strategy`.

    A network without a latent cannot compare windows; where none is given, it gets ``stratified_random``.

    Args:
        strategy: None: none is given.
        preset: as of :func:`default_strategy`.
        items: as of :func:`default_strategy`.
        window: as of :func:`default_strategy`.
        step: as of :func:`default_strategy`.
        network: that will score; None: one that has a latent.
    """
    if strategy is not None:
        return strategy
    found = default_strategy(preset, items, window, step)
    if found in FEATURE_STRATEGIES and network is not None and not has_latent(network):
        logger.info(f"strategy: stratified_random, as {type(network).__name__} has no latent to compare windows by")
        return "stratified_random"
    return found

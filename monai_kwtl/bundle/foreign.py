"""The one door through which values of others enter a config: requests, settings and files are data, never code."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monai_kwtl.errors import KWTLError, as_bool, check_number

__all__ = ["TRAINING_OPTIONS", "check_data", "harmless", "training_options"]

DEEPEST = 20  # nested lists and objects; a label's regions need three
MOST_VALUES = 100_000
MOST_DIGITS = 400  # bits of a whole number: beyond any float

# what MONAI's ConfigParser evaluates, looks up or includes where a text begins with it, and names that Python reserves
_EVALUATED = re.compile(r"^\s*[$@%]|__\w+__")
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
# the keys by which MONAI knows a component, and the separators of its ids
_RESERVED_KEY = re.compile(r"^\s*_.*_\s*$|#|::", re.DOTALL)


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else str(type(value).__name__)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_data(value: Any, what: str) -> Any:
    """Return a value that came from outside, when it is plain data.

    Args:
        value: of a request or a file: None, truth values, finite numbers, texts, and lists and objects of them.
        what: it is, for the message.

    Raises:
        KWTLError: for a text or a key that MONAI's config parser would evaluate (``$``, ``@``, ``%``, ``__x__``,
            ``_target_``, ``_mode_`` ...), wherever it stands, and for what is nested too deeply, too large or no data.
    """
    left, seen = [(value, 0)], 0
    while left:
        one, depth = left.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            raise KWTLError(f"{what} is nested too deeply or too large: send plain numbers, texts and short lists.")
        if isinstance(one, str):
            if _EVALUATED.search(one):
                raise KWTLError(f"{what} must be data, but {_shown(one)} would be evaluated: leave out $, @, % and __.")
            if _NO_TEXT.search(one):
                raise KWTLError(f"{what} holds characters that are no text: {_shown(one)}.")
        elif isinstance(one, Mapping):
            for key, inner in one.items():
                if not isinstance(key, str) or _EVALUATED.search(key) or _RESERVED_KEY.search(key):
                    raise KWTLError(f"{what} has the key {_shown(key)}, which configs reserve: use a plain name.")
                left.append((inner, depth + 1))
        elif isinstance(one, (list, tuple)):
            left += [(inner, depth + 1) for inner in one]
        elif isinstance(one, float):
            if not math.isfinite(one):
                raise KWTLError(f"{what} must hold finite numbers, not {one}.")
        elif isinstance(one, int):
            if one.bit_length() > MOST_DIGITS:
                raise KWTLError(f"{what} holds a number with too many digits.")
        elif one is not None:
            raise KWTLError(f"{what} must be plain data, not a {type(one).__name__}.")
    return value


def harmless(**options: Any) -> dict[str, Any]:
    """Return options as they may override those of a config.

    MONAI evaluates texts, lists and objects, so these must be data. Paths must come as :class:`pathlib.Path`, which it
    passes on as they are: a folder ``$x`` or ``a#b`` is then meant as it is written.

    Args:
        options: of a stage, by name.

    Raises:
        KWTLError: as :func:`check_data`.
    """
    for name, value in options.items():
        if isinstance(value, (str, list, tuple, Mapping)):
            check_data(value, name)
    return {name: Path(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise KWTLError(f"{name} must be a whole number from {low} to {high}, got {_shown_number(value)}.")
    return value


def _number(name: str, value: Any, low: float, high: float, above: bool = False) -> float:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > MOST_DIGITS:
        raise KWTLError(f"{name} must be a number from {low:g} to {high:g}, got {_shown_number(value)}.")
    if not isinstance(value, (int, float)):
        raise KWTLError(f"{name} must be a number from {low:g} to {high:g}, got {_shown_number(value)}.")
    return check_number(name, value, low, high, above)


def _shown_number(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > MOST_DIGITS:
        return "a very large number"
    return _shown(value) if isinstance(value, (str, list, dict)) else str(value)


def _amp(name: str, value: Any) -> Any:
    return value if value == "auto" else as_bool(check_data(value, name), name)


FOREGROUND_WEIGHTS = ("auto", "crop", "dataset", "pool", "none")


def _foreground_weight(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if value not in FOREGROUND_WEIGHTS:
            raise KWTLError(f"{name} must be a number or one of {', '.join(FOREGROUND_WEIGHTS)}, got {_shown(value)}.")
        return value
    return _number(name, value, 0, 1e6, above=True)


Check = Callable[[str, Any], Any]

# the options of train.json that a request may set, with the checks that give them back typed
TRAINING_OPTIONS: dict[str, Check] = {
    "steps": partial(_whole, low=1, high=1_000_000),
    "learning_rate": partial(_number, low=0, high=10, above=True),
    "crop": partial(_whole, low=8, high=4096),
    "batch_size": partial(_whole, low=1, high=1024),
    "held_out": partial(_number, low=0, high=0.9),
    "seed": partial(_whole, low=0, high=2**32 - 1),
    "amp": _amp,
    "foreground_weight": _foreground_weight,
    "validate_every": partial(_whole, low=1, high=1_000_000),
    "from_last": lambda name, value: as_bool(check_data(value, name), name),
    "resume": lambda name, value: as_bool(check_data(value, name), name),
    "rescore": lambda name, value: as_bool(check_data(value, name), name),
}

# what viewers of MONAI Label send along for other trainers, and what it adds itself; none of it is looked at
_OTHERS = {
    "model", "name", "description", "device", "gpus", "multi_gpu", "local_rank", "tracking", "tracking_uri",
    "tracking_experiment_name", "run_id", "max_epochs", "early_stop_patience", "dataset", "dataloader", "pretrained",
    "train_batch_size", "val_batch_size", "val_split", "train_random_slices", "user", "client_id",
}  # fmt: skip


def training_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a training that a request sets, each of its type and within its range.

    Args:
        request: what a client sent; None stands for an option that is not set.

    Raises:
        KWTLError: for an unknown option, naming the nearest, and the first value that makes no sense.
    """
    found = {}
    for name, value in request.items():
        if name in TRAINING_OPTIONS:
            if value is not None:
                found[name] = TRAINING_OPTIONS[name](name, value)
        elif name not in _OTHERS:
            near = difflib.get_close_matches(str(name)[:60], TRAINING_OPTIONS, n=1, cutoff=0.0)[0]
            raise KWTLError(f"unknown option {_shown(str(name))} of a training; did you mean {near}?")
    return found

"""Settings of the label app: ``kwtl.json`` in its folder, overridden by ``--conf key value`` of the server."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from monai_kwtl.bundle.foreign import check_data
from monai_kwtl.bundle.presets import preset_value
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.readers.luminance import check_rescale
from monai_kwtl.scoring.measures import MEASURES
from monai_kwtl.utils.json_documents import parse_json

__all__ = ["SETTINGS_NAME", "LabelSettings", "read_settings"]

SETTINGS_NAME = "kwtl.json"
_CHOICES = {"measure": MEASURES, "views": ("intensity", "affine")}
_SERVERS_OWN = {"server_mode", "name", "models"}  # keys of MONAI Label's conf that are not for us


@dataclass(frozen=True)
class LabelSettings:
    """Settings of scoring, giving out regions and training; the bundle's configs explain most of them."""

    measure: str = "soft"
    views: str = "intensity"
    psi: float = 1.3
    weighted: bool = False
    window: int = 256
    step: int = 30
    rescale: list[float] | None = None
    device: str = "auto"
    amp: str | bool = "auto"
    tile: int = 384
    seed: int = 0
    lease_minutes: float = 60.0
    steps: int = 500
    crop: int = 128
    batch_size: int = 8
    learning_rate: float = preset_value("kwtl", "learning_rate")
    held_out: float = 0.2
    score_at_start: bool = True
    epistemic: bool = False

    def training(self) -> dict[str, Any]:
        """Return those that ``train.json`` has as well."""
        names = ("steps", "crop", "batch_size", "learning_rate", "held_out", "rescale", "device", "amp", "seed")
        return {name: getattr(self, name) for name in names}


def _typed(name: str, value: Any, default: Any) -> Any:
    """Return a value in the type of its default; those of ``--conf`` are text."""
    check_data(value, f"the setting {name}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise KWTLError(f"the setting {name} must be one of {', '.join(_CHOICES[name])}, got {str(value)[:40]!r}.")
    try:
        if name == "rescale":
            given = json.loads(value) if isinstance(value, str) else value
            check_rescale(given)
            return given
        if name == "amp":
            return value if value == "auto" else as_bool(value, name)
        if isinstance(default, bool):
            return as_bool(value, name)
        if isinstance(default, int) and float(value) != int(float(value)):
            raise ValueError
        return type(default)(float(value)) if isinstance(default, (int, float)) else str(value)
    except KWTLError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise KWTLError(f"the setting {name} cannot be {value!r}; the default is {default!r}.") from error


def read_settings(app_dir: str | Path, conf: Mapping[str, Any] | None = None) -> LabelSettings:
    """Read the settings of an app.

    Args:
        app_dir: its folder; without ``kwtl.json`` in it the defaults hold.
        conf: overrides, as MONAI Label passes them.

    Raises:
        KWTLError: for unknown settings, naming the nearest, and values of the wrong kind.
    """
    path = Path(app_dir) / SETTINGS_NAME
    given = parse_json(path, "settings file") if path.exists() else {}
    if not isinstance(given, dict):
        raise KWTLError(f"{path} must hold an object of settings: fix it, or delete it for the defaults.")
    given = {key: value for key, value in given.items() if key != "_desc_"}
    given |= {key: value for key, value in (conf or {}).items() if key not in _SERVERS_OWN}
    defaults = {field.name: field.default for field in fields(LabelSettings)}
    for key in given:
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.0)[0]
            raise KWTLError(f"unknown setting {key!r} of the label app; did you mean {near}?")
    return LabelSettings(**{key: _typed(key, value, defaults[key]) for key, value in given.items()})

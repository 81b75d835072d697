"""The flat knobs of a stage, checked before anything is computed, each by the name that the user wrote."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from monai_kwtl.errors import KWTLError, check_number, check_whole_number, true_or_false
from monai_kwtl.inferers import autocast_choice

__all__ = ["check_knobs", "check_running_knobs", "running", "true_or_false"]


def running(kind: type | tuple[type, ...], variable: str) -> Any:
    """The innermost value of a local variable of that name and type among the callers; None where there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        value = frame.f_locals.get(variable)
        if isinstance(value, kind):
            return value
        frame = frame.f_back
    return None


def _path(name: str, value: Any) -> None:
    # of 2023_01 the command line makes the number 202301: the folder of another name would be read or made
    if isinstance(value, Real) and not isinstance(value, bool):
        raise KWTLError(f"{name} must be a path, got the number {value}; put ./ before a name like that.")
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise KWTLError(f"{name} must be a path, got {value!r}.")
    if isinstance(value, str) and "::" in value:
        raise KWTLError(f"{name}: MONAI reads # in a path as ::, so {value!r} cannot be given; rename that folder.")


_from_0, _from_1 = (partial(check_whole_number, low=low) for low in (0, 1))
_above_0 = partial(check_number, low=0, above=True)

# what a name may hold in every stage that has it; further checks, of what differs, are made where it is used
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("seed", "num_workers", "iterations"), _from_0),
    **dict.fromkeys(("window", "step", "crop", "crops", "batch_size", "most_images"), _from_1),
    **dict.fromkeys(("steps", "pretext_steps", "epochs", "meta_epochs", "inner_steps"), _from_1),
    **dict.fromkeys(("checkpoint_every", "validate_every"), _from_1),
    **dict.fromkeys(("learning_rate", "inner_learning_rate", "meta_learning_rate"), _above_0),
    **dict.fromkeys(("weight_decay", "psi"), partial(check_number, low=0)),
    **dict.fromkeys(
        ("overwrite", "resume", "preview", "exact", "weighted", "report", "overlays", "tensorboard", "project")
        + ("photometric", "match_foreground", "falling_rate", "flips"),
        lambda name, value: true_or_false(value, name),
    ),
    "warm_up": lambda name, value: value is None or check_whole_number(name, value, low=0),
    "decay": partial(check_number, low=0, high=1),
    "amp": lambda name, value: autocast_choice(value),
    "tile": lambda name, value: value is None or check_whole_number(name, value, low=1),
    "max_memory": lambda name, value: value is None or check_number(name, value, low=0.8),
    "adapt_norm": lambda name, value: value == "transductive" or true_or_false(value, name),
    **dict.fromkeys(("dataset_dir", "labels", "output_dir", "ckpt", "norm_dir", "test_dir", "selection"), _path),
}


def check_knobs(knobs: Mapping[str, Any]) -> None:
    """Raise for the first knob whose value makes no sense; expressions (``$...``, ``@...``) are passed over.

    Args:
        knobs: of a stage, by name; names that are unknown here are passed over.

    Raises:
        KWTLError: with the name, what it may be, and what it is.
    """
    for name, value in knobs.items():
        expression = isinstance(value, str) and value.startswith(("$", "@"))
        if name in _CHECKS and not expression:
            _CHECKS[name](name, value)


def _keys(config: str | os.PathLike) -> set[str]:
    return set(ConfigParser.load_config_file(config))


def check_running_knobs() -> None:
    """Raise for a knob of the running config that does not exist, naming the nearest, or has a senseless value.

    MONAI accepts any ``--name value`` and goes on with the default of the knob that was meant. Called from a config's
    ``initialize``, this compares the keys of the running workflow with those of its files. Mistakes in settings are
    found here, and not when a stage that has computed for an hour comes to use them. An ``--args_file`` describes a
    data set to all stages, and may hold the knobs of others.

    Raises:
        KWTLError: for the first unknown key, then as :func:`check_knobs`.
    """
    workflow = running(ConfigWorkflow, "self")
    files = running((str, list, tuple), "config_file")
    if workflow is None or files is None:
        return
    known = set(ConfigParser.load_config_files(files))
    names = ", ".join(map(str, [files] if isinstance(files, str) else files))
    given = workflow.parser.get()
    unknown = {str(key) for key in given} - {"_meta_"} - known
    if unknown and (overlay := running(str, "args_file")):
        unknown -= _keys(overlay) & set().union(*map(_keys, Path(workflow.config_root_path).glob("*.json")))
    for key in sorted(unknown):
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
        hint = f"did you mean --{near[0]}?" if near else f"the knobs are described in {names} under _desc_."
        raise KWTLError(f"unknown option --{key}; {hint}")
    check_knobs(given)

"""The flat options of a stage: their types and ranges, and what a command line of ``monai.bundle`` gives."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from monai_kwtl.errors import KWTLError, as_bool, check_number, check_whole_number

__all__ = ["RUN_ARGUMENTS", "check_command_line", "check_options", "checked_options", "command_line", "read_flags"]

# what monai.bundle takes itself, besides the options of a stage
RUN_ARGUMENTS = ("config_file", "args_file", "meta_file", "logging_file", "init_id", "run_id", "final_id")


RUN_ARGUMENTS += ("tracking", "workflow_name", "workflow_type", "properties_path")

Check = Callable[[str, Any], Any]


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def _truth(name: str, value: Any) -> bool:
    return as_bool(value, name)


def _amp(name: str, value: Any) -> bool | str:
    try:
        return value if value == "auto" else as_bool(value, name)
    except KWTLError:
        raise KWTLError(f"{name} must be auto, true or false, got {value!r}.") from None


def _adapt_norm(name: str, value: Any) -> bool | str:
    return value if value == "transductive" else as_bool(value, name)


def _path(name: str, value: Any) -> Any:
    # of 2023_01 the command line makes the number 202301: the folder of another name would be read or made
    if isinstance(value, Real) and not isinstance(value, bool):
        raise KWTLError(f"{name} must be a path, got the number {value}; put ./ before a name like that.")
    if not isinstance(value, (str, os.PathLike)):
        raise KWTLError(f"{name} must be a path, got {value!r}.")
    if isinstance(value, str) and "::" in value:
        raise KWTLError(f"{name}: MONAI reads # in a path as ::, so {value!r} cannot be given; rename that folder.")
    return value


_from_0, _from_1 = (partial(check_whole_number, low=low) for low in (0, 1))
_above_0 = partial(check_number, low=0, above=True)

# what an option may hold in every stage that has it; those whose default is true or false need no entry
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("seed", "num_workers", "iterations"), _from_0),
    **dict.fromkeys(("window", "step", "crop", "crops", "batch_size", "most_images"), _from_1),
    **dict.fromkeys(("steps", "pretext_steps", "epochs", "meta_epochs", "inner_steps"), _from_1),
    **dict.fromkeys(("checkpoint_every", "validate_every"), _from_1),
    **dict.fromkeys(("learning_rate", "inner_learning_rate", "meta_learning_rate"), _above_0),
    **dict.fromkeys(("weight_decay", "psi"), partial(check_number, low=0)),
    **dict.fromkeys(("probability", "decay"), partial(check_number, low=0, high=1)),
    **dict.fromkeys(("project", "falling_rate"), _truth),
    "warm_up": _optional(_from_0),
    "amp": _amp,
    "tile": _optional(_from_1),
    "max_memory": _optional(partial(check_number, low=0.8)),
    "adapt_norm": _adapt_norm,
    **dict.fromkeys(("dataset_dir", "labels", "output_dir", "ckpt", "norm_dir", "test_dir"), _optional(_path)),
    "selection": _optional(_path),
}


def check_options(options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return options of a stage in their types: truth values for text, the rest as it is.

    Args:
        options: by name; names without a range pass, and so do expressions (``$...``, ``@...``).
        defaults: of the stage; an option whose default is true or false must be one of them.

    Raises:
        KWTLError: for the first whose value makes no sense, with its name, what it may be, and what it is.
    """
    defaults = options if defaults is None else defaults
    typed = dict(options)
    for name, value in options.items():
        check = _CHECKS.get(name, _truth if isinstance(defaults.get(name), bool) else None)
        if check is not None and not (isinstance(value, str) and value.startswith(("$", "@"))):
            checked = check(name, value)
            typed[name] = checked if isinstance(checked, bool) else value
    return typed


def _root_of(name: str) -> str:
    return re.split("#|::", name.lstrip("+"))[0]


def checked_options(
    options: Mapping[str, Any], config_file: str | os.PathLike | Sequence[str], args_file: str | None = None
) -> dict[str, Any]:
    """Return the options of a stage in their types, after a look at every name and value.

    MONAI accepts any ``--name value`` and goes on with the default of the option that was meant. Mistakes are found
    here, and not when a stage that has computed for an hour comes to use them.

    Args:
        options: what was given, by name; ``part::argument`` and ``part#argument`` override a part of the config.
        config_file: of the stage, or several that are merged.
        args_file: an overlay that some of the options came from. It describes a data set to all stages, and may hold
            options of others, which are left out of the result.

    Raises:
        KWTLError: for the first unknown option, naming the nearest, then as :func:`check_options`.
    """
    files = [config_file] if isinstance(config_file, (str, os.PathLike)) else list(config_file)
    defaults = ConfigParser.load_config_files(files)
    unknown = {str(name) for name in options if _root_of(str(name)) not in {*defaults, "_meta_"}}
    foreign: set[str] = set()
    if unknown and args_file:
        others = set().union(*map(ConfigParser.load_config_file, Path(files[0]).parent.glob("*.json")))
        foreign = unknown & set(ConfigParser.load_config_file(args_file)) & others
    for name in sorted(unknown - foreign):
        near = difflib.get_close_matches(name, sorted(defaults), n=1, cutoff=0.5)
        where = f"the options are described in {', '.join(map(str, files))} under _desc_."
        raise KWTLError(f"unknown option --{name}; {f'did you mean --{near[0]}?' if near else where}")
    return check_options({name: value for name, value in options.items() if name not in foreign}, defaults)


def command_line() -> dict[str, Any] | None:
    """Return the ``--name value`` pairs that this process was started with; None unless it is ``-m monai.bundle``.

    ``monai.bundle run`` makes a plain ``ConfigWorkflow``, which tells the parts of a config nothing of what was given
    on the command line; this is the one place that looks there instead.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if getattr(spec, "name", None) != "monai.bundle.__main__":
        return None
    return read_flags(sys.argv[1:])[0]


def read_flags(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the ``--name value`` pairs of a command line, each value as ``monai.bundle`` reads it, and what is left.

    Args:
        arguments: of a program. A name without a value means true.
    """
    given: dict[str, Any] = {}
    left: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        flag = re.fullmatch(r"--?([A-Za-z_][^=]*)(?:=(.*))?", word, re.DOTALL)  # -1 is a value
        if flag is None:
            left.append(word)
            continue
        name, value = flag.groups()
        if value is None:
            value = "True" if not words or re.match(r"--|-[A-Za-z]", words[0]) else words.pop(0)
        given[name.replace("-", "_")] = DefaultParseValue(value)
    return given, left


def check_command_line() -> None:
    """Check the options of this process as :func:`checked_options` does, where it is ``-m monai.bundle``.

    Raises:
        KWTLError: as :func:`checked_options`.
    """
    given = command_line() or {}
    args_file = given.get("args_file")
    if args_file is not None:
        given = {**ConfigParser.load_config_file(args_file), **given}
    if given.get("config_file"):
        options = {name: value for name, value in given.items() if name not in RUN_ARGUMENTS and name != "_desc_"}
        checked_options(options, given["config_file"], args_file)

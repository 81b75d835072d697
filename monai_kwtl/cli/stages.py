"""``kwtl select`` and the other stages: the bundle's configs by name, from any folder."""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_kwtl.bundle.foreign import harmless
from monai_kwtl.bundle.options import read_flags
from monai_kwtl.bundle.paths import find_bundle
from monai_kwtl.bundle.workflow import StageWorkflow
from monai_kwtl.errors import KWTLError

__all__ = ["help_text", "run_stage"]

ALWAYS = {
    "args_file": "a file of options, such as configs/tnbc.json of the project; those given here count instead",
    "bundle": "folder of the bundle; default: that of this installation",
}


def run_stage(stage: str, arguments: Sequence[str]) -> int:
    """Run a stage as ``python -m monai.bundle run`` does, and return the exit status.

    Args:
        stage: name of a config of the bundle.
        arguments: of the command line: the options of the config as ``--name value``, and a folder of images in front
            of them or behind, which stands for ``--dataset_dir``.

    Raises:
        KWTLError: for options that the stage does not have, naming the nearest, or that make no sense.
    """
    options, folders = read_flags(arguments)
    wants_help = options.keys() & {"h", "help"}
    config = find_bundle(None if wants_help else _text(options, "bundle")) / "configs" / f"{stage}.json"
    if wants_help:
        print(help_text(stage, config), end="")
        return 0
    if "config_file" in options:
        raise KWTLError(f"kwtl {stage} runs {config}; for another config: python -m monai.bundle run --config_file ...")
    args_file = _text(options, "args_file")
    if folders:
        options |= _folder(stage, config, folders, options)
    with warnings.catch_warnings():  # that a config can run code: this one is ours, or was named by the user
        warnings.filterwarnings("ignore", message="parsing config_file", category=UserWarning)
        logging.getLogger("monai.bundle.workflows").setLevel(logging.WARNING)  # as logging.conf, which is read later
        workflow = StageWorkflow(config, args_file, **options)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return 0


def _text(options: dict[str, Any], name: str) -> str | None:
    value = options.pop(name, None)
    if isinstance(value, bool):
        raise KWTLError(f"--{name} needs a path.")
    return None if value is None else str(value)


def _folder(stage: str, config: Path, folders: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return the option that a word without a name stands for."""
    if "dataset_dir" not in _described(config):
        raise KWTLError(f"{stage} takes options only, as --name value: what is {folders[0]!r} for?")
    if len(folders) > 1 or "dataset_dir" in options:
        also = folders[1] if len(folders) > 1 else options["dataset_dir"]
        raise KWTLError(f"{stage} takes one folder of images, got {folders[0]!r} and {also!r}.")
    return harmless(dataset_dir=Path(folders[0]))  # as it is written: not read as a number, never evaluated


def _described(config: Path) -> dict[str, str]:
    return json.loads(config.read_text(encoding="utf-8"))["_desc_"]


def help_text(stage: str, config: Path) -> str:
    """Return what a stage does and its options, as its config describes them."""
    content = json.loads(config.read_text(encoding="utf-8"))
    described = {name: text for name, text in content["_desc_"].items() if name != "stage"}
    parser = argparse.ArgumentParser(
        prog=f"kwtl {stage}", usage="%(prog)s [dataset_dir] [--name value ...]", description=content["_desc_"]["stage"]
    )
    if "dataset_dir" in described:
        parser.add_argument("folder", nargs="?", metavar="dataset_dir", help="the same as --dataset_dir")
    else:
        parser.usage = "%(prog)s [--name value ...]"
    for name, text in described.items():
        value = content.get(name)
        plain = value is not None and not isinstance(value, dict) and not str(value).startswith(("$", "@"))
        default = f" (default: {value if isinstance(value, str) else json.dumps(value)})" if plain else ""
        parser.add_argument(f"--{name}", metavar="VALUE", help=(text + default).replace("%", "%%"))
    for name, text in ALWAYS.items():
        parser.add_argument(f"--{name}", metavar="PATH", help=text)
    return parser.format_help()

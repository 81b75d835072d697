"""The command line ``kwtl``: the stages of the bundle, and all that goes with them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from monai_kwtl import __version__
from monai_kwtl.cli.threads import wait_asleep

__all__ = ["main"]

# name of each command: the module whose ``add_arguments(parser)`` and ``run(options)`` make it, and what it does
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("monai_kwtl.cli.doctor", "say whether this installation works, and what to fix"),
    "label": ("monai_kwtl.cli.label", "let a viewer label what helps most, through a MONAI Label server"),
    "data": ("monai_kwtl.cli.data", "say what is found in a folder of images, and what cannot be read"),
    "export": ("monai_kwtl.cli.export", "make a folder for an annotation tool out of a selection"),
    "import": ("monai_kwtl.cli.import_masks", "make masks out of what was annotated"),
    "status": ("monai_kwtl.cli.status", "say which rounds of labelling there were, and how good the models are"),
    "export-model": ("monai_kwtl.cli.export_model", "write a trained network for Fiji, ilastik and QuPath"),
}


# name of each stage, which is that of its config in the bundle, and what it does
STAGES: dict[str, str] = {
    "select": "rank the regions of unlabelled images by how much labelling them should help",
    "train": "tune the network on the masks of labelled regions or images",
    "inference": "write a mask for every image",
    "evaluate": "compare predictions with masks, at full resolution",
    "pretext": "tune the network on rough masks made from the images themselves",
    "meta_train": "train weights on labelled images of other cells, from which a few masks suffice",
}


class _Parser(argparse.ArgumentParser):
    """Parser that says what is wrong in one line and exits with status 1, as all of KWTL does."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"error: {message} (see {self.prog} --help)\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Make the parser; only the arguments of ``command`` are filled in, so that a command loads what it needs alone."""
    parser = _Parser(prog="kwtl", description="Knowing what to label in microscopy images.")
    parser.add_argument("--version", action="version", version=f"kwtl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, summary in STAGES.items():
        commands.add_parser(name, help=summary)
    for name, (module, summary) in COMMANDS.items():
        child = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == command:
            importlib.import_module(module).add_arguments(child)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors that the user can fix become one line."""
    wait_asleep()
    from monai_kwtl.bundle.failures import install_error_hook  # these import PyTorch
    from monai_kwtl.inferers.memory import keep_freed_memory

    install_error_hook()
    keep_freed_memory()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in STAGES:
        from monai_kwtl.cli.stages import run_stage

        return run_stage(given[0], given[1:])
    command = next((word for word in given if word in COMMANDS), None)
    options = build_parser(command).parse_args(given)
    return int(importlib.import_module(COMMANDS[options.command][0]).run(options) or 0)

"""``kwtl status``: the rounds of a project, and how good the models are."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.history import note_missed
from monai_kwtl.project.project_file import PROJECT_NAME, Round, read_project
from monai_kwtl.utils.text import format_table

HEADER = ("round", "selected", "regions", "images", "labelled", "foreground", "held-out IoU", "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder."""
    parser.add_argument("dataset_dir", nargs="?", default=".", help="folder of the images; default: the current folder")


def run(options: argparse.Namespace) -> int:
    """Print a row for each round, and what comes next."""
    folder = Path(options.dataset_dir)
    if not folder.is_dir():
        raise KWTLError(f"there is no folder {folder}: give that of the images")
    note_missed(folder)
    rounds = read_project(folder)
    if not rounds:
        print(f"no rounds yet in {folder}: there is no {PROJECT_NAME}, which select.json writes beside the images")
        return 0
    print("\n".join(format_table(HEADER, [_row(entry, folder) for entry in rounds])))
    print(_next(rounds[-1], folder))
    return 0


def _from_here(path: str, folder: Path) -> str:
    try:
        return os.path.relpath(folder.resolve() / path)
    except ValueError:  # another drive
        return path


def _row(entry: Round, folder: Path) -> tuple:
    selection, masks, model = entry["selection"], entry["masks"], entry["model"]
    if model is None:
        iou = "-"
    elif model["held_out_iou"] is None:
        iou = "none held out"
    else:
        iou = f"{model['held_out_iou']:.3f} on {model['held_out_images']} of {model['labelled_images']}"
    return (
        entry["round"],
        selection["time"][:10],
        selection["windows"],
        selection["images"],
        "-" if masks is None else f"{masks['regions']} of {selection['windows']}",
        "-" if masks is None else f"{100 * masks['foreground']:.1f} %",
        iou,
        "-" if model is None else _from_here(model["path"], folder),
    )


def _next(entry: Round, folder: Path) -> str:
    if entry["masks"] is None:
        selection = _from_here(entry["selection"]["path"], folder)
        return f"next: label the regions of {selection} (kwtl export, kwtl import)"
    masks = _from_here(entry["masks"]["path"], folder)
    if entry["model"] is None:
        return f"next: train.json with --labels {masks}"
    return f"next: select.json with --labels {masks}, or inference.json with the model"

"""``kwtl export``: the regions of a selection as a folder for an annotation tool."""

from __future__ import annotations

import argparse

from monai_kwtl.exchange.handout import TOOLS, export_regions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the selection, the tool and the folders."""
    parser.add_argument("selection", help="selection.json, or the folder that holds it")
    parser.add_argument("--to", required=True, help=f"the tool: {', '.join(TOOLS)}")
    parser.add_argument("--output", required=True, help="folder to make; it must not be there, or be empty")
    parser.add_argument("--dataset_dir", default=None, help="folder of the images; needed for --predictions")
    parser.add_argument(
        "--predictions", default=None, help="draw outlines beforehand: weights (.pt), or a folder of masks"
    )


def run(options: argparse.Namespace) -> int:
    """Write the folder and say what to do with it."""
    count = export_regions(
        options.selection, options.to, options.output, options.dataset_dir, predictions=options.predictions
    )
    print(f"{count} regions are in {options.output}")
    print(TOOLS[options.to].what_to_do)
    print(f"then: kwtl import {options.output} --from {options.to} --output my_masks")
    return 0

"""``kwtl import``: annotations back in, as one mask for each finished region."""

from __future__ import annotations

import argparse

from monai_kwtl.exchange.annotation import CONFLICTS
from monai_kwtl.exchange.handout import TOOLS, Imported, import_regions
from monai_kwtl.project.history import note_masks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folders, the tool and the rules."""
    parser.add_argument("work", help="folder of kwtl export, with the annotations in it")
    parser.add_argument("--from", required=True, dest="tool", help=f"the tool: {', '.join(TOOLS)}")
    parser.add_argument("--output", required=True, help="folder of the masks; those of other regions in it stay")
    parser.add_argument(
        "--conflict",
        default=CONFLICTS[0],
        help="where two annotations of a region differ: newest takes the one made last, union what is outlined in "
        "either, error stops; default: newest",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace masks that are there and differ; they are kept in replaced/"
    )
    parser.add_argument("--dataset_dir", default=None, help="folder of the images, to note the round in project.json")


def run(options: argparse.Namespace) -> int:
    """Write the masks and say which regions have one."""
    done = import_regions(options.work, options.tool, options.output, options.conflict, options.force)
    for note in done.notes:
        print(note)
    print(f"{len(done.finished)} of {len(done.regions)} regions are finished, {done.objects} objects in them")
    if done.unfinished:
        print(f"annotated, but not finished: rank {', '.join(map(str, done.unfinished))}")
    there = len(done.finished) - done.written
    print(
        f"{done.written} masks written to {options.output}, {done.replaced} of them replace others"
        + (f"; {there} were there already, and are the same" if there > 0 else "")
    )
    _go_on(done, options)
    return 0


def _go_on(done: Imported, options: argparse.Namespace) -> None:
    dataset = options.dataset_dir or done.dataset_dir
    if dataset is not None:
        note_masks(dataset, options.output)
    dataset = dataset or "my_images"
    print(f"next: kwtl train {dataset} --labels {options.output}")

#!/usr/bin/env python
"""Makes a data set of the paper out of its publisher's files: FOLDER/images, FOLDER/labels and FOLDER/SOURCE.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from monai_kwtl.benchmark.prepare.build import prepare
from monai_kwtl.benchmark.prepare.fetch import read_checksum
from monai_kwtl.benchmark.prepare.recipes import RECIPES
from monai_kwtl.errors import KWTLError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"error: {message} (see {self.prog} --help)\n")


def list_sources() -> str:
    """List the data sets, with the publishers' files in the order in which ``--source`` takes others."""
    lines = []
    for name, recipe in RECIPES.items():
        lines.append(f"{name}: {recipe.title}; {recipe.count} images\n  cite {recipe.citation}")
        for part in recipe.parts:
            known = f"{part.checksum.algorithm}:{part.checksum.digest}" if part.checksum else "no checksum known"
            lines.append(f"  {part.url}\n    {known}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: command line without the program's name; that of the process by default.

    Returns:
        Exit status: 0, or 1 where the data set cannot be made (one line on the standard error says why).
    """
    parser = _Parser(description=__doc__, epilog="Licences differ: read the publisher's page before you pass data on.")
    parser.add_argument("name", nargs="?", metavar="SET", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="where to write; new or empty")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="FILE_OR_URL",
        help="take this instead of the publisher's; once for each of its files, in the order that --list shows",
    )
    parser.add_argument(
        "--checksum",
        action="append",
        default=[],
        metavar="ALGORITHM:DIGITS",
        help="what each --source must hash to, such as sha256:...",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is in FOLDER already")
    parser.add_argument("--list", action="store_true", help="say where the data sets come from, and stop")
    options = parser.parse_args(arguments)
    if options.list:
        print(list_sources())
        return 0
    if options.folder is None:
        parser.error("give the data set and a folder")
    try:
        checksums = [read_checksum(text) for text in options.checksum]
        count = prepare(options.name, options.folder, options.source, checksums, options.overwrite, print)
    except KWTLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written.", file=sys.stderr)
        return 1
    print(f"{count} images with masks in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Makes a pool of simulated microscopy images with masks: FOLDER/images, FOLDER/labels and FOLDER/recipe.json."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from monai_kwtl.errors import KWTLError
from monai_kwtl.synthetic import DOMAINS, make_demo_pool, make_pool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: command line without the program's name; that of the process by default.

    Returns:
        Exit status: 0, or 1 where the pool cannot be made (one line on the standard error says why).
    """
    parser = _Parser(description=__doc__)
    parser.add_argument("folder", help="where to write; new, empty, or the same pool made before")
    parser.add_argument("--kind", help=f"one of {', '.join(DOMAINS)} (default: fluorescence)")
    parser.add_argument("--count", type=int, help="number of images (default: 16)")
    parser.add_argument("--height", type=int, help="rows of an image (default: 512)")
    parser.add_argument("--width", type=int, help="columns of an image (default: 640)")
    parser.add_argument("--seed", type=int, help="seed of specimen, microscope and images (default: 0)")
    parser.add_argument("--demo", action="store_true", help="the demo pool of the bundle; takes no other option")
    options = vars(parser.parse_args(arguments))
    folder, demo = options.pop("folder"), options.pop("demo")
    given = {name: value for name, value in options.items() if value is not None}
    if demo and given:
        parser.error(f"--demo takes no other option, but got {', '.join('--' + name for name in given)}")
    try:
        paths = make_demo_pool(folder) if demo else make_pool(folder, **given)
    except KWTLError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{len(paths)} images and masks in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

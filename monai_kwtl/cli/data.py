"""``kwtl data``: what is found in a folder of images, before anything is computed."""

from __future__ import annotations

import argparse
from collections import Counter

from monai_kwtl.data.loading import describe_label_values
from monai_kwtl.data.pool import load_pool
from monai_kwtl.utils.text import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder, and that of its masks."""
    parser.add_argument("dataset_dir", help="folder of images, or a data set with images/ (and labels/) below it")
    parser.add_argument("--labels", default=None, help="folder of masks where it is not dataset_dir/labels")


def run(options: argparse.Namespace) -> int:
    """Print what is there; files that cannot be read are named on stderr."""
    items = load_pool(options.dataset_dir, options.labels)
    sizes = Counter((item["height"], item["width"]) for item in items)
    files = {item["name"] for item in items}
    labelled = [item for item in items if item.get("label")]
    rows = [("images", f"{len(items)} in {len(files)} files" if len(files) < len(items) else str(len(items)))]
    rows += [("size", f"{height} high, {width} wide: {count}") for (height, width), count in sizes.most_common(5)]
    if len(sizes) > 5:
        rows.append(("size", f"and {len(sizes) - 5} others"))
    rows.append(("masks", f"{len(labelled)} of {len(items)}"))
    note = describe_label_values(labelled)
    print("\n".join(format_table(("", ""), rows)[1:]))
    if note:
        print(note)
    return 0

"""The support set: masks that an expert drew, part of them held out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_kwtl.data.loading import describe_label_values, read_image, read_label
from monai_kwtl.data.pool import labelled
from monai_kwtl.errors import KWTLError
from monai_kwtl.project.mask_index import has_record
from monai_kwtl.project.region_masks import labelled_regions, read_region_masks
from monai_kwtl.project.selection_file import read_selection
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import SUFFIXES, has_suffix, open_image

__all__ = ["Parts", "hold_out", "of_whole_images", "read_support"]

logger = logging.getLogger("monai_kwtl")

FEWEST_TO_HOLD_OUT = 5


class Parts(NamedTuple):
    """A support set in two parts."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def read_support(
    items: Sequence[Mapping[str, Any]],
    labels: str | os.PathLike | None = None,
    selection: str | os.PathLike | None = None,
    rescale: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Read labelled images into memory.

    Args:
        items: the pool; with whole-image masks those that have one count.
        labels: folder of the masks of regions, or of whole images, that a selection names.
        selection: path of ``selection.json``: pixels outside its regions are unknown. None: the regions that
            ``kwtl import`` noted in ``labels``, and without such a note masks of whole images.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.

    Returns:
        Dicts of ``name``, ``page``, ``sha256``, ``image``, ``label``, uint8 (1, H, W), and for regions ``known``,
        bool (1, H, W), and ``regions``.

    Raises:
        KWTLError: when there is no mask, none has foreground, or a mask does not fit its image.
    """
    if of_whole_images(labels, selection):
        chosen = labelled(items, labels if labels is not None else "the data set")
        entries = [{"item": item, "label": read_label(item), "known": None} for item in chosen]
        masks, regions = chosen, None
    else:
        if labels is None:
            raise KWTLError("--selection needs --labels: the folder with the masks of its regions.")
        document = None if selection is None else read_selection(selection)
        entries = read_region_masks(document, labels, items)
        regions = [region for region, _ in labelled_regions(document, labels) or []]
        paths = sorted(path for path in Path(labels).iterdir() if path.is_file() and has_suffix(path, SUFFIXES))
        masks = [{"label": str(path), "page": _first_page(path)} for path in paths if not path.name.startswith(".")]
    note = describe_label_values(masks)
    if note:
        logger.info(note)
    support = []
    for entry in entries:
        item = entry["item"]
        found = {key: item[key] for key in ("name", "page", "sha256")}
        found |= {"image": read_image(item, rescale), "label": np.asarray(entry["label"])}
        if entry["known"] is not None and regions is not None:
            mine = [r for r in regions if (r.image, r.page) == (item["name"], item["page"])]
            drawn = [r for r in mine if entry["known"][(..., *r.box.slices)].any()]
            found |= {"known": entry["known"], "regions": drawn}
        support.append(found)
    if not any(entry["label"].any() for entry in support):
        raise KWTLError("no mask has any foreground: outline some cells, or check that the masks were exported right.")
    known = sum(int(e["known"].sum()) if "known" in e else e["label"].size for e in support)
    foreground = sum(int(e["label"].sum()) for e in support)
    logger.info(
        f"support set: {len(support)} images, {known} labelled pixels, {100 * foreground / known:.1f} % foreground"
    )
    return support


def of_whole_images(labels: str | os.PathLike | None, selection: str | os.PathLike | None = None) -> bool:
    """Return True if masks are of whole images, to be matched by name, and not of regions."""
    return selection is None and not has_record(labels)


def _first_page(path: Path) -> int | None:
    """Return the number of a mask file's first page; None for a single image, or an unreadable file."""
    try:
        with open_image(path) as file:
            return file.sizes()[0][0]
    except UnreadableError:
        return None


def hold_out(support: Sequence[dict[str, Any]], fraction: float = 0.2, seed: int = 0) -> Parts:
    """Set part of the labelled images aside, at random, where there are at least five.

    Args:
        support: the labelled images.
        fraction: of the images, in [0, 0.5]; at least one is held out unless it is 0.
        seed: of the draw.

    Returns:
        Both parts, each with some foreground: without it training has nothing to find, and the held-out part would
        favour a network that finds nothing. All for training where fewer than two images have any.

    Raises:
        KWTLError: when the fraction is out of range.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 0.5:
        raise KWTLError(f"held_out must be between 0 and 0.5, got {fraction!r}.")
    order = [support[index] for index in np.random.default_rng(seed).permutation(len(support))]
    filled = [place for place, entry in enumerate(order) if entry["label"].any()]
    if not fraction or len(support) < FEWEST_TO_HOLD_OUT or len(filled) < 2:
        return Parts(list(support), [])
    # one with foreground to the front, from which the held-out ones are taken, and one to the end
    order = [order[filled[0]], *(e for p, e in enumerate(order) if p not in (filled[0], filled[-1])), order[filled[-1]]]
    aside = {id(entry) for entry in order[: max(1, round(fraction * len(support)))]}
    return Parts([e for e in support if id(e) not in aside], [e for e in support if id(e) in aside])

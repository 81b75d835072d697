"""Labels that come back: masks and outlines of any tool to one mask an image, and where it is known to be right."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from scipy import ndimage

from monai_kwtl.data.loading import read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.state.database import Lease
from monai_kwtl.label.state.outlines import OUTLINE_SUFFIXES, read_outlines
from monai_kwtl.project.region_masks import write_mask
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import read_pixels
from monai_kwtl.windows.box import Box, pixels_inside

__all__ = ["CONFIRM", "Imported", "MASK_SUFFIXES", "import_label", "mask_bytes", "read_masks", "whole", "write_masks"]

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# what must be confirmed to be taken for a mask, and what was found
CONFIRM = {
    "empty": "has no foreground, as if there were no cell",
    "full": "is foreground for the most part, as masks are that came out inverted: cells must not be 0",
    "picture": "holds many values that change from pixel to pixel, as pictures do: in masks the background is 0",
}
_MOST = 0.6  # fraction of foreground, most of it in one piece, beyond which a mask looks inverted


class Imported(NamedTuple):
    """A label ready to be kept.

    Args:
        masks: one a page, bool (H, W).
        known: for each page, where everything has been outlined.
        as_it_came: whether the uploaded file holds just these masks, and can be kept byte for byte.
    """

    masks: list[np.ndarray]
    known: list[list[Box]]
    as_it_came: bool


def whole(item: Mapping[str, Any]) -> Box:
    """Return all of an image."""
    return Box(0, 0, item["width"], item["height"])


def read_masks(path: Path, pages: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Read the masks of an image's pages, bool (H, W) each.

    Raises:
        KWTLError: when the file cannot be read or a mask is of another size than its image.
    """
    return [read_label({**page, "label": str(path)})[0] > 0 for page in pages]


def mask_bytes(masks: Sequence[np.ndarray], suffix: str) -> bytes:
    """Return the file of masks, 0 and 255: one as PNG, several as the pages of a TIFF, as the suffix says."""
    stream = io.BytesIO()
    if suffix.lower() in (".tif", ".tiff"):
        with tifffile.TiffWriter(stream) as writer:
            for mask in masks:
                writer.write(mask.astype(np.uint8) * 255, compression="zlib", photometric="minisblack", metadata=None)
    else:
        write_mask(stream, masks[0])
    return stream.getvalue()


def write_masks(path: Path, masks: Sequence[np.ndarray]) -> None:
    """Write masks as :func:`mask_bytes` has them."""
    path.write_bytes(mask_bytes(masks, path.suffix))


def asked_boxes(params: Mapping[str, Any], item: Mapping[str, Any]) -> list[Box] | None:
    """Return the regions that a label names by ``region``, ``regions`` or ``whole_image``; None where none does.

    Raises:
        KWTLError: for a region that is none, or leaves the image.
    """
    if params.get("whole_image") in (True, "true"):
        return [whole(item)]
    given = params.get("regions", [params["region"]] if "region" in params else None)
    if given is None:
        return None
    boxes = []
    for value in given if isinstance(given, list) else [given]:
        four = isinstance(value, (list, tuple)) and len(value) == 4
        if not four or not all(isinstance(part, int) and not isinstance(part, bool) for part in value):
            raise KWTLError(f"a region is [x, y, width, height] in whole pixels, got {str(value)[:60]}.")
        box = Box(*value)
        inside = (
            box.x >= 0 and box.y >= 0 and box.x + box.width <= item["width"] and box.y + box.height <= item["height"]
        )
        if box.width < 1 or box.height < 1 or not inside:
            raise KWTLError(
                f"the region {list(box)} is not inside {item['name']}, {item['width']} wide and {item['height']} high."
            )
        boxes.append(box)
    return boxes


def served_boxes(leases: Sequence[Lease], client: str | None) -> list[Box] | None:
    """Return the regions of an image that a client was given; None where it got the whole image last, or nothing.

    Raises:
        KWTLError: when several clients have regions of the image, and it is not said which one sends the label.
    """
    leases = [lease for lease in leases if client is None or lease.client == client]
    if not leases or leases[-1].mode == "image":
        return None
    regions = [lease for lease in leases if lease.mode != "image"]
    clients = sorted({lease.client for lease in regions})
    if len(clients) > 1:
        raise KWTLError(
            f"{' and '.join(clients)} have regions of this image: say whose label this is with client_id, "
            "or which region it is of with region."
        )
    return [lease.box for lease in regions]


def import_label(
    path: Path,
    pages: Sequence[Mapping[str, Any]],
    params: Mapping[str, Any],
    former: Sequence[np.ndarray] | None,
    known: Mapping[tuple[str, int | None], list[Box]],
    leases: Mapping[int | None, Sequence[Lease]],
) -> Imported:
    """Read a label and find out where it is known.

    In this order: the parameters name the regions (``region``, ``regions``, ``whole_image``); the outlines have some of
    class "KWTL region"; the client was given regions; regions were labelled before, and are being corrected; else all
    of the image. A label of named regions changes nothing outside them. That of regions that were given out also
    changes what lies outside, but takes nothing away that others labelled there.

    Args:
        path: of the file that came.
        pages: the items of the image.
        params: of the label: those above, ``page`` for a label of one page, ``client_id``, and ``confirm``, one or
            several of :data:`CONFIRM`, for a mask that looks like none and is one.
        former: masks that the image has so far; None without.
        known: of all images, from the sidecar.
        leases: those of each page.

    Raises:
        KWTLError: when the file cannot be used.
    """
    suffix = path.suffix.lower()
    if suffix not in (*MASK_SUFFIXES, *OUTLINE_SUFFIXES):
        allowed = ", ".join((*MASK_SUFFIXES, *OUTLINE_SUFFIXES))
        raise KWTLError(f"a label cannot be a {suffix or 'file without suffix'}: send one of {allowed}.")
    numbers = [page["page"] for page in pages]
    if params.get("page") is not None and params["page"] not in numbers:
        raise KWTLError(f"{pages[0]['name']} has no page {params['page']} (counted from 0).")
    named = [p for p in pages if params.get("page") in (None, p["page"])]
    client = str(params["client_id"]) if params.get("client_id") else None
    confirmed = _confirmed(params)
    masks, result_known, same = [], [], suffix in MASK_SUFFIXES and len(named) == len(pages)
    said: list[np.ndarray] = []  # what the label says of each page, where it says something
    for number, item in enumerate(pages):
        before = None if former is None else former[number]
        before_known = known.get((item["sha256"], item["page"]), [])
        if item not in named:
            masks.append(np.zeros((item["height"], item["width"]), dtype=bool) if before is None else before)
            result_known.append(before_known)
            continue
        asked = asked_boxes(params, item)
        if suffix in OUTLINE_SUFFIXES:
            outlines = read_outlines(path, item)
            mask, regions = outlines.mask, asked if asked is not None else outlines.regions
        else:
            mask, entire = _mask(path, item, asked, len(named) == 1, confirmed)
            same, regions = same and entire, asked
        inside = pixels_inside(mask.shape, [whole(item)] if regions is None else regions)
        said.append(mask[inside])
        if suffix in MASK_SUFFIXES and "full" not in confirmed and _looks_inverted(mask & inside, inside.sum()):
            raise _unconfirmed("full")
        if regions == [whole(item)]:
            masks.append(mask)
            result_known.append(regions)
            continue
        if regions is not None:
            merged = mask & inside if before is None else np.where(inside, mask, before)
        else:
            regions = served_boxes(leases.get(item["page"], ()), client) or []
            if not regions and (not before_known or _was_given_whole(leases.get(item["page"], ()), client)):
                regions, before_known = [whole(item)], []
            others = before is not None and regions and before_known
            merged = mask | (before & ~pixels_inside(mask.shape, regions)) if others else mask
        same = same and mask.shape == merged.shape and np.array_equal(mask, merged)
        masks.append(merged)
        result_known.append(list(dict.fromkeys([*before_known, *regions])))
    if "empty" not in confirmed and not any(part.any() for part in said):
        raise _unconfirmed("empty")
    return Imported(masks, result_known, same)


def _confirmed(params: Mapping[str, Any]) -> set[str]:
    given = params.get("confirm") or []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(one, str) and one in CONFIRM for one in given):
        raise KWTLError(f"confirm must be one or several of {', '.join(CONFIRM)}, got {str(given)[:60]}.")
    return set(given)


def _unconfirmed(what: str) -> KWTLError:
    return KWTLError(
        f'the label {CONFIRM[what]}. If it is right all the same, send it again with the parameter "confirm": "{what}" '
        f"(kwtl label put --confirm {what})."
    )


def _looks_inverted(mask: np.ndarray, of: int) -> bool:
    """Return True if foreground is more than 60 % of so many pixels, and nine tenths of it hold together."""
    foreground = np.count_nonzero(mask)
    if foreground <= _MOST * of:
        return False
    return bool(np.bincount(ndimage.label(mask)[0].ravel())[1:].max() >= 0.9 * foreground)


def _looks_like_a_picture(pixels: np.ndarray) -> bool:
    """Return True if an image has many values, and neighbours that are no background mostly differ.

    Label images and CVAT's coloured masks have many values, too, but one inside each cell.
    """
    values = pixels.reshape(*pixels.shape[:2], -1)
    pairs = (values[:, :-1] != 0).any(axis=2) & (values[:, 1:] != 0).any(axis=2)
    equal = (values[:, :-1] == values[:, 1:]).all(axis=2)
    if not pairs.any() or np.count_nonzero(equal & pairs) >= 0.5 * np.count_nonzero(pairs):
        return False
    return max(len(np.unique(values[..., channel])) for channel in range(values.shape[2])) > 16


def _was_given_whole(leases: Sequence[Lease], client: str | None) -> bool:
    mine = [lease for lease in leases if client is None or lease.client == client]
    return bool(mine) and mine[-1].mode == "image"


def _pixels(path: Path, page: int | None) -> np.ndarray:
    try:
        return read_pixels(path, page)
    except UnreadableError as error:
        raise KWTLError(f"the label cannot be read ({error}): save it as PNG or TIFF.") from error


def _mask(
    path: Path, item: Mapping[str, Any], asked: list[Box] | None, alone: bool, confirmed: set[str]
) -> tuple[np.ndarray, bool]:
    """Read an image's mask from a file of all of it, or of the one region that was named; and whether all of it."""
    page = item["page"]
    if alone and page is not None:  # a label of one page may be a file of one image
        try:
            read_pixels(path, page)
        except UnreadableError:
            page = None
    pixels = _pixels(path, page)
    size = pixels.shape[:2]
    entire = size == (item["height"], item["width"])
    if not entire and not (asked is not None and len(asked) == 1 and size == (asked[0].height, asked[0].width)):
        also = f", its region {asked[0].width} wide and {asked[0].height} high" if asked and len(asked) == 1 else ""
        raise KWTLError(
            f"the label is {size[1]} wide and {size[0]} high, {item['name']} {item['width']} wide and "
            f"{item['height']} high{also}: save it in the size of the picture it was made on."
        )
    if "picture" not in confirmed and _looks_like_a_picture(pixels):
        raise _unconfirmed("picture")
    mask = pixels != 0
    mask = mask.any(axis=2) if mask.ndim == 3 else mask
    if entire:
        return mask, True
    box, larger = asked[0], np.zeros((item["height"], item["width"]), dtype=bool)
    larger[box.slices] = mask
    return larger, False

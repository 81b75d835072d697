"""The report: one self-contained HTML page with every region, its prediction and its score map."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from monai_kwtl import __version__
from monai_kwtl.report.entries import (
    Detail,
    cost_tiles,
    detail_entry,
    image_entry,
    region_details,
    region_entries,
    score_range,
)
from monai_kwtl.report.overview import group_by_image
from monai_kwtl.report.pictures import data_uri, for_display, rank_colours, score_gradient, shrink
from monai_kwtl.report.rounds import rounds_picture
from monai_kwtl.report.words import NEXT_STEP, describe_settings, score_name
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.atomic import atomic_write

__all__ = ["write_report"]

MAX_DETAILS = 200  # regions shown enlarged
MAX_THUMBNAILS = 200
THUMBNAIL = 720  # longest side, pixels
PICTURE_BYTES = 9_000_000  # all JPEGs of a page together; base64 makes them a third longer
LARGEST_PICTURE = 160_000

Item = Mapping[str, Any]


def write_report(
    path: str | Path,
    *,
    regions: Sequence[Region],
    items: Sequence[Item],
    read: Callable[[Item], np.ndarray],
    predictions: Callable[[Item], np.ndarray | None] | None = None,
    maps: Callable[[Item], np.ndarray | None] | None = None,
    per_view: Callable[[Item], Mapping[str, np.ndarray] | None] | None = None,
    cost: Mapping[str, int],
    settings: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]] = (),
    title: str = "What to label first",
) -> Path:
    """Write the report of a selection as one HTML file that needs nothing else: no network, no other files.

    Regions and images beyond the first two hundred are listed in the table, but not shown; pictures are compressed so
    that the page stays below 20 MB. The bytes depend on the arguments only.

    Args:
        path: the HTML file; replaced at once when it is complete.
        regions: the selected regions.
        items: the pool; dicts with "name", "page", "height" and "width".
        read: gives the pixels of an item, uint8, shape (1, H, W). Called once for each image shown, as are the next.
        predictions: gives the foreground probability of an item, float in [0, 1], shape (H, W), or None.
        maps: gives the score of each pixel, float, shape (H, W), or None. All regions share one colour scale, from 0
            (or the smallest score, if negative) to the 99.5th percentile of the scores inside the regions.
        per_view: gives the score maps of the views by name, or None; shown as their means in each region.
        cost: {"windows", "images", "unique_pixels"}.
        settings: names and values of what the selection was made with.
        rounds: the curve of earlier rounds, dicts of "round", "regions", "pixels" and "iou" (or None), or none.
        title: the headline.

    Returns:
        The path.

    Raises:
        KWTLError: when a region's image is not in ``items``, or the file cannot be written.
    """
    groups = group_by_image(regions, items)
    ranked = sorted(regions, key=lambda region: region.rank)
    shown = {region.rank for region in ranked[:MAX_DETAILS]}
    thumbnails: list[np.ndarray] = []
    details: dict[int, Detail] = {}
    for index, (item, members) in enumerate(groups):
        wanted = [region for region in members if region.rank in shown]
        if index >= MAX_THUMBNAILS and not wanted:
            continue
        image = for_display(read(item))
        if index < MAX_THUMBNAILS:
            thumbnails.append(shrink(image, THUMBNAIL))
        details.update(region_details(item, wanted, image, predictions, maps, per_view))

    allowance = min(LARGEST_PICTURE, PICTURE_BYTES // max(1, 2 * len(details) + 2 * len(thumbnails)))
    low, high = score_range([detail.scores for detail in details.values() if detail.scores is not None])
    colours = {region.rank: colour for region, colour in zip(ranked, rank_colours(len(ranked)), strict=True)}
    images = [image_entry(*group, colours) for group in groups]
    for entry, pixels in zip(images, thumbnails, strict=False):
        entry["picture"] = data_uri(pixels, 2 * allowance)
    entries = region_entries(ranked, groups, colours)
    for entry in entries:
        if entry["rank"] in details:
            entry |= detail_entry(details[entry["rank"]], allowance, low, high)

    page = _template().render(
        title=title,
        next_step=NEXT_STEP,
        version=__version__,
        cost=cost_tiles(cost, items),
        settings=describe_settings(settings),
        score_name=score_name(settings.get("measure")),
        images=images,
        regions=entries,
        shown=len(details),
        rank_gradient=", ".join(rank_colours(12)),
        score_gradient=", ".join(score_gradient()),
        low=f"{low:.3g}",
        high=f"{high:.3g}",
        rounds=rounds_picture(rounds),
        has_outlines=any(detail.outline is not None for detail in details.values()),
        has_scores=any(detail.scores is not None for detail in details.values()),
        **_assets(),
    )
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8", errors="replace", newline="\n")
    return Path(path)


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html"))


def _asset(name: str) -> str:
    return files("monai_kwtl.report").joinpath(name).read_text(encoding="utf-8")


def _assets() -> dict[str, Markup]:
    """Return style and script, ready to be put inline; only the script with this hash may run on the page."""
    style, script = _asset("report.css"), _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return {"style": Markup(style), "script": Markup(script), "script_hash": Markup(f"sha256-{digest}")}

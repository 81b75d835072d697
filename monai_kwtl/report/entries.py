"""Entries of the report on images and regions: pictures, outlines, boxes and numbers, ready for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.report.overview import image_label
from monai_kwtl.report.pictures import colourise, data_uri, outline_path, place_labels, shrink, text_colour
from monai_kwtl.selection.regions import Region

__all__ = ["Detail", "cost_tiles", "detail_entry", "image_entry", "region_details", "region_entries", "score_range"]

DETAIL = 512  # longest side of the picture of a region, pixels

Item = Mapping[str, Any]


@dataclass
class Detail:
    """Details of one region: picture, outline (SVG path), score map (float, shrunk), mean score of each view."""

    picture: np.ndarray
    outline: str | None
    scores: np.ndarray | None
    views: dict[str, float]


def region_details(
    item: Item, members: list[Region], image: np.ndarray, predictions, maps, per_view
) -> dict[int, Detail]:
    """Describe the regions of one image for the page; the callables are asked once.

    Args:
        item: the image.
        members: its regions that are shown; none: nothing is asked.
        image: as displayed, uint8, shape (H, W).
        predictions: as in :func:`~monai_kwtl.report.page.write_report`, like the next two.
        maps: of scores.
        per_view: of scores.

    Returns:
        {rank: detail}.

    Raises:
        ValueError: when a map has another shape than the image.
    """
    if not members:
        return {}
    probability = predictions(item) if predictions else None
    scores = maps(item) if maps else None
    views = (per_view(item) if per_view else None) or {}
    for name, values in {"prediction": probability, "score map": scores, **views}.items():
        if values is not None and np.shape(values) != image.shape:
            raise ValueError(f"{name} of {item['name']!r} has shape {np.shape(values)}, its image {image.shape}")
    result = {}
    for region in members:
        inside = region.box.slices
        result[region.rank] = Detail(
            np.array(shrink(image[inside], DETAIL)),  # copies, so that the whole image can go
            None if probability is None else outline_path(shrink(np.asarray(probability)[inside], DETAIL)),
            None if scores is None else np.array(shrink(np.asarray(scores)[inside], DETAIL)),
            {name: float(np.mean(np.asarray(values)[inside], dtype=np.float64)) for name, values in views.items()},
        )
    return result


def score_range(maps: list[np.ndarray]) -> tuple[float, float]:
    """Return the range of colours for all score maps of a page, from 0 (or the smallest value, if negative).

    It ends at the 99.5th percentile, so that a few bright pixels do not darken the rest.

    Args:
        maps: float, any shapes (H, W); values that are not finite do not count.

    Returns:
        (low, high), low < high.
    """
    if not maps:
        return 0.0, 1.0
    values = np.concatenate([scores[::2, ::2].ravel() for scores in maps])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = min(0.0, float(values.min())), float(np.percentile(values, 99.5))
    return (low, high) if high > low else (low, low + 1.0)


def cost_tiles(cost: Mapping[str, int], items: Sequence[Item]) -> list[tuple[str, str, str]]:
    """Return the rows of the cost table: a number, its unit, what it means."""
    pool = sum(item["height"] * item["width"] for item in items)
    pixels = cost["unique_pixels"]
    return [
        (f"{cost['windows']:,}", "region" if cost["windows"] == 1 else "regions", "boxes to outline"),
        (f"{cost['images']:,}", f"of {len(items):,} images", "have at least one box"),
        (f"{pixels / 1e6:.3g}", "megapixels", f"{pixels:,} pixels, overlaps counted once"),
        (f"{100 * pixels / max(pool, 1):.3g} %", "of the pool", "share of all pixels of all images"),
    ]


def image_entry(item: Item, members: list[Region], colours: Mapping[int, str]) -> dict[str, Any]:
    """Describe a touched image: its boxes and, where they fit, their numbers, in image pixels."""
    unit = max(item["width"], item["height"]) / 300  # about one pixel of the page
    labels = [((7 + 7.5 * len(str(region.rank))) * unit, 15 * unit) for region in members]
    boxes = [region.box for region in members]
    places = place_labels(boxes, (item["width"], item["height"]), labels)
    drawn = []
    for region, place, (width, height) in zip(members, places, labels, strict=True):
        x, y = place or (region.x, region.y)
        colour = colours[region.rank]
        tag = {"x": x, "y": y, "width": width, "height": height, "text": text_colour(colour), "fits": place is not None}
        drawn.append({"region": region, "colour": colour, "tag": tag})
    ranks = ", ".join(str(region.rank) for region in members[:12]) + (", ..." if len(members) > 12 else "")
    return {
        "label": image_label(item),
        "width": item["width"],
        "height": item["height"],
        "font": 12 * unit,
        "boxes": drawn[::-1],  # rank 1 on top
        "count": len(members),
        "ranks": ranks,
        "picture": None,
    }


def region_entries(ranked: list[Region], groups: list, colours: Mapping[int, str]) -> list[dict[str, Any]]:
    """Describe every region for the ranked list, pictures still missing.

    Args:
        ranked: the regions by rising rank.
        groups: the touched images with their regions, in the order of the page.
        colours: {rank: colour}.

    Returns:
        One entry for each region, in the same order.
    """
    image_of = {region.rank: index for index, (_, members) in enumerate(groups) for region in members}
    highest = max((region.score for region in ranked), default=0.0)
    return [
        {
            "rank": region.rank,
            "image": image_of[region.rank],
            "label": image_label(groups[image_of[region.rank]][0]),
            "box": region,
            "score": f"{region.score:#.4g}",
            "score_value": repr(float(region.score)),
            "share": max(0.0, min(1.0, region.score / highest)) if highest > 0 else 0.0,
            "colour": colours[region.rank],
            "text": text_colour(colours[region.rank]),
            "file": file,
            "link": "regions/" + quote(file, errors="replace"),
            "picture": None,
        }
        for region, file in zip(ranked, region_file_names(ranked), strict=True)
    ]


def detail_entry(detail: Detail, allowance: int, low: float, high: float) -> dict[str, Any]:
    """Return pictures and numbers of an enlarged region, each picture of at most ``allowance`` bytes before base64."""
    height, width = detail.picture.shape[:2]
    total = sum(max(value, 0.0) for value in detail.views.values()) or 1.0
    return {
        "picture": data_uri(detail.picture, allowance),
        "picture_width": width,
        "picture_height": height,
        "outline": detail.outline,
        "map": None if detail.scores is None else data_uri(colourise(detail.scores, low, high), allowance),
        "views": [(name, f"{value:#.3g}", max(value, 0.0) / total) for name, value in detail.views.items()],
    }

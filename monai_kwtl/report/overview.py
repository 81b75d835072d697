"""One picture of the touched images with their ranked boxes: what to label, at a glance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from monai_kwtl.errors import KWTLError
from monai_kwtl.report.pictures import PNG_EFFORT, for_display, place_labels, rank_colours, shrink, text_colour
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.atomic import atomic_write

__all__ = ["group_by_image", "image_label", "overview_picture"]

WIDTH = 1680
MARGIN = 28
GAP = 20
INK, FAINT, PAPER = "#1b1f24", "#5b636d", "#ffffff"
SHADE = 0.42  # brightness of what is not selected
COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3, 7: 4, 8: 4, 9: 3}


def group_by_image(
    regions: Iterable[Region], items: Iterable[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], list[Region]]]:
    """Group regions by image: the touched images, best rank first, each with its regions by rising rank.

    Args:
        regions: the selected regions.
        items: the pool; dicts with "name" and "page".

    Returns:
        Pairs of an item and its regions.

    Raises:
        KWTLError: when a region's image is not in ``items``.
    """
    by_key = {(item["name"], item.get("page")): item for item in items}
    groups: dict[tuple, list[Region]] = {}
    for region in sorted(regions, key=lambda region: region.rank):
        if (region.image, region.page) not in by_key:
            raise KWTLError(f"the image {region.image!r} of rank {region.rank} is not in the pool: score it again")
        groups.setdefault((region.image, region.page), []).append(region)
    return [(by_key[key], members) for key, members in groups.items()]


def overview_picture(
    path: str | Path,
    *,
    regions: Sequence[Region],
    items: Sequence[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], np.ndarray],
    cost: Mapping[str, int] | None = None,
    title: str = "What to label first",
    max_images: int = 12,
) -> Path:
    """Draw the touched images with their boxes, coloured and numbered by rank, as one PNG.

    What no box covers is darkened. Boxes are drawn from the last rank to the first; a number is left out where it
    would cover another one.

    Args:
        path: the PNG to write; replaced at once when it is complete.
        regions: the selected regions.
        items: the pool; dicts with "name", "page", "height" and "width".
        read: gives the pixels of an item, uint8, shape (1, H, W).
        cost: {"unique_pixels": ...}; adds the area to the facts below the headline.
        title: the headline.
        max_images: how many images are drawn, best ranks first; the rest is counted below.

    Returns:
        The path.
    """
    groups = group_by_image(regions, items)
    shown = groups[:max_images]
    colours = dict(zip(sorted(region.rank for region in regions), rank_colours(len(regions)), strict=True))
    columns = COLUMNS.get(len(shown), 4)
    cell = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    cell = min(cell, 900)
    tiles = [_tile(read(item), members, colours, cell, title=image_label(item)) for item, members in shown]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]

    facts = f"{_count(len(regions), 'region')}  \u00b7  {len(groups)} of {_count(len(items), 'image')}"
    if cost is not None:
        fraction = cost["unique_pixels"] / sum(item["height"] * item["width"] for item in items)
        facts += f"  \u00b7  {cost['unique_pixels'] / 1e6:.3g} megapixels, {100 * fraction:.3g} % of all"
    head, foot = 104, 48 if len(groups) > len(shown) else 0
    heights = [max(tile.height for tile in row) for row in rows]
    width = 2 * MARGIN + max(columns * cell + (columns - 1) * GAP, 700)
    canvas = Image.new("RGB", (width, head + sum(heights) + GAP * len(rows) + foot + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, 22), title, font=_font(34), fill=INK)
    draw.text((MARGIN, 64), facts, font=_font(20), fill=FAINT)
    _rank_legend(draw, width - MARGIN, 66, len(regions))
    top = head
    for row, height in zip(rows, heights, strict=True):
        for index, tile in enumerate(row):
            canvas.paste(tile, (MARGIN + index * (cell + GAP), top))
        top += height + GAP
    if foot:
        more = f"and {_count(len(groups) - len(shown), 'more image')}"
        draw.text((MARGIN, top), more, font=_font(22), fill=FAINT)
    with atomic_write(path) as unfinished:
        canvas.save(unfinished, "PNG", compress_level=PNG_EFFORT)
    return Path(path)


def image_label(item: Mapping[str, Any]) -> str:
    """Name an image for a reader: its file, and its page, counted from 1, in a file of several."""
    name = item["name"].removeprefix("images/")
    return name if item.get("page") is None else f"{name}, page {item['page'] + 1}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _tile(image: np.ndarray, members: list[Region], colours: Mapping[int, str], cell: int, title: str) -> Image.Image:
    """Draw one image with its boxes and a caption, ``cell`` pixels wide at most."""
    full_height, full_width = image.shape[1:]
    pixels = shrink(for_display(image), cell)
    if max(pixels.shape) < cell:  # small images are enlarged
        scale = cell / max(pixels.shape)
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    height, width = pixels.shape
    scale_x, scale_y = width / full_width, height / full_height
    boxes = [(r.x * scale_x, r.y * scale_y, r.width * scale_x, r.height * scale_y) for r in members]

    inside = np.zeros(pixels.shape, dtype=bool)
    for x, y, w, h in boxes:
        inside[round(y) : round(y + h), round(x) : round(x + w)] = True
    shaded = np.where(inside, pixels, pixels * SHADE).astype(np.uint8)
    picture = Image.fromarray(shaded).convert("RGB")
    draw = ImageDraw.Draw(picture)
    line = 1 if len(boxes) > 12 else 2
    for region, (x, y, w, h) in reversed(list(zip(members, boxes, strict=True))):
        corners = [round(x), round(y), max(round(x + w), round(x) + 1) - 1, max(round(y + h), round(y) + 1) - 1]
        draw.rectangle(corners, outline=colours[region.rank], width=line)
    _numbers(draw, members, boxes, (width, height), colours, _font(18 if cell > 450 else 15))

    tile = Image.new("RGB", (cell, height + 34), PAPER)
    tile.paste(picture, (0, 0))
    _caption(ImageDraw.Draw(tile), height + 7, cell, title, _count(len(members), "region"))
    return tile


def _numbers(
    draw: ImageDraw.ImageDraw,
    members: list[Region],
    boxes: list[tuple[float, float, float, float]],
    size: tuple[int, int],
    colours: Mapping[int, str],
    font: ImageFont.FreeTypeFont,
) -> None:
    labels = [(font.getlength(str(region.rank)) + 9, font.size + 5) for region in members]
    places = place_labels(boxes, size, labels)
    for region, place, (w, h) in zip(members, places, labels, strict=True):
        if place is not None:
            colour = colours[region.rank]
            x, y = round(place[0]), round(place[1])
            draw.rectangle([x, y, x + round(w) - 1, y + round(h) - 1], fill=colour)
            draw.text((x + w / 2, y + h / 2), str(region.rank), font=font, fill=text_colour(colour), anchor="mm")


def _caption(draw: ImageDraw.ImageDraw, top: int, width: int, name: str, facts: str) -> None:
    font = _font(17)
    room = width - font.getlength(facts) - 16
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    shown = name
    while len(shown) > 4 and font.getlength(shown) > room:  # keep the end: that is where image numbers are
        name = name[1:]
        shown = f"...{name}"
    draw.text((0, top), shown, font=font, fill=INK)
    draw.text((width, top), facts, font=font, fill=FAINT, anchor="ra")


def _rank_legend(draw: ImageDraw.ImageDraw, right: int, top: int, count: int) -> None:
    font = _font(18)
    bar, last = 180, str(count)
    end = right - font.getlength(last) - 8
    for step, colour in enumerate(rank_colours(bar)):
        draw.line([end - bar + step, top + 2, end - bar + step, top + 18], fill=colour)
    draw.text((right, top), last, font=font, fill=FAINT, anchor="ra")
    draw.text((end - bar - 8, top), "rank 1", font=font, fill=FAINT, anchor="ra")

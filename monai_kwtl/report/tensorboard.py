"""TensorBoard log of a selection: scores, ranked regions with prediction and disagreement, and the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from monai_kwtl.report.console import image_title
from monai_kwtl.report.pictures import colourise, for_display
from monai_kwtl.selection.regions import Cost, Region
from monai_kwtl.windows.box import Box

__all__ = ["draw_selection", "panel"]

Read = Callable[[Mapping[str, Any]], "np.ndarray | None"]
GAP = 4  # pixels between the pictures of a panel
LARGEST_SIDE = 160  # pixels of a picture; of what is larger every second pixel is drawn, or every third...


def panel(image: np.ndarray, probability: np.ndarray | None, maps: Sequence[np.ndarray], top: float) -> np.ndarray:
    """Draw a region side by side: image, image with the predicted outline, score maps.

    Args:
        image: uint8 (h, w).
        probability: of foreground, (h, w); None leaves the outline away.
        maps: score maps, each (h, w).
        top: score that is drawn brightest.

    Returns:
        uint8 RGB, shape (h, about (2 + len(maps)) * w, 3).
    """
    height, width = image.shape
    drawn = 1 + (probability is not None) + len(maps)
    picture = np.full((height, drawn * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    places = iter([picture[:, left : left + width] for left in range(0, picture.shape[1], width + GAP)])
    next(places)[:] = image[..., None]
    if probability is not None:
        outlined = next(places)
        outlined[:] = image[..., None]
        outlined[_inner_edge(probability >= 0.5)] = (255, 200, 0)
    for place, values in zip(places, maps, strict=True):
        place[:] = colourise(values, 0.0, max(top, 1e-12))
    return picture


def _inner_edge(mask: np.ndarray) -> np.ndarray:
    """Return a mask's pixels that touch one outside it, above, below or beside; beyond the image is not outside."""
    edge = np.zeros_like(mask)
    edge[1:] |= ~mask[:-1]
    edge[:-1] |= ~mask[1:]
    edge[:, 1:] |= ~mask[:, :-1]
    edge[:, :-1] |= ~mask[:, 1:]
    return edge & mask


def draw_selection(
    writer: SummaryWriter,
    *,
    regions: Sequence[Region],
    items: Sequence[Mapping[str, Any]],
    window_scores: np.ndarray,
    cost: Cost,
    read: Read,
    probability: Read,
    score: Read,
    per_view: Callable[[np.ndarray, Box], Mapping[str, np.ndarray]] | None = None,
    most: int = 32,
    most_per_view: int = 8,
) -> None:
    """Write a selection to TensorBoard.

    Tags: ``score/all windows`` and ``score/selected windows`` (histograms), ``cost/...`` (scalars),
    ``regions/<rank> <image> x=.. y=..`` (image, predicted outline, score map) and
    ``views/<rank> ...: image, then <view>, ...`` (what each view adds to the score). Regions of more than
    ``LARGEST_SIDE`` pixels a side are drawn smaller; the report has them whole.

    Args:
        writer: is not closed.
        regions: the selection.
        items: the pool.
        window_scores: of every window of the pool, shape (N,).
        cost: of the selection.
        read: from an item to its pixels, uint8 (1, H, W).
        probability: from an item to its foreground probability (H, W), or None.
        score: from an item to its score map (H, W), or None.
        per_view: from an image, uint8 (1, H, W), and the box of a region to the score map of each view there, as
            :class:`ViewMaps` does; None draws none.
        most: regions drawn, best first.
        most_per_view: regions whose views are drawn.
    """
    writer.add_histogram("score/all windows", window_scores)
    writer.add_histogram("score/selected windows", np.array([region.score for region in regions]))
    for name, value in cost.as_dict().items():
        writer.add_scalar(f"cost/{name.replace('_', ' ')}", value)
    by_name = {(item["name"], item["page"]): item for item in items}
    digits = len(str(len(regions)))
    drawn = [r for r in regions if r.rank <= most]
    for key in dict.fromkeys((r.image, r.page) for r in drawn):
        item = by_name[key]
        image, probable, scored = read(item), probability(item), score(item)
        display = for_display(image)
        top = 0.0 if scored is None else float(np.quantile(scored, 0.999))
        for r in (r for r in drawn if (r.image, r.page) == key):
            where, every = r.box.slices, -(-max(r.width, r.height) // LARGEST_SIDE)
            thin = (slice(None, None, every), slice(None, None, every))
            tag = f"{r.rank:0{digits}d} {image_title(r.image, r.page)} x={r.x} y={r.y}"
            shown = display[where][thin]
            maps = [] if scored is None else [scored[where][thin]]
            picture = panel(shown, None if probable is None else probable[where][thin], maps, top)
            writer.add_image(f"regions/{tag}", picture, dataformats="HWC")
            if per_view is not None and r.rank <= most_per_view:
                views = per_view(image, r.box)
                if not views:
                    continue
                highest = max(float(np.quantile(v, 0.999)) for v in views.values())
                picture = panel(shown, None, [view[thin] for view in views.values()], highest)
                writer.add_image(f"views/{tag}: image, {', '.join(views)}", picture, dataformats="HWC")
    writer.flush()

"""Score maps tile by tile: what is scored may be larger than the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from monai_kwtl.inferers.tiled import Tile, TiledInferer, stride_of
from monai_kwtl.readers.slides import ImageInMemory, Slide, grey_range
from monai_kwtl.scoring.measures import consistency_map, entropy_map
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.transforms.functional import normalize

__all__ = [
    "PredictedTile",
    "ScoredTile",
    "can_be_tiled",
    "latent_and_logits",
    "padded_tiles",
    "predicted_tiles",
    "scored_tiles",
]

Describe = Callable[[Tile, torch.Tensor, torch.Tensor], None]


class PredictedTile(NamedTuple):
    """A rectangle of an image and what the network predicts there and around.

    What is computed of the logits is best cut to ``within`` in the end: on all of a tile, whose size is a multiple of
    what a vector instruction takes, it is rounded alike wherever the tiles lie.
    """

    rows: slice
    columns: slice
    within: tuple[slice, slice]
    logits: torch.Tensor
    view_logits: list[torch.Tensor]


class ScoredTile(NamedTuple):
    """A rectangle of an image, its score map and foreground probability, float32 arrays (rows, columns).

    ``at_level`` has its score map at each further contrast; None at one that no window there counts on.
    """

    rows: slice
    columns: slice
    score: np.ndarray
    probability: np.ndarray
    at_level: list[np.ndarray | None]


def can_be_tiled(scorer: ScoreMapInferer) -> bool:
    """Return True if a pixel's score depends on its surroundings only, once the image's range of grey values is known.

    Not so with affine views, with the weight of Eq. 4, and with MC-dropout, whose noise is drawn for a whole image.
    """
    views = scorer.views if scorer.measure != "entropy" else ()
    return (
        type(scorer.inferer) is TiledInferer
        and scorer.measure != "mc_dropout"
        and not scorer.weighted
        and all(hasattr(view, "reach") for view in views)
    )


class _PlacedTile(NamedTuple):
    """A tile of a padded image in the image itself: what is read, what of that is seen, its padding, what is kept."""

    tile: Tile
    read: tuple[slice, slice]
    inside: tuple[slice, slice]
    pads: list[int]
    mode: str
    kept: tuple[slice, slice]
    within: tuple[slice, slice]


def _placed_tiles(
    image: ImageInMemory | Slide, network: nn.Module, inferer: TiledInferer, margin: int
) -> Iterator[_PlacedTile]:
    stride = stride_of(network, inferer.stride)
    sizes = (image.height, image.width)
    missing = [-size % stride for size in sizes]
    short = any(gap - gap // 2 >= size for gap, size in zip(missing, sizes, strict=True))
    for tile in inferer.tiles(*(size + gap for size, gap in zip(sizes, missing, strict=True)), network, image.device):
        kept, read, inside, pads, within = [], [], [], [], []
        for axis, (size, gap) in enumerate(zip(sizes, missing, strict=True)):
            before = gap // 2
            start, stop = tile.seen[axis].start - before, tile.seen[axis].stop - before
            first, last = max(start, 0), min(stop, size)
            far = max(first - margin, 0), min(last + margin, size)
            read.append(slice(*far))
            inside.append(slice(first - far[0], last - far[0]))
            pads = [first - start, stop - last, *pads]  # last axis first, as torch.nn.functional.pad wants it
            kept.append(slice(max(tile.kept[axis].start - before, 0), min(tile.kept[axis].stop - before, size)))
            within.append(slice(kept[axis].start - start, kept[axis].stop - start))
        mode = "replicate" if short else "reflect"
        yield _PlacedTile(tile, tuple(read), tuple(inside), pads, mode, tuple(kept), tuple(within))


def _padded(seen: torch.Tensor, placed: _PlacedTile) -> torch.Tensor:
    part = normalize(seen[(..., *placed.inside)])
    return F.pad(part, placed.pads, mode=placed.mode) if any(placed.pads) else part


def padded_tiles(
    image: ImageInMemory | Slide, network: nn.Module, inferer: TiledInferer
) -> Iterator[tuple[Tile, torch.Tensor]]:
    """Cut an image into network inputs.

    Args:
        image: to be read a tile at a time.
        network: whose stride the image is padded to.
        inferer: says how large a tile is.

    Yields:
        Tiles of the padded image, row by row, and what the network sees of each, shape (1, 1, h, w), in [-1, 1].
    """
    for placed in _placed_tiles(image, network, inferer, 0):
        yield placed.tile, _padded(image.read(*placed.read), placed)


def latent_and_logits(
    part: torch.Tensor, network: nn.Module, inferer: TiledInferer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a network with a latent once, in the arithmetic of an inferer.

    Args:
        part: network input, shape (N, C, h, w), sides multiples of the network's stride.
        network: in evaluation mode, with ``features``, ``decoder`` and ``head``, as FCRN.
        inferer: says which arithmetic.

    Returns:
        The latent, and the logits that ``inferer.forward`` gives, to the bit.
    """
    with torch.autocast(part.device.type, dtype=torch.bfloat16, enabled=inferer.uses_amp(part.device)):
        latent = network.features(part)
        return latent, network.head(network.decoder(latent))


def predicted_tiles(
    image: ImageInMemory | Slide,
    network: nn.Module,
    inferer: TiledInferer,
    views: Sequence[Callable],
    enabled: Callable[[int, slice, slice], bool] = lambda view, rows, columns: True,
    describe: Describe | None = None,
) -> Iterator[PredictedTile]:
    """Predict an image and its views, one tile after the other.

    The views are made of each tile with its margin, and so are those of the whole image; tiles, padding and arithmetic
    are those of ``inferer``, and so are the logits.

    Args:
        image: to be read a tile at a time.
        network: from network input to logits, in evaluation mode.
        inferer: says how large a tile is.
        views: with ``reach``, the pixels around one that decide what it becomes.
        enabled: whether a view, by its number, is to be predicted in a tile, by its rows and columns.
        describe: takes each tile of the padded image, and latent and logits of what the network sees of it, where it
            has a latent; None: nobody wants them.

    Yields:
        Tiles whose rectangles together cover the image, row by row, with logits, float32, of the image and of each
        view, of which the rectangle is ``[..., *within]``; empty, (0,), of a view that was not wanted.
    """
    margin = max((view.reach for view in views), default=0)
    for placed in _placed_tiles(image, network, inferer, margin):
        grey = image.read(*placed.read)

        def predict(seen: torch.Tensor, placed=placed) -> torch.Tensor:
            return inferer.forward(_padded(seen, placed), network).float()

        if describe is None:
            logits = [predict(grey)]
        else:
            latent, of_image = latent_and_logits(_padded(grey, placed), network, inferer)
            describe(placed.tile, latent, of_image)
            logits = [of_image.float()]
        for number, view in enumerate(views):
            if enabled(number, *placed.kept):
                logits.append(predict(torch.as_tensor(view(grey[:, 0]))[:, None]))
            else:
                logits.append(logits[0].new_empty(0))
        yield PredictedTile(*placed.kept, placed.within, logits[0], logits[1:])


def scored_tiles(
    scorer: ScoreMapInferer,
    image: ImageInMemory | Slide,
    network: nn.Module,
    pairs: Sequence[tuple[float, float]] = (),
    needed: Callable[[int, slice, slice], bool] | None = None,
    describe: Describe | None = None,
) -> Iterator[ScoredTile]:
    """Score an image one tile after the other.

    Args:
        scorer: one that :func:`can_be_tiled`.
        image: to be read a tile at a time.
        network: from network input to logits, in evaluation mode.
        pairs: ranges of grey values that auto-contrast shall stretch as well, besides that of the image.
        needed: whether one of them, by its number, is needed in a rectangle; None: all are everywhere.
        describe: as of :func:`predicted_tiles`.

    Yields:
        Tiles that together cover the image, row by row.
    """
    views: list[Callable] = [] if scorer.measure == "entropy" else list(scorer.views)
    stretched = [number for number, view in enumerate(views) if hasattr(view, "within")]
    limits = grey_range(image) if stretched else None
    views = [view.within(*limits) if number in stretched else view for number, view in enumerate(views)]
    own = len(views)
    further = [pair for pair in pairs if pair != limits]  # the image's own range is there already
    views += [views[number].within(*pair) for pair in further for number in stretched]
    number_of = [pairs.index(pair) for pair in further]

    def enabled(view: int, rows: slice, columns: slice) -> bool:
        return view < own or needed is None or needed(number_of[(view - own) // len(stretched)], rows, columns)

    def score(logits: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
        return consistency_map(logits, seen, measure=scorer.measure) if seen else entropy_map(logits)

    for tile in predicted_tiles(image, network, scorer.inferer, views, enabled, describe):
        cut = lambda values, tile=tile: values[(0, 0, *tile.within)].cpu().numpy()  # noqa: E731
        seen = tile.view_logits
        whole = cut(score(tile.logits, seen[:own]))
        others = [seen[number] for number in range(own) if number not in stretched]
        at_level: list[np.ndarray | None] = []
        for pair in pairs:
            if pair == limits:
                at_level.append(whole)
                continue
            first = own + len(stretched) * further.index(pair)
            mine = seen[first : first + len(stretched)]
            at_level.append(cut(score(tile.logits, others + mine)) if mine[0].numel() else None)
        yield ScoredTile(tile.rows, tile.columns, whole, cut(torch.sigmoid(tile.logits)), at_level)

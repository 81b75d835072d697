"""Score, select and segment in Python, each once: what the bundle, the label server, exports and benchmarks share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import ScaleIntensityRange
from torch import nn

from monai_kwtl.bundle.presets import choose_strategy
from monai_kwtl.bundle.provenance import versions
from monai_kwtl.data.loading import DECODE_LIMIT, read_image, read_label
from monai_kwtl.handlers.batch_norm import BatchNormAdapter
from monai_kwtl.inferers.flips import flipped
from monai_kwtl.inferers.memory import tile_within
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.metrics import Overlap, overlap
from monai_kwtl.project.selection_folder import write_selection as write_files
from monai_kwtl.readers.slides import Slide
from monai_kwtl.report.console import window_rows
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.store import pack_scores, unpack_scores
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Region, cost_of
from monai_kwtl.selection.select import cover
from monai_kwtl.selection.select import select_regions as choose_regions
from monai_kwtl.windows.scores import ImageScores

__all__ = [
    "adapt",
    "evaluate",
    "foreground",
    "logits_of",
    "score",
    "score_item",
    "segment",
    "select_regions",
    "strategy_of",
    "tiles",
    "window_scorer",
    "write_selection",
]

Item = Mapping[str, Any]

_SCALE = ScaleIntensityRange(0, 255, -1, 1)  # as inference.json and evaluate.json have it


def tiles(
    tile: int | None = None,
    amp: bool | str | None = "auto",
    flips: bool | str = False,
    max_memory: float | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """Return the inferer that runs a network over an image of any size.

    Args:
        tile: as of :class:`~monai_kwtl.inferers.tiled.TiledInferer`.
        amp: as of it.
        flips: whether the mean over the eight flips and quarter turns is taken.
        max_memory: GiB that limit the tile where none is given.
        device: that computes; says what the usual tile is.
    """
    if max_memory is not None:
        tile = tile_within(max_memory, device, tile=tile)
    return flipped(TiledInferer(tile=tile, amp=amp), flips)


def window_scorer(
    window: int = 256,
    step: int = 30,
    measure: str = "soft",
    views: Any = "intensity",
    psi: float = 1.3,
    weighted: bool = False,
    contrast: str = "image",
    exact: bool = False,
    features: bool = False,
    seed: int = 0,
    inferer: TiledInferer | None = None,
) -> WindowScoreInferer:
    """Return what scores the windows of an image; the arguments are the options of ``select.json``.

    Args:
        window: side of a window, in pixels.
        step: pixels between windows.
        measure: how a pixel is scored.
        views: of an image, that are compared with it.
        psi: factor of the brightness and sharpness views.
        weighted: whether foreground counts as in the training loss.
        contrast: ``image`` or ``window``.
        exact: whether each window is scored by itself.
        features: whether windows are described by the network's latent as well.
        seed: of MC-dropout.
        inferer: as of :func:`tiles`.

    Raises:
        KWTLError: for an argument that makes no sense.
    """
    inferer = tiles() if inferer is None else inferer
    scorer = ScoreMapInferer(measure, views, psi=psi, weighted=weighted, seed=seed, inferer=inferer)
    return WindowScoreInferer(scorer, window, step, exact=exact, contrast=contrast, features=features)


def adapt(
    network: nn.Module,
    pool: Sequence[Item],
    adapt_norm: bool | str = True,
    rescale: Sequence[float] | None = None,
    amp: bool | str | None = "auto",
    limit: int = 32,
) -> BatchNormAdapter:
    """Return a handler whose ``ready()`` is the network for inference, its batch norm fitted to a pool.

    Args:
        network: with its weights, on the device that computes; its statistics are replaced in place.
        pool: the images; labels are not looked at.
        adapt_norm: False keeps the statistics of the weights; ``transductive`` uses those of each image.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        amp: whether bfloat16 is used; ``auto``: where the device has it.
        limit: how many images count.
    """
    device = next(network.parameters()).device
    return BatchNormAdapter(network, pool, adapt_norm, rescale=rescale, device=device, limit=limit, amp=amp)


@torch.no_grad()
def score_item(
    item: Item, network: nn.Module, scorer: WindowScoreInferer, rescale: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return all that a scorer finds in one image of a pool, maps included.

    Args:
        item: of a pool.
        network: for inference, on the device that computes.
        scorer: as of :func:`window_scorer`.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
    """
    device = _device_of(network)
    if item["height"] * item["width"] > DECODE_LIMIT:
        return scorer(Slide(item, rescale).to(device), network)
    return scorer(torch.from_numpy(read_image(item, rescale))[None].to(device), network)


def _device_of(network: nn.Module) -> torch.device:
    return next((each.device for each in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def score(
    pool: Iterable[Item],
    network: nn.Module,
    scorer: WindowScoreInferer | None = None,
    rescale: Sequence[float] | None = None,
) -> list[ImageScores]:
    """Score every window of a pool.

    Args:
        pool: the images.
        network: for inference.
        scorer: as of :func:`window_scorer`; None: with its defaults, and the features that ``balanced`` needs.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.

    Returns:
        Scores of each image, in the order of the pool.
    """
    scorer = window_scorer(features=True) if scorer is None else scorer
    found = []
    for item in pool:
        output = score_item(item, network, scorer, rescale)
        found.append(unpack_scores(item, output["grid"], pack_scores(output)))
    return found


def strategy_of(
    strategy: str | None, pool: Sequence[Item], window: int, step: int, network: nn.Module | None = None
) -> str:
    """Return the strategy as given, else the one that every part of KWTL takes: ``balanced`` where it applies.

    Args:
        strategy: None: none is given.
        pool: the images.
        window: side of a window, in pixels.
        step: pixels between windows.
        network: that scores.
    """
    return choose_strategy(strategy, "kwtl", pool, window, step, network)


def select_regions(
    scores: Sequence[ImageScores],
    strategy: str | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    excluded_regions: Sequence[Region] = (),
) -> list[Region]:
    """Choose the regions to label.

    Args:
        scores: of every image of the pool.
        strategy: a name in ``monai_kwtl.selection.STRATEGIES``; None: ``balanced`` where the scores have features,
            else ``stratified_random``.
        budget: how much; None: one image's worth of area.
        seed: of what is random.
        excluded_regions: regions that are labelled or assigned already, and left out.

    Returns:
        The regions, rank 1 first.
    """
    if strategy is None:
        described = all(each.features is not None for each in scores)
        strategy = "balanced" if described else "stratified_random"
    budget = Budget(shots=1) if budget is None else budget
    return choose_regions([cover(each, excluded_regions) for each in scores], strategy, budget, seed)


def write_selection(
    folder: str | Path,
    regions: Sequence[Region],
    pool: Sequence[Item],
    scores: Sequence[ImageScores],
    budget: Budget | None = None,
    created_with: Mapping[str, Any] | None = None,
    rescale: Sequence[float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``selection.json``, tables, outlines and crops, see :func:`monai_kwtl.project.write_selection`.

    Args:
        folder: made if absent.
        regions: as of :func:`select_regions`.
        pool: the images.
        scores: of them.
        budget: that was asked for; None: one image's worth of area.
        created_with: what the file shall say of its making, besides versions.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        overwrite: whether a selection that is there may be replaced.

    Returns:
        The path of ``selection.json``.
    """
    return write_files(
        folder,
        regions,
        budget=(Budget(shots=1) if budget is None else budget).as_dict(),
        cost=cost_of(regions).as_dict(),
        created_with=versions() | dict(created_with or {}),
        items=pool,
        windows=window_rows(scores),
        read=lambda item: read_image(item, rescale),
        overwrite=overwrite,
    )


@torch.no_grad()
def logits_of(image: np.ndarray, network: nn.Module, inferer: Any = None) -> np.ndarray:
    """Return the logits of an image at full resolution, float32 (H, W); a probability is their sigmoid.

    Args:
        image: grey values, uint8 (1, H, W).
        network: for inference, on the device that computes.
        inferer: as of :func:`tiles`.
    """
    inputs = torch.as_tensor(_SCALE(image))[None].to(_device_of(network))
    return (tiles() if inferer is None else inferer)(inputs, network).float()[0, 0].cpu().numpy()


def foreground(logits: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return where the probability is at least ``threshold``, bool; as ``inference.json`` does it."""
    return (torch.sigmoid(torch.from_numpy(logits)) >= threshold).numpy()


def segment(
    pool: Iterable[Item],
    network: nn.Module,
    threshold: float = 0.5,
    inferer: Any = None,
    rescale: Sequence[float] | None = None,
) -> Iterator[tuple[Item, np.ndarray]]:
    """Segment every image of a pool.

    Args:
        pool: the images.
        network: for inference.
        threshold: probability from which on a pixel is foreground.
        inferer: as of :func:`tiles`.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.

    Yields:
        Each item with its mask, bool (H, W).
    """
    for item in pool:
        yield item, foreground(logits_of(read_image(item, rescale), network, inferer), threshold)


def evaluate(
    pool: Iterable[Item],
    network: nn.Module,
    threshold: float = 0.5,
    inferer: Any = None,
    rescale: Sequence[float] | None = None,
) -> list[Overlap]:
    """Compare the masks of labelled images with their labels, at full resolution; arguments as of :func:`segment`."""
    return [overlap(mask, read_label(item)[0]) for item, mask in segment(pool, network, threshold, inferer, rescale)]

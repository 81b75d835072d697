"""Images without masks to train on: with pseudo-labels, or as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_kwtl.data.loading import read_image
from monai_kwtl.transforms import PseudoLabel
from monai_kwtl.utils.sampling import evenly_spaced

logger = logging.getLogger("monai_kwtl")


__all__ = ["choose_pseudo_label", "pseudo_labelled", "unlabelled_images"]


def unlabelled_images(
    items: Sequence[Mapping[str, Any]], rescale: Sequence[float] | None = None, most: int = 200
) -> list[dict[str, Any]]:
    """Read images for a :class:`monai_kwtl.data.crops.CropDataset` of unlabelled crops, with labels that say nothing.

    Args:
        items: the pool; its labels are not looked at.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        most: at most so many images are kept in memory, evenly spaced over the pool.

    Returns:
        Dicts of ``name``, ``image``, uint8 (1, H, W), and ``label``, all 0.
    """
    images = [(item["name"], read_image(item, rescale)) for item in evenly_spaced(items, most)]
    return [{"name": name, "image": image, "label": np.zeros_like(image)} for name, image in images]


def choose_pseudo_label(
    items: Sequence[Mapping[str, Any]],
    threshold: float | None = None,
    fraction: float | None = None,
    polarity: str = "auto",
    method: str = "auto",
    iterations: int = 1,
    rescale: Sequence[float] | None = None,
) -> PseudoLabel:
    """Make the pseudo-label transform that a user asked for, or a guess where the user said nothing.

    Args:
        items: the pool; a few images are read to guess the polarity.
        threshold: gamma, of the equalised image, in [0, 255].
        fraction: expected fraction of foreground instead, in (0, 1).
        polarity: ``dark`` or ``bright`` cells; ``auto``: the side of Otsu's threshold with fewer pixels, over images.
        method: ``equalize``, ``kmeans`` or ``otsu``; ``auto`` is ``equalize`` where a threshold or a fraction is
            given, else ``otsu``.
        iterations: dilations.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.

    Returns:
        The transform.

    Raises:
        KWTLError: for settings that contradict each other or are out of range.
    """
    if method == "auto":
        method = "otsu" if threshold is None and fraction is None else "equalize"
    if polarity == "auto":
        dark = PseudoLabel(method="otsu", polarity="dark", iterations=0)
        shares = [float(dark(read_image(item, rescale)).mean()) for item in evenly_spaced(items, 8)]
        polarity = "dark" if np.median(shares) <= 0.5 else "bright"
        logger.info(f"the cells are taken to be {polarity}; say --polarity dark or bright where that is wrong")
    return PseudoLabel(threshold=threshold, fraction=fraction, polarity=polarity, method=method, iterations=iterations)


def pseudo_labelled(
    items: Sequence[Mapping[str, Any]],
    pseudo_label: PseudoLabel,
    rescale: Sequence[float] | None = None,
    most: int = 200,
) -> list[dict[str, Any]]:
    """Read images and pseudo-label them, for :class:`monai_kwtl.data.crops.CropDataset`.

    Args:
        items: the pool; its labels are not looked at.
        pseudo_label: from grey values to a mask.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        most: at most so many images are kept in memory, evenly spaced over the pool.

    Returns:
        Dicts of ``name``, ``image``, uint8 (1, H, W), and ``label``, uint8 (1, H, W), 0 or 1.
    """
    labelled = []
    for item in evenly_spaced(items, most):
        image = read_image(item, rescale)
        labelled.append({"name": item["name"], "image": image, "label": np.asarray(pseudo_label(image))})
    share = 100.0 * float(np.mean([entry["label"].mean() for entry in labelled]))
    logger.info(f"pseudo-labels of {len(labelled)} images: {share:.1f} % foreground")
    return labelled

"""The settings of a selection in words for those who outline cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NEXT_STEP", "describe_settings", "score_name"]

NEXT_STEP = (
    "Outline every cell inside the boxes, also those that a box cuts, beginning with rank 1. Then save one mask for "
    "each box under the name of its crop (or one mask for each image) and run the training stage, train.json, on them: "
    "inside a box whatever you leave empty counts as background, outside the boxes nothing is assumed."
)

SETTINGS = {
    "dataset_dir": ("Images", "The folder of images that were ranked"),
    "budget": ("Budget", "How much may be outlined; an image's worth is the area of one image, from any of them"),
    "budget_windows": ("Budget, regions", "How many regions may be outlined"),
    "budget_pixels": ("Budget, pixels", "How many pixels may be outlined, each counted once"),
    "strategy": (
        "Choice of regions",
        "balanced takes regions that together look like all of the images; top_k takes the highest scores even where "
        "regions overlap; coverage avoids labelling the same cells twice; herding, typical and k_centre take regions "
        "that look different",
    ),
    "measure": (
        "Score",
        "What makes a region worth labelling: soft, hard, kl and jsd ask where the network changes its mind when the "
        "image is slightly altered; entropy and mc_dropout ask where it is undecided",
    ),
    "views": (
        "Alterations",
        "intensity changes contrast, brightness and sharpness; affine rotates and shifts the image",
    ),
    "psi": ("Strength of alterations", "Factor for brightness and sharpness; 1 would change nothing"),
    "weighted": ("Weighted", "Whether pixels that the network takes for cells count for more"),
    "window": ("Region size", "Width and height of a region, in pixels"),
    "step": ("Step", "Distance between neighbouring candidate regions, in pixels"),
    "rescale": (
        "Grey range",
        "What becomes black and white in 16 bit and float images; \u2013 stands for each image's own",
    ),
    "exact": ("Exact scores", "Whether each region was scored by itself (slow) or cut from a map of the whole image"),
    "adapt_norm": (
        "Adapted to these images",
        "Whether the network was first adjusted to the look of these images, unlabelled",
    ),
    "pretext": ("Pretext tuning", "Whether the network first practised on automatic rough masks of these images"),
    "network": ("Network", "The kind of network that made the predictions"),
    "ckpt": ("Network weights", "The file with the network that made the predictions"),
    "model_sha256": ("Network fingerprint", "Identifies the weights; equal fingerprints mean equal networks"),
    "device": ("Computed on", "Processor or graphics card"),
    "computed_by": (
        "Computed by",
        "Kind of numbers (bfloat16 is quicker, hardly less exact), instructions of the processor, and pixels at once; "
        "others change the last digits of the scores",
    ),
    "seed": ("Seed", "Starting point of everything random; the same seed gives the same list"),
    "monai_kwtl": ("Version", "Of this program"),
    "monai": ("MONAI", "Version of the library"),
    "torch": ("PyTorch", "Version of the library"),
    "numpy": ("NumPy", "Version of the library"),
}


def score_name(measure: Any) -> str:
    """Name what a measure's score map shows: disagreement of the views, or the network's own uncertainty."""
    return "Uncertainty" if measure in ("entropy", "mc_dropout") else "Disagreement"


def describe_settings(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows of the settings table.

    Args:
        settings: names and values as in the configuration; unknown names are shown as they are.

    Returns:
        (what it is called, its value, what it means) for each setting, known ones first.
    """
    known = [name for name in SETTINGS if name in settings]
    others = [name for name in settings if name not in SETTINGS]
    rows = []
    for name in [*known, *others]:
        label, meaning = SETTINGS.get(name, (str(name).replace("_", " "), ""))
        rows.append((label, _value(settings[name]), meaning))
    return rows


def _value(value: Any) -> str:
    if value is None or value == "":
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return str(value)

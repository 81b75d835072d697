"""The support set: masks that an expert drew, part of them held out to choose the best step of the tuning."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler
from torch import nn

from monai_kwtl.data import describe_label_values, read_image, read_label
from monai_kwtl.distributed import is_main_process
from monai_kwtl.errors import KWTLError, check_whole_number
from monai_kwtl.evaluation import labelled
from monai_kwtl.losses import DiceBCE, ForegroundWeightedBCE
from monai_kwtl.mask_record import has_record
from monai_kwtl.metrics import overlap, summarize
from monai_kwtl.parallel import unwrap
from monai_kwtl.readers import SUFFIXES, UnreadableError, has_suffix, open_image
from monai_kwtl.region_masks import labelled_regions, read_region_masks
from monai_kwtl.scoring import normalize
from monai_kwtl.selection_file import read_selection

__all__ = [
    "BestWeights",
    "HeldOutValidation",
    "KnownOverlap",
    "Parts",
    "hold_out",
    "loss_function",
    "of_whole_images",
    "prepare_validation",
    "read_support",
    "support_hash",
    "validation_items",
]

logger = logging.getLogger("monai_kwtl")

FEWEST_TO_HOLD_OUT = 5
LOSSES = ("weighted", "dice_bce")


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
    """Whether masks are of whole images, to be matched by name, and not of regions."""
    return selection is None and not has_record(labels)


def _first_page(path: Path) -> int | None:
    """Number of the first page of a mask file; None for a file of one image, or one that cannot be read."""
    try:
        with open_image(path) as file:
            return file.sizes()[0][0]
    except UnreadableError:
        return None


def support_hash(support: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over images, labels and what is known of them."""
    digest = hashlib.sha256()
    for entry in support:
        # surrogateescape: names that are not UTF-8 keep their bytes
        digest.update(f"{entry['name']} {entry['page']} {entry['sha256']}".encode("utf-8", "surrogateescape"))
        digest.update(np.packbits(entry["label"]).tobytes())
        if "known" in entry:
            digest.update(np.packbits(entry["known"]).tobytes())
    return digest.hexdigest()


def hold_out(support: Sequence[dict[str, Any]], share: float = 0.2, seed: int = 0) -> Parts:
    """Set part of the labelled images aside, at random, where there are at least five.

    Args:
        support: the labelled images.
        share: of the images, in [0, 0.5]; at least one is held out unless it is 0.
        seed: of the draw.

    Returns:
        Both parts, each with some foreground: without it training has nothing to find, and the held-out part would
        favour a network that finds nothing. All for training where fewer than two images have any.

    Raises:
        KWTLError: when the share is out of range.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 0.5:
        raise KWTLError(f"held_out must be between 0 and 0.5, got {share!r}.")
    order = [support[index] for index in np.random.default_rng(seed).permutation(len(support))]
    filled = [place for place, entry in enumerate(order) if entry["label"].any()]
    if not share or len(support) < FEWEST_TO_HOLD_OUT or len(filled) < 2:
        return Parts(list(support), [])
    # one with foreground to the front, from which the held-out ones are taken, and one to the end
    order = [order[filled[0]], *(e for p, e in enumerate(order) if p not in (filled[0], filled[-1])), order[filled[-1]]]
    aside = {id(entry) for entry in order[: max(1, round(share * len(support)))]}
    return Parts([e for e in support if id(e) not in aside], [e for e in support if id(e) in aside])


def loss_function(
    foreground_weight: str | float, dataset: Any, loss: str = "weighted", share: float | None = None
) -> ForegroundWeightedBCE | DiceBCE:
    """Make the loss of a training stage.

    Args:
        foreground_weight: of the cross-entropy. ``crop``; ``dataset``; ``pool``, background over foreground as the pool
            is predicted to have them; ``none``, which is 1; or a number. ``auto`` is ``crop`` for ``weighted``, and
            ``none`` for ``dice_bce``, whose Dice part makes up for rare foreground by itself.
        dataset: a :class:`monai_kwtl.crops.CropDataset`, which knows the weight of the whole data set.
        loss: ``weighted``, cross-entropy alone, or ``dice_bce``, with a Dice loss.
        share: predicted share of foreground of the pool, in (0, 1), for ``pool``.

    Raises:
        KWTLError: for anything else.
    """
    if loss not in LOSSES:
        raise KWTLError(f"loss must be {' or '.join(LOSSES)}, got {loss!r}.")
    weight: Any = foreground_weight
    if weight == "auto":
        weight = "crop" if loss == "weighted" else "none"
    if weight == "crop":
        return ForegroundWeightedBCE() if loss == "weighted" else DiceBCE(pos_weight="crop")
    if weight == "dataset":
        weight = dataset.positive_weight()
    elif weight == "none":
        weight = 1.0
    elif weight == "pool" and share is not None:
        weight = (1 - share) / share
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise KWTLError(
            f"foreground_weight must be auto, crop, dataset, pool, none or a number above 0, got {foreground_weight!r}."
        )
    weight = float(weight)
    return ForegroundWeightedBCE(per="dataset", pos_weight=weight) if loss == "weighted" else DiceBCE(weight)


def validation_items(held_out: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Make tensors of held-out images: ``image``, grey values, ``label`` and ``known``, each (1, H, W)."""
    return [
        {
            "image": torch.from_numpy(entry["image"]),
            "label": torch.from_numpy(entry["label"]),
            "known": torch.from_numpy(entry.get("known", np.ones(entry["label"].shape, dtype=bool))),
        }
        for entry in held_out
    ]


def prepare_validation(
    item: Mapping[str, Any], device: torch.device, non_blocking: bool, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of one, network input and label, (1, 1, H, W), of a held-out image."""
    to = {"device": device, "non_blocking": non_blocking, **kwargs}
    return normalize(item["image"][None].to(**to)), item["label"][None].to(**to)


class KnownOverlap:
    """Mean IoU over held-out images, counted on their known pixels, as ``engine.state.metrics["mean_iou"]``."""

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose output holds logits under ``pred``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.overlaps = []

    def __call__(self, engine: Engine) -> None:
        """Count the image just predicted."""
        known = engine.state.batch["known"].numpy()
        prediction = (engine.state.output["pred"][0] >= 0).cpu().numpy()
        self.overlaps.append(overlap(prediction, engine.state.batch["label"].numpy(), known))

    def _finish(self, engine: Engine) -> None:
        if self.overlaps:
            engine.state.metrics["mean_iou"] = summarize(self.overlaps)["mean_iou"]


class BestWeights:
    """Keep the weights of the step whose validation was the best, and put them back when the training is completed.

    It is part of a checkpoint. The trainer's metrics then have ``best_step`` and ``held_out_iou``. Where the validator
    never runs, the weights stay as they are.

    Args:
        network: whose weights are kept.
        validator: an evaluator that a ``ValidationHandler`` runs.
        metric: of the validator; the highest is the best.
    """

    def __init__(self, network: nn.Module, validator: Engine, metric: str = "mean_iou") -> None:
        self.network, self.validator, self.metric = network, validator, metric
        self.iou, self.step = -1.0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, and with the validator for that trainer."""
        self.validator.add_event_handler(Events.COMPLETED, self._look, engine)
        engine.add_event_handler(Events.COMPLETED, self)

    def _look(self, validator: Engine, trainer: Engine) -> None:
        if validator.state.metrics[self.metric] > self.iou:
            self.iou, self.step = validator.state.metrics[self.metric], trainer.state.iteration
            self.weights = copy.deepcopy(unwrap(self.network).state_dict())

    def __call__(self, engine: Engine) -> None:
        """Put the best weights back into the network, where any were kept."""
        if self.weights:
            unwrap(self.network).load_state_dict(self.weights)
            engine.state.metrics.update(best_step=self.step, held_out_iou=self.iou)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"iou": self.iou, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take everything from a checkpoint."""
        self.iou, self.step, self.weights = state["iou"], state["step"], dict(state["weights"])


class HeldOutValidation(ValidationHandler):
    """Validate every so many steps and after the last; without held-out images do nothing.

    Of several processes the first one validates: its validator must have a network that does not wait for the others.

    Args:
        interval: steps between validations.
        validator: an evaluator.

    Raises:
        KWTLError: when the interval is not a whole number, at least 1.
    """

    def __init__(self, interval: int, validator: Evaluator) -> None:
        check_whole_number("validate_every", interval, 1)
        super().__init__(interval=interval, validator=validator, epoch_level=False)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer of one epoch."""
        if len(self.validator.data_loader) and is_main_process():
            super().attach(engine)
            last = engine.state.epoch_length
            if last % self.interval:
                engine.add_event_handler(Events.ITERATION_COMPLETED(once=last), self)

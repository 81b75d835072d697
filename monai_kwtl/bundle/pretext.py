"""Pretext tuning: rough masks made from the images themselves, shown to the user, and learned by the network."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image, ImageDraw, ImageFont

from monai_kwtl.data import load_pool, read_image
from monai_kwtl.distributed import is_main_process, on_main_process
from monai_kwtl.errors import KWTLError, check_whole_number, true_or_false
from monai_kwtl.event_files import open_log
from monai_kwtl.foreign import harmless
from monai_kwtl.report.pictures import for_display, shrink
from monai_kwtl.summary import image_title
from monai_kwtl.transforms import PseudoLabel
from monai_kwtl.whole_files import written_whole
from monai_kwtl.workflow import StageWorkflow

__all__ = [
    "PseudoLabelPreview",
    "auto_pretext",
    "choose_pseudo_label",
    "preview_sheet",
    "pseudo_labelled",
    "show_preview",
    "spread",
    "unlabelled_pool",
]

logger = logging.getLogger("monai_kwtl")


def spread(items: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Return at most so many items, evenly spaced over the pool."""
    check_whole_number("most_images", most, 1)
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in sorted(set(places.tolist()))]


def unlabelled_pool(dataset_dir: str | os.PathLike, test_dir: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """Return the images of a data set, and of further ones, without looking for masks.

    Args:
        dataset_dir: as of :func:`monai_kwtl.data.load_pool`.
        test_dir: folder of further images, or None.
    """
    further = [] if test_dir is None else load_pool(test_dir, with_labels=False, knob="--test_dir")
    return load_pool(dataset_dir, with_labels=False) + further


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
        fraction: expected share of foreground instead, in (0, 1).
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
        shares = [float(dark(read_image(item, rescale)).mean()) for item in spread(items, 8)]
        polarity = "dark" if np.median(shares) <= 0.5 else "bright"
        logger.info(f"the cells are taken to be {polarity}; say --polarity dark or bright where that is wrong")
    return PseudoLabel(threshold=threshold, fraction=fraction, polarity=polarity, method=method, iterations=iterations)


def pseudo_labelled(
    items: Sequence[Mapping[str, Any]],
    pseudo_label: PseudoLabel,
    rescale: Sequence[float] | None = None,
    most: int = 200,
) -> list[dict[str, Any]]:
    """Read images and pseudo-label them, for :class:`monai_kwtl.crops.CropDataset`.

    Args:
        items: the pool; its labels are not looked at.
        pseudo_label: from grey values to a mask.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        most: at most so many images are kept in memory, evenly spaced over the pool.

    Returns:
        Dicts of ``name``, ``image``, uint8 (1, H, W), and ``label``, uint8 (1, H, W), 0 or 1.
    """
    labelled = []
    for item in spread(items, most):
        image = read_image(item, rescale)
        labelled.append({"name": item["name"], "image": image, "label": np.asarray(pseudo_label(image))})
    share = 100.0 * float(np.mean([entry["label"].mean() for entry in labelled]))
    logger.info(f"pseudo-labels of {len(labelled)} images: {share:.1f} % foreground")
    return labelled


def preview_sheet(
    items: Sequence[Mapping[str, Any]],
    pseudo_label: PseudoLabel,
    rescale: Sequence[float] | None = None,
    most: int = 4,
    side: int = 320,
) -> np.ndarray:
    """Draw how pseudo-labels come about (figure 2 of the paper): a row an image, a column a step.

    Args:
        items: the pool.
        pseudo_label: whose ``stages`` are drawn.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        most: at most so many images, evenly spaced over the pool.
        side: longest side of a picture, in pixels.

    Returns:
        uint8 grey values, (rows, columns).
    """
    rows, names = [], []
    for item in spread(items, most):
        image = read_image(item, rescale)
        stages = {"image": for_display(image)}
        for name, picture in pseudo_label.stages(image).items():
            plane = np.asarray(picture)[0]
            stages[name] = (plane * 255 if plane.max(initial=0) <= 1 else plane).astype(np.uint8)
        names = list(stages)
        rows.append((image_title(item["name"], item["page"]), [shrink(picture, side) for picture in stages.values()]))
    gap, head = 8, 26
    widths = [max(row[column].shape[1] for _, row in rows) for column in range(len(names))]
    height = head + sum(max(p.shape[0] for p in row) + head for _, row in rows)
    sheet = Image.new("L", (sum(widths) + gap * (len(widths) + 1), height + gap), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    lefts = np.cumsum([gap, *(width + gap for width in widths)])
    for left, name in zip(lefts, names, strict=False):
        draw.text((int(left), 4), name, font=font, fill=0)
    top = head
    for name, row in rows:
        for left, picture in zip(lefts, row, strict=False):
            sheet.paste(Image.fromarray(picture), (int(left), top))
        top += max(p.shape[0] for p in row)
        draw.text((gap, top + 3), name, font=font, fill=90)
        top += head
    return np.asarray(sheet)


def show_preview(sheet: np.ndarray, output_dir: str | os.PathLike, tensorboard: bool = True) -> Path:
    """Write the sheet of pseudo-labels as ``pseudo_labels.png``, and to TensorBoard; the first process does.

    Returns:
        The path of the PNG.
    """
    path = Path(output_dir) / "pseudo_labels.png"
    if not is_main_process():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        Image.fromarray(sheet).save(unfinished, format="PNG")
    if tensorboard:
        with open_log(Path(output_dir) / "tensorboard", "preview") as writer:
            writer.add_image("pseudo-labels", sheet, dataformats="HW")
    logger.info(f"pseudo-labels are drawn in {path}")
    return path


class PseudoLabelPreview:
    """Show what a pretext stage trains on, as it starts: :func:`preview_sheet` and :func:`show_preview`.

    Args:
        items: as of :func:`preview_sheet`.
        pseudo_label: as of :func:`preview_sheet`.
        folder: of the stage.
        rescale: as of :func:`preview_sheet`.
        tensorboard: as of :func:`show_preview`.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        pseudo_label: PseudoLabel,
        folder: str | os.PathLike,
        rescale: Sequence[float] | None = None,
        tensorboard: bool = True,
    ) -> None:
        self.items, self.pseudo_label, self.rescale = items, pseudo_label, rescale
        self.folder, self.tensorboard = folder, true_or_false(tensorboard, "tensorboard")

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Draw and write the sheet."""
        show_preview(preview_sheet(self.items, self.pseudo_label, self.rescale), self.folder, self.tensorboard)


def auto_pretext(
    choice: str,
    ckpt: str | os.PathLike,
    root: str | os.PathLike,
    dataset: str | os.PathLike,
    output: Path,
    **knobs: Any,
) -> str:
    """Return the weights that score a pool: tuned on its pseudo-labels, as they are, or those of a path.

    Of several processes the first one tunes, alone, so that the weights are the same however many there are.

    Args:
        choice: ``always`` runs the pretext stage into ``output/pretext``, unless it has left weights there for these
            images, settings and start weights; ``auto`` does so where ``ckpt`` is the bundle's own, and takes other
            weights as they are; ``skip`` takes ``ckpt`` as it is; anything else is the path of weights.
        ckpt: start weights.
        root: folder of the bundle, which has ``configs/pretext.json``.
        dataset: folder of images.
        output: output folder of the calling stage.
        knobs: of the pretext stage.

    Returns:
        A path.

    Raises:
        KWTLError: when the path does not exist, or the pretext stage cannot run.
    """
    own = Path(root) / "models" / "model.pt"
    if choice == "auto":
        shipped = own.is_file() and Path(ckpt).is_file() and os.path.samefile(ckpt, own)
        choice = "always" if shipped else "skip"
    if choice == "skip":
        return str(ckpt)
    if choice != "always":
        if not Path(str(choice)).is_file():
            raise KWTLError(f"pretext is auto, always, skip or the path of weights; there is no file {choice!r}.")
        return str(choice)
    return on_main_process(partial(_tune, ckpt, root, dataset, output / "pretext", **knobs))


def _tune(
    ckpt: str | os.PathLike, root: str | os.PathLike, dataset: str | os.PathLike, folder: Path, **knobs: Any
) -> str:
    """Run the pretext stage into a folder, where that is not done yet, and return the path of the weights."""
    workflow = StageWorkflow(
        Path(root, "configs", "pretext.json"),
        **harmless(dataset_dir=Path(dataset), output_dir=folder, ckpt=Path(ckpt), **knobs),
        resume=True,
        overwrite=True,
    )
    workflow.initialize()
    weights = folder / "model.pt"
    # asked before the run, which reads all images first
    if workflow.parser.get_parsed_content("checkpoint").finished():
        logger.info(f"the pretext weights in {weights} are of these images and settings: used again")
    else:
        workflow.run()
    return str(weights)

"""Batches of training crops, each a pure function of the seed and the number of its step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from monai_kwtl.data.crop_images import CropImage, draw_start
from monai_kwtl.data.crop_sampler import CropSampler
from monai_kwtl.errors import KWTLError, as_bool, check_whole_number
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.transforms.photometric import photometric
from monai_kwtl.utils.distributed import ranks
from monai_kwtl.windows.box import Box
from monai_kwtl.windows.grid import WindowGrid

logger = logging.getLogger("monai_kwtl")


__all__ = ["CropDataset", "GridCropDataset", "crop_dataset", "prepare_crops"]


def prepare_crops(
    batchdata: Mapping[str, torch.Tensor],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of crops ready for a MONAI trainer: its ``prepare_batch``.

    Args:
        batchdata: as :meth:`CropDataset.crop_batch` returns it.
        device: where the tensors shall go.
        non_blocking: as in ``torch.Tensor.to``.
        kwargs: further arguments of ``torch.Tensor.to``.

    Returns:
        Images and labels, (N, 1, h, w). Which pixels of the labels are known stays in the batch, where
        :class:`monai_kwtl.engines.tuning_trainer.TuningTrainer` looks for it.
    """
    to = {"device": device, "non_blocking": non_blocking, **kwargs}
    return batchdata["image"].to(**to), batchdata["label"].to(**to)


class CropDataset(Dataset):
    """Batches of random crops with random flips and quarter turns, for a budget of training steps.

    Every batch is a pure function of ``seed`` and the number of its step: it depends neither on what was drawn before
    nor on the number of workers or processes, nor on a global random state. A stage that goes on after n steps makes
    its data set with ``start_step=n`` and sees the very batches that it would have seen.

    First a box is drawn: the whole image where all of it is known, else a region of it, in proportion to its known
    pixels. Then the place: anywhere inside the box, or around it where it is smaller, plus up to ``shift`` pixels
    beyond, so that a network also sees labelled pixels at the edge of a crop and real image around a region. There is
    always a known pixel in a crop. Last comes one of the eight flips and turns of the square. (MONAI's random flips can
    be seeded per crop as well, but take 2 to 7 ms a crop, this 0.2 ms.)

    Use it with ``DataLoader(dataset, batch_size=None)``: an element is a whole batch.

    Args:
        data: items with ``image``, grey values uint8 (1, H, W); ``label``, (1, H, W), above 0 is foreground; optionally
            ``known``, bool (1, H, W), and ``regions``, objects with ``x``, ``y``, ``width`` and ``height`` such as
            ``monai_kwtl.selection.regions.Region`` (without them: the connected parts of ``known``), and with them
            ``importance``, by which the chance of each to be drawn is multiplied; and ``name``, for messages. They are
            read once and stay in memory; images of a ``monai.data.CacheDataset`` are not copied. A side shorter than a
            crop is padded by reflection; the padding is unknown.
        steps: number of training steps in all.
        start_step: steps that are done already.
        size: side of a crop, in pixels.
        batch_size: crops of a step, over all processes together.
        seed: one or several whole numbers, not negative.
        augment: whether crops are flipped and turned.
        require_known: False draws crops from all over the images, also where nothing is known.
        shift: how far, in pixels, a crop may stick out of its box; None is a quarter of ``size``.
        rank: of this process, which gets every ``world_size``-th crop of a batch; None asks
            :func:`monai_kwtl.utils.distributed.ranks`.
        world_size: number of processes; None asks as well.
        photometric: whether grey values are changed at random as well, see :mod:`monai_kwtl.transforms.photometric`.
        foreground: fraction of foreground, in (0, 1), that the known pixels of the crops shall have on average, such as
            that of the pool; places are then drawn from 4096 that a :class:`monai_kwtl.data.CropSampler` weighs,
            and come as near to it as the labels allow. None draws them as said above.

    Raises:
        KWTLError: when there is no known pixel at all, a label is missing or of another size, or a number is unusable.
    """

    def __init__(
        self,
        data: Iterable[Mapping[str, Any]],
        steps: int = 500,
        start_step: int = 0,
        size: int = 256,
        batch_size: int = 64,
        seed: int | Sequence[int] = 0,
        augment: bool = True,
        require_known: bool = True,
        shift: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        photometric: bool = False,
        foreground: float | None = None,
    ) -> None:
        self.rank = ranks().rank if rank is None else rank
        self.world_size = ranks().count if world_size is None else world_size
        self.shift = size // 4 if shift is None else shift
        self.steps, self.start_step, self.size, self.batch_size = steps, start_step, size, batch_size
        self.augment, self.require_known, self.photometric = augment, require_known, photometric
        for name, low in (("steps", 1), ("start_step", 0), ("size", 1), ("batch_size", self.world_size), ("shift", 0)):
            check_whole_number(name, getattr(self, name), low)
        self.seed = tuple(np.atleast_1d(seed).tolist())
        for part in self.seed:
            check_whole_number("seed", part, 0)
        self.images = [CropImage.from_item(item, size, require_known) for item in data]
        # an image without a known pixel has no box, or boxes of weight 0, and is never drawn
        self._boxes = [(number, box) for number, image in enumerate(self.images) for box in image.boxes]
        self._chances = np.cumsum([weight for image in self.images for weight in image.weights], dtype=np.int64)
        known = any(image.known is None or image.known.any() for image in self.images)
        if not known or not self._chances[-1]:
            raise KWTLError("there is no labelled pixel to train on; give labelled images, or masks of regions.")
        self.sampler: CropSampler | None = None
        if foreground is not None:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(0, 0, 0)))
            self.sampler = CropSampler(self._any_place, self._counts, foreground, rng)

    def __len__(self) -> int:
        return max(self.steps - self.start_step, 0)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.crop_batch(self.start_step + index, self.rank, self.world_size)

    def positive_weight(self, weight_range: Sequence[float] = (1.0 / 50.0, 50.0)) -> float:
        """Return known background over known foreground of all images together, clamped; 1 without foreground."""
        known = [image.label if image.known is None else image.label[image.known] for image in self.images]
        foreground = sum(int(np.count_nonzero(part)) for part in known)
        background = sum(part.size for part in known) - foreground
        return float(np.clip(background / foreground, *weight_range)) if foreground else 1.0

    def crop_batch(self, step: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """Cut the batch of a step, or the part of it that one of several processes gets.

        Args:
            step: number of the step from the beginning of the training, from 0.
            rank: of the process.
            world_size: number of processes.

        Returns:
            ``image``, float32 in [-1, 1]; ``label``, float32, 0 or 1; ``known``, bool; each (N, 1, size, size).
        """
        crops = [self._crop(step, index) for index in range(self._batch_length(step))[rank::world_size]]
        image, label, known = (torch.from_numpy(np.stack(planes)[:, None]) for planes in zip(*crops, strict=True))
        # np.stack keeps the layout of turned planes, in which a loss would add up its pixels
        return {"image": normalize(image), "label": label.float().contiguous(), "known": known.contiguous()}

    def _crop(self, step: int, index: int) -> list[np.ndarray]:
        """Return image, label and known pixels of one crop, (size, size) each."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step, index)))
        number, y, x = self._place(step, index, rng)
        source, box = self.images[number], Box(x, y, self.size, self.size)
        known = np.ones((self.size, self.size), dtype=bool) if source.known is None else source.known[box.slices]
        planes = [source.image[box.slices], source.label[box.slices], known]
        if self.augment:
            turns, flip = divmod(int(rng.integers(8)), 2)
            planes = [np.rot90(plane[:, ::-1] if flip else plane, turns) for plane in planes]
        if self.photometric:  # with a generator of its own: places and turns stay the same
            own = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step, index, 1)))
            planes[0] = photometric(planes[0], own)
        return planes

    def _batch_length(self, step: int) -> int:
        return self.batch_size

    def _place(self, step: int, index: int, rng: np.random.Generator) -> tuple[int, int, int]:
        """Return the number of the image, top row and left column of a crop."""
        return self._any_place(rng) if self.sampler is None else self.sampler.draw(rng)

    def _counts(self, number: int, y: int, x: int) -> tuple[int, int]:
        """Count the known foreground pixels and known pixels of a crop."""
        source, box = self.images[number], Box(x, y, self.size, self.size)
        label = source.label[box.slices]
        if source.known is None:
            return int(np.count_nonzero(label)), label.size
        known = source.known[box.slices]
        return int(np.count_nonzero(label[known])), int(np.count_nonzero(known))

    def _any_place(self, rng: np.random.Generator) -> tuple[int, int, int]:
        chosen = int(np.searchsorted(self._chances, rng.integers(self._chances[-1]), side="right"))
        number, box = self._boxes[chosen]
        source, size = self.images[number], self.size
        height, width = source.image.shape
        y = draw_start(rng, box.y, box.height, size, self.shift, height)
        x = draw_start(rng, box.x, box.width, size, self.shift, width)
        if self.require_known and source.known is not None and not source.known[Box(x, y, size, size).slices].any():
            # the known pixels do not fill their box, and the crop missed them all: put it around one of them
            rows, columns = np.nonzero(source.known[box.slices])
            pixel = int(rng.integers(len(rows)))
            y = draw_start(rng, box.y + int(rows[pixel]), 1, size, 0, height)
            x = draw_start(rng, box.x + int(columns[pixel]), 1, size, 0, width)
        return number, y, x


class GridCropDataset(CropDataset):
    """Batches of all crops of a grid, newly shuffled in every epoch: the schedule of the paper.

    The grid lies over each image, or over each region where only regions are known: a region of the size of a crop is
    one crop. Crops without a known pixel are left out. The batches of an epoch differ in length by at most one crop,
    instead of a short one at the end.

    Args:
        data: as in :class:`CropDataset`.
        epochs: how often every crop is seen.
        start_step: training steps that are done already.
        size: side of a crop, in pixels.
        step: pixels between crops.
        batch_size: crops of a training step, over all processes together; the most that one has.
        seed: one or several whole numbers, not negative.
        augment: whether crops are flipped and turned.
        rank: as in :class:`CropDataset`.
        world_size: as in :class:`CropDataset`.
        photometric: as in :class:`CropDataset`.

    Raises:
        KWTLError: as in :class:`CropDataset`, and when a step would have fewer crops than there are processes.
    """

    def __init__(
        self,
        data: Iterable[Mapping[str, Any]],
        epochs: int = 100,
        start_step: int = 0,
        size: int = 256,
        step: int = 30,
        batch_size: int = 64,
        seed: int | Sequence[int] = 0,
        augment: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        photometric: bool = False,
    ) -> None:
        own = {"rank": rank, "world_size": world_size, "photometric": photometric}
        super().__init__(data, 1, start_step, size, batch_size, seed, augment, **own)
        check_whole_number("epochs", epochs, 1)
        places = (place for number in range(len(self.images)) for place in self._grid(number, step))
        self.places = list(dict.fromkeys(places))  # overlapping regions can have a crop in common
        self.steps_per_epoch = -(-len(self.places) // batch_size)
        self.steps = epochs * self.steps_per_epoch
        if len(self.places) // self.steps_per_epoch < self.world_size:
            raise KWTLError(f"{len(self.places)} crops are too few for {self.world_size} processes; use fewer.")
        self._shuffled: tuple[int, np.ndarray] | None = None

    def _grid(self, number: int, step: int) -> Iterable[tuple[int, int, int]]:
        source, size = self.images[number], self.size
        height, width = source.image.shape
        for box in source.boxes:
            grid = WindowGrid(box.height, box.width, window=size, step=step)
            for dy, dx in zip(grid.y.tolist(), grid.x.tolist(), strict=True):
                y, x = min(box.y + dy, height - size), min(box.x + dx, width - size)
                if source.known is None or source.known[Box(x, y, size, size).slices].any():
                    yield number, y, x

    def _batch_bounds(self, step: int) -> tuple[int, int]:
        """Return the first crop of a step, and the one after the last, in the order of its epoch."""
        part, count = step % self.steps_per_epoch, len(self.places)
        return part * count // self.steps_per_epoch, (part + 1) * count // self.steps_per_epoch

    def _batch_length(self, step: int) -> int:
        first, end = self._batch_bounds(step)
        return end - first

    def _place(self, step: int, index: int, rng: np.random.Generator) -> tuple[int, int, int]:
        epoch = step // self.steps_per_epoch
        if self._shuffled is None or self._shuffled[0] != epoch:
            order = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
            self._shuffled = (epoch, order.permutation(len(self.places)))
        return self.places[self._shuffled[1][self._batch_bounds(step)[0] + index]]


def crop_dataset(
    schedule: str,
    data: Sequence[Mapping[str, Any]],
    steps: int,
    epochs: int,
    crop: int,
    step: int,
    batch_size: int,
    seed: int | Sequence[int],
    photometric: bool = False,
    match_foreground: bool = False,
    fraction: float | None = None,
) -> CropDataset:
    """Make the crops of a schedule: ``steps``, a budget of random crops, or ``paper``, epochs over a grid.

    Args:
        schedule: ``steps`` or ``paper``.
        data: as in :class:`monai_kwtl.data.crops.CropDataset`.
        steps: number of batches of the schedule ``steps``.
        epochs: of the schedule ``paper``.
        crop: side of a crop, in pixels.
        step: pixels between crops of the grid.
        batch_size: crops of a batch, over all processes together.
        seed: as in :class:`monai_kwtl.data.crops.CropDataset`.
        photometric: as in :class:`monai_kwtl.data.crops.CropDataset`.
        match_foreground: draw crops so that a ``fraction`` of their known pixels is foreground; a grid has its places.
        fraction: in (0, 1); None where it is not needed.

    Raises:
        KWTLError: for an unknown schedule, ``match_foreground`` for a grid, or numbers that the data sets refuse.
    """
    photometric = as_bool(photometric, "photometric")
    matched = as_bool(match_foreground, "match_foreground")
    shared = {"size": crop, "batch_size": batch_size, "seed": seed, "photometric": photometric}
    if schedule == "steps":
        crops = CropDataset(data, steps=steps, **shared, foreground=fraction if matched else None)
        if crops.sampler is not None:
            logger.info(
                f"crops are drawn so that {100 * crops.sampler.fraction:.1f} % of their known pixels are foreground"
            )
        return crops
    if schedule == "paper" and matched:
        raise KWTLError("match_foreground draws crops anew in each step, and the paper's schedule has a grid; use one.")
    if schedule == "paper":
        return GridCropDataset(data, epochs=epochs, step=step, **shared)
    raise KWTLError(f"unknown schedule {schedule!r}; use steps or paper.")

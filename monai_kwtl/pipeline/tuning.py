"""Tuning from Python, on plain objects: what ``train.json`` and ``pretext.json`` do, of the same components."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from monai_kwtl.data.crops import CropDataset, crop_dataset
from monai_kwtl.data.pool_batches import pool_batches
from monai_kwtl.data.pseudo_labels import choose_pseudo_label, pseudo_labelled, unlabelled_images
from monai_kwtl.engines.foreground import foreground_fraction
from monai_kwtl.engines.mean_teacher import MeanTeacherTrainer, OwnStatistics, make_teacher
from monai_kwtl.engines.tuning_trainer import TuningTrainer
from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers.training_log import TuningLog, linear_decay
from monai_kwtl.handlers.validation import (
    BestWeights,
    HeldOutValidation,
    KnownOverlap,
    prepare_validation,
    validation_items,
)
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.losses import ForegroundWeightedBCE, loss_function
from monai_kwtl.networks.autocast import AutocastInferer
from monai_kwtl.networks.batch_norm import estimate_batch_norm_statistics
from monai_kwtl.networks.optimize import channels_last
from monai_kwtl.project.support_set import hold_out

__all__ = ["fit", "pretext", "tune"]


def fit(
    network: nn.Module,
    crops: CropDataset,
    loss: Callable[..., torch.Tensor] | None = None,
    *,
    held_out: Sequence[Mapping[str, Any]] = (),
    validate_every: int = 100,
    learning_rate: float = 1e-4,
    falling_rate: bool = False,
    weight_decay: float = 5e-4,
    amp: bool | str | None = "auto",
    num_workers: int = 0,
    unlabelled: CropDataset | None = None,
    decay: float = 0.99,
    warm_up: int | None = None,
    seed: int | Sequence[int] = 0,
) -> nn.Module:
    """Train a network, in place, on every batch of crops, with Adam.

    Args:
        network: on its device.
        crops: has the number of steps.
        loss: None: the paper's, :class:`monai_kwtl.losses.ForegroundWeightedBCE`.
        held_out: part of a support set; the weights of the step that is best on it are kept. Empty: those of the last.
        validate_every: steps between looks at ``held_out``.
        learning_rate: of Adam.
        falling_rate: whether it falls in a straight line to 0 at the last step.
        weight_decay: of Adam.
        amp: bfloat16 autocast; None or ``"auto"``: where the device multiplies bfloat16 natively.
        num_workers: processes that cut crops ahead.
        unlabelled: crops for :class:`monai_kwtl.engines.MeanTeacherTrainer`, for as many steps; None: tuning is
            supervised, and ``decay``, ``warm_up`` and ``seed`` do not count.
        decay: of the teacher.
        warm_up: steps without unlabelled crops; None: a fifth of all.
        seed: of the views of unlabelled crops.

    Returns:
        The network; with unlabelled crops the teacher, another one. Its batch-norm statistics are not yet those of a
        pool.

    Raises:
        KWTLError: for unusable numbers, or when the loss is no number any more.
    """
    device = next(network.parameters()).device
    teacher = None if unlabelled is None else make_teacher(network, decay)
    result = network if teacher is None else teacher.module
    validator = SupervisedEvaluator(
        device=device,
        val_data_loader=DataLoader(validation_items(held_out), batch_size=None),
        network=network if teacher is None else OwnStatistics(result),
        inferer=TiledInferer(amp=amp),
        prepare_batch=prepare_validation,
        decollate=False,
        val_handlers=[KnownOverlap()],
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    scheduler = LambdaLR(optimizer, partial(linear_decay, steps=crops.steps, falling=falling_rate))
    taught = {} if teacher is None else {"unlabelled": unlabelled, "teacher": teacher, "warm_up": warm_up, "seed": seed}
    trainer = (TuningTrainer if teacher is None else MeanTeacherTrainer)(
        device=device,
        max_epochs=1,
        epoch_length=crops.steps,
        train_data_loader=DataLoader(crops, batch_size=None, num_workers=num_workers),
        network=network,
        optimizer=optimizer,
        loss_function=ForegroundWeightedBCE() if loss is None else loss,
        inferer=AutocastInferer(amp),
        train_handlers=[
            TuningLog(),
            LrScheduleHandler(scheduler, epoch_level=False, print_lr=False),
            HeldOutValidation(validate_every, validator),
            BestWeights(result, validator),
        ],
        **taught,
    )
    trainer.run()
    return result.requires_grad_(True)


def tune(
    network: nn.Module,
    support: Sequence[dict[str, Any]],
    *,
    pool: Sequence[Mapping[str, Any]] = (),
    held_out: float = 0.2,
    validate_every: int = 100,
    loss: str = "dice_bce",
    foreground_weight: str | float = "auto",
    schedule: str = "steps",
    steps: int = 500,
    epochs: int = 20,
    step: int = 30,
    crop: int = 128,
    photometric: bool = False,
    match_foreground: bool = False,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    falling_rate: bool = True,
    weight_decay: float = 5e-4,
    adapt_norm: bool = True,
    rescale: Sequence[float] | None = None,
    amp: bool | str | None = "auto",
    seed: int = 0,
    semi_supervised: bool = False,
    decay: float = 0.99,
    warm_up: int | None = None,
    most_images: int = 200,
) -> nn.Module:
    """Tune a network, in place, on masks that an expert drew: the train stage of the bundle, to the bit.

    Args:
        network: with the start weights, on its device.
        support: as :func:`monai_kwtl.project.support_set.read_support` gives it.
        pool: the images that the network is for; wanted for ``adapt_norm``, ``foreground_weight="pool"``,
            ``match_foreground`` and ``semi_supervised``.
        held_out: fraction of the labelled images that the best step is chosen by, of five images or more.
        validate_every: as of :func:`fit`.
        loss: ``dice_bce`` or ``weighted``.
        foreground_weight: as of :func:`monai_kwtl.losses.loss_function`.
        schedule: ``steps`` or ``paper``, as of :func:`monai_kwtl.data.crops.crop_dataset`, like the next eight.
        steps: batches of the schedule ``steps``.
        epochs: of the schedule ``paper``.
        step: pixels between crops of the schedule ``paper``.
        crop: side of a crop, in pixels.
        photometric: whether grey values are changed at random.
        match_foreground: whether crops are drawn with the fraction of foreground that the pool has.
        batch_size: crops of a step.
        learning_rate: of Adam.
        falling_rate: as of :func:`fit`.
        weight_decay: of Adam.
        adapt_norm: whether the batch-norm statistics of the result are fitted to the pool, if there is one.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        amp: as of :func:`fit`.
        seed: of everything that is drawn; global random states are neither used nor changed.
        semi_supervised: whether unlabelled crops of the pool are learned from as well, with a mean teacher.
        decay: as of :func:`fit`.
        warm_up: as of :func:`fit`.
        most_images: images of the pool, at most, that unlabelled crops are cut from.

    Returns:
        The tuned network: the same, or with ``semi_supervised`` another one.

    Raises:
        KWTLError: for unusable settings, a missing pool, or when the loss is no number any more.
    """
    if not pool and (semi_supervised or match_foreground or foreground_weight == "pool"):
        raise KWTLError("semi_supervised, match_foreground and foreground_weight='pool' need the images of the pool.")
    network = channels_last(network)
    device = next(network.parameters()).device
    parts = hold_out(support, held_out, seed)
    fraction = None
    if match_foreground or foreground_weight == "pool":
        # laid out as the stage's network is before training: the layout decides about last bits
        started = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        fraction = foreground_fraction(started, pool, rescale=rescale, device=device)
    crops = crop_dataset(
        schedule, parts.train, steps, epochs, crop, step, batch_size, seed, photometric, match_foreground, fraction
    )
    unlabelled = None
    if semi_supervised:
        images = unlabelled_images(pool, rescale, most_images)
        unlabelled = CropDataset(images, crops.steps, size=crop, batch_size=batch_size, seed=[seed, 1])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        tuned = fit(
            network,
            crops,
            loss_function(foreground_weight, crops, loss, fraction),
            held_out=parts.held_out,
            validate_every=validate_every,
            learning_rate=learning_rate,
            falling_rate=falling_rate,
            weight_decay=weight_decay,
            amp=amp,
            unlabelled=unlabelled,
            decay=decay,
            warm_up=warm_up,
            seed=seed,
        )
    if adapt_norm and pool:
        estimate_batch_norm_statistics(tuned, pool_batches(pool, rescale=rescale, device=device))
    return tuned.eval()


def pretext(
    network: nn.Module,
    pool: Sequence[Mapping[str, Any]],
    *,
    threshold: float | None = None,
    fraction: float | None = None,
    polarity: str = "auto",
    method: str = "auto",
    iterations: int = 1,
    most_images: int = 200,
    schedule: str = "steps",
    steps: int = 400,
    epochs: int = 100,
    step: int = 30,
    crop: int = 128,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    weight_decay: float = 5e-4,
    adapt_norm: bool = True,
    rescale: Sequence[float] | None = None,
    amp: bool | str | None = "auto",
    seed: int = 0,
) -> nn.Module:
    """Tune a network, in place, on rough masks made from unlabelled images: the pretext stage of the bundle.

    Args:
        network: with the start weights, on its device.
        pool: the images.
        threshold: as of :func:`monai_kwtl.data.pseudo_labels.choose_pseudo_label`, like the next four.
        fraction: expected fraction of foreground.
        polarity: ``dark``, ``bright`` or ``auto``.
        method: ``equalize``, ``kmeans``, ``otsu`` or ``auto``.
        iterations: dilations.
        most_images: at most so many images are learned from.
        schedule: as of :func:`tune`, like all that follow.
        steps: batches of the schedule ``steps``.
        epochs: of the schedule ``paper``.
        step: pixels between crops of the schedule ``paper``.
        crop: side of a crop, in pixels.
        batch_size: crops of a step.
        learning_rate: of Adam.
        weight_decay: of Adam.
        adapt_norm: whether the batch-norm statistics of the result are fitted to the pool.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        amp: as of :func:`fit`.
        seed: of everything that is drawn.

    Returns:
        The network.

    Raises:
        KWTLError: for unusable settings, or when the loss is no number any more.
    """
    network = channels_last(network)
    device = next(network.parameters()).device
    pseudo_label = choose_pseudo_label(pool, threshold, fraction, polarity, method, iterations, rescale)
    data = pseudo_labelled(pool, pseudo_label, rescale, most_images)
    crops = crop_dataset(schedule, data, steps, epochs, crop, step, batch_size, seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        fit(network, crops, learning_rate=learning_rate, weight_decay=weight_decay, amp=amp)
    if adapt_norm:
        estimate_batch_norm_statistics(network, pool_batches(pool, rescale=rescale, device=device))
    return network.eval()

"""Semi-supervised tuning: a student learns from the support set, and from its own running mean on unlabelled crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_kwtl.engines.reptile import CropSource
from monai_kwtl.engines.tuning_trainer import TuningTrainer
from monai_kwtl.errors import KWTLError, check_number, check_whole_number
from monai_kwtl.losses import ForegroundWeightedBCE, loss_over_known
from monai_kwtl.networks.batch_norm import batch_norm_layers, use_batch_statistics
from monai_kwtl.transforms.functional import normalize
from monai_kwtl.transforms.strong import cut_mix, pseudo_target, strong_view
from monai_kwtl.utils.distributed import ranks

__all__ = ["MeanTeacherTrainer", "OwnStatistics", "consistency_weight", "make_teacher"]


def _check_alone() -> None:
    if ranks().count > 1:
        raise KWTLError("semi-supervised tuning works in one process; start it without torchrun.")


def make_teacher(network: nn.Module, decay: float = 0.99) -> AveragedModel:
    """Make the exponential moving average of a network's weights, which begins with those that it has.

    ``teacher <- decay teacher + (1 - decay) student`` after every step; buffers, which are the batch-norm statistics,
    are those of the student.

    Args:
        network: the student.
        decay: in [0, 1].

    Returns:
        The teacher; ``teacher.module`` is a network like the student. Its weights ask for no gradient.

    Raises:
        KWTLError: when the decay is out of range, or in one of several processes.
    """
    _check_alone()
    check_number("decay", decay, 0, 1)
    teacher = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
    teacher.update_parameters(network)  # the first one copies
    return teacher.requires_grad_(False).eval()


def consistency_weight(step: int, steps: int, warm_up: int = 0) -> float:
    """Return the weight of unlabelled crops: ``exp(-5 (1 - t / T)^2)``, rising from nearly 0 to 1 (Tarvainen 2017).

    t counts the steps after the warm-up from 1, T is their number: the last step has weight 1.

    Args:
        step: number of the step, from 0.
        steps: of the whole training.
        warm_up: first steps, of weight 0.
    """
    if step < warm_up:
        return 0.0
    part = min((step + 1 - warm_up) / max(steps - warm_up, 1), 1.0)
    return math.exp(-5.0 * (1.0 - part) ** 2)


class MeanTeacherTrainer(TuningTrainer):
    """Train on labelled crops, and with a growing weight on what the mean of the network says of unlabelled ones.

    A step minimises ``L(f(x), y) + w C(f(m(s(u))), m(y'))``: x and y are the labelled crops; u unlabelled ones, which
    their data set has flipped and turned (the weak view); s and m are :func:`monai_kwtl.transforms.strong_view` and
    :func:`~monai_kwtl.transforms.cut_mix`; y' is the teacher's :func:`~monai_kwtl.transforms.pseudo_target` of u,
    unknown where it is not sure (0.9 for foreground, 0.95 for background); w is :func:`consistency_weight`. C is the
    mean over the sure pixels times their fraction, so that few sure pixels weigh little, as in FixMatch (Sohn et al.
    2020). After the step the teacher moves (mean teacher; Tarvainen and Valpola 2017). The teacher is the result.

    The teacher is evaluated but for its batch-norm layers, which take the statistics of the crops before them: the
    running ones are those of the student, of labelled and of changed crops, lag behind the weights, and fit neither.
    For use, fit the statistics of the result to the pool.

    Everything that is drawn is a pure function of ``seed`` and the number of the step. After an iteration
    ``engine.state.output`` holds what that of a ``TuningTrainer`` does, and ``supervised`` and ``consistency``, the
    parts of ``loss``, ``weight`` and ``confident``, the fraction of sure pixels, as numbers. It works in one process.

    Args:
        unlabelled: unlabelled crops, such as ``CropDataset(unlabelled_images(pool), ...)``, by the number of the step.
        teacher: of :func:`make_teacher`; None makes one.
        warm_up: first steps without unlabelled crops; None: a fifth of all.
        seed: of views and boxes; one or several whole numbers, not negative.
        consistency_loss: C before the fraction is counted in; from logits, target and known pixels. None is the plain
            binary cross-entropy.
        kwargs: of ``TuningTrainer``; not ``amp``, ``compile`` and ``accumulation_steps``.

    Raises:
        KWTLError: for unusable numbers, or in one of several processes.
    """

    def __init__(
        self,
        *,
        unlabelled: CropSource,
        teacher: AveragedModel | None = None,
        warm_up: int | None = None,
        seed: int | Sequence[int] = 0,
        consistency_loss: Callable[..., torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if warm_up is not None:
            check_whole_number("warm_up", warm_up, 0)
        self.seed = tuple(np.atleast_1d(seed).tolist())
        for part in self.seed:
            check_whole_number("seed", part, 0)
        _check_alone()
        if refused := {"amp", "compile", "accumulation_steps"} & kwargs.keys():
            raise KWTLError(f"semi-supervised tuning knows no {min(refused)}; for bfloat16 give an AutocastInferer.")
        super().__init__(**kwargs)
        self.unlabelled = unlabelled
        self.warm_up = self.state.max_epochs * self.state.epoch_length // 5 if warm_up is None else warm_up
        self.teacher = make_teacher(self.network) if teacher is None else teacher
        plain = ForegroundWeightedBCE(per="dataset", pos_weight=1.0)
        self.consistency_loss = plain if consistency_loss is None else consistency_loss

    def _iteration(self, engine: MeanTeacherTrainer, batchdata: Any) -> dict[str, Any]:
        """Take a step; returns the output that the class tells of."""
        inputs, targets = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        step, steps = engine.state.iteration - 1, engine.state.max_epochs * engine.state.epoch_length
        weight = consistency_weight(step, steps, self.warm_up)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        logits = engine.inferer(inputs, engine.network)
        output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets, CommonKeys.PRED: logits}
        engine.state.output = output
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = supervised = engine.loss_function(logits, targets)
        consistency = confident = torch.zeros(())
        if weight:
            consistency, confident = self._consistency(step)
            loss = supervised + weight * consistency
        output |= {"supervised": supervised.item(), "consistency": consistency.item(), "confident": confident.item()}
        output |= {CommonKeys.LOSS: loss, "weight": weight}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.optimizer.step()
        self.teacher.update_parameters(engine.network)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _consistency(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of the unlabelled crops, and the fraction of their pixels of which the teacher is sure."""
        batch = self.unlabelled.crop_batch(step)
        weak, real = (batch[name].to(self.state.device) for name in ("image", "known"))
        target, sure = pseudo_target(self._taught(weak))
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step, 0, 2)))
        grey = batch["image"].add(1.0).mul(127.5).round()
        strong = normalize(torch.stack([strong_view(crop, rng) for crop in grey])).to(self.state.device)
        strong, target, known = cut_mix(strong, target, sure & real, rng)
        confident = known.float().mean()
        logits = self.inferer(strong, self.network)
        return loss_over_known(self.consistency_loss, logits, target, known) * confident, confident

    @torch.no_grad()
    def _taught(self, weak: torch.Tensor) -> torch.Tensor:
        """Predict the teacher's probability of foreground."""
        self.teacher.eval()
        for layer in batch_norm_layers(self.teacher):
            layer.train()  # what it keeps of this goes with the next step of the student
        probability = torch.sigmoid(self.inferer(weak, self.teacher).float())
        self.teacher.eval()
        return probability


class OwnStatistics(nn.Module):
    """A network that normalises each input by the statistics of that input, for validating a teacher while it learns.

    The running statistics are those of the student, of labelled and of changed crops, and fit neither; in use they are
    fitted to the pool.

    Args:
        network: looked at anew at each call, and left as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.stride = getattr(network, "stride", 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``x``; shapes are those of the network."""
        return use_batch_statistics(self.network)(x)

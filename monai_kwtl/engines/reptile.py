"""Meta-training: Reptile over several source data sets, as a MONAI trainer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from monai_kwtl.data.crops import prepare_crops
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import loss_over_known
from monai_kwtl.metrics import overlap
from monai_kwtl.networks.autocast import autocast_choice, native_bfloat16
from monai_kwtl.networks.batch_norm import batch_norm_layers
from monai_kwtl.utils.distributed import ranks

__all__ = [
    "BUFFERS",
    "CropSource",
    "ReptileTrainer",
    "flatten_counters",
    "flatten_floats",
    "move_towards",
    "network_state",
    "restore",
]

BUFFERS = ("average", "keep")


class CropSource(Protocol):
    """Source of a task's crops, such as ``monai_kwtl.data.CropDataset``: a pure function of the meta-epoch."""

    def crop_batch(self, step: int) -> Any:
        """Return the batch of a meta-epoch, counted from 0: what ``prepare_batch`` takes, and the pixels ``known``."""
        ...


@contextmanager
def _random_state_of(task: str, meta_epoch: int, device: torch.device) -> Iterator[None]:
    """Make what the network draws (dropout) depend on task and meta-epoch only, and leave the global state alone."""
    words = (torch.initial_seed() % 2**63, meta_epoch, zlib.crc32(task.encode()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
        yield


class ReptileTrainer(Trainer):
    """Reptile (Nichol, Achiam and Schulman 2018): find weights from which a few steps lead to any of the sources.

    An iteration, which is also an epoch, is a meta-epoch: for each source, start from the common weights ``theta`` and
    take ``inner_steps`` full-batch steps on that source's crops with an optimiser of its own, to ``theta_task``; then
    ``theta += meta_lr * mean over tasks of (theta_task - theta)``.

    Batch-norm statistics follow ``buffers``. The default, ``"average"``, moves running means and variances like the
    weights, so that with one source and ``meta_lr=1`` a meta-epoch is plain training; integer counters take the
    largest value of the tasks. The average fits no source well: re-estimate the statistics on the images in question
    before use. ``"keep"`` leaves all buffers alone. In training neither has a say in the weights.

    In a distributed run, task i belongs to rank ``i % world_size``; the changes are summed over the ranks in float64,
    and every rank takes the same outer step. All begin with the weights of rank 0. Do not wrap the network in
    ``DistributedDataParallel``.

    ``IterationEvents.INNER_ITERATION_STARTED`` and ``INNER_ITERATION_COMPLETED`` fire around each inner step of this
    rank's tasks; at the latter ``engine.state.output`` holds ``task``, ``inner_iteration`` (from 1) and ``loss``.
    After a meta-epoch ``engine.state.output`` is a flat dict of numbers, also in ``engine.state.metrics``:
    ``loss/<task>``, ``loss_first/<task>``, ``loss_last/<task>`` (mean, first and last of the inner loop),
    ``iou/<task>`` (on its crops after the inner loop, with their own batch statistics), and ``loss`` and ``iou``, their
    means over the tasks.

    To resume, load the states of network and engine: no optimiser outlives a meta-epoch.

    Args:
        device: where to train.
        max_epochs: number of meta-epochs.
        sources: name of each task and where its crops come from, such as ``CropDataset(data, batch_size=5,
            seed=[seed, task])``.
        network: from images (N, C, H, W) to logits (N, 1, H, W), on ``device``.
        loss_function: from logits, labels and known pixels to a scalar, see :func:`monai_kwtl.losses.loss_over_known`.
        inner_optimizer: from parameters to a new optimiser; None is Adam with a rate of 1e-3 and weight decay 5e-4.
        inner_steps: steps of each task in a meta-epoch.
        meta_lr: length of the outer step, above 0.
        buffers: ``"average"`` or ``"keep"``.
        amp: whether the network runs under bfloat16 autocast; None or ``"auto"``: where the device multiplies bfloat16
            natively.
        inferer: how the network is run; None calls it.
        prepare_batch: from a batch to images and labels on the device.
        non_blocking: as in ``torch.Tensor.to``.
        to_kwargs: further arguments of ``prepare_batch``.
        train_handlers: Ignite handlers with ``attach``.

    Raises:
        KWTLError: without a source or for unusable settings; while running, when a loss or a weight is not finite:
            the network then has its weights from before that meta-epoch, on all ranks.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        sources: Mapping[str, CropSource],
        network: nn.Module,
        loss_function: Callable[..., torch.Tensor],
        inner_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        inner_steps: int = 30,
        meta_lr: float = 1.0,
        buffers: str = "average",
        amp: bool | str | None = False,
        inferer: Inferer | None = None,
        prepare_batch: Callable = prepare_crops,
        non_blocking: bool = False,
        to_kwargs: dict | None = None,
        train_handlers: Sequence | None = None,
    ) -> None:
        if not sources:
            raise KWTLError("meta-training needs at least one source; give folders of labelled images.")
        if buffers not in BUFFERS:
            raise KWTLError(f"buffers must be one of {', '.join(BUFFERS)}, got {buffers!r}.")
        if not 0 < meta_lr < math.inf or inner_steps < 1:
            raise KWTLError(f"meta_lr must be above 0 and inner_steps at least 1, got {meta_lr} and {inner_steps}.")
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            # crops are asked for by the number of the meta-epoch instead, so that a resumed run gets the same ones
            data_loader=repeat(tuple(sources)),
            epoch_length=1,
            non_blocking=non_blocking,
            prepare_batch=prepare_batch,
            to_kwargs=to_kwargs,
            decollate=False,
            handlers=train_handlers,
        )
        self.sources, self.network, self.loss_function = dict(sources), network, loss_function
        self.inner_optimizer = inner_optimizer or partial(torch.optim.Adam, lr=1e-3, weight_decay=5e-4)
        self.inner_steps, self.meta_lr, self.buffers = inner_steps, meta_lr, buffers
        # not the base class's amp, which is float16 on CUDA with a gradient scaler
        chosen = autocast_choice(amp)
        self.bfloat16 = native_bfloat16(self.state.device) if chosen is None else chosen
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.add_event_handler(Events.STARTED, ReptileTrainer._share_weights)

    def _share_weights(self) -> None:
        if ranks().count > 1:
            for tensor in network_state(self.network).values():
                values = tensor.contiguous()
                dist.broadcast(values, src=0)
                tensor.copy_(values)

    def _iteration(self, engine: ReptileTrainer, batchdata: Sequence[str]) -> dict[str, float]:
        """Run a meta-epoch.

        Args:
            engine: this trainer.
            batchdata: names of the tasks.

        Returns:
            The numbers of the meta-epoch, as the class says.
        """
        rank, world_size = ranks()
        state = network_state(engine.network)
        start = {name: tensor.clone() for name, tensor in state.items()}
        origin, counters = flatten_floats(start), flatten_counters(start)
        change = torch.zeros_like(origin)
        reports: dict[str, dict[str, float]] = {}
        failure = None
        try:
            for task in batchdata[rank::world_size]:
                restore(state, start)
                inputs, targets, known = self._batch(task)
                losses = self._train_task(task, inputs, targets, known)
                change += flatten_floats(state) - origin
                counters = torch.maximum(counters, flatten_counters(state))
                if not torch.isfinite(change).all():
                    raise self._diverged(task, "the weights are", self.inner_steps)
                iou = self._iou(inputs, targets, known)  # last, because it changes the running statistics
                reports[task] = {"loss": sum(losses) / len(losses), "loss_first": losses[0], "loss_last": losses[-1]}
                reports[task]["iou"] = iou
        except KWTLError as error:  # first told to the other ranks, which would wait for this one for ever
            failure = error
        finally:
            restore(state, start)
            engine.network.zero_grad(set_to_none=True)
        if world_size > 1:
            gathered: list[Any] = [None] * world_size
            dist.all_gather_object(gathered, (reports, failure and str(failure)))
            reports = {task: report for part, _ in gathered for task, report in part.items()}
            failure = failure or next((KWTLError(words) for _, words in gathered if words), None)
        if failure:
            raise failure
        if world_size > 1:
            dist.all_reduce(change)
            if counters.numel():
                dist.all_reduce(counters, op=dist.ReduceOp.MAX)
        move_towards(engine.network, start, change / len(batchdata), counters, self.meta_lr, self.buffers)
        output = {f"{key}/{task}": value for task in batchdata for key, value in reports[task].items()}
        output |= {key: sum(reports[task][key] for task in batchdata) / len(batchdata) for key in ("loss", "iou")}
        engine.state.metrics.update(output)
        engine.state.output = output
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _batch(self, task: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = self.sources[task].crop_batch(self.state.iteration - 1)
        inputs, targets = self.prepare_batch(batch, self.state.device, self.non_blocking, **self.to_kwargs)
        return inputs, targets, batch["known"].to(self.state.device, non_blocking=self.non_blocking)

    def _predict(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.inferer(inputs, self.network)
        return logits.float()

    def _train_task(self, task: str, inputs: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> list[float]:
        """Train the network on one task, in place, and return the loss of each step."""
        losses: list[float] = []
        optimizer = self.inner_optimizer(self.network.parameters())
        self.network.train()
        with _random_state_of(task, self.state.iteration, self.state.device):
            for step in range(1, self.inner_steps + 1):
                self.fire_event(IterationEvents.INNER_ITERATION_STARTED)
                optimizer.zero_grad(set_to_none=True)
                loss = loss_over_known(self.loss_function, self._predict(inputs), targets, known)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise self._diverged(task, f"the loss is {losses[-1]}, which is", step)
                loss.backward()
                optimizer.step()
                self.state.output = {"task": task, "inner_iteration": step, "loss": losses[-1]}
                self.fire_event(IterationEvents.INNER_ITERATION_COMPLETED)
        return losses

    def _diverged(self, task: str, what: str, step: int) -> KWTLError:
        return KWTLError(
            f"{what} not finite in meta-epoch {self.state.iteration}, source {task}, inner step {step}; lower the "
            "learning rate of the inner loop and go on from the last checkpoint."
        )

    @torch.no_grad()
    def _iou(self, inputs: torch.Tensor, targets: torch.Tensor, known: torch.Tensor) -> float:
        """Return the foreground IoU over the known pixels of all crops together, with their own batch statistics."""
        self.network.eval()
        for layer in batch_norm_layers(self.network):
            layer.train()
        mask = self._predict(inputs) > 0
        self.network.train()
        return overlap(mask.cpu().numpy(), targets.cpu().numpy(), known.cpu().numpy()).iou


def network_state(network: nn.Module, buffers: bool = True) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a network by name, each once: the tensors, detached, not copies."""
    state = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return state | dict(network.named_buffers()) if buffers else state


@torch.no_grad()
def restore(state: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the tensors of the same names, in place."""
    for name, tensor in state.items():
        tensor.copy_(values[name])


def flatten_floats(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return all floating-point values of a state, float64: their sum over tasks hardly depends on the order."""
    return torch.cat([t.double().reshape(-1) for t in state.values() if t.is_floating_point()])


def flatten_counters(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return all integer values of a state, int64, such as the number of batches that a batch-norm layer has seen."""
    counters = [t.long().reshape(-1) for t in state.values() if not t.is_floating_point()]
    return torch.cat(counters) if counters else torch.zeros(0, dtype=torch.long)


@torch.no_grad()
def move_towards(
    network: nn.Module,
    start: Mapping[str, torch.Tensor],
    direction: torch.Tensor,
    counters: torch.Tensor,
    meta_lr: float,
    buffers: str = "average",
) -> None:
    """Set a network to ``start + meta_lr * direction``.

    Args:
        network: is changed in place; memory formats stay.
        start: its state before the tasks, as :func:`network_state` gives it.
        direction: mean over the tasks of the change of :func:`flatten_floats`.
        counters: what :func:`flatten_counters` shall become.
        meta_lr: length of the step.
        buffers: ``"average"``: floating-point buffers (running means and variances) move like parameters, but never
            beyond the mean of the tasks, lest a variance become negative; integers become ``counters``. ``"keep"``:
            buffers stay those of ``start``.
    """
    parameters = network_state(network, buffers=False)
    floats = ints = 0
    for name, tensor in network_state(network).items():
        size, is_float, is_buffer = tensor.numel(), tensor.is_floating_point(), name not in parameters
        if is_float:
            rate = min(meta_lr, 1.0) if is_buffer else meta_lr
            value = start[name].double() + rate * direction[floats : floats + size].reshape(tensor.shape)
            floats += size
        else:
            value = counters[ints : ints + size].reshape(tensor.shape)
            ints += size
        tensor.copy_(start[name] if is_buffer and buffers == "keep" else value)

"""The outer step of Reptile on a network's parameters and buffers, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["BUFFERS", "counters_in_a_row", "floats_in_a_row", "move_towards", "network_state", "restore"]

BUFFERS = ("average", "keep")


def network_state(network: nn.Module, buffers: bool = True) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a network by name, each once; the tensors themselves, detached, not copies."""
    state = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return state | dict(network.named_buffers()) if buffers else state


@torch.no_grad()
def restore(state: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the tensors of the same names, in place."""
    for name, tensor in state.items():
        tensor.copy_(values[name])


def floats_in_a_row(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All floating-point values of a state, float64: their sum over tasks hardly depends on the order."""
    return torch.cat([t.double().reshape(-1) for t in state.values() if t.is_floating_point()])


def counters_in_a_row(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All integer values of a state, int64, such as the number of batches that a batch-norm layer has seen."""
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
        direction: mean over the tasks of the change of :func:`floats_in_a_row`.
        counters: what :func:`counters_in_a_row` shall become.
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

"""The outer step of Reptile against loops over single numbers; what it does in a training is in test_engines."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_kwtl.engines.reptile import BUFFERS, flatten_counters, flatten_floats, move_towards, network_state, restore


def make_network(seed=0):
    """Parameters, float and integer buffers, one of them not saved with the weights, and two layers that share one."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    network[3].weight = network[2].weight
    network[1].running_mean.normal_()
    network[1].running_var.uniform_(0.5, 2)
    network.register_buffer("offset", torch.rand(2), persistent=False)
    network.register_buffer("seen", torch.tensor([3, 4]))
    return network


def numbers(network):
    """Every number of a network, {(name, index): value}."""
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    return {(name, i): value for name, t in state.items() for i, value in enumerate(t.detach().reshape(-1).tolist())}


def copy_of(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def test_the_state_is_every_tensor_once_and_no_copy():
    network = make_network()
    state = network_state(network)
    assert "3.weight" not in state and "2.weight" in state, "shared weights move once"
    assert {"offset", "seen", "1.num_batches_tracked"} <= state.keys()
    assert not any(tensor.requires_grad for tensor in state.values())
    state["0.bias"].fill_(7)
    assert torch.equal(network[0].bias.data, torch.full((3,), 7.0))
    assert network_state(network, buffers=False).keys() == dict(network.named_parameters()).keys()


def test_restoring_copies_values_and_keeps_the_tensors():
    network, other = make_network(0), make_network(1)
    addresses = {name: tensor.data_ptr() for name, tensor in network_state(network).items()}
    values = copy_of(network_state(other))
    restore(network_state(network), values)
    assert numbers(network) == numbers(other)
    assert {name: tensor.data_ptr() for name, tensor in network_state(network).items()} == addresses
    values["0.bias"].fill_(9)
    assert numbers(network) == numbers(other)


def test_the_rows_hold_every_number_in_the_order_of_the_state():
    state = network_state(make_network())
    floats, counters = flatten_floats(state), flatten_counters(state)
    assert floats.dtype == torch.float64 and counters.dtype == torch.int64
    expected = [v for t in state.values() if t.is_floating_point() for v in t.double().reshape(-1).tolist()]
    assert floats.tolist() == expected
    assert counters.tolist() == [3, 4, 0], "a module's own buffers come before those of its parts"
    assert flatten_counters(network_state(nn.Conv2d(1, 1, 1))).shape == (0,)


@pytest.mark.parametrize("meta_lr", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("buffers", BUFFERS)
def test_every_number_moves_by_its_own_part_of_the_direction(meta_lr, buffers):
    network = make_network()
    start = copy_of(network_state(network))
    before = numbers(network)
    parameters = dict(network.named_parameters()).keys()
    names = [(name, i) for name, t in start.items() if t.is_floating_point() for i in range(t.numel())]
    direction = torch.randn(len(names), dtype=torch.float64)
    with torch.no_grad():  # whatever the tasks have left in it
        for tensor in network_state(network).values():
            tensor.zero_()
    move_towards(network, start, direction, torch.tensor([11, 12, 13]), meta_lr, buffers)
    after = numbers(network)
    expected = dict(before)
    for key, step in zip(names, direction.tolist(), strict=True):
        rate = meta_lr if key[0] in parameters else 0.0 if buffers == "keep" else min(meta_lr, 1.0)
        expected[key] += rate * step
    if buffers == "average":
        expected |= {("seen", 0): 11, ("seen", 1): 12, ("1.num_batches_tracked", 0): 13}
    assert after == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert network[3].weight is network[2].weight


def test_half_precision_is_added_in_double():
    network = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    network.weight.data.fill_(256.0)
    start = copy_of(network_state(network))
    move_towards(network, start, torch.tensor([0.75], dtype=torch.float64), torch.zeros(0, dtype=torch.long), 3.0)
    assert network.weight.dtype == torch.bfloat16
    assert network.weight.item() == 258.0  # 258.25, of which bfloat16 holds 258; three steps of 0.75 would be lost


def test_no_graph_is_made():
    network = make_network()
    start = copy_of(network_state(network))
    nowhere = torch.zeros_like(flatten_floats(start))
    move_towards(network, start, nowhere, flatten_counters(start), 1.0)
    assert all(p.requires_grad and p.grad_fn is None and p.grad is None for p in network.parameters())
    assert all(torch.equal(tensor, start[name]) for name, tensor in network_state(network).items())

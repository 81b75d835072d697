"""Batch-norm statistics become the plain average over the images given, and nothing else of a network changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from monai_kwtl.networks.batch_norm import (
    batch_norm_layers,
    batch_norm_statistics,
    estimate_batch_norm_statistics,
    set_batch_norm_statistics,
    use_batch_statistics,
)
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.optimize import fold_batch_norm

SMALL = (3, 4, 5, 6)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fcrn(**kwargs):
    torch.manual_seed(0)
    return _unsettle(FCRN(features=SMALL, **kwargs))


def _unsettle(network):
    for layer in batch_norm_layers(network):
        nn.init.uniform_(layer.running_mean, -0.5, 0.5)
        nn.init.uniform_(layer.running_var, 0.3, 3.0)
        if layer.affine:
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return network


def pool():
    return [images(1, 1, 40, 56, seed=1), images(3, 1, 33, 17, seed=2), images(1, 1, 80, 9, seed=3) * 5]


def by_hand(network, batches):
    """Mean over the batches of each layer's input mean and unbiased variance, where every layer uses its batch's."""
    trained = copy.deepcopy(network).train()
    moments = {index: [] for index in range(len(batch_norm_layers(trained)))}
    for index, layer in enumerate(batch_norm_layers(trained)):

        def keep(_module, inputs, index=index):
            values = inputs[0].detach().double().numpy()
            axes = (0, *range(2, values.ndim))
            moments[index].append((values.mean(axis=axes), values.var(axis=axes, ddof=1)))

        layer.register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in batches:
            trained(batch)
    return [np.mean(pairs, axis=0) for pairs in moments.values()]


def everything(network):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    return state, [m.training for m in network.modules()], [m.momentum for m in batch_norm_layers(network)]


def assert_unchanged(network, before, except_for=()):
    state, flags, momenta = everything(network)
    assert flags == before[1] and momenta == before[2]
    for name, value in state.items():
        if not name.endswith(tuple(except_for) or ("nothing",)):
            assert torch.equal(value, before[0][name]), name


def test_statistics_are_the_mean_of_each_batchs_mean_and_variance():
    network = fcrn()
    expected = by_hand(network, pool())
    assert estimate_batch_norm_statistics(network, iter(pool())) == 3
    for layer, (mean, variance) in zip(batch_norm_layers(network), expected, strict=True):
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-4, atol=1e-5)
        assert int(layer.num_batches_tracked) == 3


def test_order_of_the_images_does_not_matter():
    one, other = fcrn(), fcrn()
    estimate_batch_norm_statistics(one, pool())
    estimate_batch_norm_statistics(other, pool()[::-1])
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_second_run_forgets_the_first():
    once, twice = fcrn(), fcrn()
    estimate_batch_norm_statistics(once, pool())
    estimate_batch_norm_statistics(twice, [images(2, 1, 24, 24, seed=9) * 100])
    estimate_batch_norm_statistics(twice, pool())
    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value)


@pytest.mark.parametrize("training", [True, False])
def test_weights_flags_and_momentum_stay(training):
    network = fcrn(dropout=0.5).train(training)
    network.dropout.train(not training)
    layers = batch_norm_layers(network)
    layers[0].momentum, layers[1].momentum = 0.25, None
    layers[2].train(not training)
    before = everything(network)
    estimate_batch_norm_statistics(network, pool())
    assert_unchanged(network, before, except_for=("running_mean", "running_var", "num_batches_tracked"))


def test_dropout_is_off_meanwhile():
    one, other = fcrn(dropout=0.9).train(), fcrn()
    estimate_batch_norm_statistics(one, pool())
    estimate_batch_norm_statistics(other, pool())
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_without_images_nothing_changes():
    network = fcrn().train()
    before = everything(network)
    assert estimate_batch_norm_statistics(network, []) == 0
    assert_unchanged(network, before)


def test_an_error_midway_leaves_everything_as_it_was():
    def breaks():
        yield images(1, 1, 24, 32)
        raise OSError("the disk is gone")

    network = fcrn().train()
    before = everything(network)
    with pytest.raises(OSError, match="the disk is gone"):
        estimate_batch_norm_statistics(network, breaks())
    assert_unchanged(network, before)
    with pytest.raises(RuntimeError):
        estimate_batch_norm_statistics(network, [images(1, 1, 24, 32), images(1, 2, 24, 32)])
    assert_unchanged(network, before)


def test_a_network_without_batch_norm_is_not_run():
    torch.manual_seed(0)
    network = FCRN(features=SMALL, norm="instance")
    before = everything(network)
    assert estimate_batch_norm_statistics(network, [torch.zeros(1, 7, 8, 8)]) == 0
    assert_unchanged(network, before)


def test_layers_without_running_statistics_are_left_out():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3))
    assert batch_norm_layers(network) == [network[2]]
    assert estimate_batch_norm_statistics(network, [images(1, 1, 9, 7)]) == 1
    assert network[1].running_mean is None


def test_volumes_have_statistics_too():
    torch.manual_seed(0)
    network = FCRN(spatial_dims=3, features=SMALL)
    batches = [images(1, 1, 9, 16, 10), images(2, 1, 16, 8, 8, seed=1)]
    expected = by_hand(network, batches)
    estimate_batch_norm_statistics(network, batches)
    for layer, (mean, variance) in zip(batch_norm_layers(network), expected, strict=True):
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.running_var.numpy(), variance, rtol=1e-4, atol=1e-5)


def test_batch_statistics_equal_a_forward_pass_in_training_mode():
    network = fcrn().eval()
    before = everything(network)
    changed = use_batch_statistics(network)
    trained = copy.deepcopy(network).train()
    with torch.no_grad():
        for batch in pool():
            torch.testing.assert_close(changed(batch), trained(batch), rtol=1e-5, atol=1e-6)
            assert not torch.allclose(changed(batch), network(batch), atol=1e-2)
    assert_unchanged(network, before)
    assert not changed.training


@pytest.mark.parametrize("height, width", [(8, 8), (37, 61), (1, 9)])
def test_folded_network_equals_the_unfolded(height, width):
    network = fcrn().train()
    before = everything(network)
    folded = fold_batch_norm(network)
    assert batch_norm_layers(folded) == [] and not folded.training
    assert_unchanged(network, before)
    x = images(2, 1, height, width)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network.eval()(x), rtol=1e-5, atol=1e-5)
    folded.encoder[0].weight.data.zero_()
    assert torch.equal(network.encoder[0].weight, before[0]["encoder.0.weight"])


@pytest.mark.parametrize(
    "build",
    [
        lambda: FCRN(),
        lambda: FCRN(spatial_dims=3, features=SMALL),
        lambda: FCRN(features=SMALL, norm=("batch", {"affine": False})),
        lambda: FCRN(features=SMALL, norm="instance"),
        lambda: BasicUNet(2, 1, 1, features=(4, 4, 8, 8, 8, 4), norm="batch"),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 1, 1)),
    ],
    ids=["paper", "volume", "no affine", "instance", "BasicUNet", "not adjacent", "no statistics"],
)
def test_folding_any_network_keeps_its_logits(build):
    torch.manual_seed(0)
    network = _unsettle(build()).eval()
    x = images(1, 1, *[32] * (3 if isinstance(network, FCRN) and network.head.weight.dim() == 5 else 2))
    with torch.no_grad():
        expected, got = network(x), fold_batch_norm(network)(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [(64, 64), (37, 61), (33, 200)])
def test_bfloat16_statistics_are_close_to_those_of_float64(size, threads):
    torch.manual_seed(0)
    network = FCRN()
    images_ = [images(1, 1, *size, seed=seed) for seed in range(3)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (fast, exact) = (
            np.mean(batch_norm_statistics(network, images_, amp=True), axis=0),
            np.mean(batch_norm_statistics(network.double(), [image.double() for image in images_]), axis=0),
        )
    finally:
        torch.set_num_threads(before)
    place = 0
    for layer in batch_norm_layers(network):
        mean, variance = (slice(place + i * layer.num_features, place + (i + 1) * layer.num_features) for i in (0, 1))
        assert (np.abs(fast[mean] - exact[mean]) / np.sqrt(exact[variance])).max() < 0.02
        assert np.abs(fast[variance] / exact[variance] - 1).max() < 0.03
        place = variance.stop
    assert place == len(fast) == len(exact)


def test_measuring_leaves_the_network_alone():
    network = fcrn(dropout=0.5).train()
    before = everything(network)
    rows = batch_norm_statistics(network, pool())
    assert_unchanged(network, before)
    assert len(rows) == 3 and all(row.dtype == np.float64 for row in rows)
    assert batch_norm_statistics(FCRN(features=SMALL, norm="instance"), [torch.zeros(1, 7, 8, 8)]) == []


def test_statistics_set_are_the_average_whoever_measured_them():
    one, other = fcrn(), fcrn()
    estimate_batch_norm_statistics(one, pool())
    rows = [row for batch in pool() for row in batch_norm_statistics(other, [batch])]
    set_batch_norm_statistics(other, [])
    assert not torch.equal(other.state_dict()["encoder.1.running_mean"], one.state_dict()["encoder.1.running_mean"])
    set_batch_norm_statistics(other, rows)
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("amp", [False, True])
def test_a_batch_has_the_statistics_that_it_has_as_the_first(amp):
    network = fcrn()
    batches = [images(1, 1, 64, 72, seed=seed) for seed in range(3)]
    together = batch_norm_statistics(network, batches, amp)
    alone = [batch_norm_statistics(network, [batch], amp)[0] for batch in batches]
    np.testing.assert_array_equal(together, alone)


def test_a_layer_that_is_called_twice_keeps_its_last_statistics():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(3 * self.norm(x) + 1)

    rows = batch_norm_statistics(Twice(), [images(1, 1, 20, 20, seed=seed) for seed in range(3)])
    np.testing.assert_allclose([row[0] for row in rows], 1, atol=1e-5)

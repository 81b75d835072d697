"""A network's batch-norm statistics are fitted to the images of a pool, of any size and any number."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.networks.nets import UNet
from PIL import Image

from monai_kwtl.data.pool import load_pool
from monai_kwtl.data.pool_batches import _read, pool_batches, pool_sample
from monai_kwtl.handlers.batch_norm import BatchNormAdapter
from monai_kwtl.networks.batch_norm import batch_norm_layers, estimate_batch_norm_statistics
from monai_kwtl.networks.fcrn import FCRN

SMALL = (3, 4, 5, 6)


def write_pool(folder, sizes, seed=0):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:02}.png")
    return load_pool(str(folder)), arrays


def network_input(array):
    return torch.from_numpy(array.astype(np.float32) / 127.5 - 1)[None, None]


def fcrn():
    torch.manual_seed(0)
    return FCRN(features=SMALL)


def test_batches_are_the_images_as_network_input(tmp_path):
    items, arrays = write_pool(tmp_path, [(40, 33), (64, 70), (35, 101)])
    batches = list(pool_batches(items))
    assert len(batches) == 3
    for batch, array in zip(batches, arrays, strict=True):
        torch.testing.assert_close(batch, network_input(array), rtol=0, atol=1e-6)


def test_a_large_pool_is_sampled_evenly_from_the_first_to_the_last(tmp_path):
    items, arrays = write_pool(tmp_path, [(32, 32 + i) for i in range(20)])
    widths = [batch.shape[3] - 32 for batch in pool_batches(items, limit=5)]
    assert widths == [0, 5, 10, 14, 19]
    assert [batch.shape[3] - 32 for batch in pool_batches(items, limit=1)] == [0]
    assert len(list(pool_batches(items, limit=100))) == 20


def test_a_large_image_is_cut_around_its_centre(tmp_path):
    items, (array,) = write_pool(tmp_path, [(101, 60)])
    (batch,) = pool_batches(items, largest=64)
    torch.testing.assert_close(batch, network_input(array[18:82]), rtol=0, atol=1e-6)


def test_of_many_large_images_the_middle_and_the_corners_come_in_turn(tmp_path):
    items, arrays = write_pool(tmp_path, [(90, 70)] * 7 + [(20, 200)])
    places = [(25, 15), (0, 0), (50, 30), (0, 30), (50, 0), (25, 15), (0, 0)]
    parts = pool_sample(items, most=8 * 40 * 40 + 7)
    assert [part.side for part in parts] == [40] * 8
    for part, array, (y, x) in zip(parts, arrays, places, strict=False):
        np.testing.assert_array_equal(_read(part, None)[0], array[y : y + 40, x : x + 40])
    np.testing.assert_array_equal(_read(parts[7], None)[0], arrays[7][:, 160:])  # short in one direction


def test_parts_of_large_images_together_have_a_budget_of_pixels():
    large = [{"image": f"{number}.png", "height": 3000, "width": 2000} for number in range(100)]
    for count, side in ((1, 1536), (8, 1024), (20, 647), (32, 512), (100, 512)):
        assert {part.side for part in pool_sample(large[:count])} == {side}
    assert pool_sample([]) == []


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 40), (1, 300)])
@pytest.mark.filterwarnings("error")
def test_an_image_too_small_for_the_deepest_layer_is_mirrored(tmp_path, size):
    items, (array,) = write_pool(tmp_path, [size])
    (batch,) = pool_batches(items)
    mirrored = array
    for axis in (0, 1):
        while mirrored.shape[axis] < 32:
            mirrored = np.concatenate([mirrored, np.flip(mirrored, axis)], axis=axis)
        mirrored = mirrored.take(range(max(32, size[axis])), axis=axis)
    torch.testing.assert_close(batch, network_input(mirrored), rtol=0, atol=1e-6)
    ready = BatchNormAdapter(fcrn(), items).ready()
    with torch.no_grad():
        assert torch.isfinite(ready(network_input(array))).all()


@pytest.mark.parametrize("adapt", [True, False, "transductive"])
def test_the_network_handed_over_is_the_adapted_one(tmp_path, adapt):
    items, arrays = write_pool(tmp_path, [(40, 33), (64, 70)])
    network = fcrn()
    expected = copy.deepcopy(network)
    if adapt is True:
        estimate_batch_norm_statistics(expected, [network_input(a) for a in arrays])
    expected.train(adapt == "transductive")
    engine = Engine(lambda engine, batch: None)
    engine.network = network
    adapter = BatchNormAdapter(network, items, adapt=adapt)
    adapter.attach(engine)
    engine.run([0], max_epochs=1)
    assert engine.network is adapter.ready() and not engine.network.training
    x = network_input(arrays[0])
    with torch.no_grad():
        torch.testing.assert_close(engine.network(x), expected(x), rtol=1e-5, atol=1e-5)


def test_a_network_that_cannot_pad_is_given_images_of_a_size_it_can_take(tmp_path):
    items, arrays = write_pool(tmp_path, [(45, 70), (33, 51)])
    torch.manual_seed(0)
    network = UNet(2, 1, 1, channels=(4, 8, 8), strides=(2, 2), norm="batch")
    with pytest.raises(RuntimeError):
        network(network_input(arrays[0]))
    before = [layer.running_mean.clone() for layer in batch_norm_layers(network)]
    BatchNormAdapter(network, items).ready()
    for layer, mean in zip(batch_norm_layers(network), before, strict=True):
        assert int(layer.num_batches_tracked) == 2 and not torch.equal(layer.running_mean, mean)

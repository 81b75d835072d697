"""Crops are a pure function of seed and step, lie where they may, and keep image, label and known pixels together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose
from torch.utils.data import DataLoader

from monai_kwtl.data.crop_images import CropImage, draw_start
from monai_kwtl.data.crops import CropDataset, GridCropDataset, prepare_crops
from monai_kwtl.engines.tuning_trainer import TuningTrainer
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import ForegroundWeightedBCE


@dataclass
class Patch:
    x: int
    y: int
    width: int
    height: int


def unique_image(height, width, offset=0):
    """An image whose 4x4 neighbourhoods tell where they are: column in even rows, row in odd rows."""
    rows, columns = np.mgrid[:height, :width]
    return np.where(rows % 2 == 0, columns + offset, rows + offset).astype(np.uint8)[None]


def item(height, width, offset=0, **more):
    image = unique_image(height, width, offset)
    return {"name": f"{height}x{width}.png", "image": image, "label": (image % 7 == 0).astype(np.uint8), **more}


def grey(batch):
    """The uint8 grey values of a batch of network input."""
    return ((batch["image"] + 1) * 127.5).round().to(torch.uint8).numpy()[:, 0]


def flat(batch):
    return torch.cat([batch[key].double().reshape(-1) for key in ("image", "label", "known")])


def places_of(dataset, step):
    """Where the crops of a step lie, found by comparing with every place of every image."""
    found = []
    for crop in grey(dataset.crop_batch(step)):
        hits = [
            (number, y, x)
            for number, source in enumerate(dataset.images)
            for y, x in np.argwhere(
                (np.lib.stride_tricks.sliding_window_view(source.image, crop.shape) == crop).all(axis=(2, 3))
            )
        ]
        assert len(hits) == 1
        found.append(tuple(int(value) for value in hits[0]))
    return found


# --- a pure function --------------------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    return [item(40, 61), item(33, 47, offset=100)]


@pytest.mark.parametrize("kind", [CropDataset, GridCropDataset])
def test_a_batch_depends_on_seed_and_step_alone(pool, kind):
    make = lambda seed: kind(pool, size=16, batch_size=5, seed=seed)  # noqa: E731
    one, other = make(3), make(3)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    forwards = [flat(one.crop_batch(step)) for step in range(6)]
    backwards = [flat(other.crop_batch(step)) for step in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert len({tuple(batch.tolist()) for batch in forwards}) == 6
    assert not torch.equal(forwards[0], flat(make(4).crop_batch(0)))
    assert not torch.equal(flat(make([3, 0]).crop_batch(0)), flat(make([3, 1]).crop_batch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_what_comes(pool, workers):
    dataset = CropDataset(pool, steps=5, size=16, batch_size=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    batches = list(loader)
    assert len(batches) == 5
    for step, batch in enumerate(batches):
        assert torch.equal(flat(batch), flat(dataset.crop_batch(step)))


def test_a_later_start_sees_the_rest_of_the_same_batches(pool):
    whole = [flat(batch) for batch in CropDataset(pool, steps=7, size=16, batch_size=4)]
    rest = CropDataset(pool, steps=7, start_step=3, size=16, batch_size=4)
    assert len(rest) == 4
    assert all(torch.equal(a, flat(b)) for a, b in zip(whole[3:], rest, strict=True))
    assert len(CropDataset(pool, steps=7, start_step=9, size=16)) == 0


@pytest.mark.parametrize("kind", [CropDataset, GridCropDataset])
def test_the_parts_of_all_processes_are_the_batch_of_one(pool, kind):
    whole = kind(pool, size=16, batch_size=7)
    parts = [kind(pool, size=16, batch_size=7, rank=rank, world_size=3) for rank in range(3)]
    for step in range(3):
        batch = whole.crop_batch(step)
        for rank, part in enumerate(parts):
            assert torch.equal(flat(part[step]), flat({k: v[rank::3] for k, v in batch.items()}))


# --- what a crop is ---------------------------------------------------------------------------------------------------


def test_shapes_types_and_ranges(pool):
    batch = CropDataset(pool, size=16, batch_size=6).crop_batch(0)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "image": ((6, 1, 16, 16), torch.float32),
        "label": ((6, 1, 16, 16), torch.float32),
        "known": ((6, 1, 16, 16), torch.bool),
    }
    assert batch["known"].all()
    assert set(batch["label"].unique().tolist()) == {0.0, 1.0}


def test_grey_values_become_network_input():
    ends = np.zeros((1, 8, 8), dtype=np.uint8)
    ends[0, :, 4:] = 255
    batch = CropDataset([{"image": ends, "label": ends}], size=8, batch_size=1).crop_batch(0)
    assert sorted(batch["image"].unique().tolist()) == [-1.0, 1.0]
    assert torch.equal(batch["image"] > 0, batch["label"] == 1)


def test_label_and_known_pixels_move_with_the_image():
    known = np.zeros((1, 50, 70), dtype=bool)
    known[:, 10:30, 20:55] = True
    source = item(50, 70, known=known)
    # the label and what is known are made functions of the grey value, which says where a pixel is
    source["label"] = (source["image"] % 5 == 0).astype(np.uint8)
    source["known"] = known & (source["image"] % 3 == 0)
    dataset = CropDataset([source], size=24, batch_size=16)
    for step in range(4):
        batch = dataset.crop_batch(step)
        values = grey(batch)
        assert np.array_equal(batch["label"].numpy()[:, 0] == 1, values % 5 == 0)
        assert not (batch["known"].numpy()[:, 0] & (values % 3 != 0)).any()


def test_all_eight_flips_and_turns_come_about_equally_often():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    dataset = CropDataset([{"image": image, "label": image}], size=8, batch_size=800)
    counts: dict[bytes, int] = {}
    for crop in grey(dataset.crop_batch(0)):
        counts[crop.tobytes()] = counts.get(crop.tobytes(), 0) + 1
    expected = {np.ascontiguousarray(np.rot90(i, k)).tobytes() for k in range(4) for i in (image[0], image[0].T)}
    assert set(counts) == expected
    assert min(counts.values()) > 60  # 100 expected, standard deviation 9.4


def test_without_augmentation_crops_are_cut_as_they_are(pool):
    dataset = CropDataset(pool, size=16, batch_size=8, augment=False)
    for number, y, x in places_of(dataset, 0):
        assert 0 <= y <= dataset.images[number].image.shape[0] - 16
        assert 0 <= x <= dataset.images[number].image.shape[1] - 16


def test_places_are_uniform_and_reach_the_borders():
    dataset = CropDataset([item(20, 19)], size=16, batch_size=2000, augment=False)
    rng = [dataset._place(0, index, np.random.default_rng(index))[1:] for index in range(2000)]
    counts = np.zeros((5, 4))
    for y, x in rng:
        counts[y, x] += 1
    assert counts.min() > 60  # 100 expected, standard deviation 9.7


def test_larger_images_are_drawn_more_often():
    dataset = CropDataset([item(20, 40), item(60, 40, offset=90)], size=16)
    drawn = [dataset._place(0, index, np.random.default_rng(index))[0] for index in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.05)


def test_an_image_smaller_than_a_crop_is_reflected_and_the_padding_is_unknown():
    source = item(9, 40)
    dataset = CropDataset([source], size=16, batch_size=4, augment=False)
    batch = dataset.crop_batch(0)
    padded = np.pad(source["image"][0], ((0, 7), (0, 0)), mode="reflect")
    assert np.array_equal(dataset.images[0].image, padded)
    assert (batch["known"].sum(dim=(1, 2, 3)) == 9 * 16).all()
    assert batch["known"][:, :, :9].all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 3)])
def test_even_a_single_pixel_gives_a_crop(shape):
    image = np.full((1, *shape), 7, dtype=np.uint8)
    batch = CropDataset([{"image": image, "label": image}], size=16, batch_size=3).crop_batch(0)
    assert (grey(batch) == 7).all()
    assert (batch["known"].sum(dim=(1, 2, 3)) == min(shape[0], 16) * min(shape[1], 16)).all()


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor, MetaTensor])
def test_arrays_and_tensors_are_both_taken(wrap):
    raw = item(20, 30)
    wrapped = {key: value if key == "name" else wrap(value) for key, value in raw.items()}
    assert torch.equal(
        flat(CropDataset([wrapped], size=16).crop_batch(0)), flat(CropDataset([raw], size=16).crop_batch(0))
    )


def test_images_of_a_cache_are_not_copied(pool):
    cache = CacheDataset(pool, Compose([]), num_workers=1, progress=False)
    dataset = CropDataset(cache, size=16)
    assert all(np.shares_memory(a.image, b["image"]) for a, b in zip(dataset.images, cache, strict=True))


# --- what is known ----------------------------------------------------------------------------------------------------


def with_regions(boxes, height=90, width=120, give_regions=True):
    known = np.zeros((1, height, width), dtype=bool)
    for box in boxes:
        known[0, box.y : box.y + box.height, box.x : box.x + box.width] = True
    return item(height, width, known=known, **({"regions": boxes} if give_regions else {}))


@pytest.mark.parametrize("give_regions", [True, False])
@pytest.mark.parametrize("size", [8, 20, 32])
def test_every_crop_has_a_known_pixel_and_every_region_is_seen(size, give_regions):
    boxes = [Patch(0, 0, 20, 20), Patch(95, 65, 25, 20), Patch(50, 40, 3, 2)]
    dataset = CropDataset([with_regions(boxes, give_regions=give_regions)], size=size, batch_size=64, augment=False)
    seen = np.zeros((90, 120), dtype=bool)
    for step in range(8):
        assert dataset.crop_batch(step)["known"].any(dim=(1, 2, 3)).all()
    for index in range(5000):
        _, y, x = dataset._place(0, index, np.random.default_rng(index))
        seen[y : y + size, x : x + size] = True
    assert seen[dataset.images[0].known].all()


def test_most_of_a_crop_around_a_region_of_its_size_is_known():
    dataset = CropDataset([with_regions([Patch(50, 30, 32, 32)])], size=32, batch_size=200)
    fractions = dataset.crop_batch(0)["known"].float().mean(dim=(1, 2, 3))
    assert fractions.min() >= 0.5625  # a quarter of the side lost on both axes
    assert fractions.mean() > 0.7
    exact = CropDataset([with_regions([Patch(50, 30, 32, 32)])], size=32, batch_size=20, shift=0)
    assert exact.crop_batch(0)["known"].all()


def test_a_region_with_a_hole_or_a_bend_is_met_all_the_same():
    known = np.zeros((1, 100, 100), dtype=bool)
    known[0, :, 0] = known[0, 99, :] = True  # the box is everything, nearly all of it unknown
    dataset = CropDataset([item(100, 100, known=known)], size=10, batch_size=64)
    for step in range(4):
        assert dataset.crop_batch(step)["known"].any(dim=(1, 2, 3)).all()


def test_unknown_pixels_are_drawn_where_asked():
    dataset = CropDataset(
        [with_regions([Patch(0, 0, 10, 10)])], size=20, batch_size=50, require_known=False, augment=False
    )
    known = dataset.crop_batch(0)["known"].any(dim=(1, 2, 3))
    assert not known.all()


def test_images_without_a_known_pixel_are_never_drawn():
    blind = item(40, 40, offset=90, known=np.zeros((1, 40, 40), dtype=bool))
    dataset = CropDataset([blind, with_regions([Patch(3, 4, 9, 9)]), blind], size=16, batch_size=64)
    assert {dataset._place(0, i, np.random.default_rng(i))[0] for i in range(64)} == {1}


def test_regions_are_drawn_in_proportion_to_their_known_pixels():
    boxes = [Patch(0, 0, 30, 10), Patch(80, 60, 10, 10)]
    dataset = CropDataset([with_regions(boxes)], size=8, shift=0)
    left = [dataset._place(0, i, np.random.default_rng(i))[2] < 60 for i in range(2000)]
    assert np.mean(left) == pytest.approx(0.75, abs=0.05)


def test_the_importance_of_a_region_multiplies_its_chance():
    boxes = [Patch(0, 0, 30, 10), Patch(80, 60, 10, 10)]
    dataset = CropDataset([with_regions(boxes) | {"importance": [0.5, 4.5]}], size=8, shift=0)
    left = [dataset._place(0, i, np.random.default_rng(i))[2] < 60 for i in range(2000)]
    assert np.mean(left) == pytest.approx(0.25, abs=0.05)
    never = CropDataset([with_regions(boxes) | {"importance": [0.0, 1.0]}], size=8, shift=0)
    assert all(never._place(0, i, np.random.default_rng(i))[2] >= 60 for i in range(200))
    plain = CropDataset([with_regions(boxes)], size=8, batch_size=4)
    even = CropDataset([with_regions(boxes) | {"importance": [1.0, 1.0]}], size=8, batch_size=4)
    assert torch.equal(plain.crop_batch(3)["image"], even.crop_batch(3)["image"])


@pytest.mark.parametrize(
    ("start", "length", "size", "shift", "limit"),
    [(0, 50, 8, 3, 50), (20, 8, 8, 4, 50), (20, 3, 8, 100, 50), (45, 5, 8, 2, 50), (0, 1, 50, 9, 50), (7, 1, 1, 5, 9)],
)
def test_a_crop_and_its_span_always_meet(start, length, size, shift, limit):
    rng = np.random.default_rng(0)
    firsts = {draw_start(rng, start, length, size, shift, limit) for _ in range(500)}
    assert all(0 <= first <= limit - size and first < start + length and first + size > start for first in firsts)
    inside = [f for f in range(limit - size + 1) if max(0, min(f + size, start + length) - max(f, start)) > 0]
    allowed = [f for f in inside if min(size, length) - (min(f + size, start + length) - max(f, start)) <= shift]
    assert firsts == set(allowed)  # nothing reachable is left out, nothing further is drawn


def test_prepared_crops_are_those_of_the_batch():
    batch = CropDataset([with_regions([Patch(50, 30, 32, 32)])], size=32, batch_size=3).crop_batch(0)
    image, label = prepare_crops(batch, torch.device("cpu"), dtype=torch.float64)
    assert image.dtype == label.dtype == torch.float64
    assert torch.equal(image, batch["image"].double())
    assert torch.equal(label, batch["label"].double())


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=4),
    st.integers(1, 60),
    st.booleans(),
)
def test_labels_of_crops_are_0_or_1_and_known_is_where_regions_are(boxes, size, grid):
    image = np.random.default_rng(0).integers(0, 256, (1, 33, 47), dtype=np.uint8)
    known = np.zeros((1, 33, 47), dtype=bool)
    for x, y, width, height in boxes:
        known[0, y : y + height, x : x + width] = True
    assume(known.any())
    # grey values tell where a pixel is known, and so do labels: any value is a foreground that a mask may have
    image = np.where(known, image | 1, image & 254)
    entry = {"image": image, "label": np.where(image > 99, image, 0), "known": known}
    kind = GridCropDataset if grid else CropDataset
    batch = kind([entry], size=size, batch_size=3).crop_batch(0)
    assert set(batch["label"].unique().tolist()) <= {0.0, 1.0}
    assert batch["known"].dtype == torch.bool
    assert batch["known"].shape == batch["label"].shape == batch["image"].shape
    pixels = torch.from_numpy(grey(batch)[:, None])
    assert (pixels[batch["known"]] % 2 == 1).all()
    assert torch.equal(batch["label"], (pixels > 99).float())
    if size <= 33:  # without padding, of which nothing is known
        assert torch.equal(batch["known"], pixels % 2 == 1)


def test_positive_weight_counts_the_known_pixels_of_all_images():
    label = np.zeros((1, 10, 10), dtype=np.uint8)
    label[0, 0, :5] = 1
    known = np.zeros((1, 10, 10), dtype=bool)
    known[0, :2] = True
    image = np.zeros((1, 10, 10), dtype=np.uint8)
    half = {"image": image, "label": label, "known": known}
    whole = {"image": image, "label": label}
    assert CropDataset([half], size=16).positive_weight() == pytest.approx(15 / 5)
    assert CropDataset([half, whole], size=4).positive_weight() == pytest.approx((15 + 95) / 10)
    assert CropDataset([half, whole], size=4).positive_weight((0.5, 2)) == 2
    assert CropDataset([{"image": image, "label": image}], size=4).positive_weight() == 1


# --- the schedule of the paper ----------------------------------------------------------------------------------------


def test_every_crop_of_the_grid_comes_once_in_an_epoch(pool):
    dataset = GridCropDataset(pool, epochs=3, size=16, step=9, batch_size=7, augment=False)
    expected = sorted(
        [(0, y, x) for y in (0, 9, 24) for x in (0, 9, 18, 27, 36, 45)]
        + [(1, y, x) for y in (0, 9, 17) for x in (0, 9, 18, 31)]
    )
    epochs = []
    for epoch in range(3):
        steps = range(epoch * dataset.steps_per_epoch, (epoch + 1) * dataset.steps_per_epoch)
        epochs.append([place for step in steps for place in places_of(dataset, step)])
        assert sorted(epochs[-1]) == expected
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(dataset) == 3 * dataset.steps_per_epoch


def test_batches_of_an_epoch_have_nearly_the_same_length(pool):
    for batch_size, lengths in ((30, [30]), (29, [15, 15]), (14, [10, 10, 10]), (8, [7, 8, 7, 8])):
        dataset = GridCropDataset(pool, size=16, step=9, batch_size=batch_size)  # 30 crops
        steps = range(2 * len(lengths))
        assert [len(dataset.crop_batch(step)["image"]) for step in steps] == 2 * lengths


def test_regions_of_the_size_of_a_crop_are_the_crops():
    boxes = [Patch(0, 0, 16, 16), Patch(70, 40, 16, 16), Patch(74, 44, 16, 16), Patch(104, 74, 16, 16)]
    dataset = GridCropDataset([with_regions(boxes)], size=16, step=4, batch_size=8)
    assert sorted(dataset.places) == sorted((0, box.y, box.x) for box in boxes)
    assert dataset.crop_batch(0)["known"].all()


def test_crops_without_a_known_pixel_are_left_out_of_the_grid():
    known = np.zeros((1, 40, 40), dtype=bool)
    known[0, :, 0] = known[0, 39, :] = True
    dataset = GridCropDataset([item(40, 40, known=known)], size=10, step=10)
    assert sorted(place[1:] for place in dataset.places) == sorted(
        {(y, 0) for y in (0, 10, 20, 30)} | {(30, x) for x in (0, 10, 20, 30)}
    )


def test_too_many_processes_for_the_grid_are_refused():
    with pytest.raises(KWTLError, match="too few for 2 processes"):
        GridCropDataset([item(16, 16)], size=16, rank=0, world_size=2)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": None}, "20x30.png has no label"),
        ({"label": np.zeros((1, 20, 29), dtype=np.uint8)}, "the label of 20x30.png is 29 wide and 20 high"),
        ({"known": np.ones((1, 19, 30), dtype=bool)}, "the known mask of 20x30.png is 30 wide and 19 high"),
        ({"known": np.zeros((1, 20, 30), dtype=bool)}, "no labelled pixel"),
        ({"known": np.eye(20, 30, dtype=bool)[None], "regions": [Patch(25, 0, 5, 5)]}, "no labelled pixel"),
    ],
)
def test_bad_items_are_refused_in_one_line(change, words):
    with pytest.raises(KWTLError, match=words) as error:
        CropDataset([item(20, 30) | change], size=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"start_step": -1}, {"size": 2.5}, {"batch_size": 0}, {"seed": -1}, {"seed": 0.5}, {"shift": -1}],
)
def test_bad_settings_are_refused_by_name(settings):
    with pytest.raises(KWTLError, match=next(iter(settings))):
        CropDataset([item(20, 30)], **settings)
    with pytest.raises(KWTLError, match="no labelled pixel"):
        CropDataset([])


def test_images_of_another_kind_are_an_error():
    with pytest.raises(ValueError, match="float32"):
        CropImage.from_item({"image": np.zeros((1, 4, 4), dtype=np.float32), "label": np.zeros((1, 4, 4))}, 4)
    with pytest.raises(ValueError, match="shape"):
        CropImage.from_item({"image": np.zeros((3, 4, 4), dtype=np.uint8), "label": np.zeros((1, 4, 4))}, 4)


# --- with a MONAI trainer ---------------------------------------------------------------------------------------------


def train(pool, network, optimizer, start, stop, total=9, epoch_length=3, workers=0):
    """Train from one step to another as a stage does that was resumed, and return the batches seen."""
    dataset = CropDataset(pool, steps=total, start_step=start, size=16, batch_size=2)
    trainer = TuningTrainer(
        device="cpu",
        max_epochs=total // epoch_length,
        train_data_loader=DataLoader(dataset, batch_size=None, num_workers=workers),
        network=network,
        optimizer=optimizer,
        loss_function=ForegroundWeightedBCE(),
        epoch_length=epoch_length,
    )
    trainer.load_state_dict({"iteration": start, "epoch_length": epoch_length, "max_epochs": total // epoch_length})
    seen = []

    def note(engine):
        seen.append(flat(engine.state.batch))
        if engine.state.iteration == stop:
            engine.terminate()

    trainer.add_event_handler("ITERATION_COMPLETED", note)
    trainer.run()
    return seen


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_supervised_trainer_ends_with_the_weights_of_an_uninterrupted_one(pool, stop):
    def fresh():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1))
        return network, torch.optim.Adam(network.parameters(), lr=1e-2)

    network, optimizer = fresh()
    seen = train(pool, network, optimizer, 0, 9)
    assert len(seen) == 9
    again, its_optimizer = fresh()
    first = train(pool, again, its_optimizer, 0, stop)
    resumed, new_optimizer = fresh()
    resumed.load_state_dict(again.state_dict())
    new_optimizer.load_state_dict(its_optimizer.state_dict())
    rest = train(pool, resumed, new_optimizer, stop, 9)
    assert all(torch.equal(a, b) for a, b in zip(seen, first + rest, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), resumed.parameters(), strict=True))

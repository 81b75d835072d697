"""Reptile does what its formula says, on one process or two, resumed or not."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents
from stage_process import run_together
from torch import nn

from monai_kwtl.data.crops import CropDataset
from monai_kwtl.engines.reptile import ReptileTrainer, flatten_counters, flatten_floats, move_towards, network_state
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import ForegroundWeightedBCE
from monai_kwtl.metrics import overlap

LR, DECAY = 1e-3, 5e-4


def small_network(seed=0, dropout=0.0):
    """A convolution without bias before its batch norm: with one, Adam would turn rounding into steps of full size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(6, 1, 3, padding=1),
        )


def source(seed, brightness=0, crops=3):
    """A data set of noisy discs, brighter or darker than their background."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :52]
    items = []
    for _ in range(3):
        y, x = rng.uniform(10, 30, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 64
        image = 100 + brightness + 80 * disc + rng.normal(0, 20, disc.shape)
        items.append({"image": np.clip(image, 0, 255).astype(np.uint8)[None], "label": disc[None].astype(np.uint8)})
    return CropDataset(items, size=16, batch_size=crops, seed=[7, seed])


def make_trainer(network, sources, epochs=1, **more):
    more = {"inner_steps": 4} | more
    return ReptileTrainer("cpu", epochs, sources, network, ForegroundWeightedBCE(), **more)


def plain_training(network, batch, steps=4, optimizer=None):
    """Ordinary full-batch training with torch's own loss, written without the package; returns the losses."""
    images, labels = batch["image"], batch["label"]
    foreground = labels.sum(dim=(1, 2, 3), keepdim=True)
    background = labels[0].numel() - foreground
    weight = torch.where(foreground > 0, (background / foreground.clamp(min=1)).clamp(1 / 50, 50), 1.0)
    optimizer = optimizer or torch.optim.Adam(network.parameters(), lr=LR, weight_decay=DECAY)
    network.train()
    losses = []
    for _ in range(steps):
        loss = nn.BCEWithLogitsLoss(pos_weight=weight)(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(network, expected, **tolerance):
    for (name, value), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        assert value.dtype == other.dtype, name
        torch.testing.assert_close(value, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


# --- the formula ------------------------------------------------------------------------------------------------------


def test_one_source_and_a_meta_rate_of_one_is_plain_training():
    crops, network, expected = source(1), small_network(), small_network()
    losses = []
    for step in range(3):  # the optimiser is new in every meta-epoch
        losses.append(plain_training(expected, crops.crop_batch(step)))
    trainer = make_trainer(network, {"discs": crops}, epochs=3)
    trainer.run()
    assert_same(network, expected, rtol=0, atol=1e-7)
    assert network[1].num_batches_tracked.item() == 12
    assert trainer.state.output["loss_first/discs"] == pytest.approx(losses[-1][0], rel=1e-5)
    assert trainer.state.output["loss_last/discs"] == pytest.approx(losses[-1][-1], rel=1e-5)
    assert trainer.state.output["loss/discs"] == pytest.approx(np.mean(losses[-1]), rel=1e-5)


@pytest.mark.parametrize("meta_lr", [1.0, 0.3, 1.5])
def test_two_sources_move_by_the_mean_of_their_changes(meta_lr):
    sources = {"a": source(1), "b": source(2, brightness=-60)}
    network = small_network()
    tasks = []
    for crops in sources.values():
        tasks.append(small_network())
        plain_training(tasks[-1], crops.crop_batch(0))
    make_trainer(network, sources, meta_lr=meta_lr).run()
    start, (one, two) = small_network().state_dict(), (task.state_dict() for task in tasks)
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value.dtype == torch.int64 and value.item() == 4
            continue
        rate = min(meta_lr, 1.0) if "running" in name else meta_lr
        expected = start[name] + rate * ((one[name] - start[name]) + (two[name] - start[name])) / 2
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_the_order_of_the_sources_does_not_matter():
    results = []
    for names in (("a", "b", "c"), ("c", "a", "b")):
        network = small_network(dropout=0.5)
        sources = {name: source(ord(name)) for name in names}
        make_trainer(network, sources, epochs=2).run()
        results.append(network)
    assert_same(*results, rtol=0, atol=1e-7)


def test_each_meta_epoch_has_its_own_crops():
    asked = []

    class Spy:
        def crop_batch(self, step):
            asked.append(step)
            return crops.crop_batch(step)

    crops = source(1)
    make_trainer(small_network(), {"spy": Spy()}, epochs=3, inner_steps=2).run()
    assert asked == [0, 1, 2]


def test_another_inner_optimiser_is_made_anew_for_each_task():
    made = []

    def sgd(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        return made[-1]

    crops, network, expected = source(1), small_network(), small_network()
    plain_training(expected, crops.crop_batch(0), optimizer=torch.optim.SGD(expected.parameters(), 0.1, momentum=0.9))
    make_trainer(network, {"a": crops, "twin": crops}, inner_optimizer=sgd).run()
    assert_same(network, expected, rtol=0, atol=1e-6)
    assert len(made) == 2


# --- buffers ----------------------------------------------------------------------------------------------------------


def test_kept_buffers_stay_and_the_weights_do_not_care():
    results = {}
    for buffers in ("average", "keep"):
        results[buffers] = small_network()
        make_trainer(results[buffers], {"a": source(1), "b": source(2)}, epochs=2, buffers=buffers).run()
    for (name, kept), average in zip(results["keep"].named_parameters(), results["average"].parameters(), strict=True):
        assert torch.equal(kept, average), name
    fresh = small_network()
    for (name, kept), before in zip(results["keep"].named_buffers(), fresh.buffers(), strict=True):
        assert torch.equal(kept, before), name


def test_a_step_beyond_the_tasks_does_not_make_a_variance_negative():
    network = nn.BatchNorm2d(2)
    start = {name: tensor.clone() for name, tensor in network_state(network).items()}
    target = nn.BatchNorm2d(2)
    target.running_var.fill_(0.01)
    target.weight.data.fill_(0.5)
    direction = flatten_floats(network_state(target)) - flatten_floats(start)
    move_towards(network, start, direction, flatten_counters(start) + 5, meta_lr=4.0)
    torch.testing.assert_close(network.running_var, torch.full((2,), 0.01))
    torch.testing.assert_close(network.weight.data, torch.full((2,), -1.0))
    assert network.num_batches_tracked.item() == 5


def test_a_network_without_buffers_is_fine():
    network = nn.Conv2d(1, 1, 3, padding=1)
    before = copy.deepcopy(network)
    make_trainer(network, {"a": source(1)}).run()
    assert not torch.equal(network.weight, before.weight)


def test_memory_format_and_identity_of_the_tensors_stay():
    network = small_network().to(memory_format=torch.channels_last)
    weights = network[4].weight
    address = weights.data_ptr()
    make_trainer(network, {"a": source(1), "b": source(2)}).run()
    assert network[4].weight is weights and weights.data_ptr() == address
    assert weights.is_contiguous(memory_format=torch.channels_last) and not weights.is_contiguous()
    assert all(parameter.grad is None for parameter in network.parameters())


# --- what it tells ----------------------------------------------------------------------------------------------------


def test_inner_events_fire_around_every_inner_step():
    sources = {"a": source(1), "b": source(2)}
    trainer = make_trainer(small_network(), sources, epochs=2, inner_steps=3)
    started, completed, model = [], [], []
    trainer.add_event_handler(IterationEvents.INNER_ITERATION_STARTED, lambda e: started.append(e.state.iteration))
    trainer.add_event_handler(IterationEvents.INNER_ITERATION_COMPLETED, lambda e: completed.append(e.state.output))
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda e: model.append(e.state.output))
    trainer.run()
    assert started == [1] * 6 + [2] * 6
    expected = [(task, step) for _ in range(2) for task in sources for step in (1, 2, 3)]
    assert [(output["task"], output["inner_iteration"]) for output in completed] == expected
    assert all(np.isfinite(output["loss"]) for output in completed)
    assert len(model) == 2 and trainer.state.epoch == trainer.state.iteration == 2


def test_output_and_metrics_are_flat_numbers_by_task():
    sources = {"a": source(1), "b": source(2)}
    trainer = make_trainer(small_network(), sources)
    at_epoch_end = {}
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: at_epoch_end.update(engine.state.metrics))
    trainer.run()
    output = trainer.state.output
    keys = {f"{key}/{task}" for key in ("loss", "loss_first", "loss_last", "iou") for task in sources}
    assert set(output) == keys | {"loss", "iou"}
    assert all(type(value) is float for value in output.values())
    assert at_epoch_end == output
    assert output["loss"] == pytest.approx((output["loss/a"] + output["loss/b"]) / 2)
    assert output["iou"] == pytest.approx((output["iou/a"] + output["iou/b"]) / 2)


def test_iou_is_that_of_the_tuned_network_on_its_crops():
    crops, tuned = source(1), small_network()
    batch = crops.crop_batch(0)
    plain_training(tuned, batch, steps=150)
    trainer = make_trainer(small_network(), {"a": crops}, inner_steps=150)
    trainer.run()
    with torch.no_grad():  # in training mode, so with the statistics of the crops
        expected = overlap((tuned(batch["image"]) > 0).numpy(), batch["label"].numpy()).iou
    assert trainer.state.output["iou/a"] == pytest.approx(expected, abs=0.005)
    assert 0.3 < expected < 1


def test_training_makes_the_first_loss_smaller():
    firsts = []
    trainer = make_trainer(small_network(), {"a": source(1), "b": source(2)}, epochs=12, inner_steps=10)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: firsts.append(e.state.output["loss_first/a"]))
    trainer.run()
    assert np.mean(firsts[-4:]) < 0.9 * np.mean(firsts[:4])


# --- bfloat16, inferer, config ----------------------------------------------------------------------------------------


def test_autocast_runs_the_network_in_bfloat16_and_the_loss_in_float32():
    seen = []
    network = small_network()
    network[4].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer = make_trainer(network, {"a": source(1)}, amp=True)
    trainer.loss_function.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    trainer.run()
    assert set(seen[:8:2]) == {torch.bfloat16} and set(seen[1:8:2]) == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    exact = small_network()
    make_trainer(exact, {"a": source(1)}).run()
    assert 0 < (flatten_floats(network_state(network)) - flatten_floats(network_state(exact))).abs().max() < 0.05


def test_a_config_can_say_it_all():
    parser = ConfigParser(
        {
            "network": "$tests_network",
            "trainer": {
                "_target_": "monai_kwtl.engines.reptile.ReptileTrainer",
                "device": "cpu",
                "max_epochs": 1,
                "sources": "$tests_sources",
                "network": "@network",
                "loss_function": {"_target_": "monai_kwtl.losses.ForegroundWeightedBCE"},
                "inner_optimizer": {"_target_": "torch.optim.Adam", "_mode_": "callable", "lr": 0.01},
                "inner_steps": 2,
                "train_handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
            },
        },
        globals={"tests_network": small_network(), "tests_sources": {"a": source(1)}},
    )
    trainer = parser.get_parsed_content("trainer")
    trainer.run()
    assert trainer.state.iteration == 1


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path, dropout):
    sources = {"a": source(1), "b": source(2)}
    torch.manual_seed(0)
    whole = small_network(dropout=dropout)
    make_trainer(whole, sources, epochs=5).run()

    torch.manual_seed(0)
    first = small_network(dropout=dropout)
    stopped = make_trainer(first, sources, epochs=5)
    stopped.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate())
    stopped.run()
    torch.save({"network": first.state_dict(), "trainer": stopped.state_dict()}, tmp_path / "state.pt")

    torch.manual_seed(0)
    torch.rand(17)  # what else was drawn in between does not matter
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = small_network(seed=9, dropout=dropout)
    resumed.load_state_dict(state["network"])
    trainer = make_trainer(resumed, sources, epochs=5)
    trainer.load_state_dict(state["trainer"])
    assert trainer.state.iteration == 2
    trainer.run()
    assert trainer.state.iteration == 5
    assert_same(resumed, whole, rtol=0, atol=0)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    make_trainer(small_network(dropout=0.5), {"a": source(1)}).run()
    assert torch.equal(torch.rand(4), expected)


# --- bad input --------------------------------------------------------------------------------------------------------


class Broken:
    """Crops whose grey values are not finite from one meta-epoch on."""

    def __init__(self, crops, since):
        self.crops, self.since = crops, since

    def crop_batch(self, step):
        batch = self.crops.crop_batch(step)
        return batch | {"image": batch["image"] * float("nan")} if step >= self.since else batch


def test_a_loss_that_is_not_finite_stops_with_a_sentence_and_the_last_good_weights():
    network, expected = small_network(), small_network()
    good = {"a": source(1), "b": source(2)}
    make_trainer(expected, good, epochs=1).run()
    trainer = make_trainer(network, {"a": good["a"], "b": Broken(good["b"], since=1)}, epochs=3)
    with pytest.raises(KWTLError, match=r"loss is nan.*meta-epoch 2, source b, inner step 1; lower") as error:
        trainer.run()
    assert "\n" not in str(error.value)
    assert_same(network, expected, rtol=0, atol=0)


def test_weights_that_are_not_finite_stop_it_too():
    def explode(parameters):
        return torch.optim.SGD(parameters, lr=1e38)

    network = small_network()
    trainer = make_trainer(network, {"a": source(1)}, inner_steps=1, inner_optimizer=explode)
    trainer.loss_function = lambda logits, targets: logits.sum() * 1e10
    with pytest.raises(KWTLError, match="weights are not finite in meta-epoch 1, source a"):
        trainer.run()
    assert_same(network, small_network(), rtol=0, atol=0)


def test_an_error_of_another_kind_also_leaves_the_weights_of_before():
    network = small_network()
    trainer = make_trainer(network, {"a": source(1)})

    def stop(engine):
        if engine.state.output["inner_iteration"] == 3:
            raise RuntimeError("stop")

    trainer.add_event_handler(IterationEvents.INNER_ITERATION_COMPLETED, stop)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.run()
    assert_same(network, small_network(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"buffers": "first"}, "buffers must be one of average, keep"),
        ({"meta_lr": 0.0}, "meta_lr must be above 0"),
        ({"meta_lr": float("nan")}, "meta_lr must be above 0"),
        ({"inner_steps": 0}, "inner_steps at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(KWTLError, match=words):
        make_trainer(small_network(), {"a": source(1)}, **settings)


def test_no_source_is_refused():
    with pytest.raises(KWTLError, match="at least one source"):
        make_trainer(small_network(), {})


# --- several processes ------------------------------------------------------------------------------------------------


def several_sources(broken=False):
    sources = {"a": source(1), "b": source(2, brightness=-60), "c": source(3, brightness=40)}
    return sources | {"b": Broken(sources["b"], since=1)} if broken else sources


def one_of_two(folder):
    """What each process of a distributed run does: a good run, then one that fails in the second process."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    results = {}
    for broken in (False, True):
        network = small_network(seed=rank)  # rank 0's weights must win
        trainer = make_trainer(network, several_sources(broken), epochs=3)
        failure = None
        try:
            trainer.run()
        except KWTLError as error:
            failure = str(error)
        name = "broken" if broken else "good"
        results[name] = {"network": network.state_dict(), "output": trainer.state.output, "failure": failure}
    torch.save(results, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes side by side have saved."""
    folder = tmp_path_factory.mktemp("processes")
    ended = run_together(one_of_two, str(folder), folder / "logs")
    assert [end.status for end in ended] == [0, 0], [end.err for end in ended]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_give_the_weights_of_one(two_processes):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = small_network()
        trainer = make_trainer(alone, several_sources(), epochs=3)
        trainer.run()
    finally:
        torch.set_num_threads(threads)
    for name, value in alone.state_dict().items():
        one, other = (result["good"]["network"][name] for result in two_processes)
        assert torch.equal(one, other), name
        torch.testing.assert_close(one, value, rtol=0, atol=1e-6)
    for result in two_processes:
        assert result["good"]["failure"] is None
        assert result["good"]["output"] == pytest.approx(trainer.state.output, rel=1e-5)


def test_a_failure_in_one_process_stops_all_with_the_same_sentence(two_processes):
    one, other = (result["broken"] for result in two_processes)
    assert one["failure"] == other["failure"]
    assert "meta-epoch 2, source b, inner step 1" in one["failure"]
    for name, value in one["network"].items():
        assert torch.equal(value, other["network"][name]), name

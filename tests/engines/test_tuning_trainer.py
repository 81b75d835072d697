"""Unknown pixels reach the loss as a mask of their own and have no say in the weights."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss, MaskedDiceLoss
from stage_process import CONFIGS
from torch import nn
from torch.utils.data import DataLoader

from monai_kwtl.data.crops import CropDataset
from monai_kwtl.engines.tuning_trainer import TuningTrainer
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import DiceBCE, ForegroundWeightedBCE


def crops(known=True, wrong=False):
    """Crops of an image of which a rectangle is known, or all; outside of that a label may be wrong."""
    rng = np.random.default_rng(0)
    label = (rng.random((1, 40, 50)) < 0.3).astype(np.uint8)
    image = np.clip(80 + 60 * label + rng.normal(0, 15, label.shape), 0, 255).astype(np.uint8)
    where = np.ones(label.shape, dtype=bool)
    if not known:
        where[:] = False
        where[0, 8:30, 10:36] = True
    return CropDataset(
        [{"image": image, "label": np.where(where, label, 1 - label) if wrong else label, "known": where}],
        steps=5, size=24, batch_size=2,
    )  # fmt: skip


def tuned(loss, dataset):
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 5, padding=2)
    trainer = TuningTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DataLoader(dataset, batch_size=None),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=loss,
    )
    trainer.run()
    return torch.cat([part.detach().flatten() for part in network.parameters()])


def by_hand(dataset):
    """The same training on a plain loop, with PyTorch's own loss of the known pixels."""
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 5, padding=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for batch in dataset:
        optimizer.zero_grad()
        logits = network(batch["image"])[batch["known"]]
        nn.functional.binary_cross_entropy_with_logits(logits, batch["label"][batch["known"]]).backward()
        optimizer.step()
    return torch.cat([part.detach().flatten() for part in network.parameters()])


@pytest.mark.parametrize("known", [True, False])
def test_weights_are_those_of_a_plain_loop_over_known_pixels(known):
    loss = ForegroundWeightedBCE(per="dataset", pos_weight=1.0)
    torch.testing.assert_close(tuned(loss, crops(known)), by_hand(crops(known)))


@pytest.mark.parametrize(
    "loss",
    [ForegroundWeightedBCE(), DiceBCE(), MaskedDiceLoss(sigmoid=True)],
    ids=["cross-entropy", "with Dice", "of MONAI"],
)
def test_unknown_pixels_have_no_say_in_the_weights(loss):
    right, wrong = (tuned(loss, crops(known=False, wrong=wrong)) for wrong in (False, True))
    assert torch.equal(right, wrong)
    assert not torch.equal(right, tuned(loss, crops(known=True)))


def test_a_loss_that_takes_no_known_pixels_is_for_batches_without_unknown_ones():
    loss = DiceCELoss(sigmoid=True)
    assert torch.isfinite(tuned(loss, crops(known=True))).all()
    with pytest.raises(KWTLError, match="DiceCELoss takes no known pixels"):
        tuned(loss, crops(known=False))


def test_a_batch_that_says_nothing_of_known_pixels_is_known_everywhere():
    class Plain(CropDataset):
        def crop_batch(self, *arguments):
            batch = super().crop_batch(*arguments)
            del batch["known"]
            return batch

    plain = crops()
    plain.__class__ = Plain
    assert torch.equal(tuned(DiceBCE(), plain), tuned(DiceBCE(), crops()))


@pytest.mark.parametrize("files", [["train"], ["train", "semi_supervised_train"], ["pretext"]])
def test_the_stages_train_with_known_pixels(files):
    parser = ConfigParser()
    parser.read_config([CONFIGS / f"{name}.json" for name in files])
    target = parser["trainer::_target_" if "trainer" in parser else "train::trainer::_target_"]
    module, _, name = target.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), TuningTrainer)

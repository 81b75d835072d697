"""The weights that a training leaves, with a note of how they came about."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_kwtl.data.pool_batches import pool_batches
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.handlers.checkpoint import fingerprint
from monai_kwtl.handlers.training_log import results_of
from monai_kwtl.networks.batch_norm import estimate_batch_norm_statistics
from monai_kwtl.networks.choice import network_note
from monai_kwtl.networks.parallel import unsynchronized
from monai_kwtl.networks.weights import not_finite, save_atomically
from monai_kwtl.utils.atomic import write_text
from monai_kwtl.utils.distributed import is_main_process
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["WeightsSaver"]


class WeightsSaver:
    """Write the weights that a stage leaves, with batch-norm statistics of the pool, and a note on their making.

    Args:
        path: of the weights, a plain state dict; the note stands beside it as ``.json``.
        network: whose weights are written.
        items: images that the batch-norm statistics are fitted to before; None leaves them.
        created_with: what the note shall say.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        device: where the network lives.
        adapt_norm: False leaves the batch-norm statistics.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        network: nn.Module,
        items: Sequence[Mapping[str, Any]] | None = None,
        created_with: Mapping[str, Any] | None = None,
        rescale: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        adapt_norm: bool = True,
    ) -> None:
        self.path, self.network = Path(path), network
        self.items = items if as_bool(adapt_norm, "adapt_norm") else None
        self.created_with, self.rescale, self.device = dict(created_with or {}), rescale, device

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save, when the training is completed, and note its steps, its results and the fingerprint of its settings."""
        results = {"fingerprint": fingerprint(self.created_with), "steps": engine.state.iteration, **results_of(engine)}
        self.save(results)

    def save(self, results: Mapping[str, Any] | None = None) -> None:
        """Fit the statistics, write weights and note; of several processes the first one does.

        Args:
            results: results to add to the note.

        Raises:
            KWTLError: when the weights or the statistics are not finite; nothing is written then.
        """
        if not is_main_process():
            return
        network = unsynchronized(self.network)
        if self.items:
            estimate_batch_norm_statistics(network, pool_batches(self.items, rescale=self.rescale, device=self.device))
        state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        if broken := not_finite(state):
            raise KWTLError(
                f"the trained weights are not finite, first in {broken[0]!r}: they were not saved; begin anew with "
                "--overwrite true and a smaller learning rate"
            )
        save_atomically(state, self.path)
        described = network_note(network, self.rescale)
        note = {**self.created_with, **(results or {}), "sha256": file_sha256(self.path)}
        note |= {} if described is None else {"network": described}
        write_text(self.path.with_suffix(".json"), json.dumps(note, indent=2, sort_keys=True, default=str) + "\n")

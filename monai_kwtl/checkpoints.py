"""Checkpoints of a running stage: written whole or not at all, read without running code, continued exactly."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_kwtl.bundle import file_sha256
from monai_kwtl.errors import KWTLError, check_whole_number
from monai_kwtl.parallel import unwrap
from monai_kwtl.whole_files import written_whole

__all__ = ["StageCheckpoint", "remove_unfinished", "save_atomically"]

logger = logging.getLogger("monai_kwtl")


def save_atomically(state: Any, path: str | os.PathLike) -> None:
    """Save with ``torch.save`` beside the final name, then rename: a reader sees the old file or the new, whole.

    Raises:
        KWTLError: when it cannot be written; what was there before is untouched.
    """
    with written_whole(path) as unfinished:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as stream:
            try:
                torch.save(state, stream)
            except RuntimeError as error:  # of a full disk torch says that it came to an unexpected place in the file
                raise (error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error))) from error


def remove_unfinished(path: str | os.PathLike) -> None:
    """Remove what processes that were killed while saving to ``path`` left beside it."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)


class StageCheckpoint:
    """Save a training engine and what it trains every so many iterations, and continue from there.

    The file holds the state dicts of ``objects``, the iteration, and a fingerprint of the settings. It is removed when
    the stage has written its result. Continuing gives the weights of an uninterrupted run where the batches are a
    function of the iteration, as those of ``monai_kwtl.crops`` are.

    Args:
        path: of the checkpoint.
        objects: what has ``state_dict`` and ``load_state_dict``: network, optimiser; of a
            ``DistributedDataParallel`` the network inside, so that the number of processes leaves no trace.
        settings: JSON data that must be the same when continuing: seed, data, budget, rates.
        resume: continue from the checkpoint where there is one; False begins anew.
        overwrite: a checkpoint or a result of other settings is replaced instead of refused.
        every: iterations between checkpoints.
        writes: False on all processes but the first of a distributed run.

    Raises:
        KWTLError: at once when the checkpoint to continue from is of other settings, or ``every`` is unusable.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        objects: Mapping[str, Any],
        settings: Mapping[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        every: int = 50,
        writes: bool = True,
    ) -> None:
        check_whole_number("checkpoint_every", every, 1)
        self.path, self.objects, self.every, self.writes = Path(path), dict(objects), every, writes
        self.resume, self.overwrite = resume, overwrite
        text = json.dumps(settings, sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.iteration = self._load() if resume else 0

    def _load(self) -> int:
        if not self.path.is_file():
            return 0
        content = self.path.read_bytes()
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load does not look at the check sums
                broken = archive.testzip()
            state = None if broken else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # broken bytes raise nearly everything, from BadZipFile to IndexError
            broken = True
        if broken:
            logger.warning(f"{self.path} is not a whole checkpoint; the stage begins anew")
            return 0
        if not isinstance(state, dict) or state.get("fingerprint") != self.fingerprint:
            self._refuse_other_settings(self.path)
            return 0
        for name, thing in self.objects.items():
            unwrap(thing).load_state_dict(state["objects"][name])
        return int(state["iteration"])

    def _refuse_other_settings(self, path: Path) -> None:
        if not self.overwrite:
            raise KWTLError(
                f"{path} was made with other settings, images or weights: give the same ones, choose another "
                "--output_dir, or begin anew with --resume false --overwrite true"
            )

    def finished(self, weights: str | os.PathLike) -> bool:
        """Whether a stage that is resumed has left its weights already, with these settings, and has nothing to do.

        Args:
            weights: of the stage; the note beside them, ``.json``, holds their hash and the fingerprint they came from.

        Raises:
            KWTLError: when they were made with other settings and may not be replaced.
        """
        if not self.resume or self.iteration or not Path(weights).is_file():
            return False
        try:
            note = json.loads(Path(weights).with_suffix(".json").read_text(encoding="utf-8"))
            # a stage that was killed between its weights and its note leaves the note of weights before
            made_with = note["fingerprint"] if note["sha256"] == file_sha256(weights) else None
        except (OSError, ValueError, KeyError, TypeError):
            made_with = None
        if made_with != self.fingerprint:
            self._refuse_other_settings(Path(weights))
        return made_with == self.fingerprint

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; its state is set to the iteration to continue from when it starts."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)

    def __call__(self, engine: Engine) -> None:
        """Save a checkpoint."""
        self.save(engine.state.iteration)

    def save(self, iteration: int) -> None:
        """Save a checkpoint after so many iterations."""
        if self.writes:
            objects = {name: unwrap(thing).state_dict() for name, thing in self.objects.items()}
            state = {"fingerprint": self.fingerprint, "iteration": iteration, "objects": objects}
            save_atomically(state, self.path)

    def remove(self) -> None:
        """Remove the checkpoint: the stage is done."""
        if self.writes:
            self.path.unlink(missing_ok=True)
            remove_unfinished(self.path)

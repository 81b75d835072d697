"""Checkpoints of a running stage: written whole or not at all, read without running code, continued exactly."""

from __future__ import annotations

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

from monai_kwtl.errors import KWTLError, as_bool, check_whole_number
from monai_kwtl.networks.parallel import unwrap
from monai_kwtl.networks.weights import save_atomically
from monai_kwtl.project.file_names import CHECKPOINT_NAME, WEIGHTS_NAME
from monai_kwtl.utils.atomic import remove_unfinished
from monai_kwtl.utils.distributed import is_main_process, on_main_process, ranks
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["StageCheckpoint", "fingerprint"]

logger = logging.getLogger("monai_kwtl")


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the settings of a stage, JSON data, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


class StageCheckpoint:
    """Save what a trainer trains every so many iterations, continue from there, and skip a training that is finished.

    The file holds the state dicts of ``objects``, the iteration, the trainer's metrics, and a fingerprint of the
    settings. It is removed when the training is completed: attach this handler after those that write its result.
    Continuing gives the weights of an uninterrupted run where the batches are a function of the iteration, as those of
    ``monai_kwtl.data.crops`` are: a data set with ``start_step`` is told where to go on.

    (``ignite.handlers.Checkpoint`` with a ``DiskSaver`` removes the last file before it writes the next one.)

    Args:
        folder: of the checkpoint, ``checkpoint.pt``, and of the weights that the stage will leave, ``model.pt``; made
            if absent.
        objects: what has ``state_dict`` and ``load_state_dict``: network, optimiser; of a
            ``DistributedDataParallel`` the network inside, so that the number of processes leaves no trace.
        settings: JSON data that must be the same when continuing: seed, data, budget, rates.
        resume: continue from the checkpoint where there is one; False begins anew.
        overwrite: a checkpoint or a result of other settings is replaced instead of refused.
        every: iterations between checkpoints; one comes after the last iteration as well.
        skip: end the trainer before its first iteration, for stages that only show what they would train on.

    Raises:
        KWTLError: at once when the folder holds what must stay or cannot be written, or ``every`` is unusable; as the
            trainer starts, when the checkpoint or the weights to continue from are of other settings.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        objects: Mapping[str, Any],
        settings: Mapping[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        every: int = 50,
        skip: bool = False,
    ) -> None:
        check_whole_number("checkpoint_every", every, 1)
        self.resume, self.overwrite = as_bool(resume, "resume"), as_bool(overwrite, "overwrite")
        self.skip = as_bool(skip, "preview")
        self.path, self.weights = Path(folder) / CHECKPOINT_NAME, Path(folder) / WEIGHTS_NAME
        self.objects, self.every, self.fingerprint = dict(objects), every, fingerprint(settings)
        if is_main_process():
            self._check_folder()

    def _check_folder(self) -> None:
        keep = self.overwrite or self.resume or self.skip
        if self.weights.exists() and not keep:
            raise KWTLError(f"{self.weights} already exists: choose another --output_dir or add --overwrite true")
        if self.path.exists() and not keep:
            raise KWTLError(
                f"{self.path} is of an interrupted run: go on with --resume true, or begin anew with --overwrite true"
            )
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise KWTLError(f"cannot write to {folder} ({error.strerror}); choose another --output_dir") from error

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=self._due), self)
        engine.add_event_handler(Events.COMPLETED, self._remove)

    def _due(self, engine: Engine, iteration: int) -> bool:
        return iteration % self.every == 0 or iteration == _iterations(engine)

    def _start(self, engine: Engine) -> None:
        """Load the checkpoint and set the trainer to its iteration; or end the trainer, where nothing is to be done."""
        if self.skip:
            engine.terminate(skip_completed=True)
            return
        state = self._load()
        iteration = state["iteration"] if state else 0
        # all processes have read the checkpoint before the first one changes it
        finished, first = on_main_process(lambda: (not state and self._has_left_its_result(), iteration))
        if iteration != first:
            raise KWTLError(
                f"process {ranks().rank} sees another state of {self.path} than the first one: --output_dir must be "
                "a folder that all of them share."
            )
        if finished:
            logger.info(f"{self.weights} is finished: nothing to do")
            engine.terminate(skip_completed=True)
        if state:
            logger.info(f"continuing after step {iteration} of {_iterations(engine)}")
            for name, thing in self.objects.items():
                unwrap(thing).load_state_dict(state["objects"][name])
            engine.state.metrics.update(state["metrics"])
            engine.state.iteration, engine.state.epoch = iteration, iteration // engine.state.epoch_length
            data = getattr(engine.state.dataloader, "dataset", None)
            if hasattr(data, "start_step"):
                data.start_step = iteration

    def _load(self) -> dict[str, Any] | None:
        if not self.resume or not self.path.is_file():
            return None
        content = self.path.read_bytes()
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load does not look at the check sums
                broken = archive.testzip()
            state = None if broken else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # broken bytes raise nearly everything, from BadZipFile to IndexError
            broken = True
        if broken:
            logger.warning(f"{self.path} is not a whole checkpoint; the stage begins anew")
            return None
        same = isinstance(state, dict) and state.get("fingerprint") == self.fingerprint
        if not same or "metrics" not in state or state["objects"].keys() != self.objects.keys():
            self._refuse_other_settings(self.path)
            return None
        return state

    def _refuse_other_settings(self, path: Path) -> None:
        if not self.overwrite:
            raise KWTLError(
                f"{path} was made with other settings, images or weights: give the same ones, choose another "
                "--output_dir, or begin anew with --resume false --overwrite true"
            )

    def finished(self) -> bool:
        """Return whether a stage that is resumed has left its weights already, with these settings.

        Raises:
            KWTLError: when checkpoint or weights were made with other settings and may not be replaced.
        """
        return not self._load() and self._has_left_its_result()

    def _has_left_its_result(self) -> bool:
        """Return whether the note beside the weights has their hash, and the fingerprint of these settings."""
        if not self.resume or not self.weights.is_file():
            return False
        try:
            note = json.loads(self.weights.with_suffix(".json").read_text(encoding="utf-8"))
            # a stage that was killed between its weights and its note leaves the note of weights before
            made_with = note["fingerprint"] if note["sha256"] == file_sha256(self.weights) else None
        except (OSError, ValueError, KeyError, TypeError):
            made_with = None
        if made_with != self.fingerprint:
            self._refuse_other_settings(self.weights)
        return made_with == self.fingerprint

    def __call__(self, engine: Engine) -> None:
        """Save a checkpoint."""
        if is_main_process():
            objects = {name: unwrap(thing).state_dict() for name, thing in self.objects.items()}
            metrics = {name: float(v) for name, v in engine.state.metrics.items() if isinstance(v, (int, float))}
            state = {"fingerprint": self.fingerprint, "iteration": engine.state.iteration, "metrics": metrics}
            save_atomically(state | {"objects": objects}, self.path)

    def _remove(self) -> None:
        if is_main_process():
            self.path.unlink(missing_ok=True)
            remove_unfinished(self.path)
            remove_unfinished(self.weights)


def _iterations(engine: Engine) -> int:
    return engine.state.max_epochs * engine.state.epoch_length

"""The weights of a label app: those it began with, and those it works with, which every training replaces."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers.weights_saver import WeightsSaver
from monai_kwtl.networks.choice import load_network
from monai_kwtl.networks.device import choose_device
from monai_kwtl.networks.weights import existing_checkpoint
from monai_kwtl.pipeline.scoring import adapt
from monai_kwtl.utils.atomic import atomic_write, remove_leftovers, write_text
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["ModelFolder"]

RECORD_NAME, LOCK_NAME = "training.json", ".lock"


class ModelFolder:
    """``start.pt`` and ``kwtl.pt`` in the folder ``model`` of an app, each with a note as JSON beside it.

    Both hold batch-norm statistics of the studies, so that scores depend on an image and the weights alone, and a new
    image changes no other's.

    Args:
        app_dir: folder of the app.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(self, app_dir: str | os.PathLike, device: str = "auto") -> None:
        self.folder = Path(app_dir) / "model"
        self.start, self.current = self.folder / "start.pt", self.folder / "kwtl.pt"
        self.device = choose_device(device)
        self._hash: tuple[tuple, str] | None = None
        self._network: tuple[str, nn.Module] | None = None

    def begin(self, weights: str | os.PathLike, items: Sequence[Mapping[str, Any]], rescale: Any = None) -> bool:
        """Make the folder's weights out of a checkpoint, unless it was begun with that very checkpoint.

        Args:
            weights: of an FCRN.
            items: the studies.
            rescale: fixed grey range of 16 bit and float images.

        Returns:
            Whether anything was made; where not, what was trained since is kept.

        Raises:
            KWTLError: when the checkpoint cannot be used, or the folder was begun with another one.
        """
        source = file_sha256(existing_checkpoint(weights))
        if self.start.is_file() and self.current.is_file():
            begun = self.note(self.start).get("source_sha256")
            if begun != source:
                raise KWTLError(
                    f"{self.folder} was begun with other weights than {weights}: give another --app folder, or none of "
                    "--model and --pretext to go on with what is there."
                )
            return False
        network = load_network(weights, device=self.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        made = {"source": Path(weights).name, "source_sha256": source, "trained": False}
        WeightsSaver(self.start, network, items, made, rescale=rescale, device=self.device).save()
        self.publish(self.start)
        return True

    def publish(self, weights: Path) -> str:
        """Work with other weights from now on, and return their SHA-256; readers see the old file or the new, whole."""
        for source, target in (
            (weights, self.current),
            (weights.with_suffix(".json"), self.current.with_suffix(".json")),
        ):
            with atomic_write(target, "make room, or fix its permissions.") as unfinished:
                shutil.copyfile(source, unfinished)
        return self.sha256()

    @staticmethod
    def note(weights: Path) -> dict[str, Any]:
        """Return the note beside weights; empty where there is none."""
        try:
            return json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def sha256(self) -> str:
        """Return the SHA-256 of the weights that the app works with.

        Raises:
            KWTLError: when there are none.
        """
        if not self.current.is_file():
            raise KWTLError(f"there are no weights in {self.folder}: start the app with 'kwtl label start'.")
        state = self.current.stat()
        key = (state.st_mtime_ns, state.st_size, state.st_ino)
        if self._hash is None or self._hash[0] != key:
            self._hash = key, file_sha256(self.current)
        return self._hash[1]

    def network(self) -> nn.Module:
        """Return the network that the app works with, for inference; loaded again when the weights have changed."""
        digest = self.sha256()
        if self._network is None or self._network[0] != digest:
            network = load_network(self.current, device=self.device)
            self._network = digest, adapt(network, [], adapt_norm=False).ready()
        return self._network[1]

    # --- trainings ----------------------------------------------------------------------------------------------------

    @property
    def _trainings(self) -> Path:
        return self.folder.parent / "trainings"

    def next_training(self, request: Mapping[str, Any]) -> Path:
        """Make a new folder for a training, with a record of what was asked for."""
        self._trainings.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10**6):
            folder = self._trainings / f"{number:04d}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            self._record(folder, {"state": "begun", "request": dict(request)})
            return folder
        raise KWTLError(f"{self._trainings} is full: move some of it away.")

    def _record(self, folder: Path, record: Mapping[str, Any]) -> None:
        write_text(folder / RECORD_NAME, json.dumps(record, default=str) + "\n", "make room, or fix its permissions.")

    @contextlib.contextmanager
    def training(self, folder: Path) -> Iterator[None]:
        """Hold a training's folder while it runs, and record how it ended; of one that is killed, nothing is recorded.

        Raises:
            KWTLError: when another process trains in it.
        """
        try:
            with FileLock(folder / LOCK_NAME, timeout=5):  # who only asks holds it for a moment
                try:
                    yield
                except Exception:
                    self._record(folder, {"state": "failed"})
                    raise
                self._record(folder, {"state": "finished"})
        except Timeout as error:
            raise KWTLError(f"the training {folder.name} is going on in another process: wait for it.") from error

    def interrupted(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the folder and the request of the last training, if it was killed; None where it was not, or runs."""
        folders = sorted(self._trainings.glob("[0-9]*/")) if self._trainings.is_dir() else []
        if not folders:
            return None
        try:
            record = json.loads((folders[-1] / RECORD_NAME).read_text(encoding="utf-8"))
            if record["state"] != "begun" or not isinstance(record["request"], dict):
                return None
            with FileLock(folders[-1] / LOCK_NAME, timeout=0):
                return folders[-1], record["request"]
        except (OSError, ValueError, KeyError, TypeError, Timeout):
            return None

    def resumed(self, request: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
        """Return folder and request of the training to go on with, where a request asks for that with ``resume``.

        Args:
            request: of a training.

        Returns:
            None and the request, where it asks for a new one.

        Raises:
            KWTLError: when no training was interrupted.
        """
        asked = {name: value for name, value in request.items() if name != "resume"}
        if request.get("resume") not in (True, "true"):
            return None, asked
        found = self.interrupted()
        if found is None:
            raise KWTLError("no training was interrupted: there is nothing to resume.")
        return found

    def tidy(self) -> None:
        """Remove the unfinished files of processes that were killed."""
        for folder in (self.folder, *self._trainings.glob("[0-9]*/")):
            remove_leftovers(folder)

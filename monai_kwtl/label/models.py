"""The weights of a label app: those it began with, and those it works with, which every training replaces."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from monai_kwtl.bundle import choose_device, file_sha256
from monai_kwtl.errors import KWTLError
from monai_kwtl.pipeline import adapt, load_network
from monai_kwtl.tuning import WeightsSaver
from monai_kwtl.whole_files import written_whole

__all__ = ["ModelFolder"]


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
        source = file_sha256(weights)
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
            (weights.with_suffix(".json"), self.current.with_suffix(".json")),
            (weights, self.current),
        ):
            with written_whole(target, "make room, or mend its permissions.") as unfinished:
                shutil.copyfile(source, unfinished)
        return self.sha256()

    @staticmethod
    def note(weights: Path) -> dict[str, Any]:
        """The note beside weights; empty where there is none."""
        try:
            return json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def sha256(self) -> str:
        """SHA-256 of the weights that the app works with.

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
        """The network that the app works with, for inference; loaded again when the weights have changed."""
        digest = self.sha256()
        if self._network is None or self._network[0] != digest:
            network = load_network(self.current, device=self.device)
            self._network = digest, adapt(network, [], adapt_norm=False).ready()
        return self._network[1]

    def next_training(self) -> Path:
        """A new folder for a training."""
        trainings = self.folder.parent / "trainings"
        trainings.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10**6):
            folder = trainings / f"{number:04d}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
        raise KWTLError(f"{trainings} is full: move some of it away.")

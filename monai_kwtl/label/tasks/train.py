"""The train task: support fine-tuning on what was labelled, by the bundle's ``train.json``. Needs monailabel."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from monai_kwtl.bundle.failures import message_for_user
from monai_kwtl.bundle.foreign import TRAINING_OPTIONS, harmless, training_options
from monai_kwtl.bundle.workflow import StageWorkflow
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.datastore import FINAL, KWTLDatastore
from monai_kwtl.label.http_errors import answered
from monai_kwtl.label.settings import LabelSettings
from monai_kwtl.label.state.database import Sidecar
from monai_kwtl.label.state.studies import Studies, image_id
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.label.tasks.scoring import KWTLScoring
from monai_kwtl.project.selection_file import dump_selection
from monai_kwtl.selection.regions import Region, cost_of
from monai_kwtl.utils.atomic import write_text

__all__ = ["KWTLTrain", "labelled_regions"]

logger = logging.getLogger("monai_kwtl")


def labelled_regions(datastore: KWTLDatastore, studies: Studies, sidecar: Sidecar) -> list[Region]:
    """Return where images are labelled; masks put there by hand since the last look count as complete.

    Raises:
        KWTLError: when nothing is labelled.
    """
    datastore.settle()
    known, regions = sidecar.known(), []
    for item in studies.items():
        if datastore.label_file(image_id(item["name"])) is not None:
            for box in known.get((item["sha256"], item["page"]), []):
                regions.append(Region(len(regions) + 1, item["name"], item["page"], item["sha256"], *box, 0.0))
    if not regions:
        raise KWTLError("nothing is labelled yet: send labels with PUT /datastore/label?image=ID&tag=final first.")
    return regions


class KWTLTrain(TrainTask):
    """Tunes the weights that the app began with on all labels, publishes the result, and scores everything by it.

    Args:
        settings: of the app.
        studies: the images.
        sidecar: knows what is labelled.
        models: the weights.
        scorings: the scoring methods; those that were in use are run again after a training.
        app_dir: folder of the app, with the bundle's configs in it.
    """

    def __init__(
        self,
        settings: LabelSettings,
        studies: Studies,
        sidecar: Sidecar,
        models: ModelFolder,
        scorings: Sequence[KWTLScoring],
        app_dir: str | Path,
    ) -> None:
        super().__init__("support fine-tuning on all labels, known pixels only")
        self.settings, self.studies, self.sidecar = settings, studies, sidecar
        self.models, self.scorings, self.app_dir = models, list(scorings), Path(app_dir)
        self._stats: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        """Return what a viewer may change."""
        settings = self.settings.training().items()
        return {name: value for name, value in settings if name in TRAINING_OPTIONS} | {"from_last": False}

    def stats(self) -> dict[str, Any]:
        """Return those of the last training; ``interrupted`` names one that was killed, which ``resume`` continues."""
        note = self.models.note(self.models.current)
        if self.models.current.is_file() and note.get("sha256") != self.models.sha256():
            note = {}  # of other weights: what publishes was killed in between
        stats = {name: note[name] for name in ("steps", "best_step", "held_out_iou", "trained") if name in note}
        interrupted = self.models.interrupted()
        return stats if interrupted is None else {**stats, "interrupted": interrupted[0].name}

    def __call__(self, request: Mapping[str, Any], datastore: KWTLDatastore | Datastore) -> dict[str, Any]:
        """Train.

        Args:
            request: options of ``train.json``: ``steps``, ``learning_rate``, ``crop``, ``batch_size``, ``held_out``,
                ``seed``, ``amp``, ``foreground_weight``; ``from_last``, true goes on from the weights in use instead of
                those the app began with; ``rescore``, false leaves the old scores; ``resume``, true goes on with the
                training that was interrupted, by its own request.
            datastore: holds the labels.

        Returns:
            ``model_sha256``, ``regions`` and ``images`` trained on, ``steps``, ``seconds``, and the answers of the
            scorings.

        Raises:
            HTTPException: 400 when nothing is labelled, or an option is out of range; the weights in use stay.
        """
        begun = time.time()
        with answered():
            folder, request = self.models.resumed(request)
            options = training_options(request)
            last, rescore = options.pop("from_last", False), options.pop("rescore", True)
            regions = labelled_regions(datastore, self.studies, self.sidecar)
            cost = cost_of(regions).as_dict()
            folder = folder or self.models.next_training(request)
            selection = folder / "selection.json"
            text = dump_selection(
                regions, budget={"windows": len(regions)}, cost=cost, created_with={"label": "server"}
            )
            write_text(selection, text, hint=None)
            stage_options = self.settings.training() | options
            with self.models.training(folder):
                try:
                    workflow = StageWorkflow(
                        Path(self.app_dir, "configs", "train.json"),
                        logging_file=False,
                        **harmless(
                            dataset_dir=self.studies.folder,
                            labels=Path(datastore._datastore.label_path(FINAL)),
                            selection=selection,
                            output_dir=folder,
                            ckpt=self.models.current if last else self.models.start,
                            **stage_options,
                        ),
                        overwrite=True,
                        resume=True,  # where labels and settings are the same as in what was interrupted
                        tensorboard=True,
                    )
                    workflow.initialize()
                    workflow.run()
                except Exception as error:  # MONAI wraps those of a config in its own
                    message = message_for_user(error)
                    if message is None:
                        raise
                    raise KWTLError(message) from error
                digest = self.models.publish(folder / "model.pt")
        answer: dict[str, Any] = {
            "model_sha256": digest,
            "regions": len(regions),
            "images": cost["images"],
            "pixels": cost["unique_pixels"],
            "steps": stage_options["steps"],
        }
        if rescore:
            used = [one for one in self.scorings if one.method == "kwtl" or self.sidecar.scorings(one.method)]
            answer["scoring"] = {one.method: one({}) for one in used}
        answer["seconds"] = round(time.time() - begun, 3)
        logger.info(f"trained on {len(regions)} regions of {cost['images']} images in {answer['seconds']} s")
        return answer

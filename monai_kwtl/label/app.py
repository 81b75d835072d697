"""The MONAI Label app: KWTL's tasks over one folder of images. Needs monailabel."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings as server_settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.scoring.epistemic_v2 import EpistemicScoring

from monai_kwtl import __version__
from monai_kwtl.inferers.memory import keep_freed_memory
from monai_kwtl.label.datastore import FINAL, KWTLDatastore
from monai_kwtl.label.http_errors import answered, refuse
from monai_kwtl.label.settings import read_settings
from monai_kwtl.label.state.database import SIDECAR_NAME, Sidecar
from monai_kwtl.label.state.studies import Studies
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.label.tasks.infer import KWTLInfer, epistemic_infer
from monai_kwtl.label.tasks.scoring import METHODS, KWTLScoring, unlabelled
from monai_kwtl.label.tasks.strategy import KWTLStrategy
from monai_kwtl.label.tasks.train import KWTLTrain

__all__ = ["KWTLApp"]

logger = logging.getLogger("monai_kwtl")

MODEL = "kwtl"


class KWTLApp(MONAILabelApp):
    """MONAI Label finds this class by its base, through the ``main.py`` of the app's folder.

    Args:
        app_dir: folder of the app, as ``kwtl label start`` makes it.
        studies: folder of the images.
        conf: overrides of ``kwtl.json``.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, Any] | None) -> None:
        keep_freed_memory()
        conf = dict(conf or {})
        self.kwtl = read_settings(app_dir, conf)
        self.images = Studies(studies)
        self.sidecar = Sidecar(Path(studies) / SIDECAR_NAME)
        self.models = ModelFolder(app_dir, self.kwtl.device)
        parts = self.kwtl, self.images, self.sidecar
        self.scorings = {method: KWTLScoring(method, *parts, self.models) for method in METHODS}
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"KWTL {__version__}",
            description="Knowing what to label: the regions whose outlines help the segmentation most, first",
            version=__version__,
            labels=["cell"],
        )

    def init_datastore(self) -> KWTLDatastore:
        """Make the datastore of images and labels, for one thread at a time."""
        return KWTLDatastore(self.images, self.sidecar, server_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD)

    def init_infers(self) -> dict[str, Any]:
        """Make the segmenter."""
        return {MODEL: KWTLInfer(self.kwtl, self.images, self.models)}

    def init_trainers(self) -> dict[str, Any]:
        """Make the task of support fine-tuning."""
        parts = self.kwtl, self.images, self.sidecar, self.models
        return {MODEL: KWTLTrain(*parts, list(self.scorings.values()), self.app_dir)}

    def init_strategies(self) -> dict[str, Any]:
        """Make a strategy for each scoring method, and random choice."""
        parts = self.kwtl, self.images, self.sidecar
        strategies: dict[str, Any] = {method: KWTLStrategy(one, *parts) for method, one in self.scorings.items()}
        strategies["random"] = KWTLStrategy(None, *parts)
        if self.kwtl.epistemic:
            strategies["epistemic"] = Epistemic()
        return strategies

    def init_scoring_methods(self) -> dict[str, Any]:
        """Make the scoring methods; MONAI Label's own as well where the setting ``epistemic`` asks for it."""
        methods: dict[str, Any] = dict(self.scorings)
        if self.kwtl.epistemic:
            methods["epistemic"] = EpistemicScoring(epistemic_infer(self.kwtl, self.images, self.models))
        return methods

    # --- what MONAI Label answers with a bare 500 ---------------------------------------------------------------------

    @staticmethod
    def _known(name: Any, there: Mapping[str, Any], what: str) -> None:
        if name not in there:
            raise refuse(404, f"there is no {what} {str(name)[:60]!r}; this server has {', '.join(sorted(there))}.")

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment an image of the studies, or one that came with the request."""
        self._known(request.get("model"), self._infers, "model")
        image = request.get("image")
        uri = self.datastore().get_image_uri(image) if isinstance(image, str) else ""
        if not uri and not self._is_upload(image):
            raise refuse(404, f"there is no image {str(image)[:60]!r}; GET /datastore/?output=all lists them.")
        if uri and os.path.exists(image):
            # MONAI Label would take a file of that name in the server's current folder
            request = {**request, "image": uri}
        tag = request.get("label_tag", "")
        if request.get("save_label") and str(getattr(tag, "value", tag)).strip().casefold() == FINAL:
            raise refuse(
                400,
                f"a prediction is no expert's label and cannot be saved as {FINAL!r}: use another label_tag, or send "
                "the corrected mask with PUT /datastore/label.",
            )
        if request.get("save_label") in (True, "true"):
            request = {**request, "result_extension": None}
        return super().infer(request, datastore)

    @staticmethod
    def _is_upload(image: Any) -> bool:
        """Return True for a temporary file that the server has just made of an upload; no other path is read."""
        path = Path(str(image))
        return path.is_absolute() and path.parent == Path(tempfile.gettempdir()) and path.name.startswith("tmp")

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment part of an image for QuPath: outlines inside ``location`` and ``size``."""
        output = request.get("output")
        if output == "dsa":
            raise refuse(400, "results for the Digital Slide Archive are not offered; use output=asap or json.")
        return self.infer({**request, "result_extension": ".xml"}, datastore)

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Score images."""
        self._known(request.get("method"), self._scoring_methods, "scoring method")
        return super().scoring(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train, publish and score again."""
        self._known(request.get("model"), self._trainers, "model")
        return super().train(request)

    def bundle_path(self, model: str | None) -> None:
        """Return None, there are no bundles. MONAI Label asks before it queues a task, so it is refused in time."""
        if model is not None:
            self._known(model, self._infers, "model")

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say what to label next."""
        self._known(request.get("strategy"), self._strategies, "strategy")
        return super().next_sample(request)

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """Return the weights in use, for download; an upload, which nothing has checked, cannot replace them."""
        self._known(model, self._infers, "model")
        if not validate:
            raise refuse(403, "weights cannot be uploaded: start the server with --model, or train.")
        return super().model_file(model, validate)

    def on_init_complete(self) -> None:
        """Score in the background what has no scores yet."""
        super().on_init_complete()
        self.models.tidy()
        interrupted = self.models.interrupted()
        if interrupted is not None:
            name = interrupted[0].name
            logger.warning(f'training {name} was interrupted: POST /train/kwtl {{"resume": true}} goes on with it')
        if self.kwtl.score_at_start and self.models.current.is_file() and self.kwtl_unscored():
            self.async_scoring("kwtl")

    def kwtl_unscored(self) -> int:
        """Count the images (pages) without scores of the weights in use."""
        with answered():
            items = unlabelled(self.images, self.sidecar)
            return len(self.sidecar.unscored(self.scorings["kwtl"].scoring(), items))

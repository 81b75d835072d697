"""Scoring methods of the app: the core's scores of every image that is not wholly labelled. Needs monailabel."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from monai_kwtl.bundle.provenance import versions
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.http_errors import answered
from monai_kwtl.label.settings import LabelSettings
from monai_kwtl.label.state.database import Scoring, Sidecar
from monai_kwtl.label.state.labels import whole
from monai_kwtl.label.state.studies import Studies
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.pipeline.scoring import score_item, strategy_of, tiles, window_scorer
from monai_kwtl.scoring.store import settings_hash
from monai_kwtl.selection.strategies import FEATURE_STRATEGIES

__all__ = ["KWTLScoring", "METHODS", "unlabelled"]

METHODS = ("kwtl", "entropy", "mc_dropout")

logger = logging.getLogger("monai_kwtl")


def unlabelled(studies: Studies, sidecar: Sidecar) -> list[dict[str, Any]]:
    """Return the items of which something is left to label."""
    known = sidecar.known()
    return [item for item in studies.items() if whole(item) not in known.get((item["sha256"], item["page"]), ())]


class KWTLScoring(ScoringMethod):
    """Scores windows by one measure, and keeps them in the sidecar.

    Args:
        method: ``kwtl``, ``entropy`` or ``mc_dropout``.
        settings: of the app.
        studies: the images.
        sidecar: where scores are kept.
        models: the weights.
    """

    def __init__(
        self, method: str, settings: LabelSettings, studies: Studies, sidecar: Sidecar, models: ModelFolder
    ) -> None:
        measure = settings.measure if method == "kwtl" else method
        super().__init__(f"windows by {measure}" + (" consistency of image and views" if method == "kwtl" else ""))
        self.method, self.settings = method, settings
        self.studies, self.sidecar, self.models = studies, sidecar, models
        self.scorer = window_scorer(
            settings.window,
            settings.step,
            measure=measure,
            views=settings.views,
            psi=settings.psi,
            weighted=settings.weighted,
            seed=settings.seed,
            inferer=tiles(settings.tile, settings.amp),
        )
        depends_on = {
            "measure": measure,
            "views": settings.views,
            "psi": settings.psi,
            "weighted": settings.weighted,
            "rescale": settings.rescale,
            "seed": settings.seed if measure == "mc_dropout" else None,
            "computed_by": self.scorer.scorer.inferer.arithmetic(models.device),
            "versions": versions(),
        }
        self._settings_hash = settings_hash(depends_on, settings.window, settings.step)

    def scoring(self) -> Scoring:
        """Return what scores of this method depend on at present."""
        return Scoring(self.method, self.models.sha256(), self._settings_hash, self.settings.window, self.settings.step)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Score what has no scores yet of the present weights and settings.

        Args:
            request: not looked at.
            datastore: not looked at.

        Returns:
            ``total`` images (pages) that are not wholly labelled, how many were ``executed`` and ``skipped``, and the
            ``latency`` in seconds.
        """
        begun = time.time()
        with answered():
            scoring, network = self.scoring(), self.models.network()
            if self.method == "mc_dropout":  # hooks into it, and other threads segment by the same network meanwhile
                network = copy.deepcopy(network)
            items = unlabelled(self.studies, self.sidecar)
            new = self.sidecar.unscored(scoring, items)
            window, step = self.settings.window, self.settings.step
            self.scorer.features = strategy_of(None, items, window, step, network) in FEATURE_STRATEGIES
            for item in list(new):
                try:
                    found = score_item(item, network, self.scorer, self.settings.rescale)
                except KWTLError as error:  # it changed since it was looked at
                    logger.warning(f"{item['name']} is not scored: {error}")
                    new.remove(item)
                    continue
                self.sidecar.put(scoring, item, found)
            if new:
                self.sidecar.forget(self.method)
        seconds = round(time.time() - begun, 3)
        summary = {"total": len(items), "executed": len(new), "skipped": len(items) - len(new), "latency": seconds}
        logger.info(f"scoring {self.method}: {summary}")
        return summary

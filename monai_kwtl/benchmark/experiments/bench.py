"""The stages of a benchmark in one process: meta-training, pretext tuning, scoring, support tuning, measuring."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from monai_kwtl.benchmark.experiments.importance import importance_weights
from monai_kwtl.benchmark.experiments.threshold import decision_threshold
from monai_kwtl.benchmark.plan.case import WEIGHED_BY, Case
from monai_kwtl.benchmark.plan.methods import VARIANTS
from monai_kwtl.benchmark.plan.store import Store, digest, grid_of
from monai_kwtl.data.crops import CropDataset, crop_dataset
from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pseudo_labels import choose_pseudo_label, pseudo_labelled, unlabelled_images
from monai_kwtl.data.sources import load_sources, source_crops
from monai_kwtl.engines.foreground import foreground_fraction
from monai_kwtl.engines.reptile import ReptileTrainer
from monai_kwtl.errors import KWTLError
from monai_kwtl.losses import ForegroundWeightedBCE, loss_function
from monai_kwtl.metrics import Overlap
from monai_kwtl.networks.choice import load_network, network_for
from monai_kwtl.networks.device import choose_device
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.pipeline import scoring
from monai_kwtl.pipeline.tuning import fit
from monai_kwtl.scoring.features import window_features
from monai_kwtl.selection.balanced import covariates
from monai_kwtl.windows.scores import ImageScores

__all__ = ["Bench"]

_NORMS = {"reestimated": True, "running": False, "transductive": "transductive"}


class Bench:
    """A case with a store: makes its networks, scores and results; each method expects those before it in the store.

    Args:
        case: what to work on.
        store: where results are kept.
    """

    def __init__(self, case: Case, store: Store) -> None:
        self.case, self.store = case, store
        self.config, self.plan = case.config, case.config.plan
        self.device = choose_device(self.config.device)
        self.amp = None if self.config.amp == "auto" else bool(self.config.amp)

    def _network(self, kind: str, settings: Mapping[str, Any]) -> torch.nn.Module:
        network = load_network(self.store.path(kind, digest(settings)), device=self.device)
        return network.to(memory_format=torch.channels_last)

    def adapted(self, network: torch.nn.Module, norm: str) -> torch.nn.Module:
        """Return the network for inference, with the batch-norm statistics that a variant wants."""
        limit = self.plan.norm_images
        return scoring.adapt(network, self.case.pool, _NORMS[norm], amp=self.amp, limit=limit).ready()

    def train_meta(self) -> None:
        """Meta-train on all sources, from ``ckpt`` or random weights."""
        settings, plan = self.case.meta_settings(), self.plan
        torch.manual_seed(settings["seed"])
        network = load_weights(network_for(None), self.config.ckpt, self.device).to(memory_format=torch.channels_last)
        folders = [self.config.data / name for name, _ in settings["sources"]]
        sources = load_sources(folders, most=plan.meta_images)
        ReptileTrainer(
            device=self.device,
            max_epochs=plan.meta_epochs,
            sources=source_crops(sources, plan.crop, plan.meta_crops, settings["seed"]),
            network=network,
            loss_function=ForegroundWeightedBCE(),
            inner_optimizer=partial(torch.optim.Adam, lr=1e-3, weight_decay=5e-4),
            inner_steps=plan.inner_steps,
            amp=self.amp,
        ).run()
        self.store.put_weights("meta", digest(settings), network.state_dict())

    def train_pretext(self, variant: str) -> None:
        """Tune the meta-trained network on pseudo-labels of the pool."""
        settings, plan = self.case.pretext_settings(variant), self.plan
        network = self._network("meta", self.case.meta_settings())
        pseudo_label = choose_pseudo_label(self.case.pool, **settings["pseudo_label"])
        data = pseudo_labelled(self.case.pool, pseudo_label)
        steps = plan.pretext_steps
        crops = self._crops(data, steps, plan.pretext_epochs, settings["seed"])
        fit(network, crops, learning_rate=plan.learning_rate, amp=self.amp, num_workers=self.config.num_workers)
        self.store.put_weights("pretext", digest(settings), network.state_dict())

    def _crops(
        self, data: Sequence[Mapping[str, Any]], steps: int | None, epochs: int, seed: int, **further: Any
    ) -> CropDataset:
        plan, step = self.plan, self.case.config.target(self.case.target).step
        kind = "paper" if steps is None else "steps"
        size = plan.crop, step, plan.batch_size
        return crop_dataset(kind, data, steps or 1, max(epochs, 1), *size, seed, **further)

    def grids(self, variant: str) -> list[ImageScores]:
        """Return the pool with the windows that a variant chooses among, all of score 0."""
        step, window = self.config.target(self.case.target).step, self.case.window_of(variant)
        return [grid_of(item, window, step) for item in self.case.pool]

    def score(self, variant: str, method: str) -> None:
        """Score every window of the pool."""
        settings = self.case.score_settings(variant, method)
        if settings is None:
            raise KWTLError(f"the method {method} needs no scores.")
        start = time.perf_counter()
        pool = self.score_with(self._scoring_network(variant, settings["norm"]), settings)
        self.store.put_scores(digest(settings), pool, time.perf_counter() - start)

    def _scoring_network(self, variant: str, norm: str) -> torch.nn.Module:
        return self.adapted(self._network(*self.case.scoring_network(variant)), norm)

    def score_with(self, network: torch.nn.Module, settings: Mapping[str, Any]) -> list[ImageScores]:
        """Score every window of the pool with a network.

        Args:
            network: for inference.
            settings: of the scores, as :meth:`Case.score_settings` has them.
        """
        scorer = scoring.window_scorer(
            settings["window"],
            settings["step"],
            measure=settings["measure"],
            views=settings["views"] or "intensity",
            psi=settings["psi"] or 1.3,
            weighted=settings["weighted"],
            exact=settings["exact"],
            seed=settings["seed"] or 0,
            inferer=scoring.tiles(amp=self.amp),
        )
        return scoring.score(self.case.pool, network, scorer)

    def describe(self, variant: str, method: str) -> None:
        """Compute the features of every window of the pool."""
        settings = self.case.feature_settings(variant, method)
        if settings is None:
            raise KWTLError(f"the method {method} compares no windows.")
        start = time.perf_counter()
        features = self.describe_with(self._scoring_network(variant, settings["norm"]), variant)
        self.store.put_features(digest(settings), features, time.perf_counter() - start)

    def describe_with(self, network: torch.nn.Module, variant: str) -> list[np.ndarray]:
        """Return features of the windows of each image of the pool, by a network for inference."""
        inferer = scoring.tiles(amp=self.amp)
        return [
            window_features(torch.from_numpy(read_image(item))[None].to(self.device), network, grid.grid, inferer)
            for item, grid in zip(self.case.pool, self.grids(variant), strict=True)
        ]

    def scores(self, variant: str, method: str) -> tuple[list[ImageScores], float]:
        """Return the pool as a method sees it, and the seconds that scoring it took."""
        settings, features = self.case.score_settings(variant, method), self.case.feature_settings(variant, method)
        pool, seconds = self.grids(variant), 0.0
        if settings is not None:
            pool, seconds = self.store.scores(digest(settings), pool)
        if features is not None:
            pool, further = self.store.with_features(digest(features), pool)
            seconds += further
        return pool, seconds

    def weighed(self, support: Sequence[Mapping[str, Any]], variant: str) -> list[dict[str, Any]]:
        """Return a support set with the ``importance`` of its windows, by what the network says of the pool's."""
        pool, _ = self.scores(variant, WEIGHED_BY)
        places, number = {}, 0
        for image in pool:
            for y, x in zip(image.grid.y.tolist(), image.grid.x.tolist(), strict=True):
                places[image.name, image.page, y, x] = number
                number += 1
        numbers = [places[e["name"], e["page"], r.y, r.x] for e in support for r in e["regions"]]
        weights = iter(importance_weights(covariates(pool), numbers).tolist())
        return [{**entry, "importance": [next(weights) for _ in entry["regions"]]} for entry in support]

    def train_support(self, support: Sequence[Mapping[str, Any]], variant: str) -> torch.nn.Module:
        """Tune the pretext network on known masks, as a variant does it, and return the tuned one."""
        network = self._network("pretext", self.case.pretext_settings(variant))
        if not support:
            return network
        plan, how, seed = self.plan, VARIANTS[variant].tuning, self.case.derived_seed("support")
        fraction = None
        if how.matched or how.foreground_weight == "pool":
            inferer = scoring.tiles(amp=self.amp)
            fraction = foreground_fraction(network, self.case.pool, inferer, device=self.device, limit=plan.norm_images)
        steps = None if plan.support_steps is None else how.steps * plan.support_steps
        further = {"photometric": how.photometric, "match_foreground": how.matched, "fraction": fraction}
        crops = self._crops(support, steps, how.steps * plan.support_epochs, seed, **further)
        loss = loss_function(how.foreground_weight, crops, how.loss, fraction)
        unlabelled = None
        if how.teacher:
            pool = unlabelled_images(self.case.pool)
            unlabelled = CropDataset(pool, crops.steps, size=plan.crop, batch_size=plan.batch_size, seed=(seed, 1))
        return fit(
            network,
            crops,
            loss,
            learning_rate=how.rate * plan.learning_rate,
            falling_rate=how.falling or plan.decay,
            amp=self.amp,
            num_workers=self.config.num_workers,
            unlabelled=unlabelled,
            seed=(seed, 2),
        )

    def measure(
        self, network: torch.nn.Module, variant: str, support: Sequence[Mapping[str, Any]] = ()
    ) -> list[Overlap]:
        """Compare the masks of the test images with their labels, at full resolution.

        Args:
            network: tuned.
            variant: says how it is measured.
            support: known masks, on which the threshold is chosen where the variant wants that.
        """
        how = VARIANTS[variant].tuning
        ready = self.adapted(network, VARIANTS[variant].norm)
        inferer = scoring.tiles(amp=self.amp, flips=how.flips)
        threshold = decision_threshold(ready, support, inferer) if how.threshold and support else 0.5
        return scoring.evaluate(self.case.parts[1], ready, threshold, inferer)

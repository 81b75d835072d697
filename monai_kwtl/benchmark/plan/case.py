"""A case: one target, split and seed of a benchmark, its images, and what each result of it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from monai_kwtl.benchmark.plan.config import Config
from monai_kwtl.benchmark.plan.methods import METHODS, VARIANTS
from monai_kwtl.benchmark.plan.rows import Key
from monai_kwtl.benchmark.plan.store import derived_seed, digest, folder_hash
from monai_kwtl.benchmark.plan.targets import make_splits
from monai_kwtl.bundle.provenance import versions
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.device import choose_device
from monai_kwtl.networks.weights import start_sha256
from monai_kwtl.selection.budget import Budget
from monai_kwtl.utils.sampling import evenly_spaced
from monai_kwtl.windows.grid import WindowGrid

__all__ = ["Case", "WEIGHED_BY", "forget_data", "source_names"]

Items = list[Mapping[str, Any]]

WEIGHED_BY = "balanced"  # the method whose covariates the importance of windows follows from

_TRAINING = ("crop", "batch_size", "learning_rate")

_versions = lru_cache(maxsize=1)(versions)


def forget_data() -> None:
    """Look at the files of the data sets anew: what is found in them is remembered, as every experiment asks for it."""
    for function in (_images, _splits, _meta_settings, folder_hash):
        function.cache_clear()


@lru_cache(maxsize=8)
def _images(folder: Path, with_labels: bool) -> Items:
    return load_pool(folder, with_labels=with_labels, option="targets")


@lru_cache(maxsize=8)
def _splits(folder: Path, protocol: str, count: int, fraction: float, block: str | None, most: int | None) -> list:
    items = _images(folder, True)
    if unlabelled := [item["name"] for item in items if not item.get("label")]:
        raise KWTLError(
            f"{folder}: {len(unlabelled)} images have no mask, first {unlabelled[0]}; a benchmark needs all."
        )
    return make_splits(items if most is None else evenly_spaced(items, most), protocol, count, fraction, block)


def _identity(items: Items) -> str:
    """Return a hash of names and images in their order, on which the drawing of crops depends."""
    return digest([(item["name"], item["page"], item["sha256"]) for item in items])


def source_names(config: Config, target: str) -> list[str]:
    """Return the data sets that the network of a target is meta-trained on: never the target itself.

    Raises:
        KWTLError: when there is none, or one is not there.
    """
    found = sorted(folder.name for folder in config.data.glob("*") if (folder / "labels").is_dir())
    for name in config.sources or ():
        if name not in found:
            raise KWTLError(f"sources: {config.data} has no labelled data set {name!r}; it has {', '.join(found)}.")
    names = [name for name in config.sources or found if name != target]
    if not names:
        raise KWTLError(f"there is no labelled data set besides {target} in {config.data} to meta-train on.")
    return names


@lru_cache(maxsize=64)
def _meta_settings(config: Config, target: str, seed: int) -> dict[str, Any]:
    plan = config.plan
    sources = [
        (name, [folder_hash(config.data / name / part) for part in ("images", "labels")])
        for name in source_names(config, target)
    ]
    return {
        "stage": "meta",
        "sources": sources,
        "start": start_sha256(config.ckpt),
        "seed": derived_seed(target, seed, "meta"),
        "crop": plan.crop,
        **{name: getattr(plan, name) for name in ("meta_epochs", "inner_steps", "meta_crops", "meta_images")},
        **_common(config),
    }


def _common(config: Config) -> dict[str, Any]:
    kind = choose_device(config.device).type if config.device == "auto" else torch.device(config.device).type
    # 2: statistics are fitted in the arithmetic that the network is run in, as the stages of the bundle do it
    return {"versions": _versions(), "device": kind, "amp": config.amp, "arithmetic": 2}


@dataclass(frozen=True)
class Case:
    """One target, protocol, split and seed.

    The ``*_settings`` are JSON data that hold everything a result depends on, each with the hash of what it is made
    from, so that equal results are computed once, and changed images or options never meet old results.

    Args:
        config: of the benchmark.
        target: name of the data set.
        protocol: of the split.
        split: its number, from 0.
        seed: of training and of random methods.
    """

    config: Config
    target: str
    protocol: str
    split: int
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of the target."""
        folder = self.config.data / self.target
        if not folder.is_dir():
            raise KWTLError(
                f"targets: there is no data set {self.target!r} in {self.config.data}; prepare it, or say where with "
                "data_dir or KWTL_DATA."
            )
        return folder

    @property
    def parts(self) -> tuple[Items, Items]:
        """Pool and test images; their labels are paths, which nothing but the annotator and the measuring opens."""
        config = self.config
        block = config.target(self.target).block
        # the first splits are the same however many there are
        known = (config.splits, config.test_fraction, block, config.most_images)
        return _splits(self.folder, self.protocol, *known)[self.split]

    @property
    def pool(self) -> Items:
        """Pool images, without their labels."""
        return [{name: value for name, value in item.items() if name != "label"} for item in self.parts[0]]

    def derived_seed(self, purpose: str) -> int:
        """Return a seed for a purpose, the same for all methods, variants and budgets of this case."""
        return derived_seed(self.target, self.protocol, self.split, self.seed, purpose)

    def meta_settings(self) -> dict[str, Any]:
        """Return what the meta-trained network depends on; one for all splits of a target."""
        return _meta_settings(self.config, self.target, self.seed)

    def pretext_settings(self, variant: str) -> dict[str, Any]:
        """Return what the pretext-tuned network depends on."""
        plan, target = self.config.plan, self.config.target(self.target)
        pseudo = {"polarity": target.polarity, "method": VARIANTS[variant].pseudo_labels or "auto"}
        if pseudo["method"] == "auto":
            pseudo |= {"threshold": target.threshold, "fraction": target.fraction}
        return {
            "stage": "pretext",
            "start": digest(self.meta_settings()),
            "pool": _identity(self.parts[0]),
            "pseudo_label": pseudo,
            "seed": self.derived_seed("pretext"),
            "grid_step": target.step if plan.pretext_steps is None else None,
            **{name: getattr(plan, name) for name in ("pretext_steps", "pretext_epochs", *_TRAINING)},
            **_common(self.config),
        }

    def window_of(self, variant: str) -> int:
        """Return the side of the windows that a variant chooses among, in pixels."""
        return max(1, round(VARIANTS[variant].window * self.config.window))

    def score_settings(self, variant: str, method: str) -> dict[str, Any] | None:
        """Return what the scores of a method depend on; None where it needs none."""
        if METHODS[method].measure is None:
            return None
        scoring = VARIANTS[variant].scoring(METHODS[method], self.config.plan.exact)
        return {
            "stage": "scores",
            "psi": self.config.target(self.target).psi if scoring["views"] == "intensity" else None,
            "seed": self.derived_seed("mc_dropout") if scoring["measure"] == "mc_dropout" else None,
            **scoring,
            **self._seen_by(variant),
        }

    def feature_settings(self, variant: str, method: str) -> dict[str, Any] | None:
        """Return what the features of windows that a method compares depend on; None where it compares none."""
        if not METHODS[method].features:
            return None
        norm = VARIANTS[variant].scoring(METHODS[method], exact=False)["norm"]
        return {"stage": "features", "norm": norm, **self._seen_by(variant)}

    def weighs(self, key: Key) -> bool:
        """Return True if an experiment tunes on windows by their importance."""
        return VARIANTS[key.variant].tuning.reweighted and METHODS[key.method].strategy is not None

    def seen_for(self, key: Key) -> list[str]:
        """Return the methods whose scores and features an experiment needs.

        Its own, and that whose weights it takes.
        """
        return list(dict.fromkeys([key.method, WEIGHED_BY] if self.weighs(key) else [key.method]))

    def scoring_network(self, variant: str) -> tuple[str, dict[str, Any]]:
        """Return the network that scores the pool: its kind in the store, and its settings."""
        if VARIANTS[variant].scores_with == "source":
            return "meta", self.meta_settings()
        return "pretext", self.pretext_settings(variant)

    def _seen_by(self, variant: str) -> dict[str, Any]:
        """Return what all that a network says of the pool's windows depends on."""
        return {
            "network": digest(self.scoring_network(variant)[1]),
            "pool": _identity(self.parts[0]),
            "window": self.window_of(variant),
            "step": self.config.target(self.target).step,
            "norm_images": self.config.plan.norm_images,
            **_common(self.config),
        }

    def budget(self, key: Key) -> Budget:
        """Return the budget of an experiment, of a method that selects."""
        share = VARIANTS[key.variant].share
        pool, target = self.parts[0], self.config.target(self.target)
        if key.budget_kind == "pixels":
            area = sum(item["height"] * item["width"] for item in pool) / len(pool)
            return Budget(pixels=max(1, round(share * key.budget * area)))
        return Budget(windows=max(1, round(share * key.budget * target.windows_per_shot)))

    def check_budget(self, key: Key) -> None:
        """Raise a :class:`KWTLError` where the pool does not hold a budget."""
        step = self.config.target(self.target).step
        grids = [WindowGrid(item["height"], item["width"], self.window_of(key.variant), step) for item in self.pool]
        try:
            self.budget(key).limits(grids)
        except KWTLError as error:
            raise KWTLError(f"{self.target}, {key.budget_kind} {key.budget:g}: {error}") from error

    def tuned_settings(self, key: Key) -> dict[str, Any]:
        """Return what the tuned network of an experiment depends on: its settings less those of measuring alone."""
        settings = self.experiment_settings(key)
        if METHODS[key.method].rounds == 1:  # else the norm decides what is scored between the rounds
            settings.pop("norm")
        settings.pop("tuning", None)
        if departures := VARIANTS[key.variant].tuning.departures(training=True):
            settings["tuning"] = departures
        return {name: value for name, value in settings.items() if name != "test"}

    def experiment_settings(self, key: Key) -> dict[str, Any]:
        """Return what the result of an experiment depends on; labels of the pool and the test images count as files."""
        plan, config, method = self.config.plan, self.config, METHODS[key.method]
        pool, test = self.parts
        settings: dict[str, Any] = {
            "stage": "cell",
            "start": digest(self.pretext_settings(key.variant)),
            "norm": VARIANTS[key.variant].norm,
            "norm_images": plan.norm_images,
            "pool": _identity(pool),
            "test": _identity(test),
            "labels": folder_hash(self.folder / "labels"),
            **_common(self.config),
        }
        if key.method != "pretext_only":
            settings |= {"seed": self.derived_seed("support"), "grid_step": None}
            settings |= {name: getattr(plan, name) for name in ("support_steps", "support_epochs", "decay", *_TRAINING)}
            if plan.support_steps is None:
                settings["grid_step"] = config.target(self.target).step
        if departures := VARIANTS[key.variant].tuning.departures():
            settings["tuning"] = departures
        if method.strategy is None:
            return settings | {"select": key.method}
        if self.weighs(key):
            seen = self.score_settings(key.variant, WEIGHED_BY), self.feature_settings(key.variant, WEIGHED_BY)
            settings["weighed_by"] = digest(seen)
        scores = self.score_settings(key.variant, key.method)
        features = self.feature_settings(key.variant, key.method)
        if features is not None:
            settings["features"] = digest(features)
        if method.rounds > 1:
            settings["rounds"] = method.rounds
        if method.first is not None:
            settings["first"] = method.first
        return settings | {
            "select": method.strategy,
            "scores": scores and digest(scores),
            "window": self.window_of(key.variant),
            "step": config.target(self.target).step,
            "budget": self.budget(key).as_dict(),
            "select_seed": self.derived_seed(key.method),
        }

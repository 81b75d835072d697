"""The grid of a benchmark as jobs: what is to be computed, in an order in which everything finds what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from monai_kwtl.benchmark.experiments.bench import Bench
from monai_kwtl.benchmark.experiments.experiment import run_experiment
from monai_kwtl.benchmark.plan.case import Case
from monai_kwtl.benchmark.plan.config import Config
from monai_kwtl.benchmark.plan.methods import METHODS, VARIANTS
from monai_kwtl.benchmark.plan.rows import Key
from monai_kwtl.benchmark.plan.store import Store, digest
from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.memory import keep_freed_memory

__all__ = ["Job", "experiments_of", "jobs_of"]

_CROP = 128 * 128  # pixels; the unit of a job's size is one such crop trained on, which costs three forward passes
_OVERHEAD = 20.0  # of any job: reading, writing, the first call of a network


@dataclass(frozen=True)
class Job:
    """Something to compute once and keep in the store.

    Args:
        kind: ``meta``, ``pretext``, ``scores``, ``features`` or ``cell``.
        key: hash of all that it depends on, its name in the store.
        case: of it, or for what several cases share, of the first of them.
        experiment: the experiment, or for scores and pretext networks the first that needs them.
        needs: keys of the jobs that must be finished before.
        size: roughly how much computing it takes, for the time left.
    """

    kind: str
    key: str
    case: Case
    experiment: Key
    needs: tuple[str, ...]
    size: float

    def __str__(self) -> str:
        experiment = self.experiment
        if self.kind == "meta":
            return f"meta-training for {experiment.target}"
        place = f"{experiment.target} {experiment.protocol} split {experiment.split}"
        if self.kind == "cell":
            return (
                f"{place}, {experiment.method} at {experiment.budget:g} {experiment.budget_kind} ({experiment.variant})"
            )
        return f"{place}, {self.kind}" + (f" for {experiment.method}" if self.kind in ("scores", "features") else "")

    def run(self, store: Store) -> None:
        """Compute it, unless it is in the store already.

        Args:
            store: where the result goes.

        Raises:
            KWTLError: for data that cannot be used, or when a training diverges.
        """
        if store.has(self.kind, self.key):
            return
        # sums of floats depend on how many threads share them
        torch.set_num_threads(self.case.config.cores)
        keep_freed_memory()
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                self._compute(store)
        except KWTLError as error:
            raise KWTLError(f"{self}: {error}") from error

    def _compute(self, store: Store) -> None:
        if self.kind == "cell":
            run_experiment(self.case, store, self.experiment)
            return
        bench = Bench(self.case, store)
        if self.kind == "meta":
            bench.train_meta()
        elif self.kind == "pretext":
            bench.train_pretext(self.experiment.variant)
        elif self.kind == "scores":
            bench.score(self.experiment.variant, self.experiment.method)
        else:
            bench.describe(self.experiment.variant, self.experiment.method)


def experiments_of(config: Config) -> list[tuple[Case, Key]]:
    """Return every experiment of a grid, in the order of the results' rows.

    ``full`` has one experiment a split, of the budget of all pool images, in shots; ``pretext_only`` one, of budget 0.
    Methods in rounds have budgets in pixels only.

    Raises:
        KWTLError: where a target is not there, or does not hold a budget.
    """
    experiments = []
    for target, protocol, split, seed in product(config.targets, config.protocols, range(config.splits), config.seeds):
        case = Case(config, target, protocol, split, seed)
        for variant, method in product(config.variants, config.methods):
            budgets = [("shots", float(value)) for value in config.shots]
            budgets += [("pixels", float(value)) for value in config.pixels]
            if METHODS[method].strategy is None:
                budgets = [("shots", 0.0 if method == "pretext_only" else float(len(case.pool)))]
            for kind, value in budgets:
                if METHODS[method].rounds > 1 and kind == "shots":
                    continue  # so many windows leave none that is free for a second round
                key = Key(target, protocol, split, seed, config.plan.name, variant, method, kind, value)
                if METHODS[method].strategy is not None:
                    case.check_budget(key)
                experiments.append((case, key))
    return sorted(experiments, key=lambda experiment: experiment[1])


def _training(config: Config, steps: int | None, epochs: int, windows: float) -> float:
    plan = config.plan
    crops = epochs * windows if steps is None else steps * plan.batch_size
    return crops * plan.crop**2 / _CROP


def _sizes(case: Case, key: Key) -> dict[str, float]:
    """Roughly how much computing the jobs of an experiment take."""
    config, plan = case.config, case.config.plan
    pool, test = case.parts
    area = sum(item["height"] * item["width"] for item in pool) / len(pool)
    step, departure, method = config.target(case.target).step, VARIANTS[key.variant], METHODS[key.method]
    image = area / _CROP / 3
    passes = {"soft": 4, "hard": 4, "jsd": 4, "mc_dropout": 10}.get(method.measure or "", 1)
    exact = method.measure is not None and departure.scoring(method, plan.exact)["exact"]
    shot = config.target(case.target).windows_per_shot
    windows = min(key.budget, len(pool)) * shot * departure.share
    norm = 2 * min(plan.norm_images, len(pool)) * image
    sources = len(case.meta_settings()["sources"])
    return {
        "meta": plan.meta_epochs * sources * plan.inner_steps * plan.meta_crops * plan.crop**2 / _CROP,
        "pretext": _training(config, plan.pretext_steps, plan.pretext_epochs, len(pool) * area / step**2),
        "features": norm + len(pool) * image,
        "scores": norm + len(pool) * passes * image * (case.window_of(key.variant) ** 2 / step**2 if exact else 1),
        "cell": norm
        + len(test) * image
        + (_training(config, plan.support_steps, plan.support_epochs, windows) if key.method != "pretext_only" else 0),
    }


def _jobs_of_experiment(case: Case, key: Key) -> Iterator[tuple[str, str, dict[str, Any], tuple[int, ...]]]:
    """Kind, method and settings of each job of an experiment, and which of them, by their place, it needs."""
    yield "meta", key.method, case.meta_settings(), ()
    yield "pretext", key.method, case.pretext_settings(key.variant), (0,)
    made = 0 if case.scoring_network(key.variant)[0] == "meta" else 1
    needs = [1]
    for method in case.seen_for(key):
        for kind, settings in (
            ("scores", case.score_settings(key.variant, method)),
            ("features", case.feature_settings(key.variant, method)),
        ):
            if settings is not None:
                needs.append(len(needs) + 1)
                yield kind, method, settings, (made,)
    yield "cell", key.method, case.experiment_settings(key), tuple(needs)


def jobs_of(experiments: list[tuple[Case, Key]]) -> tuple[list[Job], dict[Key, str]]:
    """Return the jobs of experiments, each once however many share it.

    Also the job that has the result of each experiment.

    Experiments whose settings come to the same are one job: a strategy that needs no scores is the same whatever
    scores.

    Args:
        experiments: as from :func:`experiments_of`.

    Returns:
        Jobs, each after those it needs, a split after the other; and the key in the store of every experiment.
    """
    jobs: dict[str, Job] = {}
    results: dict[Key, str] = {}
    for case, key in experiments:
        sizes, keys = _sizes(case, key), []
        for kind, method, settings, needs in _jobs_of_experiment(case, key):
            keys.append(digest(settings))
            if keys[-1] not in jobs:
                needed = tuple(keys[place] for place in needs)
                jobs[keys[-1]] = Job(kind, keys[-1], case, replace(key, method=method), needed, sizes[kind] + _OVERHEAD)
        results[key] = keys[-1]
    return list(jobs.values()), results

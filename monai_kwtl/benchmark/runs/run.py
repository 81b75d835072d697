"""Running a benchmark from its configuration to its tables."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_kwtl.benchmark.plan.case import forget_data
from monai_kwtl.benchmark.plan.config import SIMULATED, Config
from monai_kwtl.benchmark.plan.store import Store
from monai_kwtl.benchmark.runs.jobs import Job, experiments_of, jobs_of
from monai_kwtl.benchmark.runs.results import write_results
from monai_kwtl.bundle.provenance import versions
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.weights import start_sha256
from monai_kwtl.synthetic import DOMAINS, make_pool
from monai_kwtl.utils.atomic import write_text
from monai_kwtl.utils.text import format_seconds

__all__ = ["Progress", "choose_runner", "ray_installed", "run_in_loop", "run_protocol", "run_with_ray"]

Runner = Callable[[Sequence[Job], Store, Config], Iterator[Job]]

_ATTEMPTS = 5  # of a task whose worker dies; what it had finished is in the store

logger = logging.getLogger("monai_kwtl.benchmark")


class Progress:
    """A line now and then with what is done and how long the rest will take, from the sizes of jobs.

    As a context it also says, where no job ends for a while, that it is still at work.

    Args:
        jobs: all that are to be run.
        experiments: experiments of the grid that are finished already, and all of them.
        interval: seconds between lines.
        patience: seconds without a line after which one says what is being worked at.
    """

    def __init__(
        self, jobs: Sequence[Job], experiments: tuple[int, int], interval: float = 10.0, patience: float = 60.0
    ) -> None:
        self.total, self.interval, self.patience = sum(job.size for job in jobs), interval, patience
        self.experiments, self.planned = experiments
        self.open = {job.key: job for job in jobs}
        self.begun = self.said = time.monotonic()
        self.done = 0.0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._say_that_it_works, daemon=True)

    def __enter__(self) -> Progress:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    def finished(self, job: Job) -> None:
        """Take note of a finished job, and say so where it is time to."""
        now = time.monotonic()
        self.done += job.size
        self.experiments += job.kind == "cell"
        self.open.pop(job.key, None)
        if now - self.said >= self.interval and self.done < self.total:
            self.said = now
            fraction = self.done / self.total
            left = f"; about {format_seconds((now - self.begun) * (1 / fraction - 1))} left" if fraction > 0.01 else ""
            logger.info(f"{self._state()}; last: {job}{left}")

    def _state(self) -> str:
        return f"{self.experiments} of {self.planned} experiments, {100 * self.done / self.total:.0f} % of the work"

    def _say_that_it_works(self) -> None:
        while not self._over.wait(self.patience / 4):
            now = time.monotonic()
            waiting = list(self.open.values())
            if now - self.said >= self.patience and waiting:
                self.said = now
                logger.info(f"{self._state()}; at: {waiting[0]}; {format_seconds(now - self.begun)} so far")


def _make_simulated(config: Config) -> None:
    for kind in DOMAINS:
        make_pool(config.data / kind, kind, count=8, height=128, width=160, seed=0)


def run_protocol(config: Config, name: str, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Compute what is not in the store yet, and write ``results.csv``, ``times.csv`` and ``grid.json``.

    The tables are written anew after every experiment, so that they can be looked at while the grid runs; a run that
    was killed goes on with the first job that it had not finished.

    Args:
        config: of the benchmark.
        name: of the benchmark: its folder in ``output_dir``.
        about: what else ``grid.json`` shall say, such as the machine.

    Returns:
        ``cells`` in all, ``computed`` jobs of this run, and ``results``, the path of the table.

    Raises:
        KWTLError: for data that are not there or hold no such budget, and when a training diverges.
    """
    if config.data_dir == SIMULATED:
        _make_simulated(config)
    forget_data()
    given, config = config, _with_absolute_paths(config)
    store, folder = Store(Path(config.output_dir) / "store"), Path(config.output_dir) / name
    runner = choose_runner(config.runner)
    experiments = experiments_of(config)
    jobs, results = jobs_of(experiments)
    # what only finished jobs need is not asked for again, so that a store may be kept without its networks and scores
    wanted = {key for key in results.values() if not store.has("cell", key)}
    for job in reversed(jobs):
        if job.key in wanted and not store.has(job.kind, job.key):
            wanted.update(job.needs)
    missing = [job for job in jobs if job.key in wanted and not store.has(job.kind, job.key)]
    finished = write_results(folder, store, results)
    _write_about(folder, given, about or {})
    logger.info(f"{name}: {finished} of {len(experiments)} experiments are finished, {len(missing)} jobs to do")
    distinct = set(results.values())
    progress = Progress(missing, (sum(store.has("cell", key) for key in distinct), len(distinct)))
    with progress:
        for job in runner(missing, store, config):
            progress.finished(job)
            if job.kind == "cell":
                finished = write_results(folder, store, results)
    if finished < len(experiments):
        raise KWTLError(
            f"only {finished} of {len(experiments)} experiments are in {store.folder}: is it shared by all workers?"
        )
    return {"cells": len(experiments), "computed": len(missing), "results": str(folder / "results.csv")}


def _with_absolute_paths(config: Config) -> Config:
    """The same, for workers that may run in another folder and with other variables."""
    changes = {"data_dir": str(config.data.resolve()), "output_dir": str(Path(config.output_dir).resolve())}
    if config.ckpt is not None:
        changes["ckpt"] = str(Path(config.ckpt).resolve())
    return dataclasses.replace(config, **changes)


def _write_about(folder: Path, config: Config, about: Mapping[str, Any]) -> None:
    """Write what the numbers were made with: options but those of places, schedule, settings of targets, versions."""
    options = dataclasses.asdict(config)
    for place in ("data_dir", "output_dir", "ray_address", "ckpt"):
        del options[place]
    document = {
        "config": options,
        "start_sha256": start_sha256(config.ckpt),
        "schedule": config.plan.as_dict(),
        "targets": {name: dataclasses.asdict(config.target(name)) for name in config.targets},
        "versions": versions(),
        **about,
    }
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    write_text(folder / "grid.json", text, "make room, or choose another output_dir")


def run_in_loop(jobs: Sequence[Job], store: Store, config: Config) -> Iterator[Job]:
    """Run jobs one after the other in this process.

    Args:
        jobs: each after those it needs.
        store: where results go.
        config: not used.

    Yields:
        Each job when it is finished.
    """
    threads = torch.get_num_threads()
    try:
        for job in jobs:
            job.run(store)
            yield job
    finally:
        torch.set_num_threads(threads)


def _in_a_worker(job: Job, store: Store, *_needed: str) -> str:
    job.run(store)
    return job.key


def run_with_ray(jobs: Sequence[Job], store: Store, config: Config) -> Iterator[Job]:
    """Run jobs as Ray tasks, each when those it needs are finished; results go through the store's folder.

    A task asks for ``cores`` processors and, where the device is CUDA, for ``gpus``. A task whose worker dies is run
    again. Without an address a cluster on this machine is begun, and ended with the run; its dashboard and usage
    statistics stay off.

    Args:
        jobs: each after those it needs.
        store: in a folder that all machines of the cluster see under the same path.
        config: of the benchmark.

    Yields:
        Each job when it is finished, in the order in which they finish.

    Raises:
        KWTLError: what a job raised, or when the cluster cannot be reached.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # what will be the default of Ray, without its warning that it will be
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cuda = jobs[0].case.meta_settings()["device"] == "cuda" if jobs else False
    options: dict[str, Any] = {"include_dashboard": False} if config.ray_address is None else {}
    if config.ray_address is None:
        workers = config.workers or max(1, (os.cpu_count() or 1) // config.cores)
        options["num_cpus"] = workers * config.cores
    began = not ray.is_initialized()
    try:
        if began:
            ray.init(address=config.ray_address, log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError) as error:
        raise KWTLError(f"there is no Ray cluster at {config.ray_address}: {str(error).splitlines()[0]}") from error
    try:
        _check_resources(ray.cluster_resources(), config, cuda)
        task = ray.remote(_in_a_worker).options(
            num_cpus=config.cores, num_gpus=config.gpus if cuda else 0, max_retries=_ATTEMPTS
        )
        running: dict[Any, Job] = {}
        by_key: dict[str, Any] = {}
        for job in jobs:
            needed = [by_key[key] for key in job.needs if key in by_key]
            by_key[job.key] = task.remote(job, store, *needed)
            running[by_key[job.key]] = job
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except ray.exceptions.RayError as error:
                raise KWTLError(
                    f"a worker of Ray died again and again; use fewer --workers. ({type(error).__name__})"
                ) from error
            yield running.pop(done)
    finally:
        if began:
            ray.shutdown()


def _check_resources(resources: dict[str, float], config: Config, cuda: bool) -> None:
    """Refuse what a cluster could never start: its tasks would wait for ever."""
    if resources.get("CPU", 0) < config.cores:
        raise KWTLError(f"cores is {config.cores}, but the Ray cluster has {resources.get('CPU', 0):g}; use fewer.")
    if cuda and resources.get("GPU", 0) < config.gpus:
        raise KWTLError(
            f"gpus is {config.gpus:g}, but the Ray cluster has {resources.get('GPU', 0):g}; use --device cpu."
        )


def ray_installed() -> bool:
    """Return True if Ray can be used here."""
    return importlib.util.find_spec("ray") is not None


def choose_runner(name: str) -> Runner:
    """Return the runner of a name: ``loop``, ``ray``, or ``auto``, which is Ray where it is installed.

    Raises:
        KWTLError: for ``ray`` where it is not installed.
    """
    if name == "ray" and not ray_installed():
        raise KWTLError("Ray is not installed: pip install -e '.[benchmark]', or use --runner loop.")
    return run_with_ray if name != "loop" and ray_installed() else run_in_loop

"""Running jobs: one after the other, or as Ray tasks on one machine or a cluster."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from monai_kwtl.benchmark.config import Config
from monai_kwtl.benchmark.grid import Job
from monai_kwtl.benchmark.store import Store
from monai_kwtl.errors import KWTLError

__all__ = ["choose_runner", "ray_installed", "run_in_loop", "run_with_ray"]

Runner = Callable[[Sequence[Job], Store, Config], Iterator[Job]]

_ATTEMPTS = 5  # of a task whose worker dies; what it had finished is in the store


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
    """Whether Ray can be used here."""
    return importlib.util.find_spec("ray") is not None


def choose_runner(name: str) -> Runner:
    """The runner of a name: ``loop``, ``ray``, or ``auto``, which is Ray where it is installed.

    Raises:
        KWTLError: for ``ray`` where it is not installed.
    """
    if name == "ray" and not ray_installed():
        raise KWTLError("Ray is not installed: pip install -e '.[benchmark]', or use --runner loop.")
    return run_with_ray if name != "loop" and ray_installed() else run_in_loop

"""Running a benchmark from its configuration to its tables."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kwtl.benchmark.case import forget_data
from monai_kwtl.benchmark.config import SIMULATED, Config
from monai_kwtl.benchmark.grid import Job, cells_of, jobs_of
from monai_kwtl.benchmark.results import write_results
from monai_kwtl.benchmark.runners import choose_runner
from monai_kwtl.benchmark.store import Store
from monai_kwtl.bundle import start_sha256, versions
from monai_kwtl.errors import KWTLError
from monai_kwtl.summary import format_seconds
from monai_kwtl.synthetic import DOMAINS, make_pool
from monai_kwtl.whole_files import written_whole

__all__ = ["Progress", "run_protocol"]

logger = logging.getLogger("monai_kwtl.benchmark")


class Progress:
    """A line now and then with what is done and how long the rest will take, from the sizes of jobs.

    As a context it also says, where no job ends for a while, that it is still at work.

    Args:
        jobs: all that are to be run.
        cells: cells of the grid that are finished already, and all of them.
        interval: seconds between lines.
        patience: seconds without a line after which one says what is being worked at.
    """

    def __init__(
        self, jobs: Sequence[Job], cells: tuple[int, int], interval: float = 10.0, patience: float = 60.0
    ) -> None:
        self.total, self.interval, self.patience = sum(job.size for job in jobs), interval, patience
        self.cells, self.all_cells = cells
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
        self.cells += job.kind == "cell"
        self.open.pop(job.key, None)
        if now - self.said >= self.interval and self.done < self.total:
            self.said = now
            share = self.done / self.total
            left = f"; about {format_seconds((now - self.begun) * (1 / share - 1))} left" if share > 0.01 else ""
            logger.info(f"{self._state()}; last: {job}{left}")

    def _state(self) -> str:
        return f"{self.cells} of {self.all_cells} cells, {100 * self.done / self.total:.0f} % of the work"

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

    The tables are written anew after every cell, so that they can be looked at while the grid runs; a run that was
    killed goes on with the first job that it had not finished.

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
    cells = cells_of(config)
    jobs, results = jobs_of(cells)
    # what only finished jobs need is not asked for again, so that a store may be kept without its networks and scores
    wanted = {key for key in results.values() if not store.has("cell", key)}
    for job in reversed(jobs):
        if job.key in wanted and not store.has(job.kind, job.key):
            wanted.update(job.needs)
    missing = [job for job in jobs if job.key in wanted and not store.has(job.kind, job.key)]
    finished = write_results(folder, store, results)
    _write_about(folder, given, about or {})
    logger.info(f"{name}: {finished} of {len(cells)} cells are finished, {len(missing)} jobs to do")
    distinct = set(results.values())
    progress = Progress(missing, (sum(store.has("cell", key) for key in distinct), len(distinct)))
    with progress:
        for job in runner(missing, store, config):
            progress.finished(job)
            if job.kind == "cell":
                finished = write_results(folder, store, results)
    if finished < len(cells):
        raise KWTLError(f"only {finished} of {len(cells)} cells are in {store.folder}: is it shared by all workers?")
    return {"cells": len(cells), "computed": len(missing), "results": str(folder / "results.csv")}


def _with_absolute_paths(config: Config) -> Config:
    """The same, for workers that may run in another folder and with other variables."""
    changes = {"data_dir": str(config.data.resolve()), "output_dir": str(Path(config.output_dir).resolve())}
    if config.ckpt is not None:
        changes["ckpt"] = str(Path(config.ckpt).resolve())
    return dataclasses.replace(config, **changes)


def _write_about(folder: Path, config: Config, about: Mapping[str, Any]) -> None:
    """Write what the numbers were made with: knobs but those of places, schedule, settings of targets, versions."""
    knobs = dataclasses.asdict(config)
    for place in ("data_dir", "output_dir", "ray_address", "ckpt"):
        del knobs[place]
    document = {
        "config": knobs,
        "start_sha256": start_sha256(config.ckpt),
        "schedule": config.plan.as_dict(),
        "targets": {name: dataclasses.asdict(config.target(name)) for name in config.targets},
        "versions": versions(),
        **about,
    }
    with written_whole(folder / "grid.json", "make room, or choose another output_dir") as unfinished:
        unfinished.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")

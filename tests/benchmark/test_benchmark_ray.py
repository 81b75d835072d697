"""The grid under Ray gives the bytes of the plain loop, also where a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from monai_kwtl.benchmark.plan.config import make_config
from monai_kwtl.benchmark.runs import run as run_module
from monai_kwtl.benchmark.runs.jobs import Job
from monai_kwtl.benchmark.runs.run import run_protocol
from monai_kwtl.errors import KWTLError


class Killed(Job):
    """A job whose worker is killed at the first attempt, which leaves a file to say so."""

    def run(self, store):
        mark = store.folder / f"killed_{os.getpid()}"
        if not list(store.folder.glob("killed_*")):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().run(store)


class Broken(Job):
    """A job that finds fault with its input."""

    def run(self, store):
        raise KWTLError("the mask of 3.png is of another size; save it anew.")


def as_kind(job, kind):
    return kind(**{field.name: getattr(job, field.name) for field in fields(Job)})


def ray_with(replaced):
    """The Ray runner, with some jobs replaced."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return lambda jobs, store, config: run_module.run_with_ray(replaced(list(jobs)), store, config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_workers_of_which_one_is_killed_give_the_table_of_the_loop(options, tmp_path, monkeypatch):
    options = {**options, "shots": [1, 2, 3], "workers": 2}
    loop = run_protocol(make_config({**options, "output_dir": str(tmp_path / "loop")}), "grid")

    def one_killed(jobs):
        place = [job.kind for job in jobs].index("cell")
        return [*jobs[:place], as_kind(jobs[place], Killed), *jobs[place + 1 :]]

    monkeypatch.setattr("monai_kwtl.benchmark.runs.run.choose_runner", lambda name: ray_with(one_killed))
    done = run_protocol(make_config(options), "grid")
    assert len(list((tmp_path / "output" / "store").glob("killed_*"))) == 1
    assert Path(done["results"]).read_bytes() == Path(loop["results"]).read_bytes()

    # in the same cluster's stead, because beginning one takes seconds: what a job says is said by the run
    def broken(jobs):
        return [as_kind(jobs[0], Broken), *jobs[1:]]

    monkeypatch.setattr("monai_kwtl.benchmark.runs.run.choose_runner", lambda name: ray_with(broken))
    with pytest.raises(KWTLError, match=r"^the mask of 3\.png is of another size; save it anew\.$"):
        run_protocol(make_config({**options, "output_dir": str(tmp_path / "broken")}), "grid")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_more_cores_than_a_cluster_has_are_refused(options, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    with pytest.raises(KWTLError, match="cores is 4, but the Ray cluster has 1; use fewer"):
        list(run_module.run_with_ray([], None, make_config({**options, "cores": 4})))


def test_without_ray_auto_is_the_plain_loop_and_ray_is_refused(monkeypatch):
    monkeypatch.setattr(run_module, "ray_installed", lambda: False)
    assert run_module.choose_runner("auto") is run_module.choose_runner("loop") is run_module.run_in_loop
    with pytest.raises(KWTLError, match="Ray is not installed: pip install"):
        run_module.choose_runner("ray")
    monkeypatch.setattr(run_module, "ray_installed", lambda: True)
    assert run_module.choose_runner("auto") is run_module.choose_runner("ray") is run_module.run_with_ray

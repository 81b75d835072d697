"""Run bundle stages inside the test's own process, as ``python -m monai.bundle run`` would; a second each, not ten."""

from __future__ import annotations

import contextlib
import inspect
import io
import random
import runpy
import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import fire.core
import numpy as np
import torch
from monai.utils import misc
from stage_process import CONFIGS, Ended

from monai_kwtl.networks.fcrn import FCRN


def random_weights(path: Path, seed: int = 0) -> Path:
    """Write weights of a network that was never trained."""
    torch.manual_seed(seed)
    torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), path)
    return path


def _stack() -> list[tuple[types.FrameType]]:
    """The frames of the callers without their sources, for which ``inspect.stack`` takes a tenth of a second."""
    frames, frame = [], inspect.currentframe()
    while frame := frame.f_back:
        frames.append((frame,))
    return frames


QUICK_INSPECT = types.SimpleNamespace(**vars(inspect) | {"stack": _stack})  # for fire, which wants its caller's names


@contextlib.contextmanager
def as_before():
    """Undo what a stage sets for its whole process; conftest does so for logging."""
    hook, argv, threads = sys.excepthook, sys.argv, torch.get_num_threads()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - MONAI seeds it
    seed, cudnn = misc._seed, (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        sys.excepthook, sys.argv = hook, argv
        torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
        misc._seed = seed
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def command(*arguments: object, **options: object) -> Ended:
    """Run ``python -m monai.bundle run`` with these arguments, then ``--key value`` for each option."""
    given = [str(argument) for argument in arguments]
    for key, value in options.items():
        given += [f"--{key}", str(value)]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    quick = mock.patch.object(fire.core, "inspect", QUICK_INSPECT)
    with as_before(), quick, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["-m", "run", *given]
        try:
            with warnings.catch_warnings():  # any other warning is an error, as everywhere in the tests
                warnings.filterwarnings("ignore", message="parsing config_file", category=UserWarning)
                runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
    return Ended(status, out.getvalue(), err.getvalue())


def run(stage: str, **options: object) -> Ended:
    """Run a stage of the bundle in the repository."""
    return command("--config_file", CONFIGS / f"{stage}.json", **options)

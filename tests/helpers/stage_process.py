"""Run bundle stages as ``python -m monai.bundle`` does, each in a process of its own that is forked from a warm one."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "kwtl" / "configs"
# the optimisers of PyTorch import its compiler, which takes a second
WARM = ["monai.bundle", "monai.engines", "tensorboard", "fire", "torch.utils.tensorboard"]
WARM += ["torch._dynamo", "stage_modules"]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it said."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line that it wrote to stderr."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


class Death:
    """Kills its own process with SIGKILL around the so-manieth file that it commits, or half way through writing it.

    Args:
        moment: ``before`` the file gets its name, ``after`` it, or ``half`` way through a checkpoint.
        count: which file, from 1.
    """

    def __init__(self, moment: str, count: int = 1) -> None:
        self.moment, self.left = moment, count

    def _count_down(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        replace, save = os.replace, torch.save

        def replacing(source, target):
            if self.moment == "before":
                self._count_down()
            replace(source, target)
            if self.moment == "after":
                self._count_down()

        def saving(state, stream):
            save(state, stream)
            if self.moment == "half":
                stream.truncate(stream.tell() // 2)
                stream.flush()
                self._count_down()

        os.replace, torch.save = replacing, saving


def _bundle_run(arguments: list[str]) -> None:
    sys.argv = ["-m", "run", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def _child(work: Callable, argument: Any, folder: str, fault: Any, environment: dict[str, str]) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    os.environ.update(environment)
    if fault is not None:
        fault.install()
    status = 0
    try:
        work(argument)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # which multiprocessing would not call
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Forked:
    """A running process that is forked from the warm one.

    Args:
        work: a function of a module, called in the process.
        argument: of it.
        folder: for what the process says; made if absent.
        fault: has ``install``, called in the process before, such as a :class:`Death`.
        environment: further variables.
    """

    def __init__(
        self, work: Callable, argument: Any, folder: Path, fault: Any = None, environment: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(WARM)
        self.folder = folder
        self.process = context.Process(target=_child, args=(work, argument, str(folder), fault, environment or {}))
        self.process.start()

    def wait(self, seconds: float = 120) -> Ended:
        """Wait for the end."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise TimeoutError((self.folder / "err").read_text())
        return Ended(self.process.exitcode, *((self.folder / name).read_text() for name in ("out", "err")))

    def kill_after(self, seconds: float) -> Ended:
        """Kill it with SIGKILL after so many seconds, unless it has ended before."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < end:
            time.sleep(0.002)
        self.process.kill()
        return self.wait()


class Stage(Forked):
    """A running stage.

    Args:
        name: of the config, such as ``train``; or the names of several files that are merged.
        folder: for what it says; made if absent.
        death: when it shall kill itself.
        options: of the stage.
    """

    def __init__(self, name: str | list[str], folder: Path, death: Death | None = None, **options: object) -> None:
        configs = [f"{name}.json"] if isinstance(name, str) else name
        super().__init__(_bundle_run, stage_arguments(configs, **options), folder, death)


def stage_arguments(configs: Sequence[str], **options: object) -> list[str]:
    """Arguments of ``monai.bundle run`` for config files of the bundle and ``--key value`` for each option."""
    paths = [str(CONFIGS / name) for name in configs]
    arguments = ["--config_file", paths[0] if len(paths) == 1 else str(paths)]
    for key, value in options.items():
        arguments += [f"--{key}", str(value)]
    return arguments


def run_together(
    work: Callable, argument: Any, folder: Path, faults: Sequence[Any] = (None, None), seconds: float = 120
) -> list[Ended]:
    """Run a function in several processes as ``torchrun`` would, and wait for all of them.

    Args:
        work: called in each process.
        argument: of it.
        folder: what the process of rank r says goes below ``folder/r``.
        faults: one for each process.
        seconds: how long to wait for each.
    """
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common |= {"WORLD_SIZE": str(len(faults)), "LOCAL_WORLD_SIZE": str(len(faults))}
    processes = [
        Forked(work, argument, folder / str(rank), fault, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, fault in enumerate(faults)
    ]
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.process.kill()


def run_stage_together(
    name: str, folder: Path, faults: Sequence[Any] = (None, None), overlay: bool = True, **options: object
) -> list[Ended]:
    """Run a stage in several processes, with its multi_gpu file."""
    configs = [f"{name}.json", f"multi_gpu_{name}.json"] if overlay else [f"{name}.json"]
    return run_together(_bundle_run, stage_arguments(configs, **options), folder, faults)


def run(name: str | list[str], folder: Path, death: Death | None = None, **options: object) -> Ended:
    """Run a stage to its end."""
    return Stage(name, folder, death, **options).wait()

"""Run bundle stages as ``python -m monai.bundle`` does, each in a process of its own that is forked from a warm one."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "bundles" / "kwtl" / "configs"
WARM = ["monai.bundle", "monai.engines", "tensorboard", "fire", "torch.utils.tensorboard", "stage_modules"]


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


def _child(arguments: list[str], folder: str, death: Death | None) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if death is not None:
        death.install()
    sys.argv = ["-m", "run", *arguments]
    status = 0
    try:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # which multiprocessing would not call
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Stage:
    """A running stage.

    Args:
        name: of the config, such as ``train``.
        folder: for what it says; made if absent.
        death: when it shall kill itself.
        knobs: of the stage.
    """

    def __init__(self, name: str, folder: Path, death: Death | None = None, **knobs: object) -> None:
        arguments = ["--config_file", str(CONFIGS / f"{name}.json")]
        for key, value in knobs.items():
            arguments += [f"--{key}", str(value)]
        folder.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(WARM)
        self.folder = folder
        self.process = context.Process(target=_child, args=(arguments, str(folder), death))
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


def run(name: str, folder: Path, death: Death | None = None, **knobs: object) -> Ended:
    """Run a stage to its end."""
    return Stage(name, folder, death, **knobs).wait()

"""Progress of an engine, on a terminal or in a log."""

from __future__ import annotations

import logging
import sys
import time

from ignite.engine import Engine, Events
from tqdm import tqdm

from monai_kwtl.utils.distributed import is_main_process
from monai_kwtl.utils.text import format_seconds

logger = logging.getLogger("monai_kwtl")


__all__ = ["ProgressLog"]


class ProgressLog:
    """A progress bar on a terminal; elsewhere a plain line with the time left, at most every ten seconds.

    Args:
        what: the verb and noun of the work, such as ``"scoring images"``.
        interval: seconds between plain lines.
    """

    def __init__(self, what: str, interval: float = 10.0) -> None:
        self.what, self.interval = what, interval
        self._bar: tqdm | None = None
        self._begun: float | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        # the clock starts when the other handlers have made ready, which can take longer than an image
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _reset(self, engine: Engine) -> None:
        self._begun = None

    def _start(self, engine: Engine) -> None:
        if self._begun is not None:  # a later epoch
            return
        self._begun = self._said = time.monotonic()
        self._first = engine.state.iteration  # not 0 where a stage is resumed: what was done before took no time now
        self._total = (engine.state.epoch_length or 0) * (engine.state.max_epochs or 1)
        if sys.stderr.isatty() and is_main_process():
            options = {"unit": "", "leave": False, "dynamic_ncols": True}
            self._bar = tqdm(total=self._total, initial=self._first, desc=self.what, **options)

    def _step(self, engine: Engine) -> None:
        now = time.monotonic()
        done = engine.state.iteration
        if self._bar is not None:
            self._bar.update(1)
        elif now - self._said >= self.interval and done < self._total:
            self._said = now
            left = (now - self._begun) / (done - self._first) * (self._total - done)
            logger.info(f"{self.what}: {done} of {self._total}, about {format_seconds(left)} left")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _end(self, engine: Engine) -> None:
        self._close()
        if self._begun is None:  # nothing was left to be done
            return
        logger.info(f"{self.what}: {self._total - self._first} in {format_seconds(time.monotonic() - self._begun)}")

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close()
        raise error

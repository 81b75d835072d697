"""Progress is told in plain lines with the time left, or as a bar on a terminal, and never hides an error."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from ignite.engine import Engine, Events

from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers import progress as progress_module
from monai_kwtl.handlers.progress import ProgressLog


class Clock:
    """A clock that only the steps of the engine move."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock.monotonic)
    return clock


def run(clock, steps, seconds, first=0, **options):
    """Run an engine whose every step takes so many seconds, after ``first`` steps of a run before."""

    def step(engine, _):
        clock.now += seconds

    engine = Engine(step)
    ProgressLog("scoring images", **options).attach(engine)
    engine.state.max_epochs, engine.state.epoch_length, engine.state.iteration = 1, steps, first
    engine.run([None] * (steps - first))


@pytest.fixture(autouse=True)
def level(caplog):
    caplog.set_level(logging.INFO, logger="monai_kwtl")


def test_a_line_comes_every_ten_seconds_with_the_time_left(clock, caplog, capsys):
    run(clock, steps=10, seconds=4.0)
    assert caplog.messages == [
        "scoring images: 3 of 10, about 28 s left",
        "scoring images: 6 of 10, about 16 s left",
        "scoring images: 9 of 10, about 4.0 s left",
        "scoring images: 10 in 40 s",
    ]
    assert capsys.readouterr() == ("", "")


def test_short_work_says_only_that_it_is_done(clock, caplog):
    run(clock, steps=5, seconds=0.1)
    assert caplog.messages == ["scoring images: 5 in 0.5 s"]


def test_what_other_handlers_do_before_the_first_step_does_not_count(clock, caplog):
    def step(engine, _):
        clock.now += 4.0

    engine = Engine(step)
    ProgressLog("scoring images").attach(engine)

    @engine.on(Events.STARTED)
    def prepare():
        clock.now += 100.0

    for _ in range(2):  # and each run has its own clock
        caplog.clear()
        engine.run([None] * 5, max_epochs=1)
        assert caplog.messages == ["scoring images: 3 of 5, about 8.0 s left", "scoring images: 5 in 20 s"]


def test_the_interval_can_be_chosen(clock, caplog):
    run(clock, steps=3, seconds=50.0, interval=60)
    assert caplog.messages == ["scoring images: 2 of 3, about 50 s left", "scoring images: 3 in 2 min 30 s"]


def test_steps_of_a_run_before_do_not_shorten_the_time_left(clock, caplog):
    run(clock, steps=100, seconds=6.0, first=90)
    assert caplog.messages[0] == "scoring images: 92 of 100, about 48 s left"
    assert caplog.messages[-1] == "scoring images: 10 in 60 s"


def test_hours_are_told_in_hours(clock, caplog):
    run(clock, steps=3, seconds=3700.0)
    assert caplog.messages[0] == "scoring images: 1 of 3, about 2 h 3 min left"


def test_a_terminal_shows_a_bar_and_no_lines_but_the_last(clock, caplog, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(clock, steps=4, seconds=30.0)
    assert caplog.messages == ["scoring images: 4 in 2 min 0 s"]
    assert "scoring images:   0%" in terminal.getvalue()
    assert "\n" not in terminal.getvalue().rstrip("\n"), "the bar stays on its line"


def test_a_bar_goes_on_where_the_run_before_stopped(clock, caplog, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(clock, steps=4, seconds=30.0, first=3)
    assert "75%" in terminal.getvalue()
    assert "  0%" not in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_an_error_passes_through_and_closes_the_bar(clock, caplog, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())

    def step(engine, _):
        raise KWTLError("the disk is full.")

    engine = Engine(step)
    engine.logger.disabled = True
    progress = ProgressLog("scoring images")
    progress.attach(engine)
    with pytest.raises(KWTLError, match="the disk is full"):
        engine.run([None] * 3, max_epochs=1)
    assert progress._bar is None
    assert caplog.messages == []

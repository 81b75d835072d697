"""The options of a benchmark: read from a flat JSON file, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_kwtl.benchmark.plan.methods import METHODS, VARIANTS
from monai_kwtl.benchmark.plan.schedules import OVERRIDES, Schedule, schedule_named
from monai_kwtl.benchmark.plan.targets import PROTOCOLS, Target, target_named
from monai_kwtl.errors import KWTLError, check_number, check_whole_number
from monai_kwtl.utils.json_documents import parse_json

__all__ = ["Config", "SIMULATED", "make_config", "read_config"]

SIMULATED = "simulated"


def _option(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Config:
    """Options of a benchmark; the help of ``scripts/benchmark.py protocol`` lists them with what each means."""

    targets: tuple[str, ...] = _option((), "names of the data sets to segment, folders of data_dir")
    sources: tuple[str, ...] | None = _option(
        None, "data sets to meta-train on, of which a target is always left out; none: all labelled ones of data_dir"
    )
    data_dir: str | None = _option(
        None, "folder of the data sets; none: that of KWTL_DATA; simulated: small made-up ones, for trying"
    )
    most_images: int | None = _option(None, "at most so many images of a target, evenly spread over it; none: all")
    protocols: tuple[str, ...] = _option(
        ("random",), "random splits into pool and test, or blocked: whole patients, wells or runs of slices"
    )
    test_fraction: float = _option(0.2, "fraction of the test images")
    splits: int = _option(10, "distinct splits of each protocol")
    seeds: tuple[int, ...] = _option((0,), "seeds of training and random methods; each is a repeat of the whole grid")
    methods: tuple[str, ...] = _option(tuple(METHODS), f"of {', '.join(METHODS)}")
    shots: tuple[float, ...] = _option((1, 3, 5, 7, 10), "budgets in windows: shots times windows_per_shot")
    pixels: tuple[float, ...] = _option((), "budgets in distinct pixels: so many mean images' worth, the same for all")
    variants: tuple[str, ...] = _option(("base",), f"base, and ablations: {', '.join(list(VARIANTS)[1:])}")
    schedule: str = _option("cpu", "how long to train: paper, cpu, bundle or tiny")
    meta_epochs: int | None = _option(None, "another number of rounds of meta-training than the schedule's")
    pretext_steps: int | None = _option(None, "other steps of the pretext tuning than the schedule's")
    pretext_epochs: int | None = _option(None, "other epochs of the pretext tuning, where the schedule counts epochs")
    support_steps: int | None = _option(None, "other steps of the tuning on labelled windows than the schedule's")
    support_epochs: int | None = _option(None, "other epochs of that tuning, where the schedule counts epochs")
    ckpt: str | None = _option(
        None, "weights that meta-training begins with, made without the targets; none: random ones"
    )
    window: int = _option(256, "side of a window, in pixels")
    step: int | None = _option(None, "pixels between windows; none: the paper's for the target")
    windows_per_shot: int | None = _option(None, "windows of one shot; none: the paper's for the target")
    output_dir: str = _option("output/benchmark", "where the results go, and the store that all benchmarks there share")
    device: str = _option("auto", "auto, cpu, cuda or cuda:0 ...")
    amp: str | bool = _option("auto", "auto, true or false: bfloat16 arithmetic, auto where the processor has it")
    runner: str = _option(
        "auto", "loop: one experiment after the other; ray: Ray tasks; auto: ray where it is installed"
    )
    cores: int = _option(2, "processor cores of an experiment; rounding, and so the last digits, depend on it")
    gpus: float = _option(
        1, "of a GPU that an experiment takes, where there is one: 0.25 runs four experiments on each"
    )
    workers: int | None = _option(
        None, "experiments that Ray runs at once on this machine; none: as many as its cores allow"
    )
    ray_address: str | None = _option(
        None, "of a running Ray cluster that shares output_dir and data_dir; none: begin one"
    )
    num_workers: int = _option(0, "processes that cut the crops of a training ahead")

    @property
    def plan(self) -> Schedule:
        """The schedule with what was given instead of its own budgets."""
        return schedule_named(self.schedule, **{name: getattr(self, name) for name in OVERRIDES})

    def target(self, name: str) -> Target:
        """Return the settings of a target with what was given instead of its own."""
        given = {name: getattr(self, name) for name in ("step", "windows_per_shot") if getattr(self, name) is not None}
        return dataclasses.replace(target_named(name), **given)

    @property
    def data(self) -> Path:
        """Folder of the data sets."""
        if self.data_dir == SIMULATED:
            return Path(self.output_dir) / SIMULATED
        return Path(self.data_dir or os.environ.get("KWTL_DATA") or "../shared/data")


def _names(known: Mapping[str, Any] | tuple[str, ...]) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value not in known:
            near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}."
            raise KWTLError(f"{name}: there is no {value!r}; {hint}")

    return check


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise KWTLError(f"{name} must be a text, got {value!r}.")


def _data_set(name: str, value: Any) -> None:
    _text(name, value)
    if Path(value).name != value:
        raise KWTLError(f"{name} are names of folders in data_dir, without a path; got {value!r}.")


def _amp(name: str, value: Any) -> None:
    if value not in ("auto", True, False):
        raise KWTLError(f"{name} must be auto, true or false, got {value!r}.")


def _between(name: str, value: Any) -> None:
    if not 0 < check_number(name, value, 0, 1) < 1:
        raise KWTLError(f"{name} must be between 0 and 1, got {value!r}.")


def _from(low: int) -> Callable[[str, Any], None]:
    return lambda name, value: check_whole_number(name, value, low)


def _above_0(name: str, value: Any) -> None:
    check_number(name, value, 0, above=True)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(("targets", "sources"), _data_set),
    "protocols": _names(PROTOCOLS),
    "methods": _names(METHODS),
    "variants": _names(VARIANTS),
    "seeds": _from(0),
    "num_workers": _from(0),
    **dict.fromkeys(("splits", "most_images", "window", "step", "windows_per_shot", "cores", "workers"), _from(1)),
    **dict.fromkeys(("shots", "pixels", "gpus"), _above_0),
    "test_fraction": _between,
    **dict.fromkeys(("schedule", "data_dir", "ckpt", "output_dir", "device", "ray_address"), _text),
    "amp": _amp,
    "runner": _names(("auto", "loop", "ray")),
}

_LISTS = ("targets", "sources", "protocols", "seeds", "methods", "shots", "pixels", "variants")


def make_config(options: Mapping[str, Any]) -> Config:
    """Check options and make a configuration of them.

    Args:
        options: by name; keys that begin with ``_`` are remarks. A list of one may be given as its element.

    Raises:
        KWTLError: for the first option that does not exist, naming the nearest one, or whose value makes no sense.
    """
    known = {option.name: option for option in dataclasses.fields(Config)}
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name.startswith("_"):
            continue
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(known)}."
            raise KWTLError(f"unknown option {name!r}; {hint}")
        if name in _LISTS and value is not None:
            value = tuple(dict.fromkeys(value)) if isinstance(value, (list, tuple)) else (value,)
        given[name] = value
        optional = known[name].default is None
        for part in value if isinstance(value, tuple) else [value]:
            if name in _CHECKS and not (part is None and optional):
                _CHECKS[name](name, part)
    config = Config(**given)
    if not config.targets:
        raise KWTLError("targets is empty: name the data sets to segment.")
    for name in ("protocols", "seeds", "methods", "variants"):
        if not getattr(config, name):
            raise KWTLError(f"{name} is empty: name at least one.")
    needs_budget = any(METHODS[name].strategy for name in config.methods)
    if needs_budget and not config.shots + config.pixels:
        raise KWTLError("shots and pixels are both empty: give a budget for the methods that select.")
    if config.plan.support_steps is None:  # also refuses unknown schedules
        matched = [name for name in config.variants if VARIANTS[name].tuning.matched]
        if matched:
            raise KWTLError(
                f"variants: {matched[0]} draws crops anew in each step, and the schedule {config.schedule} has a grid "
                "of them; leave it out, or choose the schedule cpu."
            )
    return config


def read_config(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration from a JSON file.

    Args:
        path: of the file, a flat object.
        overrides: options that count instead of the file's.

    Raises:
        KWTLError: when the file cannot be read or is no object, else as :func:`make_config`.
    """
    if not Path(path).is_file():
        raise KWTLError(f"there is no configuration at {path}; choose one of configs/benchmark, or write one.")
    document = parse_json(path, "benchmark configuration")
    if not isinstance(document, dict):
        raise KWTLError(f"{path}: must hold an object of options.")
    try:
        return make_config({**document, **(overrides or {})})
    except KWTLError as error:
        raise KWTLError(f"{path}: {error}") from error

"""Schedules of training: the paper's, one for two cores, that of the bundle, and one for tests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from monai_kwtl.errors import KWTLError, check_whole_number

__all__ = ["OVERRIDES", "SCHEDULES", "Schedule", "schedule_named"]


@dataclass(frozen=True)
class Schedule:
    """Budgets of the three trainings, and how the pool is scored.

    Args:
        name: as the results say it.
        meta_epochs: rounds of Reptile over all sources.
        inner_steps: steps on each source in a round.
        meta_crops: crops of a source in a round.
        meta_images: at most so many images of a source, evenly spread over it.
        pretext_steps: steps of the pretext tuning; None: epochs over the grid of crops instead.
        pretext_epochs: those epochs.
        support_steps: steps of the tuning on labelled windows, the same for every method; None: epochs over the
            selected windows instead.
        support_epochs: those epochs.
        crop: side of a training crop, in pixels, in all three.
        batch_size: crops of a step of the pretext and support tuning.
        norm_images: images of the pool that batch-norm statistics are re-estimated on, evenly spread over it.
        exact: whether windows are scored one by one, each auto-contrasted by itself, instead of densely.
        learning_rate: of Adam in the pretext and support tuning.
        decay: whether it falls in a straight line to 0 in the support tuning, so that the last step does not decide.
    """

    name: str
    meta_epochs: int
    inner_steps: int
    meta_crops: int
    meta_images: int
    pretext_steps: int | None
    pretext_epochs: int
    support_steps: int | None
    support_epochs: int
    crop: int
    batch_size: int
    norm_images: int
    exact: bool
    learning_rate: float = 1e-4
    decay: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        return dataclasses.asdict(self)


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        Schedule("paper", 300, 30, 5, 100, None, 100, None, 20, 256, 64, 32, exact=True),
        Schedule("cpu", 40, 30, 5, 40, 200, 0, 200, 0, 128, 4, 8, exact=False, learning_rate=1e-3, decay=True),
        # the cpu schedule's source network, and then as long as pretext.json and train.json take by themselves
        Schedule("bundle", 40, 30, 5, 40, 400, 0, 500, 0, 128, 8, 8, exact=False),
        Schedule("tiny", 1, 2, 2, 4, 3, 0, 3, 0, 32, 2, 2, exact=False),
    )
}

OVERRIDES = ("meta_epochs", "pretext_steps", "pretext_epochs", "support_steps", "support_epochs")


def schedule_named(name: str, **overrides: int | None) -> Schedule:
    """Return a schedule, in part with other budgets, which its name then says: ``cpu+support_steps=200``.

    Args:
        name: in :data:`SCHEDULES`.
        overrides: other values of fields in :data:`OVERRIDES`; None leaves one as it is.

    Raises:
        KWTLError: for an unknown schedule, a budget that is no whole number from 1, or epochs of a stage that this
            schedule gives steps.
    """
    if name not in SCHEDULES:
        raise KWTLError(f"unknown schedule {name!r}; use one of {', '.join(SCHEDULES)}.")
    schedule = SCHEDULES[name]
    for field, value in overrides.items():
        if value is None:
            continue
        check_whole_number(field, value, 1)
        stage = field.removesuffix("_epochs")
        if field != "meta_epochs" and stage != field and getattr(schedule, f"{stage}_steps") is not None:
            raise KWTLError(f"the schedule {name} counts steps: give {stage}_steps instead of {field}.")
        if value != getattr(schedule, field):
            schedule = dataclasses.replace(schedule, **{field: value}, name=f"{schedule.name}+{field}={value}")
    return schedule

"""Run a stage of the bundle from Python, for what is more than one stage."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from monai_kwtl.foreign import harmless_knob

__all__ = ["stage_workflow"]


def stage_workflow(root: str | os.PathLike, stage: str, set_logging: bool = True, **knobs: Any) -> ConfigWorkflow:
    """Make a stage ready to run.

    Args:
        root: folder of the bundle, which has ``configs/<stage>.json``.
        stage: name of the stage.
        set_logging: whether logging is set up as the bundle's ``logging.conf`` says, where it is not yet.
        knobs: of the stage; data, of which nothing is evaluated: paths as :class:`pathlib.Path`.

    Returns:
        The initialised workflow: ``run()`` runs it.

    Raises:
        KWTLError: for an unknown knob, and a text that a config would evaluate.
    """
    config_file = str(Path(root) / "configs" / f"{stage}.json")  # the check of unknown options looks for this name
    workflow = ConfigWorkflow(
        config_file=config_file,
        logging_file=None if set_logging and not logging.getLogger("monai_kwtl").handlers else False,
        workflow_type=None,
        **{name: harmless_knob(name, value) for name, value in knobs.items()},
    )
    workflow.initialize()
    return workflow

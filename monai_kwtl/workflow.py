"""A stage of the bundle as a MONAI workflow whose options are typed and checked once."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from monai_kwtl.failures import one_line_errors
from monai_kwtl.knobs import RUN_ARGUMENTS, checked_options, command_line

__all__ = ["StageWorkflow"]


class StageWorkflow(ConfigWorkflow):
    """A ``ConfigWorkflow`` that checks its options before it builds anything.

    On a command line::

        python -m monai.bundle run_workflow --workflow_name monai_kwtl.StageWorkflow --config_file configs/select.json

    In Python::

        workflow = StageWorkflow("bundles/kwtl/configs/select.json", dataset_dir="my_images", budget=3)
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    Args:
        config_file: of the stage, or several that are merged.
        args_file: an overlay with options for all stages; those given directly count instead.
        logging_file: as of ``ConfigWorkflow``; None: the bundle's, unless logging is set up already.
        workflow_type: as of ``ConfigWorkflow``.
        options: of the stage, and the other arguments of ``ConfigWorkflow``. Text such as ``"true"`` is taken for what
            it means where the option is a truth value; ``bundle_root`` is the folder above that of the config.

    Raises:
        KWTLError: for an option that the stage does not have, naming the nearest, and for one out of its range.
    """

    def __init__(
        self,
        config_file: str | os.PathLike | Sequence[str],
        args_file: str | None = None,
        logging_file: str | bool | None = None,
        workflow_type: str | None = None,
        **options: Any,
    ) -> None:
        command = command_line()
        if command is not None:
            one_line_errors()
        files = [str(config_file)] if isinstance(config_file, (str, os.PathLike)) else [str(f) for f in config_file]
        own = {name: options.pop(name) for name in RUN_ARGUMENTS if name in options}
        if args_file is None:  # monai.bundle has merged the overlay already
            args_file = (command or {}).get("args_file")
        else:
            options = {**ConfigParser.load_config_file(str(args_file)), **options}
        options.pop("_desc_", None)
        if logging_file is None and logging.getLogger("monai_kwtl").handlers:
            logging_file = False
        root = str(Path(files[0]).parent.parent)
        if root.startswith(("$", "@", "%")):  # MONAI would evaluate it
            root = os.path.join(".", root)
        super().__init__(
            config_file=files,
            logging_file=logging_file,
            workflow_type=workflow_type,
            **own,
            **{"bundle_root": root, **checked_options(options, files, args_file)},
        )

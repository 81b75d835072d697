"""A stage ready to run, and what begins it: one-line errors, checked options, processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from monai_kwtl.bundle.failures import install_error_hook
from monai_kwtl.bundle.options import RUN_ARGUMENTS, check_command_line, checked_options, command_line
from monai_kwtl.bundle.paths import StagePaths
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.inferers.memory import keep_freed_memory
from monai_kwtl.networks.weights import existing_checkpoint
from monai_kwtl.utils.distributed import connect, joined, started_together
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["StageWorkflow", "project_folder", "scoring_settings", "start"]


def start(several: bool = False) -> None:
    """Begin a stage.

    In a process of ``python -m monai.bundle`` errors become one line, options that are unknown or make no sense are
    refused, and freed memory is kept; in Python :class:`monai_kwtl.bundle.StageWorkflow` looks at the options, and the
    process stays as it is.

    Args:
        several: whether the configuration is one for several processes.

    Raises:
        KWTLError: for such an option, or where ``torchrun`` has started several processes of a stage for one: each
            would do all the work, and all would write the same files.
    """
    if command_line() is not None:
        install_error_hook()
        keep_freed_memory()
    if several or started_together() > 1:
        connect()
    if started_together() > 1 and not (several or joined()):
        raise KWTLError(
            f"this was started as {started_together()} processes, but the configuration is for one: add the stage's "
            "multi_gpu file, where it has one, to --config_file (\"['a.json', 'multi_gpu_a.json']\"), or start it "
            "without torchrun."
        )
    check_command_line()


def project_folder(paths: StagePaths, project: bool | str = True) -> Path | None:
    """Return the folder whose ``project.json`` a stage reads and writes; None where ``project`` is false."""
    return paths.dataset if as_bool(project, "project") else None


def scoring_settings(inferer: Any, adapter: Any, weights: str | os.PathLike) -> dict[str, Any]:
    """Return how windows are scored, as ``selection.json`` says it.

    Args:
        inferer: the :class:`~monai_kwtl.scoring.window_scores.WindowScoreInferer`.
        adapter: the :class:`~monai_kwtl.handlers.batch_norm.BatchNormAdapter` that has the network.
        weights: path of its weights.
    """
    scorer = inferer.scorer
    return {
        "network": type(adapter.network).__name__,
        "model_sha256": file_sha256(existing_checkpoint(weights)),
        "adapt_norm": adapter.adapt,
        "rescale": adapter.rescale,
        "measure": scorer.measure,
        "views": scorer.kind_of_views,
        "psi": scorer.psi,
        "weighted": scorer.weighted,
        "window": inferer.window,
        "step": inferer.step,
        "contrast": inferer.contrast,
        "exact": inferer.exact,
        "computed_by": scorer.inferer.arithmetic(adapter.device),
    }


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
            install_error_hook()
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

"""Knowing what to label: which regions of unlabelled microscopy images an expert should outline first."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "bundle",
        "cli",
        "data",
        "engines",
        "errors",
        "exchange",
        "handlers",
        "inferers",
        "label",
        "losses",
        "metrics",
        "networks",
        "pipeline",
        "project",
        "readers",
        "report",
        "scoring",
        "selection",
        "synthetic",
        "transforms",
        "utils",
        "windows",
    ],
    submod_attrs={
        "selection.budget": ["Budget"],
        "networks.fcrn": ["FCRN"],
        "errors": ["KWTLError"],
        "selection.regions": ["Region"],
        "engines.reptile": ["ReptileTrainer"],
        "bundle.workflow": ["StageWorkflow"],
        "networks.choice": ["load_network"],
        "data.pool": ["load_pool"],
        "project.selection_file": ["read_selection"],
        "project.support_set": ["read_support"],
        "pipeline.scoring": ["score", "segment"],
        "selection.select": ["select_regions"],
        "pipeline.tuning": ["tune"],
        "project.selection_folder": ["write_selection"],
    },
)

"""The commands of `kwtl`: each module has `add_arguments(parser)` and `run(options)`, but for the stages."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "data",
        "doctor",
        "export",
        "export_model",
        "import_masks",
        "label",
        "main",
        "stages",
        "status",
        "threads",
    ],
    submod_attrs={"stages": ["run_stage"], "threads": ["wait_asleep"]},
)

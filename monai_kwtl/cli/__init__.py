"""The commands of `kwtl`: each module has `add_arguments(parser)` and `run(options)`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["data", "doctor", "export", "export_model", "import_masks", "label", "main", "status", "threads"],
    submod_attrs={"threads": ["wait_asleep"]},
)

"""Many experiments, one after the other or side by side."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["jobs", "results", "run"],
    submod_attrs={
        "jobs": ["Job", "experiments_of", "jobs_of"],
        "results": ["write_results"],
        "run": ["Progress", "choose_runner", "ray_installed", "run_in_loop", "run_protocol", "run_with_ray"],
    },
)

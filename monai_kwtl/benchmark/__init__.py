"""The paper's protocol; imported by nothing, not in the wheel."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["analysis", "experiments", "plan", "prepare", "runs"]
)

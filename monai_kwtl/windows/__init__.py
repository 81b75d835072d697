"""The window grid of an image, exact sums over it, and the scores of each window."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["blocks", "box", "grid", "scores"],
    submod_attrs={
        "blocks": ["BlockReduction", "blocks_of", "window_extremes"],
        "box": ["Box", "pixels_inside"],
        "grid": ["WindowGrid", "rectangle_sums", "window_starts"],
        "scores": ["ImageScores", "flat_windows", "free_windows"],
    },
)

"""Score, select, tune, segment and evaluate: each once, in Python, on plain objects."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["scoring", "tuning"],
    submod_attrs={
        "scoring": [
            "adapt",
            "evaluate",
            "foreground",
            "logits_of",
            "score",
            "score_item",
            "segment",
            "select_regions",
            "strategy_of",
            "tiles",
            "window_scorer",
            "write_selection",
        ],
        "tuning": ["fit", "pretext", "tune"],
    },
)

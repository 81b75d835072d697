"""One experiment of the benchmark: selecting, annotating, tuning and measuring."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["annotator", "bench", "experiment", "importance", "threshold"],
    submod_attrs={
        "annotator": ["reveal_masks", "write_region_masks"],
        "bench": ["Bench"],
        "experiment": ["labelling_cost", "part_of", "quality", "run_experiment", "select"],
        "importance": ["importance_weights"],
        "threshold": ["THRESHOLDS", "decision_threshold"],
    },
)

"""Meta-training, tuning and mean-teacher training as Ignite engines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["evaluators", "foreground", "mean_teacher", "reptile", "tuning", "tuning_trainer"],
    submod_attrs={
        "evaluators": ["PoolEvaluator"],
        "foreground": ["foreground_fraction", "fraction_for"],
        "mean_teacher": ["MeanTeacherTrainer", "OwnStatistics", "consistency_weight", "make_teacher"],
        "reptile": [
            "BUFFERS",
            "CropSource",
            "ReptileTrainer",
            "flatten_counters",
            "flatten_floats",
            "move_towards",
            "network_state",
            "restore",
        ],
        "tuning_trainer": ["TuningTrainer"],
    },
)

"""Handlers of engines: they save, log, validate, resume and fit batch norm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "batch_norm",
        "checkpoint",
        "evaluation_saver",
        "mask_saver",
        "progress",
        "selection_saver",
        "training_log",
        "validation",
        "weights_saver",
    ],
    submod_attrs={
        "batch_norm": ["BatchNormAdapter"],
        "checkpoint": ["StageCheckpoint", "fingerprint"],
        "evaluation_saver": ["EvaluationSaver", "error_overlay"],
        "mask_saver": ["MaskSaver"],
        "progress": ["ProgressLog"],
        "selection_saver": ["SelectionSaver", "check_request"],
        "training_log": ["TrainingSummary", "TuningLog", "linear_decay", "results_of"],
        "validation": ["BestWeights", "HeldOutValidation", "KnownOverlap", "prepare_validation", "validation_items"],
        "weights_saver": ["WeightsSaver"],
    },
)

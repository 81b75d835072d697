"""Tasks of the MONAI Label server: segment, train, score, and choose what is labelled next."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["infer", "scoring", "strategy", "train"],
    submod_attrs={
        "infer": ["KWTLInfer", "epistemic_infer"],
        "scoring": ["KWTLScoring", "METHODS", "unlabelled"],
        "strategy": ["KWTLStrategy"],
        "train": ["KWTLTrain", "labelled_regions"],
    },
)

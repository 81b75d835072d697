"""Pseudo-labels, views and augmentations as MONAI transforms."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["affine", "array", "dictionary", "functional", "photometric", "strong"],
    submod_attrs={
        "affine": ["AffineView", "affine_views"],
        "array": ["AutoContrast", "Brightness", "EqualizeHistogram", "PseudoLabel", "Sharpness", "intensity_views"],
        "dictionary": [
            "AutoContrastD",
            "AutoContrastDict",
            "AutoContrastd",
            "BrightnessD",
            "BrightnessDict",
            "Brightnessd",
            "EqualizeHistogramD",
            "EqualizeHistogramDict",
            "EqualizeHistogramd",
            "PseudoLabelD",
            "PseudoLabelDict",
            "PseudoLabeld",
            "SharpnessD",
            "SharpnessDict",
            "Sharpnessd",
        ],
        "functional": ["normalize"],
        "photometric": ["BLUR", "BRIGHTNESS", "CONTRAST", "GAMMA", "NOISE"],
        "strong": ["BOX", "PSI", "cut_mix", "pseudo_target", "strong_view"],
    },
)

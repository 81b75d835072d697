"""Pseudo-labels and intensity views as MONAI transforms."""

from __future__ import annotations

from monai_kwtl.transforms.affine import AffineView, affine_views
from monai_kwtl.transforms.array import (
    AutoContrast,
    Brightness,
    EqualizeHistogram,
    PseudoLabel,
    Sharpness,
    intensity_views,
)
from monai_kwtl.transforms.dictionary import (
    AutoContrastD,
    AutoContrastd,
    AutoContrastDict,
    BrightnessD,
    Brightnessd,
    BrightnessDict,
    EqualizeHistogramD,
    EqualizeHistogramd,
    EqualizeHistogramDict,
    PseudoLabelD,
    PseudoLabeld,
    PseudoLabelDict,
    SharpnessD,
    Sharpnessd,
    SharpnessDict,
)

__all__ = [
    "AffineView",
    "AutoContrast",
    "AutoContrastD",
    "AutoContrastDict",
    "AutoContrastd",
    "Brightness",
    "BrightnessD",
    "BrightnessDict",
    "Brightnessd",
    "EqualizeHistogram",
    "EqualizeHistogramD",
    "EqualizeHistogramDict",
    "EqualizeHistogramd",
    "PseudoLabel",
    "PseudoLabelD",
    "PseudoLabelDict",
    "PseudoLabeld",
    "Sharpness",
    "SharpnessD",
    "SharpnessDict",
    "Sharpnessd",
    "affine_views",
    "intensity_views",
]

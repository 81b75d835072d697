"""The dictionary twins of the transforms, for use in MONAI pipelines."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform

from monai_kwtl.transforms.array import AutoContrast, Brightness, EqualizeHistogram, PseudoLabel, Sharpness

__all__ = [
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
]


class _Each(MapTransform):
    """Apply an array transform to each key."""

    def __init__(self, keys: KeysCollection, transform: Transform, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result


class EqualizeHistogramd(_Each):
    """Dictionary twin of :class:`~monai_kwtl.transforms.array.EqualizeHistogram`.

    Args:
        keys: of the images.
        allow_missing_keys: skip keys that are not there.
    """

    backend = EqualizeHistogram.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, EqualizeHistogram(), allow_missing_keys)


class AutoContrastd(_Each):
    """Dictionary twin of :class:`~monai_kwtl.transforms.array.AutoContrast`.

    Args:
        keys: of the images.
        allow_missing_keys: skip keys that are not there.
    """

    backend = AutoContrast.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, AutoContrast(), allow_missing_keys)


class Brightnessd(_Each):
    """Dictionary twin of :class:`~monai_kwtl.transforms.array.Brightness`.

    Args:
        keys: of the images.
        factor: psi of the paper.
        allow_missing_keys: skip keys that are not there.
    """

    backend = Brightness.backend

    def __init__(self, keys: KeysCollection, factor: float = 1.3, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, Brightness(factor), allow_missing_keys)


class Sharpnessd(_Each):
    """Dictionary twin of :class:`~monai_kwtl.transforms.array.Sharpness`.

    Args:
        keys: of the images.
        factor: psi of the paper.
        allow_missing_keys: skip keys that are not there.
    """

    backend = Sharpness.backend

    def __init__(self, keys: KeysCollection, factor: float = 1.3, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, Sharpness(factor), allow_missing_keys)


class PseudoLabeld(MapTransform):
    """Dictionary twin of :class:`~monai_kwtl.transforms.array.PseudoLabel`; the image stays, the mask is added.

    Args:
        keys: of the image.
        label_key: where the pseudo-label goes; with several keys, ``<key>_<label_key>``.
        threshold: as in the array transform.
        fraction: as in the array transform.
        polarity: as in the array transform.
        method: as in the array transform.
        iterations: as in the array transform.
        allow_missing_keys: skip keys that are not there.
    """

    backend = PseudoLabel.backend

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        threshold: float | None = None,
        fraction: float | None = None,
        polarity: str = "dark",
        method: str = "equalize",
        iterations: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.transform = PseudoLabel(threshold, fraction, polarity, method, iterations)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Return a copy of ``data`` with the pseudo-label of each key added."""
        result = dict(data)
        for key in self.key_iterator(result):
            name = self.label_key if len(self.keys) == 1 else f"{key}_{self.label_key}"
            result[name] = self.transform(result[key])
        return result


AutoContrastD = AutoContrastDict = AutoContrastd
BrightnessD = BrightnessDict = Brightnessd
EqualizeHistogramD = EqualizeHistogramDict = EqualizeHistogramd
PseudoLabelD = PseudoLabelDict = PseudoLabeld
SharpnessD = SharpnessDict = Sharpnessd

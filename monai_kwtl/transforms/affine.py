"""Affine views of images, for the paper's ablation: rotation and translation that can be undone on a prediction."""

from __future__ import annotations

import math

import torch
from monai.config import NdarrayOrTensor
from monai.transforms import Affine, Transform
from monai.utils import TransformBackends, convert_data_type, convert_to_dst_type

from monai_kwtl.errors import KWTLError

__all__ = ["AffineView", "affine_views"]


class AffineView(Transform):
    """Rotate about the centre, then translate; what leaves the frame is lost, what comes in is the mirrored image.

    A score compares f(x) with the view's prediction mapped back (:meth:`invert`), on the pixels that the view shows
    (:meth:`valid_mask`). MONAI's ``Affine`` does the resampling, bilinear.

    Args:
        rotate_degrees: counter-clockwise as the array is displayed, row 0 on top.
        translate_fraction: how far the content moves down and right, as a fraction of height and width, in (-1, 1).

    Raises:
        KWTLError: when nothing of the image would be left.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, rotate_degrees: float = 0.0, translate_fraction: float = 0.0) -> None:
        if not -1 < translate_fraction < 1:
            raise KWTLError(f"translate_fraction must be between -1 and 1, got {translate_fraction!r}.")
        self.rotate_degrees, self.translate_fraction = float(rotate_degrees), float(translate_fraction)

    @property
    def name(self) -> str:
        """Description of the view for readers."""
        turn = [f"rotation {self.rotate_degrees:g} degrees"] if self.rotate_degrees else []
        move = [f"translation {100 * self.translate_fraction:g} %"] if self.translate_fraction else []
        return " and ".join(turn + move) or "identity"

    def _apply(self, img: NdarrayOrTensor, back: bool, padding: str) -> torch.Tensor:
        tensor, *_ = convert_data_type(img, torch.Tensor)
        x = tensor.to(torch.float32)
        sign = -1.0 if back else 1.0
        # MONAI's parameters say where a pixel of the result comes from, hence the signs
        shift = tuple(-sign * self.translate_fraction * size for size in x.shape[1:])
        turn = -sign * math.radians(self.rotate_degrees)
        rotate = Affine(rotate_params=turn, padding_mode=padding, image_only=True) if turn else None
        move = Affine(translate_params=shift, padding_mode=padding, image_only=True) if any(shift) else None
        for step in (move, rotate) if back else (rotate, move):
            if step is not None:
                x = torch.as_tensor(step(x)).as_subclass(torch.Tensor)
        return x

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the view of an image, float32, same shape and kind of array as ``img`` (C, H, W)."""
        out, *_ = convert_to_dst_type(self._apply(img, back=False, padding="reflection"), dst=img, dtype=torch.float32)
        return out

    def invert(self, prediction: NdarrayOrTensor) -> NdarrayOrTensor:
        """Map a prediction for the view back onto the image; 0 where :meth:`valid_mask` is False.

        Args:
            prediction: shape (C, H, W).

        Returns:
            float32, same shape and kind of array.
        """
        out, *_ = convert_to_dst_type(
            self._apply(prediction, back=True, padding="zeros"), dst=prediction, dtype=torch.float32
        )
        return out

    def valid_mask(self, shape: tuple[int, int] | torch.Size) -> torch.Tensor:
        """Return which pixels of an image its view shows, bool (H, W)."""
        ones = torch.ones((1, *shape))
        shown = self._apply(self._apply(ones, back=False, padding="zeros"), back=True, padding="zeros")
        return shown[0] > 0.999


def affine_views(rotate_degrees: float = 30.0, translate_fraction: float = 0.3) -> list[AffineView]:
    """Return the views of the paper's ablation: rotation by 30 degrees, and translation by 30 % of the size."""
    return [AffineView(rotate_degrees=rotate_degrees), AffineView(translate_fraction=translate_fraction)]

"""Pseudo-labels and intensity views of single images, arrays of shape (C, H, W) with grey values in [0, 255]."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.transforms import ScaleIntensityRange, Transform
from monai.utils import TransformBackends, convert_data_type, convert_to_dst_type
from scipy import ndimage
from skimage.filters import threshold_otsu

from monai_kwtl.errors import KWTLError, check_number, check_whole_number

__all__ = ["AutoContrast", "Brightness", "EqualizeHistogram", "PseudoLabel", "Sharpness", "intensity_views"]


def _checked(img: NdarrayOrTensor, kind: type) -> NdarrayOrTensor:
    array, *_ = convert_data_type(img, kind)
    if array.ndim != 3:
        raise KWTLError(f"an image has the shape (C, H, W), got {tuple(array.shape)}.")
    return array


def _grey_levels(img: NdarrayOrTensor) -> np.ndarray:
    """Return a copy as uint8, values rounded and clipped to [0, 255]."""
    array = _checked(img, np.ndarray)
    if array.dtype == np.uint8:
        return array.copy()
    if np.isnan(array).any():
        raise KWTLError("an image holds NaN, which is no grey level: replace it before.")
    return np.rint(np.clip(array, 0, 255)).astype(np.uint8)


def _like(result: NdarrayOrTensor, img: NdarrayOrTensor, dtype: type | torch.dtype) -> NdarrayOrTensor:
    """Return the result as the input's kind of array, with the input's meta data, not that of MONAI's transforms."""
    plain = torch.as_tensor(result).as_subclass(torch.Tensor)
    return convert_to_dst_type(plain, dst=img, dtype=dtype)[0]


class EqualizeHistogram(Transform):
    """Spread grey levels so that their cumulative histogram becomes a straight line, each channel by itself.

    Equal to OpenCV's ``equalizeHist``, also in how it rounds (float32, half to even); a constant image stays as it is.
    MONAI's ``HistogramNormalize`` differs by one level where a product falls on a half, pools channels, and turns a
    constant image to 0.
    """

    backend = [TransformBackends.NUMPY]

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the equalised image.

        Args:
            img: shape (C, H, W), grey values in [0, 255]; floats are rounded first.

        Returns:
            uint8, same shape and kind of array.
        """
        levels = _grey_levels(img)
        for channel in levels:
            if channel.size and channel.min() != channel.max():
                counts = np.bincount(channel.ravel(), minlength=256)
                first = int(channel.min())
                above = np.cumsum(counts) - counts[first]
                scale = np.float32(255.0) / np.float32(channel.size - counts[first])
                table = np.rint(above.clip(0).astype(np.float32) * scale).astype(np.uint8)
                channel[...] = table[channel]
        return _like(levels, img, np.uint8)


class PseudoLabel(Transform):
    """Rough mask of an image made from its grey levels alone (section 3.1 of the paper), each channel by itself.

    ``equalize``: e = equalised image; foreground is ``e <= threshold`` for dark cells, ``e >= threshold`` for bright
    ones. After equalisation the grey levels are spread evenly, so ``threshold / 255`` is about the fraction of dark
    foreground; ``fraction`` asks for that fraction directly, for either polarity. ``otsu``: foreground is the darker or
    brighter side of Otsu's threshold. ``kmeans``: the darker or brighter of two clusters of grey values; in one
    dimension two clusters of least squared distance are those of Otsu's threshold, so it is computed as that. In the
    end the mask is dilated by a 2x2 footprint of ones, as OpenCV's ``dilate`` does.

    Args:
        threshold: gamma, grey level in [0, 255], for ``equalize``.
        fraction: expected fraction of foreground in (0, 1) instead of the threshold.
        polarity: ``"dark"`` or ``"bright"`` cells.
        method: ``"equalize"``, ``"kmeans"`` or ``"otsu"``.
        iterations: number of dilations, from 0 on.

    Raises:
        KWTLError: for values out of range, or not exactly one of threshold and fraction with ``equalize``.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        threshold: float | None = None,
        fraction: float | None = None,
        polarity: str = "dark",
        method: str = "equalize",
        iterations: int = 1,
    ) -> None:
        if polarity not in ("dark", "bright"):
            raise KWTLError(f"polarity must be dark or bright, got {polarity!r}.")
        if method not in ("equalize", "kmeans", "otsu"):
            raise KWTLError(f"method must be equalize, kmeans or otsu, got {method!r}.")
        check_whole_number("iterations", iterations, 0)
        given = (threshold is not None) + (fraction is not None)
        if method == "equalize" and given != 1:
            found = "both" if given else "neither"
            raise KWTLError(f"method equalize needs one of threshold (0 to 255) and fraction (0 to 1), got {found}.")
        if method != "equalize" and given:
            raise KWTLError(f"threshold and fraction are for method equalize, not for {method}.")
        if threshold is not None:
            check_number("threshold", threshold, 0, 255)
        if fraction is not None and not 0 < check_number("fraction", fraction, 0) < 1:
            raise KWTLError(f"fraction must be between 0 and 1, got {fraction!r}.")
        if fraction is not None:
            threshold = 255.0 * (fraction if polarity == "dark" else 1.0 - fraction)
        self.threshold, self.polarity, self.method, self.iterations = threshold, polarity, method, int(iterations)
        self._equalize = EqualizeHistogram()

    def _foreground(self, channel: np.ndarray) -> np.ndarray:
        """Threshold a channel (H, W), to bool; a constant channel has no foreground."""
        if not channel.size or channel.min() == channel.max():
            return np.zeros(channel.shape, dtype=bool)
        if self.method == "equalize":
            return channel <= self.threshold if self.polarity == "dark" else channel >= self.threshold
        dark = channel <= threshold_otsu(channel)
        return dark if self.polarity == "dark" else ~dark

    def stages(self, img: NdarrayOrTensor) -> dict[str, np.ndarray]:
        """Return every step, as the paper's figure 2 shows them.

        Args:
            img: shape (C, H, W), grey values in [0, 255]; floats are rounded first.

        Returns:
            ``equalized`` (only with that method), ``threshold`` and ``dilated``, each uint8 (C, H, W).
        """
        levels = _grey_levels(img)
        steps = {}
        if self.method == "equalize":
            steps["equalized"] = levels = np.asarray(self._equalize(levels))
        mask = np.array([self._foreground(channel) for channel in levels], dtype=np.uint8).reshape(levels.shape)
        steps["threshold"] = mask
        if self.iterations and mask.size:
            # an even footprint has no centre; this origin puts the extra pixel where OpenCV does: right and below
            footprint = np.ones((1, 2, 2), dtype=bool)
            mask = ndimage.binary_dilation(mask, footprint, iterations=self.iterations, origin=(0, -1, -1))
        steps["dilated"] = mask.astype(np.uint8)
        return steps

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the pseudo-label.

        Args:
            img: shape (C, H, W), grey values in [0, 255]; floats are rounded first.

        Returns:
            uint8, 0 background and 1 foreground, same shape and kind of array.
        """
        return _like(self.stages(img)["dilated"], img, np.uint8)


class AutoContrast(Transform):
    """Stretch each channel to the full range: ``255 (x - min) / (max - min)``, as Pillow's ``autocontrast`` does.

    A constant channel stays as it is; MONAI's ``ScaleIntensity(0, 255)``, otherwise the same, turns it to 0.
    """

    backend = [TransformBackends.TORCH]
    reach = 0  # pixels around one that decide what it becomes, once the limits are known
    _limits: tuple[float, float] | None = None

    def within(self, low: float, high: float) -> AutoContrast:
        """Return the view for parts of an image with grey values from ``low`` to ``high``, in place of their own."""
        view = AutoContrast()
        view._limits = (float(low), float(high))
        return view

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the view, float32 in [0, 255], same shape and kind of array as ``img`` (C, H, W)."""
        x = _checked(img, torch.Tensor).to(torch.float32)
        if not x.numel():
            return _like(x, img, torch.float32)
        if self._limits is None:
            low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        else:
            low, high = x.new_tensor(self._limits)
        # in this order, not times 255 / span, which rounds beyond 255
        return _like(torch.where(high > low, (x - low) / (high - low) * 255.0, x), img, torch.float32)


class Brightness(Transform):
    """Multiply grey values and clip: ``min(factor x, 255)``, as Pillow's ``ImageEnhance.Brightness`` does.

    Args:
        factor: psi of the paper; 1 is the image itself.

    Raises:
        KWTLError: for a negative or missing factor.
    """

    backend = [TransformBackends.TORCH]
    reach = 0  # pixels around one that decide what it becomes

    def __init__(self, factor: float = 1.3) -> None:
        self.factor = check_number("the factor of brightness", factor, 0)
        top = 255.0 / self.factor if self.factor else 1.0
        self._scale = ScaleIntensityRange(0.0, top, 0.0, 255.0 if self.factor else 0.0, clip=True)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the view, float32 in [0, 255], same shape and kind of array as ``img`` (C, H, W)."""
        return _like(self._scale(_checked(img, torch.Tensor).to(torch.float32)), img, torch.float32)


class Sharpness(Transform):
    """Move away from the smoothed image: ``clip(s + factor (x - s))``, as Pillow's ``ImageEnhance.Sharpness`` does.

    s is the image smoothed by the 3x3 kernel [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; its outermost pixels are those of
    the image, which therefore do not change.

    Args:
        factor: psi of the paper; 1 is the image itself, 0 the smoothed one.

    Raises:
        KWTLError: for a negative or missing factor.
    """

    backend = [TransformBackends.TORCH]
    reach = 1  # pixels around one that decide what it becomes

    def __init__(self, factor: float = 1.3) -> None:
        self.factor = check_number("the factor of sharpness", factor, 0)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the view, float32 in [0, 255], same shape and kind of array as ``img`` (C, H, W)."""
        x = _checked(img, torch.Tensor).to(torch.float32)
        if min(x.shape[1:]) < 3:
            return _like(x.clone(), img, torch.float32)
        # the kernel is a box of ones plus 4 at its centre; the box is separable, which is quicker than a convolution
        sharp = x.clone()
        inner = x[:, 1:-1, 1:-1]
        box = F.avg_pool2d(x[:, None], 3, stride=1, divisor_override=1)[:, 0]
        # Pillow rounds the smoothed image to whole grey levels
        smooth = torch.floor((box + 4.0 * inner) / 13.0 + 0.5)
        sharp[:, 1:-1, 1:-1] = smooth + self.factor * (inner - smooth)
        return _like(sharp.clamp_(0.0, 255.0), img, torch.float32)


def intensity_views(psi: float = 1.3) -> list[Transform]:
    """Return the paper's three views: auto-contrast, brightness and sharpness with factor ``psi``."""
    return [AutoContrast(), Brightness(psi), Sharpness(psi)]

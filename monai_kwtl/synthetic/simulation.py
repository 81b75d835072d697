"""Simulate one image and its mask: specimen, then camera."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.synthetic.fields import expose
from monai_kwtl.synthetic.looks import Look, check_domain, draw_look
from monai_kwtl.synthetic.specimens import culture, fluorescence, section
from monai_kwtl.synthetic.ultrastructure import electron_micrograph

__all__ = ["side", "simulate", "whole"]

_SIDE = (16, 4096)  # pixels


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number, or raise.

    Args:
        name: what to call it in the message.
        value: what the user gave.
        low: least value.
        high: largest value.

    Raises:
        KWTLError: it is no whole number, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise KWTLError(f"{name} {value!r} is out of range: give a whole number from {low} to {high}")
    return number


def side(name: str, value: Any) -> int:
    """Return the length of a side of an image in pixels, or raise ``KWTLError``."""
    return whole(name, value, *_SIDE)


def simulate(
    domain: str,
    height: int,
    width: int,
    rng: np.random.Generator,
    difficulty: float = 0.5,
    *,
    look: Look | None = None,
    clean: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate one microscopy image and its mask.

    The same state of the generator gives the same bytes on one machine. The mask holds what is in the specimen, before
    blur and noise: a pixel is foreground where its centre lies inside a cell.

    Args:
        domain: "fluorescence" (bright nuclei), "brightfield" (dark nuclei of a stained section, or cells in culture),
            "em" (mitochondria in nervous tissue) or "phase" (cells in phase contrast, of either polarity).
        height: rows, 16 to 4096.
        width: columns, 16 to 4096.
        rng: random generator; its state moves on.
        difficulty: 0 is easy, 1 is hard: less contrast, photons and focus; more clumps, debris and uneven light.
        look: specimen and microscope; drawn at random by default.
        clean: only the cells on even ground, without texture, clutter, blur, uneven light and noise, so that a
            threshold gives the mask. Cells lie where they would lie otherwise.

    Returns:
        Image, uint8, shape (height, width), and mask, uint8 0 or 255, of the same shape.

    Raises:
        KWTLError: unknown domain, a size or a difficulty out of range.
    """
    check_domain(domain)
    shape = (side("height", height), side("width", width))
    if not 0 <= difficulty <= 1:
        raise KWTLError(f"difficulty {difficulty} is out of range: give a number from 0 (easy) to 1 (hard)")
    look = draw_look(domain, rng) if look is None else look
    if clean:
        look = replace(look, texture=0.0, clutter=0.0)
    draw: Callable[..., tuple[np.ndarray, np.ndarray]]
    if domain == "fluorescence":
        draw, photons = fluorescence, (1500, 60)
    elif domain == "em":
        draw, photons = electron_micrograph, (1500, 120)
    else:  # a lamp gives more light than a stain
        draw = section if domain == "brightfield" and look.tissue else culture
        photons = (6000, 300)
    scene, mask = draw(shape, look, difficulty, rng)
    if clean:
        image = np.rint(255 * np.clip(scene, 0, 1)).astype(np.uint8)
    else:
        image = expose(scene, difficulty, rng, photons, additive=domain == "fluorescence")
    return image, mask.astype(np.uint8) * 255

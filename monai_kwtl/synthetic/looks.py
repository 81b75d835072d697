"""The imaging domains that can be simulated, and what the images of one simulated pool have in common."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

import numpy as np

from monai_kwtl.errors import KWTLError

__all__ = ["DOMAINS", "Look", "check_domain", "draw_look", "vary_look"]

DOMAINS = ("fluorescence", "brightfield", "em", "phase")


@dataclass(frozen=True)
class Look:
    """Specimen, stain and microscope of a pool: what does not depend on the difficulty of an image.

    Args:
        radius: typical cell radius in pixels (of a circle of the same area).
        spread: standard deviation of the logarithm of the radius.
        elongation: typical ratio of the long to the short axis, at least 1.
        wobble: relative size of the random harmonics that deform the ellipses.
        coverage: fraction of the field that cells cover, in [0, 0.9]; 0 is an empty field.
        clustering: fraction of the cells that are placed in touch with another one, in [0, 1].
        contrast: difference of cell and ground in units of full scale, in (0, 1].
        bright: cells are brighter than the ground (else darker); counts for cells in culture only, nuclei are bright in
            fluorescence and dark in sections, mitochondria dark.
        texture: strength of the texture inside the cells; 0 is none.
        clutter: amount and strength of everything that is not a cell (debris, fibres, ghosts, stroma, membranes, haze);
            0 is an even ground.
        tissue: a stained section (else cells in culture); brightfield only.

    Raises:
        KWTLError: a value out of range.
    """

    radius: float = 14.0
    spread: float = 0.2
    elongation: float = 1.35
    wobble: float = 0.08
    coverage: float = 0.15
    clustering: float = 0.35
    contrast: float = 0.5
    bright: bool = True
    texture: float = 1.0
    clutter: float = 1.0
    tissue: bool = False

    def __post_init__(self) -> None:
        limits = {
            "radius": (2, 200),
            "spread": (0, 1),
            "elongation": (1, 5),
            "wobble": (0, 0.5),
            "coverage": (0, 0.9),
            "clustering": (0, 1),
            "contrast": (0.01, 1),
            "texture": (0, 5),
            "clutter": (0, 5),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # true for NaN as well
                raise KWTLError(f"{name} {value} of the look is out of range: give a number from {low} to {high}")


def check_domain(domain: str) -> str:
    """Return the domain, or raise naming the nearest one.

    Raises:
        KWTLError: it is none of ``DOMAINS``.
    """
    if domain in DOMAINS:
        return domain
    near = difflib.get_close_matches(str(domain), DOMAINS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise KWTLError(f"unknown kind of image {domain!r}: {hint}choose one of {', '.join(DOMAINS)}")


def draw_look(domain: str, rng: np.random.Generator) -> Look:
    """Draw a specimen and a microscope: two draws look like two laboratories.

    Cells are bright in fluorescence, dark in brightfield and electron microscopy, either in phase contrast (positive
    or negative). Radii are log-uniform between 8 and 40 pixels (between 8 and 30 in culture and sections).

    Args:
        domain: one of ``DOMAINS``.
        rng: random generator.

    Raises:
        KWTLError: unknown domain.
    """
    check_domain(domain)

    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 4)

    largest = 40 if domain in ("fluorescence", "em") else 30
    radius = round(float(np.exp(rng.uniform(np.log(8), np.log(largest)))), 2)
    shared = {"radius": radius, "texture": between(0.5, 1.3), "clutter": between(0.5, 1.4)}
    if domain == "fluorescence":
        return Look(
            **shared,
            spread=between(0.12, 0.3),
            elongation=between(1.1, 1.7),
            wobble=between(0.03, 0.14),
            coverage=between(0.06, 0.3),
            clustering=between(0.1, 0.7),
            contrast=between(0.2, 0.75),
        )
    if domain == "em":
        return Look(
            **shared,
            spread=between(0.2, 0.35),
            elongation=between(1.3, 2.2),
            wobble=between(0.06, 0.14),
            coverage=between(0.04, 0.12),
            clustering=0.0,
            contrast=between(0.3, 0.45),
            bright=False,
        )
    culture = {
        "spread": between(0.12, 0.25),
        "elongation": between(1.1, 2.0),
        "wobble": between(0.06, 0.2),
        "coverage": between(0.08, 0.35),
        "clustering": between(0.2, 0.7),
        "contrast": between(0.12, 0.35),
    }
    if domain == "phase":
        return Look(**shared, **culture, bright=bool(rng.random() < 0.5))
    if rng.random() < 0.3:
        return Look(**shared, **culture, bright=False)
    return Look(
        **shared,
        spread=between(0.15, 0.3),
        elongation=between(1.15, 1.6),
        wobble=between(0.04, 0.1),
        coverage=between(0.08, 0.25),
        clustering=between(0.15, 0.5),
        contrast=between(0.3, 0.5),
        bright=False,
        tissue=True,
    )


def vary_look(look: Look, rng: np.random.Generator) -> Look:
    """Return the look of one image of a pool: another field of view, one in ten of them nearly empty.

    Args:
        look: look of the pool.
        rng: random generator.
    """
    factor = rng.uniform(0.02, 0.15) if rng.random() < 0.1 else np.exp(rng.normal(0, 0.35))
    return replace(
        look,
        radius=look.radius * float(np.exp(rng.normal(0, 0.05))),
        coverage=min(0.45, look.coverage * float(factor)),
        clustering=float(np.clip(look.clustering * rng.uniform(0.4, 1.6), 0, 0.9)),
        clutter=look.clutter * float(rng.uniform(0.3, 1.7)),
    )

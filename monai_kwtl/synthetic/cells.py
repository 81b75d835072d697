"""Places of cells, their shapes, and the pixels that belong to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.draw import polygon

from monai_kwtl.synthetic.looks import Look

__all__ = ["Cells", "Outlines", "paint", "scatter_cells"]

_ANGLES = np.linspace(0, 2 * np.pi, 96, endpoint=False)
_HARMONICS = np.arange(2, 7)
_OVERLAP = 0.86  # least distance of two centres, in units of the sum of the radii


@dataclass(frozen=True)
class Outlines:
    """Closed star-shaped curves.

    Args:
        y: rows of the centres, shape (n,).
        x: columns of the centres, shape (n,).
        turn: angle of the long axis, radians, shape (n,).
        radii: distance from the centre to the outline at 96 equal angles, shape (n, 96), pixels.
    """

    y: np.ndarray
    x: np.ndarray
    turn: np.ndarray
    radii: np.ndarray

    @staticmethod
    def deformed(
        y: np.ndarray,
        x: np.ndarray,
        radius: np.ndarray | float,
        look: Look,
        rng: np.random.Generator,
        turn: np.ndarray | None = None,
    ) -> Outlines:
        """Draw ellipses of given mean radius, deformed by harmonics of order 2 to 6 with random phases.

        r(t) = radius * ellipse(t) * exp(wobble * sum_k a_k cos(k t + p_k) / (k - 1)^1.4), a_k standard normal.

        Args:
            y: rows of the centres.
            x: columns of the centres.
            radius: radius of the circle of the ellipse's area, pixels.
            look: elongation and wobble.
            rng: random generator.
            turn: angle of the long axes; random by default.
        """
        n = len(y)
        radius = np.broadcast_to(radius, n)
        random_turn = rng.uniform(0, np.pi, n)
        turn = random_turn if turn is None else turn
        ratio = np.maximum(1, 1 + (look.elongation - 1) * rng.gamma(3, 1 / 3, n))[:, None]
        t = _ANGLES - turn[:, None]
        ellipse = 1 / np.sqrt(np.cos(t) ** 2 / ratio + np.sin(t) ** 2 * ratio)
        size = look.wobble * rng.normal(0, 1, (n, len(_HARMONICS))) / (_HARMONICS - 1) ** 1.4
        phase = rng.uniform(0, 2 * np.pi, (n, len(_HARMONICS)))
        waves = (size[..., None] * np.cos(_HARMONICS[:, None] * _ANGLES + phase[..., None])).sum(1)
        return Outlines(y, x, turn, radius[:, None] * ellipse * np.exp(waves))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Cells:
    """Painted cells.

    Args:
        labels: 0 is ground, i is the cell with index i - 1; int32, shape (height, width).
        depth: 0 on the outline of a cell, 1 in its centre, 0 on the ground; float32, shape (height, width).
        outlines: the curves.
    """

    labels: np.ndarray
    depth: np.ndarray
    outlines: Outlines

    @property
    def inside(self) -> np.ndarray:
        """Pixels of cells, bool."""
        return self.labels > 0

    def per_cell(self, values: np.ndarray, ground: float = 0.0) -> np.ndarray:
        """Give each pixel the value of its cell (n values), float32."""
        return np.append(np.float32(ground), np.asarray(values, dtype=np.float32))[self.labels]


def paint(outlines: Outlines, shape: tuple[int, int]) -> Cells:
    """Fill outlines, later ones over earlier ones; a pixel belongs to a cell when its centre lies inside.

    Args:
        outlines: what to fill; may reach over the edge.
        shape: rows and columns.
    """
    labels = np.zeros(shape, dtype=np.int32)
    depth = np.zeros(shape, dtype=np.float32)
    for index, (y, x, radii) in enumerate(zip(outlines.y, outlines.x, outlines.radii, strict=True)):
        rows, columns = polygon(y + radii * np.sin(_ANGLES), x + radii * np.cos(_ANGLES), shape)
        labels[rows, columns] = index + 1
        dy, dx = rows - y, columns - x
        edge = np.interp(np.arctan2(dy, dx), _ANGLES, radii, period=2 * np.pi)
        depth[rows, columns] = np.clip(1 - np.hypot(dy, dx) / edge, 0, 1)
    return Cells(labels, depth, outlines)


def scatter_cells(
    shape: tuple[int, int],
    look: Look,
    rng: np.random.Generator,
    density: np.ndarray | None = None,
    direction: np.ndarray | None = None,
) -> Cells:
    """Scatter cells until they cover the wanted fraction of the field; some alone, some in touch with others.

    A cell of a clump is put beside a random earlier cell, the others anywhere (where ``density`` lets them). Centres
    keep 0.86 times the sum of the radii between them, so that neighbours touch or overlap slightly. Cells reach over
    the edge.

    Args:
        shape: rows and columns.
        look: size, shape, coverage and clustering.
        rng: random generator.
        density: probability in [0, 1] of accepting a cell at each pixel, shape ``shape``; 1 everywhere by default.
        direction: angle of the long axes at each pixel, radians; random by default.
    """
    height, width = shape
    margin = look.radius
    wanted = look.coverage * (height + 2 * margin) * (width + 2 * margin)
    expected = wanted / (np.pi * look.radius**2)
    # a fractional cell is rounded by chance, so that small fields are not always empty or always hold a cell
    capacity = int(expected) + int(rng.random() < expected % 1)
    radii = look.radius * np.exp(look.spread * rng.normal(0, 1, capacity).clip(-2.5, 2.5))
    y, x = np.empty(capacity), np.empty(capacity)
    placed = 0
    for _ in range(30 * capacity):
        if placed == capacity:
            break
        radius = radii[placed]
        lot = rng.random(5)
        if placed and lot[0] < look.clustering:
            parent = int(lot[1] * placed)
            reach = (radius + radii[parent]) * (_OVERLAP + 0.14 * lot[2])
            cy = y[parent] + reach * np.sin(2 * np.pi * lot[3])
            cx = x[parent] + reach * np.cos(2 * np.pi * lot[3])
        else:
            cy, cx = lot[1] * (height + 2 * margin) - margin, lot[2] * (width + 2 * margin) - margin
        if not (-margin < cy < height + margin and -margin < cx < width + margin):
            continue
        if density is not None and lot[4] > density[_nearest(cy, height), _nearest(cx, width)]:
            continue
        if placed and np.any(np.hypot(y[:placed] - cy, x[:placed] - cx) < _OVERLAP * (radii[:placed] + radius)):
            continue
        y[placed], x[placed] = cy, cx
        placed += 1
    y, x, radii = y[:placed], x[:placed], radii[:placed]
    turn = None
    if direction is not None:
        turn = direction[_nearest(y, height), _nearest(x, width)] + rng.normal(0, 0.3, placed)
    return paint(Outlines.deformed(y, x, radii, look, rng, turn), shape)


def _nearest(position: np.ndarray | float, length: int) -> np.ndarray:
    return np.clip(np.rint(position), 0, length - 1).astype(int)

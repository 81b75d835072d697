"""Specimens under the electron microscope: tissue of membrane-bound processes with mitochondria in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import expit
from skimage.segmentation import find_boundaries

from monai_kwtl.synthetic.cells import Cells, Outlines, paint
from monai_kwtl.synthetic.fields import coordinates, smooth_noise
from monai_kwtl.synthetic.looks import Look

__all__ = ["electron_micrograph"]

Scene = tuple[np.ndarray, np.ndarray]


def _processes(shape: tuple[int, int], size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut the field into processes of very different size.

    Voronoi cells of random points, looked up at smoothly displaced positions and merged in groups.

    Args:
        shape: rows and columns.
        size: radius of an unmerged cell in pixels.
        rng: random generator.

    Returns:
        Index of the process, int, and the distance to the next membrane in pixels, float32, of each pixel.
    """
    margin = 3 * size
    area = (shape[0] + 2 * margin) * (shape[1] + 2 * margin)
    count = max(8, int(area / (np.pi * size**2)))
    points = rng.uniform((-margin, -margin), (shape[0] + margin, shape[1] + margin), (count, 2))
    # one cell in sixteen starts a large process that swallows what lies around it
    hubs = cKDTree(points[: max(1, count // 16)])
    distance, hub = hubs.query(points)
    reach = size * np.minimum(rng.gamma(1.5, 2.0, hubs.n), 6)
    group = np.where(distance < reach[hub], hub, np.arange(count))
    rows, columns = coordinates(shape)
    where = np.stack(
        [
            rows + 0.35 * size * smooth_noise(shape, 0.6 * size, rng),
            columns + 0.35 * size * smooth_noise(shape, 0.6 * size, rng),
        ],
        axis=-1,
    )
    process = group[cKDTree(points).query(where)[1]]
    distance = ndimage.distance_transform_edt(~find_boundaries(process, mode="inner"))
    return process, ndimage.gaussian_filter(distance.astype(np.float32), max(1.0, 0.1 * size))


def _mitochondria(
    process: np.ndarray, distance: np.ndarray, look: Look, rng: np.random.Generator
) -> tuple[Cells, np.ndarray]:
    """Put mitochondria into processes that have room for them, and cut off what would reach through a membrane.

    Args:
        process: index of the process of each pixel.
        distance: distance to the next membrane in pixels.
        look: size, shape and coverage.
        rng: random generator.

    Returns:
        Mitochondria and their mask.
    """
    shape = process.shape
    expected = look.coverage * process.size / (0.9 * np.pi * look.radius**2)
    # a tenth is lost where membranes cut mitochondria off
    count = int(expected) + int(rng.random() < expected % 1)
    tries = rng.uniform((0, 0), shape, (40 * count + 1, 2)).astype(int)
    room = distance[tries[:, 0], tries[:, 1]]
    radii = look.radius * np.exp(look.spread * rng.normal(0, 1, len(tries)).clip(-2, 2))
    chosen: list[int] = []
    for index in np.flatnonzero(room > 0.65 * radii):
        if len(chosen) == count:
            break
        gaps = np.hypot(*(tries[chosen] - tries[index]).T) if chosen else np.empty(0)
        if np.all(gaps > 1.3 * (radii[chosen] + radii[index])):
            chosen.append(int(index))
    picked = np.array(chosen, dtype=int)
    y, x = tries[picked].T
    cells = paint(Outlines.deformed(y, x, radii[picked], look, rng), shape)
    home = np.append(-1, process[y, x])
    mask = cells.inside & (home[cells.labels] == process) & (distance > 0.12 * look.radius)
    return cells, mask


def electron_micrograph(shape: tuple[int, int], look: Look, difficulty: float, rng: np.random.Generator) -> Scene:
    """Draw a thin section of nervous tissue: membranes, cytoplasm, vesicles, dark glia, mitochondria with cristae.

    Args:
        shape: rows and columns.
        look: specimen; the cells are the mitochondria.
        difficulty: 0 is easy, 1 is hard: paler mitochondria, more dark bodies that are none.
        rng: random generator.

    Returns:
        Intensity in units of full scale, float32, and the mask of the mitochondria, bool.
    """
    process, distance = _processes(shape, max(8.0, rng.uniform(0.6, 1.0) * look.radius), rng)
    mito, mask = _mitochondria(process, distance, look, rng)
    width = max(1.0, look.radius / 14)

    rows, columns = coordinates(shape)
    turn = mito.per_cell(mito.outlines.turn + np.pi / 2 + rng.normal(0, 0.3, len(mito.outlines)))
    wave = rng.uniform(2.5, 4) * width
    phase = (rows * np.sin(turn) + columns * np.cos(turn)) / wave + 0.5 * smooth_noise(shape, 0.3 * look.radius, rng)
    folds = np.clip(smooth_noise(shape, 0.35 * look.radius, rng) + 0.8, 0, 1.3)
    cristae = np.clip(1.5 * np.cos(2 * np.pi * phase), -1, 1) * folds
    rim = np.exp(-((ndimage.distance_transform_edt(mask) / (1.2 * width)) ** 2))
    dark = mito.per_cell(rng.uniform(0.6, 1.0, len(mito.outlines)) - 0.15 * difficulty)
    organelle = dark + look.texture * (0.28 * cristae + 0.6 * rim)

    # the width of a membrane in the picture depends on the angle at which it is cut; gaps at corners fill, as with glia
    cut = width * np.exp(0.25 * smooth_noise(shape, look.radius, rng))
    membrane = (1.65 + 0.2 * smooth_noise(shape, look.radius, rng)) * expit((cut - distance) / (0.35 * width))
    kinds = rng.normal(0, 0.1, int(process.max()) + 1)
    kinds[rng.random(len(kinds)) < 0.04 + 0.08 * difficulty] += 0.7
    grain = 0.28 * smooth_noise(shape, 0.7 * width, rng) + 0.15 * smooth_noise(shape, 2.5 * width, rng)
    specks = 0.6 * np.clip(smooth_noise(shape, max(0.8, 0.6 * width), rng) - 1.3, 0, 2)
    vesicles = _vesicles(shape, look, difficulty, rng) * (distance > 1.5 * width)
    dense = np.clip(smooth_noise(shape, 3 * width, rng) - 1.8 + 0.3 * difficulty, 0, 1) * np.exp(
        -distance / (3 * width)
    )
    ground = kinds[process] + grain + specks + vesicles + 2 * dense
    plasm = np.where(mask, organelle + look.texture * grain, look.clutter * ground)
    absorbed = np.maximum(plasm, min(look.clutter, 1.0) * membrane * ~mask)
    return (rng.uniform(0.55, 0.7) - look.contrast * absorbed).astype(np.float32), mask


def _vesicles(shape: tuple[int, int], look: Look, difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """Round membranes with light inside, in swarms."""
    small = replace(
        look,
        radius=max(2.0, 0.16 * look.radius),
        elongation=1.1,
        coverage=0.04 + 0.04 * difficulty,
    )
    swarm = np.clip(smooth_noise(shape, 1.5 * look.radius, rng) - 0.6, 0, 1)
    count = int(small.coverage * shape[0] * shape[1] / (np.pi * small.radius**2))
    y, x = rng.uniform(0, shape[0], count), rng.uniform(0, shape[1], count)
    kept = rng.random(count) < swarm[y.astype(int), x.astype(int)]
    sizes = small.radius * np.where(rng.random(kept.sum()) < 0.08, rng.uniform(2, 4, kept.sum()), 1)
    rings = paint(Outlines.deformed(y[kept], x[kept], sizes, small, rng), shape)
    return rings.inside * (0.9 * np.exp(-((rings.depth / 0.3) ** 2)) - 0.15)

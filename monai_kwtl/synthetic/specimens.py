"""Specimens under the light microscope: stained nuclei that shine, stained sections, and living cells in culture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage
from skimage.draw import line_aa

from monai_kwtl.synthetic.cells import Cells, Outlines, paint, scatter_cells
from monai_kwtl.synthetic.fields import fibrous, smooth_noise
from monai_kwtl.synthetic.looks import Look

__all__ = ["culture", "fluorescence", "section"]

Scene = tuple[np.ndarray, np.ndarray]


def _patchy(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Make a density in (0, 1] with crowded and bare parts of the field."""
    bias = rng.uniform(0, 1.5)
    return 1 / (1 + np.exp(-2.5 * smooth_noise(shape, max(shape) / 8, rng) - bias))


def _specks(shape: tuple[int, int], look: Look, count: float, rng: np.random.Generator) -> Cells:
    """Draw debris: small grains of a fraction of a cell's size."""
    n = int(rng.poisson(count))
    grain = replace(look, elongation=1.6, wobble=0.25)
    y, x = rng.uniform(0, shape[0], n), rng.uniform(0, shape[1], n)
    return paint(Outlines.deformed(y, x, look.radius * rng.uniform(0.06, 0.3, n) + 0.7, grain, rng), shape)


def _fibres(shape: tuple[int, int], count: float, rng: np.random.Generator) -> np.ndarray:
    """Draw lint: curved threads about a pixel wide, coverage in [0, 1], float32."""
    field = np.zeros(shape, dtype=np.float32)
    for _ in range(int(rng.poisson(count))):
        steps = int(rng.integers(12, 60))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.1, steps) + rng.normal(0, 0.05))
        ys = rng.uniform(0, shape[0]) + np.cumsum(6 * np.sin(heading))
        xs = rng.uniform(0, shape[1]) + np.cumsum(6 * np.cos(heading))
        points = np.rint(np.stack([ys, xs], axis=1)).astype(int)
        for (r0, c0), (r1, c1) in zip(points[:-1], points[1:], strict=True):
            rows, columns, value = line_aa(r0, c0, r1, c1)
            seen = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
            field[rows[seen], columns[seen]] = np.maximum(field[rows[seen], columns[seen]], value[seen])
    return ndimage.gaussian_filter(field, 0.8)


def _chromatin(shape: tuple[int, int], radius: float, rng: np.random.Generator) -> np.ndarray:
    """Make the texture of a nucleus at two scales, standard deviation about 1."""
    return 0.8 * smooth_noise(shape, max(0.8, radius / 9), rng) + 0.6 * smooth_noise(shape, max(1.2, radius / 3), rng)


def fluorescence(shape: tuple[int, int], look: Look, difficulty: float, rng: np.random.Generator) -> Scene:
    """Draw stained nuclei on dark ground.

    Nuclei have a dome-like profile, chromatin, dark nucleoli, and different brightness; a few are condensed and much
    brighter. Ground: haze, light scattered around the nuclei, nuclei of other planes as blurred ghosts, grains, lint.

    Args:
        shape: rows and columns.
        look: specimen.
        difficulty: 0 is easy, 1 is hard: more uneven brightness, clumps, ghosts and haze.
        rng: random generator.

    Returns:
        Intensity in units of full scale, float32, and the mask of the nuclei, bool.
    """
    crowd = replace(look, clustering=min(0.95, look.clustering * (0.6 + 0.8 * difficulty)))
    cells = scatter_cells(shape, crowd, rng, _patchy(shape, rng))
    n = len(cells.outlines)
    level = np.exp((0.15 + 0.3 * difficulty) * rng.normal(0, 1, n).clip(-2, 2))
    level[rng.random(n) < 0.04 * look.clutter] *= 1.8
    dome = 0.65 + 0.35 * np.sqrt(1 - (1 - cells.depth) ** 2)
    nucleoli = np.clip(smooth_noise(shape, max(1.0, look.radius / 6), rng) - 1.4, 0, 1) * (cells.depth > 0.2)
    texture = np.exp(look.texture * (0.13 * _chromatin(shape, look.radius, rng) - 0.35 * nucleoli))
    signal = cells.per_cell(level) * dome * texture

    ghosts = scatter_cells(shape, replace(look, coverage=0.4 * look.coverage, radius=1.1 * look.radius), rng)
    ghost_level = ghosts.per_cell(rng.uniform(0.1, 0.6, len(ghosts.outlines)))
    out_of_focus = ndimage.gaussian_filter(ghost_level, 0.35 * look.radius) * difficulty
    scatter = ndimage.gaussian_filter(signal, 0.7 * look.radius) * (0.06 + 0.12 * difficulty)
    haze = (0.05 + 0.15 * difficulty) * np.exp(0.4 * smooth_noise(shape, max(shape) / 7, rng))
    per_megapixel = shape[0] * shape[1] / 1e6
    grains = _specks(shape, look, look.clutter * per_megapixel * (12 + 60 * difficulty), rng)
    grain_level = grains.per_cell(rng.gamma(2, 0.6, len(grains.outlines))) * (0.4 + grains.depth)
    lint = _fibres(shape, look.clutter * difficulty * 5 * per_megapixel, rng) * rng.uniform(0.3, 1.5)
    clutter = look.clutter * (out_of_focus + scatter + haze) + (look.clutter > 0) * (
        ndimage.gaussian_filter(grain_level, 0.6) + lint
    )
    return (0.03 + look.contrast * (signal + clutter)).astype(np.float32), cells.inside


def section(shape: tuple[int, int], look: Look, difficulty: float, rng: np.random.Generator) -> Scene:
    """Draw a stained tissue section in luminance: dark nuclei, cytoplasm, fibrous stroma, empty lumina.

    Light is absorbed by Beer and Lambert: intensity = lamp * exp(-absorbance). Nuclei are evenly dark or vesicular
    (pale with a dark rim and nucleoli), lie denser in nests, and follow the fibres in the stroma between them.

    Args:
        shape: rows and columns.
        look: specimen.
        difficulty: 0 is easy, 1 is hard: paler nuclei, darker ground, blurred nuclei of another plane.
        rng: random generator.

    Returns:
        Intensity in units of full scale, float32, and the mask of the nuclei, bool.
    """
    nests = 1 / (1 + np.exp(-4 * smooth_noise(shape, max(5 * look.radius, 30), rng) - rng.uniform(-2, 2)))
    fibres, direction = fibrous(shape, 5 * look.radius, max(1.2, look.radius / 9), rng)
    holes = scatter_cells(
        shape,
        Look(radius=look.radius * rng.uniform(2, 5), spread=0.5, wobble=0.12, coverage=rng.choice([0, 0.04, 0.2])),
        rng,
    )
    free = 1 - holes.inside
    cells = scatter_cells(shape, look, rng, (0.2 + 0.8 * nests) * free, direction)
    n = len(cells.outlines)

    fine = smooth_noise(shape, max(0.9, look.radius / 12), rng)
    pale = np.clip(rng.uniform(0.1, 0.7) + 0.2 * difficulty + rng.normal(0, 0.2, n), 0, 0.85)
    stain = np.log1p(3 * look.contrast) * np.exp(0.2 * rng.normal(0, 1, n).clip(-2, 2))
    rim = np.exp(-((cells.depth / 0.14) ** 2))
    body = 1 + min(1, look.texture) * (0.15 * rim - cells.per_cell(pale) * (1 - rim))
    clumps = np.exp(look.texture * (0.25 * _chromatin(shape, look.radius, rng) + 0.12 * fine))
    nucleoli = np.clip(smooth_noise(shape, max(1.0, look.radius / 8), rng) - 1.4, 0, 1) * (cells.depth > 0.25)
    nuclear = cells.per_cell(stain) * (body * clumps + 0.9 * look.texture * nucleoli) * cells.inside

    plasm = 0.28 + 0.09 * smooth_noise(shape, 0.8 * look.radius, rng) + 0.07 * fine
    stroma = 0.3 + 0.13 * fibres + 0.08 * smooth_noise(shape, 2 * look.radius, rng) + 0.06 * fine
    # clefts between bundles of fibres let the lamp through
    stroma -= 0.25 * np.clip(-fibres - 1, 0, 1)
    eosin = np.clip(nests * plasm + (1 - nests) * stroma, 0.02, None)
    wall = np.exp(-((holes.depth / 0.04) ** 2))
    eosin = np.where(holes.inside, 0.02 + 0.35 * wall, eosin)
    other_plane = scatter_cells(shape, replace(look, coverage=0.5 * look.coverage), rng, 0.9 * free)
    blurred = ndimage.gaussian_filter(other_plane.inside.astype(np.float32), 0.3 * look.radius) * 0.45 * difficulty
    grains = _specks(shape, look, look.clutter * shape[0] * shape[1] / 1e6 * (10 + 40 * difficulty), rng)
    dirt = look.clutter * grains.per_cell(rng.uniform(0.2, 0.9, len(grains.outlines)))
    strength = rng.uniform(0.7, 1.2) + 0.3 * difficulty
    ground = look.clutter * strength * (eosin + blurred * free)
    absorbed = np.where(cells.inside, np.maximum(nuclear + 0.5 * ground, 0.1), np.minimum(ground, 0.8)) + dirt
    return (rng.uniform(0.85, 0.95) * np.exp(-absorbed)).astype(np.float32), cells.inside


def culture(shape: tuple[int, int], look: Look, difficulty: float, rng: np.random.Generator) -> Scene:
    """Draw unstained cells in culture by transmitted light or phase contrast: granular, with a halo on grey ground.

    Args:
        shape: rows and columns.
        look: specimen; ``bright`` is the polarity (negative phase contrast).
        difficulty: 0 is easy, 1 is hard: fainter cells, more debris.
        rng: random generator.

    Returns:
        Intensity in units of full scale, float32, and the mask of the cells, bool.
    """
    cells = scatter_cells(shape, look, rng, _patchy(shape, rng))
    n = len(cells.outlines)
    sign = 1 if look.bright else -1
    level = np.exp((0.15 + 0.2 * difficulty) * rng.normal(0, 1, n).clip(-2, 2))
    # phase contrast shades off towards the middle of a cell, and what is lost there shows as a halo around it
    shade = 1.1 - 0.45 * min(1, look.texture) * cells.depth
    nucleus = np.clip((cells.depth - 0.45) * 6, 0, 1) * rng.uniform(-0.4, 0.5)
    granules = np.clip(smooth_noise(shape, max(0.9, look.radius / 10), rng) - 1, 0, 2)
    texture = look.texture * (0.2 * _chromatin(shape, look.radius, rng) + nucleus - 0.5 * sign * granules)
    body = cells.per_cell(level) * np.maximum(shade + texture, 0.05) * cells.inside
    reach = (0.08 + 0.2 * rng.random()) * look.radius + 1
    halo = (
        min(1, look.clutter)
        * rng.uniform(0.5, 1.7)
        * np.exp(-ndimage.distance_transform_edt(~cells.inside) / reach)
        * ~cells.inside
    )

    ground = 0.08 * smooth_noise(shape, 1.5, rng) + 0.1 * smooth_noise(shape, 4 * look.radius, rng)
    grains = _specks(shape, look, look.clutter * shape[0] * shape[1] / 1e6 * (30 + 120 * difficulty), rng)
    ring = np.cos(2 * np.pi * 1.2 * (1 - grains.depth)) * grains.inside
    dirt = grains.per_cell(rng.normal(0, 0.7, len(grains.outlines))) * ring
    clutter = look.clutter * (ground + dirt)
    middle = rng.uniform(0.4, 0.6)
    return (middle + look.contrast * (sign * (body - halo) + clutter)).astype(np.float32), cells.inside

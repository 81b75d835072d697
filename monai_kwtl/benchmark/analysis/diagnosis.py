"""Why methods win or lose: what their windows show compared with the pool, and how the tuned network errs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist, pdist

from monai_kwtl.benchmark.analysis.figures import LOOKS
from monai_kwtl.benchmark.analysis.layout import Table
from monai_kwtl.benchmark.experiments.bench import Bench
from monai_kwtl.benchmark.experiments.experiment import select
from monai_kwtl.benchmark.plan.config import Config, read_config
from monai_kwtl.benchmark.plan.methods import METHODS, VARIANTS
from monai_kwtl.benchmark.plan.rows import Key
from monai_kwtl.benchmark.plan.store import Store, digest
from monai_kwtl.benchmark.runs.jobs import experiments_of, jobs_of
from monai_kwtl.data.loading import read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.diversity import principal_components
from monai_kwtl.selection.regions import Region
from monai_kwtl.selection.strategies import FEATURE_STRATEGIES
from monai_kwtl.utils.atomic import atomic_write, write_text
from monai_kwtl.utils.sampling import evenly_spaced_indices
from monai_kwtl.windows.scores import ImageScores

__all__ = [
    "COLUMNS",
    "add_arguments",
    "by_foreground",
    "diagnose",
    "draw",
    "image_spread",
    "run",
    "spread_of",
    "summary",
]

_HINT = "make room, or choose another --output"
BINS = 6  # of by_foreground
_SAMPLE = 2000  # windows of a pool that distances are taken of
_PANEL = ["target", "protocol", "variant", "images' worth"]
_FORMS = {
    "images' worth": "g",
    **dict.fromkeys(("windows", "images"), ".0f"),
    **dict.fromkeys(("even images", "foreground %", "of the pool %"), ".2f"),
    **dict.fromkeys(("feature spread", "distance to the pool"), ".3f"),
    "mean IoU %": ".2f",
    **dict.fromkeys(("over", "under"), ".3f"),
}
COLUMNS = ["target", "protocol", "variant", "split", "method", *_FORMS]


def image_spread(regions: Sequence[Region], images: int) -> float:
    """Measure how evenly windows lie over images: effective number of images touched, over the possible, in (0, 1].

    ``exp(H) / min(number of windows, images)`` with H the entropy of the fraction of windows of each image.

    Args:
        regions: at least one.
        images: of the pool.
    """
    _, counts = np.unique([f"{r.image} {r.page}" for r in regions], return_counts=True)
    fractions = counts / counts.sum()
    return float(np.exp(-(fractions * np.log(fractions)).sum()) / min(len(regions), images))


def spread_of(points: np.ndarray, chosen: np.ndarray) -> tuple[float, float]:
    """Measure how different chosen windows are, and how far those of the pool are from them, as fractions.

    Args:
        points: features of all windows of the pool, shape (N, D).
        chosen: numbers of the chosen ones, at least one.

    Returns:
        Mean distance between two of the chosen over that of two of the pool, 1 where they differ as the pool does, 0
        for a single one; and the mean distance of the pool's windows to the nearest of the chosen, over the same.
    """
    sample = points[evenly_spaced_indices(len(points), _SAMPLE)]
    scale = float(pdist(sample).mean()) if len(sample) > 1 else 0.0
    taken = points[chosen]
    between = float(pdist(taken).mean()) if len(taken) > 1 else 0.0
    return between / (scale or 1.0), float(cdist(sample, taken).min(1).mean()) / (scale or 1.0)


def _numbers(pool: Sequence[ImageScores], regions: Iterable[Region]) -> np.ndarray:
    """Numbers, in the order of the pool's windows, of those that regions are; cut ones count as where they begin."""
    places, offset = {}, 0
    for image in pool:
        for window, (y, x) in enumerate(zip(image.grid.y.tolist(), image.grid.x.tolist(), strict=True)):
            places[image.name, image.page, y, x] = offset + window
        offset += len(image.grid)
    return np.array([places[r.image, r.page, r.y, r.x] for r in regions])


def diagnose(config: Config) -> Table:
    """Look at what each method of a finished grid chose, on each split, at equal unique pixels.

    Labels of the pool are read here, to say how much foreground it has; nothing is chosen with it.

    Args:
        config: of the grid; one of its methods must compare windows, so that their features are in the store, and its
            budgets in pixels count.

    Returns:
        A row for each split, variant, method and budget that is finished: windows and images touched, how
        evenly (:func:`image_spread`), true foreground of the windows and of the pool, :func:`spread_of`, and how the
        tuned network fares.

    Raises:
        KWTLError: where no method compares windows, or no experiment is finished.
    """
    compares = next((name for name in config.methods if METHODS[name].features), None)
    if compares is None:
        raise KWTLError(
            f"methods: one of {', '.join(FEATURE_STRATEGIES[:-1])} and {FEATURE_STRATEGIES[-1]} is needed, whose "
            "features windows are placed by."
        )
    store, rows = Store(Path(config.output_dir) / "store"), []
    experiments = [(case, key) for case, key in experiments_of(config) if key.budget_kind == "pixels"]
    _, names = jobs_of(experiments)
    fractions: dict[tuple[str, str, int], float] = {}
    points: dict[tuple[str, str, int, int], np.ndarray] = {}
    for case, key in experiments:
        features = case.feature_settings("base", compares)  # one look for all variants
        if features is None or not store.has("cell", names[key]) or not store.has("features", digest(features)):
            continue
        at = (key.target, key.protocol, key.split, key.seed)
        if at not in points:
            described, _ = store.with_features(digest(features), Bench(case, store).grids("base"))
            points[at] = principal_components([image.features for image in described])
            labels = [read_label(item) for item in case.parts[0]]
            fractions[at[:3]] = sum(int((label > 0).sum()) for label in labels) / sum(label.size for label in labels)
        if METHODS[key.method].rounds == 1 and VARIANTS[key.variant].window == 1:  # other windows have other features
            rows.append(_row(case, key, store, names[key], points[at], fractions[at[:3]]))
    if not rows:
        raise KWTLError(
            f"{config.output_dir} holds no finished experiment of this grid; run scripts/benchmark.py protocol."
        )
    return Table("diagnosis", pd.DataFrame(rows, columns=COLUMNS), _FORMS)


def _row(case: Any, key: Key, store: Store, name: str, points: np.ndarray, fraction: float) -> tuple[Any, ...]:
    pool, _ = Bench(case, store).scores(key.variant, key.method)
    regions = select(pool, METHODS[key.method].strategy, case.budget(key), case.derived_seed(key.method))
    found = store.experiment(name)["result"]
    return (
        key.target, key.protocol, key.variant, str(key.split), key.method, key.budget, len(regions), found["images"],
        image_spread(regions, len(pool)), 100 * found["foreground_share"], 100 * fraction,
        *spread_of(points, _numbers(pool, regions)),
        100 * found["mean_iou"], found["over_prediction"], found["under_prediction"],
    )  # fmt: skip


def summary(table: Table) -> Table:
    """Average :func:`diagnose` over splits and seeds, a row for each method and budget, the best IoU first."""
    keys = [*_PANEL, "method"]
    groups = table.data.groupby(keys, sort=False)
    means = groups[[name for name in _FORMS if name not in keys]].mean()
    means["splits"] = groups.size()
    means = means.reset_index().sort_values(
        [*_PANEL, "mean IoU %"], ascending=[*[True] * len(_PANEL), False], kind="stable"
    )
    columns = ["splits" if name == "split" else name for name in COLUMNS]
    return Table("diagnosis_means", means[columns], _FORMS)


def by_foreground(table: Table) -> Table:
    """Relate IoU to the foreground of the windows: sets of windows of all methods, sorted by it, in six parts.

    Args:
        table: of :func:`diagnose`.

    Returns:
        For each target, variant and budget with six sets at least, a row a part: foreground over that of the pool, from
        and to, the number of sets, and the mean of their IoU less the mean of their split.
    """
    rows: list[tuple[Any, ...]] = []
    for scope, found in table.data.groupby(_PANEL, sort=False):
        if len(found) < BINS:
            continue
        above = (found["mean IoU %"] - found.groupby("split")["mean IoU %"].transform("mean")).to_numpy()
        ratio = (found["foreground %"] / found["of the pool %"].clip(lower=1e-9)).to_numpy()
        for part in np.array_split(np.argsort(ratio, kind="stable"), BINS):
            rows.append((*scope, ratio[part[0]], ratio[part[-1]], len(part), above[part].mean()))
    forms = {"foreground over the pool's, from": ".2f", "to": ".2f", "sets": ".0f", "IoU less mean of split": "+.1f"}
    data = pd.DataFrame(rows, columns=[*_PANEL, *forms])
    return Table("diagnosis_foreground", data, {"images' worth": "g", **forms})


def draw(table: Table, path: str | Path) -> None:
    """Draw IoU against the foreground of the windows, and against how far the pool is from them; a dot is a split.

    Args:
        table: of :func:`diagnose`.
        path: of the PNG.
    """
    data = table.data.assign(fraction=table.data["foreground %"] / table.data["of the pool %"])
    panels = list(data.groupby(_PANEL, sort=False))
    labels = {
        "fraction": "foreground of the windows over that of the pool",
        "distance to the pool": "distance of the pool to the windows",
    }
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.0, 2.9 * len(panels) + 0.8), layout="constrained")
        FigureCanvasAgg(figure)
        handles = {}
        for line, ((target, protocol, variant, budget), rows) in enumerate(panels):
            for column, (name, label) in enumerate(labels.items()):
                axes = figure.add_subplot(len(panels), 2, 2 * line + column + 1)
                axes.grid(True, color="#DDDDDD", linewidth=0.6)
                axes.set_axisbelow(True)
                axes.set(xlabel=label, title=f"{target} ({protocol}, {variant}), {budget:g} images' worth")
                if column == 0:
                    axes.set_ylabel("mean IoU, %")
                    axes.axvline(1.0, color="#999999", linestyle=":")
                for method, look in LOOKS.items():
                    mine = rows[rows["method"] == method]
                    if len(mine):
                        dots = axes.scatter(
                            mine[name], mine["mean IoU %"], color=look.color, marker=look.marker, s=24, alpha=0.8,
                            label=look.label,
                        )  # fmt: skip
                        handles[look.label] = dots
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=3, frameon=False)
        with atomic_write(Path(path), None, durable=False) as unfinished:
            figure.savefig(unfinished, dpi=120, format="png", metadata={"Software": None})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``scripts/benchmark.py diagnose``."""
    parser.add_argument("--config", type=Path, required=True, help="of a grid that is finished, or partly")
    parser.add_argument("--output_dir", help="of that grid, where it is not that of the configuration")
    parser.add_argument("--output", dest="folder", type=Path, required=True, help="folder of its CSV files and picture")


def run(options: argparse.Namespace) -> dict[str, str]:
    """Write ``diagnosis*.csv`` and ``diagnosis.png``; returns the means, and IoU by foreground, as Markdown."""
    given = {"output_dir": options.output_dir} if options.output_dir else {}
    table = diagnose(read_config(options.config, given))
    means, parts = summary(table), by_foreground(table)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        draw(table, options.folder / "diagnosis.png")
    except OSError as error:
        raise KWTLError(f"cannot write {options.folder} ({error.strerror or error}): {_HINT}") from error
    for each in (table, means, parts):
        write_text(options.folder / f"{each.name}.csv", each.csv(), _HINT)
    return {
        "means over splits": "\n" + "\n".join(means.markdown()),
        "IoU by foreground": "\n" + "\n".join(parts.markdown()),
    }

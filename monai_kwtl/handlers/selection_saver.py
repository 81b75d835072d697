"""Ignite handler of the select stage: the saver of scores and selection."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_kwtl.data.loading import read_image
from monai_kwtl.errors import KWTLError, as_bool
from monai_kwtl.inferers.memory import give_back_freed_memory
from monai_kwtl.project.history import curve_of, expect_selection, note_selection
from monai_kwtl.project.project_file import check_noted
from monai_kwtl.project.selection_folder import check_output, write_selection
from monai_kwtl.report import overview_picture, write_report
from monai_kwtl.report.console import report_settings, summary_lines, window_rows
from monai_kwtl.report.tensorboard import draw_selection
from monai_kwtl.scoring.store import ScoreStore
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.selection.regions import Cost, Region, cost_of
from monai_kwtl.selection.select import check_free, checked_budget, cover, select_regions
from monai_kwtl.selection.strategies import MAP_STRATEGIES
from monai_kwtl.utils.caching import remembering
from monai_kwtl.utils.distributed import barrier, is_main_process
from monai_kwtl.utils.tensorboard import open_log, remove_log

__all__ = ["SelectionSaver", "check_request"]

logger = logging.getLogger("monai_kwtl")

_LARGE = 1 << 24  # pixels of an image that is drawn by one thread at a time


def check_request(
    items: Sequence[Mapping[str, Any]],
    output_dir: str | os.PathLike,
    overwrite: bool | str,
    strategy: str,
    budget: float | None,
    budget_windows: int | None,
    budget_pixels: int | None,
    inferer: WindowScoreInferer,
    excluded_regions: Sequence[Region] = (),
    project_folder: str | os.PathLike | None = None,
) -> bool:
    """Refuse a selection that cannot be made before anything is computed for it, also before pretext tuning.

    Where it can be made but not be noted in ``project_folder``, the folder of the images, that is said.

    Returns:
        True.

    Raises:
        KWTLError: as :class:`SelectionSaver` does, for strategies that need the map that exact scores have not, and
            where every window overlaps what is labelled or assigned already.
    """
    checked_budget(items, inferer.window, inferer.step, strategy, budget, budget_windows, budget_pixels)
    if strategy in MAP_STRATEGIES and inferer.exact:
        raise KWTLError(f"strategy {strategy!r} needs score maps; exact scoring has none: use --exact false or top_k.")
    if excluded_regions and strategy != "coverage":
        check_free(items, inferer.window, inferer.step, excluded_regions)
    if is_main_process():
        check_output(output_dir, as_bool(overwrite, "overwrite"), parts=("scores", "pretext", "tensorboard"))
        if project_folder is not None:
            check_noted(project_folder)
    return True


class SelectionSaver:
    """Keep each image's scores as they come; when all are there, select, write the files and say what to label.

    Args:
        items: the pool, as ``monai_kwtl.data.pool.load_pool`` gives it.
        store: where scores are kept.
        output_dir: folder of the selection.
        budget: images' worth of area to label ("shots"); 1 where no budget is given at all.
        budget_windows: number of windows instead.
        budget_pixels: number of distinct pixels instead.
        strategy: a name in ``monai_kwtl.selection.strategies.STRATEGIES``.
        seed: of random strategies.
        created_with: what ``selection.json`` shall say about its making.
        overwrite: replace a selection that is already there.
        rescale: fixed grey range of 16 bit and float images, as in ``read_image``.
        report: whether to write ``what_to_label.png`` and ``report.html``.
        tensorboard: whether to write a TensorBoard log below ``output_dir/tensorboard``.
        excluded_regions: regions that are labelled or assigned already and are left out.
        project_folder: folder of the images whose ``project.json`` gives the report the rounds so far, and takes note
            of the selection; None: of none.
        per_view: as in :func:`monai_kwtl.report.tensorboard.draw_selection`, for TensorBoard.

    Raises:
        KWTLError: at once for a bad budget or strategy, a budget larger than the pool, or an output that cannot be
            written; before anything is computed.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        store: ScoreStore,
        output_dir: str | os.PathLike,
        budget: float | None = None,
        budget_windows: int | None = None,
        budget_pixels: int | None = None,
        strategy: str = "top_k",
        seed: int = 0,
        created_with: Mapping[str, Any] | None = None,
        overwrite: bool | str = False,
        rescale: Sequence[float] | None = None,
        report: bool | str = True,
        tensorboard: bool | str = True,
        excluded_regions: Sequence[Region] = (),
        project_folder: str | os.PathLike | None = None,
        per_view: Callable[..., Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        self.budget = checked_budget(items, store.window, store.step, strategy, budget, budget_windows, budget_pixels)
        self.items, self.store, self.output_dir = list(items), store, Path(output_dir)
        self.strategy, self.seed, self.created_with = strategy, seed, dict(created_with or {})
        self.overwrite, self.report = as_bool(overwrite, "overwrite"), as_bool(report, "report")
        self.tensorboard = as_bool(tensorboard, "tensorboard")
        self.excluded_regions, self.project_folder, self.per_view = tuple(excluded_regions), project_folder, per_view
        self.rounds = [] if project_folder is None else curve_of(project_folder)
        self.read = partial(read_image, rescale=rescale)
        if is_main_process():
            check_output(self.output_dir, self.overwrite)

    @property
    def unscored(self) -> list[Mapping[str, Any]]:
        """Items of the pool whose scores are not in the store."""
        return [item for item in self.items if self.store.get(item) is None]

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator that scores images."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def __call__(self, engine: Engine) -> None:
        """Keep the scores of the image just done."""
        self.store.put(engine.state.batch, engine.state.output["pred"])

    def _finish(self, engine: Engine) -> None:
        """Select regions; where nothing was scored now, the views are not drawn for pictures alone."""
        selection = self.output_dir / "selection.json"
        if self.project_folder is not None:
            expect_selection(self.project_folder, selection)
        self.save(self.per_view if engine.state.iteration else None)
        if self.project_folder is not None:
            note_selection(self.project_folder, selection)

    def save(self, per_view: Callable[..., Mapping[str, np.ndarray]] | None = None) -> list[Region]:
        """Select regions, write every file, and log the table of regions and the cost.

        Of several processes all call it: when each has scored its images, the first one selects.

        Args:
            per_view: as in :func:`monai_kwtl.report.tensorboard.draw_selection`, for TensorBoard; None draws no views.

        Returns:
            The regions, rank 1 first; none in the other processes.

        Raises:
            KWTLError: when an image has no scores, or the output cannot be written.
        """
        barrier()
        give_back_freed_memory()  # of the layers: pictures of a slide need as much in other blocks
        if not is_main_process():
            return []
        pool = [self.store.get(item) for item in self.items]
        missing = [item["name"] for item, scores in zip(self.items, pool, strict=True) if scores is None]
        if missing:
            raise KWTLError(f"{len(missing)} images have no scores, first {missing[0]}; run the stage again.")
        regions = select_regions(
            [cover(scores, self.excluded_regions) for scores in pool], self.strategy, self.budget, self.seed
        )
        cost = cost_of(regions)
        read = remembering(self.read)
        probability, score = remembering(self.store.probability), remembering(self.store.score)
        pictures = {"regions": regions, "items": self.items, "read": read}
        maps = {"probability": probability, "score": score}
        with ThreadPoolExecutor(max_workers=1) as helper:  # both pack pictures most of the time, which no lock holds up
            report = helper.submit(self._write_report, pictures, cost, **maps) if self.report else None
            if report and max(item["height"] * item["width"] for item in self.items) > _LARGE:
                report.result()  # else two pictures of a slide are in memory at once
            if self.tensorboard:
                window_scores = np.concatenate([scores.window_scores for scores in pool])
                with open_log(self.output_dir / "tensorboard", "select") as writer:
                    draw_selection(
                        writer, **pictures, **maps, window_scores=window_scores, cost=cost, per_view=per_view
                    )
            if report:
                report.result()
        left_out = {"left_out": len(self.excluded_regions)} if self.excluded_regions else {}
        # last, so that a selection.json means that all the rest is there
        write_selection(
            self.output_dir,
            regions,
            budget=self.budget.as_dict(),
            cost=cost.as_dict(),
            created_with={**self.created_with, **left_out, "strategy": self.strategy, "seed": self.seed},
            items=self.items,
            windows=window_rows(pool),
            read=read,
            overwrite=self.overwrite,
        )
        self._remove_former()
        if (
            self.excluded_regions
            and self.budget.pixels is None
            and len(regions) < self.budget.limits([s.grid for s in pool])[0]
        ):
            logger.info(f"only {len(regions)} windows are left that show more than what is labelled or assigned")
        for line in summary_lines(regions, cost, self.items, self.output_dir, self.report):
            logger.info(line)
        return regions

    def _write_report(
        self, pictures: Mapping[str, Any], cost: Cost, probability: Callable[..., Any], score: Callable[..., Any]
    ) -> None:
        overview_picture(self.output_dir / "what_to_label.png", **pictures, cost=cost.as_dict())
        write_report(
            self.output_dir / "report.html",
            **pictures,
            predictions=probability,
            maps=score,
            cost=cost.as_dict(),
            settings=report_settings(self.budget, self.strategy, self.created_with),
            rounds=self.rounds,
        )

    def _remove_former(self) -> None:
        """Remove what shows a selection that has been overwritten, where nothing new has taken its place."""
        for name in () if self.report else ("what_to_label.png", "report.html"):
            (self.output_dir / name).unlink(missing_ok=True)
        if not self.tensorboard:
            remove_log(self.output_dir / "tensorboard", "select")

"""Strategies of what to label next: one a scoring method, and random choice. Needs monailabel."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from monai_kwtl.errors import KWTLError
from monai_kwtl.label.http_errors import answered, refuse
from monai_kwtl.label.settings import LabelSettings
from monai_kwtl.label.state.database import Lease, Scoring, Sidecar
from monai_kwtl.label.state.ranking import Pick, best_images, best_regions, unscored
from monai_kwtl.label.state.studies import Studies, image_id
from monai_kwtl.label.tasks.scoring import KWTLScoring, unlabelled
from monai_kwtl.windows.box import Box
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

__all__ = ["KWTLStrategy"]

logger = logging.getLogger("monai_kwtl")

MOST = 1000  # regions in one answer


class Ranked(NamedTuple):
    """Scores to choose by, how they stand, and which images have none."""

    items: list[dict[str, Any]]
    pool: list[ImageScores]
    status: str
    missing: int
    scoring: Scoring | None


def _whole_number(request: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise KWTLError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:40]!r}.")
    return value


class KWTLStrategy(Strategy):
    """Gives out images, regions of all images, or patches of one image, best first, each to one client at a time.

    Args:
        scoring: whose scores decide; None chooses at random.
        settings: of the app.
        studies: the images.
        sidecar: keeps scores and leases.
    """

    def __init__(
        self, scoring: KWTLScoring | None, settings: LabelSettings, studies: Studies, sidecar: Sidecar
    ) -> None:
        super().__init__("at random" if scoring is None else f"by score: {scoring.description}")
        self.scoring, self.settings, self.studies, self.sidecar = scoring, settings, studies, sidecar

    def __call__(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Say what to label next.

        Args:
            request: ``client_id``, whose leases these are; ``n``, how many; ``image``, for patches of that image, with
                ``patch_size`` [width, height] and ``page``; ``mode``, ``region`` for regions of all images instead of
                whole images; ``seed``, of random choice.
            datastore: not looked at.

        Returns:
            The first of ``batch``, and the ``batch``: each with ``id``, ``bbox`` [x, y, width, height], ``score`` and
            ``page`` of a multi-page file; ``status``, ``fresh``, ``stale`` or ``missing``, and how many images are
            ``unscored``.

        Raises:
            HTTPException: 400 for a request that makes no sense, 404 for an unknown image or when nothing is left, 409
                when nothing has been scored.
        """
        with answered():
            count = _whole_number(request, "n", 1, 1, MOST)
            seed = _whole_number(request, "seed", self.settings.seed, 0, 2**31 - 1)
            client = str(request.get("client_id") or "anonymous")[:100]
            mode = "patch" if request.get("image") else request.get("mode", "image")
            if mode not in ("image", "patch", "region"):
                raise KWTLError(f"mode must be image, region or patch, got {str(mode)[:40]!r}.")
            items = unlabelled(self.studies, self.sidecar)
            if mode == "patch":
                asked = self._page_of(request)
                items = [item for item in items if item in asked]
            if not items:
                what = "all of this image" if mode == "patch" else "every image"
                raise refuse(404, f"{what} is labelled: nothing is left.")
            ranked = self._ranked(items)
            if mode == "patch":
                ranked = self._patches(ranked, request)
            return self._answer(ranked, mode, count, client, seed)

    def _page_of(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        pages = self.studies.pages(str(request["image"]))
        if not pages:
            raise refuse(
                404, f"there is no image {str(request['image'])[:60]!r}; GET /datastore/?output=all lists them."
            )
        if request.get("page") is None:
            return pages
        found = [item for item in pages if item["page"] == request["page"]]
        if not found:
            raise refuse(404, f"{pages[0]['name']} has no page {str(request['page'])[:20]} (counted from 0).")
        return found

    # --- scores -------------------------------------------------------------------------------------------------------

    def _ranked(self, items: list[dict[str, Any]]) -> Ranked:
        """Return scores of the present weights if all have them, else of former ones if all have those, else any."""
        if self.scoring is None:
            pool = [unscored(item, self.settings.window, self.settings.step) for item in items]
            return Ranked(items, pool, "fresh", 0, None)
        present = self.scoring.scoring()
        former = [scoring for scoring in self.sidecar.scorings(present.method) if scoring != present]
        found: list[Ranked] = []
        for scoring in [present, *former]:
            scores = [self.sidecar.get(scoring, item) for item in items]
            there = [(item, one) for item, one in zip(items, scores, strict=True) if one is not None]
            status = "fresh" if scoring == present else "stale"
            missing = len(items) - len(there)
            if there:
                ranked = Ranked(*map(list, zip(*there, strict=True)), status, missing, scoring)
                if not missing:
                    return ranked
                found.append(ranked)
        if not found:
            what = f"status missing: nothing is scored by {present.method!r} yet"
            raise refuse(409, f"{what}; wait for what GET /scoring/ tells of, or POST /scoring/{present.method}.")
        return max(found, key=lambda ranked: len(ranked.items))._replace(status="missing")

    def _patches(self, ranked: Ranked, request: Mapping[str, Any]) -> Ranked:
        """Return scores of windows of the size that the client asks for."""
        size = request.get("patch_size")
        if size is None:
            return ranked
        if not isinstance(size, (list, tuple)) or len(size) != 2 or size[0] != size[1]:
            raise KWTLError(f"patch_size must be two equal whole numbers [width, height], got {str(size)[:40]}.")
        side = _whole_number({"patch_size": size[0]}, "patch_size", 0, 1, 2**20)
        if side == self.settings.window:
            return ranked
        step = max(1, round(side * self.settings.step / self.settings.window))
        pool = []
        for item, scores in zip(ranked.items, ranked.pool, strict=True):
            grid = WindowGrid(item["height"], item["width"], side, step)
            if ranked.scoring is None:
                pool.append(unscored(item, side, step))
                continue
            score = self.sidecar.score_map(ranked.scoring, item)
            if score is None:
                raise KWTLError(f"{item['name']} is too large for patches other than {self.settings.window} pixels.")
            blocks = grid.block_sums(score)
            pool.append(
                replace(
                    scores,
                    grid=grid,
                    blocks=blocks,
                    window_scores=grid.window_means(blocks),
                    foreground=None,
                    features=None,
                )
            )
        return ranked._replace(pool=pool)

    # --- leases -------------------------------------------------------------------------------------------------------

    def _answer(self, ranked: Ranked, mode: str, count: int, client: str, seed: int) -> dict[str, Any]:
        keys = [(item["sha256"], item["page"]) for item in ranked.items]
        with self.sidecar.leasing() as leases:
            known = self.sidecar.known()  # while nobody writes: a lease that ends here is noted as known
            live = leases.live()
            picks = self._picks(ranked, keys, known, live, mode, count, seed)
            if not picks:  # then what this client has already
                mine = [lease for lease in live if lease.client == client]
                others = [lease for lease in live if lease.client != client]
                picks = self._picks(ranked, keys, known, others, mode, count, seed) if mine else []
            for pick in picks:
                seconds = 60 * self.settings.lease_minutes
                leases.grant(client, mode, ranked.items[pick.image], pick.box, seconds)
        if not picks:
            raise refuse(404, "everything that is not labelled is with other clients: nothing is left to give out now.")
        batch = [self._entry(ranked.items[pick.image], pick) for pick in picks]
        answer = {**batch[0], "batch": batch, "status": ranked.status, "unscored": ranked.missing, "mode": mode}
        logger.info(f"{client} gets {', '.join(entry['id'] for entry in batch[:5])} ({ranked.status})")
        return answer

    def _picks(
        self,
        ranked: Ranked,
        keys: Sequence[tuple[str, int | None]],
        known: Mapping[tuple[str, int | None], list[Box]],
        leases: Sequence[Lease],
        mode: str,
        count: int,
        seed: int,
    ) -> list[Pick]:
        strategy = "random" if self.scoring is None else "balanced"
        out = {key: [lease for lease in leases if (lease.image, lease.page) == key] for key in keys}
        labelled = [known.get(key, []) for key in keys]
        if mode == "image":
            free = [number for number, key in enumerate(keys) if not out[key]]
            pool, excluded = [ranked.pool[n] for n in free], [labelled[n] for n in free]
            return [
                pick._replace(image=free[pick.image]) for pick in best_images(pool, excluded, count, strategy, seed)
            ]
        # an image that is out as a whole counts as taken, except for patches that are asked of that very image
        boxes = []
        for number, key in enumerate(keys):
            item = ranked.items[number]
            everything = [Box(0, 0, item["width"], item["height"])]
            entire = mode == "region" and any(lease.mode == "image" for lease in out[key])
            regions = [lease.box for lease in out[key] if lease.mode != "image"]
            boxes.append(everything if entire else [*labelled[number], *regions])
        return best_regions(ranked.pool, boxes, count, strategy, seed)

    @staticmethod
    def _entry(item: Mapping[str, Any], pick: Pick) -> dict[str, Any]:
        page = {} if item["page"] is None else {"page": item["page"]}
        return {"id": image_id(item["name"]), **page, "bbox": list(pick.box), "score": pick.score}

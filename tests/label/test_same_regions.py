"""The label server scores and chooses as the bundle and the Python functions do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from label_studies import SETTINGS, write_studies

from monai_kwtl.label.settings import LabelSettings
from monai_kwtl.label.state.database import Sidecar
from monai_kwtl.label.state.ranking import best_regions
from monai_kwtl.label.state.studies import Studies
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.label.tasks.scoring import KWTLScoring
from monai_kwtl.networks import choice
from monai_kwtl.pipeline import scoring
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.select import select_windows


@pytest.fixture
def scored(tmp_path, weights):
    """Settings, items and network of an app, and the scores that it keeps of them."""
    write_studies(tmp_path / "images")
    known = LabelSettings.__dataclass_fields__
    settings = LabelSettings(**{name: value for name, value in SETTINGS.items() if name in known})
    studies, sidecar = Studies(tmp_path / "images"), Sidecar(tmp_path / "scores.sqlite")
    models = ModelFolder(tmp_path / "app", "cpu")
    models.begin(weights, studies.items())
    method = KWTLScoring("kwtl", settings, studies, sidecar, models)
    method({})
    items = studies.items()
    return settings, items, models, [sidecar.get(method.scoring(), item) for item in items]


def test_the_server_has_the_scores_of_the_pipeline(scored):
    settings, items, models, kept = scored
    network = scoring.adapt(choice.load_network(models.current), items, adapt_norm=False).ready()
    inferer = scoring.tiles(settings.tile, settings.amp)
    scorer = scoring.window_scorer(settings.window, settings.step, features=True, inferer=inferer)
    for one, other in zip(kept, scoring.score(items, network, scorer), strict=True):
        assert np.array_equal(one.window_scores, other.window_scores)
        assert np.array_equal(one.features, other.features)


def test_the_server_gives_out_what_balanced_chooses(scored):
    _, _, _, kept = scored
    expected = select_windows(kept, "balanced", Budget(windows=10), 0)
    picks = best_regions(kept, [[]] * len(kept), 3)
    grids = [kept[number].grid for number, _ in expected[:3]]
    boxes = [(int(grid.x[w]), int(grid.y[w])) for grid, (_, w) in zip(grids, expected[:3], strict=True)]
    assert [(pick.image, pick.box.x, pick.box.y) for pick in picks] == [
        (number, *box) for (number, _), box in zip(expected[:3], boxes, strict=True)
    ]
    one_by_one = best_regions(kept, [[]] * len(kept), 1)
    assert one_by_one == picks[:1], "the first is the same however many are asked for"


def test_without_features_coverage_goes_on(scored):
    _, _, _, kept = scored
    plain = [replace(scores, features=None) for scores in kept]
    empty = [[] for _ in plain]
    assert best_regions(plain, empty, 4) == best_regions(plain, empty, 4, "coverage")

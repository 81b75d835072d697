"""Leaving one data set out, sharing of what experiments have in common, and the order of jobs."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from monai_kwtl.benchmark.plan.case import forget_data, source_names
from monai_kwtl.benchmark.plan.config import make_config
from monai_kwtl.benchmark.plan.methods import METHODS, VARIANTS
from monai_kwtl.benchmark.runs.jobs import experiments_of, jobs_of
from monai_kwtl.errors import KWTLError
from monai_kwtl.scoring.measures import MEASURES
from monai_kwtl.selection.strategies import STRATEGIES


def plan(options, **changes):
    """Jobs, and the job of each experiment by variant, method and budget."""
    jobs, results = jobs_of(experiments_of(make_config({**options, **changes})))
    return jobs, {(key.variant, key.method, key.budget): job for key, job in results.items()}


def test_methods_are_made_of_strategies_and_measures_that_exist():
    for method in METHODS.values():
        assert method.strategy is None or method.strategy in STRATEGIES
        assert method.measure is None or method.measure in MEASURES


def test_a_target_is_never_among_the_sources_of_its_network(options):
    config = make_config({**options, "targets": ["ours", "bright"]})
    assert source_names(config, "ours") == ["bright", "dark"]
    assert source_names(config, "bright") == ["dark", "ours"]
    assert source_names(make_config({**options, "sources": ["ours", "dark"]}), "ours") == ["dark"]
    for case, _ in experiments_of(config):
        assert case.target not in dict(case.meta_settings()["sources"])


def test_without_another_data_set_there_is_nothing_to_meta_train_on(options, data, tmp_path):
    with pytest.raises(KWTLError, match="no labelled data set besides ours"):
        source_names(make_config({**options, "sources": "ours"}), "ours")
    with pytest.raises(KWTLError, match="has no labelled data set 'other'; it has bright, dark, ours"):
        source_names(make_config({**options, "sources": "other"}), "ours")


def test_a_target_that_was_not_prepared_is_named(options):
    with pytest.raises(KWTLError, match="^targets: there is no data set 'EM' in .*; prepare it, or say where"):
        experiments_of(make_config({**options, "targets": "EM"}))


def test_a_budget_beyond_the_pool_is_refused_before_anything_runs(options):
    with pytest.raises(KWTLError, match="ours, shots 1000: .*the pool has only"):
        experiments_of(make_config({**options, "shots": [1, 1000]}))


def test_an_image_without_a_mask_is_refused(options, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "ours" / "labels" / "3.png").unlink()
    forget_data()
    with pytest.raises(KWTLError, match="1 images have no mask, first images/3.png"):
        experiments_of(make_config({**options, "data_dir": str(tmp_path / "data")}))


def test_networks_and_scores_are_made_once_and_before_what_needs_them(options):
    methods = ["top_k_soft", "top_k_hard", "coverage", "entropy", "foreground_random", "random", "full"]
    jobs, results = plan(options, splits=2, seeds=[0, 1], methods=methods, shots=[1, 2])
    counts = Counter(job.kind for job in jobs)
    # soft (with coverage), hard, entropy (with foreground_random) on each of 2 splits x 2 seeds
    assert counts == {"meta": 2, "pretext": 4, "scores": 12, "cell": 4 * (6 * 2 + 1)}
    seen = set()
    for job in jobs:
        assert set(job.needs) <= seen and job.size > 0
        seen.add(job.key)


def test_all_methods_begin_with_the_same_weights_and_see_batches_of_one_seed(options):
    methods = [name for name in METHODS if name != "pretext_only"]
    experiments = experiments_of(make_config({**options, "methods": methods, "variants": ["base", "source_only"]}))
    settings = [case.experiment_settings(key) for case, key in experiments]
    assert len({(found["start"], found["seed"], found["support_steps"]) for found in settings}) == 1


def test_splits_differ_in_the_seeds_of_their_trainings(options):
    experiments = experiments_of(make_config({**options, "splits": 3, "methods": "random"}))
    assert len({case.experiment_settings(key)["seed"] for case, key in experiments}) == 3


@pytest.mark.parametrize(
    ("variant", "method", "same"),
    [
        ("affine_views", "random", True),
        ("affine_views", "entropy", True),
        ("affine_views", "top_k_soft", False),
        ("source_only", "random", True),
        ("source_only", "entropy", False),
        ("kmeans", "random", False),
        ("kmeans", "pretext_only", False),
        ("quarter_windows", "random", False),
        ("quarter_windows", "full", True),
        ("exact", "coverage", True),
        ("exact", "top_k_soft", False),
        ("dense", "top_k_soft", True),
        ("running_norm", "random", False),
        ("transductive_norm", "pretext_only", False),
        ("weighted", "top_k_hard", False),
        ("weighted", "mc_dropout", True),
    ],
)
def test_a_variant_is_computed_anew_only_where_it_makes_a_difference(options, variant, method, same):
    _, results = plan(options, methods=[method], variants=["base", variant], windows_per_shot=8)
    base, other = (job for (name, _, _), job in sorted(results.items(), key=lambda item: item[0][0] != "base"))
    assert (base == other) == same


def test_every_variant_departs_from_base_for_some_method(options):
    methods = [name for name in METHODS if name != "mc_dropout"]
    jobs, results = plan(options, methods=methods, variants=list(VARIANTS), windows_per_shot=20)
    for variant in VARIANTS:
        other = {job for (name, _, _), job in results.items() if name == variant}
        base = {job for (name, _, _), job in results.items() if name == "base"}
        # of the tiny schedule, base is dense already
        assert (other == base) == (variant in ("base", "dense")), variant


def test_changed_images_and_changed_masks_have_other_keys(options, data, tmp_path):
    before = plan(options)[1]
    shutil.copytree(data, tmp_path / "data")
    options = {**options, "data_dir": str(tmp_path / "data")}
    assert plan(options)[1] == before  # where the data lie does not matter
    mask = tmp_path / "data" / "ours" / "labels" / "0.png"
    mask.write_bytes(mask.read_bytes() + b" ")
    forget_data()
    masks = plan(options)[1]
    source = tmp_path / "data" / "dark" / "images" / "0.png"
    source.write_bytes(source.read_bytes() + b" ")
    forget_data()
    sources = plan(options)[1]
    assert all(len({found[experiment] for found in (before, masks, sources)}) == 3 for experiment in before)

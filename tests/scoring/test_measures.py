"""Score maps are what their formulas say, in float64 by NumPy and SciPy, and the inferer is a plain loop over views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image, ImageEnhance, ImageOps
from scipy.spatial.distance import jensenshannon
from scipy.special import expit
from scipy.stats import entropy
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.scoring.measures import (
    MEASURES,
    bernoulli_entropy,
    consistency_map,
    entropy_map,
    foreground_weight,
    mc_dropout_map,
    view_disagreements,
)
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.transforms import AffineView
from monai_kwtl.transforms.functional import normalize

SMALL = (4, 8, 8, 16)


def logits(*shape, seed=0, scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def float64(tensor):
    return tensor.double().numpy()


def cross_entropy(target, z, weight=1.0):
    """-w t log p - (1 - t) log(1 - p), from probabilities, in float64."""
    return -weight * target * np.log(expit(z)) - (1 - target) * np.log(expit(-z))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = FCRN(features=SMALL).eval()
    nn.init.normal_(network.head.weight, std=0.3)
    return network


def picture(height=45, width=70, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (height, width), dtype=np.uint8)


def as_batch(*pictures):
    return torch.from_numpy(np.stack(pictures)[:, None])


@torch.no_grad()
def predict(network, grey):
    """Logits of one picture (H, W) in [0, 255], by the network alone."""
    x = torch.from_numpy((np.asarray(grey, dtype=np.float64) / 255 - 0.5) / 0.5)[None, None].float()
    return network(x)[0, 0].double().numpy()


# ---- formulas


def test_network_input_is_minus_one_to_one():
    grey = torch.arange(256, dtype=torch.uint8)
    expected = (np.arange(256) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(normalize(grey).numpy(), expected, atol=2e-7)
    assert grey.dtype == torch.uint8 and normalize(grey).dtype == torch.float32
    floats = torch.tensor([0.0, 127.5, 255.0])
    assert normalize(floats).tolist() == [-1.0, 0.0, 1.0]
    assert floats.tolist() == [0.0, 127.5, 255.0]  # not changed in place


def test_soft_disagreement():
    z, views = logits(2, 1, 5, 7), [logits(2, 1, 5, 7, seed=s) for s in (1, 2, 3)]
    target = expit(float64(z))
    expected = sum(cross_entropy(target, float64(v)) for v in views)
    np.testing.assert_allclose(consistency_map(z, views).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_hard_disagreement_takes_zero_logits_for_foreground():
    z, views = logits(2, 1, 5, 7), [logits(2, 1, 5, 7, seed=s) for s in (1, 2)]
    z[0, 0, 0, 0] = 0.0
    target = (float64(z) >= 0).astype(np.float64)
    assert target[0, 0, 0, 0] == 1
    expected = sum(cross_entropy(target, float64(v)) for v in views)
    np.testing.assert_allclose(consistency_map(z, views, measure="hard").numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("measure", ["soft", "hard"])
def test_foreground_weight_is_that_of_each_image(measure):
    z, views = logits(3, 1, 6, 9) - 1, [logits(3, 1, 6, 9, seed=s) for s in (1, 2)]
    z[2] = -1.0  # no foreground
    target = expit(float64(z)) if measure == "soft" else (float64(z) >= 0).astype(np.float64)
    for index in range(3):
        foreground = int((float64(z[index]) >= 0).sum())
        weight = np.clip((54 - foreground) / foreground, 1 / 50, 50) if foreground else 1.0
        expected = sum(cross_entropy(target[index], float64(v[index]), weight) for v in views)
        got = consistency_map(z, views, measure=measure, weighted=True)[index]
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("foreground", "expected"),
    [(0, 1.0), (1, 50.0), (3, 97 / 3), (20, 4.0), (50, 1.0), (80, 0.25), (99, 0.02), (100, 0.02)],
)
def test_weight_is_background_over_foreground_within_limits(foreground, expected):
    target = torch.zeros(100)
    target[:foreground] = 0.5
    weight = foreground_weight(target.reshape(1, 1, 4, 25))
    assert weight.shape == (1, 1, 1, 1)
    assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_jensen_shannon_divergence_of_two_is_that_of_scipy():
    z, view = logits(1, 1, 6, 9), logits(1, 1, 6, 9, seed=1)
    p, q = expit(float64(z)), expit(float64(view))
    expected = jensenshannon(np.stack([p, 1 - p]), np.stack([q, 1 - q]), axis=0) ** 2
    np.testing.assert_allclose(consistency_map(z, [view], measure="jsd").numpy(), expected, rtol=1e-4, atol=1e-6)


def test_jensen_shannon_divergence_of_several_is_entropy_of_mean_less_mean_entropy():
    stack = [logits(2, 1, 6, 9, seed=s) for s in range(4)]
    p = np.stack([expit(float64(z)) for z in stack])
    both = np.stack([p, 1 - p])
    expected = entropy(both.mean(axis=1), axis=0) - entropy(both, axis=0).mean(axis=0)
    got = consistency_map(stack[0], stack[1:], measure="jsd").numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_divergence_from_views_is_that_of_scipy():
    z, views = logits(1, 1, 6, 9), [logits(1, 1, 6, 9, seed=s) for s in (1, 2)]
    p, others = expit(float64(z)), [expit(float64(view)) for view in views]
    expected = sum(entropy(np.stack([p, 1 - p]), np.stack([q, 1 - q]), axis=0) for q in others)
    np.testing.assert_allclose(consistency_map(z, views, measure="kl").numpy(), expected, rtol=1e-3, atol=1e-5)


def test_entropy_is_that_of_scipy_and_as_exact_for_confident_foreground_as_for_background():
    z = torch.linspace(-30, 30, 6001)
    p, q = expit(float64(z)), expit(-float64(z))
    expected = entropy(np.stack([p, q]), axis=0)
    np.testing.assert_allclose(bernoulli_entropy(z).numpy(), expected, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(entropy_map(z).numpy(), expected, rtol=1e-4, atol=1e-12)
    assert torch.equal(entropy_map(z), entropy_map(-z))


@pytest.mark.parametrize("measure", ["soft", "hard", "kl", "jsd"])
@pytest.mark.parametrize("weighted", [False, True])
def test_extreme_logits_stay_finite(measure, weighted):
    values = torch.tensor([-1e30, -1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, 1e30])
    z, view = torch.meshgrid(values, values, indexing="ij")
    score = consistency_map(z[None, None], [view[None, None]], measure=measure, weighted=weighted)
    assert torch.isfinite(score).all() and score.min() >= 0
    assert torch.isfinite(entropy_map(values)).all() and entropy_map(values).min() >= 0
    if measure == "jsd":
        assert score.max() == pytest.approx(np.log(2), rel=1e-6)


def test_views_that_agree():
    z = logits(1, 1, 6, 9)
    own_entropy = entropy(np.stack([expit(float64(z)), expit(-float64(z))]), axis=0)
    np.testing.assert_allclose(consistency_map(z, [z, z, z]).numpy(), 3 * own_entropy, rtol=1e-5, atol=1e-6)
    for measure in ("kl", "jsd"):
        assert consistency_map(z, [z, z, z], measure=measure).abs().max() < 1e-6
    hard = -np.log(expit(np.abs(float64(z))))  # of the class that is predicted
    np.testing.assert_allclose(consistency_map(z, [z], measure="hard").numpy(), hard, rtol=1e-5, atol=1e-6)


def test_each_view_has_its_own_map_and_they_add_up():
    z, views = logits(1, 1, 6, 9), [logits(1, 1, 6, 9, seed=s) for s in (1, 2, 3)]
    maps = view_disagreements(z, views, target="soft", weighted=True)
    assert len(maps) == 3
    torch.testing.assert_close(sum(maps), consistency_map(z, views, weighted=True))
    alone = view_disagreements(z, views[1:2], target="soft", weighted=True)[0]
    torch.testing.assert_close(maps[1], alone)


def test_half_precision_logits_are_scored_in_float32():
    z, view = logits(1, 1, 6, 9), logits(1, 1, 6, 9, seed=1)
    for measure in ("soft", "hard", "kl", "jsd"):
        low = consistency_map(z.bfloat16(), [view.bfloat16()], measure=measure)
        assert low.dtype == torch.float32
        torch.testing.assert_close(
            low, consistency_map(z.bfloat16().float(), [view.bfloat16().float()], measure=measure)
        )


# ---- MC-dropout


def test_mc_dropout_is_seeded_and_leaves_the_network_alone(network):
    x = logits(1, 1, 24, 32)
    before = network(x)
    one, again, other = (mc_dropout_map(network, network, x, seed=s) for s in (4, 4, 5))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.min() >= 0 and one.max() <= np.float32(np.log(2)) + 1e-6
    assert torch.equal(network(x), before)
    assert not network.head._forward_pre_hooks and not network.training


def test_mc_dropout_does_not_touch_the_global_generator(network):
    state = torch.get_rng_state()
    mc_dropout_map(network, network, logits(1, 1, 16, 16), passes=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_mc_dropout_is_the_entropy_of_the_mean_prediction(network):
    x, seen = logits(1, 1, 24, 32), []

    def watched(inputs):
        seen.append(network(inputs))
        return seen[-1]

    got = mc_dropout_map(watched, network, x, passes=7, seed=1)
    assert len(seen) == 7 and not torch.equal(seen[0], seen[1])
    mean = np.mean([expit(float64(z.detach())) for z in seen], axis=0)
    np.testing.assert_allclose(got.numpy(), entropy(np.stack([mean, 1 - mean]), axis=0), rtol=1e-4, atol=1e-6)


def test_mc_dropout_drops_half_of_what_the_last_convolution_sees_and_doubles_the_rest(network):
    given = []
    handle = network.head.register_forward_hook(lambda _m, inputs, _o: given.append(inputs[0].clone()))
    x = logits(1, 1, 64, 64)
    mc_dropout_map(network, network, x, passes=1)
    handle.remove()
    with torch.no_grad():
        decoded = network.decoder(network.features(x))
    kept = given[0] != 0
    torch.testing.assert_close(given[0][kept], decoded[kept] * 2)
    assert 0.47 < kept[decoded > 0].float().mean() < 0.53


def test_mc_dropout_without_dropping_is_the_entropy(network):
    x = logits(1, 1, 24, 32)
    with torch.no_grad():
        expected = entropy_map(network(x))
    torch.testing.assert_close(mc_dropout_map(network, network, x, passes=3, rate=0.0), expected, rtol=1e-4, atol=1e-6)


def test_mc_dropout_removes_its_hook_when_the_network_fails(network):
    def fails(_inputs):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        mc_dropout_map(fails, network, logits(1, 1, 8, 8))
    assert not network.head._forward_pre_hooks


def test_mc_dropout_refuses_no_passes_and_networks_without_a_convolution(network):
    with pytest.raises(KWTLError, match="at least one pass"):
        mc_dropout_map(network, network, logits(1, 1, 8, 8), passes=0)
    with pytest.raises(KWTLError, match="convolution"):
        mc_dropout_map(nn.Identity(), nn.Identity(), logits(1, 1, 8, 8))


# ---- the inferer


@pytest.mark.parametrize("measure", ["soft", "hard"])
@pytest.mark.parametrize("weighted", [False, True])
def test_inferer_equals_a_plain_loop_over_the_views_of_pillow(network, measure, weighted):
    grey = picture(low=100, high=152)
    grey[0, :2] = (
        100,
        151,
    )  # stretched by 5, brightened and sharpened by 2: whole numbers, so that Pillow rounds nothing
    pil = Image.fromarray(grey)
    views = [
        ImageOps.autocontrast(pil),
        ImageEnhance.Brightness(pil).enhance(2),
        ImageEnhance.Sharpness(pil).enhance(2),
    ]
    own = predict(network, grey)
    target = expit(own) if measure == "soft" else (own >= 0).astype(np.float64)
    weight = np.clip((own < 0).mean() / (own >= 0).mean(), 1 / 50, 50) if weighted else 1.0
    expected = sum(cross_entropy(target, predict(network, view), weight) for view in views)
    got = ScoreMapInferer(measure=measure, psi=2.0, weighted=weighted)(as_batch(grey), network)
    np.testing.assert_allclose(got["score"][0, 0].numpy(), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(got["logits"][0, 0].numpy(), own, rtol=1e-4, atol=1e-5)
    assert not got["score"].requires_grad


def test_the_default_strength_is_close_to_pillows(network):
    grey = picture(low=20, high=230)
    pil = Image.fromarray(grey)
    enhanced = [ImageEnhance.Brightness(pil).enhance(1.3), ImageEnhance.Sharpness(pil).enhance(1.3)]
    own = predict(network, grey)
    expected = sum(cross_entropy(expit(own), predict(network, v)) for v in [ImageOps.autocontrast(pil), *enhanced])
    got = ScoreMapInferer()(as_batch(grey), network)["score"][0, 0].numpy()
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999
    assert got.mean() == pytest.approx(expected.mean(), rel=0.01)


def test_entropy_of_the_inferer_needs_one_forward_pass(network):
    grey, calls = picture(), []

    class Counted(nn.Module):
        stride = 8

        def forward(self, x):
            calls.append(x)
            return network(x)

    got = ScoreMapInferer(measure="entropy")(as_batch(grey), Counted())
    own = predict(network, grey)
    np.testing.assert_allclose(got["score"][0, 0], entropy(np.stack([expit(own), expit(-own)])), rtol=1e-3, atol=1e-6)
    assert len(calls) == 1


@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "mc_dropout"])
def test_two_images_at_once_are_scored_as_each_alone(network, measure):
    pictures = [picture(seed=1, low=30, high=90), picture(seed=2)]
    scorer = ScoreMapInferer(measure=measure, weighted=True)
    together = scorer(as_batch(*pictures), network)
    for index, grey in enumerate(pictures):
        alone = scorer(as_batch(grey), network)
        for name in ("score", "logits"):
            torch.testing.assert_close(together[name][index : index + 1], alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_meta_tensors_and_other_types_are_scored_as_uint8_tensors(network, measure):
    scorer, plain = ScoreMapInferer(measure=measure, seed=3), as_batch(picture())
    expected = scorer(plain, network)
    for given in (MetaTensor(plain.clone()), plain.float(), MetaTensor(plain.double())):
        for name, value in scorer(given, network).items():
            assert type(value) is torch.Tensor and value.dtype == torch.float32
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (37, 61)])
def test_maps_are_of_the_images_size_and_not_negative(network, measure, size):
    for grey in (picture(*size), np.zeros(size, dtype=np.uint8), np.full(size, 255, dtype=np.uint8)):
        maps = ScoreMapInferer(measure=measure)(as_batch(grey), network)
        assert maps["score"].shape == maps["logits"].shape == (1, 1, *size)
        assert torch.isfinite(maps["score"]).all() and maps["score"].min() >= 0


def test_tiles_do_not_change_scores(network):
    grey = as_batch(picture(150, 211))
    whole = ScoreMapInferer()(grey, network)["score"]
    torch.testing.assert_close(
        ScoreMapInferer(inferer=TiledInferer(tile=64))(grey, network)["score"], whole, rtol=1e-4, atol=1e-4
    )


def test_any_callables_are_views(network):
    grey = picture()
    scorer = ScoreMapInferer(views=[lambda x: 255.0 - x.float(), lambda x: x.float() * 0.5])
    own = predict(network, grey)
    expected = sum(cross_entropy(expit(own), predict(network, v)) for v in (255.0 - grey, grey * 0.5))
    np.testing.assert_allclose(scorer(as_batch(grey), network)["score"][0, 0], expected, rtol=1e-3, atol=1e-4)


def test_an_affine_view_counts_only_where_it_shows_the_image():
    class Constant(nn.Module):
        """The logit of a pixel is its network input, times ten."""

        stride = 1

        def forward(self, x):
            return x * 10

    grey = picture(40, 60)
    own = 10 * (grey / 127.5 - 1)
    view = AffineView(translate_fraction=0.25)  # by 10 rows and 15 columns: whole pixels
    got = ScoreMapInferer(views=[view])(as_batch(grey), Constant())["score"][0, 0].numpy()
    # a pointwise prediction mapped back is the same where the view shows something, and taken for the same elsewhere
    own_entropy = entropy(np.stack([expit(own), expit(-own)]))
    np.testing.assert_allclose(got, own_entropy, rtol=1e-2, atol=1e-3)


def test_affine_views_are_the_papers_ablation(network):
    scorer, grey = ScoreMapInferer(views="affine"), as_batch(picture(48, 64))
    assert [(v.rotate_degrees, v.translate_fraction) for v in scorer.views] == [(30.0, 0.0), (0.0, 0.3)]
    maps = scorer(grey, network)
    own = expit(maps["logits"][0, 0].double().numpy())
    hidden = ~np.logical_or(*(view.valid_mask((48, 64)).numpy() for view in scorer.views))
    assert 0 < hidden.sum() < hidden.size
    twice = 2 * entropy(np.stack([own, 1 - own]))
    np.testing.assert_allclose(maps["score"][0, 0].numpy()[hidden], twice[hidden], rtol=1e-3, atol=1e-5)
    shown = maps["score"][0, 0].numpy()[~hidden]
    assert not np.allclose(shown, twice[~hidden], rtol=1e-2)


def test_unknown_names_are_refused():
    with pytest.raises(KWTLError, match="unknown measure 'softt'.*soft, hard, kl, jsd, entropy, mc_dropout"):
        ScoreMapInferer(measure="softt")
    with pytest.raises(KWTLError, match="unknown views 'colour'"):
        ScoreMapInferer(views="colour")
    with pytest.raises(KWTLError, match="consistency measure"):
        consistency_map(logits(1, 1, 2, 2), [logits(1, 1, 2, 2)], measure="entropy")
    with pytest.raises(KWTLError, match="brightness"):
        ScoreMapInferer(psi=-1.0)

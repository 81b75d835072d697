"""The methods that are compared, and the ablations that a method is repeated under."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from monai_kwtl.scoring.measures import CONSISTENCY_MEASURES

__all__ = ["METHODS", "Method", "Tuning", "VARIANTS", "Variant"]


@dataclass(frozen=True)
class Method:
    """A way to choose windows.

    Args:
        strategy: a name in ``monai_kwtl.selection.strategies.STRATEGIES``; None where nothing is chosen.
        measure: what the pool is scored by, a name in ``monai_kwtl.scoring.measures.MEASURES``; None needs no scores.
        dense: whether it needs the score map of whole images, and so is never scored window by window.
        features: whether it compares windows by features of the network's latent.
        rounds: in how many rounds the budget is spent; from the second on the network tuned so far scores the pool.
        first: strategy of the first round, which then begins as the method of that name does.
    """

    strategy: str | None
    measure: str | None = None
    dense: bool = False
    features: bool = False
    rounds: int = 1
    first: str | None = None


METHODS: dict[str, Method] = {  # in the order of the tables
    "top_k_soft": Method("top_k", "soft"),
    "top_k_hard": Method("top_k", "hard"),
    "coverage": Method("coverage", "soft", dense=True),
    "entropy": Method("top_k", "entropy"),
    "mc_dropout": Method("top_k", "mc_dropout"),
    "random": Method("random"),
    "random_stratified": Method("stratified_random"),
    # needs the predicted foreground alone, which entropy gives with one forward pass an image
    "foreground_random": Method("foreground_random", "entropy", dense=True),
    "strided": Method("strided"),
    "top_k_kl": Method("top_k", "kl", dense=True),
    "top_k_jsd": Method("top_k", "jsd", dense=True),
    "power": Method("power", "kl", dense=True),
    "two_thirds": Method("two_thirds", "kl", dense=True),
    # the predicted foreground counts, which entropy gives
    "balanced": Method("balanced", "entropy", dense=True, features=True),
    "balanced_2_rounds": Method("balanced", "entropy", dense=True, features=True, rounds=2, first="balanced"),
    "balanced_3_rounds": Method("balanced", "entropy", dense=True, features=True, rounds=3, first="balanced"),
    "herding": Method("herding", "kl", dense=True, features=True),
    "herding_2_rounds": Method("herding", "kl", dense=True, features=True, rounds=2),
    "herding_3_rounds": Method("herding", "kl", dense=True, features=True, rounds=3),
    "random_then_coverage": Method("coverage", "kl", dense=True, rounds=2, first="random"),
    "random_then_power": Method("power", "kl", dense=True, rounds=2, first="random"),
    "random_then_foreground": Method("foreground_random", "entropy", dense=True, rounds=2, first="random"),
    "typical": Method("typical", features=True),
    "k_centre": Method("k_centre", features=True),
    "pretext_only": Method(None),  # no mask at all: where everyone begins
    "full": Method(None),  # every mask of the pool: the ceiling
}


@dataclass(frozen=True)
class Tuning:
    """A way to tune a network on masks and to ask for masks, where it is not the paper's.

    Args:
        loss: ``weighted`` or ``dice_bce``, as :func:`monai_kwtl.losses.loss_function` has them.
        foreground_weight: of the cross-entropy, as it has them, ``auto`` being the paper's for ``weighted``; ``pool``
            is one weight for all crops, from the foreground that the pretext network predicts in the pool.
        steps: times the steps, or epochs, of the schedule.
        rate: times the learning rate of the schedule.
        falling: whether the learning rate falls to 0 in a straight line, whatever the schedule does.
        photometric: whether grey values of crops are changed at random as well.
        matched: whether crops are drawn so that they show as much foreground as is predicted in the pool.
        reweighted: whether windows are drawn from by their importance, with which they are on average as the pool is
            (:func:`monai_kwtl.benchmark.experiments.importance.importance_weights`).
        teacher: whether a mean teacher also learns from the unlabelled pool.
        threshold: whether the probability from which on a pixel is foreground is chosen on the support set.
        flips: whether the mean over eight flips and turns of a test image is taken.
    """

    loss: str = "weighted"
    foreground_weight: str = "auto"
    steps: int = 1
    rate: int = 1
    falling: bool = False
    photometric: bool = False
    matched: bool = False
    reweighted: bool = False
    teacher: bool = False
    threshold: bool = False
    flips: bool = False

    def departures(self, training: bool = False) -> dict[str, object]:
        """Return the settings that are not the paper's; with ``training`` only those that tuned weights depend on."""
        default = {field.name: field.default for field in fields(self)}
        measured = ("threshold", "flips") if training else ()
        return {name: value for name, value in asdict(self).items() if value != default[name] and name not in measured}


@dataclass(frozen=True)
class Variant:
    """One departure from the protocol, for an ablation.

    Args:
        scores_with: ``pretext``, or ``source``: the meta-trained network scores the pool (figure 6a of the paper); the
            tuning on the selected windows begins with the pretext network all the same.
        views: ``intensity`` or ``affine`` (figure 6b).
        pseudo_labels: None: as the target's; ``kmeans`` (table 3).
        weighted: whether foreground counts with the weight of Eq. 4 in the scores.
        window: side of the windows over that of the configuration, in (0, 1]; the same pixels buy more small windows.
        share: of the windows of a shot (figures 4 and 5), in (0, 1].
        norm: batch-norm statistics of the networks that score and are measured: ``reestimated`` on the pool,
            ``running`` of their training; ``transductive``: measured with those of each test image itself, what the
            authors reported, and scored as ``reestimated``.
        exact: window by window (True) or dense (False); None: as the schedule.
        tuning: on the selected windows, and measuring.
    """

    scores_with: str = "pretext"
    views: str = "intensity"
    pseudo_labels: str | None = None
    weighted: bool = False
    window: float = 1.0
    share: float = 1.0
    norm: str = "reestimated"
    exact: bool | None = None
    tuning: Tuning = Tuning()

    def scoring(self, method: Method, exact: bool) -> dict[str, object]:
        """Return what of the variant matters to a method's scores: variants that agree in it share their scores.

        Args:
            method: of :data:`METHODS`, with a measure.
            exact: what the schedule says.
        """
        consistency = method.measure in CONSISTENCY_MEASURES
        return {
            "measure": method.measure,
            "views": self.views if consistency else None,
            "weighted": self.weighted and consistency,
            "exact": not method.dense and (exact if self.exact is None else self.exact),
            "norm": "reestimated" if self.norm == "transductive" else self.norm,
        }


VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "source_only": Variant(scores_with="source"),
    "affine_views": Variant(views="affine"),
    "kmeans": Variant(pseudo_labels="kmeans"),
    "weighted": Variant(weighted=True),
    "half_windows": Variant(share=0.5),
    "quarter_windows": Variant(share=0.25),
    "tenth_windows": Variant(share=0.1),
    "small_windows": Variant(window=0.5),
    "running_norm": Variant(norm="running"),
    "transductive_norm": Variant(norm="transductive"),
    "exact": Variant(exact=True),
    "dense": Variant(exact=False),
    "twice_the_steps": Variant(tuning=Tuning(steps=2)),
    "one_weight": Variant(tuning=Tuning(foreground_weight="dataset")),
    "pool_weight": Variant(tuning=Tuning(foreground_weight="pool")),
    "importance": Variant(tuning=Tuning(matched=True)),
    "window_weights": Variant(tuning=Tuning(reweighted=True)),
    "threshold": Variant(tuning=Tuning(threshold=True)),
    "dice_bce": Variant(tuning=Tuning("dice_bce")),
    "photometric": Variant(tuning=Tuning(photometric=True)),
    "flips": Variant(tuning=Tuning(flips=True)),
    "mean_teacher": Variant(tuning=Tuning(teacher=True)),
    "falling_rate": Variant(tuning=Tuning(falling=True)),
    "dice_bce_falling": Variant(tuning=Tuning("dice_bce", falling=True)),
    "dice_bce_falling_fast": Variant(tuning=Tuning("dice_bce", rate=10, falling=True)),
    "dice_bce_flips": Variant(tuning=Tuning("dice_bce", flips=True)),
    "dice_bce_long": Variant(tuning=Tuning("dice_bce", steps=2)),
    "dice_bce_long_weights": Variant(tuning=Tuning("dice_bce", steps=2, reweighted=True)),
    "dice_bce_long_teacher": Variant(tuning=Tuning("dice_bce", steps=2, teacher=True)),
    "source_dice_bce_long": Variant(scores_with="source", tuning=Tuning("dice_bce", steps=2)),
    "small_windows_dice_bce_long": Variant(window=0.5, tuning=Tuning("dice_bce", steps=2)),
    "recipe": Variant(tuning=Tuning("dice_bce", steps=2, photometric=True, flips=True)),
    "recipe_teacher": Variant(tuning=Tuning("dice_bce", steps=2, photometric=True, teacher=True, flips=True)),
}

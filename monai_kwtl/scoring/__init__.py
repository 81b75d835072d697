"""Uncertainty of a network's predictions, as scores of pixels and of windows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["contrast", "features", "measures", "score_map", "store", "tiles", "view_maps", "window_scores"],
    submod_attrs={
        "contrast": ["ContrastLevels", "levels_between", "window_ranges"],
        "features": ["WindowMeans", "window_features"],
        "measures": [
            "CONSISTENCY_MEASURES",
            "MEASURES",
            "bernoulli_entropy",
            "consistency_map",
            "entropy_map",
            "foreground_weight",
            "mc_dropout_map",
            "view_disagreements",
        ],
        "score_map": ["ScoreMapInferer"],
        "store": [
            "SCORES",
            "ScoreStore",
            "pack_maps",
            "pack_scores",
            "settings_hash",
            "to_bytes",
            "unpack",
            "unpack_map",
            "unpack_scores",
        ],
        "tiles": [
            "PredictedTile",
            "ScoredTile",
            "can_be_tiled",
            "latent_and_logits",
            "padded_tiles",
            "predicted_tiles",
            "scored_tiles",
        ],
        "view_maps": ["ViewMaps"],
        "window_scores": ["LARGEST_MAP", "WindowScoreInferer", "exact_window_scores", "prepare_image"],
    },
)

"""Choice of ranked regions by window scores within a budget; NumPy only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["balanced", "budget", "diversity", "greedy", "regions", "select", "strategies"],
    submod_attrs={
        "balanced": ["covariates"],
        "budget": ["Budget"],
        "diversity": [
            "features_of",
            "herding",
            "k_centre",
            "mostly_covered",
            "nearest_of",
            "pixels_covered",
            "principal_components",
            "typical",
            "weight_of_scores",
            "window_area",
        ],
        "greedy": ["Coverage", "TIE", "first_of_best", "ranked", "take_apart", "take_in_order"],
        "regions": ["Cost", "Region", "cost_of"],
        "select": ["check_free", "checked_budget", "cover", "select_regions", "select_windows"],
        "strategies": ["FEATURE_STRATEGIES", "MAP_STRATEGIES", "STRATEGIES"],
    },
)

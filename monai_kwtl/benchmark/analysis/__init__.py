"""Analysis of results: statistics, tables, figures and the page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["diagnosis", "differences", "figures", "layout", "page", "statistics", "tables"],
    submod_attrs={
        "diagnosis": ["COLUMNS", "by_foreground", "diagnose", "draw", "image_spread", "spread_of", "summary"],
        "differences": [
            "ablation_table",
            "area_difference_table",
            "area_table",
            "both_table",
            "comparison_matrix",
            "difference_table",
            "missing_table",
            "verdict_table",
            "window_table",
        ],
        "figures": ["LOOKS", "draw_budget_curves", "draw_variant_curves"],
        "layout": ["Column", "Table", "markdown_table", "shown"],
        "page": ["write_page"],
        "statistics": [
            "Comparison",
            "Spread",
            "area_under_curve",
            "bootstrap_interval",
            "compare",
            "paired_differences",
            "spread",
            "wilcoxon_p",
        ],
        "tables": [
            "Groups",
            "budget_table",
            "grouped",
            "paper_numbers",
            "pretext_table",
            "pseudo_label_table",
            "runs_of",
            "short_table",
            "time_table",
            "without_budget",
        ],
    },
)

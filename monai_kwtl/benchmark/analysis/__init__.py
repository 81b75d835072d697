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
        "layout": ["Table", "markdown_table", "shown"],
        "page": ["tables_of", "write_page"],
        "statistics": ["area_under_curve", "bootstrap_interval", "compare", "wilcoxon_p"],
        "tables": [
            "budget_table",
            "paper_numbers",
            "pretext_table",
            "pseudo_label_table",
            "short_table",
            "time_table",
            "without_budget",
        ],
    },
)

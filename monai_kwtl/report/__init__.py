"""Results for people: page, picture, TensorBoard log and console lines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "console",
        "entries",
        "overview",
        "page",
        "pictures",
        "pseudo_labels",
        "rounds",
        "tensorboard",
        "words",
    ],
    submod_attrs={
        "console": ["image_title", "report_settings", "summary_lines", "window_rows"],
        "entries": [
            "Detail",
            "cost_tiles",
            "detail_entry",
            "image_entry",
            "region_details",
            "region_entries",
            "score_range",
        ],
        "overview": ["group_by_image", "image_label", "overview_picture"],
        "page": ["write_report"],
        "pictures": [
            "PNG_EFFORT",
            "colourise",
            "data_uri",
            "for_display",
            "outline_path",
            "place_labels",
            "rank_colours",
            "shrink",
            "text_colour",
        ],
        "pseudo_labels": ["PseudoLabelPreview", "preview_sheet", "show_preview"],
        "rounds": ["rounds_picture"],
        "tensorboard": ["draw_selection", "panel"],
        "words": ["NEXT_STEP", "describe_settings", "score_name"],
    },
)

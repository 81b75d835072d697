"""State of the MONAI Label server: images, leases, scores, outlines, labels and weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["database", "labels", "outlines", "ranking", "studies", "weights"],
    submod_attrs={
        "database": ["Kept", "Lease", "SIDECAR_NAME", "Scoring", "Sidecar"],
        "labels": [
            "CONFIRM",
            "Imported",
            "MASK_SUFFIXES",
            "import_label",
            "mask_bytes",
            "read_masks",
            "whole",
            "write_masks",
        ],
        "outlines": ["OUTLINE_SUFFIXES", "Outlines", "geojson", "mask_outlines", "read_outlines", "xml"],
        "ranking": ["Pick", "best_images", "best_regions", "unscored", "without"],
        "studies": ["Studies", "image_id", "split_suffix"],
        "weights": ["ModelFolder"],
    },
)

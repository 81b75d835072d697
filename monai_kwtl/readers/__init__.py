"""Image files as pixels, whole or a rectangle at a time."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["decoding", "image_files", "luminance", "slides", "tiff", "tiff_regions"],
    submod_attrs={
        "decoding": [
            "ORIENTATION",
            "PIL_READER",
            "UnreadableError",
            "pillow_pixels",
            "quiet",
            "shown_size",
            "turn",
            "with_a_reason",
        ],
        "image_files": ["ImageFile", "SUFFIXES", "checked", "has_suffix", "open_image", "read_pixels"],
        "luminance": ["check_rescale", "to_grey", "to_uint8"],
        "slides": ["ImageInMemory", "Slide", "bands", "grey_range"],
        "tiff": ["TiffFile"],
        "tiff_regions": ["SegmentCache", "has_small_segments", "read_region"],
    },
)

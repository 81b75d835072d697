"""Inference over images of any size."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["flips", "memory", "tiled", "tiling"],
    submod_attrs={
        "flips": ["FlippedInferer", "flipped"],
        "memory": ["freed_memory_is_kept", "give_back_freed_memory", "keep_freed_memory", "tile_within"],
        "tiled": ["LARGEST_WHOLE", "Tile", "TiledInferer", "stride_of"],
        "tiling": ["HALOS", "exact_halo"],
    },
)

"""FCRN and the choice of other networks; weights, batch norm, device and arithmetic."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["autocast", "batch_norm", "choice", "device", "fcrn", "optimize", "parallel", "processors", "weights"],
    submod_attrs={
        "autocast": ["AutocastInferer", "autocast_choice", "native_bfloat16"],
        "batch_norm": [
            "batch_norm_layers",
            "batch_norm_statistics",
            "estimate_batch_norm_statistics",
            "set_batch_norm_statistics",
            "use_batch_statistics",
        ],
        "choice": [
            "grey_range",
            "has_latent",
            "load_network",
            "make_network",
            "network_for",
            "network_note",
            "read_network",
        ],
        "device": ["choose_device"],
        "fcrn": ["FCRN", "crop_to_size", "pad_to_multiple"],
        "optimize": [
            "FusedReluConvolution",
            "HalvingMaxPool",
            "channels_last",
            "fold_batch_norm",
            "fuse_rectifiers",
            "quick_pooling",
        ],
        "parallel": ["data_parallel", "unsynchronized", "unwrap"],
        "processors": ["instruction_set", "onednn_isa"],
        "weights": ["existing_checkpoint", "load_weights", "not_finite", "save_atomically", "start_sha256"],
    },
)

"""A folder as a pool of items; items as arrays; crops to train on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "crop_images",
        "crop_sampler",
        "crops",
        "folders",
        "loading",
        "pool",
        "pool_batches",
        "pseudo_labels",
        "sources",
        "splits",
    ],
    submod_attrs={
        "crop_images": ["CropImage", "draw_start"],
        "crop_sampler": ["CropSampler", "PLACES", "matching_chances"],
        "crops": ["CropDataset", "GridCropDataset", "crop_dataset", "prepare_crops"],
        "folders": ["base_name", "find_images"],
        "loading": ["LoadMicroscopyd", "describe_label_values", "read_image", "read_label", "support_hash"],
        "pool": ["labelled", "load_pool", "pool_hash", "scan_file", "scan_images", "unlabelled_pool"],
        "pool_batches": ["PoolPart", "pool_sample"],
        "pseudo_labels": ["choose_pseudo_label", "pseudo_labelled", "unlabelled_images"],
        "sources": ["load_sources", "simulated_sources", "source_crops", "source_folders", "sources_hash"],
        "splits": ["name_and_page", "split_pool_test"],
    },
)

"""Regions out to annotation tools, masks back in, and networks out to bioimage.io."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "annotation",
        "bioimageio",
        "coco",
        "geojson",
        "handout",
        "labelstudio",
        "masks",
        "png",
        "polygons",
        "predictions",
    ],
    submod_attrs={
        "annotation": ["Annotation", "CONFLICTS", "Handout", "files_below", "inner_name", "resolve"],
        "bioimageio": ["check_about", "predict", "torchscript", "write_model_package"],
        "coco": [
            "CocoImage",
            "decode_counts",
            "encode_counts",
            "paint_image",
            "read_cvat",
            "read_images",
            "rings_of",
            "unpack_counts",
            "write_cvat",
        ],
        "geojson": ["Feature", "feature_of", "paint_features", "read_features", "read_qupath", "write_qupath"],
        "handout": ["Imported", "TOOLS", "export_regions", "import_regions"],
        "labelstudio": ["decode_brush", "encode_brush", "read_labelstudio", "write_labelstudio"],
        "masks": ["write_masks"],
        "png": ["read_napari", "read_png", "write_napari", "write_png"],
        "polygons": [
            "Canvas",
            "Rings",
            "mask_polygons",
            "number_objects",
            "paint_rings",
            "ring_arrays",
            "runs_of",
        ],
        "predictions": ["predict_regions"],
    },
)

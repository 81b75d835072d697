"""Regions out to annotation tools and their masks back in: QuPath, CVAT, Label Studio, napari, PNG."""

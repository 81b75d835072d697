"""The paper's data sets, from the publishers' archives to the layout that the package reads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["archives", "build", "fetch", "recipes"],
    submod_attrs={
        "archives": ["Member", "open_archive"],
        "build": ["prepare"],
        "fetch": ["check_file", "is_url", "read_checksum"],
        "recipes": ["Checksum", "Part", "RECIPES", "Recipe"],
    },
)

"""What stages import, for the warm process that they are forked from."""

from __future__ import annotations

import importlib
import pkgutil

import monai_kwtl

for module in pkgutil.walk_packages(monai_kwtl.__path__, "monai_kwtl."):
    if ".label" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)

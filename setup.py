"""Name the packages of the wheel, which setup.cfg alone cannot: the code without the benchmark, and the bundle."""

from setuptools import find_packages, setup

code = find_packages(include=["monai_kwtl", "monai_kwtl.*"], exclude=["monai_kwtl.benchmark", "monai_kwtl.benchmark.*"])

# the bundle stays at the repository's root, where MONAI's tools want it; setup.cfg says which of its files go along
setup(packages=[*code, "monai_kwtl.bundles.kwtl"], package_dir={"monai_kwtl.bundles.kwtl": "bundles/kwtl"})

"""The project holds together: pins, overlays, versions, text files, scripts and the bundle checks."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from monai.networks.nets import BasicUNet
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import monai_kwtl

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles/kwtl"

# --- pins -------------------------------------------------------------------------------------------------------------


def _constraints() -> dict[str, Requirement]:
    """The pins that apply to this interpreter."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}


def _direct_requirements() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = config["options"]["install_requires"].split("\n")
    for extra in config["options.extras_require"].values():
        texts += extra.split("\n")
    return [Requirement(text) for text in texts if text.strip()]


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def test_every_package_we_need_is_pinned_to_one_version():
    pins = _constraints()
    queue = _direct_requirements()
    seen: set[str] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        # a CUDA build of PyTorch pins its own libraries exactly
        if str(requirement) in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(str(requirement))
        assert name in pins, f"{name} is not in constraints.txt"
        versions = [spec.version for spec in pins[name].specifier if spec.operator == "=="]
        assert len(versions) == 1 and "+" not in versions[0], f"{pins[name]} is not one exact version"
        assert requirement.specifier.contains(versions[0], prereleases=True), f"{pins[name]} against {requirement}"
        try:
            children = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        queue += [child for child in map(Requirement, children) if _applies(child, requirement.extras)]


def test_constraints_hold_plain_pins_and_nothing_else():
    pin = re.compile(r'[a-z0-9-]+==[\w.]+( ; python_version (<|>=) "3\.\d+")?')
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or pin.fullmatch(line), line


def test_every_package_of_the_label_server_is_pinned_once():
    lines = (ROOT / "label-constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    names = [canonicalize_name(pin.name) for pin in pins]
    assert names == sorted(set(names)) and "monailabel" in names
    assert not set(names) & _constraints().keys()
    for line in (ROOT / "label-requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            name = canonicalize_name(Requirement(line).name)
            assert name in names or name in _constraints(), f"{line} is pinned nowhere"


def test_metadata_states_the_pinned_versions():
    metadata = json.loads((BUNDLE / "configs/metadata.json").read_text())
    # the releases for the Python that the tests ran with, not those kept for older ones
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "python_version <" not in line]
    pins = dict(line.split(" ")[0].split("==") for line in lines if line[:1] != "#")
    stated = dict(metadata["required_packages_version"])
    assert stated.pop("monai-kwtl") == monai_kwtl.__version__
    for package, key in (("monai", "monai_version"), ("torch", "pytorch_version"), ("numpy", "numpy_version")):
        stated[package] = metadata[key]
    assert stated == {name: pins[name] for name in stated}


def test_data_files_of_the_package_are_installed_with_it():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = [pattern.strip() for pattern in config["options.package_data"]["*"].split(",")]
    files = [path for path in (ROOT / "monai_kwtl").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    left_out = [path.name for path in files if path.suffix != ".py" and not any(map(path.match, patterns))]
    assert not left_out


# --- overlays, versions, text files, scripts --------------------------------------------------------------------------


def _stage_keys() -> set[str]:
    """The flat keys of all stage configs; and MONAI's own arguments, which an args file may hold as well."""
    stages = [path for path in (BUNDLE / "configs").glob("*.json") if path.name != "metadata.json"]
    return {key for path in stages for key in json.loads(path.read_text())} | {"config_file", "meta_file", "_desc_"}


@pytest.mark.parametrize("overlay", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.name)
def test_every_overlay_key_exists_in_a_stage_config(overlay: Path):
    content = json.loads(overlay.read_text())
    assert set(content) <= _stage_keys()
    nested = [key for key, value in content.items() if isinstance(value, dict) and key != "_desc_"]
    assert not nested, f"overlays are flat: {nested}"


def test_the_version_is_the_same_everywhere():
    metadata = json.loads((BUNDLE / "configs/metadata.json").read_text())
    changelog = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert changelog and citation
    assert {metadata["version"], changelog[1], citation[1]} == {monai_kwtl.__version__}
    assert monai_kwtl.__version__ in metadata["changelog"]


def test_the_citation_names_the_paper_and_the_software():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "version", "license"} <= citation.keys()
    paper = citation["preferred-citation"]
    families = [author["family-names"] for author in paper["authors"]]
    assert families == ["Dawoud", "Bouazizi", "Ernst", "Carneiro", "Belagiannis"]
    assert (paper["type"], paper["year"]) == ("conference-paper", 2023)


def _tracked_texts() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of tracked files")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


# Written so that this file does not match itself; "somebody" is nobody's machine.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:(?:work|root|opt)/|(?:home|Users)/(?!some|user|you))\w")
REGISTRY_HOST = re.compile(r"\b(?:pypi|pythonhosted|npmjs|debian|anaconda|download[.]pytorch)[.](?:org|com)\b")


def test_no_machine_path_or_registry_host_in_tracked_files():
    found = []
    for path in _tracked_texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line) or REGISTRY_HOST.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    done = subprocess.run([bash, "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_licence_is_apache_in_both_places():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert (BUNDLE / "LICENSE").read_text() == text


# --- the bundle checks, on a stand-in bundle --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verifier() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_bundle", ROOT / "scripts/verify_bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A small bundle that passes every check but the one for train.json."""
    bundle = tmp_path / "stand in"
    for name in ("LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(BUNDLE / name, bundle / name)
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "features": [4, 4, 4, 4, 4, 4]}
    config = {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "imports": ["$import glob", "$import torch"],
        "dataset_dir": "missing",
        "output_dir": "out",
        "network_def": {"_target_": "BasicUNet", **arguments},
        "dataset": {"_target_": "Dataset", "data": "$sorted(glob.glob(@dataset_dir + '/images/*.png'))"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "amp": False,
        },
        "learning_rate": 1e-4,
        "run": ["$@evaluator.run()"],
    }
    (bundle / "configs/inference.json").write_text(json.dumps(config, indent=4) + "\n")
    (bundle / "models").mkdir()
    torch.save(BasicUNet(**arguments).state_dict(), bundle / "models/model.pt")
    return bundle


@pytest.fixture
def bundle_logging():
    """Put back the levels that a bundle's logging.conf sets."""
    names = ("monai_kwtl", "monai.bundle.scripts", "monai.bundle.workflows")
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}, indent=4) + "\n")


def _verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/verify_bundle.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sound_bundle_passes_all_checks_and_is_left_as_it_was(stand_in):
    before = {path: path.read_bytes() for path in stand_in.rglob("*") if path.is_file()}
    done = _verify(stand_in, "--without-train")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "all 10 checks passed"
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert {path: path.read_bytes() for path in stand_in.rglob("*") if path.is_file()} == before


def test_a_missing_train_config_is_a_failure_unless_left_out(verifier, stand_in):
    assert "7 files" in verifier.check_files(stand_in, with_train=False)
    with pytest.raises(verifier.BundleError, match="train.json"):
        verifier.check_files(stand_in, with_train=True)


def test_a_failed_check_gives_exit_status_1_and_a_count(verifier, tmp_path, bundle_logging, capsys):
    (tmp_path / "empty").mkdir()
    assert verifier.main([str(tmp_path / "empty")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL  required files") and "configs/metadata.json" in lines[0]
    assert re.fullmatch(r"\d+ of 11 checks failed", lines[-1])
    assert verifier.main([str(tmp_path / "nowhere")]) == 1


def test_code_and_large_files_are_found(verifier, stand_in):
    (stand_in / "docs/helper.py").write_text("")
    with pytest.raises(verifier.BundleError, match=r"docs/helper\.py"):
        verifier.check_no_code(stand_in)
    with (stand_in / "models/large.pt").open("wb") as file:
        file.truncate(26 * 2**20)
    with pytest.raises(verifier.BundleError, match=r"models/large\.pt"):
        verifier.check_sizes(stand_in)


@pytest.mark.parametrize("text", ['{\n  "a": 1\n}\n', '{"a": 1}', '{\n    "a": 1,\n    "a": 2\n}\n', "{"])
def test_json_that_is_laid_out_otherwise_is_found(verifier, stand_in, text: str):
    (stand_in / "configs/other.json").write_text(text)
    with pytest.raises(verifier.BundleError, match=r"configs/other\.json"):
        verifier.check_json_layout(stand_in)


def test_json_numbers_may_be_written_as_one_likes(verifier, stand_in):
    (stand_in / "configs/other.json").write_text('{\n    "rate": 1e-4,\n    "other": 1.50\n}\n')
    verifier.check_json_layout(stand_in)


@pytest.mark.parametrize("changes", [{"version": "9.9.9"}, {"changelog": {"0.0.1": "first"}}])
def test_a_version_without_changelog_or_other_than_the_package_is_found(verifier, stand_in, changes: dict):
    _edit(stand_in / "configs/metadata.json", **changes)
    with pytest.raises(verifier.BundleError, match="version"):
        verifier.check_version(stand_in)


@pytest.mark.parametrize(
    "changes",
    [{"required_packages_version": None}, {"task": 3}, {"supported_apps": []}, {"network_data_format": {"inputs": {}}}],
    ids=lambda changes: next(iter(changes)),
)
def test_metadata_against_the_schema_is_found(verifier, stand_in, tmp_path, changes: dict):
    _edit(stand_in / "configs/metadata.json", **changes)
    with pytest.raises(ValueError, match="Failed validating"):
        verifier.check_metadata(stand_in, tmp_path)


def test_missing_ids_are_all_named(verifier, stand_in, tmp_path, bundle_logging):
    _edit(stand_in / "configs/inference.json", evaluator=None, inferer=None)
    with pytest.raises(verifier.BundleError, match="evaluator, inferer"), verifier._quiet():
        verifier.check_properties(stand_in, tmp_path, "inference.json", "infer")


def test_channels_other_than_the_metadata_states_are_found(verifier, stand_in):
    network = {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "features": [4] * 6}
    _edit(stand_in / "configs/inference.json", network_def=network)
    with pytest.raises(ValueError, match="channel"):
        verifier.check_net_in_out(stand_in)


def test_weights_of_another_network_are_found(verifier, stand_in):
    torch.save({"weight": torch.zeros(1)}, stand_in / "models/model.pt")
    with pytest.raises(RuntimeError, match="state_dict"):
        verifier.check_weights(stand_in)


def test_our_bundle_passes_all_checks(verifier):
    done = _verify(BUNDLE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_logging_conf_prints_our_messages_and_nothing_of_monai():
    script = (
        "import logging, sys\n"
        "from monai.bundle import ConfigWorkflow\n"
        "ConfigWorkflow(config_file=sys.argv[1], meta_file=sys.argv[2], logging_file=sys.argv[3])\n"
        "logging.getLogger('ignite.engine.engine.SupervisedEvaluator').info('engine chatter')\n"
        "logging.getLogger('monai.bundle.scripts').info('input summary')\n"
        "logging.getLogger('monai_kwtl').info('ours')\n"
        "logging.getLogger('monai_kwtl').warning('our warning')\n"
        "logging.getLogger('elsewhere').warning('their warning')\n"
    )
    files = [str(BUNDLE / "configs" / name) for name in ("metadata.json", "metadata.json", "logging.conf")]
    done = subprocess.run([sys.executable, "-c", script, *files], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ours", "our warning", "their warning"]
    assert done.stderr == ""

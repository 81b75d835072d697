"""The package for bioimage.io: complete, read by others as it describes itself, and equal to our own inference."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import stage_here
import torch
import yaml
from PIL import Image

from monai_kwtl.cli.main import main
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.bioimageio import torchscript
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.synthetic import simulate

HEIGHT, WIDTH = 136, 200


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network with statistics of its own."""
    path = stage_here.random_weights(tmp_path_factory.mktemp("weights") / "model.pt", seed=3)
    network = FCRN()
    network.load_state_dict(torch.load(path, weights_only=True))
    network.train()
    with torch.no_grad():
        for number in range(40):
            image, _ = simulate("fluorescence", 64, 64, np.random.default_rng(number))
            network(torch.from_numpy(image / np.float32(127.5) - 1)[None, None])
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(np.zeros((40, 300), np.uint8)).save(folder / "a_too_low.png")
    image, _ = simulate("fluorescence", HEIGHT, WIDTH, np.random.default_rng(8))
    Image.fromarray(image).save(folder / "b.png")
    return folder


@pytest.fixture(scope="module")
def package(weights: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "cell.zip"
    given = ["export-model", str(weights), "--output", str(path), "--dataset_dir", str(images)]
    assert main([*given, "--author", "Ada Lovelace", "--author", "Grace Hopper", "--name", "Nuclei of ours"]) == 0
    return path


@pytest.fixture(scope="module")
def contents(package: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(package) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def rdf(contents: dict[str, bytes]) -> dict:
    return yaml.safe_load(contents["rdf.yaml"])


def references(node) -> list[dict]:
    """Everything in a description that names a file."""
    if isinstance(node, list):
        return [found for child in node for found in references(child)]
    if isinstance(node, dict):
        own = [node] if "source" in node else []
        return own + [found for child in node.values() for found in references(child)]
    return []


def run_as_described(rdf: dict, network, image: np.ndarray) -> np.ndarray:
    """What a program makes of an image that knows the description only."""
    for step in rdf["inputs"][0]["preprocessing"]:
        assert step["id"] == "scale_linear"
        image = image.astype(np.float64) * step["kwargs"]["gain"] + step["kwargs"]["offset"]
    with torch.no_grad():
        result = network(torch.from_numpy(image.astype(np.float32))).double().numpy()
    assert [step["id"] for step in rdf["outputs"][0]["postprocessing"]] == ["sigmoid"]
    return 1 / (1 + np.exp(-result))


def from_torchscript(contents: dict[str, bytes]):
    return torch.jit.load(io.BytesIO(contents["weights-torchscript.pt"]))


def from_state_dict(contents: dict[str, bytes], rdf: dict):
    described = rdf["weights"]["pytorch_state_dict"]
    module = ModuleType("networks_of_the_package")
    exec(compile(contents[described["architecture"]["source"]], "networks.py", "exec"), module.__dict__)
    network = getattr(module, described["architecture"]["callable"])()
    network.load_state_dict(torch.load(io.BytesIO(contents[described["source"]]), weights_only=True))
    return network.eval()


def test_every_file_is_there_and_has_its_hash(contents: dict[str, bytes], rdf: dict):
    named = references(rdf)
    assert len(named) == 6
    for reference in named:
        assert reference["source"] in contents
        if "sha256" in reference:
            assert hashlib.sha256(contents[reference["source"]]).hexdigest() == reference["sha256"]
    files = {reference["source"] for reference in named} | {rdf["documentation"], *rdf["covers"], "rdf.yaml"}
    assert files == set(contents)


def test_it_says_who_made_it_what_to_cite_and_how_to_use_it(contents: dict[str, bytes], rdf: dict, weights: Path):
    assert rdf["type"] == "model" and rdf["format_version"].startswith("0.5.")
    assert rdf["name"] == "Nuclei of ours" and rdf["license"] == "Apache-2.0"
    assert [author["name"] for author in rdf["authors"]] == ["Ada Lovelace", "Grace Hopper"]
    assert "Knowing What to Label" in rdf["cite"][0]["text"] and rdf["cite"][0]["doi"]
    page = contents["README.md"].decode()
    assert "batch-norm statistics are those stored in the weights" in " ".join(page.split())
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in page and "cut from the middle of b.png" in page
    with Image.open(io.BytesIO(contents["cover.png"])) as cover:
        assert cover.size == (512, 256) and len(contents["cover.png"]) < 500_000


def test_nothing_of_this_machine_is_in_it(contents: dict[str, bytes], images: Path):
    with zipfile.ZipFile(io.BytesIO(contents["weights-torchscript.pt"])) as archive:
        inner = {name: archive.read(name) for name in archive.namelist()}
    for name, content in {**contents, **inner}.items():
        for place in (str(Path(__file__).parents[2]), sys.prefix, str(images)):
            assert place.encode() not in content, (name, place)


def test_the_test_image_is_what_it_is_said_to_be(contents: dict[str, bytes], images: Path):
    given = np.load(io.BytesIO(contents["test_input.npy"]))
    assert given.dtype == np.float32 and given.shape == (1, 1, HEIGHT, WIDTH)
    assert np.array_equal(given[0, 0], np.asarray(Image.open(images / "b.png")))


@pytest.mark.parametrize("kind", ["torchscript", "pytorch_state_dict"])
def test_weights_give_the_test_output_as_described(contents: dict[str, bytes], rdf: dict, kind: str):
    network = from_torchscript(contents) if kind == "torchscript" else from_state_dict(contents, rdf)
    expected = np.load(io.BytesIO(contents["test_output.npy"]))
    assert expected.dtype == np.float32 and np.ptp(expected) > 0.2
    result = run_as_described(rdf, network, np.load(io.BytesIO(contents["test_input.npy"])))
    assert np.abs(result - expected).max() < 1e-5


@pytest.mark.parametrize("shape", [(64, 64), (128, 72), (97, 131)])
def test_torchscript_takes_images_of_any_size(contents: dict[str, bytes], weights: Path, shape: tuple[int, int]):
    network = FCRN().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    x = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(from_torchscript(contents)(x), network(x), atol=1e-5)


def test_the_mask_is_that_of_the_inference_stage(
    contents: dict[str, bytes], rdf: dict, images: Path, weights: Path, tmp_path: Path
):
    options = {"dataset_dir": images, "output_dir": tmp_path / "masks", "ckpt": weights, "adapt_norm": "false"}
    ended = stage_here.run("inference", **options, amp="false", device="cpu")
    assert ended.status == 0, ended.err
    ours = np.asarray(Image.open(tmp_path / "masks" / "b.png")) > 0
    image = np.asarray(Image.open(images / "b.png"))[None, None]
    theirs = run_as_described(rdf, from_torchscript(contents), image)[0, 0]
    assert 0.02 < ours.mean() < 0.98
    assert np.array_equal(ours, theirs > 0.5) or (np.abs(theirs[ours != (theirs > 0.5)] - 0.5) < 1e-5).all()


def test_statistics_are_those_of_the_weights(contents: dict[str, bytes], weights: Path):
    ours, theirs = (
        torch.load(io.BytesIO(b), weights_only=True) for b in (weights.read_bytes(), contents["weights.pt"])
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any("running_mean" in name and value.abs().max() > 0.1 for name, value in theirs.items())


def test_tiles_as_described_leave_no_seam(contents: dict[str, bytes], rdf: dict):
    y, x = rdf["outputs"][0]["axes"][2:]
    halo, network = y["halo"], from_torchscript(contents)
    assert y["halo"] == x["halo"] and rdf["inputs"][0]["axes"][2]["size"]["min"] > 2 * halo
    image = torch.randn(1, 1, 160, 240, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = network(image)
        for top, left in ((0, 0), (32, 64), (80, 160)):
            part = network(image[..., top : top + 80, left : left + 80])
            ends = (
                halo if top else 0,
                80 - (halo if top < 80 else 0),
                halo if left else 0,
                80 - (halo if left < 160 else 0),
            )
            inside = part[..., ends[0] : ends[1], ends[2] : ends[3]]
            same = whole[..., top + ends[0] : top + ends[1], left + ends[2] : left + ends[3]]
            assert torch.allclose(inside, same, atol=1e-4)


def test_without_images_a_simulated_one_does(weights: Path, tmp_path: Path, capsys):
    assert main(["export-model", str(weights), "--output", str(tmp_path / "a.zip")]) == 0
    assert main(["export-model", str(weights), "--output", str(tmp_path / "b.zip")]) == 0
    assert "simulated" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "a.zip") as a, zipfile.ZipFile(tmp_path / "b.zip") as b:
        assert np.load(io.BytesIO(a.read("test_input.npy"))).shape == (1, 1, 256, 256)
        same = [name for name in a.namelist() if a.read(name) == b.read(name)]
        assert {"test_input.npy", "test_output.npy", "README.md", "cover.png", "weights.pt"} <= set(same)


def test_what_is_there_is_replaced_by_force_only(weights: Path, tmp_path: Path):
    path = tmp_path / "cell.zip"
    path.write_bytes(b"precious")
    with pytest.raises(KWTLError, match=r"cell.zip is there already.*--force"):
        main(["export-model", str(weights), "--output", str(path)])
    assert path.read_bytes() == b"precious"
    assert main(["export-model", str(weights), "--output", str(path), "--force"]) == 0
    assert zipfile.is_zipfile(path) and [p.name for p in tmp_path.iterdir()] == ["cell.zip"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--output": "cell.tar"}, "must end in .zip"),
        ({"--output": "no/such/folder/cell.zip"}, "cannot write"),
        ({"--name": "a/b/c/d"}, "--name must be 5 to 128"),
        ({"--name": "abc"}, "--name must be"),
        ({"--author": "a/b"}, "--author must be a name"),
        ({"--license": "do what you like"}, "SPDX"),
        ({"--dataset_dir": "none/there"}, "there is no folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(weights: Path, tmp_path: Path, monkeypatch, change: dict, message: str):
    monkeypatch.chdir(tmp_path)
    options = {"--output": "cell.zip", **change}
    with pytest.raises(KWTLError, match=message) as error:
        main(["export-model", str(weights), *(word for pair in options.items() for word in pair)])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_images_that_are_too_small_and_weights_that_are_none(weights: Path, tmp_path: Path):
    Image.fromarray(np.zeros((63, 300), np.uint8)).save(tmp_path / "a.png")
    given = ["--output", str(tmp_path / "cell.zip")]
    with pytest.raises(KWTLError, match="64 pixels"):
        main(["export-model", str(weights), *given, "--dataset_dir", str(tmp_path)])
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(KWTLError, match="not a readable checkpoint"):
        main(["export-model", str(tmp_path / "model.pt"), *given])
    with pytest.raises(KWTLError, match="no checkpoint at"):
        main(["export-model", str(tmp_path / "none.pt"), *given])
    assert not (tmp_path / "cell.zip").exists()


def test_torchscript_leaves_the_network_usable():
    network = FCRN()
    torchscript(network)
    network.train()(torch.randn(1, 1, 16, 16)).sum().backward()


@pytest.mark.slow
def test_bioimageio_core_validates_and_runs_it(package: Path, tmp_path: Path):
    command = [sys.executable, "-m", "bioimageio.core", "test", str(package)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    said = " ".join((ended.stdout + ended.stderr).split())
    assert ended.returncode == 0, said
    assert "status passed" in said and said.count("Reproduce test outputs from test inputs") >= 2

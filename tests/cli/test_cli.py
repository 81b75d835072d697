"""The command kwtl says what it found, and of mistakes what to do, in a line and with exit status 1."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from stage_here import random_weights
from stage_process import CONFIGS, ROOT

import monai_kwtl
from monai_kwtl.cli import doctor, main, threads
from monai_kwtl.errors import KWTLError


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """The command sets it for its process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def kwtl(capsys, *arguments):
    """Run a command in this process; exit status, stdout and stderr."""
    try:
        status = main.main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


# --- how threads wait -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of PyTorch's other builds says it in other words")
def test_threads_of_a_command_sleep_while_they_wait(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true", "PYTHONPATH": str(ROOT)}
    program = "from monai_kwtl.cli.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "data", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    # by OpenMP itself, when it is loaded
    assert re.findall(r"OMP_WAIT_POLICY = '(\w+)'", ended.stderr) == ["PASSIVE"], ended.stderr


def test_threads_wait_as_the_user_chose(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


# --- the command line -------------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys):
    status, out, err = kwtl(capsys, "--help")
    assert (status, err) == (0, "")
    for name, (_, summary) in main.COMMANDS.items():
        assert re.search(rf"^\s+{name}\s", out, re.MULTILINE) and "".join(summary.split()) in "".join(out.split())


@pytest.mark.parametrize("command", list(main.COMMANDS))
def test_every_command_explains_itself(capsys, command):
    status, out, err = kwtl(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert f"usage: kwtl {command}" in out and main.COMMANDS[command][1][1:10] in out


def test_the_version_is_that_of_the_package(capsys):
    assert kwtl(capsys, "--version") == (0, f"kwtl {monai_kwtl.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the following arguments are required: command (see kwtl --help)"),
        (("dotcor",), "invalid choice: 'dotcor'"),
        (("data",), "the following arguments are required: dataset_dir (see kwtl data --help)"),
        (("data", "a", "b"), "unrecognized arguments: b (see kwtl --help)"),
        (("doctor", "--bundel", "x"), "unrecognized arguments: --bundel x"),
    ],
)
def test_mistakes_are_one_line_and_status_1(capsys, arguments, words):
    status, out, err = kwtl(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_errors_of_the_user_are_one_line(capsys, tmp_path):
    with pytest.raises(KWTLError) as error:
        main.main(["data", str(tmp_path / "none")])
    sys.excepthook(error.type, error.value, error.tb)  # as Python does at the end of the program
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: there is no folder {tmp_path / 'none'}") and err.count("\n") == 1


def test_the_program_is_called_kwtl():
    (program,) = importlib.metadata.entry_points(group="console_scripts", name="kwtl")
    assert program.load() is main.main


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, rng):
    """Four images of two sizes, a stack of three pages, and masks of two of them."""
    for name in ("images", "labels"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for number in range(4):
        pixels = rng.integers(0, 256, (20 + number // 3, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "images" / f"{number}.png")
    stack = rng.integers(0, 256, (3, 20, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "set" / "images" / "stack.tif", stack, photometric="minisblack")
    for number in (0, 3):
        mask = np.zeros((20 + number // 3, 30), np.uint8)
        mask[3:9, 4:8] = 255
        Image.fromarray(mask).save(tmp_path / "set" / "labels" / f"{number}.png")
    return tmp_path / "set"


def table(out):
    return [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines()]


def test_data_says_what_is_there(capsys, folder):
    status, out, err = kwtl(capsys, "data", folder)
    assert (status, err) == (0, "")
    assert table(out) == [
        ["images", "7 in 5 files"],
        ["size", "20 high, 30 wide: 6"],
        ["size", "21 high, 30 wide: 1"],
        ["masks", "2 of 7"],
    ]


def test_data_names_files_that_cannot_be_read(capsys, folder, caplog):
    (folder / "images" / "broken.png").write_bytes(b"no image")
    with caplog.at_level("WARNING", logger="monai_kwtl"):
        status, out, _ = kwtl(capsys, "data", folder)
    assert status == 0 and table(out)[0] == ["images", "7 in 5 files"]
    (message,) = caplog.messages
    assert "1 of 8 images cannot be read" in message and "images/broken.png" in message


def test_data_finds_masks_in_another_folder_and_says_how_it_takes_them(capsys, folder, tmp_path):
    shutil.copytree(folder / "labels", tmp_path / "masks")
    numbered = np.array(Image.open(tmp_path / "masks" / "0.png")) // 255 * 7
    Image.fromarray(numbered.astype(np.uint8)).save(tmp_path / "masks" / "1.png")
    status, out, _ = kwtl(capsys, "data", folder, "--labels", tmp_path / "masks")
    lines = out.splitlines()
    assert status == 0 and table(out)[3] == ["masks", "3 of 7"]
    assert lines[-1].startswith("masks hold other values than 0 and 255 (0, 7 in 1.png)")


def test_data_tells_the_commonest_sizes_and_counts_the_rest(capsys, tmp_path):
    for number in range(7):
        Image.fromarray(np.zeros((10 + number, 12), np.uint8)).save(tmp_path / f"{number}.png")
    Image.fromarray(np.zeros((16, 12), np.uint8)).save(tmp_path / "7.png")
    _, out, _ = kwtl(capsys, "data", tmp_path)
    sizes = [words for name, words in table(out) if name == "size"]
    assert sizes[0] == "16 high, 12 wide: 2" and len(sizes) == 6 and sizes[-1] == "and 2 others"
    assert table(out)[0] == ["images", "8"] and table(out)[-1] == ["masks", "0 of 8"]


def test_data_refuses_what_is_no_data_set(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments in ([tmp_path / "none"], [tmp_path / "empty"], [folder, "--labels", tmp_path / "empty"]):
        with pytest.raises(KWTLError):
            main.main(["data", *map(str, arguments)])


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path):
    """A bundle with weights."""
    shutil.copytree(CONFIGS, tmp_path / "bundle" / "configs")
    (tmp_path / "bundle" / "models").mkdir()
    random_weights(tmp_path / "bundle" / "models" / "model.pt")
    return tmp_path / "bundle"


def checks(out):
    """{what: (verdict, detail)} of the lines but the last."""
    lines = [re.match(r"(ok|note|WRONG)\s+(.+?)\s{2,}(.*)", line).groups() for line in out.splitlines()[:-1]]
    return {name: (verdict, detail) for verdict, name, detail in lines}


def test_doctor_finds_a_sound_installation_sound(capsys, sound):
    status, out, err = kwtl(capsys, "doctor", "--bundle", sound)
    assert (status, err) == (0, ""), out
    assert out.splitlines()[-1] == "everything works"
    found = checks(out)
    assert found["bundle"] == ("ok", str(sound)) and found["weights"] == ("ok", str(sound / "models" / "model.pt"))
    for name in ("torch", "monai", "numpy", "pytorch-ignite", "fire", "tensorboard"):
        assert found[name] == ("ok", importlib.metadata.version(name)), "also what monai needs for its extras"
    assert found["Python"][1] == ".".join(map(str, sys.version_info[:3]))
    assert found["current folder"] == ("ok", "can be written")
    assert {verdict for verdict, _ in found.values()} <= {"ok", "note"}


def _no_bundle(sound):
    shutil.rmtree(sound / "configs")


def _no_weights(sound):
    (sound / "models" / "model.pt").unlink()


def _other_weights(sound):
    torch.save({"a": torch.zeros(1)}, sound / "models" / "model.pt")


@pytest.mark.parametrize(
    ("damage", "what", "words"),
    [
        (_no_bundle, "bundle", "there is no bundle in .*: give its folder, which holds configs/, with --bundle"),
        (_no_weights, "weights", "there is no checkpoint at "),
        (_other_weights, "weights", "belongs to another network"),
    ],
)
def test_doctor_says_what_is_wrong_with_the_bundle(capsys, sound, damage, what, words):
    damage(sound)
    status, out, _ = kwtl(capsys, "doctor", "--bundle", sound)
    assert status == 1 and out.splitlines()[-1] == "1 to fix, see above"
    verdict, detail = checks(out)[what]
    assert verdict == "WRONG" and re.search(words, detail)


def test_doctor_looks_at_the_bundle_of_the_installation_from_any_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = kwtl(capsys, "doctor")
    assert checks(out)["bundle"] == ("ok", str(CONFIGS.parent))


def test_doctor_names_packages_that_are_missing_or_of_another_version(capsys, sound, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name in ("scipy", "fire"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"monai": "0.9.1", "numpy": "2.0.0rc1"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, out, _ = kwtl(capsys, "doctor", "--bundle", sound)
    found = checks(out)
    assert status == 1 and out.splitlines()[-1] == "4 to fix, see above"
    assert found["scipy"][0] == "WRONG" and found["scipy"][1].startswith("is not installed: pip install 'scipy")
    assert found["fire"][0] == "WRONG" and found["fire"][1].startswith("is not installed: pip install 'fire")
    assert found["monai"][0] == "WRONG"
    assert re.fullmatch(r"0\.9\.1: pip install 'monai\[.*fire.*\](>=1\.6\.1,<1\.7|<1\.7,>=1\.6\.1)'", found["monai"][1])
    assert found["numpy"] == ("WRONG", "2.0.0rc1: pip install 'numpy<3,>=2'")


def test_a_package_for_another_system_is_not_missed(monkeypatch):
    needs = {"monai-kwtl": ['none-such; sys_platform == "beos"', 'label-only; extra == "label"', "torch>=2.4"]}
    monkeypatch.setattr(importlib.metadata, "requires", needs.get)
    assert [name for _, name, _ in doctor.packages()] == ["torch"]


def test_doctor_names_the_device(monkeypatch):
    monkeypatch.setattr(doctor, "native_bfloat16", lambda device: False)
    monkeypatch.setattr(doctor, "choose_device", lambda: torch.device("cpu"))
    ((verdict, detail),) = [(v, d) for v, name, d in doctor.machine() if name == "device"]
    assert verdict == "note" and re.fullmatch(r"cpu, \d+ threads, float32 \(no native bfloat16\)", detail)
    monkeypatch.setattr(doctor, "native_bfloat16", lambda device: True)
    monkeypatch.setattr(doctor, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert ("ok", "device", "cuda, Some GPU, bfloat16") in doctor.machine()


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path, monkeypatch):
    def refused(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    found = {name: (verdict, detail) for verdict, name, detail in doctor.machine()}
    assert found["current folder"] == ("note", "cannot be written (Permission denied): give --output_dir elsewhere")

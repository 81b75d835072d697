from __future__ import annotations

import hashlib
import io
import struct
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from publishers import PUBLISHERS, bbbc005, png, sstem, tarred, tiff, tnbc, zipped

from monai_kwtl.benchmark.prepare.archives import open_archive
from monai_kwtl.benchmark.prepare.build import prepare
from monai_kwtl.benchmark.prepare.fetch import read_checksum
from monai_kwtl.benchmark.prepare.recipes import RECIPES
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError

ROOT = Path(__file__).resolve().parents[2]


def script():
    spec = util.spec_from_file_location("prepare_data", ROOT / "scripts/prepare_data.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Publisher:
    """A web server on the loopback: what it has at which path, and what it announces."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []

    def put(self, name: str, content: bytes, cut: bool = False) -> str:
        self.files[f"/{name}"] = content
        if cut:
            self.cut.add(f"/{name}")
        return f"{self.root}/{name}"


@pytest.fixture
def publisher(monkeypatch) -> Iterator[Publisher]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            state.asked.append(self.path)
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path in state.cut else content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    state.root = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def refused(call) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(KWTLError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PUBLISHERS)
def test_a_publishers_files_become_images_and_masks(name, publisher, tmp_path):
    contents, expected = PUBLISHERS[name]()
    sources = [publisher.put(f"{n}.bin", content) for n, content in enumerate(contents)]
    folder = tmp_path / name
    said: list[str] = []
    checksums = [read_checksum(sha256(content)) for content in contents]
    assert prepare(name, folder, sources, checksums, say=said.append) == len(expected)
    assert sorted(path.name for path in folder.iterdir()) == ["SOURCE.md", "images", "labels"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    found = {path.stem: path for path in (folder / "images").iterdir()}
    assert found.keys() == expected.keys() == {path.stem for path in (folder / "labels").glob("*.png")}
    for stem, (pixels, mask) in expected.items():
        read = tifffile.imread if found[stem].suffix == ".tif" else lambda path: np.asarray(Image.open(path))
        image = read(found[stem])
        assert image.dtype == pixels.dtype
        np.testing.assert_array_equal(image, pixels)
        with Image.open(folder / "labels" / f"{stem}.png") as label:
            assert label.mode == "L"
            np.testing.assert_array_equal(np.asarray(label), np.where(mask, 255, 0))
    assert any(f"the publisher's files make {RECIPES[name].count}" in line for line in said)
    assert all("label" in item for item in load_pool(folder))


def test_an_image_file_stays_as_it_is(tmp_path):
    files = {"stack1/raw/00.tif": tiff(np.full((9, 7), 3, np.uint8), description="by the publisher")}
    files["stack1/mitochondria/00.png"] = png(np.full((9, 7), 255, np.uint8))
    (tmp_path / "a.zip").write_bytes(zipped(files))
    prepare("ssTEM", tmp_path / "ssTEM", [str(tmp_path / "a.zip")])
    assert (tmp_path / "ssTEM/images/00.tif").read_bytes() == files["stack1/raw/00.tif"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives_are_read_as_well(mode, tmp_path):
    contents, expected = tnbc()
    with zipfile.ZipFile(io.BytesIO(contents[0])) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "a.tar").write_bytes(tarred(files, mode))
    assert prepare("TNBC", tmp_path / "TNBC", [str(tmp_path / "a.tar")]) == len(expected)


def test_source_md_says_what_was_taken_and_no_path_of_this_machine(tmp_path):
    contents, _ = tnbc()
    (tmp_path / "tnbc.zip").write_bytes(contents[0])
    prepare("TNBC", tmp_path / "TNBC", [str(tmp_path / "tnbc.zip")])
    text = (tmp_path / "TNBC/SOURCE.md").read_text()
    assert f"tnbc.zip ({sha256(contents[0])}, not checked)" in text
    assert "Naylor" in text and "3 images" in text and str(tmp_path) not in text


# --- what is refused --------------------------------------------------------------------------------------------------


def nothing_left(folder: Path, besides: set[str]) -> bool:
    return {path.name for path in folder.iterdir()} == besides


def bad_zip(name: str, mode: int | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo(name)
        if mode is not None:
            info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, b"somewhere else")
        for path, content in {"stack1/raw/00.tif": b"x"}.items():
            archive.writestr(path, content)
    return stream.getvalue()


def lying_zip(declared: int) -> bytes:
    """A ZIP whose directory declares another size than its member unpacks to."""
    content = bytearray(zipped({"stack1/raw/00.tif": bytes(1 << 20)}))
    for signature, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        at = content.index(signature) + place
        content[at : at + 4] = struct.pack("<I", declared)
    return bytes(content)


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def cut_tar_header(size: int) -> bytes:
    return tar_member("stack1/raw/00.tif", size=size).tobuf(tarfile.GNU_FORMAT)


GOOD = {"stack1/raw/00.tif": b"x"}
HOSTILE = {
    "zip traversal": (bad_zip("../../escaped.txt"), "leads out of it"),
    "zip traversal inside": (bad_zip("stack1/raw/../../../escaped.txt"), "leads out of it"),
    "zip traversal, Windows": (bad_zip("..\\escaped.txt"), "leads out of it"),
    "zip absolute": (bad_zip("/tmp/escaped.txt"), "absolute path"),
    "zip drive": (bad_zip("C:/escaped.txt"), "absolute path"),
    "zip symlink": (bad_zip("stack1/raw/01.tif", 0o120777), "no plain file"),
    "zip bomb": (lying_zip(0xFFFFFFF0), "would unpack to more than 2048 MiB"),
    "zip that unpacks to more than it says": (lying_zip(100), "broken or cut off"),
    "zip control character": (bad_zip("stack1/raw/\x1b[2J.tif"), "control characters"),
    "tar traversal": (tarred({"../escaped.txt": b"x"}), "leads out of it"),
    "tar absolute": (tarred({"/tmp/escaped.txt": b"x"}), "absolute path"),
    "tar symlink": (tarred(GOOD, members=(tar_member("a", tarfile.SYMTYPE, "/etc/passwd"),)), "no plain file"),
    "tar hard link": (tarred(GOOD, members=(tar_member("a", tarfile.LNKTYPE, "../b"),)), "no plain file"),
    "tar device": (tarred(GOOD, members=(tar_member("a", tarfile.CHRTYPE),)), "no plain file"),
    "tar bomb": (cut_tar_header(1 << 40), "would unpack to more than 2048 MiB"),
    "tar cut in a member": (cut_tar_header(1 << 20) + bytes(1024), "broken or cut off"),
    "tar cut between members": (tarred(GOOD, "w")[:1024], "broken or cut off"),
    "tar.gz cut": (tarred({"stack1/raw/00.tif": np.random.default_rng(0).bytes(9999)})[:-2000], "broken or cut off"),
    "tar.xz cut": (tarred({"stack1/raw/00.tif": np.random.default_rng(0).bytes(9999)}, "w:xz")[:-2000], "cut off"),
    "zip cut": (sstem()[0][0][:-100], "no ZIP or TAR archive, or cut off"),
    "no archive": (b"<html>not found</html>", "no ZIP or TAR archive, or cut off"),
    "empty": (b"", "no ZIP or TAR archive, or cut off"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_broken_archives_are_refused(case, tmp_path):
    content, said = HOSTILE[case]
    (tmp_path / "a.bin").write_bytes(content)
    message = refused(lambda: prepare("ssTEM", tmp_path / "deep" / "ssTEM", [str(tmp_path / "a.bin")]))
    assert said in message and "a.bin" in message
    assert not list((tmp_path / "deep").iterdir())
    assert not list(tmp_path.rglob("escaped*"))


def test_a_flipped_byte_is_found(tmp_path):
    content = bytearray(sstem()[0][0])
    content[content.index(b"raw/01.tif") + 60] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    assert "broken" in refused(lambda: prepare("ssTEM", tmp_path / "ssTEM", [str(tmp_path / "a.zip")]))
    assert nothing_left(tmp_path, {"a.zip"})


def test_members_are_not_held_in_memory_before_they_are_asked_for(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({"a": b"1", "b": b"22"}))
    with open_archive(tmp_path / "a.zip", 100, "a.zip") as members:
        assert [(member.path, member.size, member.read()) for member in members] == [("a", 1, b"1"), ("b", 2, b"22")]


def test_a_wrong_checksum_is_refused(publisher, tmp_path):
    source = publisher.put("a.zip", tnbc()[0][0])
    wrong = read_checksum("sha256:" + "0" * 64)
    message = refused(lambda: prepare("TNBC", tmp_path / "TNBC", [source], [wrong]))
    assert source in message and "sha256" in message and "0" * 64 in message
    assert nothing_left(tmp_path, set())


def test_the_publishers_known_checksum_is_checked(publisher, tmp_path, monkeypatch):
    recipe = RECIPES["TNBC"]
    part = recipe.parts[0].__class__(**{**recipe.parts[0].__dict__, "url": publisher.put("t.zip", tnbc()[0][0])})
    monkeypatch.setitem(RECIPES, "TNBC", recipe.__class__(**{**recipe.__dict__, "parts": (part,)}))
    assert "its md5 is" in refused(lambda: prepare("TNBC", tmp_path / "TNBC"))
    assert publisher.asked == ["/t.zip"] and nothing_left(tmp_path, set())


def test_a_download_that_breaks_off_is_refused(publisher, tmp_path):
    source = publisher.put("a.zip", tnbc()[0][0], cut=True)
    message = refused(lambda: prepare("TNBC", tmp_path / "TNBC", [source]))
    assert source in message and "bytes" in message
    assert nothing_left(tmp_path, set())


def test_a_file_that_is_not_there_is_said(publisher, tmp_path):
    assert "404" in refused(lambda: prepare("TNBC", tmp_path / "TNBC", [f"{publisher.root}/none.zip"]))
    assert "there is no file" in refused(lambda: prepare("TNBC", tmp_path / "TNBC", [str(tmp_path / "none.zip")]))
    assert "there is no file" in refused(lambda: prepare("TNBC", tmp_path / "TNBC", ["ftp://127.0.0.1/none.zip"]))
    assert nothing_left(tmp_path, set())


def test_a_server_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "cannot be fetched" in refused(lambda: prepare("TNBC", tmp_path / "TNBC", ["http://127.0.0.1:1/a.zip"]))


def test_a_download_beyond_the_limit_stops(publisher, tmp_path, monkeypatch):
    recipe = RECIPES["TNBC"]
    part = recipe.parts[0].__class__(**{**recipe.parts[0].__dict__, "limit": 100})
    monkeypatch.setitem(RECIPES, "TNBC", recipe.__class__(**{**recipe.__dict__, "parts": (part,)}))
    assert "more than" in refused(lambda: prepare("TNBC", tmp_path / "TNBC", [publisher.put("a", tnbc()[0][0])]))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there are no images"),
        ({"mitochondria/00.png": png(np.full((9, 7), 255, np.uint8))}, "there are no images"),
        ({"raw/00.tif": tiff(np.ones((9, 7), np.uint8))}, "there are no labels"),
        (
            {
                "raw/00.tif": tiff(np.ones((9, 7), np.uint8)),
                "raw/01.tif": tiff(np.ones((9, 7), np.uint8)),
                "mitochondria/00.png": png(np.full((9, 7), 255, np.uint8)),
            },
            "the image 01 has no mask",
        ),
        (
            {
                "raw/00.tif": tiff(np.ones((9, 7), np.uint8)),
                "mitochondria/00.png": png(np.full((7, 9), 255, np.uint8)),
            },
            "the mask of 00 is (7, 9), its image (9, 7)",
        ),
        (
            {"raw/00.tif": tiff(np.ones((9, 7), np.uint8)), "mitochondria/00.png": png(np.zeros((9, 7), np.uint8))},
            "no mask has any foreground",
        ),
        ({"raw/00.tif": b"no image at all"}, "00.tif in it cannot be read"),
        (
            {f"{folder}raw/00.tif": tiff(np.ones((9, 7), np.uint8)) for folder in ("a/stack1/", "b/stack1/")},
            "two images of the name 00",
        ),
        ({"raw/a:b.tif": tiff(np.ones((9, 7), np.uint8))}, "cannot be a file name everywhere"),
    ],
)
def test_archives_of_something_else_are_refused(files, said, tmp_path):
    named = {name if "stack1" in name else f"stack1/{name}": content for name, content in files.items()}
    (tmp_path / "a.zip").write_bytes(zipped(named or {"readme": b"x"}))
    assert said in refused(lambda: prepare("ssTEM", tmp_path / "ssTEM", [str(tmp_path / "a.zip")]))
    assert nothing_left(tmp_path, {"a.zip"})


def test_a_truncated_stack_is_refused(tmp_path):
    contents, _ = PUBLISHERS["EM"]()
    for name, content in zip(("i.tif", "l.tif"), (contents[0][:-900], contents[1]), strict=True):
        (tmp_path / name).write_bytes(content)
    message = refused(lambda: prepare("EM", tmp_path / "EM", [str(tmp_path / "i.tif"), str(tmp_path / "l.tif")]))
    assert "i.tif" in message and nothing_left(tmp_path, {"i.tif", "l.tif"})


# --- what is there already --------------------------------------------------------------------------------------------


def test_what_is_there_is_left_unless_told(tmp_path):
    (tmp_path / "a.zip").write_bytes(tnbc()[0][0])
    source, folder = [str(tmp_path / "a.zip")], tmp_path / "TNBC"
    prepare("TNBC", folder, source)
    (folder / "images/01_1.png").write_bytes(b"changed")
    assert "--overwrite" in refused(lambda: prepare("TNBC", folder, source))
    assert (folder / "images/01_1.png").read_bytes() == b"changed"
    prepare("TNBC", folder, source, overwrite=True)
    assert (folder / "images/01_1.png").read_bytes() != b"changed"
    assert nothing_left(tmp_path, {"a.zip", "TNBC"})


def test_what_is_there_survives_a_failure(tmp_path):
    (tmp_path / "a.zip").write_bytes(tnbc()[0][0])
    (tmp_path / "b.zip").write_bytes(tnbc()[0][0][:-50])
    prepare("TNBC", tmp_path / "TNBC", [str(tmp_path / "a.zip")])
    refused(lambda: prepare("TNBC", tmp_path / "TNBC", [str(tmp_path / "b.zip")], overwrite=True))
    assert len(list((tmp_path / "TNBC/images").iterdir())) == 3


def test_a_folder_with_other_things_is_never_overwritten(tmp_path):
    (tmp_path / "a.zip").write_bytes(tnbc()[0][0])
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("mine")
    message = refused(lambda: prepare("TNBC", home, [str(tmp_path / "a.zip")], overwrite=True))
    assert "thesis.tex" in message and (home / "thesis.tex").read_text() == "mine"
    assert "is a file" in refused(lambda: prepare("TNBC", home / "thesis.tex", overwrite=True))


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a.zip").write_bytes(tnbc()[0][0])
    (tmp_path / "TNBC").mkdir()
    assert prepare("TNBC", tmp_path / "TNBC", [str(tmp_path / "a.zip")]) == 3


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a.zip").write_bytes(tnbc()[0][0])
    assert "cannot write" in refused(lambda: prepare("TNBC", tmp_path / "a.zip" / "TNBC", [str(tmp_path / "a.zip")]))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["TNBC"], "give the data set and a folder"),
        (["B6", "out"], "there is no data set 'B6'"),
        (["B5", "out", "--source", "a.zip"], "B5 is made of 2 files, but --source was given 1 times"),
        (["TNBC", "out", "--checksum", "md5:" + "0" * 32], "give both"),
        (["TNBC", "out", "--source", "a.zip", "--checksum", "crc32:00000000"], "is no checksum"),
        (["TNBC", "out", "--source", "a.zip", "--checksum", "sha256:abc"], "is no checksum"),
        (["TNBC", "out", "--source", "none.zip"], "there is no file none.zip"),
        (["TNBC", "out", "--nonsense"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_1(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        status = script().main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 1 and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_makes_a_data_set(publisher, tmp_path, capsys):
    contents, _ = bbbc005()
    sources = [publisher.put(f"{n}.zip", content) for n, content in enumerate(contents)]
    arguments = [word for source in sources for word in ("--source", source)]
    for content in contents:
        arguments += ["--checksum", sha256(content)]
    assert script().main(["B5", str(tmp_path / "B5"), *arguments]) == 0
    assert f"2 images with masks in {tmp_path / 'B5'}" in capsys.readouterr().out


def test_the_list_names_every_file_and_nothing_is_fetched(capsys, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: sys.exit("fetched"))
    assert script().main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(part.url in said for recipe in RECIPES.values() for part in recipe.parts)


def test_every_set_of_the_paper_has_a_recipe():
    assert RECIPES.keys() == PUBLISHERS.keys()
    for recipe in RECIPES.values():
        assert all(part.url.startswith("https://") for part in recipe.parts)
        for part in recipe.parts:
            if part.checksum:
                assert read_checksum(f"{part.checksum.algorithm}:{part.checksum.digest}") == part.checksum

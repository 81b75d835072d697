"""Folders are listed in one order, masks matched by base name alone, and everything unclear is refused in one line."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from monai_kwtl.data.folders import base_name, find_images
from monai_kwtl.errors import KWTLError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def names(items):
    return [item["name"] for item in items]


def labels(items):
    return {Path(i["image"]).name: os.path.basename(i["label"]) for i in items if "label" in i}


def test_an_images_folder_counts_alone(tmp_path):
    touch(tmp_path, "flat.png", "images/b.png", "images/a.TIF", "images/inner/deep.png", "images/Thumbs.db")
    touch(tmp_path, "images/.hidden.png", "images/._a.TIF", "images/notes.txt")
    (tmp_path / "images/folder.png").mkdir()
    assert find_images(tmp_path) == [
        {"image": str(tmp_path / "images/a.TIF"), "name": "images/a.TIF", "page": None},
        {"image": str(tmp_path / "images/b.png"), "name": "images/b.png", "page": None},
    ]


def test_a_flat_folder_is_enough_and_every_suffix_is_known_in_any_case(tmp_path):
    every = ["a.PNG", "b.jpg", "c.JPEG", "d.bmp", "e.tif", "f.TIFF", "g.ome.tif", "h.nii", "i.Nii.GZ"]
    assert names(find_images(str(touch(tmp_path, *every)))) == every


def test_the_order_is_by_name_however_the_system_lists_them(tmp_path, monkeypatch):
    touch(tmp_path, "10.png", "9.png", "ä b.png", "B.png", "a.png")
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(listing(self))))
    assert names(find_images(tmp_path)) == sorted(["10.png", "9.png", "ä b.png", "B.png", "a.png"])


def test_links_count_also_those_that_lead_nowhere_and_pipes_do_not(tmp_path):
    touch(tmp_path, "elsewhere/real.png")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").symlink_to(tmp_path / "elsewhere/real.png")
    (data / "b.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(data / "c.png")
    assert names(find_images(data)) == ["a.png", "b.png"]


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_belong_to_images_by_base_name_never_by_position(tmp_path):
    touch(tmp_path, *(f"images/{n}.png" for n in "abc"), "labels/c.tif", "labels/a.PNG", "labels/z.png")
    assert labels(find_images(tmp_path)) == {"a.png": "a.PNG", "c.png": "c.tif"}


def test_a_flat_folder_may_have_labels_too_and_another_folder_may_be_named(tmp_path):
    touch(tmp_path, "a.png", "b.png", "labels/a.png", "mine/b.png")
    assert labels(find_images(tmp_path)) == {"a.png": "a.png"}
    assert labels(find_images(tmp_path, tmp_path / "mine")) == {"b.png": "b.png"}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("x.ome.tif", "x.png"),
        ("x.ome.tif", "x.ome.tif"),
        ("x.ome.tif", "x.ome.png"),
        ("v.nii.gz", "v.nii"),
        ("v.nii", "v.nii.gz"),
        ("a b (1).png", "a b (1).tif"),
        (unicodedata.normalize("NFD", "Zähler.png"), unicodedata.normalize("NFC", "Zähler.png")),
        ("a.b.png", "a.b.tif"),
    ],
)
def test_double_suffixes_spaces_and_umlauts_match(tmp_path, image, mask):
    touch(tmp_path, f"images/{image}", f"labels/{mask}")
    assert labels(find_images(tmp_path)) == {image: mask}


def test_base_names():
    assert [base_name(n) for n in ("images/03.png", "v.NII.gz", "x.ome.tif", "a.b.c")] == ["03", "v", "x.ome", "a.b"]


def test_a_labels_folder_without_masks_is_no_mistake_unless_it_was_named(tmp_path):
    touch(tmp_path, "images/a.png", "labels/readme.txt")
    assert labels(find_images(tmp_path)) == {}
    with pytest.raises(KWTLError, match=r"no masks in .*labels \(only \.txt\)"):
        find_images(tmp_path, tmp_path / "labels")


def test_twins_are_refused_only_where_masks_are_matched(tmp_path):
    touch(tmp_path, "images/a.png", "images/a.tif", "images/b.png")
    assert len(find_images(tmp_path)) == 3
    touch(tmp_path, "labels/b.png")
    with pytest.raises(KWTLError, match=r"images/a\.png and images/a\.tif have the same base name"):
        find_images(tmp_path)


def test_two_masks_of_one_image_are_refused(tmp_path):
    touch(tmp_path, "images/a.png", "labels/a.png", "labels/a.tif")
    with pytest.raises(KWTLError, match=r"labels/a\.png and a\.tif are both masks of images/a\.png"):
        find_images(tmp_path)


@pytest.mark.parametrize("named", [False, True])
def test_masks_that_match_nothing_are_refused(tmp_path, named):
    touch(tmp_path, "images/a.png", "labels/a_mask.png")
    with pytest.raises(KWTLError, match=r"a_mask\.png is there, a\.png or the like was looked for"):
        find_images(tmp_path, tmp_path / "labels" if named else None)


# --- bad folders ------------------------------------------------------------------------------------------------------


def test_folders_that_hold_no_images_say_what_they_hold(tmp_path):
    touch(tmp_path, "only/a.czi", "only/b.txt", "only/README", "only/.hidden.png", "file.png", "nested/deeper/a.png")
    touch(tmp_path, "inner/a.png", "mixed/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "inner/images").mkdir()
    for folder, words in (
        ("missing", "there is no folder"),
        ("file.png", "is a file"),
        ("empty", "it is empty"),
        ("nested", "only folders"),
        ("only", r"only \.czi, \.txt, README"),
        ("inner", "inner/images"),
    ):
        with pytest.raises(KWTLError, match=words) as error:
            find_images(tmp_path / folder)
        assert "\n" not in str(error.value) and "--dataset_dir" in str(error.value) or ".png, .jpg" in str(error.value)


def test_folders_of_masks_that_cannot_be(tmp_path):
    touch(tmp_path, "a.png", "labels.txt")
    (tmp_path / "nothing").mkdir()
    for folder, words in (
        ("missing", "there is no folder"),
        ("labels.txt", "is a file"),
        ("nothing", "no masks in"),
        (".", "the images themselves"),
    ):
        with pytest.raises(KWTLError, match=words):
            find_images(tmp_path, tmp_path / folder)

"""Export and import on full disks and in folders that cannot be written: a line, and nothing half-done."""

from __future__ import annotations

import subprocess
import sys

import pytest
from small_disks import file_limit, mounted
from test_work import files, save_masks

from monai_kwtl.cli.main import main
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.handout import TOOLS
from monai_kwtl.project.mask_index import read_record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits as on Linux")


@pytest.fixture
def masks(trip, true_mask, tmp_path):
    """A folder with the masks of all regions, imported."""
    assert main(["export", str(trip.selection), "--to", "png", "--output", str(tmp_path / "work")]) == 0
    save_masks(trip, tmp_path / "work" / "masks", true_mask)
    return tmp_path / "work"


@pytest.mark.parametrize("tool", TOOLS)
def test_an_export_that_does_not_fit_leaves_nothing(trip, tmp_path, tool):
    with mounted(tmp_path / "disk", 8192) as disk:
        (disk / "mine.txt").write_text("mine")
        with pytest.raises(KWTLError, match="work cannot be written .No space left on device.*--output"):
            main(["export", str(trip.selection), "--to", tool, "--output", str(disk / "work")])
        assert files(disk) == {"mine.txt": b"mine"} and len(list(disk.iterdir())) == 1


def test_an_import_that_does_not_fit_leaves_nothing(masks, tmp_path):
    with mounted(tmp_path / "disk", 8192) as disk:
        with pytest.raises(KWTLError, match="cannot be written .No space left on device.*--output"):
            main(["import", str(masks), "--from", "png", "--output", str(disk / "masks")])
        assert not files(disk)
        subprocess.run(["mount", "-o", "remount,size=1000000", str(disk)], check=True)
        assert main(["import", str(masks), "--from", "png", "--output", str(disk / "masks")]) == 0
        assert len(read_record(disk / "masks")) == 3


def test_masks_that_cannot_be_replaced_stay(trip, true_mask, masks, tmp_path):
    given = ["import", str(masks), "--from", "png", "--output", str(tmp_path / "masks")]
    assert main(given) == 0
    before = files(tmp_path / "masks")
    save_masks(trip, masks / "masks", lambda region: ~true_mask(region))
    for size in (60, 0):
        with file_limit(size), pytest.raises(KWTLError, match="cannot be written .File too large"):
            main([*given, "--force"])
        assert files(tmp_path / "masks") == before
    assert main([*given, "--force"]) == 0
    replaced = {name: content for name, content in files(tmp_path / "masks").items() if name.startswith("replaced/")}
    assert sorted(replaced.values()) == sorted(content for name, content in before.items() if name.endswith(".png"))


def test_a_folder_that_cannot_be_written_is_a_line(trip, masks, tmp_path):
    with mounted(tmp_path / "disk", 100_000) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for given in (
            ["export", str(trip.selection), "--to", "qupath", "--output", str(disk / "work")],
            ["import", str(masks), "--from", "png", "--output", str(disk / "masks")],
        ):
            with pytest.raises(KWTLError, match="cannot be written .Read-only file system.*--output"):
                main(given)

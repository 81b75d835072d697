"""What kwtl label says to wrong input, without a server; runs in any environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from label_studies import write_app, write_studies
from PIL import Image

from monai_kwtl.bundle.paths import find_bundle
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.client.app_folder import make_app
from monai_kwtl.label.client.client import put_labels
from monai_kwtl.label.client.doctor import app_checks, studies_checks
from monai_kwtl.label.client.launch import access_line, is_loopback, server_command, server_environment, server_token
from monai_kwtl.label.settings import LabelSettings, read_settings
from monai_kwtl.label.state.studies import Studies, image_id
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.networks.fcrn import FCRN


def test_the_commands_load_no_monailabel_and_no_server():
    script = (
        "import sys\nfrom monai_kwtl.cli.main import build_parser\nbuild_parser('label')\n"
        "import monai_kwtl.label.client.client, monai_kwtl.label.client.app_folder, monai_kwtl.label.client.launch\n"
        "assert not {'monailabel', 'fastapi', 'uvicorn'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_loopback_counts_as_closed(host, local):
    assert is_loopback(host) is local
    assert (server_token(host, None) is None) is local
    assert server_token(host, "x" * 16) == "x" * 16
    assert ("token" in access_line(host, server_token(host, None))) is not local
    assert ("this machine" in access_line(host, None)) is local


def test_the_server_listens_on_this_machine_alone_unless_told(tmp_path):
    from monai_kwtl.cli.main import build_parser

    options = build_parser("label").parse_args(["label", "start", "--studies", "x"])
    assert options.host == "127.0.0.1"
    command = server_command(tmp_path, tmp_path, options.host, 0)
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_the_users_environment_wins(monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_SESSIONS", "true")
    assert server_environment()["MONAI_LABEL_SESSIONS"] == "true"
    assert server_environment()["MONAI_LABEL_AUTO_UPDATE_SCORING"] == "false"


def test_an_address_of_another_machine_is_refused(tmp_path):
    with pytest.raises(KWTLError, match="cannot listen"):
        server_command(tmp_path, tmp_path, "203.0.113.7", 8000)


def test_ids_are_names_without_suffix():
    assert [image_id(n) for n in ("a.png", "images/a.b.PNG", "x.ome.tif", "v.nii.gz")] == ["a", "a.b", "x.ome", "v"]


def test_images_of_one_id_are_left_out_and_named_and_stop_no_others(tmp_path):
    write_studies(tmp_path, {"a.png": (40, 50), "a.tif": (40, 60), "b.png": (30, 20)})
    studies = Studies(tmp_path)
    assert [item["name"] for item in studies.items()] == ["b.png"]
    assert len(studies.unreadable) == 1 and "same id 'a'" in studies.unreadable[0]
    (tmp_path / "b.png").unlink()
    with pytest.raises(KWTLError, match="same id 'a'"):
        studies.items()


def test_an_image_that_cannot_be_read_is_named_once_and_tried_again_when_it_changes(tmp_path, caplog):
    write_studies(tmp_path, {"a.png": (40, 50), "b.png": (30, 20)})
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.tif").symlink_to(tmp_path / "nowhere")
    studies = Studies(tmp_path)
    for _ in range(3):
        assert [item["name"] for item in studies.items()] == ["a.png"]
    assert [reason.split()[0] for reason in studies.unreadable] == ["b.png", "c.png", "d.tif"]
    assert [record.getMessage().count("c.png") for record in caplog.records] == [1]
    (tmp_path / "b.png").write_bytes(whole)
    assert [item["name"] for item in studies.items()] == ["a.png", "b.png"]
    assert [reason.split()[0] for reason in studies.unreadable] == ["c.png", "d.tif"]
    assert not studies.pages("c") and studies.pages("b")


def test_images_are_looked_at_again_only_where_they_changed(tmp_path, monkeypatch):
    write_studies(tmp_path, {"a.png": (40, 50), "b.tif": (40, 60)})
    studies, looked = Studies(tmp_path), []
    from monai_kwtl.data import pool
    from monai_kwtl.label.state import studies as studies_module

    scan = pool.scan_file
    monkeypatch.setattr(studies_module, "scan_file", lambda item: looked.append(item["name"]) or scan(item))
    first = studies.items()
    assert studies.items() == first and sorted(looked) == ["a.png", "b.tif"]
    Image.new("L", (33, 22)).save(tmp_path / "a.png")
    assert (studies.items()[0]["height"], studies.items()[0]["width"]) == (22, 33) and len(looked) == 3


def test_an_app_is_made_once_and_then_the_users(tmp_path):
    make_app(tmp_path / "app", find_bundle())
    assert read_settings(tmp_path / "app") == LabelSettings()
    for name in ("main.py", "kwtl.json", "configs/train.json"):
        path = tmp_path / "app" / name
        path.write_text(path.read_text() + "\n")
    before = {path: path.read_bytes() for path in (tmp_path / "app").rglob("*.*")}
    make_app(tmp_path / "app", find_bundle())
    assert {path: path.read_bytes() for path in (tmp_path / "app").rglob("*.*")} == before


def test_a_folder_with_another_app_is_left_alone(tmp_path):
    (tmp_path / "main.py").write_text("print('mine')\n")
    with pytest.raises(KWTLError, match="holds another app"):
        make_app(tmp_path, find_bundle())
    assert (tmp_path / "main.py").read_text() == "print('mine')\n"


def test_weights_in_use_survive_a_start_with_the_same_and_are_not_replaced_by_others(tmp_path, weights):
    write_studies(tmp_path / "s", {"a.png": (40, 50)})
    app = write_app(tmp_path / "app", tmp_path / "s", weights)
    models = ModelFolder(app)
    trained = FCRN(spatial_dims=2, in_channels=1, out_channels=1)
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    (tmp_path / "trained.json").write_text('{"trained": true}')
    digest = models.publish(tmp_path / "trained.pt")
    assert models.begin(weights, Studies(tmp_path / "s").items()) is False
    assert models.sha256() == digest == ModelFolder(app).sha256()
    with pytest.raises(KWTLError, match="begun with other weights"):
        models.begin(tmp_path / "trained.pt", [])
    assert models.sha256() == digest


def test_the_network_in_use_follows_what_is_published(tmp_path, weights):
    write_studies(tmp_path / "s", {"a.png": (40, 50)})
    models = ModelFolder(write_app(tmp_path / "app", tmp_path / "s", weights))
    network, image = models.network(), torch.zeros(1, 1, 32, 40)
    assert models.network() is network
    torch.manual_seed(5)
    torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), tmp_path / "other.pt")
    (tmp_path / "other.json").write_text("{}")
    models.publish(tmp_path / "other.pt")
    with torch.no_grad():
        assert not torch.equal(models.network()(image), network(image))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"windw": 64}, "did you mean window"),
        ({"window": "wide"}, "window cannot be 'wide'"),
        ({"window": 64.5}, "window cannot be 64.5"),
        ({"weighted": "maybe"}, "true or false"),
        ({"seed": None}, "seed cannot be None"),
    ],
)
def test_wrong_settings_are_named(tmp_path, given, message):
    (tmp_path / "kwtl.json").write_text(json.dumps(given))
    with pytest.raises(KWTLError, match=message):
        read_settings(tmp_path)


def test_settings_of_the_command_line_come_as_text(tmp_path):
    settings = read_settings(
        tmp_path, {"window": "64", "weighted": "true", "rescale": "[0, 99]", "server_mode": "true"}
    )
    assert (settings.window, settings.weighted, settings.rescale) == (64, True, [0, 99])


def test_doctor_names_what_is_wrong_and_the_fix(tmp_path, weights):
    write_studies(tmp_path / "s", {"a.png": (40, 50)})
    app = write_app(tmp_path / "app", tmp_path / "s", weights)
    assert {verdict for verdict, _, _ in app_checks(str(app)) + studies_checks(str(tmp_path / "s"))} == {"ok"}
    (app / "main.py").unlink()
    (app / "model" / "kwtl.pt").write_bytes(b"broken")
    (tmp_path / "s" / "kwtl_scores.sqlite").write_bytes(b"no database" * 100)
    (tmp_path / "s" / "datastore_v2.json").write_text("{")
    checks = app_checks(str(app)) + studies_checks(str(tmp_path / "s"))
    wrong = {name: detail for verdict, name, detail in checks if verdict == "WRONG"}
    assert set(wrong) == {"app", "weights", "scores", "datastore"}
    assert all("\n" not in detail for detail in wrong.values())
    assert studies_checks(str(tmp_path / "nowhere"))[0][0] == "WRONG"


class Recorder:
    """Stands in for a server: notes the labels that are sent."""

    def __init__(self) -> None:
        self.sent: list[tuple] = []

    def put_label(self, identity: str, path: Path, params: dict) -> None:
        self.sent.append((identity, path.name, params))


def test_labels_are_found_by_region_by_image_and_in_coco(tmp_path):
    from monai_kwtl.project.selection_file import dump_selection
    from monai_kwtl.selection.regions import Region

    regions = [
        Region(1, "a.png", None, "a" * 64, 0, 5, 10, 10, 1.0),
        Region(2, "b.tif", 1, "b" * 64, 3, 0, 10, 10, 0.9),
        Region(3, "c.png", None, "c" * 64, 0, 0, 10, 10, 0.8),
        Region(4, "c.png", None, "c" * 64, 20, 0, 10, 10, 0.7),
        Region(5, "d.png", None, "d" * 64, 0, 0, 10, 10, 0.6),
        Region(6, "e.png", None, "e" * 64, 0, 0, 10, 10, 0.6),
    ]
    cost = {"windows": 6, "images": 5, "unique_pixels": 600}
    (tmp_path / "selection.json").write_text(dump_selection(regions, budget={"windows": 6}, cost=cost, created_with={}))
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in ("001_a_x0_y5.png", "002_b_p1_x3_y0.tif", "notes.txt"):
        (labels / name).write_bytes(b"")
    (labels / "c.geojson").write_text("{}")
    (labels / "instances_default.json").write_text(json.dumps({"images": [{"file_name": "d.png"}], "annotations": []}))
    server = Recorder()
    sent, missing = put_labels(server, tmp_path, labels, "me")
    assert sent == 5 and missing == ["006_e_x0_y0.png"]
    assert server.sent == [
        ("a", "001_a_x0_y5.png", {"region": [0, 5, 10, 10], "client_id": "me"}),
        ("b", "002_b_p1_x3_y0.tif", {"region": [3, 0, 10, 10], "client_id": "me", "page": 1}),
        ("c", "c.geojson", {"regions": [[0, 0, 10, 10], [20, 0, 10, 10]], "client_id": "me"}),
        ("d", "instances_default.json", {"regions": [[0, 0, 10, 10]], "client_id": "me"}),
    ]
    server.sent.clear()
    put_labels(server, tmp_path, labels, "me", ["empty"])
    assert [params["confirm"] for *_, params in server.sent] == [["empty"]] * 4
    (tmp_path / "none").mkdir()
    with pytest.raises(KWTLError, match=r"001_a_x0_y5\.png"):
        put_labels(server, tmp_path, tmp_path / "none", "me")

"""The whole cycle over REST, without a port: score, ask, segment, correct, send, train, ask again."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from label_studies import SETTINGS, SIZES, needs_monailabel
from PIL import Image

from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pool import load_pool
from monai_kwtl.exchange.polygons import paint_rings, ring_arrays
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.label.client.client import LabelServer
from monai_kwtl.label.state.database import Sidecar
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.transforms.functional import normalize

pytestmark = needs_monailabel

WINDOW = SETTINGS["window"]


def ask(client, strategy="kwtl", **params) -> dict:
    answer = client.post(f"/activelearning/{strategy}", json=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status: int) -> str:
    """The sentence of a refusal."""
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and "\n" not in detail and len(detail) > 20
    return detail


def score(client, method="kwtl") -> dict:
    answer = client.post(f"/scoring/{method}?run_sync=true", json={})
    assert answer.status_code == 200, answer.text
    return {name: answer.json()[name] for name in ("total", "executed", "skipped")}


def put(client, identity, mask, tag="final", name="m.png", **params):
    stream = io.BytesIO()
    if isinstance(mask, np.ndarray):
        Image.fromarray(mask.astype(np.uint8) * 255).save(stream, format="PNG")
    else:
        stream.write(mask)
    files, data = {"label": (name, stream.getvalue())}, {"params": json.dumps(params)}
    return client.put("/datastore/label", params={"image": identity, "tag": tag}, files=files, data=data)


def infer(client, identity, **params):
    query = {"image": identity, "output": "image"}
    return client.post("/infer/kwtl", params=query, data={"params": json.dumps(params)})


def score_maps(client, studies) -> dict[str, np.ndarray]:
    """The score map of each image, straight from the core."""
    network = ModelFolder(client.app_dir).network()
    maps = {}
    for item in load_pool(studies):
        image = torch.from_numpy(read_image(item))[None]
        maps[Path(item["name"]).stem] = ScoreMapInferer()(image, network)["score"][0, 0].numpy()
    return maps


def part(array, box):
    x, y, width, height = box
    return array[y : y + height, x : x + width]


def test_the_whole_cycle(client, studies, truth):
    assert score(client) == {"total": 4, "executed": 4, "skipped": 0}
    assert score(client) == {"total": 4, "executed": 0, "skipped": 4}

    first = ask(client, client_id="alice", n=2)
    assert first["status"] == "fresh" and first["unscored"] == 0
    assert first["id"] == first["batch"][0]["id"] and len(first["batch"]) == 2
    # the very pixels of the box have that score, columns and rows not mixed up
    maps = score_maps(client, studies)
    for entry in first["batch"]:
        assert part(maps[entry["id"]], entry["bbox"]).shape == (WINDOW, WINDOW)
        assert part(maps[entry["id"]], entry["bbox"]).mean() == pytest.approx(entry["score"], rel=1e-4)
    other = ask(client, client_id="bob", n=2)
    assert not {e["id"] for e in first["batch"]} & {e["id"] for e in other["batch"]}
    ranked = [entry["score"] for answer in (first, other) for entry in answer["batch"]]
    assert ranked == sorted(ranked, reverse=True)

    for name, size in SIZES.items():
        answer = infer(client, Path(name).stem)
        predicted = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert predicted.shape == size and predicted.dtype == np.uint8 and set(np.unique(predicted)) <= {0, 255}

    stream = io.BytesIO()
    Image.fromarray(truth[first["id"]].astype(np.uint8) * 255).save(stream, format="PNG", compress_level=1)
    assert put(client, first["id"], stream.getvalue()).status_code == 200
    stored = studies / "labels" / "final" / f"{first['id']}.png"
    assert stored.read_bytes() == stream.getvalue()

    before = client.get("/model/kwtl").content
    trained = client.post("/train/kwtl?run_sync=true", json={"tracking": "None", "steps": 2}).json()
    assert trained["images"] == 1 and trained["regions"] == 1 and trained["steps"] == 2
    assert trained["scoring"]["kwtl"]["executed"] == trained["scoring"]["kwtl"]["total"] == 3
    after = client.get("/model/kwtl").content
    assert before != after and ModelFolder(client.app_dir).sha256() == trained["model_sha256"]

    again = ask(client, client_id="alice", mode="region", n=1)
    assert again["status"] == "fresh" and again["id"] != first["id"]
    assert score(client) == {"total": 3, "executed": 0, "skipped": 3}


def test_patches_have_the_size_and_image_that_is_asked_for(client, studies):
    score(client)
    maps = score_maps(client, studies)
    boxes = []
    for _ in range(3):
        answer = ask(client, image="img2", patch_size=[40, 40], image_size=[170, 100], client_id="alice")
        assert answer["id"] == "img2" and answer["mode"] == "patch"
        x, y, width, height = answer["bbox"]
        assert (width, height) == (40, 40) and 0 <= x <= 170 - 40 and 0 <= y <= 100 - 40
        boxes.append(answer["bbox"])
    # the map is kept in 256 steps
    assert part(maps["img2"], boxes[0]).mean() == pytest.approx(ask_score(client, studies, boxes[0]), rel=0.02)
    taken = np.zeros((100, 170), dtype=bool)
    for box in boxes:  # the next patch is another one
        assert part(taken, box).mean() < 0.5
        part(taken, box)[:] = True
    best = max(part(maps["img2"], (x, y, 40, 40)).mean() for y in range(61) for x in range(131))
    assert part(maps["img2"], boxes[0]).mean() <= best
    assert part(maps["img2"], boxes[0]).mean() > 0.95 * best


def ask_score(client, studies, box) -> float:
    """The score that was answered for a box, which is the best of the image as nobody had it."""
    sidecar = Sidecar(studies / "kwtl_scores.sqlite")
    item = next(item for item in load_pool(studies) if item["name"].startswith("img2"))
    return float(part(sidecar.score_map(sidecar.scorings("kwtl")[0], item), box).mean())


def test_regions_of_all_images_do_not_overlap_much_and_count_to_the_end(client):
    score(client)
    answer = ask(client, mode="region", n=100, client_id="alice")
    assert 10 < len(answer["batch"]) < 100
    taken = {Path(name).stem: np.zeros(size, dtype=bool) for name, size in SIZES.items()}
    for entry in answer["batch"]:
        assert part(taken[entry["id"]], entry["bbox"]).mean() < 0.5
        part(taken[entry["id"]], entry["bbox"])[:] = True
    refused(client.post("/activelearning/kwtl", json={"mode": "region", "client_id": "bob"}), 404)
    # alice, who has them all, gets hers again
    assert ask(client, mode="region", n=1, client_id="alice")["batch"][0] == answer["batch"][0]


@pytest.mark.parametrize("strategy", ["entropy", "mc_dropout"])
def test_other_measures_stand_behind_the_same_interface(client, strategy):
    refused(client.post(f"/activelearning/{strategy}", json={}), 409)
    assert score(client, strategy) == {"total": 4, "executed": 4, "skipped": 0}
    answer = ask(client, strategy, n=4)
    assert answer["status"] == "fresh" and all(0 < entry["score"] < np.log(2) for entry in answer["batch"])
    # and kwtl still has no scores, and says so
    assert "missing" in refused(client.post("/activelearning/kwtl", json={}), 409)


def test_random_needs_no_scores_and_is_asked_for_by_name_only(client):
    answer = ask(client, "random", n=4, seed=3)
    assert {entry["id"] for entry in answer["batch"]} == {"img0", "img1", "img2", "img3"}
    assert all(entry["score"] is None for entry in answer["batch"])
    assert "missing" in refused(client.post("/activelearning/kwtl", json={}), 409)


def test_status_is_stale_with_former_weights_and_missing_with_a_new_image(client, studies, truth):
    score(client)
    put(client, "img0", truth["img0"])
    client.post("/train/kwtl?run_sync=true", json={"steps": 1, "rescore": False})
    assert ask(client, client_id="a")["status"] == "stale"
    assert score(client)["executed"] == 3
    assert ask(client, client_id="b")["status"] == "fresh"
    Image.fromarray(np.full((70, 80), 90, dtype=np.uint8)).save(studies / "new.png")
    answer = ask(client, client_id="c")
    assert answer["status"] == "missing" and answer["unscored"] == 1 and answer["id"] != "new"
    assert score(client) == {"total": 4, "executed": 1, "skipped": 3}
    assert ask(client, client_id="d")["status"] == "fresh"


def test_segmentations_are_those_of_the_core_in_every_form(client, studies):
    item = next(item for item in load_pool(studies) if item["name"] == "img1.png")
    network = ModelFolder(client.app_dir).network()
    with torch.no_grad():
        logits = TiledInferer()(normalize(torch.from_numpy(read_image(item))[None]), network)[0, 0].numpy()
    probability = 1 / (1 + np.exp(-logits))
    threshold = float(np.median(probability))  # of weights never trained: so that there is something on both sides
    expected = probability > threshold
    sure = np.abs(probability - threshold) > 1e-5
    read = {}
    for extension in (".png", ".tif"):
        content = infer(client, "img1", threshold=threshold, result_extension=extension).content
        read[extension] = np.asarray(Image.open(io.BytesIO(content))) > 0
    document = json.loads(infer(client, "img1", threshold=threshold, result_extension=".geojson").content)
    read[".geojson"] = np.zeros(expected.shape, dtype=bool)
    for feature in document["features"]:
        paint_rings(read[".geojson"], ring_arrays(feature["geometry"]["coordinates"]))
    for mask in read.values():
        assert np.array_equal(mask[sure], expected[sure])
    said = client.post(
        "/infer/kwtl?image=img1&output=json", data={"params": json.dumps({"polygons": True, "threshold": threshold})}
    ).json()
    assert said["geojson"] == document and said["foreground"] == pytest.approx(expected.mean(), abs=1e-3)


def test_qupath_gets_outlines_of_the_part_that_it_asks_for(client):
    request = {"location": [20, 30], "size": [40, 50], "params": {"threshold": 0.01}}
    answer = client.post("/infer/wsi_v2/kwtl?image=img2&output=asap", data={"wsi": json.dumps(request)})
    assert answer.status_code == 200 and b"<ASAP_Annotations>" in answer.content
    refused(client.post("/infer/wsi_v2/kwtl?image=img2&output=dsa", data={"wsi": "{}"}), 400)


def test_an_upload_is_segmented_as_well(client, studies):
    files = {"file": ("new.png", (studies / "img0.png").read_bytes())}
    answer = client.post("/infer/kwtl?output=image", files=files)
    assert answer.status_code == 200 and answer.content == infer(client, "img0").content


def test_outlines_become_masks_that_are_trained_on_where_they_are_known(client, studies, truth):
    score(client)
    answer = ask(client, image="img3", client_id="alice")
    box = answer["bbox"]
    ring = [[box[0] + 5, box[1] + 5], [box[0] + 25, box[1] + 5], [box[0] + 25, box[1] + 20], [box[0] + 5, box[1] + 20]]
    document = json.dumps({"type": "Polygon", "coordinates": [ring]}).encode()
    assert put(client, "img3", document, name="q.geojson", client_id="alice").status_code == 200
    mask = np.asarray(Image.open(studies / "labels/final/img3.png")) > 0
    assert mask.sum() == 20 * 15 and part(mask, box).sum() == 20 * 15
    assert (studies / "labels/final/img3.geojson").read_bytes() == document
    trained = client.post("/train/kwtl?run_sync=true", json={"steps": 1}).json()
    assert trained["pixels"] == WINDOW * WINDOW and trained["scoring"]["kwtl"]["total"] == 4
    following = ask(client, image="img3", client_id="alice")
    overlap = np.zeros(SIZES["img3.tif"], dtype=bool)
    part(overlap, box)[:] = True
    assert part(overlap, following["bbox"]).mean() < 0.5


def test_regions_one_by_one_make_one_mask(client, studies, truth):
    for box in ([0, 0, 40, 30], [100, 20, 50, 44]):
        assert put(client, "img3", part(truth["img3"], box), region=box).status_code == 200
    expected = np.zeros_like(truth["img3"])
    for box in ([0, 0, 40, 30], [100, 20, 50, 44]):
        part(expected, box)[:] = part(truth["img3"], box)
    assert np.array_equal(np.asarray(Image.open(studies / "labels/final/img3.png")) > 0, expected)
    assert client.post("/train/kwtl?run_sync=true", json={"steps": 1}).json()["pixels"] == 40 * 30 + 50 * 44


def test_a_mask_put_into_the_folder_by_hand_is_trained_on(client, studies, truth):
    Image.fromarray(truth["img1"].astype(np.uint8) * 255).save(studies / "labels/final/img1.png")
    assert client.post("/train/kwtl?run_sync=true", json={"steps": 1}).json()["pixels"] == truth["img1"].size


def test_a_label_that_cannot_be_used_changes_nothing(client, studies, truth):
    put(client, "img1", truth["img1"])
    stored = studies / "labels/final/img1.png"
    before, known = stored.read_bytes(), Sidecar(studies / "kwtl_scores.sqlite").known()
    refused(put(client, "img1", truth["img1"].T), 400)
    refused(put(client, "img1", b"no picture"), 400)
    refused(put(client, "img1", b"{}", name="a.geojson"), 400)
    refused(put(client, "img1", truth["img1"], name="a.exe"), 400)
    refused(put(client, "img1", truth["img1"], region=[0, 0, 5000, 5]), 400)
    refused(put(client, "nowhere", truth["img1"]), 404)
    assert stored.read_bytes() == before and Sidecar(studies / "kwtl_scores.sqlite").known() == known
    assert os.listdir(stored.parent) == ["img1.png"]


def test_a_label_of_another_kind_replaces_the_former_and_removing_it_forgets(client, studies, truth):
    put(client, "img1", truth["img1"])
    stream = io.BytesIO()
    Image.fromarray(truth["img1"].astype(np.uint8)).save(stream, format="TIFF")
    put(client, "img1", stream.getvalue(), name="m.tif")
    assert os.listdir(studies / "labels/final") == ["img1.tif"]
    assert client.delete("/datastore/label?id=img1&tag=final").status_code == 200
    assert Sidecar(studies / "kwtl_scores.sqlite").known() == {} and os.listdir(studies / "labels/final") == []
    refused(client.delete("/datastore/label?id=img1&tag=final"), 404)
    assert "nothing is labelled" in refused(client.post("/train/kwtl?run_sync=true", json={}), 400)


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".hidden", "a\\b", "/etc/x", " "])
def test_ids_and_tags_that_climb_out_of_the_folder_are_refused(client, studies, tmp_path, truth, name):
    ours = (".lock", "kwtl_scores.sqlite")  # whose first use may be any call
    before = sorted(str(path) for path in tmp_path.rglob("*") if not path.name.startswith(ours))
    refused(put(client, "img1", truth["img1"], tag=name), 400)
    image = (studies / "img1.png").read_bytes()
    refused(client.put("/datastore/image", params={"image": name}, files={"file": ("x.png", image)}), 400)
    assert put(client, name, truth["img1"]).status_code == 404
    assert infer(client, name).status_code == 404
    assert client.get("/datastore/image", params={"image": name}).status_code == 404
    assert client.post("/activelearning/kwtl", json={"image": name}).status_code == 404
    assert sorted(str(path) for path in tmp_path.rglob("*") if not path.name.startswith(ours)) == before


def test_files_outside_the_studies_are_not_read(client, studies, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(tmp_path / "secret.png")
    assert "no image" in refused(infer(client, str(tmp_path / "secret.png")), 404)
    assert "no image" in refused(infer(client, "../secret.png"), 404)
    refused(
        client.post("/infer/kwtl?image=img0", data={"params": json.dumps({"image": str(tmp_path / "secret.png")})}), 404
    )
    # a file of the same name as an id, in the folder where the server runs, does not take its place
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(tmp_path / "img0", format="PNG")
    assert np.asarray(Image.open(io.BytesIO(infer(client, "img0").content))).shape == SIZES["img0.png"]


def test_what_is_unknown_or_makes_no_sense_gets_a_sentence(client):
    score(client)
    refused(infer(client, "nowhere"), 404)
    refused(client.post("/infer/other?image=img0"), 404)
    refused(client.post("/train/other", json={}), 404)
    refused(client.post("/scoring/other?run_sync=true", json={}), 404)
    refused(client.post("/activelearning/other", json={}), 404)
    refused(client.post("/activelearning/kwtl", json={"image": "nowhere"}), 404)
    for params in ({"n": 0}, {"n": "many"}, {"n": 10**9}, {"mode": "all"}, {"seed": -1}):
        refused(client.post("/activelearning/kwtl", json=params), 400)
    for size in ([5], [5, 6], "big", [0, 0], [None, None]):
        refused(client.post("/activelearning/kwtl", json={"image": "img0", "patch_size": size}), 400)
    refused(infer(client, "img0", result_extension=".exe"), 400)
    refused(infer(client, "img0", threshold=2), 400)
    refused(infer(client, "img0", page=3), 400)
    refused(client.post("/infer/kwtl?image=img0", data={"params": "{broken"}), 400)
    refused(client.put("/datastore/image/info?image=nowhere", data={"info": "{}"}), 404)
    refused(client.delete("/datastore/image?id=nowhere"), 404)
    refused(client.get("/datastore/dataset"), 404)


def test_weights_cannot_be_replaced_by_an_upload_nor_images(client, studies):
    before = client.get("/model/kwtl").content
    refused(client.put("/model/kwtl", files={"file": ("model.pt", b"evil")}), 403)
    assert client.get("/model/kwtl").content == before
    image = (studies / "img1.png").read_bytes()
    refused(client.put("/datastore/image?image=img0", files={"file": ("x.png", image)}), 409)
    assert client.put("/datastore/image?image=img9", files={"file": ("x.png", image)}).status_code == 200
    assert (studies / "img9.png").read_bytes() == image


@pytest.mark.parametrize("save", [True, "true", 1])
@pytest.mark.parametrize("tag", ["final", "FINAL", " final"])
def test_a_prediction_never_replaces_an_experts_label(client, studies, truth, save, tag):
    put(client, "img1", truth["img1"])
    stored = studies / "labels/final/img1.png"
    before = stored.read_bytes()
    for identity in ("img1", "img0"):  # nor becomes one
        assert "prediction" in refused(infer(client, identity, save_label=save, label_tag=tag, threshold=0.5), 400)
    assert stored.read_bytes() == before and os.listdir(stored.parent) == ["img1.png"]


def test_a_prediction_is_kept_under_its_own_tag(client, studies, truth):
    put(client, "img1", truth["img1"])
    before = (studies / "labels/final/img1.png").read_bytes()
    params = {"save_label": True, "label_tag": "original", "threshold": 0.01}
    answer = client.post("/infer/kwtl?image=img1&output=json", data={"params": json.dumps(params)})
    assert answer.status_code == 200, answer.text
    assert (studies / "labels/original/img1.png").is_file()
    assert (studies / "labels/final/img1.png").read_bytes() == before


def test_an_image_that_cannot_be_read_is_one_images_trouble(client, studies, truth):
    score(client)
    good = (studies / "img0.png").read_bytes()
    (studies / "zero.png").write_bytes(b"")
    (studies / "half.png").write_bytes(good[: len(good) // 2])
    assert "cannot be read" in refused(client.put("/datastore/image?image=no", files={"file": ("x.png", b"?")}), 400)
    assert not list(studies.glob("no.*"))
    assert score(client)["total"] == 4
    assert ask(client, client_id="a")["id"].startswith("img")
    assert infer(client, "img0").status_code == 200
    assert put(client, "img1", truth["img1"]).status_code == 200
    assert "cannot be read" in refused(put(client, "half", truth["img0"]), 400)
    assert "cannot be read" in refused(infer(client, "half"), 400)
    named = client.get("/info/").json()["datastore"]["unreadable"]
    assert [reason.split()[0] for reason in named] == ["half.png", "zero.png"]
    (studies / "half.png").write_bytes(good)
    assert score(client) == {"total": 4, "executed": 0, "skipped": 4}  # the same bytes as img0's, which has scores
    assert [r.split()[0] for r in client.get("/info/").json()["datastore"]["unreadable"]] == ["zero.png"]


def test_an_image_of_which_one_region_is_labelled_is_not_complete(client, truth):
    assert put(client, "img3", part(truth["img3"], [0, 0, 150, 60]), region=[0, 0, 150, 60]).status_code == 200
    status = client.get("/datastore/").json()
    assert status["completed"] == 0 and status["in_part"] == 1
    assert put(client, "img3", truth["img3"], whole_image=True).status_code == 200
    status = client.get("/datastore/").json()
    assert status["completed"] == 1 and status["in_part"] == 0


def test_an_interrupted_training_is_named(client, truth):
    put(client, "img0", truth["img0"])
    folder = ModelFolder(client.app_dir).next_training({"steps": 2})
    assert client.get("/info/").json()["train_stats"]["kwtl"]["interrupted"] == folder.name
    assert client.post("/train/kwtl?run_sync=true", json={"resume": True}).json()["steps"] == 2
    assert "interrupted" not in client.get("/info/").json()["train_stats"]["kwtl"]
    assert "nothing to resume" in refused(client.post("/train/kwtl?run_sync=true", json={"resume": True}), 400)


def test_masks_that_look_like_none_are_refused_over_rest(client, studies, truth):
    picture = (studies / "img0.png").read_bytes()
    assert "confirm" in refused(put(client, "img0", picture), 400)
    assert "confirm" in refused(put(client, "img0", ~truth["img0"]), 400)
    assert "confirm" in refused(put(client, "img0", truth["img0"] & False), 400)
    assert os.listdir(studies / "labels/final") == []
    assert put(client, "img0", truth["img0"] & False, confirm="empty").status_code == 200


def test_other_web_sites_are_not_let_in(client):
    answer = client.get("/info/", headers={"Origin": "http://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_training_that_fails_leaves_the_weights(client, truth):
    put(client, "img0", np.zeros_like(truth["img0"]), confirm="empty")
    before = ModelFolder(client.app_dir).sha256()
    assert "foreground" in refused(client.post("/train/kwtl?run_sync=true", json={}), 400)
    put(client, "img0", truth["img0"])
    refused(client.post("/train/kwtl?run_sync=true", json={"steps": 0}), 400)
    assert ModelFolder(client.app_dir).sha256() == before


def test_pages_of_a_file_are_asked_for_one_by_one(client, studies, rng):
    import tifffile

    stack = rng.integers(0, 255, (3, 70, 80)).astype(np.uint8)
    tifffile.imwrite(studies / "stack.tif", stack, photometric="minisblack")
    assert score(client) == {"total": 7, "executed": 7, "skipped": 0}
    pages = [ask(client, image="stack", client_id="a")["page"] for _ in range(3)]
    assert sorted(pages) == [0, 1, 2]
    assert tifffile.imread(io.BytesIO(infer(client, "stack").content)).shape == (3, 70, 80)
    assert np.asarray(Image.open(io.BytesIO(infer(client, "stack", page=1).content))).shape == (70, 80)
    assert put(client, "stack", stack[2] > 127, page=2).status_code == 200
    kept = tifffile.imread(studies / "labels/final/stack.tif")
    assert np.array_equal(kept[2] > 0, stack[2] > 127) and not kept[:2].any()
    assert (
        client.post("/train/kwtl?run_sync=true", json={"steps": 1}).json()["pixels"] == WINDOW * WINDOW
    )  # what was given


def test_real_sstem_images_go_through_the_cycle(client, studies, kwtl_data):
    images = sorted((kwtl_data / "ssTEM/images").iterdir())[:1]
    if not images:
        pytest.skip("no ssTEM images there")
    for name in SIZES:
        (studies / name).unlink()
    crop = read_image({"image": str(images[0]), "page": None})[0, 100:400, 200:712]
    Image.fromarray(crop).save(studies / images[0].name)
    identity = images[0].stem
    assert score(client)["executed"] == 1
    label = read_image({"image": str(kwtl_data / "ssTEM/labels" / f"{identity}.png"), "page": None})[0]
    truth, labelled, boxes = label[100:400, 200:712] > 0, np.zeros(crop.shape, dtype=bool), []
    # an untrained network may ask for places without any mitochondrion first: go on until there is one to learn from
    while not truth[labelled].any():
        answer = ask(client, client_id="alice")
        assert answer["id"] == identity and answer["bbox"] not in boxes
        boxes.append(answer["bbox"])
        x, y, width, height = answer["bbox"]
        labelled[y : y + height, x : x + width] = True
        known = {"region": answer["bbox"], "confirm": ["empty", "full"]}
        assert put(client, identity, part(truth, answer["bbox"]), **known).status_code == 200
    trained = client.post("/train/kwtl?run_sync=true", json={"steps": 2}).json()
    assert trained["pixels"] == np.count_nonzero(labelled) and trained["regions"] == len(boxes)
    assert trained["scoring"]["kwtl"]["executed"] == 1
    assert ask(client, image=identity)["bbox"] not in boxes


@pytest.mark.parametrize("app_settings", [{"epistemic": True}])
def test_monai_labels_own_epistemic_scoring_runs_beside_ours(client):
    assert score(client) == score(client, "epistemic") == {"total": 4, "executed": 4, "skipped": 0}
    assert score(client, "epistemic") == {"total": 4, "executed": 0, "skipped": 4}
    entropies = {
        identity: client.get(f"/datastore/image/info?image={identity}").json()["epistemic_entropy"]
        for identity in (Path(name).stem for name in SIZES)
    }
    assert all(0 < entropy <= 1 / np.e + 1e-6 for entropy in entropies.values()), entropies  # the most that -p log p is
    assert ask(client, "epistemic")["id"] == max(entropies, key=entropies.get)


def test_epistemic_scoring_is_offered_only_where_the_settings_say_so(client):
    assert "epistemic" in refused(client.post("/scoring/epistemic?run_sync=true", json={}), 404)


def test_addresses_that_are_none_are_refused_by_the_client():
    from monai_kwtl.errors import KWTLError

    with pytest.raises(KWTLError, match="address"):
        LabelServer("127.0.0.1:8000")
    with pytest.raises(KWTLError, match="no server answers"):
        LabelServer("http://127.0.0.1:9").get("/info/")

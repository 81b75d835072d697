"""Files that were spoilt on their way: one line or a right result, no hang, and no file of the user changes."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.handout import export_regions, import_regions
from monai_kwtl.project.history import curve
from monai_kwtl.project.mask_index import read_record
from monai_kwtl.project.next_round import excluded_regions
from monai_kwtl.project.project_file import read_project, regions_of, update_project
from monai_kwtl.project.support_set import read_support

CASES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32 - 1)
NASTY = [
    None,
    True,
    False,
    0,
    -1,
    3,
    0.5,
    1e308,
    -1e308,
    10**30,
    -(10**30),
    "",
    "x",
    "finished",
    "../../x",
    "/etc/passwd",
]
NASTY += ["C:\\x", "a\x00b", "\ud800", "9" * 5000, [], {}, [[]], [[[]]], [None], [0, 1], [[0, 0], [1, 1], [1e9, 0]]]
NASTY += [{"type": "Polygon", "coordinates": [[[0, 0], [1, 0]]]}, {"size": [10**9, 10**9], "counts": [10**18]}]
PLACES = {
    "qupath": "geojson/*.geojson",
    "cvat": "annotations/instances_default.json",
    "labelstudio": "project-1-at-2026.json",
}


def spots(value, path=()):
    """Paths of everything inside a document."""
    found = [path]
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            found += spots(value[key], (*path, key))
    return found


def mutate(document, rng):
    """The bytes of a document with something wrong in it, in its fields or in its text."""
    document = copy.deepcopy(document)
    for _ in range(int(rng.integers(0, 3))):
        places = spots(document)
        path = places[int(rng.integers(len(places)))]
        if not path:
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        kind = int(rng.integers(4))
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
        elif kind == 2 and isinstance(parent[path[-1]], (int, float)):
            parent[path[-1]] = parent[path[-1]] * float(rng.choice([-1, 1.5, 1e5, 1e-9])) + float(rng.integers(-3, 3))
        else:
            parent[path[-1]] = copy.deepcopy(NASTY[int(rng.integers(len(NASTY)))])
    content = bytearray(json.dumps(document).encode("ascii"))
    if rng.random() < 0.4:
        start = int(rng.integers(len(content)))
        stop = min(len(content), start + int(rng.integers(1, 40)))
        new = rng.bytes(int(rng.integers(0, 40))) if rng.random() < 0.5 else b"[{" * int(rng.integers(0, 3000))
        content[start:stop] = new
    return bytes(content[: int(rng.integers(len(content)))] if rng.random() < 0.1 else content)


@contextlib.contextmanager
def within(seconds):
    """Fail where something takes longer."""

    def stop(*_):
        raise AssertionError(f"took more than {seconds} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_one_line(error):
    text = str(error)
    assert text and "\n" not in text and len(text) < 2000
    text.encode("utf-8", "replace")


@pytest.fixture(scope="module")
def finished(trip, tmp_path_factory, hand_in):
    """For each tool a folder that was handed in whole."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "truth").mkdir()
    for region, name in zip(trip.regions, trip.names, strict=True):
        box = slice(region.y, region.y + region.height), slice(region.x, region.x + region.width)
        Image.fromarray(trip.truth[region.image][box] * np.uint8(255)).save(folder / "truth" / name)
    for tool in PLACES:
        export_regions(trip.selection, tool, folder / tool, trip.dataset, folder / "truth")
        hand_in[tool](folder / tool)
    return folder


@pytest.mark.parametrize("tool", PLACES)
def test_spoilt_annotations(trip, tool, finished, tmp_path):
    work = finished / tool
    (path, *_) = sorted(work.glob(PLACES[tool]))
    sound = path.read_bytes()
    shapes = {region.rank: (region.height, region.width) for region in trip.regions}
    counts = {"right": 0, "refused": 0}

    @CASES
    @given(seeds)
    def case(seed):
        path.write_bytes(mutate(json.loads(sound), np.random.default_rng(seed)))
        before = files(work)
        output = tmp_path / str(seed)
        with within(10):
            try:
                done = import_regions(work, tool, output)
            except KWTLError as error:
                in_one_line(error)
                assert not output.exists()
                counts["refused"] += 1
            else:
                for record in read_record(output):
                    mask = np.array(Image.open(output / record.mask))
                    assert mask.shape == shapes[record.region.rank] and set(np.unique(mask)) <= {0, 255}
                assert {record.region.rank for record in read_record(output)} == set(done.finished)
                assert sorted(p.name for p in output.iterdir()) == sorted(
                    ["regions.json", *(record.mask for record in read_record(output))]
                )
                counts["right"] += 1
        assert files(work) == before

    try:
        case()
    finally:
        path.write_bytes(sound)
    assert min(counts.values()) > 10, counts


def test_spoilt_notes_of_masks(trip, finished, tmp_path):
    masks = tmp_path / "masks"
    import_regions(finished / "cvat", "cvat", masks)
    path = masks / "regions.json"
    sound = path.read_bytes()
    counts = {"right": 0, "refused": 0}

    @CASES
    @given(seeds)
    def case(seed):
        path.write_bytes(mutate(json.loads(sound), np.random.default_rng(seed)))
        before = files(masks)
        with within(10):
            try:
                assert len(read_support(trip.pool, masks)) <= 2
                assert excluded_regions(trip.pool, masks)
                counts["right"] += 1
            except KWTLError as error:
                in_one_line(error)
                counts["refused"] += 1
        assert files(masks) == before

    case()
    assert min(counts.values()) > 10, counts


def test_spoilt_projects(tmp_path):
    region = {
        "rank": 1,
        "image": "a.png",
        "image_sha256": "0" * 64,
        "x": 0,
        "y": 0,
        "width": 5,
        "height": 5,
        "score": 0.5,
    }
    cost = {"windows": 1, "images": 1, "unique_pixels": 25}
    selection = {"path": "s.json", "sha256": "1" * 64, "time": "t", "strategy": "top_k", **cost, "regions": [region]}
    masks = {"path": "masks", "time": "t", "source": "png", "regions": 1, "pixels": 25, "foreground": 0.5}
    model = {"path": "m.pt", "sha256": "2" * 64, "time": "t", "labelled_images": 1, "held_out_images": 0}
    entry = {"selection": selection, "masks": masks, "model": {**model, "held_out_iou": 0.25}}
    assert update_project(tmp_path, lambda rounds: [entry, {"selection": selection, "masks": None, "model": None}])
    path = tmp_path / "project.json"
    sound = path.read_bytes()
    counts = {"right": 0, "refused": 0}

    @CASES
    @given(seeds)
    def case(seed):
        content = mutate(json.loads(sound), np.random.default_rng(seed))
        path.write_bytes(content)
        with within(10):
            try:
                rounds = read_project(tmp_path)
            except KWTLError as error:
                in_one_line(error)
                counts["refused"] += 1
                assert not update_project(tmp_path, lambda rounds: [*rounds, entry])
            else:
                assert len(curve(rounds)) == len(rounds)
                assert all(regions_of(each) is not None for each in rounds)
                counts["right"] += 1
        assert path.read_bytes() == content

    case()
    assert min(counts.values()) > 10, counts


def test_huge_numbers_take_no_memory(trip, finished, tmp_path):
    work = finished / "cvat"
    path = work / "annotations" / "instances_default.json"
    sound = path.read_bytes()
    document = json.loads(sound)
    huge = 2**62
    tracemalloc.start()
    try:
        for shape in (
            {"size": [huge, huge], "counts": [huge]},
            {"size": [33, 40], "counts": [huge, huge]},
            [[huge] * 8],
        ):
            document["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": shape}]
            path.write_text(json.dumps(document))
            with pytest.raises(KWTLError):
                import_regions(work, "cvat", tmp_path / "masks")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
        path.write_bytes(sound)

"""Labels that come back: what is taken over, what stays, and what is known afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.label.state.database import Lease
from monai_kwtl.label.state.labels import import_label, read_masks, write_masks
from monai_kwtl.project.selection_folder import feature_collection
from monai_kwtl.selection.regions import Region
from monai_kwtl.windows.box import Box

HEIGHT, WIDTH = 33, 51
ITEM = {"name": "a.png", "page": None, "sha256": "1" * 64, "height": HEIGHT, "width": WIDTH}
PAGES = [ITEM | {"name": "s.tif", "page": page} for page in range(3)]
WHOLE = Box(0, 0, WIDTH, HEIGHT)


def lease(client: str, mode: str, box: Box = WHOLE, number: int = 1) -> Lease:
    return Lease(number, client, mode, ITEM["sha256"], None, box, 0.0)


@pytest.fixture
def mask(rng) -> np.ndarray:
    return rng.random((HEIGHT, WIDTH)) < 0.4


def take(path, params=None, former=None, known=None, leases=(), pages=(ITEM,)):
    known = {} if known is None else {(ITEM["sha256"], None): known}
    return import_label(path, pages, params or {}, former, known, {page["page"]: leases for page in pages})


def saved(path, mask):
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_a_whole_mask_is_known_everywhere_and_kept_as_it_came(tmp_path, mask):
    label = take(saved(tmp_path / "m.png", mask))
    assert np.array_equal(label.masks[0], mask) and label.known == [[WHOLE]] and label.as_it_came


def test_the_mask_of_a_region_goes_to_its_place_and_nothing_else_changes(tmp_path, mask):
    box = Box(30, 5, 20, 11)
    part = np.ones((11, 20), dtype=bool)
    part[0] = False
    label = take(saved(tmp_path / "m.png", part), {"region": list(box), "confirm": "full"}, [mask], [Box(0, 0, 9, 9)])
    expected = mask.copy()
    expected[5:16, 30:50] = part
    assert np.array_equal(label.masks[0], expected) and not label.as_it_came
    assert label.known == [[(0, 0, 9, 9), box]]


def test_a_whole_mask_of_named_regions_counts_inside_them_only(tmp_path, mask):
    boxes = [[0, 0, 10, 10], [20, 20, 9, 9]]
    label = take(saved(tmp_path / "m.png", mask), {"regions": boxes})
    inside = np.zeros(mask.shape, dtype=bool)
    inside[:10, :10] = inside[20:29, 20:29] = True
    assert np.array_equal(label.masks[0], mask & inside) and label.known == [[tuple(box) for box in boxes]]


def test_regions_that_were_given_out_are_what_is_known(tmp_path, mask):
    given = Box(10, 0, 20, 20)
    label = take(saved(tmp_path / "m.png", mask), leases=[lease("alice", "patch", given)])
    assert label.known == [[given]] and label.as_it_came
    label = take(saved(tmp_path / "m.png", mask), {"whole_image": True}, leases=[lease("alice", "patch", given)])
    assert label.known == [[WHOLE]]


def test_an_image_given_as_a_whole_comes_back_whole(tmp_path, mask):
    leases = [lease("alice", "patch", Box(0, 0, 9, 9), 1), lease("alice", "image", Box(5, 5, 9, 9), 2)]
    assert take(saved(tmp_path / "m.png", mask), known=[Box(0, 0, 9, 9)], leases=leases).known == [[WHOLE]]


def test_a_correction_keeps_what_is_known_and_may_take_away(tmp_path, mask):
    label = take(saved(tmp_path / "m.png", mask), former=[~mask], known=[Box(0, 0, 9, 9)])
    assert np.array_equal(label.masks[0], mask) and label.known == [[(0, 0, 9, 9)]]


def test_one_annotator_takes_nothing_away_from_another(tmp_path, mask):
    bobs, alices = Box(30, 0, 15, 15), Box(0, 0, 15, 15)
    former = np.zeros_like(mask)
    former[2:8, 2:8] = True
    sent = np.zeros_like(mask)
    sent[3:9, 33:40] = True
    label = take(saved(tmp_path / "m.png", sent), former=[former], known=[alices], leases=[lease("bob", "patch", bobs)])
    assert np.array_equal(label.masks[0], former | sent) and label.known == [[alices, bobs]]


def test_two_annotators_of_one_image_must_say_who_sends(tmp_path, mask):
    leases = [lease("alice", "patch", Box(0, 0, 9, 9), 1), lease("bob", "region", Box(20, 0, 9, 9), 2)]
    path = saved(tmp_path / "m.png", mask)
    with pytest.raises(KWTLError, match="alice and bob"):
        take(path, leases=leases)
    assert take(path, {"client_id": "bob"}, leases=leases).known == [[(20, 0, 9, 9)]]


def test_boxes_in_the_outlines_say_what_is_known(tmp_path):
    import json

    document = feature_collection([Region(1, "a.png", None, "1" * 64, 10, 3, 20, 25, 0.5)])
    ring = [[12, 5], [16, 5], [16, 8], [12, 8]]
    cell = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "m.geojson").write_text(json.dumps({**document, "features": [*document["features"], cell]}))
    label = take(tmp_path / "m.geojson")
    assert label.known == [[(10, 3, 20, 25)]] and label.masks[0].sum() == 12 and not label.as_it_came


def test_pages_have_their_own_masks_and_one_may_come_alone(tmp_path, rng):
    stack = rng.random((3, HEIGHT, WIDTH)) < 0.5
    write_masks(tmp_path / "m.tif", list(stack))
    label = take(tmp_path / "m.tif", pages=PAGES)
    assert np.array_equal(label.masks, stack) and label.known == [[WHOLE]] * 3 and label.as_it_came
    one = saved(tmp_path / "one.png", ~stack[1])
    label = take(one, {"page": 1}, list(stack), pages=PAGES)
    assert np.array_equal(label.masks, [stack[0], ~stack[1], stack[2]])
    assert label.known == [[], [WHOLE], []] and not label.as_it_came
    with pytest.raises(KWTLError, match="no page 3"):
        take(one, {"page": 3}, pages=PAGES)


def test_written_masks_are_read_back(tmp_path, rng):
    stack = rng.random((3, HEIGHT, WIDTH)) < 0.5
    write_masks(tmp_path / "m.tif", list(stack))
    write_masks(tmp_path / "m.png", list(stack[:1]))
    assert np.array_equal(read_masks(tmp_path / "m.tif", PAGES), stack)
    assert np.array_equal(read_masks(tmp_path / "m.png", [ITEM]), stack[:1])
    assert tifffile.imread(tmp_path / "m.tif").dtype == np.uint8


@pytest.mark.parametrize(
    "region",
    [
        [0, 0, 9],
        "all",
        [0, 0, 9.5, 9],
        [0, 0, 0, 9],
        [-1, 0, 9, 9],
        [45, 0, 9, 9],
        [0, 30, 9, 9],
        [True, 0, 9, 9],
        None,
    ],
)
def test_a_region_that_is_none_is_refused(tmp_path, mask, region):
    with pytest.raises(KWTLError) as error:
        take(saved(tmp_path / "m.png", mask), {"region": region})
    assert "\n" not in str(error.value)


def test_labels_that_do_not_fit_are_refused_with_both_sizes(tmp_path, mask):
    with pytest.raises(KWTLError, match="33 wide and 51 high.*51 wide and 33 high"):
        take(saved(tmp_path / "m.png", mask.T))
    with pytest.raises(KWTLError, match="region 9 wide and 8 high"):
        take(saved(tmp_path / "m.png", mask.T), {"region": [0, 0, 9, 8]})


def photograph(shape, channels=3) -> np.ndarray:
    rows, columns = np.indices(shape)
    noise = np.random.default_rng(0).normal(0, 6, (*shape, channels))
    return np.clip((90 + 60 * np.sin(rows / 9) * np.cos(columns / 7))[..., None] + noise, 0, 255).astype(np.uint8)


def spots(shape=(HEIGHT, WIDTH)) -> np.ndarray:
    rows, columns = np.indices(shape)
    return ((rows - 9) ** 2 + (columns - 12) ** 2 < 30) | ((rows - 22) ** 2 + (columns - 38) ** 2 < 25)


def written(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("pixels", "what", "found"),
    [
        (photograph((HEIGHT, WIDTH)), "picture", "as pictures do"),
        (photograph((HEIGHT, WIDTH), 1)[..., 0], "picture", "as pictures do"),
        # fluorescence: most of it is exactly black
        (photograph((HEIGHT, WIDTH)) * spots()[..., None].astype(np.uint8), "picture", "as pictures do"),
        (np.zeros((HEIGHT, WIDTH), dtype=np.uint8), "empty", "no foreground"),
        (np.uint8(255) * ~spots(), "full", "inverted"),
        (np.full((HEIGHT, WIDTH), 255, dtype=np.uint8), "full", "inverted"),
    ],
)
@pytest.mark.parametrize("region", [None, [0, 0, WIDTH, HEIGHT - 3]])
def test_masks_that_look_like_none_must_be_confirmed(tmp_path, pixels, what, found, region):
    path = written(tmp_path / "m.png", pixels)
    params = {} if region is None else {"regions": [region]}
    with pytest.raises(KWTLError, match=f'(?s){found}.*"confirm": "{what}"'):
        take(path, params)
    allowed = ["picture", "full", "empty"] if what == "picture" else what
    assert take(path, params | {"confirm": allowed}).known == [[tuple(region or WHOLE)]]


def test_an_empty_region_of_an_image_that_has_cells_must_be_confirmed_too(tmp_path):
    path = written(tmp_path / "m.png", np.zeros((8, 9), dtype=np.uint8))
    with pytest.raises(KWTLError, match="no foreground"):
        take(path, {"region": [3, 4, 9, 8]}, [spots()], [Box(20, 0, 9, 9)])
    label = take(path, {"region": [3, 4, 9, 8], "confirm": "empty"}, [spots()], [Box(20, 0, 9, 9)])
    assert not label.masks[0][4:12, 3:12].any() and label.known == [[(20, 0, 9, 9), (3, 4, 9, 8)]]


def test_masks_that_are_some_are_taken_without_a_word(tmp_path):
    rng = np.random.default_rng(1)
    numbered = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    for number, (y, x) in enumerate([(y, x) for y in range(0, 30, 6) for x in range(0, 48, 6)], start=1):
        numbered[y : y + 5, x : x + 5] = number  # apart by a pixel, and 60 % of the image
    coloured = rng.integers(1, 255, (60, 3)).astype(np.uint8)[numbered] * (numbered > 0)[..., None].astype(np.uint8)
    soft = np.uint8(255) * spots()
    soft[8:11, 11:14] = rng.integers(1, 255, (3, 3))
    for pixels in (numbered, coloured, soft, np.uint8(255) * (rng.random((HEIGHT, WIDTH)) < 0.5)):
        assert np.array_equal(
            take(written(tmp_path / "m.png", pixels)).masks[0], pixels.reshape(HEIGHT, WIDTH, -1).any(axis=2)
        )


@pytest.mark.parametrize("confirm", ["all", ["empty", "yes"], 1, {"empty": 1}, [["empty"]], True])
def test_a_confirmation_of_something_else_is_refused(tmp_path, mask, confirm):
    with pytest.raises(KWTLError, match="empty, full, picture"):
        take(saved(tmp_path / "m.png", mask), {"confirm": confirm})


@pytest.mark.parametrize("name", ["m.jpg", "m.txt", "m"])
def test_other_kinds_of_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(KWTLError, match=r"send one of \.png"):
        take(tmp_path / name)


def test_a_broken_mask_is_refused(tmp_path, mask):
    path = saved(tmp_path / "m.png", mask)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(KWTLError, match="cannot be read"):
        take(path)

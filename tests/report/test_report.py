from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.report import overview_picture, write_report
from monai_kwtl.report.pictures import (
    colourise,
    data_uri,
    for_display,
    outline_path,
    place_labels,
    rank_colours,
    shrink,
    text_colour,
)
from monai_kwtl.selection.regions import Region

SHA = "a" * 64
EVIL = "images/<img src=x onerror=document.title='broken'>&\"'.png"


def make_pool(names: list[str], height: int = 90, width: int = 130) -> tuple[list[dict], dict[str, np.ndarray]]:
    rows, columns = np.mgrid[:height, :width]
    items, pixels = [], {}
    for index, name in enumerate(names):
        centre = (20 + 7 * index) % height, (30 + 11 * index) % width
        blob = np.hypot(rows - centre[0], columns - centre[1]) < 15
        pixels[name] = (40 + rows + 90 * blob).astype(np.uint8)[None]
        items.append({"name": name, "page": None, "height": height, "width": width, "sha256": SHA})
    return items, pixels


def make_report(path: Path, names=("images/a.png", EVIL), **options) -> tuple[list[Region], list[dict]]:
    items, pixels = make_pool(list(names))
    regions = [
        Region(1, names[0], None, SHA, 5, 3, 64, 48, 0.5),
        Region(2, names[-1], None, SHA, 30, 20, 64, 48, 0.4),
        Region(3, names[0], None, SHA, 15, 9, 64, 48, 0.1),
    ]
    arguments = {
        "regions": regions,
        "items": items,
        "read": lambda item: pixels[item["name"]],
        "predictions": lambda item: (pixels[item["name"]][0] > 150).astype(np.float32),
        "maps": lambda item: pixels[item["name"]][0].astype(np.float32) / 255,
        "cost": {"windows": 3, "images": 2, "unique_pixels": 9000},
        "settings": {
            "window": 64,
            "measure": "soft",
            "exact": False,
            "psi": 1.3,
            "<b>odd</b>": "<script>alert(1)</script>",
        },
    }
    write_report(path, **{**arguments, **options})
    return regions, items


class Page(HTMLParser):
    """All elements of a page, their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "link", "input", "br", "path", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "rect"):
            assert self.open and self.open.pop() == tag, tag  # well-formed

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def decode(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# ---- pictures


def test_a_large_image_is_stretched_in_bands(monkeypatch, rng):
    image = rng.integers(30, 90, (1, 67, 41), dtype=np.uint8)
    whole = for_display(image)
    for pixels in (1, 41 * 10 + 5, 41 * 67):
        monkeypatch.setattr("monai_kwtl.report.pictures._AT_ONCE", pixels)
        np.testing.assert_array_equal(for_display(image), whole)


def test_display_contrast_is_stretched_but_noise_is_not():
    dim = np.tile(np.arange(40, 80, dtype=np.uint8), (30, 1))[None]
    assert for_display(dim).min() == 0 and for_display(dim).max() == 255
    flat = np.random.default_rng(0).integers(100, 103, (1, 31, 47), dtype=np.uint8)
    assert np.ptp(for_display(flat)) <= 16
    for value in (0, 77, 255):
        constant = for_display(np.full((1, 9, 5), value, np.uint8))
        assert constant.shape == (9, 5) and np.ptp(constant) == 0


@pytest.mark.parametrize("shape", [(300, 100), (100, 301), (301, 299, 3)])
def test_shrinking_keeps_the_mean_and_the_shape_of_the_image(shape: tuple[int, ...]):
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    small = shrink(image, 75)
    assert max(small.shape[:2]) == 75 and small.dtype == np.uint8
    assert small.shape[0] / small.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.03)
    assert small.mean() == pytest.approx(image.mean(), abs=1.5)
    assert shrink(image, 400) is image


def test_colours_run_from_dark_to_bright_and_survive_odd_values():
    values = np.array([[0.0, 0.5, 1.0, 2.0, np.nan, -1.0]])
    colours = colourise(values, 0.0, 1.0)
    assert colours.shape == (1, 6, 3) and colours.dtype == np.uint8
    brightness = colours.sum(axis=-1)[0]
    assert brightness[0] < brightness[1] < brightness[2] == brightness[3]
    assert brightness[4] == brightness[5] == brightness[0]
    assert colourise(np.zeros((2, 3)), 0.0, 0.0).shape == (2, 3, 3)


def test_text_is_readable_on_every_rank_colour():
    for colour in rank_colours(40):
        background, text = ([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in (colour, text_colour(colour)))
        linear = [[v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in c] for c in (background, text)]
        bright, dark = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


def test_pictures_keep_within_their_bytes():
    noise = np.random.default_rng(2).integers(0, 256, (200, 150, 3), dtype=np.uint8)
    for largest in (100_000, 20_000, 3_000, 900):
        uri = data_uri(noise, largest)
        assert len(base64.b64decode(uri.split(",")[1])) <= largest
    assert decode(data_uri(noise, 200_000)).shape == noise.shape


def fill(path: str, shape: tuple[int, int], zoom: int = 8) -> np.ndarray:
    """Rasterise a path of straight relative lines with OpenCV, by the even-odd rule, and sample the pixel centres."""
    numbers = [[int(number) for number in re.findall(r"-?\d+", ring)] for ring in re.findall(r"M[^z]*z", path)]
    rings = [np.cumsum(np.reshape(ring, (-1, 2)), axis=0) / 10 for ring in numbers]
    canvas = np.zeros((shape[0] * zoom, shape[1] * zoom), np.uint8)
    for ring in rings:
        one = np.zeros_like(canvas)
        cv2.fillPoly(one, [np.round(ring * zoom - 0.5).astype(np.int32)], 1)
        canvas ^= one
    return canvas[zoom // 2 :: zoom, zoom // 2 :: zoom].astype(bool)


def test_an_outline_encloses_the_predicted_pixels():
    rows, columns = np.mgrid[:61, :97]
    distance = np.minimum(np.hypot(rows - 25, columns - 40) - 15, np.hypot(rows - 60, columns - 96) - 20)
    distance = np.maximum(distance, 6 - np.hypot(rows - 25, columns - 40))  # a hole, and an object cut by the border
    probability = 1 / (1 + np.exp(distance))
    drawn = fill(outline_path(probability), probability.shape)
    expected = probability > 0.5
    assert (drawn & expected).sum() / (drawn | expected).sum() > 0.96
    assert not drawn[25, 40] and drawn[25, 30] and drawn[60, 96]


def test_an_outline_of_a_full_region_is_its_border():
    full = fill(outline_path(np.ones((13, 21))), (13, 21))
    assert full[1:-1].all() and full[:, 1:-1].all()  # thinning may cut the corners
    assert outline_path(np.zeros((13, 21))) == ""
    assert outline_path(np.full((13, 21), np.nan)) == ""


def test_ragged_outlines_keep_within_their_length():
    probability = np.random.default_rng(3).random((160, 140))
    assert 0 < len(outline_path(probability, 4_000)) <= 4_000


def test_labels_lie_in_their_boxes_and_never_meet():
    generator = np.random.default_rng(4)
    boxes = [(float(x), float(y), 60.0, 50.0) for x, y in generator.integers(0, 140, (80, 2))]
    places = place_labels(boxes, (200, 190), [(22.0, 14.0)] * len(boxes))
    assert places[0] == boxes[0][:2]
    kept = [(place, box) for place, box in zip(places, boxes, strict=True) if place is not None]
    assert 5 < len(kept) < len(boxes)
    for (x, y), (left, top, width, height) in kept:
        assert left <= x <= left + width - 22 and top <= y <= top + height - 14
    for index, ((x, y), _) in enumerate(kept):
        assert all(abs(x - u) >= 22 or abs(y - v) >= 14 for (u, v), _ in kept[:index])


def test_a_label_larger_than_its_box_is_left_out():
    assert place_labels([(0, 0, 5, 5)], (100, 100), [(9, 4)]) == [None]


# ---- overview


def test_overview_darkens_what_is_not_selected_and_outlines_by_rank(tmp_path: Path):
    items, pixels = make_pool(["a.png"], height=300, width=450)
    pixels["a.png"][:] = np.tile(np.array([0, 250], np.uint8), (300, 225))[None]
    regions = [
        Region(1, "a.png", None, SHA, 50, 100, 150, 100, 0.2),
        Region(2, "a.png", None, SHA, 250, 20, 150, 100, 0.1),
    ]
    path = overview_picture(tmp_path / "o.png", regions=regions, items=items, read=lambda item: pixels[item["name"]])
    picture = np.asarray(Image.open(path)).astype(int)
    assert not list(tmp_path.glob(".*"))
    for colour in rank_colours(2):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        ys, xs = np.nonzero((np.abs(picture - rgb) < 3).all(axis=-1) & (np.arange(len(picture)) > 100)[:, None])
        assert np.ptp(xs) + 1 == pytest.approx(300, abs=1) and np.ptp(ys) + 1 == pytest.approx(
            200, abs=1
        )  # enlarged twice
        inside = picture[ys.min() + 30 : ys.max() - 5, xs.min() + 30 : xs.max() - 5].mean()
        assert inside == pytest.approx(127, abs=6)
    left, top = 28, 104
    assert picture[top + 20 : top + 150, left + 20 : left + 400].mean() == pytest.approx(127 * 0.42, abs=4)


def test_overview_counts_the_images_it_leaves_out(tmp_path: Path, monkeypatch):
    from PIL import ImageDraw

    written = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, **k: (written.append(text), original(self, at, text, **k))
    )
    names = [f"images/{number:02d}.png" for number in range(19)]
    items, pixels = make_pool(names)
    regions = [Region(rank + 1, name, None, SHA, 3, 2, 60, 50, 0.1) for rank, name in enumerate(names[::-1])]
    cost = {"windows": 19, "images": 19, "unique_pixels": 19 * 3000}
    overview_picture(
        tmp_path / "o.png", regions=regions, items=items, read=lambda item: pixels[item["name"]], cost=cost
    )
    assert "and 7 more images" in written
    assert "19 regions  \u00b7  19 of 19 images  \u00b7  0.057 megapixels, 25.6 % of all" in written
    drawn = [text for text in written if text.endswith(".png")]
    assert drawn == [f"{number:02d}.png" for number in range(18, 6, -1)]


@pytest.mark.parametrize("size", [(9, 7), (40, 900), (900, 40), (256, 256)])
def test_overview_of_any_size_and_name(tmp_path: Path, size: tuple[int, int]):
    name = "images/" + "\u7ec6\u80de\n$x_1$ <b> " * 20 + ".png"
    items, pixels = make_pool([name], *size)
    region = Region(1, name, None, SHA, 0, 0, size[1], size[0], 0.0)
    path = overview_picture(tmp_path / "o.png", regions=[region], items=items, read=lambda item: pixels[item["name"]])
    with Image.open(path) as picture:
        assert picture.mode == "RGB" and picture.width <= 1700


def test_overview_that_cannot_be_written_is_one_line(tmp_path: Path):
    items, pixels = make_pool(["a.png"])
    region = Region(1, "a.png", None, SHA, 0, 0, 9, 9, 0.0)
    with pytest.raises(KWTLError, match="cannot write"):
        overview_picture(tmp_path / "no/o.png", regions=[region], items=items, read=lambda item: pixels[item["name"]])


# ---- report


def test_report_needs_nothing_from_outside(tmp_path: Path):
    make_report(tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert not page.open
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        link = attributes.get("href", "#")
        assert link.startswith(("#", "regions/")), link
    raw = (tmp_path / "report.html").read_text()
    assert not page.all("link") and "@import" not in raw and not re.search(r"url\((?!#)", raw)
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert "default-src 'none'" in policy["content"] and "script-src 'sha256-" in policy["content"]


def test_report_shows_regions_settings_and_cost(tmp_path: Path):
    regions, _ = make_report(tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    rows, cards = [a for t, a in page.elements if t == "tr" and "data-rank" in a], page.all("article")
    assert [row["data-rank"] for row in rows] == [card["data-rank"] for card in cards] == ["1", "2", "3"]
    assert [float(row["data-score"]) for row in rows] == [0.5, 0.4, 0.1]
    boxes = {a["data-rank"]: a for t, a in page.elements if t == "a" and a.get("class") == "box"}
    assert set(boxes) == {"1", "2", "3"}
    rectangles = [a for t, a in page.elements if t == "rect" and a.get("x") == "5" and a.get("y") == "3"]
    assert rectangles and all((a["width"], a["height"]) == ("64", "48") for a in rectangles)
    text = " ".join(" ".join(page.text).split())
    assert "What to do next. Outline every cell inside the boxes" in text
    assert "9,000 pixels, overlaps counted once" in text and "of 2 images" in text
    assert "38.5 % of the pool" in text  # 9000 of 2 x 90 x 130
    assert "Region size 64 Width and height of a region, in pixels" in text
    assert "Exact scores no" in text and "0 of" not in text


def test_names_are_escaped_everywhere(tmp_path: Path):
    make_report(tmp_path / "report.html", title="<i>x</i>")
    page = Page(tmp_path / "report.html")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert len(page.all("script")) == 1 and "<b>odd</b>" in page.text and "<script>alert(1)</script>" in page.text
    assert not [a for t, a in page.elements if t == "img" and not a["src"].startswith("data:")]
    label = EVIL.removeprefix("images/")
    assert label in "".join(page.text) and page.all("h3", title=label)
    assert "<i>x</i>" in page.text


def test_pictures_outlines_and_scores_are_those_of_the_region(tmp_path: Path):
    regions, items = make_report(tmp_path / "report.html")
    _, pixels = make_pool(["images/a.png", EVIL])
    page = Page(tmp_path / "report.html")
    cuts = {a["alt"]: decode(a["src"]) for t, a in page.elements if t == "img"}
    paths = [a["d"] for t, a in page.elements if t == "path" and a.get("class") != "under"]
    for region, path in zip(regions, paths, strict=True):
        inside = slice(region.y, region.y + region.height), slice(region.x, region.x + region.width)
        image = pixels[region.image][0]
        cut = cuts[f"Region {region.rank}, cut out"].astype(float)
        assert cut.shape == (48, 64)
        assert np.abs(cut - for_display(image[None])[inside]).mean() < 4
        drawn, expected = fill(path, (48, 64)), image[inside] > 150
        assert (drawn != expected).mean() < 0.02
        scores = cuts[f"Disagreement of each pixel of region {region.rank}; bright is high"]
        assert scores.shape == (48, 64, 3)
    first = cuts["Disagreement of each pixel of region 1; bright is high"].astype(int)
    top = np.percentile(
        np.concatenate([pixels[r.image][0][r.y : r.y + 48, r.x : r.x + 64][::2, ::2].ravel() for r in regions]), 99.5
    )
    expected = colourise(pixels["images/a.png"][0][3:51, 5:69] / 255, 0, top / 255).astype(int)
    assert np.abs(first - expected).mean() < 8


def test_parts_that_are_not_there_are_not_offered(tmp_path: Path):
    make_report(tmp_path / "a.html", predictions=None, maps=None)
    make_report(tmp_path / "b.html", predictions=lambda item: None, maps=lambda item: None)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    page = Page(tmp_path / "a.html")
    assert {a["data-view"] for t, a in page.elements if t == "button" and "data-view" in a} == {"image"}
    assert page.all("body", data_view="image") and not page.all("path")


def test_an_empty_prediction_and_an_empty_map_are_said_and_shown(tmp_path: Path):
    blank = lambda item: np.zeros((item["height"], item["width"]), np.float32)  # noqa: E731
    make_report(tmp_path / "a.html", predictions=blank, maps=blank, settings={"measure": "entropy"})
    page = Page(tmp_path / "a.html")
    assert "no cell predicted here" in page.text and "Uncertainty" in page.text and "Disagreement" not in page.text


def test_views_show_their_mean_in_the_region(tmp_path: Path):
    views = lambda item: {  # noqa: E731
        "AutoContrast": np.full((item["height"], item["width"]), 0.25),
        "<b>": np.full((item["height"], item["width"]), 0.75),
    }
    make_report(tmp_path / "a.html", per_view=views)
    text = " ".join("".join(Page(tmp_path / "a.html").text).split())
    assert text.count("AutoContrast0.250") == 3 and text.count("<b>0.750") == 3


def test_report_is_reproducible_and_replaces_the_former(tmp_path: Path):
    make_report(tmp_path / "a.html")
    (tmp_path / "b.html").write_text("old")
    make_report(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_callables_are_asked_once_for_each_image(tmp_path: Path):
    asked = []
    items, pixels = make_pool(["images/a.png", EVIL])
    make_report(tmp_path / "a.html", read=lambda item: asked.append(item["name"]) or pixels[item["name"]])
    assert sorted(asked) == sorted(["images/a.png", EVIL])


def test_a_map_of_another_shape_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"score map of 'images/a.png' has shape \(130, 90\)"):
        make_report(tmp_path / "a.html", maps=lambda item: np.zeros((item["width"], item["height"])))


def test_a_region_outside_the_pool_and_a_missing_folder_are_one_line(tmp_path: Path):
    with pytest.raises(KWTLError, match="not in the pool"):
        make_report(tmp_path / "a.html", regions=[Region(1, "images/z.png", None, SHA, 0, 0, 9, 9, 0.1)])
    with pytest.raises(KWTLError, match="cannot write") as error:
        make_report(tmp_path / "no/a.html")
    assert "\n" not in str(error.value)


def test_pages_of_one_file_are_images_of_their_own(tmp_path: Path):
    items = [{"name": "s.tif", "page": page, "height": 40, "width": 50, "sha256": SHA} for page in range(3)]
    regions = [Region(rank, "s.tif", page, SHA, 0, 0, 30, 20, 0.1) for rank, page in ((1, 2), (2, 0))]
    options = {"predictions": None, "maps": None, "regions": regions, "items": items}
    make_report(tmp_path / "a.html", read=lambda item: np.zeros((1, 40, 50), np.uint8), **options)
    text = "".join(Page(tmp_path / "a.html").text)
    assert "s.tif, page 3" in text and "s.tif, page 1" in text and "s.tif, page 2" not in text


def large_report(path: Path, count: int, images: int) -> float:
    """Regions of 256 x 256 pixels of the worst kind, noise; the size of the page in megabytes."""
    generator = np.random.default_rng(6)
    names = [f"images/{number:03d}.png" for number in range(images)]
    items = [{"name": name, "page": None, "height": 512, "width": 640, "sha256": SHA} for name in names]
    noise = generator.integers(0, 256, (1, 512, 640), dtype=np.uint8)
    smooth = cv2.GaussianBlur(generator.random((512, 640)), (0, 0), 2)
    probability = (smooth - smooth.min()) / np.ptp(smooth)
    regions = [
        Region(rank + 1, names[rank % images], None, SHA, 7 * rank % 384, 5 * rank % 256, 256, 256, 1 / (rank + 1))
        for rank in range(count)
    ]
    write_report(
        path,
        regions=regions,
        items=items,
        read=lambda item: noise,
        predictions=lambda item: probability,
        maps=lambda item: noise[0] / 255.0,
        cost={"windows": count, "images": images, "unique_pixels": 1},
        settings={},
    )
    return path.stat().st_size / 1e6


def test_twenty_regions_of_noise_keep_the_page_small(tmp_path: Path):
    assert large_report(tmp_path / "a.html", 20, 8) < 8


def test_fifteen_hundred_regions_stay_below_twenty_megabytes(tmp_path: Path):
    assert large_report(tmp_path / "a.html", 1500, 20) < 20
    page = Page(tmp_path / "a.html")
    assert len(page.all("article")) == 200
    assert len([a for t, a in page.elements if t == "tr" and "data-rank" in a]) == 1500

"""The report in a real browser: a headless Chromium, where the machine has one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, find_chromium
from PIL import Image
from test_report import make_report

CURRENT = "[...document.querySelectorAll('.current')].map(e => e.tagName.toLowerCase() + e.dataset.rank).sort().join()"
HOT = CURRENT.replace(".current", ".hot")
STATUS = "document.querySelector('#status').textContent"
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    """The report of three regions in two images, as on a first visit; at the end nothing may have gone wrong in it."""
    make_report(tmp_path / "report.html")
    browser.size(1400, 1000)
    browser.media()
    browser.open(tmp_path / "report.html")
    browser.js("localStorage.clear()")
    yield browser
    assert browser.complaints() == []


def choose(browser: Browser, selector: str, value: str) -> None:
    browser.js(
        f"(s => {{ s.value = '{value}'; s.dispatchEvent(new Event('change')) }})(document.querySelector('{selector}'))"
    )


def ranks(browser: Browser, selector: str) -> str:
    return browser.js(
        f"[...document.querySelectorAll('{selector}')].filter(e => !e.hidden).map(e => e.dataset.rank).join()"
    )


def test_the_page_loads_without_errors_or_requests(opened: Browser):
    assert opened.complaints() == []
    requests = [event["request"]["url"].split(":")[0] for event in opened.seen("Network.requestWillBeSent")]
    assert set(requests) <= {"file", "data"} and requests.count("file") == 1
    assert opened.js("document.title") == "What to label first"
    assert opened.js("[...document.images].every(i => i.alt)")


def test_an_error_of_the_page_would_be_noticed(opened: Browser):
    opened.js("setTimeout(() => { throw new Error('found') })")
    opened.js("new Promise(done => setTimeout(done, 20))")
    assert len(opened.complaints()) == 1
    opened.events.clear()


def test_the_picture_is_switched_by_buttons_and_keys(opened: Browser):
    def state():
        return [opened.shown(f".card {part}")[0] for part in (".picture", ".outline", ".map")]

    assert state() == [True, True, False]  # opens with the prediction
    for key, expected in (("1", [1, 0, 0]), ("3", [0, 0, 1]), ("4", [1, 1, 1]), ("2", [1, 1, 0])):
        opened.press(key)
        assert state() == [bool(value) for value in expected], key
    opened.click(".toolbar .switch [data-view=disagreement]")
    assert state() == [False, False, True]
    pressed = "[...document.querySelectorAll('.toolbar .switch [aria-pressed=true]')].map(b => b.dataset.view).join()"
    assert opened.js(pressed) == "disagreement"


def test_what_is_switched_is_what_is_seen(opened: Browser):
    def card() -> np.ndarray:
        left, top, width, height = (int(value) for value in opened.box("#region-1 .panes"))
        window = np.asarray(Image.open(BytesIO(opened.picture())).convert("RGB")).astype(int)
        return window[top : top + height, left : left + width]

    opened.js("document.querySelector('#region-1').scrollIntoView({block: 'center', behavior: 'instant'})")
    pictures = {}
    for key, name in (("1", "image"), ("2", "prediction"), ("3", "disagreement")):
        opened.press(key)
        pictures[name] = card()
    assert np.abs(np.ptp(pictures["image"][8:-8, 8:-8], axis=-1)).max() < 30  # grey
    cyan = (pictures["prediction"] - [0, 229, 255]).__abs__().max(axis=-1) < 60
    assert 0.002 < cyan.mean() < 0.2 and not (np.abs(pictures["image"] - [0, 229, 255]).max(axis=-1) < 60).any()
    assert np.ptp(pictures["disagreement"], axis=-1).mean() > 60  # colours


def test_arrows_move_between_regions_and_the_list_follows(opened: Browser):
    opened.press("ArrowRight", 39)
    opened.press("ArrowRight", 39)
    assert opened.js(CURRENT) == "a2,article2,g2,tr2"
    for _ in range(4):
        opened.press("ArrowRight", 39)
    assert "article3" in opened.js(CURRENT)
    opened.press("ArrowLeft", 37)
    assert "article2" in opened.js(CURRENT)
    assert opened.js("document.activeElement.id") == "region-2"
    opened.press("k")
    opened.press("j")
    opened.press("j")
    assert "article3" in opened.js(CURRENT)


def test_rows_and_boxes_lead_to_their_region(opened: Browser):
    opened.click('#rows tr[data-rank="3"] .name')
    assert opened.js(CURRENT) == "a3,article3,g3,tr3"
    opened.click('.box[data-rank="2"] rect')
    assert opened.js(CURRENT) == "a2,article2,g2,tr2"
    assert opened.js("document.activeElement.id") == "region-2"


def test_a_link_to_a_region_opens_at_it(opened: Browser, tmp_path: Path):
    opened.open(tmp_path / "report.html", "#region-2")
    assert "article2" in opened.js(CURRENT)


def test_a_region_is_enlarged_and_closed_again(opened: Browser):
    opened.press("ArrowRight", 39)
    opened.press("Enter", 13, "\r")
    assert opened.js("document.querySelector('#zoom').open")
    opened.press("ArrowRight", 39)
    assert opened.js("document.querySelector('#zoom-title').textContent").startswith("Rank 2: <img src=x")
    assert opened.js("document.querySelectorAll('#zoom-panes img').length") == 2
    assert opened.shown("#zoom-panes .pane") == [True, False]
    opened.press("4")
    assert opened.shown("#zoom-panes .pane") == [True, True]
    opened.press("Escape", 27)
    assert not opened.js("document.querySelector('#zoom').open")
    assert opened.js("document.title") == "What to label first"  # the name's onerror did not run
    opened.click("#region-3 .panes")
    assert opened.js("document.querySelector('#zoom').open")
    opened.click("[data-close]")
    assert not opened.js("document.querySelector('#zoom').open")


def test_filter_by_image(opened: Browser):
    choose(opened, "#filter", "0")
    assert opened.shown(".card") == [True, False, True]
    assert opened.shown("#rows tr") == [True, False, True]
    assert opened.shown(".thumbnails figure") == [True, False]
    assert opened.js(STATUS) == "2 of 3 regions"
    opened.press("ArrowRight", 39)
    opened.press("ArrowRight", 39)
    assert opened.js("document.querySelector('.card.current').dataset.rank") == "3"  # the hidden one is skipped
    opened.click(".only")
    assert all(opened.shown(".card"))


def test_the_image_of_the_current_region_alone_and_all_again_by_a_key(opened: Browser):
    opened.press("i")
    assert opened.js(STATUS) == "3 of 3 regions"  # no region is current
    opened.click('#rows tr[data-rank="2"] .name')
    opened.press("i")
    assert opened.js(STATUS) == "1 of 3 regions" and ranks(opened, ".card") == "2"
    opened.press("i")
    assert opened.js(STATUS) == "3 of 3 regions" and "article2" in opened.js(CURRENT)


def test_order_by_score(opened: Browser):
    choose(opened, "#order", "-score")
    assert ranks(opened, ".card") == ranks(opened, "#rows tr") == "3,2,1"
    opened.press("o")  # by image: regions 1 and 3 are of the first
    assert ranks(opened, ".card") == ranks(opened, "#rows tr") == "1,3,2"
    opened.press("o")
    assert ranks(opened, ".card") == "1,2,3"
    opened.press("ArrowRight", 39)
    choose(opened, "#order", "score")
    opened.press("ArrowRight", 39)
    assert "article2" in opened.js(CURRENT)


def test_box_row_and_card_light_up_together(opened: Browser):
    opened.point('#rows tr[data-rank="3"]')
    assert opened.js(HOT) == "a3,article3,g3,tr3"
    opened.point("h1")
    assert opened.js(HOT) == ""


def test_theme_follows_the_system_and_the_button(opened: Browser, tmp_path: Path):
    colours = {}
    for scheme in ("light", "dark"):
        opened.media(prefers_color_scheme=scheme)
        colours[scheme] = opened.js(PAPER)
    assert colours["light"] != colours["dark"]
    opened.press("t")
    assert opened.js(PAPER) == colours["light"]
    opened.click("#theme")
    assert opened.js(PAPER) == colours["dark"]
    opened.media(prefers_color_scheme="light")
    opened.open(tmp_path / "report.html")
    assert opened.js(PAPER) == colours["dark"]  # remembered
    opened.js("localStorage.clear()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(opened: Browser, scheme: str):
    def luminance(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    opened.media(prefers_color_scheme=scheme)
    for text, background in (
        ("h1", ".top"),
        (".cost td", ".top"),
        (".list small", "body"),
        (".card header p", ".card"),
        (".card footer a", ".card"),
        (".switch [aria-pressed=true]", ".switch [aria-pressed=true]"),
    ):
        style = "getComputedStyle(document.querySelector('{}')).{}"
        pair = opened.js(style.format(text, "color")), opened.js(style.format(background, "backgroundColor"))
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, pair)  # WCAG AA


def test_print_shows_everything_on_white(opened: Browser):
    opened.media("print", prefers_color_scheme="dark")
    assert opened.js(PAPER) == "rgb(255, 255, 255)"
    assert opened.shown(".toolbar") == [False] and not any(opened.shown(".hint"))
    assert all(opened.shown(".card .picture")) and all(opened.shown(".card .map"))
    opened.press("1")  # also where the screen shows the image alone
    assert all(opened.shown(".card .map")) and all(opened.shown(".card .outline"))
    assert opened.box(".settings")[1] > opened.box("#cards")[1]  # the settings come last
    opened.media()


def test_printing_opens_the_settings_and_closes_them_again(opened: Browser):
    opened.js("addEventListener('beforeprint', () => { window.seen = document.querySelector('details').open })")
    pdf = opened.pdf()
    assert pdf.startswith(b"%PDF") and len(pdf) > 5000
    assert opened.js("window.seen") is True
    assert opened.js("document.querySelector('details').open") is False
    opened.click("summary")
    opened.pdf()
    assert opened.js("document.querySelector('details').open") is True  # as the user left it


@pytest.mark.parametrize("width", [320, 390, 768, 1400])
def test_nothing_sticks_out_at_any_width(opened: Browser, width: int):
    opened.size(width, 844, touch=width < 900)
    assert opened.js("document.documentElement.scrollWidth") <= width
    assert opened.box(".toolbar")[3] <= 110  # it stays in view: no more than an eighth of a telephone
    opened.press("4")
    opened.click("#region-1 .panes")
    left, _, wide, _ = opened.box("#zoom")
    assert left >= 0 and left + wide <= width
    for part in ("#zoom .switch", "#zoom [data-close]", '#zoom [data-move="1"]', "#zoom-panes"):
        inner = opened.box(part)
        assert left <= inner[0] and inner[0] + inner[2] <= left + wide, part
    buttons = "[...document.querySelectorAll('#zoom .switch button')].every(b => b.scrollWidth <= b.clientWidth + 1)"
    assert opened.js(buttons)


def test_keys_are_left_to_the_browser_in_fields_and_with_modifiers(opened: Browser):
    opened.js("document.querySelector('#order').focus()")
    opened.press("1")
    assert opened.js("document.body.dataset.view") == "prediction"
    opened.js("document.activeElement.blur()")
    opened.press("1", modifiers=2)  # control
    assert opened.js("document.body.dataset.view") == "prediction"
    opened.press("1")
    assert opened.js("document.body.dataset.view") == "image"


def test_a_list_chosen_from_with_the_mouse_gives_the_keys_back(opened: Browser):
    opened.js(
        "(s => { s.focus(); s.dispatchEvent(new PointerEvent('pointerdown')); s.value = '1';"
        " s.dispatchEvent(new Event('change')) })(document.querySelector('#filter'))"
    )
    opened.press("ArrowRight", 39)
    assert "article2" in opened.js(CURRENT)
    assert opened.js("document.querySelector('#filter').value") == "1"


def test_without_prediction_and_scores_the_page_works_as_well(opened: Browser, tmp_path: Path):
    make_report(tmp_path / "bare.html", predictions=None, maps=None, settings={})
    opened.open(tmp_path / "bare.html")
    for key in "1234":
        opened.press(key)
        assert opened.js("document.body.dataset.view") == "image"
    opened.press("ArrowRight", 39)
    opened.press("Enter", 13, "\r")
    assert opened.shown("#zoom-panes .pane") == [True]

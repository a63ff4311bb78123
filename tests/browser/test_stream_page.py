"""The live page in a real browser, with two sources: pictures change, labels show, it fits, and it's quiet."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.browser.chromium import Tab, tab
from tests.streaming.items import event, record, source_status, status, until
from vitedge.streaming.page.sink import PageSink
from vitedge.streaming.records import Score

pytest.importorskip("starlette", reason="the page needs the extra 'stream'")
pytest.importorskip("uvicorn", reason="the page needs the extra 'stream'")

HOSTILE = "<img src=x onerror=alert(1)>"
NAMES = ("door", "yard")


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with tab() as found:
        yield found


@pytest.fixture
def page(browser: Tab) -> Iterator[PageSink]:
    sink = PageSink(("127.0.0.1", 0), None, None, sources=2)
    browser.open("about:blank")  # the page before has lost its stream, and says so
    browser.events.clear()
    yield sink
    sink.close(5)


def show(page: PageSink, number: int, **changed: Any) -> None:
    """One frame of both sources, grey levels as their number says; every tenth with a status."""
    for name in NAMES:
        shade = np.full((180, 320, 3), (number * 9) % 256, np.uint8)
        page.put(record(number, name, monotonic_ns=time.monotonic_ns(), **changed), shade)
    if number % 10 == 0:
        page.put(status(*(source_status(name, **{"label": "cat"}) for name in NAMES)), None)
    time.sleep(0.07)


def shown(browser: Tab, query: str) -> list[str]:
    return list(browser.evaluate(f"[...document.querySelectorAll({query!r})].map((node) => node.textContent)"))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_it_shows_both_sources_and_their_pictures_change(
    browser: Tab, page: PageSink, width: int, dark: bool, request: pytest.FixtureRequest
) -> None:
    show(page, 0)
    page.put(event(0, source="door"), None)
    browser.open(page.addresses[0], width=width, dark=dark)
    pixels = """
        [...document.querySelectorAll(".view")].map((view) => {
          const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          copy.drawImage(view, 0, 0);
          return copy.getImageData(5, 5, 1, 1).data[0];
        })
    """
    until(lambda: page.viewers and len(browser.evaluate(pixels)) == 2)
    seen: set[tuple[int, ...]] = set()
    for number in range(1, 25):
        show(page, number)
        seen.add(tuple(browser.evaluate(pixels)))
    assert len({first for first, _ in seen}) > 2 and len({second for _, second in seen}) > 2, "the pictures stand still"
    assert shown(browser, ".title") == list(NAMES)
    assert shown(browser, ".label") == ["cat", "cat"] and shown(browser, ".probability") == ["75 %", "75 %"]
    assert shown(browser, "#connection") == ["live"]
    facts = " ".join(shown(browser, ".camera .facts div"))
    for words in ("age p50", "age p95", "age p99", "dropped5", "reconnects1", "frames / s27.0"):
        assert words in facts
    assert "61 °C" in " ".join(shown(browser, "#device dd"))
    assert any("cat" in line for line in shown(browser, "#events li"))
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    small = "[...document.querySelectorAll('p, dt, dd, li, th, td')].filter((node) => node.textContent.trim()"
    small += " && node.offsetHeight && parseFloat(getComputedStyle(node).fontSize) < 12).length"
    assert browser.evaluate(small) == 0, "text that's too small to read"
    assert browser.complaints == []
    assert all(url.startswith(page.addresses[0]) for url in browser.requested), browser.requested
    folder = request.config.cache.mkdir("stream-page")
    data = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
    (folder / f"{'dark' if dark else 'light'}-{width}.png").write_bytes(base64.b64decode(data))


def test_text_stands_out_from_its_background(browser: Tab, page: PageSink) -> None:
    """WCAG 2.2: a contrast of 4.5 and more, in light and dark."""
    contrast = """
        (() => {
          const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
          const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (node) => {
            for (; node; node = node.parentElement) {
              const found = parse(getComputedStyle(node).backgroundColor);
              if (found.length < 4 || found[3] > 0.7) return found;
            }
            return [255, 255, 255];
          };
          return [...document.querySelectorAll("h1, p, dt, dd, small, span, summary, td, th, time, kbd")]
            .filter((node) => node.offsetHeight
              && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
            .map((node) => [light(parse(getComputedStyle(node).color)), light(behind(node)), node.textContent])
            .map(([a, b, text]) => [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text])
            .filter(([ratio]) => ratio < 4.5);
        })()
    """
    for dark in (False, True):
        browser.open(page.addresses[0], dark=dark)
        for number in range(0, 12):
            show(page, number)
        assert browser.evaluate(contrast) == []


def test_the_keyboard_chooses_a_camera_and_holds_the_picture(browser: Tab, page: PageSink) -> None:
    browser.open(page.addresses[0])
    until(lambda: page.viewers)
    for number in range(0, 12):
        show(page, number)
    visible = "[...document.querySelectorAll('.camera')].filter((node) => node.offsetHeight).length"

    def press(key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "")

    assert browser.evaluate(visible) == 2
    press("2")
    assert browser.evaluate(visible) == 1
    assert browser.evaluate("document.activeElement.getAttribute('aria-label')") == "Camera yard"
    press("ArrowRight")
    assert browser.evaluate("document.activeElement.getAttribute('aria-label')") == "Camera door"
    press("Escape")
    assert browser.evaluate(visible) == 2
    press(" ")
    assert shown(browser, "#connection") == ["held"]
    counted = "document.querySelector('.view').dataset.pictures"
    before = browser.evaluate(counted)
    for number in range(12, 18):
        show(page, number)
    assert browser.evaluate(counted) == before
    press(" ")
    for number in range(18, 26):
        show(page, number)
    assert browser.evaluate(counted) != before


def test_hostile_names_are_text(browser: Tab, page: PageSink) -> None:
    browser.open(page.addresses[0])
    scores = (Score(label=HOSTILE, probability=0.9),)
    page.put(status(source_status(HOSTILE, state="waiting", reason=HOSTILE), artifact=HOSTILE), None)
    page.put(event(0, source=HOSTILE, label=HOSTILE), None)
    page.put(event(1, "lost", source=HOSTILE, text=HOSTILE), None)
    page.put(record(0, HOSTILE, label=HOSTILE, smoothed=scores, raw=scores), None)
    until(lambda: shown(browser, ".title") == [HOSTILE] and HOSTILE in shown(browser, ".who"))
    assert shown(browser, "h1") == [HOSTILE]
    assert browser.evaluate("document.images.length") == 0
    assert browser.complaints == []
    assert not any(event.get("method") == "Page.javascriptDialogOpening" for event in browser.events)


def test_it_says_when_the_stream_is_gone(browser: Tab, page: PageSink) -> None:
    browser.open(page.addresses[0])
    for number in range(0, 12):
        show(page, number)
    page.close(5)
    until(lambda: shown(browser, "#connection") == ["the stream doesn't answer"])
    until(lambda: shown(browser, ".label") == ["unknown", "unknown"])
    assert browser.evaluate("document.querySelectorAll('.camera.stale').length") == 2

"""The report in a real browser: nothing is asked for, nothing complains, and it fits a phone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.browser.chromium import Tab, tab
from tests.reporting import results
from tests.reporting.kinds import kinds
from tests.reporting.test_html import hostile, long_run
from vitedge.formats.result import decode_result
from vitedge.reporting import html


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with tab() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    slow = replace(results.latency(3.0), samples=results.samples(3.0, blocks=20, each=4000))
    large = replace(results.demo(), rows=(replace(results.demo().rows[0], latency=slow),))
    made = {
        "plain": html.render([results.demo()]),
        **{name: html.render(of_kind) for name, of_kind in kinds().items()},
        "hostile": html.render([hostile()]),
        "large": html.render([large]),
        "long": html.render([long_run()]),
    }
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("name", ["plain", "hostile", "long", *kinds()])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (400, False), (400, True)])
def test_it_renders_quietly_and_alone(browser: Tab, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    browser.events.clear()
    browser.open(pages[name], width=width, dark=dark)
    assert browser.complaints == []
    assert [url for url in browser.requested if not url.startswith(("data:", pages[name].as_uri()))] == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    cut = "[...document.querySelectorAll('.scroll:has(.stack)')].some((frame) => frame.scrollWidth > frame.clientWidth)"
    assert not browser.evaluate(cut), "a column of the first table is out of sight"
    first = "document.querySelector('main table, .headline').getBoundingClientRect().bottom"
    assert browser.evaluate(first) < 800, "what to do isn't on the first screen"
    assert browser.evaluate("document.querySelectorAll('svg').length") >= 3
    smallest = (
        "Math.min(...[...document.querySelectorAll('svg text')].map((text) => text.getBoundingClientRect().height))"
    )
    assert browser.evaluate(smallest) > 8
    assert not any(event.get("method") == "Page.javascriptDialogOpening" for event in browser.events)


def test_text_stands_out_from_its_background_in_light_and_dark(browser: Tab, pages: dict[str, Path]) -> None:
    contrast = """
        (() => {
          const light = (name) => {
            const probe = document.createElement('i');
            probe.style.color = `var(--${name})`;
            document.body.append(probe);
            const channels = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
              .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
            probe.remove();
            return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2];
          };
          const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
          const inks = ['ink', 'quiet', 'accent', 'good', 'bad', 'unsure'];
          const pairs = inks.flatMap((ink) => [[ink, 'card', 4.5], [ink, 'page', 4.5]]);
          for (let number = 0; number < 8; number++) pairs.push(['on-series', `s${number}`, 4]);
          return pairs.map(([a, b, least]) => [a, b, ratio(a, b), least]).filter(([, , found, least]) => found < least);
        })()
    """
    for dark in (False, True):
        browser.open(pages["plain"], dark=dark)
        assert browser.evaluate(contrast) == []


@pytest.mark.parametrize("name", ["plain", "large"])
def test_the_button_saves_the_raw_results(browser: Tab, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    saved = browser.evaluate(
        """
        new Promise((resolve) => {
          HTMLAnchorElement.prototype.click = () => {};
          URL.createObjectURL = (blob) => { blob.text().then(resolve); return '#'; };
          document.getElementById('save').click();
        })
        """
    )
    (record,) = json.loads(saved)
    result = decode_result(json.dumps(record).encode(), "saved")
    assert result.rows[0].subject == results.demo().rows[0].subject
    assert result.rows[0].latency is not None


def test_it_prints(browser: Tab, pages: dict[str, Path]) -> None:
    browser.open(pages["plain"], dark=True)
    data = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert data.startswith(b"%PDF")
    browser.open(pages["plain"], dark=True, media="print")
    browser.open(pages["plain"], width=703, media="print")  # A4 within its margins
    assert browser.evaluate("document.documentElement.scrollWidth") <= 703
    assert browser.evaluate("getComputedStyle(document.querySelector('thead')).display") == "table-header-group"
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.getElementById('save').parentElement).display") == "none"

"""The HTML report: everything in one file, nothing from outside runs, breaks out or is asked for."""

from __future__ import annotations

import base64
import gzip
import html as html_words
import io
import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from tests.graph.vits import tiny
from tests.reporting import results
from vitedge.core.files import sha256
from vitedge.data.images import ImageSet
from vitedge.device.reading import Reading
from vitedge.errors import UsageError
from vitedge.formats.architecture import BlockWidths
from vitedge.formats.artifact import LayerPlan, Step
from vitedge.formats.result import Accuracy, Calibrated, Result, Samples, decode_result, encode_result
from vitedge.formats.samples import Block, Layer, Profile
from vitedge.reporting import html, plots
from vitedge.reporting.gallery import Answer, Shown
from vitedge.reporting.rows import lines

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "\x1b[31mred\x1b[0m",
    "$\\frac{$ {{ 7 * 7 }} {% raw %}",
    "]]></svg><script>alert(3)</script>",
    "a & b 'c' \u202egnp.exe",
)


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self._script = dict(attrs).get("type") or "text/javascript"

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def hostile() -> Result:
    """A result whose every word from outside is an attack."""
    one, two, three, ansi, mathematics, svg, odd = HOSTILE
    result = results.demo()
    classes = (one, two, three, ansi, mathematics, svg, odd, "x", "y", "z")
    data = replace(results.data(classes=classes), source=two, skipped=(one,))
    rows = []
    for row in result.rows:
        subject = replace(row.subject, name=three, target=one, variant=mathematics)
        checks = tuple(replace(check, name=svg, detail=ansi) for check in row.checks)
        rows.append(replace(row, subject=subject, checks=checks, note=two, session={"version": svg, "threads": three}))
    board = replace(result.environment.board, model=one, os=three)
    where = replace(
        result.environment,
        board=board,
        processor=replace(result.environment.processor, model=svg),
        versions={one: two},
    )
    return replace(result, rows=tuple(rows), data=data, environment=where)


@pytest.fixture(scope="module")
def page() -> str:
    return html.render([results.demo()])


@pytest.fixture(scope="module")
def attacked() -> str:
    shown = [Shown(HOSTILE[0], b"not a picture", HOSTILE[1], (Answer(HOSTILE[2], HOSTILE[5], 0.5, True),))]
    return html.render([hostile()], shown=shown)


def test_the_decision_and_every_number_are_there(page: str) -> None:
    words = Page(page).words
    assert "Deploy openvino int8" in words
    for line in lines([results.demo()]):
        assert line.label in words
    assert "portable: build on the device" in words and "tensorrt-rtx 1.7.1" in words
    assert "nearest-rank" in words and "cifar10-held-out.zip" in words and "AMD EPYC" in words


def test_the_pictures_are_there_and_take_their_colours_from_the_page(page: str) -> None:
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == 6
    for svg in drawn:
        assert "var(--ink)" in svg or "var(--quiet)" in svg
        assert not re.search(r"#0[ab]00[0-9a-f]{2}", svg)
        assert set(re.findall(r"#[0-9a-fA-F]{6}", svg)) <= {"#000000", "#ffffff"}
        assert "<style" not in svg and "<metadata" not in svg
    assert len(set(re.findall(r'<clipPath id="([^"]*)"', page))) == len(re.findall(r"<clipPath id=", page))


def test_every_colour_that_is_used_is_defined_for_light_dark_and_paper(page: str) -> None:
    css = (html.TEMPLATES / "report.css").read_text()
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", page)) - {"sans", "mono"}
    for name in used:
        assert len(re.findall(rf"--{name}:", css)) == 3, name


def test_it_asks_for_nothing_from_outside(page: str) -> None:
    found = Page(page)
    for tag, name, value in found.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster") or name.endswith(":href"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_its_only_script_is_ours_and_the_policy_allows_no_other(page: str) -> None:
    import hashlib

    found = Page(page)
    assert found.tags.count("script") == 2
    script = found.scripts["text/javascript"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]


def test_the_raw_results_are_in_it(page: str) -> None:
    embedded = json.loads(Page(page).scripts["application/json"])
    assert [decode_result(json.dumps(each).encode(), "page") for each in embedded] == [results.demo()]


def test_large_results_are_compressed_and_then_left_out() -> None:
    result = results.demo()
    long = replace(
        result.rows[0], latency=replace(results.latency(3.0), samples=results.samples(3.0, blocks=20, each=4000))
    )
    found = Page(html.render([replace(result, rows=(long,))]))
    packed = gzip.decompress(base64.b64decode(found.scripts["application/gzip"]))
    assert json.loads(packed)[0] == json.loads(encode_result(replace(result, rows=(long,))))


def test_a_result_that_is_too_large_is_left_out_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MOST_BYTES", 1000)
    found = Page(html.render([results.demo()]))
    assert "stays in result.json" in found.words
    assert set(found.scripts) == {"text/javascript"}


def test_nothing_from_outside_becomes_markup(attacked: str, page: str) -> None:
    found = Page(attacked)
    assert found.tags.count("script") == 2 and "img" not in found.tags
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert set(found.tags) <= {*Page(page).tags, "li", "ul", "strong", "code", "br"}


def test_what_is_from_outside_is_shown_as_it_is(attacked: str) -> None:
    words = html_words.unescape(attacked)
    assert HOSTILE[0] in words and HOSTILE[4] in words
    assert "\x1b" not in attacked and "\\x1b[31mred" in words
    assert "\u202e" not in Page(attacked).words


def test_one_row_without_accuracy_is_enough() -> None:
    result = results.demo()
    alone = replace(result, rows=(replace(result.rows[0], accuracy=None),), data=None)
    assert "Deploy onnxruntime fp32" in Page(html.render([alone])).words


def test_nothing_measured_is_a_page_too() -> None:
    result = results.demo()
    assert "Nothing was measured here" in Page(html.render([replace(result, rows=result.rows[4:])])).words


def test_results_of_two_machines_have_two_decisions() -> None:
    result = results.demo()
    words = Page(html.render([result, replace(result, environment=results.PI)])).words
    assert "On AMD EPYC, 2 cores" in words and "On Raspberry Pi 5 Model B Rev 1.0" in words
    assert "aren't ranked against each other" in words


def pictures(path: Path, result: Result) -> ImageSet:
    assert result.data is not None
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(result.data.names):
            stream = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), number % 251, np.uint8)).save(stream, "PNG")
            archive.writestr(name, stream.getvalue())
    return ImageSet.open(path)


def test_flipped_images_are_shown_when_the_pictures_are_there(tmp_path: Path) -> None:
    result = results.demo()
    images = pictures(tmp_path / "images.zip", result)
    assert result.data is not None
    digest = sha256("".join(sorted(images.digest(index) for index in range(len(images)))).encode())
    known = replace(result, data=replace(result.data, digest=digest))
    flipped = lines([known])[3].paired
    assert flipped is not None and flipped.flips
    found = Page(html.render([known], images=images))
    shown = [value for tag, name, value in found.attributes if (tag, name) == ("img", "src")]
    assert len(shown) == len(flipped.flips) and all(uri.startswith("data:image/png;base64,") for uri in shown)
    for index in flipped.flips:
        assert result.data.names[index] in found.words


def test_other_pictures_than_those_evaluated_are_refused(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images.zip", results.demo())
    with pytest.raises(UsageError, match="aren't the ones that accuracy was measured on"):
        html.render([results.demo()], images=images)


def test_the_front_is_what_nothing_beats() -> None:
    found = lines([results.demo()])
    best = plots.front(found)
    assert best[0].label == "openvino int8"
    for line in best:
        assert not any(
            other.cost_ms < line.cost_ms and other.top1 > line.top1  # type: ignore[operator]
            for other in found
            if other.cost_ms and other.top1
        )


def test_too_many_classes_are_not_drawn_one_by_one() -> None:
    result = results.demo()
    data = results.data(classes=[f"class {number}" for number in range(60)])
    rows = tuple(replace(row, accuracy=results.accuracy(data)) if row.accuracy else row for row in result.rows)
    line = lines([replace(result, rows=rows, data=data)])[1]
    assert plots.classes(line, "classes") is None and plots.confusions(line, "confusions") is None


def test_an_interrupted_run_of_which_nothing_is_left_is_a_page_too() -> None:
    result = results.demo()
    nothing = Samples(start_ns=(), latency_ns=(), blocks=())
    empty = replace(results.latency(3.0), samples=nothing, overhead=nothing, readings=(), audit=None)
    none = Accuracy(predicted=(), rank=(), calibrated=Calibrated(count=(), correct=(), confidence_sum=()))
    rows = tuple(replace(row, latency=empty, accuracy=none) for row in result.rows[:2])
    words = Page(html.render([replace(result, rows=rows, partial=True)])).words
    assert "Nothing was measured here" in words and "A run was interrupted" in words


def test_one_class_and_one_image() -> None:
    result, one = results.demo(), results.data(1, classes=["only"])
    answer = Accuracy(predicted=(0,), rank=(0,))
    rows = tuple(replace(row, accuracy=answer) for row in result.rows[:2])
    assert "100.0" in Page(html.render([replace(result, rows=rows, data=one)])).words


def test_no_results_at_all_is_still_a_page() -> None:
    assert "nothing" in Page(html.render([])).words


def test_names_in_any_script_are_shown() -> None:
    names = ("飞机", "автомобиль", "طائر", "고양이", "🦌", "hund", "лягушка", "馬", "πλοίο", "ट्रक")
    result = replace(results.demo(), data=results.data(classes=names))
    found = Page(html.render([result]))
    assert all(name in found.words for name in names)


def long_run(seconds: int = 120) -> Result:
    """One artifact under load for two minutes while the clock falls, profiled, its power read."""
    turns = 24
    each = tuple(range(0, seconds * 1_000_000_000, seconds * 1_000_000_000 // turns))
    starts = [begin + 10_000_000 * number for begin in each for number in range(40)]
    samples = Samples(
        start_ns=tuple(starts),
        latency_ns=tuple(3_000_000 + start // 200_000 for start in starts),
        blocks=tuple(Block(start_ns=begin, end_ns=begin + 400_000_000, samples=40) for begin in each),
    )
    readings = tuple(
        Reading(at_ns=200_000_000 * number, clock_mhz=2400.0 - number, temperature_c=50.0, power_w=7.5)
        for number in range(5 * seconds)
    )
    layer = Layer(name="blocks.0.attn.qkv", operator="MatMul", type="fp32", ns=(100, 120, 110))
    profile = Profile(layers=(layer, replace(layer, name="blocks.1.mlp.fc1"), replace(layer, name="head.fc")))
    latency = replace(results.latency(3.0), samples=samples, readings=readings, power_of=("board",))
    result = results.demo()
    return replace(result, rows=(replace(result.rows[0], latency=latency, profile=profile), *result.rows[1:4]))


def explained_rows() -> Result:
    """A float row and a quantized one of the same model on the same runtime, both profiled; hostile names."""
    result = results.demo()
    names = ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2", HOSTILE[0])
    plan = tuple(
        LayerPlan(name=name, kind="linear", precision="int8" if number else "fp32", macs=100, sensitivity=2e-5 * number)
        for number, name in enumerate(names)
    )
    plan = (replace(plan[0], reason=HOSTILE[1]), *plan[1:])
    layer = Layer(name=names[0], operator="MatMul", type="fp32", ns=(100_000, 120_000, 110_000))
    before = Profile(layers=(layer, replace(layer, name=names[1])))
    rounding = replace(layer, name=f"{names[1]}.input.q", operator="QuantizeLinear", ns=(5_000,) * 3)
    after = Profile(layers=(layer, replace(layer, name=names[1], ns=(30_000,) * 3), rounding))
    steps = tuple(
        Step(quantized=share, groups_in_float=number, divergence=kl, agreement=1.0, latency_ms=ms, chosen=number == 1)
        for number, (share, kl, ms) in enumerate(((0.9, 3e-4, 1.1), (0.6, 1e-4, 1.3), (0.0, 0.0, 1.9)))
    )
    plain = next(row for row in result.rows if row.subject.precision == "fp32" and row.subject.runtime == "openvino")
    quick = next(row for row in result.rows if row.subject.precision == "int8" and row.subject.runtime == "openvino")
    about = replace(quick.subject, layers=plan, steps=steps)
    return replace(result, rows=(replace(plain, profile=before), replace(quick, subject=about, profile=after)))


def test_a_quantized_row_is_explained_layer_by_layer() -> None:
    page = html.render([explained_rows()])
    found = Page(page)
    assert (
        "Speed and accuracy, layer by layer" in found.words
        and "Accuracy against latency of the selection" in found.words
    )
    assert "int8 is 1.52× as fast as float32 here" in found.words
    assert "mlp: 220 µs before, 140 after: saves 80 µs." in found.words
    assert "Quantizing and dequantizing in between, 1 node: 5 µs" in found.words
    assert HOSTILE[1] in found.words, "a reason, as it is"
    assert found.tags.count("script") == Page(html.render([results.demo()])).tags.count("script")
    assert "1, chosen" in page and "all in float" in page
    alone = replace(explained_rows(), rows=explained_rows().rows[1:])
    assert "float32 here" not in Page(html.render([alone])).words, "no float row beside it, so nothing is compared"


def test_the_widths_of_each_block_are_a_table() -> None:
    blocks = (
        BlockWidths(heads=3, query_key=24, value=40, mlp_hidden=0),
        BlockWidths(heads=0, query_key=0, value=0, mlp_hidden=200),
    )
    plain = explained_rows()
    row = replace(plain.rows[0], subject=replace(plain.rows[0].subject, architecture=tiny(blocks=blocks)))
    narrow = replace(plain, rows=(row, *plain.rows[1:]))
    assert (plain.schema_version, narrow.schema_version) == (3, 4)
    assert decode_result(encode_result(narrow), "result.json") == narrow
    assert "Widths of each block" not in html.render([plain])
    cells = "".join(f'<td class="n">{cell}</td>' for cell in ("0", "3", "24", "40", "–"))
    assert cells in html.render([narrow])


def test_a_long_run_shows_load_sensors_layers_and_energy() -> None:
    page = html.render([long_run()])
    words = Page(page).words
    assert "Burst and sustained load" in words and "Where the time goes: A, onnxruntime fp32" in words
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    for label in ("MHz", "°C", ">W<", "block 0", "block 1", "the rest", "attention", "mlp"):
        assert label in drawn, label
    assert "energy, mJ an image" in words and "board" in words


def test_what_could_not_be_read_is_not_drawn() -> None:
    result = results.demo()
    assert result.rows[0].latency is not None
    blind = replace(result.rows[0], latency=replace(result.rows[0].latency, readings=()))
    drawn = "".join(re.findall(r"<svg.*?</svg>", html.render([replace(result, rows=(blind,))]), re.DOTALL))
    assert "MHz" not in drawn and "°C" not in drawn and "Latency during the run" in drawn


def test_every_class_stands_in_a_table_those_that_lost_most_first() -> None:
    page = html.render([results.demo()])
    inside = re.findall(r"<details.*?</details>", page, re.DOTALL)
    assert len(inside) == 1 and all(name in inside[0] for name in results.CLASSES)
    assert "Class by class" in Page(inside[0]).words


def test_why_rows_are_apart_stands_above_them() -> None:
    result = results.demo()
    words = Page(html.render([result, replace(result, environment=results.PI)])).words
    assert "Not ranked with the first rows: another machine." in words

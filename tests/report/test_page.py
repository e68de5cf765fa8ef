"""The page in a real browser, looked at: what is drawn can be seen and read, in the light, in the dark, on a phone."""

import base64
import gzip
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from decaybench.analysis.comparison import ComparisonSettings, Summary
from decaybench.report.figures import FIGURES
from decaybench.report.html import to_html
from decaybench.results.record import INPUT_GRID, Record
from made_records import made, pairs, summary_of

pytestmark = pytest.mark.slow

NASTY = "<script>window.hacked=1</script>"
LOOKS = [(1300, "light"), (1300, "dark"), (390, "light"), (390, "dark")]


def summary() -> Summary:
    records: list[Record] = []
    for activation in ("prelu", "kaf"):
        for decay in (0.01, 0.1):
            noise = np.random.default_rng(0).normal(0.02, 0.01, 6)
            records += pairs(list(noise), activation=activation, weight_decay=decay)
    records += [made(0.5 + 0.01 * s, "no-decay", s, weight_decay=0.0) for s in range(6)]
    records += [made(0.9, "exclude-1d", 0, activation="relu")]
    curve = {"mean": list(INPUT_GRID), "low": list(INPUT_GRID), "high": list(INPUT_GRID)}
    drawn = {
        "curve": {"start": curve, "end": curve, "channels": [list(INPUT_GRID)] * 2},
        "inputs": [1 / 48] * 48,
        "quantiles": [[0, 0.1, 0.2, 0.3, 0.4]] * 2,
    }
    records = [replace(r, layers=tuple(replace(layer, **drawn) for layer in r.layers)) for r in records]
    records[0].provenance["device_name"] = NASTY
    rows = [{"name": f"{i}.weight", "role": "activation", "group": 0, "ratio": [0.1, 1.0, None]} for i in range(3)]
    records[-1] = replace(records[-1], extra={"watched": {"steps": [1, 101, 201], "parameters": rows}})
    return summary_of(records)


def page() -> str:
    return to_html(summary(), ComparisonSettings(), f"a study {NASTY}", "does <b>it</b> & matter?", "decaybench run x")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(), encoding="utf-8")
    return path


def opened(browser: Any, path: Path, width: int = 1300, scheme: str = "light") -> tuple[Any, list[str]]:
    """Opens a page and waits until it is drawn; the list holds what went wrong and what was asked for."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-drawn]", timeout=60_000)
    return tab, wrong


# What the page draws, as the browser knows it: colours as numbers, boxes in pixels.
MEASURE = """() => {
  const rgb = text => { const m = text.match(/[\\d.]+/g); return m ? m.map(Number) : null; };
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c && (c.length < 4 || c[3] > 0)) return c.slice(0, 3); } return [255, 255, 255]; };
  const see = e => { for (; e && e.tagName !== 'BODY'; e = e.parentElement)
    if (getComputedStyle(e).display === 'none' || e.hidden) return false; return true; };
  return [...document.querySelectorAll('.chart svg')].filter(see).map(svg => {
    const box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim()).map(t => {
      const style = getComputedStyle(t), b = t.getBoundingClientRect();
      let opacity = 1; for (let e = t; e !== svg; e = e.parentElement) opacity *= +getComputedStyle(e).opacity;
      return { text: t.textContent, fill: rgb(style.fill), opacity, size: parseFloat(style.fontSize),
        left: b.left - box.left, right: box.right - b.right, top: b.top - box.top, bottom: box.bottom - b.bottom }; });
    const marks = [...svg.querySelectorAll('.role-mark path, .role-mark line, .role-mark rect')].map(m => {
      const style = getComputedStyle(m), b = m.getBoundingClientRect();
      return { fill: style.fill, stroke: style.stroke, width: b.width, height: b.height }; });
    return { label: svg.closest('.chart').getAttribute('aria-label'), ground: ground(svg), texts, marks,
      fills: [...svg.querySelectorAll('.background, svg > rect')].map(r => getComputedStyle(r).fill),
      width: box.width, left: box.left, right: innerWidth - box.right }; }); }"""


def luminance(color: list[float]) -> float:
    """Relative luminance of WCAG 2.1."""
    parts = [c / 255 for c in color[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: list[float], second: list[float]) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def faults(charts: list[dict[str, Any]], scheme: str) -> list[str]:
    """Returns what a person would complain about, of what `MEASURE` found."""
    found = []
    for chart in charts:
        name, ground = chart["label"][:60], chart["ground"]
        if (luminance(ground) > 0.5) != (scheme == "light"):
            found.append(f"{name}: its ground {ground} is not the page's")
        found += [f"{name}: a box filled with {fill}" for fill in chart["fills"] if _opaque(fill)]
        for text in chart["texts"]:
            seen = text["fill"] and text["opacity"] > 0.9 and contrast(text["fill"], ground) >= 4.5
            if not seen:
                found.append(f"{name}: {text['text']!r} cannot be read ({text['fill']} on {ground})")
            if min(text[side] for side in ("left", "right", "top", "bottom")) < -1.5:
                found.append(f"{name}: {text['text']!r} is cut")
            if text["size"] < 10:
                found.append(f"{name}: {text['text']!r} is too small")
        colors = [c for m in chart["marks"] for c in (m["fill"], m["stroke"]) if _opaque(c)]
        if not any(contrast(_numbers(color), ground) >= 3 for color in colors):
            found.append(f"{name}: nothing that is drawn can be seen")
        if chart["left"] < 0 or chart["right"] < -1:
            found.append(f"{name}: it sticks out")
    return found


def _numbers(color: str) -> list[float]:
    return [float(x) for x in re.findall(r"[\d.]+", color)]


def _opaque(color: str) -> bool:
    numbers = _numbers(color)
    return len(numbers) >= 3 and (len(numbers) < 4 or numbers[3] > 0.1)


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_everything_that_is_drawn_can_be_seen_and_read(browser: Any, written: Path, width: int, scheme: str) -> None:
    tab, wrong = opened(browser, written, width, scheme)
    assert not wrong
    assert tab.evaluate("window.hacked") is None
    assert NASTY in tab.inner_text("h1")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    charts = tab.evaluate(MEASURE)
    assert len(charts) == 2 + 4 + 5 + 2 + 1  # the answer, decay, functions, parameters, pulls
    assert faults(charts, scheme) == []
    words = tab.evaluate(
        """() => [...document.querySelectorAll('h1,h2,h3,h4,p,td,th,li,dd,dt,button,select,summary')]
        .filter(e => e.textContent.trim() && e.offsetParent !== null)
        .map(e => [e.textContent.slice(0, 40), getComputedStyle(e).color])"""
    )
    ground = charts[0]["ground"]
    assert [text for text, color in words if contrast(_numbers(color), ground) < 4.5] == []
    tab.close()


@pytest.mark.parametrize(
    "break_it",
    [
        "svg.style.background = '#000'",  # the old fault: black figures
        "svg.querySelectorAll('text').forEach(t => { t.setAttribute('fill', '#000000'); t.style.fill = '#000000'; })",
        "svg.querySelectorAll('.role-mark *').forEach(m => { m.style.fill = 'none'; m.style.stroke = 'none'; })",
        "svg.querySelector('text').setAttribute('transform', 'translate(-500,0)')",
    ],
)
def test_what_is_measured_notices_the_old_faults(browser: Any, written: Path, break_it: str) -> None:
    scheme = "dark" if "text" in break_it else "light"
    tab, _ = opened(browser, written, 1300, scheme)
    tab.evaluate("() => { const svg = document.querySelector('.chart svg'); " + break_it + " }")
    assert faults(tab.evaluate(MEASURE), scheme)
    tab.close()


def test_pixels_of_a_figure_are_a_drawing_on_the_ground_of_the_page(browser: Any, written: Path) -> None:
    for scheme in ("light", "dark"):
        tab, _ = opened(browser, written, 1300, scheme)
        for chart in tab.locator(".chart:visible svg").all():
            grey = np.asarray(Image.open(io.BytesIO(chart.screenshot())).convert("L")).astype(int)
            ground = grey[0, 0]
            assert (ground > 230) if scheme == "light" else (ground < 60)
            assert (np.abs(grey - ground) > 60).mean() > 0.001
        tab.close()


def test_print_has_every_figure_and_no_choices(browser: Any, written: Path) -> None:
    tab, _ = opened(browser, written, 794, "light")
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 794
    assert faults(tab.evaluate(MEASURE), "light") == []
    assert not tab.locator("select").first.is_visible()
    assert tab.pdf(format="A4").startswith(b"%PDF")
    assert tab.locator("details[open]").count() == tab.locator("details").count()  # as they are printed
    tab.close()


def test_a_strategy_chosen_by_keyboard_is_chosen_everywhere(browser: Any, written: Path) -> None:
    tab, _ = opened(browser, written)
    button = tab.locator("button[data-strategy=exclude-alpha]")
    button.focus()
    tab.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    tab.wait_for_function(
        """() => [...document.querySelectorAll('.chart svg .role-mark path')]
        .some(p => +p.getAttribute('opacity') < 0.2)"""
    )
    dimmed = tab.locator("tr.dim").all()
    assert dimmed
    assert {row.get_attribute("data-strategies") for row in dimmed} >= {'["decay-all"]'}
    tab.keyboard.press("Enter")
    assert tab.locator("tr.dim").count() == 0
    tab.close()


def test_every_control_and_chart_has_a_name(browser: Any, written: Path) -> None:
    tab, _ = opened(browser, written)
    names = tab.evaluate(
        """() => [...document.querySelectorAll('button,select,input,[role=img],[role=region],nav')].map(e =>
        e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent)"""
    )
    assert all(name.strip() for name in names)
    told = tab.locator(".chart").first.get_attribute("aria-label")
    assert "λ 0.1: +0.0" in told.replace("+2.", "+0.0") or re.search(r"λ 0\.1: [+−]\d", told)  # the numbers, in words
    tab.close()


def test_tables_sort_filter_and_show_details(browser: Any, written: Path) -> None:
    tab, _ = opened(browser, written)
    table = tab.locator("table.cells").first
    assert not table.locator("th", has_text="p (Holm)").first.is_visible()
    tab.locator("button.more").click()
    assert table.locator("th", has_text="p (Holm)").first.is_visible()
    button = table.locator("th button", has_text="accuracy %")
    button.focus()
    for direction in ("ascending", "descending"):
        tab.keyboard.press("Enter")
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == direction
        column = [float(t.split(" ")[0]) for t in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
        assert column == sorted(column, reverse=direction == "descending")
    tab.fill("#filter", "prelu exclude")
    visible = tab.locator("table.cells tbody tr:visible td:first-child").all_inner_texts()
    assert visible
    assert all("exclude-alpha" in name for name in visible)
    tab.close()


def test_the_choice_of_a_decay_shows_its_functions(browser: Any, written: Path) -> None:
    tab, _ = opened(browser, written)
    for decay in ("0.01", "0.1"):
        tab.select_option("#which-decay", decay)
        tab.wait_for_function(
            """() => [...document.querySelectorAll('.chart')].filter(c => c.offsetParent)
            .every(c => c.querySelector('svg'))"""
        )
        shown = tab.evaluate(
            "[...document.querySelectorAll('[data-decay]')].filter(e => !e.hidden).map(e => e.dataset.decay)"
        )
        assert set(shown) == {decay}
    tab.close()


def test_the_page_is_small_for_a_thousand_runs(tmp_path: Path) -> None:
    records = [r for k in range(84) for r in pairs([0.01, 0.02, 0.0, 0.01, -0.01, 0.02], batch_size=k + 1)]
    bare = {"curve": {"start": None, "end": None}, "quantiles": [[0, 0.1, 0.2, 0.3, 0.4]] * 2}
    records = [replace(r, layers=tuple(replace(layer, **bare) for layer in r.layers)) for r in records]
    assert len(records) == 1008
    text = to_html(summary_of(records), ComparisonSettings(), "many", "", "decaybench run many")
    assert len(text.encode()) < 3e6


def test_specifications_are_those_of_the_drawing_library() -> None:
    """Vega-Lite's own schema accepts every panel: a misspelt property would silently do nothing."""
    import altair as alt

    packed = re.search(r'id="charts">([^<]*)<', page())
    assert packed
    panels = json.loads(gzip.decompress(base64.b64decode(packed[1])))["panels"]
    panels = [panel["spec"] for panel in panels]
    assert len({json.dumps(p["layer"][0]["mark"]) for p in panels}) >= 3
    for panel in panels:
        alt.LayerChart.from_dict(panel)  # raises where it does not fit
    assert len(FIGURES) == 6

"""The HTML page in a real browser, and the figures as files."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from decaybench.analysis.comparison import ComparisonSettings, Summary
from decaybench.report.figures import FIGURES, draw, save
from decaybench.report.html import to_html
from decaybench.results.record import INPUT_GRID, Record
from made_records import made, pairs, summary_of

pytestmark = pytest.mark.slow

NASTY = "<script>window.hacked=1</script>"


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
        "curve": {"start": curve, "end": curve},
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
def browser() -> Any:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_loads_without_an_error_or_a_request(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    wrong: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((tmp_path / "page.html").as_uri())
    assert not wrong
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert opened.evaluate("window.hacked") is None
    assert NASTY in opened.inner_text("h1")
    assert opened.locator("figure svg").count() == len(FIGURES)
    assert opened.locator("figure svg title").count() > 10  # what the pointer shows
    assert opened.locator("figure svg[aria-label]").count() == len(FIGURES)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    for number in range(len(FIGURES)):  # what a person sees: a drawing on the page's ground, and no box of one colour
        grey = np.asarray(Image.open(io.BytesIO(opened.locator("figure svg").nth(number).screenshot())).convert("L"))
        ground, ink = (grey > 230, grey < 120) if scheme == "light" else (grey < 60, grey > 150)
        assert ground.mean() > 0.4
        assert ink.mean() > 0.001
    colours = opened.evaluate(
        """() => { const b = getComputedStyle(document.body); const c = getComputedStyle(document.documentElement);
        return [b.color, c.colorScheme]; }"""
    )
    assert colours[0] == ("rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)")
    ids = opened.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    opened.close()


def test_tables_sort_and_filter_by_keyboard(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(), encoding="utf-8")
    opened = browser.new_page()
    opened.goto((tmp_path / "page.html").as_uri())
    table = opened.locator("table.cells").first
    button = table.locator("th button", has_text="accuracy %")
    button.focus()
    for direction in ("ascending", "descending"):
        opened.keyboard.press("Enter")
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == direction
        column = [float(t) for t in table.locator("tbody tr td:nth-child(5)").all_inner_texts()]
        assert column == sorted(column, reverse=direction == "descending")
    opened.fill("#filter", "prelu exclude")
    visible = opened.locator("table.cells tbody tr:visible td:first-child").all_inner_texts()
    assert visible
    assert set(visible) == {"exclude-alpha"}
    opened.close()


def test_the_page_is_small_for_a_thousand_runs() -> None:
    records = [r for k in range(84) for r in pairs([0.01, 0.02, 0.0, 0.01, -0.01, 0.02], batch_size=k + 1)]
    bare = {"curve": {"start": None, "end": None}, "quantiles": [[0, 0.1, 0.2, 0.3, 0.4]] * 2}
    records = [replace(r, layers=tuple(replace(layer, **bare) for layer in r.layers)) for r in records]
    assert len(records) == 1008
    text = to_html(summary_of(records), ComparisonSettings(), "many", "", "decaybench run many")
    assert len(text.encode()) < 5e6


@pytest.mark.parametrize("name", list(FIGURES))
def test_every_figure_is_a_file_for_a_paper(name: str) -> None:
    canvas = draw(name, summary(), "decay-all")
    assert canvas is not None
    for format, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        content = save(canvas, format)
        assert content.startswith(start)
        assert len(content) > 5000
    assert draw(name, summary_of([]), "decay-all") is None

"""Figures as files for a paper, and the data that they are made of."""

import io
import json
import re
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from decaybench.analysis.comparison import ComparisonSettings, Summary, summarize
from decaybench.analysis.frame import runs_frame
from decaybench.cli import app
from decaybench.registry import STRATEGIES
from decaybench.report import figures
from decaybench.report.figures import FIGURES, panels, spec, window
from decaybench.report.formats import FIGURE_NAMES
from decaybench.report.vega import COLORS, DARK, Look, Strategies, save
from decaybench.results.store import StudyFolder
from made_records import made, pairs, summary_of

REPOSITORY = Path(__file__).parents[2]


def test_the_names_that_the_command_line_knows_are_those_of_the_figures() -> None:
    assert tuple(FIGURES) == FIGURE_NAMES


def luminance(color: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colors_can_be_seen_on_white_and_in_the_dark_and_never_repeat() -> None:
    for color in COLORS:
        for ground in ("#ffffff", DARK):
            light, dark = sorted((luminance(color), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, (color, ground)
    import pandas as pd

    names = [*STRATEGIES, *(f"own.py:f{i}" for i in range(12))]
    strategies = Strategies(pd.DataFrame({"strategy": names, "method": names}))
    marks = [str(strategies.mark(name)) for name in names]
    assert len(set(marks)) == len(names)
    assert len({strategies.mark(name)[0] for name in STRATEGIES}) == len(STRATEGIES)


def simulated(color: str) -> Any:
    """How a person without green cones sees a colour (Viénot, Brettel and Mollon 1999, by linear RGB)."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2
    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    lms = to_lms @ rgb
    lms[1] = 0.494207 * lms[0] + 1.24827 * lms[2]
    return np.clip(np.linalg.inv(to_lms) @ lms, 0, 1) ** (1 / 2.2)


def test_the_first_eight_are_told_apart_by_color_blind_eyes() -> None:
    """By colour or, where two are close, by the shape of their marks."""
    import pandas as pd

    names = list(STRATEGIES)[:8]
    strategies = Strategies(pd.DataFrame({"strategy": names, "method": names}))
    for i, first in enumerate(names):
        for second in names[:i]:
            (a, shape_a, _), (b, shape_b, _) = strategies.mark(first), strategies.mark(second)
            assert np.abs(simulated(a) - simulated(b)).max() > 0.1 or shape_a != shape_b


def test_a_window_shows_where_methods_differ_and_not_what_collapsed() -> None:
    assert window([0.965, 0.964, 0.95, 0.087], "percent") == (0.95, 0.965)
    assert window([0.965, 0.865], "percent") == (0.865, 0.965)  # ten points are a difference, and no collapse
    assert window([1.0, 1.1, 1.2, 900.0], "plain") == (1.0, 1.2)
    assert window([-900.0, 1.0, 1.1, 1.2], "plain") == (1.0, 1.2)
    assert window([3.0], "plain") == (3.0, 3.0)


def test_a_figure_is_the_function_of_a_frame() -> None:
    summary, settings = summary_of(pairs([0.01, 0.02, 0.03])), ComparisonSettings()
    frame = FIGURES["differences"].frame(summary, settings)
    accuracy = frame[frame["metric"] == "accuracy"].iloc[0]
    assert accuracy["value"] == pytest.approx(2.0)  # points: the mean of 0.01, 0.02 and 0.03
    chart = figures.differences(frame, Look(width=240, font_size=8))
    assert isinstance(chart, alt.VConcatChart)
    assert alt.VConcatChart.from_dict(chart.to_dict()) is not None  # valid by the library's schema
    assert figures.differences(frame.iloc[:0]) is None


@pytest.fixture(scope="module")
def committed() -> Summary:
    return summarize(runs_frame(StudyFolder(REPOSITORY / "results" / "first-look").load(detail="figures")))


@pytest.mark.slow
def test_functions_whose_inputs_were_not_seen_are_drawn_without_them() -> None:
    """As of a script that compiles its activations, so that no hook of theirs is called."""
    folder = StudyFolder(REPOSITORY / "results" / "xielu-lm")
    summary, look = summarize(runs_frame(folder.load(detail="figures"))), Look(240, 8)
    frame = FIGURES["functions"].frame(summary, ComparisonSettings())
    assert frame["density"].isna().all()
    found = panels("functions", summary, ComparisonSettings(), look)
    assert len(found) == 2 * 2 * 4 * 3  # activations, layers, decays, strategies
    assert b"<svg" in save(spec("functions", found[:1], look), "svg")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in FIGURE_NAMES if n != "pulls"])
@pytest.mark.parametrize("width", [3.3, 6.5])
def test_a_figure_is_as_wide_as_asked_for_and_can_be_read(committed: Summary, name: str, width: float) -> None:
    look = Look(72 * width, 8)
    found = spec(name, panels(name, committed, ComparisonSettings(), look), look)
    assert found is not None
    svg = save(found, "svg").decode()
    whole = float(re.findall(r'<svg [^>]*width="([\d.]+)"', svg)[0])
    assert whole == pytest.approx(72 * width, rel=0.06)
    assert {float(s) for s in re.findall(r'font-size="([\d.]+)px"', svg)} == {8.0}
    image = np.asarray(Image.open(io.BytesIO(save(found, "png"))).convert("RGB")).astype(int)
    assert image.shape[1] == pytest.approx(200 * whole / 72, abs=3)
    grey = image.mean(2)
    assert np.bincount(grey.astype(int).ravel()).argmax() == 255  # on white
    assert (grey < 100).mean() > 0.003  # texts and axes are dark
    for side in (grey[:2], grey[-2:], grey[:, :2], grey[:, -2:]):
        assert side.min() > 250  # nothing is cut at an edge
    content = save(found, "pdf")
    assert content.startswith(b"%PDF")
    box = re.search(rb"MediaBox\s*\[\s*0 0 ([\d.]+)", content)
    assert box
    assert float(box[1]) == pytest.approx(whole, abs=1)


def test_the_command_line_asks_for_size_and_font(tmp_path: Path) -> None:
    sized = ["--figure", "answer", "--figure-width", "3.3", "--font-size", "7"]
    where = str(REPOSITORY / "results" / "first-look")
    done = CliRunner().invoke(app, ["report", where, "--output", str(tmp_path / "f.svg"), *sized])
    assert done.exit_code == 0, done.output
    svg = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert float(re.findall(r'<svg [^>]*width="([\d.]+)"', svg)[0]) == pytest.approx(72 * 3.3, abs=2)
    assert set(re.findall(r'font-size="([\d.]+)px"', svg)) == {"7"}


def test_text_of_a_file_is_black_on_white_whatever_the_page_does() -> None:
    summary, settings, look = summary_of(pairs([0.01, 0.02, 0.03])), ComparisonSettings(), Look()
    found = spec("answer", panels("answer", summary, settings, look), look)
    assert found is not None
    svg = save(found, "svg").decode()
    assert "currentColor" not in svg
    assert 'fill="white"' in svg
    assert set(re.findall(r'<text [^>]*fill="([^"]+)"', svg)) == {"#000000"}
    assert Image.open(io.BytesIO(save(found, "png"))).info["dpi"][0] == pytest.approx(200, abs=1)


# One of the labels takes two lines, which overlap the others' where all rows are as high as the average label.
NAMED = ("exclude-alpha", "alpha-only", "proximal-l1", "exclude-1d", "exclude-bias", "a.py:strategy_with_a_name")


@pytest.mark.parametrize("name", ["answer", "differences"])
def test_no_row_of_a_figure_is_without_its_name(name: str) -> None:
    records = []
    for decay in (0.001, 0.01, 0.1):
        for strategy in NAMED:
            for record in pairs([0.01, 0.02, 0.03], weight_decay=decay):
                if record.config["strategy"]["name"] == "exclude-alpha":
                    record.config["strategy"] = {"name": strategy, "options": {}, "source": None}
                records.append(record)
    unique = {json.dumps([r.config, r.seed], sort_keys=True): r for r in records}
    summary, settings, look = summary_of(unique.values()), ComparisonSettings(primary=None), Look(240, 8)
    found = FIGURES[name].panels(FIGURES[name].frame(summary, settings), look)
    svg = save(spec(name, found, look) or {}, "svg").decode()
    svg = re.sub(r'<text [^>]*opacity="0"[^>]*>.*?</text>', "", svg, flags=re.S)  # what overlaps is there, unseen
    texts = re.findall(r"<(?:text|tspan)[^>]*>([^<]*)<", svg)
    for panel in found:
        rows = panel.told.split("; ")
        assert len(rows) == (3 if name == "answer" else 3 * len(NAMED))
    shown = sum(text.count("λ 0.") for text in texts)
    assert shown == sum(len(panel.told.split("; ")) for panel in found)


def test_tiny_and_huge_values_are_drawn_where_they_are() -> None:
    records = [made(0.5, strategy, s) for strategy in ("decay-all", "exclude-alpha") for s in range(3)]
    for record in records:
        size = 1e-9 * (1 + record.seed) * (3 if record.config["strategy"]["name"] == "exclude-alpha" else 1)
        record.history["test_loss"][-1] = size
    frame = FIGURES["differences"].frame(summary_of(records), ComparisonSettings())
    assert frame[frame["metric"] == "loss"]["value"].iloc[0] == pytest.approx(200.0)
    small = frame.assign(value=frame["value"] * 1e-12, low=frame["value"] * 1e-12, high=frame["value"] * 2e-12)
    chart = figures.differences(small)
    assert chart is not None
    values = [row for rows in chart.to_dict()["datasets"].values() for row in json.loads(rows) if "text" in row]
    assert all(row["high"] for row in values if row["text"].startswith("+200"))

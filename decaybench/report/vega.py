"""How figures look, and how they are written: Vega-Lite with vl-convert, without a browser."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import altair as alt
import pandas as pd

from decaybench.errors import DecaybenchError
from decaybench.registry import STRATEGIES

# Okabe and Ito's colours and others, each at least 3:1 against white and against the dark ground of the page; the
# first eight are told apart by colour-blind eyes, and shapes and dashes tell all of them apart.
COLORS = (
    *("#767676", "#0072b2", "#d55e00", "#009270", "#b8609c", "#a97800", "#3a8ec0", "#8a5cc2"),
    *("#a0522d", "#668a1f", "#c2254f", "#1b878c", "#5b6ee1", "#b5179e", "#3d7a3d", "#8c7b4f"),
)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left")
DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4])
DARK = "#16181c"  # the page's ground in the dark
POINTS_PER_INCH = 72
TOLERATED = 1.06  # how much wider than asked for a figure may be, for the sake of its legend
Spec = dict[str, Any]  # of Vega-Lite
# How a number is written at an axis: as it is, or with a power of ten where that would be long.
NUMBER = (
    "datum.value == 0 || (abs(datum.value) >= 0.0001 && abs(datum.value) < 100000) "
    "? replace(format(datum.value, '.6~r'), '-', '−') : replace(format(datum.value, '.2~e'), '-', '−')"
)


@dataclass(frozen=True)
class Look:
    """How a figure is drawn.

    Attributes:
        width: Of the whole figure in points, at 72 an inch.
        font_size: In points.
        ink: Colour of texts and axes.
        legend: Whether the figure has its own legend; the page has one for all.
    """

    width: float = 6.5 * POINTS_PER_INCH
    font_size: float = 9
    ink: str = "#000000"
    legend: bool = True


ON_PAGE = Look(font_size=12, ink="currentColor", legend=False)


@dataclass(frozen=True)
class Panel:
    """A part of a figure with its own axes.

    Attributes:
        row: What a row of panels is about: a question, mostly.
        title: What this panel shows.
        chart: The drawing, without a size.
        height: In lines of text.
        line: What stands side by side in a row, where a row has several lines.
        decay: Of which decay it is, where a figure has panels for each.
        told: What it says, in words, for those who cannot see it.
    """

    row: str
    title: str
    chart: alt.LayerChart | alt.FacetChart
    height: float
    line: str = ""
    decay: float | None = None
    told: str = ""


def config(look: Look) -> dict[str, Any]:
    """Returns the configuration of Vega-Lite for a look."""
    text = {"labelColor": look.ink, "titleColor": look.ink, "labelFontSize": look.font_size}
    text |= {"titleFontSize": look.font_size, "titleFontWeight": "normal", "labelLimit": 0, "titleLimit": 0}
    return {
        "background": None if look.ink == "currentColor" else "white",
        "font": "system-ui, sans-serif" if look.ink == "currentColor" else "sans-serif",
        "view": {"stroke": None},
        "axisX": {"labelFlush": False},
        "axisQuantitative": {"labelExpr": NUMBER},
        "aria": look.legend,  # the page says what a chart shows in the label of its place
        "axis": {**text, "domainColor": look.ink, "tickColor": look.ink, "gridColor": "#8883", "labelOverlap": True},
        "legend": {**text, "orient": "bottom", "symbolOpacity": 1},
        "title": {"color": look.ink, "subtitleColor": look.ink, "fontSize": look.font_size, "fontWeight": "normal"},
        "text": {"color": look.ink, "fontSize": look.font_size},
    }


def chart(frame: pd.DataFrame) -> alt.Chart:
    """Makes a chart of the columns of a frame; what is missing is null, what is equal in all rows is said once."""
    texts = {str(key): set(frame[key]) for key in frame.select_dtypes(exclude="number") if len(frame) > 1}
    same = [key for key, found in texts.items() if len(found) == 1 and isinstance(next(iter(found)), str)]
    numbers = {str(key): frame[key].map(_rounded) for key in frame.select_dtypes("float")}
    rounded = frame.assign(**numbers).drop(columns=same)
    # Text, since Altair copies lists whenever a chart is changed.
    whole = rounded.astype(object).where(rounded.notna(), None)
    text = json.dumps(whole.to_dict("records"), allow_nan=False)
    made = alt.Chart(alt.InlineData(values=text, format=alt.JsonDataFormat(type="json")))
    return made.transform_calculate(**{key: json.dumps(frame[key].iloc[0]) for key in same}) if same else made


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if math.isfinite(value) else math.nan


class Strategies:
    """The strategies of a figure with their colors, shapes and dashes: a strategy looks the same in every figure.

    Args:
        frame: Data with the columns ``strategy`` and ``method``.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        first = frame.drop_duplicates("strategy") if len(frame) else frame
        present = [str(name) for name in first.get("strategy", ())]
        self.methods: dict[str, str] = dict(zip(present, map(str, first.get("method", ())), strict=True))
        known = list(STRATEGIES)
        self.names = sorted(present, key=lambda name: known.index(name) if name in known else len(known))
        own = [name for name in self.names if name not in known]
        self._places = {name: known.index(name) if name in known else len(known) + own.index(name) for name in present}

    def mark(self, name: str) -> tuple[str, str, list[int]]:
        """Returns color, shape and dash of a strategy."""
        i = self._places[name]
        return COLORS[i % len(COLORS)], SHAPES[i % len(SHAPES)], DASHES[i // len(COLORS) % len(DASHES)]

    def _scale(self, place: int) -> alt.Scale:
        return alt.Scale(domain=self.names, range=[self.mark(name)[place] for name in self.names])

    def _legend(self, look: Look) -> alt.Legend | None:
        if not look.legend:
            return None
        wide = look.width >= 5 * POINTS_PER_INCH  # where there is little room, a method has the name of one strategy
        names = {name: self.methods[name] for name in self.names if wide and self.methods[name] != name}
        columns = 2 if wide else 1
        return alt.Legend(title=None, labelExpr=f"({json.dumps(names)})[datum.label] || datum.label", columns=columns)

    def color(self, look: Look) -> alt.Color:
        """Encodes strategies as colors."""
        return alt.Color("strategy:N", scale=self._scale(0), legend=self._legend(look))

    def shape(self, look: Look) -> alt.Shape:
        """Encodes strategies as shapes."""
        return alt.Shape("strategy:N", scale=self._scale(1), legend=self._legend(look))

    def dash(self, look: Look) -> alt.StrokeDash:
        """Encodes strategies as dashes, where there are more than colors."""
        return alt.StrokeDash("strategy:N", scale=self._scale(2), legend=None)


# The strategies that were chosen on the page; empty means all.
CHOSEN = alt.Parameter(name="chosen", param=alt.VariableParameter(name="chosen", value=[]), param_type="variable")
IS_CHOSEN = "!length(chosen) || indexof(chosen, datum.strategy) >= 0"


def opacity(full: float = 1.0) -> alt.OpacityValue:
    """Dims the strategies that are not chosen on the page."""
    return alt.OpacityValue(0.12 * full, condition={"test": IS_CHOSEN, "value": full})


def composed(panels: Sequence[Panel], look: Look, columns: int) -> Spec | None:
    """Lays out panels as one figure, as wide as asked for; None where there is none.

    Args:
        panels: The panels, rows of one title together.
        look: How it is drawn.
        columns: How many panels stand side by side at most.

    Raises:
        DecaybenchError: When its labels leave no room for anything else.

    Returns:
        A specification of Vega-Lite. It is put together as a dict: Altair copies all data whenever it combines charts.
    """
    if not panels:
        return None
    rows: dict[str, list[tuple[Panel, Spec]]] = {}
    for panel in panels:
        title = panel.row + (f" · λ {panel.decay:g}" if panel.decay else "")
        rows.setdefault(title, []).append((panel, panel.chart.to_dict(validate=False)))
    for side_by_side in range(min(columns, max(map(len, rows.values()))), 0, -1):
        inside = max(40.0, look.width / side_by_side - 60)
        for _ in range(2):  # axes have a width of their own, which only a drawing tells
            width = _width_of(_laid_out(rows, look, side_by_side, inside))
            inside = max(20.0, inside + (look.width - width) / side_by_side)
        found = _laid_out(rows, look, side_by_side, inside)
        width = _width_of(found)
        if width <= TOLERATED * look.width:
            return found
    raise DecaybenchError(
        f"The labels of this figure need {width / POINTS_PER_INCH:.1f} inches: it cannot be "
        f"{look.width / POINTS_PER_INCH:g} inches wide with a font of {look.font_size:g} points."
    )


def _laid_out(rows: dict[str, list[tuple[Panel, Spec]]], look: Look, columns: int, inside: float) -> Spec:
    parts, datasets = [], {}
    params = {p["name"]: p for members in rows.values() for _, spec in members for p in spec.get("params", ())}
    for title, members in rows.items():
        charts = []
        for panel, spec in members:
            datasets.update(spec.get("datasets", {}))
            chart = {k: v for k, v in spec.items() if k not in ("$schema", "config", "datasets", "params")}
            size = {"width": inside, "height": 1.5 * look.font_size * panel.height}
            charts.append({**chart, **size, "title": _broken(panel.title, look, inside)})
        text = {"text": _broken(title, look, columns * (inside + 40)), "anchor": "start", "offset": look.font_size / 2}
        lines = []
        for _, line in groupby(zip(members, charts, strict=True), key=lambda pair: pair[0][0].line):
            side_by_side = [chart for _, chart in line]
            lines += [{"hconcat": side_by_side[i : i + columns]} for i in range(0, len(side_by_side), columns)]
        parts.append({"vconcat": lines, "title": text})
    whole = {"$schema": alt.SCHEMA_URL, "vconcat": parts, "datasets": datasets, "params": list(params.values())}
    return {**whole, "config": config(look), "resolve": {"scale": {"color": "shared", "shape": "shared"}}}


def _broken(text: str, look: Look, width: float) -> list[str]:
    """Breaks a title into lines that are as wide as a panel."""
    room, lines = max(8, int(width / (0.56 * look.font_size))), [""]
    for word in re.split(r"(?<= )", text):
        if len(lines[-1]) + len(word.rstrip()) > room and lines[-1]:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def _width_of(spec: Spec) -> float:
    found = re.search(r'<svg [^>]*width="([\d.]+)"', save(spec, "svg").decode())
    return float(found[1]) if found else 0.0


def save(spec: Spec, format: str) -> bytes:
    """Writes a specification of Vega-Lite as png (at 200 dots an inch), svg or pdf."""
    import vl_convert

    if format == "svg":
        return str(vl_convert.vegalite_to_svg(spec)).encode()
    if format == "pdf":
        return bytes(vl_convert.vegalite_to_pdf(spec))
    return bytes(vl_convert.vegalite_to_png(spec, ppi=200))


def bundle() -> str:
    """Returns the JavaScript that draws the charts of a page, without anything to load."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))

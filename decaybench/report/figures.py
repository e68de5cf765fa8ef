"""Draws the figures: each takes its DataFrame (`figure_frames`) and returns an Altair chart.

A figure is made of panels, so that the page can lay out the same panels for any width of a screen.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from altair.utils.schemapi import debug_mode

from decaybench.analysis.comparison import ComparisonSettings, Summary
from decaybench.errors import DecaybenchError
from decaybench.report import figure_frames as frames
from decaybench.report.headline import COLLAPSED
from decaybench.report.numbers import format_number
from decaybench.report.titles import apart
from decaybench.report.vega import CHOSEN, Look, Panel, Spec, Strategies, composed, opacity
from decaybench.report.vega import chart as chart_of

MAX_PANELS = 200  # of one figure; the table has everything
SMALLEST, LARGEST = 1e-4, 10.0  # of a pull beside the gradient's; what is beyond is drawn as these
DECADES = 100.0  # a logarithmic axis shows everything within so large a factor
FAR = 10.0  # a gap between values that is so many times as wide as the others' range separates what collapsed
SPREAD = 20.0  # ends of intervals that differ by more than this factor are drawn on an axis with logarithmic ends
NARROW = 320.0  # points; a figure that is less wide has one column of panels less
LABEL_WIDTH = 24  # characters of a row's label before it goes on in another line


def _tip(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in fields]


def _label(*words: str) -> str:
    """Joins words into a label of short lines."""
    lines = [""]
    for word in filter(None, words):
        if lines[-1] and len(lines[-1]) + len(word) + 1 > LABEL_WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _decay(value: float) -> str:
    return f"λ {format_number(value)}" if value else ""


# -- differences ------------------------------------------------------------------------------------------------------


def _answer_panels(frame: pd.DataFrame, look: Look) -> list[Panel]:
    """Draws the contrast that is asked about, of all questions on one axis: a panel for each metric."""
    asked = frame[frame["asked"]] if len(frame) else frame
    if not len(asked):
        return []
    titles = list(dict.fromkeys(asked["question"]))
    common, short = apart(titles)
    several = asked["strategy"].nunique() > 1
    labels = [
        _label(*short[question].split(" · "), strategy if several else "", _decay(decay))
        for question, strategy, decay in asked[["question", "strategy", "decay"]].itertuples(index=False)
    ]
    whose = f"{'each strategy' if several else asked['method'].iloc[0]} minus {asked['baseline'].iloc[0]}"
    whose += f" · {common}" if common else ""
    return list(_difference_panels(asked.assign(label=labels), look, whose))


def _all_difference_panels(frame: pd.DataFrame, look: Look) -> list[Panel]:
    """Draws every difference: for each question a panel for each metric."""
    panels: list[Panel] = []
    if not len(frame):
        return panels
    frame = frame.assign(label=[_label(s, _decay(d)) for s, d in zip(frame["strategy"], frame["decay"], strict=True)])
    for question, part in frame.groupby("question", sort=False):
        panels += _difference_panels(part, look, str(question))
    return panels


def _difference_panels(rows: pd.DataFrame, look: Look, title: str) -> Iterator[Panel]:
    for metric, part in rows.groupby("metric", sort=False):
        ends = part[["value", "low", "high"]].to_numpy(dtype=float)
        told = "; ".join(f"{a.replace(chr(10), ' ')}: {b}" for a, b in zip(part["label"], part["text"], strict=True))
        axis, beyond = _difference_axis(ends, part)
        chart = _intervals(part, Strategies(rows), replace(look, legend=False), axis)  # rows have the names
        unit = "; ".join(filter(None, (part["unit"].iloc[0], beyond)))
        unit = f" ({unit})" if unit else ""
        lines = len(part) * (max(label.count("\n") for label in part["label"]) + 1.2)
        yield Panel(title, f"difference in {metric}{unit}", chart, lines, told=told)


def _difference_axis(ends: Any, part: pd.DataFrame) -> tuple[alt.X, str]:
    """Makes an axis that shows small and large differences; beyond the small ones it may be logarithmic."""
    known = np.abs(ends[np.isfinite(ends)])
    least, most = min(0.0, float(np.nanmin(ends))), max(0.0, float(np.nanmax(ends)))
    margin = part["margin"].iloc[0]
    near = float(np.median(known[known > 0])) if (known > 0).any() else 1.0
    constant = near if margin is None or not np.isfinite(margin) else max(margin, near / SPREAD)
    if known.max(initial=0) <= SPREAD * max(near, constant):
        return alt.X("value:Q", title=None, scale=alt.Scale(domain=[least, most], nice=True)), ""
    exponents = range(math.floor(math.log10(constant)), math.ceil(math.log10(known.max())) + 1)
    steps = [k * 10.0**e for e in exponents for k in (1, 3) if k * 10.0**e >= constant]
    ticks = [t for t in sorted({0.0, *steps, *(-s for s in steps)}) if least <= t <= most]
    scale = alt.Scale(
        type="symlog", constant=constant, domain=[1.2 * least, 1.2 * most], nice=False
    )  # room at the ends
    axis = alt.Axis(values=ticks)
    return alt.X("value:Q", title=None, scale=scale, axis=axis), f"logarithmic beyond ±{constant:.2g}"


def _intervals(part: pd.DataFrame, strategies: Strategies, look: Look, x: alt.X) -> alt.LayerChart | alt.FacetChart:
    clear = part["verdict"].isin(["better", "worse"])
    data = part.assign(clear=clear, verdict=part["verdict"].fillna("one seed: no verdict"))
    base = chart_of(data.drop(columns=["unit", "margin", "asked", "baseline"]))
    y = alt.Y(
        "label:N",
        sort=list(part["label"]),
        title=None,
        axis=alt.Axis(labelExpr="split(datum.label, '\\n')", grid=False, labelOverlap=False),
    )
    tip = _tip(
        ("method", "strategy"), ("question", "question"), ("decay", "λ"), ("metric", "metric"), ("text", "difference")
    )
    both = {"y": y, "color": strategies.color(look), "tooltip": [*tip, *_tip(("verdict", "verdict"))]}
    zero = chart_of(pd.DataFrame({"value": [0]})).mark_rule(color="#808080").encode(x=x)
    line = (
        base.mark_rule(size=2)
        .encode(x=x, x2="high:Q", opacity=opacity(), **both)
        .transform_calculate(value="datum.low")
    )
    dot = base.mark_point(size=45, filled=False, strokeWidth=2).encode(
        x=x, shape=strategies.shape(look), opacity=opacity(), **both
    )
    inside = (
        base.mark_point(size=45, filled=True)
        .encode(x=x, shape=strategies.shape(look), opacity=opacity(), **both)
        .transform_filter("datum.clear")
    )
    return alt.layer(zero, line, dot, inside).add_params(CHOSEN)


# -- metrics against decay --------------------------------------------------------------------------------------------


def _decay_panels(frame: pd.DataFrame, look: Look) -> list[Panel]:
    """Draws each metric against decay, a line for each strategy; the control is a horizontal line."""
    panels = []
    for (question, metric), part in frame.groupby(["question", "metric"], sort=False) if len(frame) else ():
        chart = _against_decay(part, Strategies(frame), look, str(metric))
        told = "; ".join(
            f"{s} {_decay(d)}: {t}" for s, d, t in part[["strategy", "decay", "text"]].itertuples(index=False)
        )
        panels.append(Panel(str(question), str(metric), chart, 14, told=told))
    return panels


def window(numbers: Sequence[float], scale: str) -> tuple[float, float]:
    """Returns the range in which a metric is drawn: without networks that collapsed, which would hide all others.

    Args:
        numbers: The values.
        scale: Of the metric: accuracies and their like (``percent``) have collapsed below `COLLAPSED` of the best;
            other values are left out where a gap, `FAR` times as wide as the rest, separates less than half of them.
    """
    ordered = np.sort(np.asarray(numbers, dtype=float))
    if scale == "percent":
        return float(ordered[ordered >= COLLAPSED * ordered[-1]][0]), float(ordered[-1])
    low, high, half = 0, len(ordered) - 1, len(ordered) // 2
    for i in range(half + 1, len(ordered)):
        if high == len(ordered) - 1 and ordered[i] - ordered[i - 1] > FAR * (ordered[i - 1] - ordered[0]) > 0:
            high = i - 1
    for i in range(len(ordered) - half - 1):
        if ordered[i + 1] - ordered[i] > FAR * (ordered[-1] - ordered[i + 1]) > 0:
            low = i + 1
    return float(ordered[low]), float(ordered[high])


def _beyond(rows: pd.DataFrame, domain: Sequence[float], below: bool) -> pd.DataFrame:
    """Says in a text for each decay which values lie beyond one end of the axis."""
    found = []
    chosen = rows[(rows["value"] < domain[0]) == below].sort_values("value")
    for number, (decay, group) in enumerate(chosen.groupby("decay")):
        ends = " to ".join(dict.fromkeys([group["text"].iloc[0], group["text"].iloc[-1]]))
        step = 0.06 * (domain[1] - domain[0]) * (number % 2)  # neighbours at two heights
        edge = domain[0] + step if below else domain[1] - step
        found.append({"x": decay, "edge": edge, "told": f"{'↓' if below else '↑'} {ends}"})
    return pd.DataFrame(found, columns=["x", "edge", "told"])


def _against_decay(
    part: pd.DataFrame, strategies: Strategies, look: Look, metric: str
) -> alt.LayerChart | alt.FacetChart:
    logarithmic = bool((part["scale"] == "relative").all() and (part["value"] > 0).all())
    numbers = part["value"].tolist()
    whole = logarithmic and max(numbers) <= DECADES * min(numbers)
    low, high = (min(numbers), max(numbers)) if whole else window(numbers, part["scale"].iloc[0])
    inside = part[(part["value"] >= low) & (part["value"] <= high)]
    ends = inside[["low", "high", "value"]].to_numpy(dtype=float)
    if logarithmic:
        ends = np.clip(ends, low / 2, None)
    domain = [float(np.nanmin(ends)), float(np.nanmax(ends))]
    kind = {"type": "log"} if logarithmic else {"zero": False}
    scale = alt.Scale(domain=domain, nice=False, clamp=True, **kind)
    y = alt.Y("shown:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5))
    beyond = (part["value"] < domain[0]) | (part["value"] > domain[1])
    names = list(dict.fromkeys(part["strategy"]))
    step = 0.05 * np.array([names.index(s) - (len(names) - 1) / 2 for s in part["strategy"]])
    data = part.assign(
        x=part["decay"] * np.exp(step),  # side by side, so that equal curves do not hide each other
        shown=part["value"].where(~beyond),
        lower=part["low"].clip(*domain).where(~beyond),
        upper=part["high"].clip(*domain).where(~beyond),
    )
    tip = _tip(("method", "strategy"), ("question", "question"), ("decay", "λ"), ("text", metric))
    color = strategies.color(look)
    data = data.drop(columns=["low", "high", "value", "scale", "metric"])
    several, control = data[data["decay"] > 0], data[data["decay"] == 0]
    decays = sorted(set(several["decay"]))
    x = alt.X(
        "x:Q",
        title="weight decay λ",
        scale=alt.Scale(type="log", domain=[decays[0] * math.exp(-0.3), decays[-1] * math.exp(0.3)], nice=False),
        axis=alt.Axis(values=decays, grid=False),
    )
    base = chart_of(several).encode(x=x, color=color)
    band = base.mark_area(clip=True).encode(
        y=alt.Y("lower:Q", title=None, scale=scale), y2="upper:Q", opacity=opacity(0.14)
    )
    line = base.mark_line(clip=True, strokeWidth=1.5).encode(
        y=y, strokeDash=strategies.dash(look), opacity=opacity(), tooltip=tip
    )
    dot = base.mark_point(filled=True, size=45).encode(
        y=y, shape=strategies.shape(look), opacity=opacity(), tooltip=tip
    )
    flat = (
        chart_of(control)
        .mark_rule(strokeDash=[5, 3], strokeWidth=1.5)
        .encode(y=y, color=color, opacity=opacity(), tooltip=tip)
    )
    layers = [band, flat, line, dot]
    for below in (True, False):
        outside = chart_of(_beyond(part[beyond & (part["decay"] > 0)], domain, below))
        mark = outside.mark_text(fontSize=look.font_size, color=look.ink, align="right", dx=8, dy=-8 if below else 8)
        layers.append(mark.encode(x=x, y=alt.Y("edge:Q", title=None, scale=scale), text="told:N"))
    return alt.layer(*layers).add_params(CHOSEN)


# -- what was learned -------------------------------------------------------------------------------------------------


def _function_panels(frame: pd.DataFrame, look: Look) -> list[Panel]:
    """Draws the learned functions: for each layer a panel for each strategy, all of one layer on the same axes."""
    panels = []
    keys = ["question", "decay", "layer"]
    for (question, decay, layer), part in frame.groupby(keys, sort=False) if len(frame) else ():
        ends = part[["mean", "low", "high", "start"]].to_numpy(dtype=float)
        if not np.isfinite(ends).any():
            continue
        domain = [float(np.nanmin(ends)), float(np.nanmax(ends))]
        domain[0] -= 0.25 * (domain[1] - domain[0] or 1)  # room for the inputs
        for strategy, curves in part.groupby("strategy", sort=False):
            chart = _function(curves, Strategies(frame), look, domain)
            at = {x: format_number(round(y, 3)) for x, y in zip(curves["input"], curves["mean"], strict=True)}
            told = f"f(−2) = {at[-2.0]}, f(0) = {at[0.0]}, f(2) = {at[2.0]}"
            panels.append(Panel(str(question), f"{strategy} · {layer}", chart, 8, str(layer), float(str(decay)), told))
    return panels


def _function(
    curves: pd.DataFrame, strategies: Strategies, look: Look, domain: list[float]
) -> alt.LayerChart | alt.FacetChart:
    height = 0.2 * (domain[1] - domain[0])
    data = curves.assign(floor=domain[0], density=domain[0] + height * curves["density"]).drop(columns="channels")
    x = alt.X("input:Q", title="input s", axis=alt.Axis(grid=False, values=[-6, -3, 0, 3, 6]))
    base = chart_of(data.drop(columns="question")).encode(x=x)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title="f(s)", scale=alt.Scale(domain=domain, nice=False), axis=alt.Axis(tickCount=4))

    tip = [*_tip(("method", "strategy"), ("layer", "layer"), ("decay", "λ"), ("input", "s"))]
    tip += [alt.Tooltip("mean:Q", title="f(s), mean of channels", format=".3g")]
    color = strategies.color(look)
    seen = base.mark_area(color="#808080", opacity=0.35, interpolate="step-after").encode(y=y("density"), y2="floor:Q")
    layers = [seen, base.mark_area().encode(y=y("low"), y2="high:Q", color=color, opacity=opacity(0.2))]
    lines = [
        {"input": s, "channel": i, "value": v, "strategy": name}
        for s, channels, name in zip(curves["input"], curves["channels"], curves["strategy"], strict=True)
        for i, v in enumerate(channels)
    ]
    if lines:
        thin = chart_of(pd.DataFrame(lines)).mark_line(strokeWidth=0.6, clip=True)
        layers.append(thin.encode(x=x, y=y("value"), detail="channel:N", color=color, opacity=opacity(0.6)))
    start = base.mark_line(color="#808080", strokeDash=[4, 3], strokeWidth=1).encode(y=y("start"))
    mean = base.mark_line(strokeWidth=2).encode(y=y("mean"), color=color, opacity=opacity(), tooltip=tip)
    return alt.layer(*layers, start, mean).add_params(CHOSEN)


def _alpha_panels(frame: pd.DataFrame, look: Look) -> list[Panel]:
    """Draws the activation parameters over the epochs, a panel for each layer: medians, and 5% to 95%."""
    panels = []
    keys = ["question", "decay", "layer"]
    for (question, decay, layer), part in frame.groupby(keys, sort=False) if len(frame) else ():
        strategies = Strategies(frame)
        x = alt.X("epoch:Q", title=part["clock"].iloc[0], axis=alt.Axis(tickMinStep=1, grid=False, format="d"))
        base = chart_of(part.drop(columns=["question", "method", "clock"])).encode(x=x, color=strategies.color(look))
        scale = alt.Scale(zero=False)
        tip = _tip(("strategy", "strategy"), ("layer", "layer"), ("decay", "λ"), ("epoch", "epoch"))
        tip += [
            alt.Tooltip(f"{k}:Q", title=t, format=".3g")
            for k, t in (("median", "median"), ("q05", "5%"), ("q95", "95%"))
        ]
        ends = [
            base.mark_line(strokeWidth=0.9).encode(
                y=alt.Y(f"{k}:Q", title="α", scale=scale), opacity=opacity(), strokeDash=strategies.dash(look)
            )
            for k in ("q05", "q95")
        ]
        line = base.mark_line(strokeWidth=2).encode(
            y=alt.Y("median:Q", scale=scale), opacity=opacity(), tooltip=tip, strokeDash=strategies.dash(look)
        )
        dots = base.mark_point(filled=True, size=25).encode(
            y=alt.Y("median:Q", scale=scale), opacity=opacity(), tooltip=tip, shape=strategies.shape(look)
        )
        last = part.drop_duplicates("strategy", keep="last")
        told = "; ".join(
            f"{s}: median {format_number(m)} at the end"
            for s, m in last[["strategy", "median"]].itertuples(index=False)
        )
        panels.append(
            Panel(
                str(question),
                str(layer),
                alt.layer(*ends, line, dots).add_params(CHOSEN),
                10,
                "",
                float(str(decay)),
                told,
            )
        )
    return panels


# -- trainings that were watched --------------------------------------------------------------------------------------


def _pull_panels(frame: pd.DataFrame, look: Look) -> list[Panel]:
    """Draws how hard decay pulls beside the gradient, parameters × steps."""
    panels = []
    for question, part in frame.groupby("question", sort=False) if len(frame) else ():
        whole = part["parameter"] + " (" + part["role"] + ")"
        names = list(dict.fromkeys(whole))
        data = part.assign(
            label=whole.map(dict(zip(names, _shortened(names), strict=True))),
            drawn=part["ratio"].clip(SMALLEST, LARGEST),
        )
        y = alt.Y("label:N", sort=None, title=None, axis=alt.Axis(grid=False, labelOverlap=False))
        scale = alt.Scale(type="log", range=["#0072b2", "#767676", "#d55e00"], domain=[SMALLEST, LARGEST])
        legend = alt.Legend(
            title="pull of decay / pull of the gradient",
            orient="bottom",
            format="~r",
            direction="horizontal",
            values=[0.0001, 0.01, 1],
        )
        chart = (
            chart_of(data.drop(columns="question"))
            .mark_rect()
            .encode(
                x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False), scale=alt.Scale(nice=False)),
                x2="until:Q",
                y=y,
                color=alt.Color("drawn:Q", scale=scale, legend=legend),
                tooltip=[
                    *_tip(("parameter", "parameter"), ("role", "role"), ("step", "step")),
                    alt.Tooltip("ratio:Q", format=".3g"),
                ],
            )
        )
        told = ", ".join(
            f"{n} ({r})" for n, r in part.drop_duplicates("parameter")[["parameter", "role"]].itertuples(index=False)
        )
        panels.append(
            Panel(str(question), "pull of decay beside the gradient", alt.layer(chart), 5 + 1.2 * len(names), told=told)
        )
    return panels


def _shortened(names: Sequence[str]) -> list[str]:
    """Shortens names in their middle, where they stay different."""
    short = [n if len(n) <= LABEL_WIDTH else f"{n[: LABEL_WIDTH // 2 - 3]}…{n[-LABEL_WIDTH // 2 - 2 :]}" for n in names]
    return [s if short.count(s) == 1 else n for s, n in zip(short, names, strict=True)]


# -- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A kind of figures.

    Attributes:
        frame: Makes its data of a report.
        panels: Draws its panels.
        columns: How many panels stand side by side in a file.
        title: What it is about, for a heading.
        caption: What is drawn, and how.
    """

    frame: Callable[[Summary, ComparisonSettings], pd.DataFrame]
    panels: Callable[[pd.DataFrame, Look], list[Panel]]
    columns: int
    title: str
    caption: str


FIGURES: dict[str, Figure] = {
    "answer": Figure(
        frames.differences_frame,
        _answer_panels,
        2,
        "The answer",
        "Differences to the baseline with their intervals, all questions on one axis. Filled: better or worse; "
        "open: the same within the margin, or no verdict.",
    ),
    "differences": Figure(
        frames.differences_frame,
        _all_difference_panels,
        2,
        "Every method",
        "Differences to the baseline with their intervals; what is provably one method is drawn once, by the name of "
        "its first strategy. Filled: better or worse; open: the same within the margin, or no verdict.",
    ),
    "decay": Figure(
        frames.decay_frame,
        _decay_panels,
        2,
        "Against weight decay",
        "Each metric against λ with 95% intervals; the dashed line is the control without decay. An arrow "
        "says which values lie beyond the axis: accuracies below 60% of the best, of networks that collapsed.",
    ),
    "functions": Figure(
        frames.functions_frame,
        _function_panels,
        3,
        "What became of the functions",
        "Learned functions: mean of channels and seeds, the band holds 90% of the channels, thin lines are channels of "
        "one seed where they were recorded, dashed is the start; grey below: the inputs that the layer really gets.",
    ),
    "alphas": Figure(
        frames.alphas_frame,
        _alpha_panels,
        2,
        "The parameters over time",
        "Activation parameters in the course of training, mean of seeds: median (dots), thin lines at 5% and 95%.",
    ),
    "pulls": Figure(
        frames.pulls_frame,
        _pull_panels,
        1,
        "What decay pulls at",
        "How hard decay pulls beside the gradient, for each parameter over the steps.",
    ),
}


def panels(name: str, summary: Summary, settings: ComparisonSettings, look: Look) -> list[Panel]:
    """Returns the panels of a figure; empty where the study has nothing to show in it.

    Args:
        name: A key of `FIGURES`.
        summary: The summary of a study.
        settings: How cells were compared.
        look: How it is drawn.

    Raises:
        DecaybenchError: When there are too many to be looked at.
    """
    with debug_mode(False):  # Altair's own checks of every part take most of the time
        found = FIGURES[name].panels(FIGURES[name].frame(summary, settings), look)
    if len(found) > MAX_PANELS and look.legend:
        raise DecaybenchError(
            f"The figure {name} would have {len(found)} panels, at most {MAX_PANELS}: report a study with fewer "
            "questions or decays, or write the page (--output report.html)."
        )
    return found


def spec(name: str, found: Sequence[Panel], look: Look) -> Spec | None:
    """Lays out the panels of a figure for a file; None where there are none."""
    columns = FIGURES[name].columns if look.width >= NARROW else max(1, FIGURES[name].columns - 1)
    return composed(found, look, columns)


def _public(name: str) -> Callable[..., alt.VConcatChart | None]:
    def draw(frame: pd.DataFrame, look: Look | None = None) -> alt.VConcatChart | None:
        look = look or Look()
        found = spec(name, FIGURES[name].panels(frame, look), look)
        return None if found is None else alt.VConcatChart.from_dict(found, validate=False)

    draw.__name__ = draw.__qualname__ = name
    draw.__doc__ = f"""Draws a figure: {FIGURES[name].caption}

    Args:
        frame: Its data, as `decaybench.report.figure_frames` makes it.
        look: Width, font size and ink.

    Returns:
        An Altair chart; None where there is nothing to draw.
    """
    return draw


answer, differences, decay, functions, alphas, pulls = (_public(name) for name in FIGURES)
